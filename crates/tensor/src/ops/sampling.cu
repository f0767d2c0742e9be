// From logits to tokens, for temperature sampling without filters and for the most likely token. A row has a block.
//
// A draw needs the sum of all weights in f64, added one by one, which a single thread would do for a millisecond. While
// the sum stays between two powers of two, adding a weight means adding it as a multiple of the sum's last place, and
// these integers may be added in any grouping. Only a weight halfway between two multiples is rounded by whether the
// sum is even; so a group of weights is described by two integers, what it adds to an even and to an odd sum, and a
// scan over the threads gives the sum before each. The thread in which the sum reaches the next power of two adds
// plainly, and the threads behind it start again; that happens a few dozen times a row.

// Weights of a thread, neighbours; and of a block.
const int SAMPLING_EACH = 8, SAMPLING_STRETCH = HEAD_THREADS * SAMPLING_EACH, SAMPLING_STRETCHES = 512;
// In units of its last place, a sum lies between half of this and this.
const long long SAMPLING_POWER = 1LL << 53;

struct SamplingRow {
    const float* logits;
    int vocab;
    float scale, top;
};

// The weights from token `first` on; 0 behind the end.
DEVICE void sampling_weights(const SamplingRow& row, int first, float (&weights)[SAMPLING_EACH]) {
    float x[SAMPLING_EACH];
#pragma unroll
    for (int k = 0; k < SAMPLING_EACH; ++k) x[k] = first + k < row.vocab ? row.logits[first + k] : 0.0f;
#pragma unroll
    for (int k = 0; k < SAMPLING_EACH; ++k) {
        weights[k] = first + k < row.vocab ? exact_exp(x[k] * row.scale - row.top) : 0.0f;
    }
}

// The least of all threads' values.
DEVICE int sampling_least(int v) {
    __shared__ int warps[HEAD_THREADS / 32];
    __syncthreads();
#pragma unroll
    for (int w = 16; w > 0; w >>= 1) v = min(v, __shfl_xor_sync(FULL_WARP, v, w));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < HEAD_THREADS / 32; ++w) v = min(v, warps[w]);
    return v;
}

// What weights add to an even and to an odd sum, in units of its last place.
struct SamplingStep {
    long long even, odd;
};

DEVICE long long sampling_at_most_power(long long v) {
    return v < SAMPLING_POWER ? v : SAMPLING_POWER;
}

DEVICE long long sampling_after(long long sum, SamplingStep step) {
    return sum + (sum & 1 ? step.odd : step.even);
}

DEVICE SamplingStep sampling_then(SamplingStep f, SamplingStep g) {
    return SamplingStep{sampling_after(f.even, g), sampling_after(f.odd + 1, g) - 1};
}

// One weight added to a sum whose exponent is `exponent`: rounded to a multiple of 2^(exponent - 52), ties to even; at
// most SAMPLING_POWER + 1, which carries any sum beyond the next power of two.
DEVICE SamplingStep sampling_step(float weight, int exponent) {
    int bits = __float_as_int(weight), field = bits >> 23;
    int mantissa = field ? (bits & 0x7fffff) | 0x800000 : bits;
    int shift = (field ? field : 1) - 150 - (exponent - 52);
    if (mantissa == 0) return SamplingStep{0, 0};
    if (shift >= 0) {
        long long exact = shift <= 29 ? (long long)mantissa << shift : SAMPLING_POWER + 1;
        return SamplingStep{exact, exact};
    }
    int right = -shift < 25 ? -shift : 25, half = 1 << (right - 1);
    int whole = mantissa >> right, rest = mantissa & (2 * half - 1);
    int even = whole + (rest + (whole & 1) > half), odd = whole + (rest + (~whole & 1) > half);
    return SamplingStep{even, odd};
}

// The sum before each thread's weights, and after all of them.
struct SamplingSums {
    double before, after;
};

