// Routed experts (experts.rs), all but their products. Slots are sorted by a block per expert, which looks at every
// choice and keeps its own; rows are moved and summed by a warp per row and 512 columns.
//
// Letters: `n` tokens, `h` hidden, `i` inner size of an expert, `k` choices per token, `s` slots (n * k). Matrices
// begin at multiples of 16 bytes.

namespace experts_kernels {
constexpr int WARPS = 8;     // rows of a block
constexpr int COLUMNS = 512; // of a row that a warp handles

template <int W> struct __attribute__((aligned(4 * W))) Vec {
    float v[W];
};

// What a lane holds of its warp's columns: vectors of W floats (4 where rows are aligned, else 1). The warp reads
// 32 vectors that lie side by side at once.
template <int W> struct Piece {
    static constexpr int STEPS = COLUMNS / (32 * W);
    Vec<W> at[STEPS];
};

// The column of a lane's vector `step`.
template <int W> DEVICE int column(int step) {
    return blockIdx.y * COLUMNS + (step * 32 + threadIdx.x % 32) * W;
}

template <int W> DEVICE Piece<W> load(const float* row, int columns) {
    Piece<W> p;
#pragma unroll
    for (int q = 0; q < Piece<W>::STEPS; ++q) {
        int c = column<W>(q);
        p.at[q] = c < columns ? *(const Vec<W>*)(row + c) : Vec<W>{};
    }
    return p;
}

template <int W> DEVICE void store(float* row, int columns, const Piece<W>& p) {
#pragma unroll
    for (int q = 0; q < Piece<W>::STEPS; ++q) {
        int c = column<W>(q);
        if (c < columns) *(Vec<W>*)(row + c) = p.at[q];
    }
}

template <int W> DEVICE void add(Piece<W>& sum, const Piece<W>& p) {
#pragma unroll
    for (int q = 0; q < Piece<W>::STEPS; ++q)
#pragma unroll
        for (int j = 0; j < W; ++j) sum.at[q].v[j] = sum.at[q].v[j] + p.at[q].v[j];
}

template <int W>
DEVICE void gather_sum(const float* parts, const int* slot, const float* base, float* y, int t, int h, int k,
                       int accumulate) {
    slot += (size_t)t * k;
    y += (size_t)t * h;
    Piece<W> sum = load<W>(parts + (size_t)slot[0] * h, h);
    if (accumulate) add(sum, load<W>(y, h));
#pragma unroll 2
    for (int c = 1; c < k; ++c) add(sum, load<W>(parts + (size_t)slot[c] * h, h));
    if (base) add(sum, load<W>(base + (size_t)t * h, h));
    store(y, h, sum);
}

template <int W> DEVICE void hidden(const float* gate, float weight, float* out, int inner) {
    const float* up = gate + inner;
#pragma unroll
    for (int q = 0; q < Piece<W>::STEPS; ++q) {
        int c = column<W>(q);
        if (c >= inner) break;
        Vec<W> g = *(const Vec<W>*)(gate + c), u = *(const Vec<W>*)(up + c);
#pragma unroll
        for (int j = 0; j < W; ++j) g.v[j] = g.v[j] * exact_sigmoid(g.v[j]) * u.v[j] * weight;
        *(Vec<W>*)(out + c) = g;
    }
}

// The sum over a warp; every lane gets it.
DEVICE int warp_sum(int v) {
#pragma unroll
    for (int w = 16; w > 0; w >>= 1) v += __shfl_xor_sync(FULL_WARP, v, w);
    return v;
}
}  // namespace experts_kernels

// Sorts the choices by expert, those of one expert in the order of (token, choice).
// experts [s] -> starts [e + 1] (each expert's first slot), token [s] (slot -> token), slot [s] ((token, choice) ->
// slot). A block keeps one expert; its 32 warps divide the choices. They count first, how many belong to lower experts
// and how many here, and so know where their own slots begin.
// Launch: grid e, 1024 threads (s may be 0).
KERNEL_BOUNDED(experts_sort, 1024, 1)(const int* __restrict__ experts, int* __restrict__ starts,
                                      int* __restrict__ token, int* __restrict__ slot, int s, int k) {
    using namespace experts_kernels;
    constexpr int STEPS = 4; // loads that a lane has under way
    __shared__ int lower_counts[32], counts[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = blockIdx.x;
    int share = (s + 1023) / 1024 * 32;
    int begin = min(s, warp * share), end = min(s, begin + share);
    int lower = 0, here = 0;
#pragma unroll 4
    for (int i = begin + lane; i < end; i += 32) {
        int x = experts[i];
        lower += x < expert;
        here += x == expert;
    }
    lower = warp_sum(lower);
    here = warp_sum(here);
    if (lane == 0) {
        lower_counts[warp] = lower;
        counts[warp] = here;
    }
    __syncthreads();
    int start = warp_sum(lower_counts[lane]);
    int next = start + warp_sum(lane < warp ? counts[lane] : 0);
    if (threadIdx.x == 0) {
        starts[expert] = start;
        if (expert == (int)gridDim.x - 1) starts[gridDim.x] = s;
    }
    if (here == 0) return;
    for (int first = begin + lane; first - lane < end; first += 32 * STEPS) {
        bool mine[STEPS];
#pragma unroll
        for (int q = 0; q < STEPS; ++q) mine[q] = first + 32 * q < end && experts[first + 32 * q] == expert;
#pragma unroll
        for (int q = 0; q < STEPS; ++q) {
            int i = first + 32 * q;
            unsigned all = __ballot_sync(FULL_WARP, mine[q]);
            if (mine[q]) {
                int to = next + __popc(all & ((1u << lane) - 1));
                token[to] = i / k;
                slot[i] = to;
            }
            next += __popc(all);
        }
    }
}

// out[slot[c]] = values[c] for each (token, choice) c: values [s], slot [s] -> out [s].
// Launch: grid ceil(s / 256), 256 threads.
KERNEL(experts_by_slot)(const float* __restrict__ values, const int* __restrict__ slot, float* __restrict__ out,
                        int s) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c < s) out[slot[c]] = values[c];
}

