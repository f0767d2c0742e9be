// The router of experts (router.rs). A warp decides for one token: lane l looks after experts l, l + 32, …, and the
// sums whose order the processor fixes run through its values one by one. Tokens are independent, so each op is one
// launch, but for the balance loss, which needs every sequence's counts first and adds up the tokens in their order.

namespace router_kernels {
constexpr int MAX_EXPERTS = 512; // as in router.rs; 16 per lane
constexpr int WARPS = 8;         // tokens of a block
constexpr int TILE_WARPS = 4;    // of router_balance, each with a tile of 32 tokens
constexpr int COUNT_STEPS = 8;   // loads that a thread has under way as it counts
constexpr int LOSS_TILE = 1024;

// The place of the greatest of values[0..size), as `best` in router.rs finds it: the first of equals, 0 where nothing
// is above -inf. NaN is above nothing, but nothing is above a NaN in front either. Lane l reads only l, l + 32, …
DEVICE int best(const float* values, int size, int lane) {
    float top = -INFINITY_F;
    int at = 0;
    for (int i = lane; i < size; i += 32) {
        float v = values[i];
        if (i == 0 && v != v) v = INFINITY_F;
        if (v > top) {
            top = v;
            at = i;
        }
    }
#pragma unroll
    for (int w = 16; w > 0; w >>= 1) {
        float other = __shfl_xor_sync(FULL_WARP, top, w);
        int from = __shfl_xor_sync(FULL_WARP, at, w);
        if (other > top || (other == top && from < at)) {
            top = other;
            at = from;
        }
    }
    return at;
}

// Takes the best of values[0..size) `count` times, leaving -inf in its place. Returns what this lane lost: bit j
// stands for value 32 j + lane.
DEVICE unsigned take_best(float* values, int size, int count, int lane) {
    unsigned taken = 0;
    for (int c = 0; c < count; ++c) {
        int at = best(values, size, lane);
        if (lane == at % 32) {
            taken |= 1u << (at / 32);
            values[at] = -INFINITY_F;
        }
    }
    return taken;
}

// The sum of a group's two best values, or the best `alone`.
DEVICE float group_strength(const float* values, int size, bool alone) {
    float first = -INFINITY_F, second = -INFINITY_F;
    for (int i = 0; i < size; ++i) {
        float v = values[i];
        if (v > first) {
            second = first;
            first = v;
        } else if (v > second) {
            second = v;
        }
    }
    return alone ? first : first + second;
}

// Sets the experts outside the `top_groups` strongest groups to -inf.
DEVICE void close_groups(float* biased, float* strength, int e, int groups, int top_groups, bool softmax, int lane) {
    int size = e / groups;
    for (int g = lane; g < groups; g += 32)
        strength[g] = group_strength(biased + g * size, size, softmax || size == 1);
    unsigned kept = take_best(strength, groups, top_groups, lane);
    for (int g = lane; g < groups; g += 32) {
        if (kept >> (g / 32) & 1) continue;
        for (int i = 0; i < size; ++i) biased[g * size + i] = -INFINITY_F;
    }
    __syncwarp();
}

// The sum of value(i) over i in [0, n), in order: every lane computes one of 32 neighbours and gets the whole.
template <class Value> DEVICE float sum_in_order(int n, int lane, Value value) {
    float sum = -0.0f;
    for (int first = 0; first < n; first += 32) {
        float mine = first + lane < n ? value(first + lane) : 0.0f;
        for (int j = 0; j < min(32, n - first); ++j) sum += __shfl_sync(FULL_WARP, mine, j);
    }
    return sum;
}

// A row's affinities by softmax: exp(x - max) / sum, summed in order. `s` gets them.
DEVICE void softmax_row(const float* x, float* s, int e, int lane) {
    float top = -INFINITY_F;
    for (int i = lane; i < e; i += 32) top = x[i] > top ? x[i] : top;
#pragma unroll
    for (int w = 16; w > 0; w >>= 1) {
        float other = __shfl_xor_sync(FULL_WARP, top, w);
        top = other > top ? other : top;
    }
    for (int i = lane; i < e; i += 32) s[i] = exact_exp(x[i] - top);
    float sum = sum_in_order(e, lane, [&](int i) { return s[i]; });
    for (int i = lane; i < e; i += 32) s[i] = s[i] / sum;
}

// Atomic, but of integers: the order does not show.
DEVICE void count_one(int* count) {
    atomicAdd(count, 1);
}

// counts[x] of the block's shared memory becomes the number of times that expert x stands in experts[0..items).
DEVICE void count_experts(const int* __restrict__ experts, int items, int* counts, int e) {
    for (int x = threadIdx.x; x < e; x += blockDim.x) counts[x] = 0;
    __syncthreads();
    for (int first = threadIdx.x; first < items; first += COUNT_STEPS * blockDim.x) {
        int x[COUNT_STEPS];
#pragma unroll
        for (int q = 0; q < COUNT_STEPS; ++q) {
            int i = first + q * blockDim.x;
            x[q] = i < items ? experts[i] : -1;
        }
#pragma unroll
        for (int q = 0; q < COUNT_STEPS; ++q)
            if (x[q] >= 0) count_one(&counts[x[q]]);
    }
    __syncthreads();
}
}  // namespace router_kernels