// Adds the weights of all threads to `sum`, in order.
DEVICE SamplingSums sampling_add(double sum, const float (&weights)[SAMPLING_EACH]) {
    __shared__ SamplingStep warps[HEAD_THREADS / 32];
    __shared__ double passed;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    double before = sum;
    for (int first = 0; first < HEAD_THREADS;) {
        bool waits = thread >= first;
        // A sum of zero has no last place; with a tiny one, the first weight that is not zero is added plainly.
        int exponent = sum > 0.0 ? (int)(__double_as_longlong(sum) >> 52) - 1023 : -900;
        double unit = __longlong_as_double((long long)(exponent - 52 + 1023) << 52);
        long long units = (long long)(sum / unit);
        SamplingStep step = {0, 0};
        if (waits) {
#pragma unroll
            for (int k = 0; k < SAMPLING_EACH; ++k) step = sampling_then(step, sampling_step(weights[k], exponent));
        }
        SamplingStep all = step;
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            SamplingStep left = {__shfl_up_sync(FULL_WARP, all.even, d), __shfl_up_sync(FULL_WARP, all.odd, d)};
            if (lane >= d) all = sampling_then(left, all);
        }
        SamplingStep left = {__shfl_up_sync(FULL_WARP, all.even, 1), __shfl_up_sync(FULL_WARP, all.odd, 1)};
        if (lane == 31) warps[warp] = SamplingStep{sampling_at_most_power(all.even), sampling_at_most_power(all.odd)};
        __syncthreads();
        long long mine = units;
        for (int w = 0; w < HEAD_THREADS / 32; ++w) {
            if (w == warp) mine = units;
            units = sampling_after(units, warps[w]);
        }
        if (lane > 0) mine = sampling_after(mine, left);
        long long behind = sampling_after(mine, step);
        bool passes = waits && behind > SAMPLING_POWER;
        if (waits) before = (double)mine * unit;
        int passing = sampling_least(passes ? thread : HEAD_THREADS);
        if (passing == HEAD_THREADS) return SamplingSums{before, (double)units * unit};
        if (thread == passing) {
            double s = before;
            for (int k = 0; k < SAMPLING_EACH; ++k) s = s + (double)weights[k];
            passed = s;
        }
        __syncthreads();
        sum = passed;
        first = passing + 1;
    }
    return SamplingSums{before, sum};
}

// The first token at which the sum of weights exceeds uniform times their total.
DEVICE int sampling_draw(const SamplingRow& row, float uniform) {
    __shared__ double starts[SAMPLING_STRETCHES];
    int stretches = (row.vocab + SAMPLING_STRETCH - 1) / SAMPLING_STRETCH, stretch = 0, first = 0;
    float weights[SAMPLING_EACH];
    SamplingSums sums = {0.0, 0.0};
    double target = 0.0;
    // The walk over all stretches, and then once more through the one that the target lies in.
    for (int i = 0; i <= stretches; ++i) {
        double start = sums.after;
        stretch = i;
        if (i < stretches) {
            if (threadIdx.x == 0) starts[i] = start;
        } else {
            __syncthreads();
            target = (double)uniform * start;
            for (stretch = 0; stretch + 1 < stretches && starts[stretch + 1] <= target;) ++stretch;
            start = starts[stretch];
        }
        first = stretch * SAMPLING_STRETCH + threadIdx.x * SAMPLING_EACH;
        sampling_weights(row, first, weights);
        sums = sampling_add(start, weights);
    }
    int token = row.vocab;
    double sum = sums.before;
#pragma unroll
    for (int k = 0; k < SAMPLING_EACH; ++k) {
        sum = sum + (double)weights[k];
        if (sum > target && token == row.vocab) token = first + k;
    }
    return sampling_least(token);
}

// The first token with the greatest logit.
DEVICE int sampling_argmax(const float* logits, int vocab, float top) {
    int token = vocab;
    for (int i = threadIdx.x; i < vocab && token == vocab; i += HEAD_THREADS) {
        if (logits[i] == top) token = i;
    }
    return sampling_least(token);
}

// tokens and logprobs [rows] from logits [rows, vocab], temperature and uniform [rows]; vocab up to 2^21. Temperature 0
// (or less) takes the most likely token, the first if there are several; else uniform, in [0, 1), draws one; given [rows]
// has the token where another has chosen it, or -1.
// logprobs are the model's own, at temperature 1; tempered [rows] those that the token was drawn by.
// Grid rows, HEAD_THREADS (512) threads.
KERNEL_BOUNDED(sampling_choose, HEAD_THREADS, 2)(const float* logits, const float* temperature, const float* uniform,
                                                 const int* given, int* tokens, float* logprobs, float* tempered,
                                                 int vocab) {
    logits += (size_t)blockIdx.x * vocab;
    float t = temperature[blockIdx.x];
    Normalizer z = normalizer(logits, vocab);
    float scale = t > 0.0f ? 1.0f / t : 1.0f;
    float lse = scale == 1.0f ? z.lse : normalizer(logits, vocab, scale).lse;
    int token = given[blockIdx.x];
    if (token < 0 && t <= 0.0f) {
        token = sampling_argmax(logits, vocab, z.top);
    } else if (token < 0) {
        // Scaling keeps the order, so the greatest stays the greatest.
        token = sampling_draw(SamplingRow{logits, vocab, scale, z.top * scale}, uniform[blockIdx.x]);
    }
    if (threadIdx.x == 0) {
        token = token < vocab ? token : 0; // none was found: a logit is NaN
        tokens[blockIdx.x] = token;
        logprobs[blockIdx.x] = logits[token] - z.lse;
        tempered[blockIdx.x] = logits[token] * scale - lse;
    }
}
