// Muon's passes around its products, each in one launch for all matrices of one shape (a model has hundreds of them).
//
// Matrix b, [rows, cols], lies in the arenas (weights, gradients, first moments) from float offsets[b] on, an unsigned
// number. The iterations work on x [batch, n, k] with n = min(rows, cols) and k = max(rows, cols), so tall matrices are
// transposed on the way in and out, through tiles of 32 x 32 in shared memory.

const int MUON_THREADS = 256, MUON_TILE = 32, MUON_WARPS = MUON_THREADS / 32, MUON_EACH = MUON_TILE / MUON_WARPS;

// The first element of this thread, and from one to its next, for what walks a matrix by all blocks in x and y.
struct MuonWalk {
    long long first, stride;
};

DEVICE MuonWalk muon_walk() {
    long long block = (long long)blockIdx.y * gridDim.x + blockIdx.x, blocks = (long long)gridDim.y * gridDim.x;
    return MuonWalk{block * blockDim.x + threadIdx.x, blocks * blockDim.x};
}

// a * x + b * y, rounded after b * y and at the end.
DEVICE float muon_blend(float a, float x, float b, float y) {
    return fmaf(a, x, b * y);
}

// The new first moment, and what Nesterov's look ahead makes of it.
DEVICE float muon_momentum_one(float grad_scale, float g, float momentum, float& m) {
    m = muon_blend(grad_scale, g, momentum, m);
    return muon_blend(grad_scale, g, momentum, m);
}

DEVICE void muon_momentum_flat(const float* __restrict__ g, float* __restrict__ m, float* __restrict__ x, long long n,
                               float grad_scale, float momentum) {
    MuonWalk walk = muon_walk();
    long long fours = aligned(g) && aligned(m) && aligned(x) ? n / 4 : 0;
    for (long long i = walk.first; i < fours; i += walk.stride) {
        Float4 g4 = ((const Float4*)g)[i], m4 = ((Float4*)m)[i], x4;
#pragma unroll
        for (int j = 0; j < 4; ++j) x4.v[j] = muon_momentum_one(grad_scale, g4.v[j], momentum, m4.v[j]);
        ((Float4*)m)[i] = m4;
        ((Float4*)x)[i] = x4;
    }
#pragma unroll 4
    for (long long i = 4 * fours + walk.first; i < n; i += walk.stride) {
        float moment = m[i];
        x[i] = muon_momentum_one(grad_scale, g[i], momentum, moment);
        m[i] = moment;
    }
}

// The block's tile of a matrix [rows, cols], from element (row, col) on. A thread has an element in every MUON_WARPS-th
// row of a column, and its neighbour has the next column.
struct MuonTile {
    int row, col, rows, cols;
};

DEVICE MuonTile muon_tile(int rows, int cols) {
    return MuonTile{(int)blockIdx.y * MUON_TILE, (int)blockIdx.x * MUON_TILE, rows, cols};
}

DEVICE MuonTile muon_transposed(const MuonTile& t) {
    return MuonTile{t.col, t.row, t.cols, t.rows};
}

// Row of this thread's element j in the tile, and the column of all of them.
DEVICE int muon_row(int j) {
    return threadIdx.x / 32 + MUON_WARPS * j;
}
DEVICE int muon_column() {
    return threadIdx.x % 32;
}

DEVICE bool muon_inside(const MuonTile& t, int j) {
    return t.row + muon_row(j) < t.rows && t.col + muon_column() < t.cols;
}

// Where element j lies in the matrix.
DEVICE size_t muon_at(const MuonTile& t, int j) {
    return (size_t)(t.row + muon_row(j)) * t.cols + t.col + muon_column();
}

DEVICE void muon_momentum_transposed(const float* g, float* m, float* x, int rows, int cols, float grad_scale,
                                     float momentum) {
    __shared__ float tile[MUON_TILE][MUON_TILE + 1]; // the one more spreads a column over all banks
    MuonTile from = muon_tile(rows, cols), to = muon_transposed(from);
    float grads[MUON_EACH], moments[MUON_EACH];
#pragma unroll
    for (int j = 0; j < MUON_EACH; ++j) {
        grads[j] = muon_inside(from, j) ? g[muon_at(from, j)] : 0.0f;
        moments[j] = muon_inside(from, j) ? m[muon_at(from, j)] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < MUON_EACH; ++j) {
        tile[muon_row(j)][muon_column()] = muon_momentum_one(grad_scale, grads[j], momentum, moments[j]);
        if (muon_inside(from, j)) m[muon_at(from, j)] = moments[j];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < MUON_EACH; ++j) {
        if (muon_inside(to, j)) x[muon_at(to, j)] = tile[muon_column()][muon_row(j)];
    }
}

