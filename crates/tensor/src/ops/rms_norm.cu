// RMSNorm. A row of hidden features has a block, which keeps it in shared memory while the first warp sums it in
// sixteen lanes; a row of a head's features ("groups") has half a warp and no shared memory.

// Rows whose contributions to the weight's gradient are summed first.
const int RMS_NORM_PIECE = 64;

DEVICE float rms_norm_rstd(float squares, int h, float eps) {
    float mean = squares / (float)h;
    return 1.0f / sqrtf(mean + eps);
}

// A lane's share of the sum of squares.
DEVICE float rms_norm_squares(const float* x, int h, int lane) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = lane; i < h; i += 16) sum = fmaf(x[i], x[i], sum);
    return sum;
}

// y = x * rstd * w for a row that lies in shared memory; the block waits first until it does.
DEVICE void rms_norm_row(const float* x, const float* __restrict__ w, float eps, float* __restrict__ y, float* rstd,
                         int h) {
    __shared__ float scale;
    __syncthreads();
    if (threadIdx.x < 32) {
        float squares = lane_sum(rms_norm_squares(x, h, threadIdx.x % 16));
        if (threadIdx.x == 0) *rstd = scale = rms_norm_rstd(squares, h, eps);
    }
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < h; i += blockDim.x) y[i] = x[i] * scale * w[i];
}

// y [n, h] = x [n, h] / sqrt(mean(x²) + eps) * w [h], and rstd [n], the factor of each row.
// Grid n, threads h / 8 rounded up to a multiple of 32, at most 256; dynamic shared memory 4 h bytes.
KERNEL(rms_norm_forward)(const float* x, const float* __restrict__ w, float eps, float* __restrict__ y, float* rstd,
                         int h) {
    DYNAMIC_SHARED(float, row);
    size_t at = (size_t)blockIdx.x * h;
#pragma unroll 4
    for (int i = threadIdx.x; i < h; i += blockDim.x) row[i] = x[at + i];
    rms_norm_row(row, w, eps, y + at, rstd + blockIdx.x, h);
}

// s [n, h] = a [n, h] + b [n, h], then y and rstd as above from s. s may be a or b.
// Launched as rms_norm_forward.
KERNEL(rms_norm_add_forward)(const float* a, const float* b, const float* __restrict__ w, float eps, float* s,
                             float* __restrict__ y, float* rstd, int h) {
    DYNAMIC_SHARED(float, row);
    size_t at = (size_t)blockIdx.x * h;
#pragma unroll 4
    for (int i = threadIdx.x; i < h; i += blockDim.x) s[at + i] = row[i] = a[at + i] + b[at + i];
    rms_norm_row(row, w, eps, y + at, rstd + blockIdx.x, h);
}

// As rms_norm_forward, for many rows of few features (h up to 256 or so).
// Grid ceil(n / 16), 256 threads.
KERNEL(rms_norm_forward_groups)(const float* __restrict__ x, const float* __restrict__ w, float eps,
                                float* __restrict__ y, float* rstd, int n, int h) {
    int row = blockIdx.x * 16 + threadIdx.x / 16, lane = threadIdx.x % 16;
    bool inside = row < n;
    x += (size_t)row * h;
    y += (size_t)row * h;
    float scale = rms_norm_rstd(lane_sum(inside ? rms_norm_squares(x, h, lane) : 0.0f), h, eps);
    if (!inside) return;
    if (lane == 0) rstd[row] = scale;
#pragma unroll 8
    for (int i = lane; i < h; i += 16) y[i] = x[i] * scale * w[i];
}

// x̂ dy: what a row adds to the weight's gradient.
DEVICE float rms_norm_weight_term(float x, float dy, float scale) {
    return dy * (x * scale);
}

// Closes a lane's sum of x̂ dy w: lanes that a last, partial vector lacks add a zero, which turns -0 into 0.
DEVICE float rms_norm_slope(float sum, int h, int lane, float scale) {
    if (h % 16 != 0 && lane >= h % 16) sum = sum + 0.0f;
    return -(lane_sum(sum) / (float)h) * scale;
}

// rstd * (dy w - x̂ mean(dy w x̂)) (+ extra).
DEVICE float rms_norm_dx(float x, float dy, float w, float scale, float slope, const float* extra, size_t i) {
    float d = scale * fmaf(x, slope, dy * w);
    return extra ? d + extra[i] : d;
}

// dx [n, h] from x, dy [n, h], rstd [n], w [h]; extra [n, h] is added unless it is null.
// Launched as rms_norm_forward.
KERNEL(rms_norm_backward)(const float* __restrict__ x, const float* __restrict__ dy, const float* rstd,
                          const float* __restrict__ w, const float* __restrict__ extra, float* __restrict__ dx, int h) {
    DYNAMIC_SHARED(float, terms);
    __shared__ float shared_slope;
    size_t at = (size_t)blockIdx.x * h;
    float scale = rstd[blockIdx.x];
#pragma unroll 4
    for (int i = threadIdx.x; i < h; i += blockDim.x) terms[i] = rms_norm_weight_term(x[at + i], dy[at + i], scale);
    __syncthreads();
    if (threadIdx.x < 32) {
        int lane = threadIdx.x % 16;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < h; i += 16) sum = fmaf(terms[i], w[i], sum);
        float slope = rms_norm_slope(sum, h, lane, scale);
        if (threadIdx.x == 0) shared_slope = slope;
    }
    __syncthreads();
    float slope = shared_slope;
#pragma unroll 4
    for (int i = threadIdx.x; i < h; i += blockDim.x) {
        dx[at + i] = rms_norm_dx(x[at + i], dy[at + i], w[i], scale, slope, extra, at + i);
    }
}

// As rms_norm_backward, for many rows of few features.
// Grid ceil(n / 16), 256 threads.
KERNEL(rms_norm_backward_groups)(const float* __restrict__ x, const float* __restrict__ dy, const float* rstd,
                                 const float* __restrict__ w, const float* __restrict__ extra,
                                 float* __restrict__ dx, int n, int h) {
    int row = blockIdx.x * 16 + threadIdx.x / 16, lane = threadIdx.x % 16;
    bool inside = row < n;
    size_t at = (size_t)row * h;
    float scale = inside ? rstd[row] : 0.0f, sum = 0.0f;
    int count = inside ? h : 0;
#pragma unroll 8
    for (int i = lane; i < count; i += 16) {
        sum = fmaf(rms_norm_weight_term(x[at + i], dy[at + i], scale), w[i], sum);
    }
    float slope = rms_norm_slope(sum, h, lane, scale);
#pragma unroll 8
    for (int i = lane; i < count; i += 16) {
        dx[at + i] = rms_norm_dx(x[at + i], dy[at + i], w[i], scale, slope, extra, at + i);
    }
}

// partial [ceil(n / 64), h]: the weight's gradient of 64 rows each, summed in order.
// elementwise_bias_gradient then adds the pieces to the gradient in order.
// Grid ceil(ceil(n / 64) * h / 256), 256 threads.
KERNEL(rms_norm_weight_partial)(const float* x, const float* dy, const float* rstd, float* partial, int n, int h) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    int piece = (int)(at / h), column = (int)(at % h), first = piece * RMS_NORM_PIECE;
    int last = min(n, first + RMS_NORM_PIECE);
    if (first >= n) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int row = first; row < last; ++row) {
        size_t i = (size_t)row * h + column;
        sum = sum + rms_norm_weight_term(x[i], dy[i], rstd[row]);
    }
    partial[at] = sum;
}
