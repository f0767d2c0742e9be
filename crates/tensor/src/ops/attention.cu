// Causal attention with the order of arithmetic of attention.rs: keys in pages of 64 from the start of the sequence, one
// step of the running softmax per page, every product one chain.
//
// Forward and dQ: a block has some query rows of one head and walks the keys. dK and dV: a block has some keys of one
// key/value head and walks the queries that see them. Rows, keys and weights are staged in shared memory, products are
// register tiles. Sixteen neighbouring threads are the sixteen lanes of the CPU's reductions and share a tile's rows:
// thread `lane` holds the keys lane, lane + 16, ... of each, so a page's softmax never leaves their registers.
//
// Tables. Segments are [n][6] (`Segment` below); tiles are [n][2] = {segment, first row or key in it}. Key j of a segment
// is row pages[s.pages + j / 64] * 64 + j % 64 of the cache or, without one, row j of the trunk for j < past and row
// j - past of the segment itself behind. In all kernels h is a query head, its key/value head h / (heads / kv_heads).
//
// A kernel's suffix is the greatest dk and dv it serves: _32, _64, _128, _192 (dk to 192, dv to 128), _256.
namespace attention_kernels {

const int PAGE = 64;
const int LANES = 16;
// Query rows between which the CPU's backward pass changes tiles.
const int BACK_ROWS = 48;

struct Segment {
    int start;  // first row in the batch
    int rows;
    int past;   // keys before its own rows
    int trunk;  // without a cache: first row of those keys
    int pages;  // with a cache: where its list of pages begins
    int first;  // keys of the segments before: where its own lie in the scratch of the backward pass
};

struct Shape {
    int heads, kv_heads, dk, dv;
    float scale;
    int window; // a row sees so many keys at most: the last ones
};

struct __attribute__((aligned(8))) Float2 {
    float v[2];
};
template <int W> struct Vector;
template <> struct Vector<2> { typedef Float2 Type; };
template <> struct Vector<4> { typedef Float4 Type; };

DEVICE Segment segment(const int* segments, int i) { return ((const Segment*)segments)[i]; }

// The first key of the first page of which something is seen by a row of so many keys, or by one behind it.
DEVICE int first_seen(int keys, int window) { return max(0, keys - window) / PAGE * PAGE; }

// Where the keys of one page lie: key i in row near + i for i < split, else in row far + i.
struct PageRows {
    int near, far, split;
};
DEVICE PageRows page_rows(const Segment& s, const int* pages, int cached, int base) {
    if (cached) return {pages[s.pages + base / PAGE] * PAGE + base % PAGE, 0, PAGE};
    return {s.trunk + base, s.start - s.past + base, s.past - base};
}
DEVICE size_t row_of(const PageRows& at, int i) { return (size_t)(i < at.split ? at.near + i : at.far + i); }

// Whether rows can be read four values at a time.
DEVICE bool in_fours(const float* x, size_t stride, int dim) {
    return ((size_t)x % 16 | stride % 4 | (size_t)dim % 4) == 0;
}

// Up to four of the n values at x, none if n <= 0; `pad` behind them.
template <bool IN_FOURS> DEVICE Float4 load_four(const float* x, int n, float pad) {
    Float4 r = {{pad, pad, pad, pad}};
    if (IN_FOURS) {
        if (n > 0) r = *(const Float4*)x;
    } else {
        for (int e = 0; e < min(n, 4); ++e) r.v[e] = x[e];
    }
    return r;
}

// Copies `rows` rows of `dim` values to shared memory, [ROWS][WIDTH + 4], with `pad` up to ROWS rows and a multiple of
// four values. The gap of four keeps equal columns of eight neighbouring rows in different banks.
//
// Depths of a product are padded with -0 on its left and +0 on its right side: adding -0 * +0 changes no sum, be it a zero
// of either sign.
template <bool IN_FOURS, int ROWS, int WIDTH, int THREADS, class RowOf>
DEVICE void stage_as(float* to, const float* x, size_t stride, int dim, int rows, float pad, RowOf row) {
    // Loads before stores, so that several are under way.
    const int FOURS = WIDTH / 4, TOTAL = ROWS * FOURS, MOST = (TOTAL + THREADS - 1) / THREADS;
    const int EACH = !IN_FOURS ? 1 : MOST < 8 ? MOST : 8;
    // If whole rows are copied at once, a thread stays in its column.
    const bool EVEN = THREADS % FOURS == 0;
    const int column = threadIdx.x % FOURS * 4;
    int r0 = threadIdx.x / FOURS;
#pragma unroll 1
    for (int first = threadIdx.x; first < TOTAL; first += EACH * THREADS, r0 += EACH * THREADS / FOURS) {
        Float4 v[EACH];
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int i = first + n * THREADS;
            const int r = EVEN ? r0 + n * (THREADS / FOURS) : i / FOURS, c = EVEN ? column : i % FOURS * 4;
            const bool inside = i < TOTAL && r < rows;
            v[n] = load_four<IN_FOURS>(x + row(r) * stride + c, inside ? dim - c : 0, pad);
        }
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int i = first + n * THREADS;
            const int r = EVEN ? r0 + n * (THREADS / FOURS) : i / FOURS, c = EVEN ? column : i % FOURS * 4;
            if (i < TOTAL && c < dim) *(Float4*)(to + r * (WIDTH + 4) + c) = v[n];
        }
    }
}
template <int ROWS, int WIDTH, int THREADS, class RowOf>
DEVICE void stage(float* to, const float* x, size_t stride, int dim, int rows, float pad, RowOf row) {
    if (in_fours(x, stride, dim))
        stage_as<true, ROWS, WIDTH, THREADS>(to, x, stride, dim, rows, pad, row);
    else
        stage_as<false, ROWS, WIDTH, THREADS>(to, x, stride, dim, rows, pad, row);
}