// The way back, out[c] = values[slot[c]]: values [s], slot [s] -> out [s].
// Launch: grid ceil(s / 256), 256 threads.
KERNEL(experts_from_slot)(const float* __restrict__ values, const int* __restrict__ slot, float* __restrict__ out,
                          int s) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c < s) out[c] = values[slot[c]];
}

// The rows of the slots' tokens: x [n, h], token [s] -> out [s, h].
// Launch: grid (ceil(s / 8), ceil(h / 512)), 256 threads.
KERNEL_BOUNDED(experts_gather, 256, 4)(const float* __restrict__ x, const int* __restrict__ token,
                                       float* __restrict__ out, int s, int h) {
    using namespace experts_kernels;
    int row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= s) return;
    const float* from = x + (size_t)token[row] * h;
    float* to = out + (size_t)row * h;
    if (h % 4 == 0)
        store(to, h, load<4>(from, h));
    else
        store(to, h, load<1>(from, h));
}

// SwiGLU times the slot's weight: gate_up [s, 2i], weight [s] -> hidden [s, i].
// Launch: grid (ceil(s / 8), ceil(i / 512)), 256 threads.
KERNEL_BOUNDED(experts_hidden, 256, 4)(const float* __restrict__ gate_up, const float* __restrict__ weight,
                                       float* __restrict__ out, int s, int inner) {
    using namespace experts_kernels;
    int row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= s) return;
    const float* gate = gate_up + (size_t)row * 2 * inner;
    float* to = out + (size_t)row * inner;
    if (inner % 4 == 0)
        hidden<4>(gate, weight[row], to, inner);
    else
        hidden<1>(gate, weight[row], to, inner);
}

// Each token's sum over its choices in order: y = (accumulate ? y + part : part) + part + … + base.
// parts [s, h], slot [n, k], base [n, h] (may be null) -> y [n, h]. k >= 1.
// Launch: grid (ceil(n / 8), ceil(h / 512)), 256 threads.
KERNEL_BOUNDED(experts_gather_sum, 256, 3)(const float* __restrict__ parts, const int* __restrict__ slot,
                                           const float* __restrict__ base, float* __restrict__ y, int n, int h, int k,
                                           int accumulate) {
    using namespace experts_kernels;
    int t = blockIdx.x * WARPS + threadIdx.x / 32;
    if (t >= n) return;
    if (h % 4 == 0)
        gather_sum<4>(parts, slot, base, y, t, h, k, accumulate);
    else
        gather_sum<1>(parts, slot, base, y, t, h, k, accumulate);
}

// Back through SwiGLU, in place: gate_up [s, 2i] becomes its gradient; d [s, i], the gradient of weight * hidden,
// becomes weight * hidden; dw [s] gets the gradient of weight [s]. Half a warp per slot: the sixteen lanes of dw's sum.
// Launch: grid ceil(s / 16), 256 threads.
KERNEL_BOUNDED(experts_through_swiglu, 256, 4)(float* __restrict__ gate_up, float* __restrict__ d,
                                               float* __restrict__ dw, const float* __restrict__ weight, int s,
                                               int inner) {
    constexpr int STEPS = 4; // vectors that are loaded before the first is written
    int lane = threadIdx.x % 16, row = blockIdx.x * 16 + threadIdx.x / 16;
    bool live = row < s;
    float w = live ? weight[row] : 0.0f;
    float* gate = gate_up + (size_t)row * 2 * inner;
    float* up = gate + inner;
    d += (size_t)row * inner;
    float sum = 0.0f;
    for (int first = 0; first < inner; first += 16 * STEPS) {
        float g[STEPS], u[STEPS], dy[STEPS];
#pragma unroll
        for (int q = 0; q < STEPS; ++q) {
            int i = first + 16 * q + lane;
            bool inside = live && i < inner;
            g[q] = inside ? gate[i] : 0.0f;
            u[q] = inside ? up[i] : 0.0f;
            dy[q] = inside ? d[i] : 0.0f;
        }
#pragma unroll
        for (int q = 0; q < STEPS; ++q) {
            int i = first + 16 * q + lane;
            if (first + 16 * q >= inner) break; // a vector with any lane inside takes part in the sum as a whole
            float s1 = exact_sigmoid(g[q]);
            float silu = g[q] * s1;
            float slope = fmaf(silu, 1.0f - s1, s1);
            float hidden = silu * u[q];
            sum = fmaf(dy[q], hidden, sum);
            if (!live || i >= inner) continue;
            gate[i] = dy[q] * u[q] * slope * w;
            up[i] = dy[q] * silu * w;
            d[i] = hidden * w;
        }
    }
    sum = lane_sum(sum);
    if (live && lane == 0) dw[row] = sum;
}
