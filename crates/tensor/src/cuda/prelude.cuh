// What every kernel file begins with: how a kernel is declared, and the functions of cpu/math.rs with the same bits.
//
// Kernels are compiled without contraction (--fmad=false): a fused multiply-add is where `fmaf` stands and nowhere else.
// The same files are compiled as C++ by emulator.h, which runs them on a processor for the tests.
#pragma once
#ifndef EMULATOR
#define KERNEL(name) extern "C" __global__ void name
// As KERNEL, with the block's size and the blocks that are to fit on a multiprocessor.
#define KERNEL_BOUNDED(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(type, name) extern __shared__ __attribute__((aligned(16))) unsigned char dynamic_shared[]; type* name = (type*)dynamic_shared
#endif
#define DEVICE static __device__ __forceinline__

#define FULL_WARP 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)

// Four floats that are moved at once; the address must be a multiple of 16.
struct __attribute__((aligned(16))) Float4 {
    float v[4];
};

// e^x: within 2 units in the last place; exactly 0 below -87, saturated above 88.
DEVICE float exact_exp(float x) {
    float m = -87.0f > x ? -87.0f : x;
    float clamped = 88.0f < m ? 88.0f : m;
    float t = fmaf(clamped, 1.44269504088896340736f, 12582912.0f);
    float n = t - 12582912.0f;
    float r = fmaf(n, -0.6933594f, clamped);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665795e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 5.0000003e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    float scale = __int_as_float((int)(((unsigned)__float_as_int(t) << 23) + 0x3f800000u));
    float v = p * scale;
    return x < -87.0f ? 0.0f : v;
}

DEVICE float exact_sigmoid(float x) {
    return 1.0f / (1.0f + exact_exp(0.0f - x));
}

// The natural logarithm, through f64.
DEVICE float exact_ln(float x) {
    if (!(x > 0.0f && x < INFINITY_F)) {
        if (x == 0.0f) return -INFINITY_F;
        return x == INFINITY_F ? x : __int_as_float(0x7fc00000);
    }
    long long bits = __double_as_longlong((double)x);
    long long e = (bits >> 52) - 1023;
    double m = __longlong_as_double((bits & 0x000fffffffffffffLL) | 0x3ff0000000000000LL);
    if (m > 1.41421356237309504880) {
        m *= 0.5;
        e += 1;
    }
    double s = (m - 1.0) / (m + 1.0);
    double s2 = s * s;
    double series = 0.0;
#pragma unroll
    for (int k = 10; k >= 0; --k) series = series * s2 + 1.0 / (double)(2 * k + 1);
    return (float)(2.0 * s * series + (double)e * 0.693147180559945309417);
}

// Sixteen virtual lanes are half a warp: lane i with i + 8, then + 4, + 2, + 1; every lane gets the sum.
// All threads of the warp must take part.
DEVICE float lane_sum(float v) {
    v = v + __shfl_down_sync(FULL_WARP, v, 8, 16);
    v = v + __shfl_down_sync(FULL_WARP, v, 4, 16);
    v = v + __shfl_down_sync(FULL_WARP, v, 2, 16);
    v = v + __shfl_down_sync(FULL_WARP, v, 1, 16);
    return __shfl_sync(FULL_WARP, v, 0, 16);
}

// The greatest of sixteen lanes by the same tree.
DEVICE float lane_max(float v) {
#pragma unroll
    for (int w = 8; w > 0; w >>= 1) {
        float other = __shfl_down_sync(FULL_WARP, v, w, 16);
        v = v > other ? v : other;
    }
    return __shfl_sync(FULL_WARP, v, 0, 16);
}

DEVICE bool aligned(const void* p) {
    return ((size_t)p & 15) == 0;
}

struct __attribute__((aligned(8))) Float2 {
    float a, b;
};

// What a gate goes through, gate * sigmoid(t) with a t that is the gate or a function of it (swiglu.rs).
enum Gate { SILU, GELU };

// t, and its slope.
template <Gate GATE> DEVICE Float2 gate_argument(float gate) {
    if (GATE == SILU) return Float2{gate, 1.0f};
    const float ROOT = 2.0f * 0.7978846f;
    float square = gate * gate * 0.044715f;
    return Float2{ROOT * fmaf(square, gate, gate), ROOT * fmaf(3.0f, square, 1.0f)};
}