// acc[i][j] += sum over d of a[i][d] * b[j][d]; rows of a and b lie A and B apart.
template <int A, int B, int R, int C>
DEVICE void multiply_rows(float (&acc)[R][C], const float* a, const float* b, int depth) {
    for (int d = 0; d < depth; d += 4) {
        Float4 x[R], y[C];
#pragma unroll
        for (int j = 0; j < C; ++j) y[j] = *(const Float4*)(b + j * B + d);
#pragma unroll
        for (int i = 0; i < R; ++i) x[i] = *(const Float4*)(a + i * A + d);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int i = 0; i < R; ++i)
#pragma unroll
                for (int j = 0; j < C; ++j) acc[i][j] = fmaf(x[i].v[e], y[j].v[e], acc[i][j]);
    }
}

// acc[i][c * W + w] += sum over k of a[i][k] * b[k][c * STEP + w]; rows of a and b lie A and B apart. Groups of columns
// from `cols` on are left out.
template <int A, int B, int W, int STEP, int R, int C>
DEVICE void multiply(float (&acc)[R][C], const float* a, const float* b, int depth, int cols) {
    typedef typename Vector<W>::Type V;
#pragma unroll 2
    for (int k = 0; k < depth; k += 4) {
        Float4 x[R];
#pragma unroll
        for (int i = 0; i < R; ++i) x[i] = *(const Float4*)(a + i * A + k);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
            for (int c = 0; c < C / W; ++c) {
                if (c > 1 && c * STEP >= cols) break;
                V y = *(const V*)(b + (k + e) * B + c * STEP);
#pragma unroll
                for (int i = 0; i < R; ++i)
#pragma unroll
                    for (int w = 0; w < W; ++w) acc[i][c * W + w] = fmaf(x[i].v[e], y.v[w], acc[i][c * W + w]);
            }
    }
}

// acc[i][c * 4 + w] += sum over k of a[k][i] * b[k][c * STEP + w], for four i.
template <int A, int B, int STEP, int C>
DEVICE void multiply_transposed(float (&acc)[4][C], const float* a, const float* b, int depth) {
#pragma unroll 4
    for (int k = 0; k < depth; ++k) {
        Float4 x = *(const Float4*)(a + k * A);
#pragma unroll
        for (int c = 0; c < C / 4; ++c) {
            Float4 y = *(const Float4*)(b + k * B + c * STEP);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int w = 0; w < 4; ++w) acc[i][c * 4 + w] = fmaf(x.v[i], y.v[w], acc[i][c * 4 + w]);
        }
    }
}

template <int R, int C> DEVICE void clear(float (&x)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < C; ++j) x[i][j] = 0.0f;
}

// exact_exp for x up to 88: bounding x first would change nothing, as the result below -87 is 0 anyhow.
DEVICE float exp_to_88(float x) {
    const float t = fmaf(x, 1.44269504088896340736f, 12582912.0f);
    const float n = t - 12582912.0f;
    float r = fmaf(n, -0.6933594f, x);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665795e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 5.0000003e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    const float v = p * __int_as_float((int)(((unsigned)__float_as_int(t) << 23) + 0x3f800000u));
    return x < -87.0f ? 0.0f : v;
}

// The running softmax, `weigh` of attention.rs: turns a lane's four scores of a page into weights relative to the
// greatest score so far, m, and brings l, the sum of weights, to it. Returns the factor for sums of earlier pages. A page
// of which the row sees nothing (all scores are -inf) changes nothing; before the first one of which it does, m is -inf and
// the factor 0.
DEVICE float weigh(float (&s)[PAGE / LANES], float& m, float& l) {
    float top = -INFINITY_F;
#pragma unroll
    for (int j = 0; j < PAGE / LANES; ++j) top = top > s[j] ? top : s[j];
    // Every lane takes part in every step, so all get the result; a sum's two sides may be swapped.
#pragma unroll
    for (int w = LANES / 2; w > 0; w /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, top, w);
        top = top > other ? top : other;
    }
    top = top > m ? top : m;
    const float shift = top > -INFINITY_F ? top : 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PAGE / LANES; ++j) {
        s[j] = exp_to_88(s[j] - shift);
        sum = sum + s[j];
    }
#pragma unroll
    for (int w = LANES / 2; w > 0; w /= 2) sum = sum + __shfl_xor_sync(FULL_WARP, sum, w);
    float factor = exp_to_88(m - shift);
    l = l * factor + sum;
    m = top;
    return factor;
}

const int FORWARD_THREADS = 128;

