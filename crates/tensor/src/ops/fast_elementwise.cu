// Between the products of the fast mode: norms, rotations and activations that read f32 and write bf16, as the next product
// takes them. Sums are over a block or a warp, in an order that the row's length alone decides.
namespace fast_elementwise_kernels {

using namespace tensor_cores;

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = x + __shfl_xor_sync(FULL_WARP, x, d);
    return x;
}

// Of all threads of a block, up to 1024.
DEVICE float block_sum(float x) {
    __shared__ float warps[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < (int)blockDim.x / 32; ++w) sum = sum + warps[w];
    return sum;
}

DEVICE float rstd_of(float squares, int h, float eps) { return 1.0f / sqrtf(squares / (float)h + eps); }

// Two pairs of a head's components that are rotated together, of pairs i and i + 1: the first members, then the second.
struct Pairs {
    float a[2], b[2];
};
DEVICE Pairs load_pairs(const float* x, int i, int half, int interleaved) {
    if (interleaved) {
        const Float2 p = *(const Float2*)(x + 2 * i), q = *(const Float2*)(x + 2 * i + 2);
        return {{p.a, q.a}, {p.b, q.b}};
    }
    const Float2 p = *(const Float2*)(x + i), q = *(const Float2*)(x + i + half);
    return {{p.a, p.b}, {q.a, q.b}};
}
DEVICE void store_pairs(Bf16* x, const Pairs& p, int i, int half, int interleaved) {
    if (interleaved) {
        *(Pair*)(x + 2 * i) = round_pair(p.a[0], p.b[0]);
        *(Pair*)(x + 2 * i + 2) = round_pair(p.a[1], p.b[1]);
    } else {
        *(Pair*)(x + i) = round_pair(p.a[0], p.a[1]);
        *(Pair*)(x + i + half) = round_pair(p.b[0], p.b[1]);
    }
}
// A lane has the pairs from 2 * lane on, and those 64 further.
const int MOST_PAIRS = 2; // of twos a lane: heads of up to 256 components

DEVICE int first_pair(int n) { return (int)threadIdx.x % 32 * 2 + n * 64; }
template <class F> DEVICE void each_pair(int half, F f) {
#pragma unroll
    for (int n = 0; n < MOST_PAIRS; ++n)
        if (first_pair(n) < half) f(n, first_pair(n));
}


}  // namespace fast_elementwise_kernels

// y [n] = x [n]. Any grid, 256 threads.
KERNEL(fast_elementwise_unround)(const Bf16* x, float* y, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        y[i] = __int_as_float((int)((unsigned)x[i] << 16));
}

// y [n, h] = s / sqrt(mean(s²) + eps) * w [h] with s [n, h] = a [n, h] + b [n, h], and rstd [n]; where b is null, s is a and
// is not written. h is even.
// Grid n, threads a multiple of 32; dynamic shared memory 4 h bytes.
KERNEL(fast_elementwise_norm)(const float* a, const float* b, const float* __restrict__ w, float eps, float* s, Bf16* y,
                              float* rstd, int h) {
    using namespace fast_elementwise_kernels;
    DYNAMIC_SHARED(float, row);
    const size_t at = (size_t)blockIdx.x * h;
    float squares = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x * 2; i < h; i += blockDim.x * 2) {
        Float2 x = *(const Float2*)(a + at + i);
        if (b) {
            const Float2 more = *(const Float2*)(b + at + i);
            x = Float2{x.a + more.a, x.b + more.b};
            *(Float2*)(s + at + i) = x;
        }
        *(Float2*)(row + i) = x;
        squares = fmaf(x.b, x.b, fmaf(x.a, x.a, squares));
    }
    const float scale = rstd_of(block_sum(squares), h, eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
#pragma unroll 4
    for (int i = threadIdx.x * 2; i < h; i += blockDim.x * 2) {
        const Float2 x = *(const Float2*)(row + i), v = *(const Float2*)(w + i);
        *(Pair*)(y + at + i) = round_pair(x.a * scale * v.a, x.b * scale * v.b);
    }
}

// y [rows, inner] = silu(gate) * up, or gelu(gate) * up, from gate_up [rows, 2 * inner]; inner is even.
// Grid (rows, ceil(inner / (4 * threads))), threads 32 to 256.
template <Gate GATE> DEVICE void fast_elementwise_gated(const float* gate_up, Bf16* y, int inner) {
    using namespace fast_elementwise_kernels;
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    y += (size_t)blockIdx.x * inner;
    for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * 2; i < inner; i += gridDim.y * blockDim.x * 2) {
        const Float2 g = *(const Float2*)(gate + i), u = *(const Float2*)(up + i);
        *(Pair*)(y + i) = round_pair(gate_value<GATE>(g.a, u.a), gate_value<GATE>(g.b, u.b));
    }
}
KERNEL(fast_elementwise_swiglu)(const float* gate_up, Bf16* y, int inner) {
    fast_elementwise_gated<SILU>(gate_up, y, inner);
}
KERNEL(fast_elementwise_geglu)(const float* gate_up, Bf16* y, int inner) {
    fast_elementwise_gated<GELU>(gate_up, y, inner);
}