// any [batch] = whether a matrix's gradient, of `size` elements, has one that is not zero. Most have it in front.
// Grid batch, exact, 256 threads.
KERNEL(muon_any)(const float* g, const int* offsets, int* any, int size) {
    g += (unsigned)offsets[blockIdx.x];
    int found = 0;
    for (long long at = 0; at < size && !found; at += 16 * MUON_THREADS) {
        bool mine = false;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            long long i = at + j * MUON_THREADS + threadIdx.x;
            mine = mine || (i < size && g[i] != 0.0f);
        }
        found = __syncthreads_or(mine);
    }
    if (threadIdx.x == 0) any[blockIdx.x] = found;
}

// m = grad_scale * g + momentum * m, then x = grad_scale * g + momentum * m with that m. g and m are arenas, offsets is
// [batch], x [batch, n, k]: transposed if rows > cols. Matrices of which any [batch] is 0 are left alone.
// Grid (ceil(cols / 32), ceil(rows / 32), batch), exact, 256 threads.
KERNEL_BOUNDED(muon_momentum, 256, 4)(const float* g, float* m, const int* offsets, const int* any, float* x, int rows,
                                      int cols, float grad_scale, float momentum) {
    if (!any[blockIdx.z]) return;
    size_t at = (unsigned)offsets[blockIdx.z], size = (size_t)rows * cols;
    x += blockIdx.z * size;
    if (rows > cols) {
        muon_momentum_transposed(g + at, m + at, x, rows, cols, grad_scale, momentum);
    } else {
        muon_momentum_flat(g + at, m + at, x, size, grad_scale, momentum);
    }
}

// sums [batch, ceil(size / 2^14)]: of the squares of x [batch, size], piece by piece, where size = n * k. A piece is
// sixteen dot products of 1024 elements, each with half a warp, added in order in f64.
// Grid (ceil(size / 2^14), batch), exact, 256 threads.
KERNEL(muon_norm_pieces)(const float* x, double* sums, int size) {
    __shared__ float dots[16];
    int chunk = threadIdx.x / 16, lane = threadIdx.x % 16;
    long long first = ((long long)blockIdx.x * 16 + chunk) * 1024;
    long long left = size - first;
    int count = left > 1024 ? 1024 : left > 0 ? (int)left : 0;
    float dot = 0.0f;
    x += (size_t)blockIdx.y * size + first;
#pragma unroll 16
    for (int i = lane; i < count; i += 16) dot = fmaf(x[i], x[i], dot);
    dot = lane_sum(dot);
    if (lane == 0) dots[chunk] = dot;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (int i = 0; i < 16; ++i) sum = sum + (double)dots[i]; // chunks behind the end are zero
        sums[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}

// norms [batch] = the sums of sums [batch, pieces], in order: squared norms.
// Grid batch, exact, 256 threads.
KERNEL(muon_norm_total)(const double* sums, double* norms, int pieces) {
    __shared__ double tile[MUON_THREADS];
    double sum = 0.0;
    sums += (size_t)blockIdx.x * pieces;
    for (int at = 0; at < pieces; at += MUON_THREADS) {
        int count = min(MUON_THREADS, pieces - at);
        if ((int)threadIdx.x < count) tile[threadIdx.x] = sums[at + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 8
            for (int i = 0; i < count; ++i) sum = sum + tile[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) norms[blockIdx.x] = sum;
}

DEVICE void muon_scale_into(const float* x, float a, float* y, long long n) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, stride = (long long)gridDim.x * blockDim.x;
    long long fours = aligned(x) && aligned(y) ? n / 4 : 0;
    for (long long i = first; i < fours; i += stride) {
        Float4 x4 = ((const Float4*)x)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) x4.v[j] = x4.v[j] * a;
        ((Float4*)y)[i] = x4;
    }
    for (long long i = 4 * fours + first; i < n; i += stride) y[i] = x[i] * a;
}

// Every matrix of x [batch, size] is divided by its norm; norms [batch] are squared.
// Grid (ceil(size / 1024), batch), or fewer in x: it strides; 256 threads.
KERNEL(muon_scale)(float* x, const double* norms, int size) {
    __shared__ float factor;
    if (threadIdx.x == 0) factor = 1.0f / ((float)sqrt(norms[blockIdx.y]) + 1e-7f);
    __syncthreads();
    x += (size_t)blockIdx.y * size;
    muon_scale_into(x, factor, x, size);
}

// b [count] = linear * a [count] + square * b: of A and A A [batch, n, n], what X is multiplied by;
// count = batch * n * n.
// Grid ceil(count / 1024) (or fewer: it strides), 256 threads.
KERNEL(muon_polynomial)(const float* a, float* b, float linear, float square, long long count) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, stride = (long long)gridDim.x * blockDim.x;
    long long fours = aligned(a) && aligned(b) ? count / 4 : 0;
    for (long long i = first; i < fours; i += stride) {
        Float4 a4 = ((const Float4*)a)[i], b4 = ((Float4*)b)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) b4.v[j] = muon_blend(linear, a4.v[j], square, b4.v[j]);
        ((Float4*)b)[i] = b4;
    }
    for (long long i = 4 * fours + first; i < count; i += stride) b[i] = muon_blend(linear, a[i], square, b[i]);
}