// ROWS query rows of one head. A page's keys and values are staged TOGETHER, or else keys CHUNK components at a time and
// then, in their place, values VKEYS keys at a time.
template <int ROWS, int DK, int DV, int CHUNK, int VKEYS, bool TOGETHER>
DEVICE void forward(const float* q, const float* k, const float* v, const int* segments, const int* tiles,
                    const int* pages, float* out, float* lse, const Shape& shape, int cached) {
    const int GROUPS = FORWARD_THREADS / LANES, R = ROWS / GROUPS, QS = DK + 4, KS = CHUNK + 4, VS = DV + 4, PS = PAGE + 16;
    const int W = DV < 64 ? 2 : 4;
    static_assert(TOGETHER ? CHUNK == DK && VKEYS == PAGE : VKEYS * VS <= PAGE * KS, "parts fit the buffer");
    DYNAMIC_SHARED(float, shared);
    float *query = shared, *key = query + ROWS * QS, *value = TOGETHER ? key + PAGE * KS : key;
    float* weights = key + PAGE * KS + (TOGETHER ? PAGE * VS : 0);

    // Last tiles first: they have the most keys.
    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h = blockIdx.y, kv_head = h / (shape.heads / shape.kv_heads);
    const int r0 = tile[1] + blockIdx.z * ROWS, rows = min(ROWS, s.rows - r0);
    if (rows <= 0) return;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const size_t q_stride = (size_t)shape.heads * shape.dk, out_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;

    stage<ROWS, DK, FORWARD_THREADS>(query, q + (s.start + r0) * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows,
                                     -0.0f, [](int r) { return (size_t)r; });
    float m[R], l[R], acc[R][DV / LANES];
    clear(acc);
#pragma unroll
    for (int i = 0; i < R; ++i) {
        m[i] = -INFINITY_F;
        l[i] = 0.0f;
    }
    // This thread's rows are group, group + GROUPS, ...
    const float* my_query = query + group * QS;
    float* my_weights = weights + group * PS;
    const int all_keys = s.past + r0 + rows;
    auto stage_values = [&](int base, int first) {
        const PageRows at = page_rows(s, pages, cached, base);
        stage<VKEYS, DV, FORWARD_THREADS>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, all_keys - base - first,
                                          0.0f, [&](int r) { return row_of(at, first + r); });
    };
    for (int base = first_seen(s.past + r0 + 1, shape.window); base < all_keys; base += PAGE) {
        const int keys = min(PAGE, all_keys - base);
        const PageRows at = page_rows(s, pages, cached, base);
        float p[R][PAGE / LANES];
        clear(p);
        for (int d = 0; d < shape.dk; d += CHUNK) {
            __syncthreads();
            stage<PAGE, CHUNK, FORWARD_THREADS>(key, k + (size_t)kv_head * shape.dk + d, k_stride, min(CHUNK, shape.dk - d),
                                                keys, 0.0f, [&](int r) { return row_of(at, r); });
            if (TOGETHER) stage_values(base, 0);
            __syncthreads();
            multiply_rows<GROUPS * QS, LANES * KS>(p, my_query + d, key + lane * KS, min(CHUNK, shape.dk - d));
        }
#pragma unroll
        for (int i = 0; i < R; ++i) {
            const int count = s.past + r0 + group + i * GROUPS + 1 - base;
#pragma unroll
            for (int j = 0; j < PAGE / LANES; ++j) {
                const int key = lane + j * LANES;
                p[i][j] = key < count && key >= count - shape.window ? p[i][j] * shape.scale : -INFINITY_F;
            }
            float factor = weigh(p[i], m[i], l[i]);
#pragma unroll
            for (int c = 0; c < DV / LANES; ++c) acc[i][c] = acc[i][c] * factor;
#pragma unroll
            for (int j = 0; j < PAGE / LANES; ++j) my_weights[i * GROUPS * PS + lane + j * LANES] = p[i][j];
        }
        for (int first = 0; first < keys; first += VKEYS) {
            if (TOGETHER) {
                __syncwarp();  // a row's weights stay within its warp
            } else {
                __syncthreads();
                stage_values(base, first);
                __syncthreads();
            }
            // Weights of masked keys are 0, and add nothing that the last + 0 would not.
            multiply<GROUPS * PS, VS, W, LANES * W>(acc, my_weights + first, value + lane * W, min(VKEYS, keys - first),
                                                    shape.dv);
        }
    }
    float my_m = 0.0f, my_l = 1.0f;
#pragma unroll
    for (int i = 0; i < R; ++i) {
        if (lane == i) {
            my_m = m[i];
            my_l = l[i];
        }
        const int row = group + i * GROUPS;
        const float inv = 1.0f / l[i];
        float* to = out + (s.start + r0 + row) * out_stride + (size_t)h * shape.dv;
#pragma unroll
        for (int c = 0; c < DV / LANES; ++c) {
            const int column = c / W * LANES * W + lane * W + c % W;
            if (row < rows && column < shape.dv) to[column] = acc[i][c] * inv + 0.0f;
        }
    }
    const int row = group + lane * GROUPS;
    if (lane < R && row < rows) lse[(size_t)(s.start + r0 + row) * shape.heads + h] = my_m + exact_ln(my_l);
}

// Query heads of one block of the decoding kernel.
const int DECODE_HEADS = 8;

// The keys or the values of one head in the cache: where the first slot's lie, the distance between slots, components,
// and the sequence's pages.
struct CacheRows {
    const float* x;
    size_t stride;
    int dim;
    const int* pages;
    int count;
};