// d [rows, 2 * inner], the gradients of gate and up, from gate_up [rows, 2 * inner] and dy [rows, inner].
// Launched as fast_elementwise_swiglu.
template <Gate GATE>
DEVICE void fast_elementwise_gated_backward(const float* gate_up, const float* dy, Bf16* d, int inner) {
    using namespace fast_elementwise_kernels;
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    Bf16 *dgate = d + (size_t)blockIdx.x * 2 * inner, *dup = dgate + inner;
    dy += (size_t)blockIdx.x * inner;
    for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * 2; i < inner; i += gridDim.y * blockDim.x * 2) {
        const Float2 g = *(const Float2*)(gate + i), u = *(const Float2*)(up + i), t = *(const Float2*)(dy + i);
        const Float2 first = gate_gradient<GATE>(g.a, u.a, t.a), second = gate_gradient<GATE>(g.b, u.b, t.b);
        *(Pair*)(dgate + i) = round_pair(first.a, second.a);
        *(Pair*)(dup + i) = round_pair(first.b, second.b);
    }
}
KERNEL(fast_elementwise_swiglu_backward)(const float* gate_up, const float* dy, Bf16* d, int inner) {
    fast_elementwise_gated_backward<SILU>(gate_up, dy, d, inner);
}
KERNEL(fast_elementwise_geglu_backward)(const float* gate_up, const float* dy, Bf16* d, int inner) {
    fast_elementwise_gated_backward<GELU>(gate_up, dy, d, inner);
}

#define FAST_ELEMENTWISE_HEADS                                                                                         \
    const int *positions, const float *cos, const float *sin, const float *q_norm, const float *k_norm, int n,         \
        int heads, int kv_heads, int half, int interleaved

// q [n, heads * dim] and k [n, kv_heads * dim], normalised by q_norm and k_norm [dim] unless these are null, then rotated;
// v [n, kv_heads * dim]; rstd [n, heads + kv_heads] if they are normalised. From qkv [n, (heads + 2 * kv_heads) * dim];
// dim = 2 * half up to 256, half even; positions [n], tables [positions, half].
// Grid ceil(n * (heads + 2 * kv_heads) / 4), 128 threads.
KERNEL(fast_elementwise_heads)(const float* qkv, Bf16* q, Bf16* k, Bf16* v, float* rstd, float eps,
                               FAST_ELEMENTWISE_HEADS) {
    using namespace fast_elementwise_kernels;
    const int all = heads + 2 * kv_heads, dim = 2 * half;
    const long long item = (long long)blockIdx.x * 4 + threadIdx.x / 32;
    if (item >= (long long)n * all) return;
    const size_t t = item / all;
    const int head = item % all;
    const float* x = qkv + item * dim;
    Pairs p[MOST_PAIRS];
    each_pair(half, [&](int n, int i) { p[n] = load_pairs(x, i, half, interleaved); });
    if (head >= heads + kv_heads) {
        Bf16* to = v + (t * kv_heads + head - heads - kv_heads) * dim;
        each_pair(half, [&](int n, int i) { store_pairs(to, p[n], i, half, interleaved); });
        return;
    }
    if (q_norm) {
        const float* w = head < heads ? q_norm : k_norm;
        float squares = 0.0f;
        each_pair(half, [&](int n, int) {
            for (int e = 0; e < 2; ++e) squares = fmaf(p[n].b[e], p[n].b[e], fmaf(p[n].a[e], p[n].a[e], squares));
        });
        const float scale = rstd_of(warp_sum(squares), dim, eps);
        if (threadIdx.x % 32 == 0) rstd[t * (heads + kv_heads) + head] = scale;
        each_pair(half, [&](int n, int i) {
            const Pairs weight = load_pairs(w, i, half, interleaved);
            for (int e = 0; e < 2; ++e) {
                p[n].a[e] = p[n].a[e] * scale * weight.a[e];
                p[n].b[e] = p[n].b[e] * scale * weight.b[e];
            }
        });
    }
    const size_t angle = (size_t)positions[t] * half;
    Bf16* to = head < heads ? q + (t * heads + head) * dim : k + (t * kv_heads + head - heads) * dim;
    each_pair(half, [&](int n, int i) {
        const Float2 c = *(const Float2*)(cos + angle + i), s = *(const Float2*)(sin + angle + i);
        const Pairs x = p[n];
        const Pairs y = {{fmaf(x.a[0], c.a, -(x.b[0] * s.a)), fmaf(x.a[1], c.b, -(x.b[1] * s.b))},
                         {fmaf(x.b[0], c.a, x.a[0] * s.a), fmaf(x.b[1], c.b, x.a[1] * s.b)}};
        store_pairs(to, y, i, half, 0); // first members before second members
    });
}