// y [count] = factor * x [count], to which the product B X is added; count = batch * n * k.
// Grid ceil(count / 1024) (or fewer: it strides), 256 threads.
KERNEL(muon_scaled_copy)(const float* x, float* y, float factor, long long count) {
    muon_scale_into(x, factor, y, count);
}

DEVICE void muon_apply_flat(const float* __restrict__ x, float* __restrict__ p, long long n, float minus_step,
                            float keep) {
    MuonWalk walk = muon_walk();
    long long fours = aligned(x) && aligned(p) ? n / 4 : 0;
    for (long long i = walk.first; i < fours; i += walk.stride) {
        Float4 x4 = ((const Float4*)x)[i], p4 = ((Float4*)p)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) p4.v[j] = muon_blend(minus_step, x4.v[j], keep, p4.v[j]);
        ((Float4*)p)[i] = p4;
    }
#pragma unroll 4
    for (long long i = 4 * fours + walk.first; i < n; i += walk.stride) p[i] = muon_blend(minus_step, x[i], keep, p[i]);
}

DEVICE void muon_apply_transposed(const float* x, float* p, int rows, int cols, float minus_step, float keep) {
    __shared__ float tile[MUON_TILE][MUON_TILE + 1];
    MuonTile to = muon_tile(rows, cols), from = muon_transposed(to);
    float weights[MUON_EACH];
#pragma unroll
    for (int j = 0; j < MUON_EACH; ++j) {
        tile[muon_row(j)][muon_column()] = muon_inside(from, j) ? x[muon_at(from, j)] : 0.0f;
        weights[j] = muon_inside(to, j) ? p[muon_at(to, j)] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < MUON_EACH; ++j) {
        float value = tile[muon_column()][muon_row(j)];
        if (muon_inside(to, j)) p[muon_at(to, j)] = muon_blend(minus_step, value, keep, weights[j]);
    }
}

// p = minus_step * x + keep * p. p is an arena, offsets [batch], x [batch, n, k]: transposed back if rows > cols.
// minus_step = -lr * size and keep = 1 - lr * decay come from the host. Matrices of which any [batch] is 0 are left alone.
// Grid (ceil(cols / 32), ceil(rows / 32), batch), exact, 256 threads.
KERNEL_BOUNDED(muon_apply, 256, 4)(float* p, const int* offsets, const int* any, const float* x, int rows, int cols,
                                   float minus_step, float keep) {
    if (!any[blockIdx.z]) return;
    size_t size = (size_t)rows * cols;
    p += (unsigned)offsets[blockIdx.z];
    x += blockIdx.z * size;
    if (rows > cols) {
        muon_apply_transposed(x, p, rows, cols, minus_step, keep);
    } else {
        muon_apply_flat(x, p, size, minus_step, keep);
    }
}