// KEYS rows of D values on their way from global to shared memory, if they can be read in fours. Else `put` reads them.
template <int D, int THREADS, int KEYS> struct Carried {
    bool fours;
    Float4 v[KEYS * D / 4 / THREADS];
};
template <int D, int THREADS, int KEYS> DEVICE void fetch(Carried<D, THREADS, KEYS>& c, const CacheRows& from, int base) {
    const int STEP = THREADS / (D / 4), EACH = PAGE / STEP; // rows at once, rows of a thread
    const int r = threadIdx.x / (D / 4), d = threadIdx.x % (D / 4) * 4;
    c.fours = in_fours(from.x, from.stride, from.dim);
    if (!c.fours) return;
#pragma unroll
    for (int p = 0; p < KEYS / PAGE; ++p) {
        const int first = base + p * PAGE;
        const size_t slot = first < from.count ? (size_t)from.pages[first / PAGE] * PAGE + r : 0;
        const float* at = from.x + slot * from.stride + d;
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            c.v[p * EACH + n] = load_four<true>(at, first + r + n * STEP < from.count ? from.dim - d : 0, 0.0f);
            at += STEP * from.stride;
        }
    }
}
template <int D, int THREADS, int KEYS>
DEVICE void put(const Carried<D, THREADS, KEYS>& c, const CacheRows& from, int base, float* to) {
    if (!c.fours) {
        return stage_as<false, KEYS, D, THREADS>(to, from.x, from.stride, from.dim, from.count - base, 0.0f, [&](int r) {
            const int key = base + r;
            return key < from.count ? (size_t)from.pages[key / PAGE] * PAGE + key % PAGE : (size_t)0;
        });
    }
#pragma unroll
    for (int n = 0; n < KEYS * D / 4 / THREADS; ++n) {
        const int i = threadIdx.x + n * THREADS;
        *(Float4*)(to + i / (D / 4) * (D + 4) + i % (D / 4) * 4) = c.v[n];
    }
}

// The query heads of one key/value head for a segment of one row, KEYS keys at a time. Values are on their way while keys
// are scored, and the next keys while values are summed.
template <int D, int THREADS, int KEYS>
DEVICE void decode(const float* q, const float* k, const float* v, const int* segments, const int* list, const int* pages,
                   float* out, float* lse, const Shape& shape) {
    const int ROW = D + 4, PAGES = KEYS / PAGE;
    DYNAMIC_SHARED(float, shared);
    float *staged = shared, *query = staged + KEYS * ROW, *weights = query + DECODE_HEADS * D;
    float *factors = weights + DECODE_HEADS * KEYS, *sums = factors + DECODE_HEADS * PAGES;

    const Segment s = segment(segments, list[blockIdx.x]);
    const int group = shape.heads / shape.kv_heads, kv_head = blockIdx.y;
    const int h0 = kv_head * group + blockIdx.z * DECODE_HEADS, heads = min(DECODE_HEADS, group - (int)blockIdx.z * DECODE_HEADS);
    const int all_keys = s.past + 1, seen = first_seen(all_keys, shape.window);
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const CacheRows keys = {k + (size_t)kv_head * shape.dk, k_stride, shape.dk, pages + s.pages, all_keys};
    const CacheRows values = {v + (size_t)kv_head * shape.dv, v_stride, shape.dv, pages + s.pages, all_keys};
    Carried<D, THREADS, KEYS> next;
    fetch(next, keys, seen);
    const float* my_q = q + ((size_t)s.start * shape.heads + h0) * shape.dk;
    for (int i = threadIdx.x; i < heads * D; i += THREADS)
        query[i] = i % D < shape.dk ? my_q[(size_t)(i / D) * shape.dk + i % D] : -0.0f;

    // A thread's part of each step: one key and some heads; sixteenth of a head; one component and some heads.
    const int key = threadIdx.x % KEYS, key_slot = threadIdx.x / KEYS, KEY_SLOTS = THREADS / KEYS;
    const int lane = threadIdx.x % LANES, head = threadIdx.x / LANES;
    const int dim = threadIdx.x % D, dim_slot = threadIdx.x / D, DIM_SLOTS = THREADS / D;
    float m = -INFINITY_F, l = 0.0f, acc[DECODE_HEADS / DIM_SLOTS];
#pragma unroll
    for (int n = 0; n < DECODE_HEADS / DIM_SLOTS; ++n) acc[n] = 0.0f;
    for (int base = seen; base < all_keys; base += KEYS) {
        put(next, keys, base, staged);
        __syncthreads();
        fetch(next, values, base);
        float scores[DECODE_HEADS / KEY_SLOTS];
#pragma unroll
        for (int n = 0; n < DECODE_HEADS / KEY_SLOTS; ++n) scores[n] = 0.0f;
        for (int d = 0; d < shape.dk; d += 4) {
            Float4 y = *(const Float4*)(staged + key * ROW + d);
#pragma unroll
            for (int n = 0; n < DECODE_HEADS / KEY_SLOTS; ++n) {
                if (key_slot + n * KEY_SLOTS >= heads) break;
                Float4 x = *(const Float4*)(query + (key_slot + n * KEY_SLOTS) * D + d);
#pragma unroll
                for (int e = 0; e < 4; ++e) scores[n] = fmaf(x.v[e], y.v[e], scores[n]);
            }
        }
        const bool sees = base + key < all_keys && base + key >= all_keys - shape.window;
#pragma unroll
        for (int n = 0; n < DECODE_HEADS / KEY_SLOTS; ++n)
            weights[(key_slot + n * KEY_SLOTS) * KEYS + key] = sees ? scores[n] * shape.scale : -INFINITY_F;
        __syncthreads();

        put(next, values, base, staged);
        fetch(next, keys, base + KEYS);
        if (head < DECODE_HEADS) {
            for (int page = 0; page < PAGES && base + page * PAGE < all_keys; ++page) {
                float p[PAGE / LANES], *at = weights + head * KEYS + page * PAGE + lane;
#pragma unroll
                for (int j = 0; j < PAGE / LANES; ++j) p[j] = at[j * LANES];
                float factor = weigh(p, m, l);
#pragma unroll
                for (int j = 0; j < PAGE / LANES; ++j) at[j * LANES] = p[j];
                if (lane == 0) factors[head * PAGES + page] = factor;
            }
        }
        __syncthreads();

        for (int page = 0; page < PAGES && base + page * PAGE < all_keys; ++page) {
#pragma unroll
            for (int n = 0; n < DECODE_HEADS / DIM_SLOTS; ++n)
                acc[n] = acc[n] * factors[(dim_slot + n * DIM_SLOTS) * PAGES + page];
            const int end = min((page + 1) * PAGE, all_keys - base);
#pragma unroll 4
            for (int i = page * PAGE; i < end; i += 4) {
                float y[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) y[e] = staged[(i + e) * ROW + dim];
#pragma unroll
                for (int n = 0; n < DECODE_HEADS / DIM_SLOTS; ++n) {
                    if (dim_slot + n * DIM_SLOTS >= heads) break;
                    Float4 x = *(const Float4*)(weights + (dim_slot + n * DIM_SLOTS) * KEYS + i);
#pragma unroll
                    for (int e = 0; e < 4; ++e) acc[n] = fmaf(x.v[e], y[e], acc[n]);
                }
            }
        }
        __syncthreads();
    }
    if (lane == 0 && head < heads) {
        sums[head] = l;
        lse[(size_t)s.start * shape.heads + h0 + head] = m + exact_ln(l);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < DECODE_HEADS / DIM_SLOTS; ++n) {
        const int h = dim_slot + n * DIM_SLOTS;
        if (h < heads && dim < shape.dv)
            out[((size_t)s.start * shape.heads + h0 + h) * shape.dv + dim] = acc[n] * (1.0f / sums[h]) + 0.0f;
    }
}