// Chooses each token's experts and weighs them.
// logits [n, e], bias [e] (may be null) -> scores [n, e] (by sigmoid or softmax), experts [n, k] (ascending), weights [n, k].
// Launch: grid ceil(n / 8), 256 threads. e <= 512, k <= e; groups <= 1 means no groups.
KERNEL_BOUNDED(router_forward, 256, 4)(const float* __restrict__ logits, const float* __restrict__ bias, float* scores,
                                       int* __restrict__ experts, float* __restrict__ weights, int n, int e, int k,
                                       int groups, int top_groups, int normalize, float scaling, int softmax) {
    using namespace router_kernels;
    __shared__ float biased_rows[WARPS][MAX_EXPERTS], strength_rows[WARPS][MAX_EXPERTS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = blockIdx.x * WARPS + warp;
    if (t >= n) return;
    float* biased = biased_rows[warp];
    float* s = scores + (size_t)t * e;
    const float* x = logits + (size_t)t * e;
    if (softmax) softmax_row(x, s, e, lane);
    for (int i = lane; i < e; i += 32) {
        float v = softmax ? s[i] : exact_sigmoid(x[i]);
        s[i] = v;
        biased[i] = v + (bias ? bias[i] : 0.0f);
    }
    __syncwarp();
    if (groups > 1 && top_groups < groups)
        close_groups(biased, strength_rows[warp], e, groups, top_groups, softmax, lane);
    unsigned chosen = take_best(biased, e, k, lane);

    // Ascending order, and the scores in that order. Only NaNs can leave fewer than k experts: then 0 is repeated, and
    // stands in front.
    int found = 0;
    for (int j = 0; 32 * j < e; ++j) found += __popc(__ballot_sync(FULL_WARP, chosen >> j & 1));
    int at = k - found;
    float* w = biased;
    __syncwarp();
    for (int c = lane; c < at; c += 32) {
        experts[(size_t)t * k + c] = 0;
        w[c] = s[0];
    }
    for (int j = 0; 32 * j < e; ++j) {
        bool mine = chosen >> j & 1;
        unsigned all = __ballot_sync(FULL_WARP, mine);
        if (mine) {
            int c = at + __popc(all & ((1u << lane) - 1));
            experts[(size_t)t * k + c] = 32 * j + lane;
            w[c] = s[32 * j + lane];
        }
        at += __popc(all);
    }
    __syncwarp();
    float total = 1.0f;
    if (normalize) {
        total = -0.0f;
        for (int c = 0; c < k; ++c) total += w[c];
        total += 1e-20f;
    }
    for (int c = lane; c < k; c += 32) weights[(size_t)t * k + c] = w[c] / total * scaling;
}

// The gradient of the logits, overwritten.
// scores [n, e], experts [n, k], dw [n, k] (the weights' gradient; may be null), gradients [n, e] (of the balance loss;
// may be null) -> dlogits [n, e].
// Launch: grid ceil(n / 8), 256 threads.
KERNEL_BOUNDED(router_backward, 256, 4)(const float* __restrict__ scores, const int* __restrict__ experts,
                                        const float* __restrict__ dw, const float* __restrict__ gradients,
                                        float* __restrict__ dlogits, int n, int e, int k, int normalize,
                                        float scaling, int softmax) {
    using namespace router_kernels;
    __shared__ float rows[WARPS][MAX_EXPERTS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = blockIdx.x * WARPS + warp;
    if (t >= n) return;
    float* d = rows[warp];
    const float* s = scores + (size_t)t * e;
    const int* x = experts + (size_t)t * k;
    for (int i = lane; i < e; i += 32) d[i] = 0.0f;
    __syncwarp();
    if (dw) {
        const float* g = dw + (size_t)t * k;
        float total = -0.0f, inner = -0.0f;
        for (int first = 0; normalize && first < k; first += 32) {
            int c = first + lane;
            float score = c < k ? s[x[c]] : 0.0f, product = c < k ? g[c] * score : 0.0f;
            for (int j = 0; j < min(32, k - first); ++j) {
                total += __shfl_sync(FULL_WARP, score, j);
                inner += __shfl_sync(FULL_WARP, product, j);
            }
        }
        total += 1e-20f;
        inner /= total;
        // A token's experts differ, so each place gets one term; 0 + it, since the processor adds to a zero.
        for (int c = lane; c < k; c += 32)
            d[x[c]] = 0.0f + (normalize ? scaling * (g[c] - inner) / total : g[c] * scaling);
        __syncwarp();
    }
    if (gradients)
        for (int i = lane; i < e; i += 32) d[i] = d[i] + gradients[(size_t)t * e + i];
    float* to = dlogits + (size_t)t * e;
    if (softmax) {
        float mean = sum_in_order(e, lane, [&](int i) { return d[i] * s[i]; });
        for (int i = lane; i < e; i += 32) to[i] = s[i] * (d[i] - mean);
    } else {
        for (int i = lane; i < e; i += 32) to[i] = d[i] * (s[i] * (1.0f - s[i]));
    }
}

// Tokens per expert: experts [items] -> load [e], items = n * k.
// Launch: grid 1, 1024 threads.
KERNEL_BOUNDED(router_load, 1024, 1)(const int* __restrict__ experts, int* __restrict__ load, int items, int e) {
    using namespace router_kernels;
    __shared__ int counts[MAX_EXPERTS];
    count_experts(experts, items, counts, e);
    for (int x = threadIdx.x; x < e; x += blockDim.x) load[x] = counts[x];
}

// First step of the balance loss: how often each sequence chose each expert, relative to an even choice.
// experts [n, k], sequences [count, 2] (first token, length) -> frequency [count, e]; nothing is written for a
// sequence of length 0.
// Launch: grid count, 1024 threads.
KERNEL_BOUNDED(router_frequency, 1024, 1)(const int* __restrict__ experts, const int* __restrict__ sequences,
                                          float* __restrict__ frequency, int e, int k) {
    using namespace router_kernels;
    __shared__ int counts[MAX_EXPERTS];
    int first = sequences[2 * blockIdx.x], len = sequences[2 * blockIdx.x + 1];
    if (len == 0) return;
    count_experts(experts + (size_t)first * k, len * k, counts, e);
    float even = (float)e / (float)(k * len);
    for (int x = threadIdx.x; x < e; x += blockDim.x) frequency[(size_t)blockIdx.x * e + x] = (float)counts[x] * even;
}

// Second step: the balance loss's gradient by each score, and each token's term of the loss.
// scores [n, e], sequences [count, 2], frequency [count, e] -> gradients [n, e], terms [n]. The sequences cover the n
// tokens in order.
// A warp walks a tile of 32 tokens in pieces of 32 columns. It loads them row by row, for the sake of coalescing, and
// sums with one lane per token, in the processor's order; 33 columns keep the lanes in different banks.
// Launch: grid (count, y), 128 threads, y = ceil(longest sequence / 128) for one tile per warp (any y is correct).
KERNEL_BOUNDED(router_balance, 128, 4)(const float* __restrict__ scores, const int* __restrict__ sequences,
                                       const float* __restrict__ frequency, float* __restrict__ gradients,
                                       float* __restrict__ terms, int n, int e, float alpha) {
    using namespace router_kernels;
    __shared__ float tiles[TILE_WARPS][32][33], pieces[TILE_WARPS][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float(*tile)[33] = tiles[warp];
    float* piece = pieces[warp];
    int first = sequences[2 * blockIdx.x], len = sequences[2 * blockIdx.x + 1];
    const float* f = frequency + (size_t)blockIdx.x * e;
    float share = alpha / (float)n;
    for (int r0 = (blockIdx.y * TILE_WARPS + warp) * 32; r0 < len; r0 += gridDim.y * TILE_WARPS * 32) {
        int rows = min(32, len - r0);
        size_t at = (size_t)(first + r0) * e;
        float total = -0.0f, weighted = -0.0f;
        for (int c = 0; c < e; c += 32) {
            int columns = min(32, e - c);
            if (lane < columns) {
                piece[lane] = f[c + lane];
#pragma unroll 8
                for (int r = 0; r < rows; ++r) tile[r][lane] = scores[at + (size_t)r * e + c + lane];
            }
            __syncwarp();
            if (lane < rows) {
#pragma unroll 8
                for (int i = 0; i < columns; ++i) {
                    total += tile[lane][i];
                    weighted += tile[lane][i] * piece[i];
                }
            }
            __syncwarp();
        }
        weighted /= total;
        if (lane < rows) terms[first + r0 + lane] = share * weighted;
        for (int r = 0; r < rows; ++r) {
            float row_total = __shfl_sync(FULL_WARP, total, r), row_weighted = __shfl_sync(FULL_WARP, weighted, r);
            for (int i = lane; i < e; i += 32)
                gradients[at + (size_t)r * e + i] = share * (f[i] - row_weighted) / row_total;
        }
    }
}

// Third step: loss [1] = the sum of terms [n] in order. One chain of n additions: warp 0 adds one tile while the
// others fetch the next.
// Launch: grid 1, 256 threads.
KERNEL_BOUNDED(router_loss, 256, 1)(const float* __restrict__ terms, float* __restrict__ loss, int n) {
    using namespace router_kernels;
    __shared__ Float4 tiles[2][LOSS_TILE / 4];
    float sum = 0.0f;
    for (int tile = -1; tile * LOSS_TILE < n; ++tile) {
        if (threadIdx.x < 32) {
            int count = tile < 0 ? 0 : min(LOSS_TILE, n - tile * LOSS_TILE);
            const Float4* v = tiles[tile & 1];
#pragma unroll 16
            for (int i = 0; i < count / 4; ++i) {
                Float4 four = v[i];
                for (int j = 0; j < 4; ++j) sum += four.v[j];
            }
            for (int j = 0; j < count % 4; ++j) sum += v[count / 4].v[j];
        } else {
            int from = (tile + 1) * LOSS_TILE;
            float* v = (float*)tiles[(tile + 1) & 1];
            for (int i = threadIdx.x - 32; i < min(LOSS_TILE, n - from); i += 224) v[i] = terms[from + i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) loss[0] = sum;
}
