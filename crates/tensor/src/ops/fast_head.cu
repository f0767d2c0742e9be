// The head in the fast mode: what cross_entropy.cu and sampling.cu do with rows of logits, in sums whose order is free and
// the same for a row of logits wherever it comes from: a token's log-probability does not depend on which kernel says it.
//
// A row has a block of 512 threads. A thread has the four values from 4 * threadIdx.x on, and those 2048 further.
namespace fast_head_kernels {

using namespace tensor_cores;

const int THREADS = 512, WARPS = THREADS / 32;

// Four values from i on, -inf behind the end.
DEVICE Float4 load(const float* row, int i, int n, bool in_fours) {
    if (in_fours) return *(const Float4*)(row + i);
    Float4 x;
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] = i + k < n ? row[i + k] : -INFINITY_F;
    return x;
}

// Sums over values x, in powers of 2: of 2^(x - top), and of these times x - top.
struct Sums {
    float top, weight, moment;
};
DEVICE Sums raised(const Sums& s, float top) {
    // Nothing to raise where nothing was summed.
    const float by = s.top == -INFINITY_F ? 0.0f : s.top - top, factor = s.top == -INFINITY_F ? 0.0f : exp2_of(by);
    return {top, s.weight * factor, fmaf(s.weight, by, s.moment) * factor};
}
DEVICE Sums joined(const Sums& a, const Sums& b) {
    const float top = fmaxf(a.top, b.top);
    if (top == -INFINITY_F) return a;
    const Sums x = raised(a, top), y = raised(b, top);
    return {top, x.weight + y.weight, x.moment + y.moment};
}

struct Softmax {
    float top, lse, entropy; // natural logarithms
};

// Of a row's values times scale; every thread gets it.
DEVICE Softmax softmax(const float* row, int n, float scale) {
    const bool in_fours = n % 4 == 0 && aligned(row);
    const float to_2 = scale * LOG2_E;
    Sums s = {-INFINITY_F, 0.0f, 0.0f};
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < n; i += THREADS * 4) {
        const Float4 x = load(row, i, n, in_fours);
        const float top = fmaxf(fmaxf(x.v[0], x.v[1]), fmaxf(x.v[2], x.v[3])) * to_2;
        if (top > s.top) s = raised(s, top);
        if (s.top == -INFINITY_F) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float by = fmaf(x.v[k], to_2, -s.top), w = exp2_of(by);
            s.weight = s.weight + w;
            if (w > 0.0f) s.moment = fmaf(w, by, s.moment);
        }
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        const Sums other = {__shfl_xor_sync(FULL_WARP, s.top, d), __shfl_xor_sync(FULL_WARP, s.weight, d),
                            __shfl_xor_sync(FULL_WARP, s.moment, d)};
        s = threadIdx.x & d ? joined(other, s) : joined(s, other);
    }
    __shared__ Sums warps[WARPS];
    __syncthreads(); // another row's sums have been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
    __syncthreads();
    s = warps[0];
    for (int w = 1; w < WARPS; ++w) s = joined(s, warps[w]);
    const float top = s.top * LN_2, lse = top + exact_ln(s.weight);
    return {top, lse, lse - (s.moment / s.weight * LN_2 + top)};
}

// The token's log-probability, the same expression for all kernels.
DEVICE float logprob(float logit, float scale, float lse) { return logit * scale - lse; }

// The least of all threads' values.
DEVICE int least(int v) {
    __shared__ int warps[WARPS];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v = min(v, __shfl_xor_sync(FULL_WARP, v, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) v = min(v, warps[w]);
    return v;
}

// The first token with the greatest logit.
DEVICE int argmax(const float* row, int n) {
    float top = -INFINITY_F;
    int token = n;
    for (int i = threadIdx.x; i < n; i += THREADS)
        if (row[i] > top) top = row[i], token = i;
    __shared__ float tops[WARPS];
    float all = top;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) all = fmaxf(all, __shfl_xor_sync(FULL_WARP, all, d));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = all;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) all = fmaxf(all, tops[w]);
    return least(top == all ? token : n);
}