// The weight of a query's key and the gradient of its score, from their two products. (A score that the query sees is not
// above its lse; others are thrown away.)
DEVICE void score_gradient(float& p, float& ds, float lse, float delta, float scale) {
    p = exp_to_88(fmaf(p, scale, -lse));
    ds = p * (ds - delta) * scale;
}

const int KEYS_THREADS = 128;

// The gradients of KEYS keys and values of one key/value head, from ROWS query rows at a time. The CPU's zeros for rows
// that see none of the keys, and for keys that a row does not see, are left out or not as it comes: they could
// only change the sign of a zero, and `attention_reduce` adds these sums to +0.
template <int DK, int DV, int KEYS, int ROWS>
DEVICE void backward_keys(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                          const float* delta, const int* segments, const int* key_tiles, float* dk_part, float* dv_part,
                          const Shape& shape) {
    const int GROUPS = KEYS_THREADS / LANES, R = ROWS / GROUPS, C = KEYS / LANES;
    const int KS = DK + 4, VS = DV + 4, PS = KEYS + 16;
    // In the products over rows a thread has four keys and every STEP / 4-th four of the components.
    const int SLOTS = KEYS / 4, STEP = KEYS_THREADS / SLOTS * 4;
    DYNAMIC_SHARED(float, shared);
    float *key = shared, *value = key + KEYS * KS, *query = value + KEYS * VS, *dout = query + ROWS * KS;
    float *weights = dout + ROWS * VS, *dscores = weights + ROWS * PS;

    const int* tile = key_tiles + 2 * blockIdx.x;
    const Segment s = segment(segments, tile[0]);
    const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    const int base = tile[1] + blockIdx.z * KEYS, keys = min(KEYS, s.past + s.rows - base);
    if (keys <= 0) return;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const PageRows at = page_rows(s, 0, 0, base);
    auto key_row = [&](int r) { return row_of(at, r); };
    auto query_row = [](int r) { return (size_t)r; };

    stage<KEYS, DK, KEYS_THREADS>(key, k + (size_t)kv_head * shape.dk, k_stride, shape.dk, keys, 0.0f, key_row);
    stage<KEYS, DV, KEYS_THREADS>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, keys, 0.0f, key_row);
    const int lane = threadIdx.x % LANES, row0 = threadIdx.x / LANES;
    const int slot = threadIdx.x / (STEP / 4) * 4, column = threadIdx.x % (STEP / 4) * 4;
    float acc_k[4][4 * DK / STEP], acc_v[4][4 * DV / STEP];
    clear(acc_k);
    clear(acc_v);
    // Later rows see none of the keys.
    const int end = min(s.rows, base + keys + shape.window - s.past);
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (int r0 = max(0, base - s.past); r0 < end; r0 += ROWS) {
            const size_t first = (size_t)s.start + r0;
            const int rows = min(ROWS, end - r0);
            float row_lse[R], row_delta[R];
#pragma unroll
            for (int i = 0; i < R; ++i) {
                const int row = row0 + i * GROUPS;
                row_lse[i] = row < rows ? lse[(first + row) * shape.heads + h] : 0.0f;
                row_delta[i] = row < rows ? delta[(first + row) * shape.heads + h] : 0.0f;
            }
            __syncthreads();
            stage<ROWS, DK, KEYS_THREADS>(query, q + first * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows, -0.0f,
                                          query_row);
            stage<ROWS, DV, KEYS_THREADS>(dout, dy + first * y_stride + (size_t)h * shape.dv, y_stride, shape.dv, rows, -0.0f,
                                          query_row);
            __syncthreads();
            float p[R][C], ds[R][C];
            clear(p);
            clear(ds);
            multiply_rows<GROUPS * KS, LANES * KS>(p, query + row0 * KS, key + lane * KS, shape.dk);
            multiply_rows<GROUPS * VS, LANES * VS>(ds, dout + row0 * VS, value + lane * VS, shape.dv);
#pragma unroll
            for (int i = 0; i < R; ++i) {
                const int row = row0 + i * GROUPS;
                const int count = row < rows ? s.past + r0 + row + 1 - base : 0;
#pragma unroll
                for (int j = 0; j < C; ++j) {
                    const bool sees = lane + j * LANES < count && lane + j * LANES >= count - shape.window;
                    score_gradient(p[i][j], ds[i][j], row_lse[i], row_delta[i], shape.scale);
                    weights[row * PS + lane + j * LANES] = sees ? p[i][j] : 0.0f;
                    dscores[row * PS + lane + j * LANES] = sees ? ds[i][j] : 0.0f;
                }
            }
            __syncthreads();
            multiply_transposed<PS, VS, STEP>(acc_v, weights + slot, dout + column, rows);
            multiply_transposed<PS, KS, STEP>(acc_k, dscores + slot, query + column, rows);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (slot + i >= keys) break;
        const size_t row = (size_t)s.first + base + slot + i;
        float *to_k = dk_part + row * k_stride + (size_t)kv_head * shape.dk;
        float *to_v = dv_part + row * v_stride + (size_t)kv_head * shape.dv;
#pragma unroll
        for (int c = 0; c < 4 * DK / STEP; ++c) {
            const int d = c / 4 * STEP + column + c % 4;
            if (d < shape.dk) to_k[d] = acc_k[i][c];
        }
#pragma unroll
        for (int c = 0; c < 4 * DV / STEP; ++c) {
            const int d = c / 4 * STEP + column + c % 4;
            if (d < shape.dv) to_v[d] = acc_v[i][c];
        }
    }
}