template <Gate GATE> DEVICE float gate_value(float gate, float up) {
    return gate * exact_sigmoid(gate_argument<GATE>(gate).a) * up;
}

// The gradients of gate and up.
template <Gate GATE> DEVICE Float2 gate_gradient(float gate, float up, float dy) {
    Float2 t = gate_argument<GATE>(gate);
    float s = exact_sigmoid(t.a), y = gate * s;
    float slope = GATE == SILU ? fmaf(y, 1.0f - s, s) : fmaf(y * (1.0f - s), t.b, s);
    return Float2{dy * up * slope, dy * y};
}

// Copies a row with the threads of all blocks that share a blockIdx.x: grid (rows, any number).
DEVICE void copy_row(const float* from, float* to, int width) {
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (width % 4 == 0 && aligned(from) && aligned(to)) {
        for (int i = first; i < width / 4; i += stride) ((Float4*)to)[i] = ((const Float4*)from)[i];
    } else {
        for (int i = first; i < width; i += stride) to[i] = from[i];
    }
}

// What follows is for blocks that share a row of logits, always of this size.
const int HEAD_THREADS = 512;

// The greatest of all threads' values.
DEVICE float block_max(float v) {
    __shared__ float warps[HEAD_THREADS / 32];
    __syncthreads();
    v = lane_max(v);
    float other = __shfl_xor_sync(FULL_WARP, v, 16);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v > other ? v : other;
    __syncthreads();
    return lane_max(warps[threadIdx.x % (HEAD_THREADS / 32)]);
}

// Sums of e and of e * v over `end` elements, where e = exp(x - shift), and both are 0 from element n on; `end` is a
// multiple of 16. Both rows are multiplied by scale first. The first warp gets the result.
//
// Only the additions have an order: sixteen lanes walk the row in the first warp, while the other warps compute the
// exponentials of the next stretch and fetch the one behind it.
DEVICE Float2 exp_sums(const float* x, const float* v, float shift, int n, int end, float scale = 1.0f) {
    const int WORKERS = HEAD_THREADS - 32, EACH = 4, STRETCH = WORKERS * EACH;
    static_assert(STRETCH % 16 == 0, "lanes stay in step");
    __shared__ Float2 staged[2][STRETCH];
    bool adds = threadIdx.x < 32;
    int worker = threadIdx.x - 32;
    Float2 next[EACH], sums = {0.0f, 0.0f};
    auto fetch = [&](int at) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int i = at + worker + k * WORKERS;
            next[k].a = i < n ? x[i] * scale : 0.0f;
            next[k].b = i < n ? v[i] * scale : 0.0f;
        }
    };
    if (!adds) fetch(0);
    for (int at = 0, buffer = 0; at < end + STRETCH; at += STRETCH, buffer ^= 1) {
        if (adds) {
            const Float2* before = staged[buffer ^ 1];
            int count = at == 0 ? 0 : min(STRETCH, end - (at - STRETCH));
#pragma unroll 8
            for (int i = threadIdx.x % 16; i < count; i += 16) {
                sums.a = sums.a + before[i].a;
                sums.b = fmaf(before[i].a, before[i].b, sums.b);
            }
        } else if (at < end) {
#pragma unroll
            for (int k = 0; k < EACH; ++k) {
                int i = worker + k * WORKERS;
                float e = exact_exp(next[k].a - shift);
                staged[buffer][i] = Float2{at + i < n ? e : 0.0f, next[k].b};
            }
            fetch(at + STRETCH);
        }
        __syncthreads();
    }
    if (adds) sums = Float2{lane_sum(sums.a), lane_sum(sums.b)};
    return sums;
}

struct Normalizer {
    float top, lse, entropy;
};

// Of a row's logits times scale: the greatest, log of the sum of exponentials, and the entropy of the softmax; every
// thread gets them.
DEVICE Normalizer normalizer(const float* x, int n, float scale = 1.0f) {
    float top = -INFINITY_F;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += HEAD_THREADS) top = top > x[i] ? top : x[i];
    top = block_max(top) * scale;  // scaling keeps the order
    Float2 sums = exp_sums(x, x, top, n, (n + 15) / 16 * 16, scale);
    __shared__ Normalizer result;
    if (threadIdx.x == 0) {
        float lse = top + exact_ln(sums.a);
        result = Normalizer{top, lse, lse - sums.b / sums.a};
    }
    __syncthreads();
    return result;
}
