// Element by element, row by row: additions, copies and gathers, and the gradient of a bias.
//
// Flat kernels take four elements a thread where the addresses allow; kernels on rows give a row a block, or several.

// out [n] = a [n] + b [n]; out may be a or b.
// Grid ceil(n / 1024) (or fewer: it strides), 256 threads.
KERNEL(elementwise_add)(const float* a, const float* b, float* out, long long n) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, stride = (long long)gridDim.x * blockDim.x;
    long long fours = aligned(a) && aligned(b) && aligned(out) ? n / 4 : 0;
    for (long long i = first; i < fours; i += stride) {
        Float4 x = ((const Float4*)a)[i], y = ((const Float4*)b)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) x.v[j] = x.v[j] + y.v[j];
        ((Float4*)out)[i] = x;
    }
    for (long long i = 4 * fours + first; i < n; i += stride) out[i] = a[i] + b[i];
}

// y [n] = s * x [n]; y may be x.
// Grid ceil(n / 1024) (or fewer: it strides), 256 threads.
KERNEL(elementwise_scale)(const float* x, float* y, float s, long long n) {
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, stride = (long long)gridDim.x * blockDim.x;
    long long fours = aligned(x) && aligned(y) ? n / 4 : 0;
    for (long long i = first; i < fours; i += stride) {
        Float4 v = ((const Float4*)x)[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) v.v[j] = v.v[j] * s;
        ((Float4*)y)[i] = v;
    }
    for (long long i = 4 * fours + first; i < n; i += stride) y[i] = x[i] * s;
}

// y [rows, n] += bias [n].
// Grid (rows, ceil(n / (4 * threads))), threads 32 to 256.
KERNEL(elementwise_add_bias)(float* y, const float* __restrict__ bias, int n) {
    float* row = y + (size_t)blockIdx.x * n;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
#pragma unroll 4
    for (int i = first; i < n; i += stride) row[i] = row[i] + bias[i];
}

const int COLUMN_SUM_TILE = 128, COLUMN_SUM_EACH = COLUMN_SUM_TILE / 8;

// db [n] += every row of dy [rows, n], in order. RMSNorm's pieces are added to its weight's gradient by this, too.
// Grid ceil(n / 32), 256 threads.
//
// A block has 32 columns. One warp adds a tile of rows while all of them fetch the next one.
KERNEL_BOUNDED(elementwise_bias_gradient, 256, 4)(const float* dy, float* db, int rows, int n) {
    __shared__ float tile[COLUMN_SUM_TILE][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 32 + lane;
    bool inside = column < n, adds = warp == 0 && inside;
    float next[COLUMN_SUM_EACH];
    auto fetch = [&](int row) {
#pragma unroll
        for (int k = 0; k < COLUMN_SUM_EACH; ++k) {
            int r = row + warp + 8 * k;
            next[k] = r < rows && inside ? dy[(size_t)r * n + column] : 0.0f;
        }
    };
    float sum = adds ? db[column] : 0.0f;
    fetch(0);
    for (int row = 0; row < rows; row += COLUMN_SUM_TILE) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < COLUMN_SUM_EACH; ++k) tile[warp + 8 * k][lane] = next[k];
        __syncthreads();
        fetch(row + COLUMN_SUM_TILE);
        int count = adds ? min(COLUMN_SUM_TILE, rows - row) : 0;
#pragma unroll 16
        for (int r = 0; r < count; ++r) sum = sum + tile[r][lane];
    }
    if (adds) db[column] = sum;
}

// to [rows, to_stride], columns to_offset.. = from [rows, from_stride], columns from_offset..; `width` of them.
// Grid (rows, ceil(width / (4 * threads))), threads 32 to 256.
KERNEL(elementwise_copy_columns)(const float* from, int from_stride, int from_offset, float* to, int to_stride,
                                 int to_offset, int width) {
    size_t row = blockIdx.x;
    copy_row(from + row * from_stride + from_offset, to + row * to_stride + to_offset, width);
}

// out [n, width], row i = x [., width], row rows[i].
// Grid (n, ceil(width / (4 * threads))), threads 32 to 256.
KERNEL(elementwise_gather_rows)(const float* x, const int* rows, float* out, int width) {
    copy_row(x + (size_t)rows[blockIdx.x] * width, out + (size_t)blockIdx.x * width, width);
}

// out [., width], row slots[i] = x [n, width], row i.
// Grid (n, ceil(width / (4 * threads))), threads 32 to 256.
KERNEL(elementwise_scatter_rows)(const float* x, const int* slots, float* out, int width) {
    copy_row(x + (size_t)blockIdx.x * width, out + (size_t)slots[blockIdx.x] * width, width);
}