// dx [n, (heads + 2 * kv_heads) * dim] from dq, dk, dv, shaped as q, k, v above; partial [2, grid, dim], if they are
// normalised: the gradients of q_norm, then of k_norm, from a block's 8 tokens, to be added in order.
// Grid ceil(n / 8), 256 threads; dynamic shared memory 64 * half bytes.
KERNEL(fast_elementwise_heads_backward)(const float* qkv, const float* dq, const float* dk, const float* dv,
                                        const float* rstd, Bf16* dx, float* partial, FAST_ELEMENTWISE_HEADS) {
    using namespace fast_elementwise_kernels;
    DYNAMIC_SHARED(float, sums); // [8 warps, dim]
    const int all = heads + 2 * kv_heads, dim = 2 * half, warp = threadIdx.x / 32;
    const size_t t0 = (size_t)blockIdx.x * 8;
    const int tokens = min(8, n - (int)t0);
    for (int part = 0; part < 3; ++part) { // queries, keys, values
        const int count = part == 0 ? heads : kv_heads, before = part == 0 ? 0 : part == 1 ? heads : heads + kv_heads;
        const float *from = part == 0 ? dq : part == 1 ? dk : dv, *w = part == 0 ? q_norm : k_norm;
        Pairs sum[MOST_PAIRS] = {};
        for (int item = warp; item < tokens * count; item += 8) {
            const size_t t = t0 + item / count;
            const int head = item % count;
            const float* dy = from + (t * count + head) * dim;
            const size_t at = (t * all + before + head) * dim;
            Pairs d[MOST_PAIRS];
            if (part == 2) {
                each_pair(half, [&](int n, int i) {
                    store_pairs(dx + at, load_pairs(dy, i, half, interleaved), i, half, interleaved);
                });
                continue;
            }
            const size_t angle = (size_t)positions[t] * half;
            each_pair(half, [&](int n, int i) {
                const Float2 c = *(const Float2*)(cos + angle + i), s = *(const Float2*)(sin + angle + i);
                const Pairs y = load_pairs(dy, i, half, 0);
                d[n] = {{fmaf(y.a[0], c.a, y.b[0] * s.a), fmaf(y.a[1], c.b, y.b[1] * s.b)},
                        {fmaf(y.b[0], c.a, -(y.a[0] * s.a)), fmaf(y.b[1], c.b, -(y.a[1] * s.b))}};
            });
            if (q_norm) {
                const float scale = rstd[t * (heads + kv_heads) + before + head];
                Pairs x[MOST_PAIRS];
                float dot = 0.0f;
                each_pair(half, [&](int n, int i) {
                    const Pairs weight = load_pairs(w, i, half, interleaved);
                    x[n] = load_pairs(qkv + at, i, half, interleaved);
                    for (int e = 0; e < 2; ++e) {
                        x[n].a[e] *= scale, x[n].b[e] *= scale;
                        sum[n].a[e] += d[n].a[e] * x[n].a[e], sum[n].b[e] += d[n].b[e] * x[n].b[e];
                        d[n].a[e] *= weight.a[e], d[n].b[e] *= weight.b[e];
                        dot = fmaf(d[n].b[e], x[n].b[e], fmaf(d[n].a[e], x[n].a[e], dot));
                    }
                });
                const float slope = -(warp_sum(dot) / (float)dim);
                each_pair(half, [&](int n, int) {
                    for (int e = 0; e < 2; ++e) {
                        d[n].a[e] = scale * fmaf(x[n].a[e], slope, d[n].a[e]);
                        d[n].b[e] = scale * fmaf(x[n].b[e], slope, d[n].b[e]);
                    }
                });
            }
            each_pair(half, [&](int n, int i) { store_pairs(dx + at, d[n], i, half, interleaved); });
        }
        if (!q_norm || part == 2) continue;
        __syncthreads(); // the part before has been added up
        each_pair(half, [&](int n, int i) {
            for (int e = 0; e < 2; ++e) {
                sums[warp * dim + (interleaved ? 2 * (i + e) : i + e)] = sum[n].a[e];
                sums[warp * dim + (interleaved ? 2 * (i + e) + 1 : i + e + half)] = sum[n].b[e];
            }
        });
        __syncthreads();
        for (int i = threadIdx.x; i < dim; i += blockDim.x) {
            float all_warps = 0.0f;
            for (int w = 0; w < 8; ++w) all_warps = all_warps + sums[w * dim + i];
            partial[((size_t)part * gridDim.x + blockIdx.x) * dim + i] = all_warps;
        }
    }
}

#undef FAST_ELEMENTWISE_HEADS