// The gradients of ROWS queries of one head, from KEYS keys at a time. ROWS divides BACK_ROWS, and tiles begin at
// multiples of that: the CPU adds a zero for every key that a later row of the same 48 sees, and those zeros can make a
// sum of -0 one of +0. So they are added here, and no others.
template <int DK, int DV, int ROWS, int KEYS>
DEVICE void backward_queries(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                             const float* delta, const int* segments, const int* tiles, float* dq, const Shape& shape) {
    const int THREADS = ROWS * 4, GROUPS = THREADS / LANES, R = ROWS / GROUPS, C = KEYS / LANES;
    const int KS = DK + 4, VS = DV + 4, PS = KEYS + 16, W = DK < 64 ? 2 : 4;
    DYNAMIC_SHARED(float, shared);
    float *query = shared, *dout = query + ROWS * KS, *key = dout + ROWS * VS, *value = key + KEYS * KS;
    float* dscores = value + KEYS * VS;

    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h = blockIdx.y, kv_head = h / (shape.heads / shape.kv_heads);
    const int r0 = tile[1] + blockIdx.z * ROWS, rows = min(ROWS, s.rows - r0);
    if (rows <= 0) return;
    const size_t first = (size_t)s.start + r0;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    auto query_row = [](int r) { return (size_t)r; };

    stage<ROWS, DK, THREADS>(query, q + first * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows, -0.0f, query_row);
    stage<ROWS, DV, THREADS>(dout, dy + first * y_stride + (size_t)h * shape.dv, y_stride, shape.dv, rows, -0.0f, query_row);
    const int lane = threadIdx.x % LANES, row0 = threadIdx.x / LANES;
    float row_lse[R], row_delta[R], acc[R][DK / LANES];
    clear(acc);
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int row = row0 + i * GROUPS;
        row_lse[i] = row < rows ? lse[(first + row) * shape.heads + h] : 0.0f;
        row_delta[i] = row < rows ? delta[(first + row) * shape.heads + h] : 0.0f;
    }
    // Keys that the CPU's whole tile sees.
    const int all_keys = s.past + min(tile[1] + BACK_ROWS, s.rows);
    for (int base = first_seen(s.past + tile[1] + 1, shape.window); base < all_keys; base += KEYS) {
        const int keys = min(KEYS, all_keys - base);
        const PageRows at = page_rows(s, 0, 0, base);
        auto key_row = [&](int r) { return row_of(at, r); };
        __syncthreads();
        stage<KEYS, DK, THREADS>(key, k + (size_t)kv_head * shape.dk, k_stride, shape.dk, keys, 0.0f, key_row);
        stage<KEYS, DV, THREADS>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, keys, 0.0f, key_row);
        __syncthreads();
        float p[R][C], ds[R][C];
        clear(p);
        clear(ds);
        multiply_rows<GROUPS * KS, LANES * KS>(p, query + row0 * KS, key + lane * KS, shape.dk);
        multiply_rows<GROUPS * VS, LANES * VS>(ds, dout + row0 * VS, value + lane * VS, shape.dv);