// The first token at which the sum of weights exceeds uniform times their total. Each warp sums up a part of the row; the
// one in whose part that happens then walks it 32 tokens at a time.
DEVICE int draw(const float* row, int n, float scale, float top, float uniform) {
    const int part = (n + WARPS - 1) / WARPS, first = (int)threadIdx.x / 32 * part, end = min(n, first + part);
    const int lane = threadIdx.x % 32;
    auto weight = [&](int i) { return i < end ? exp2_of((row[i] * scale - top) * LOG2_E) : 0.0f; };
    double sum = 0.0;
#pragma unroll 8
    for (int i = first + lane; i < end; i += 32) sum = sum + (double)weight(i);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum = sum + __shfl_down_sync(FULL_WARP, sum, d);
    __shared__ double parts[WARPS];
    if (lane == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    double total = 0.0, before = 0.0;
    for (int w = 0; w < WARPS; ++w) total = total + parts[w];
    const double target = (double)uniform * total;
    int chosen = 0;
    for (int w = 0; w < WARPS && parts[w] > 0.0; ++w) {
        // In doubt the last part that has weight.
        chosen = w;
        if (before + parts[w] > target) break;
        if (w + 1 < WARPS && parts[w + 1] > 0.0) before = before + parts[w];
    }
    int token = n;
    if ((int)threadIdx.x / 32 == chosen) {
        int last = n; // the last token with any weight, should rounding leave the target beyond it
        for (int from = first; from < end && token == n; from += 32) {
            const double mine = weight(from + lane);
            double up_to = mine;
#pragma unroll
            for (int d = 1; d < 32; d <<= 1) {
                const double left = __shfl_up_sync(FULL_WARP, up_to, d);
                if (lane >= d) up_to = up_to + left;
            }
            const unsigned beyond = __ballot_sync(FULL_WARP, mine > 0.0 && before + up_to > target);
            const unsigned any = __ballot_sync(FULL_WARP, mine > 0.0);
            if (any) last = from + 31 - __clz((int)any);
            if (beyond) token = from + __ffs((int)beyond) - 1;
            before = before + __shfl_sync(FULL_WARP, up_to, 31);
        }
        token = token == n ? last : token;
    }
    return least(token);
}

}  // namespace fast_head_kernels

// From logits [rows, vocab] and targets [rows]: logprobs and entropies [rows] of the logits times scale. Unless weights
// [rows] is null, gradients [rows, vocab] become those of the sum of weights * -logprobs, rounded.
// Grid rows, 512 threads.
KERNEL_BOUNDED(fast_head_rows, 512, 2)(const float* logits, const int* targets, const float* weights, float* logprobs,
                                       float* entropies, Bf16* gradients, int vocab, float scale) {
    using namespace fast_head_kernels;
    const float* row = logits + (size_t)blockIdx.x * vocab;
    const int target = targets[blockIdx.x];
    const Softmax z = softmax(row, vocab, scale);
    if (threadIdx.x == 0) {
        logprobs[blockIdx.x] = logprob(row[target], scale, z.lse);
        entropies[blockIdx.x] = z.entropy;
    }
    if (!weights) return;
    const float weight = weights[blockIdx.x] * scale, to_2 = scale * LOG2_E, shift = z.lse * LOG2_E;
    Bf16* to = gradients + (size_t)blockIdx.x * vocab;
    const bool in_fours = vocab % 4 == 0 && aligned(row) && (size_t)to % 8 == 0;
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < vocab; i += THREADS * 4) {
        const Float4 x = load(row, i, vocab, in_fours);
        float d[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            d[k] = weight == 0.0f ? 0.0f : weight * exp2_of(fmaf(x.v[k], to_2, -shift));
            if (i + k == target) d[k] = d[k] - weight;
        }
        const tensor_cores::Pair low = tensor_cores::round_pair(d[0], d[1]), high = tensor_cores::round_pair(d[2], d[3]);
        if (in_fours) {
            struct __attribute__((aligned(8))) Four {
                tensor_cores::Pair low, high;
            };
            *(Four*)(to + i) = Four{low, high};
        } else {
            for (int k = 0; k < 4 && i + k < vocab; ++k) to[i + k] = (Bf16)((k < 2 ? low : high) >> k % 2 * 16);
        }
    }
}

// tokens and logprobs [rows] from logits [rows, vocab], and temperature, uniform and given [rows]: as sampling_choose.
// Grid rows, 512 threads.
KERNEL_BOUNDED(fast_head_choose, 512, 2)(const float* logits, const float* temperature, const float* uniform,
                                         const int* given, int* tokens, float* logprobs, float* tempered, int vocab) {
    using namespace fast_head_kernels;
    const float* row = logits + (size_t)blockIdx.x * vocab;
    const float t = temperature[blockIdx.x], scale = t > 0.0f ? 1.0f / t : 1.0f;
    const Softmax z = softmax(row, vocab, 1.0f), tempered_z = scale == 1.0f ? z : softmax(row, vocab, scale);
    int token = given[blockIdx.x];
    if (token < 0) token = t <= 0.0f ? argmax(row, vocab) : draw(row, vocab, scale, tempered_z.top, uniform[blockIdx.x]);
    if (threadIdx.x == 0) {
        token = token < vocab ? token : 0; // none was found: a logit is NaN
        tokens[blockIdx.x] = token;
        logprobs[blockIdx.x] = logprob(row[token], 1.0f, z.lse);
        tempered[blockIdx.x] = logprob(row[token], scale, tempered_z.lse);
    }
}
