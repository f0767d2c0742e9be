// Passes over parameter arenas: AdamW, squared norms, the router's bias.
// Flat kernels take four elements a thread where the addresses allow.

struct OptimizerAdamw {
    float beta1, beta2, rest1, rest2, keep, step, grad_scale, eps, root;
};

DEVICE void optimizer_adamw_one(const OptimizerAdamw& c, float& p, float g, float& m, float& v) {
    float grad = g * c.grad_scale;
    m = fmaf(c.rest1, grad, c.beta1 * m);
    v = fmaf(c.rest2, grad * grad, c.beta2 * v);
    float d = sqrtf(v * c.root) + c.eps;
    p = fmaf(c.step, m / d, p * c.keep);
}

// One AdamW step on p, m, v [n] with the gradient g [n]. rest1 = 1 - beta1, rest2 = 1 - beta2,
// keep = 1 - lr * weight_decay, step = -lr / correction1, root = 1 / correction2, each rounded by the host.
// Grid ceil(n / 1024) (or fewer: it strides), 256 threads.
KERNEL(optimizer_adamw)(float* p, const float* g, float* m, float* v, long long n, float beta1, float beta2,
                        float rest1, float rest2, float keep, float step, float grad_scale, float eps, float root) {
    OptimizerAdamw c = {beta1, beta2, rest1, rest2, keep, step, grad_scale, eps, root};
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, stride = (long long)gridDim.x * blockDim.x;
    long long fours = aligned(p) && aligned(g) && aligned(m) && aligned(v) ? n / 4 : 0;
    for (long long i = first; i < fours; i += stride) {
        Float4 p4 = ((Float4*)p)[i], g4 = ((const Float4*)g)[i], m4 = ((Float4*)m)[i], v4 = ((Float4*)v)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) optimizer_adamw_one(c, p4.v[j], g4.v[j], m4.v[j], v4.v[j]);
        ((Float4*)p)[i] = p4;
        ((Float4*)m)[i] = m4;
        ((Float4*)v)[i] = v4;
    }
    for (long long i = 4 * fours + first; i < n; i += stride) optimizer_adamw_one(c, p[i], g[i], m[i], v[i]);
}

// sums [ceil(n / 2^14)]: of the squares of x [n], piece by piece. A piece is sixteen dot products of 1024 elements,
// each with half a warp, added in order in f64.
// Grid ceil(n / 2^14), 256 threads.
KERNEL(optimizer_squared_norm_pieces)(const float* x, double* sums, long long n) {
    __shared__ float dots[16];
    int chunk = threadIdx.x / 16, lane = threadIdx.x % 16;
    long long first = ((long long)blockIdx.x * 16 + chunk) * 1024;
    long long left = n - first;
    int count = left > 1024 ? 1024 : left > 0 ? (int)left : 0;
    float dot = 0.0f;
    x += first;
#pragma unroll 16
    for (int i = lane; i < count; i += 16) dot = fmaf(x[i], x[i], dot);
    dot = lane_sum(dot);
    if (lane == 0) dots[chunk] = dot;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (int i = 0; i < 16; ++i) sum = sum + (double)dots[i]; // chunks behind the end are zero
        sums[blockIdx.x] = sum;
    }
}

// total [1] = the sum of sums [pieces] in order.
// Grid 1, 256 threads.
KERNEL(optimizer_squared_norm_total)(const double* sums, double* total, int pieces) {
    const int EACH = 4, TILE = 256 * EACH;
    __shared__ double tile[TILE];
    double next[EACH], sum = 0.0;
    auto fetch = [&](int at) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int i = at + threadIdx.x + 256 * k;
            next[k] = i < pieces ? sums[i] : 0.0;
        }
    };
    fetch(0);
    for (int at = 0; at < pieces; at += TILE) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < EACH; ++k) tile[threadIdx.x + 256 * k] = next[k];
        __syncthreads();
        fetch(at + TILE);
        int count = threadIdx.x == 0 ? min(TILE, pieces - at) : 0;
#pragma unroll 8
        for (int i = 0; i < count; ++i) sum = sum + tile[i];
    }
    if (threadIdx.x == 0) *total = sum;
}

// bias [experts] += rate, up for experts with less than the mean load [experts], down for those with more.
// Grid ceil(experts / 128), 128 threads.
KERNEL(optimizer_router_bias)(float* bias, const int* load, int experts, float rate) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= experts) return;
    unsigned total = 0;
    for (int i = 0; i < experts; ++i) total += (unsigned)load[i];
    float error = (float)total / (float)experts - (float)(unsigned)load[e];
    bias[e] = bias[e] + (error == 0.0f ? 0.0f : rate * (error > 0.0f ? 1.0f : -1.0f));
}