#pragma unroll
        for (int i = 0; i < R; ++i) {
            const int row = row0 + i * GROUPS, count = s.past + r0 + row + 1 - base;
#pragma unroll
            for (int j = 0; j < C; ++j) {
                const int at = lane + j * LANES;
                score_gradient(p[i][j], ds[i][j], row_lse[i], row_delta[i], shape.scale);
                const bool sees = at < count && at >= count - shape.window;
                // Behind the last key -0, which against the keys' padding of +0 adds nothing at all.
                dscores[row * PS + at] = sees ? ds[i][j] : at < keys ? 0.0f : -0.0f;
            }
        }
        // A row's threads are in one warp.
        __syncwarp();
        multiply<GROUPS * PS, KS, W, LANES * W>(acc, dscores + row0 * PS, key + lane * W, keys, shape.dk);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
        const int row = row0 + i * GROUPS;
        float* to = dq + (first + row) * q_stride + (size_t)h * shape.dk;
#pragma unroll
        for (int c = 0; c < DK / LANES; ++c) {
            const int column = c / W * LANES * W + lane * W + c % W;
            if (row < rows && column < shape.dk) to[column] = acc[i][c];
        }
    }
}

}  // namespace attention_kernels

#define ATTENTION_SIZES int heads, int kv_heads, int dk, int dv, float scale, int window
#define ATTENTION_SHAPE attention_kernels::Shape{heads, kv_heads, dk, dv, scale, window}

// Prefill and training.
// q [tokens, heads * dk], k and v [rows, kv_heads * dk or dv] -> out [tokens, heads * dv], lse [tokens, heads].
// tiles: rows of segments in steps of 64. pages is not read unless cached.
// Grid (tiles, heads, 1), for _256 (tiles, heads, 2); 128 threads.
// Dynamic shared memory in bytes: _32 48128, _64 72704, _128 88064, _192 96256, _256 77312.
#define ATTENTION_FORWARD                                                                                               \
    const float *q, const float *k, const float *v, const int *segments, const int *tiles, const int *pages, float *out, \
        float *lse, ATTENTION_SIZES, int cached
#define ATTENTION_FORWARD_ARGUMENTS q, k, v, segments, tiles, pages, out, lse, ATTENTION_SHAPE, cached
KERNEL_BOUNDED(attention_forward_32, 128, 4)(ATTENTION_FORWARD) {
    attention_kernels::forward<64, 32, 32, 32, 64, true>(ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(attention_forward_64, 128, 3)(ATTENTION_FORWARD) {
    attention_kernels::forward<64, 64, 64, 64, 64, true>(ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(attention_forward_128, 128, 2)(ATTENTION_FORWARD) {
    attention_kernels::forward<64, 128, 128, 128, 64, false>(ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(attention_forward_192, 128, 2)(ATTENTION_FORWARD) {
    attention_kernels::forward<64, 192, 128, 96, 32, false>(ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(attention_forward_256, 128, 2)(ATTENTION_FORWARD) {
    attention_kernels::forward<32, 256, 256, 128, 32, false>(ATTENTION_FORWARD_ARGUMENTS);
}

// Decoding from a cache: as the forward kernels for the segments in `list` [n], of one row each, any number of keys.
// Grid (n, kv_heads, ceil(heads / kv_heads / 8)); 256 threads, for _256 512.
// Dynamic shared memory in bytes: _32 46240, _64 41056, _128 40000, _256 76864. There is no _192: it takes _256.
#define ATTENTION_DECODE                                                                                               \
    const float *q, const float *k, const float *v, const int *segments, const int *list, const int *pages, float *out, \
        float *lse, ATTENTION_SIZES
#define ATTENTION_DECODE_ARGUMENTS q, k, v, segments, list, pages, out, lse, ATTENTION_SHAPE
KERNEL_BOUNDED(attention_decode_32, 256, 3)(ATTENTION_DECODE) {
    attention_kernels::decode<32, 256, 256>(ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(attention_decode_64, 256, 3)(ATTENTION_DECODE) {
    attention_kernels::decode<64, 256, 128>(ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(attention_decode_128, 256, 3)(ATTENTION_DECODE) {
    attention_kernels::decode<128, 256, 64>(ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(attention_decode_256, 512, 1)(ATTENTION_DECODE) {
    attention_kernels::decode<256, 512, 64>(ATTENTION_DECODE_ARGUMENTS);
}

// delta[token, head] = y . dy over the dv components of the head; y, dy [tokens, heads * dv]; pairs = tokens * heads.
// Grid ceil(pairs / 16); 256 threads, sixteen for each pair.
KERNEL(attention_delta)(const float* y, const float* dy, float* delta, long long pairs, int dv) {
    const long long pair = (long long)blockIdx.x * (blockDim.x / 16) + threadIdx.x / 16;
    const int lane = threadIdx.x % 16, n = pair < pairs ? dv : 0;
    float acc = 0.0f;
    for (int first = 0; first < n; first += 16) {
        const int d = first + lane;
        // Missing lanes of the last vector add 0 * 0.
        acc = fmaf(d < n ? y[pair * dv + d] : 0.0f, d < n ? dy[pair * dv + d] : 0.0f, acc);
    }
    acc = lane_sum(acc);
    if (lane == 0 && pair < pairs) delta[pair] = acc;
}

// dK and dV of every segment by itself, for training (no cache): for key j of segment s row s.first + j of
// dk_part [sum of past + rows, kv_heads * dk] and dv_part [.., kv_heads * dv]; all rows are written.
// q, k, v, lse as in the forward pass, dy [tokens, heads * dv], delta [tokens, heads].
// key_tiles: the past + rows keys of segments in steps of 64.
// Grid (key tiles, kv_heads, z) with z = 1 for _32 and _64, 2 for _128 and _192, 4 for _256; 128 threads.
// Dynamic shared memory in bytes: _32 48128, _64 72704, _128 79872, _192 96256, _256 70656.
#define ATTENTION_BACKWARD_KEYS                                                                                        \
    const float *q, const float *k, const float *v, const float *dy, const float *lse, const float *delta,             \
        const int *segments, const int *key_tiles, float *dk_part, float *dv_part, ATTENTION_SIZES
#define ATTENTION_BACKWARD_KEYS_ARGUMENTS q, k, v, dy, lse, delta, segments, key_tiles, dk_part, dv_part, ATTENTION_SHAPE
KERNEL_BOUNDED(attention_backward_keys_32, 128, 4)(ATTENTION_BACKWARD_KEYS) {
    attention_kernels::backward_keys<32, 32, 64, 32>(ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_keys_64, 128, 3)(ATTENTION_BACKWARD_KEYS) {
    attention_kernels::backward_keys<64, 64, 64, 32>(ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_keys_128, 128, 2)(ATTENTION_BACKWARD_KEYS) {
    attention_kernels::backward_keys<128, 128, 32, 32>(ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_keys_192, 128, 2)(ATTENTION_BACKWARD_KEYS) {
    attention_kernels::backward_keys<192, 128, 32, 32>(ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_keys_256, 128, 2)(ATTENTION_BACKWARD_KEYS) {
    attention_kernels::backward_keys<256, 256, 16, 16>(ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}

// dq [tokens, heads * dk], for training (no cache); inputs as above.
// tiles: rows of segments in steps of 48. Grid (tiles, heads, 1), for _192 and _256 (tiles, heads, 2);
// 192 threads, for _192 and _256 96. Dynamic shared memory in bytes: _32 47616, _64 76288, _128 93696, _192 78080,
// _256 86272.
#define ATTENTION_BACKWARD_QUERIES                                                                                     \
    const float *q, const float *k, const float *v, const float *dy, const float *lse, const float *delta,             \
        const int *segments, const int *tiles, float *dq, ATTENTION_SIZES
#define ATTENTION_BACKWARD_QUERIES_ARGUMENTS q, k, v, dy, lse, delta, segments, tiles, dq, ATTENTION_SHAPE
KERNEL_BOUNDED(attention_backward_queries_32, 192, 3)(ATTENTION_BACKWARD_QUERIES) {
    attention_kernels::backward_queries<32, 32, 48, 64>(ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_queries_64, 192, 2)(ATTENTION_BACKWARD_QUERIES) {
    attention_kernels::backward_queries<64, 64, 48, 64>(ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_queries_128, 192, 2)(ATTENTION_BACKWARD_QUERIES) {
    attention_kernels::backward_queries<128, 128, 48, 32>(ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_queries_192, 96, 2)(ATTENTION_BACKWARD_QUERIES) {
    attention_kernels::backward_queries<192, 128, 24, 32>(ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(attention_backward_queries_256, 96, 2)(ATTENTION_BACKWARD_QUERIES) {
    attention_kernels::backward_queries<256, 256, 24, 16>(ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}

// The gradient of the batch's keys or values from those of the segments: grad [tokens, width] from part [.., width], where
// width = kv_heads * dk or kv_heads * dv. Each row is the sum, in order and from 0, over the segments that contain it: its
// own and, if that has no past, those that directly follow and have one.
// row_segment [tokens]: the segment that a row of the batch belongs to. Grid (tokens); 128 threads.
KERNEL(attention_reduce)(const float* part, const int* segments, const int* row_segment, float* grad, int n_segments,
                         int width) {
    const int row = blockIdx.x, own = row_segment[row];
    const attention_kernels::Segment s = attention_kernels::segment(segments, own);
    const size_t key = row - s.start;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f + part[((size_t)s.first + s.past + key) * width + i];
        if (s.past == 0) {
            for (int next = own + 1; next < n_segments; ++next) {
                const attention_kernels::Segment t = attention_kernels::segment(segments, next);
                if (t.past == 0) break;
                sum = sum + part[((size_t)t.first + key) * width + i];
            }
        }
        grad[(size_t)row * width + i] = sum;
    }
}

#undef ATTENTION_SIZES
#undef ATTENTION_SHAPE
#undef ATTENTION_FORWARD
#undef ATTENTION_FORWARD_ARGUMENTS
#undef ATTENTION_DECODE
#undef ATTENTION_DECODE_ARGUMENTS
#undef ATTENTION_BACKWARD_KEYS
#undef ATTENTION_BACKWARD_KEYS_ARGUMENTS
#undef ATTENTION_BACKWARD_QUERIES
#undef ATTENTION_BACKWARD_QUERIES_ARGUMENTS
