// Causal attention on tensor cores, for the fast mode: tables, inputs and outputs are those of attention.cu, all of them
// f32; what enters a product is rounded to bf16 on its way to shared memory, sums and the softmax are f32.
//
// A warp has 16 query rows (backward_keys: 16 keys) and walks the others in order; its threads are four to a row. A
// query's result must not depend on the rows beside it, nor on the kernel: keys come in pages of 64 from the start of the
// sequence, one step of the running softmax per page, every product a chain of the same mma's with zeros for what is
// masked or padded. A row of an mma's result depends on the same row of its left side alone.
//
// A kernel's suffix is the greatest dk and dv it serves: _64, _128, _192 (dk to 192, dv to 128), _256.
namespace fast_attention_kernels {

const int PAGE = 64;
const int WARP = 32;
const int ROWS = 64;     // query rows of a tile
const int THREADS = 128; // of all kernels but decode
const float LOG2_E = 1.44269504088896340736f, LN_2 = 0.693147180559945309417f;

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
};

DEVICE Segment segment(const int* segments, int i) { return ((const Segment*)segments)[i]; }

// Where the keys of one page lie: key i in row near + i for i < split, else in row far + i.
struct PageRows {
    int near, far, split;
};
DEVICE PageRows page_rows(const Segment& s, const int* pages, int cached, int base) {
    if (cached) return {pages[s.pages + base / PAGE] * PAGE + base % PAGE, 0, PAGE};
    return {s.trunk + base, s.start - s.past + base, s.past - base};
}
DEVICE size_t row_of(const PageRows& at, int i) { return (size_t)(i < at.split ? at.near + i : at.far + i); }

typedef unsigned short Bf16;

struct __attribute__((aligned(8))) FourBf16 {
    unsigned low, high;
};

// The instructions, and what they do. Fragments of a warp's matrices: lane 4 g + c has, of a left side [16][16], the pairs
// of columns from 2 c in rows g and g + 8, then those from 2 c + 8; of a right side [16][8], the pairs of rows from 2 c and
// from 2 c + 8 in column g; of a result [16][8], the pairs of columns from 2 c in rows g and g + 8.
#ifndef EMULATOR
// Two values rounded to the nearest, ties to even.
DEVICE unsigned pack(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
// 2^x, within 2 units in the last place; exact for 0 and -inf.
DEVICE float exp2_of(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// acc += a b.
DEVICE void mma(float (&acc)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four matrices [8][8]: lane i has the address of row i % 8 of matrix i / 8, and gets of each the pair of columns from 2 c
// in row g; transposed, the pair of rows from 2 c in column g.
DEVICE void load_matrices(unsigned (&r)[4], const Bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
DEVICE void load_transposed(unsigned (&r)[4], const Bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
#else
static unsigned rounded(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
static float exp2_of(float x) { return exp2f(x); }
static float half_of(unsigned pair, int high) { return __int_as_float((int)(high ? pair & 0xffff0000u : pair << 16)); }

static unsigned fragments[emulator::MAX_THREADS][6];
static void mma(float (&acc)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned me = emulator::now, warp = me / WARP * WARP, g = me % WARP / 4, c = me % 4;
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(fragments[me], mine, sizeof mine);
    emulator::yield();
    for (int i = 0; i < 4; ++i) {
        const unsigned *left = fragments[warp + g * 4], *right = fragments[warp + (2 * c + i % 2) * 4];
        for (int k = 0; k < 16; ++k) {
            const float x = half_of(left[k % 8 / 2 * 6 + k / 8 * 2 + i / 2], k % 2);
            acc[i] = fmaf(x, half_of(right[k % 8 / 2 * 6 + 4 + k / 8], k % 2), acc[i]);
        }
    }
    emulator::yield();
}
static const Bf16* matrix_rows[emulator::MAX_THREADS];
static void load_as(unsigned (&r)[4], const Bf16* row, bool transposed) {
    const unsigned me = emulator::now, warp = me / WARP * WARP, g = me % WARP / 4, c = me % 4;
    if ((size_t)row % 16 != 0) abort();
    matrix_rows[me] = row;
    emulator::yield();
    for (int i = 0; i < 4; ++i) {
        const Bf16** of = matrix_rows + warp + i * 8;
        r[i] = transposed ? of[2 * c][g] | (unsigned)of[2 * c + 1][g] << 16 : of[g][2 * c] | (unsigned)of[g][2 * c + 1] << 16;
    }
    emulator::yield();
}
static void load_matrices(unsigned (&r)[4], const Bf16* row) { load_as(r, row, false); }
static void load_transposed(unsigned (&r)[4], const Bf16* row) { load_as(r, row, true); }
#endif

// Where a value of a matrix [..][WIDTH] lies in shared memory: eights of a row change places by the row, so that equal
// columns of eight neighbouring rows are in different banks.
template <int WIDTH> DEVICE int place(int row, int column) {
    return row * WIDTH + ((column / 8 ^ row % 8) * 8 + column % 8);
}

// Whether rows can be moved four values at a time.
DEVICE bool in_fours(const float* x, size_t stride, int dim) {
    return ((size_t)x % 16 | stride % 4 | (size_t)dim % 4) == 0;
}
DEVICE int up_to_16(int n) { return (n + 15) / 16 * 16; }

// Copies `rows` rows of `dim` values to shared memory, [COUNT][WIDTH], with zeros up to COUNT rows and a multiple of 16.
template <bool IN_FOURS, int COUNT, int WIDTH, class RowOf>
DEVICE void stage_as(Bf16* to, const float* x, size_t stride, int dim, int rows, RowOf row) {
    // Loads before stores, so that several are under way.
    const int FOURS = WIDTH / 4, TOTAL = COUNT * FOURS, MOST = TOTAL / THREADS;
    const int EACH = !IN_FOURS ? 1 : MOST % 8 == 0 ? 8 : MOST % 6 == 0 ? 6 : MOST % 4 == 0 ? 4 : 1;
    static_assert(TOTAL % (EACH * THREADS) == 0, "threads have equal parts");
    const int end = up_to_16(dim);
#pragma unroll 1
    for (int first = threadIdx.x; first < TOTAL; first += EACH * THREADS) {
        Float4 v[EACH];
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int i = first + n * THREADS, r = i / FOURS, c = i % FOURS * 4;
            v[n] = Float4{{0.0f, 0.0f, 0.0f, 0.0f}};
            if (r >= rows || c >= dim) continue;
            const float* at = x + row(r) * stride + c;
            if (IN_FOURS) {
                v[n] = *(const Float4*)at;
            } else {
                for (int e = 0; e < min(dim - c, 4); ++e) v[n].v[e] = at[e];
            }
        }
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int i = first + n * THREADS, r = i / FOURS, c = i % FOURS * 4;
            if (c < end)
                *(FourBf16*)(to + place<WIDTH>(r, c)) = FourBf16{pack(v[n].v[0], v[n].v[1]), pack(v[n].v[2], v[n].v[3])};
        }
    }
}
template <int COUNT, int WIDTH, class RowOf>
DEVICE void stage(Bf16* to, const float* x, size_t stride, int dim, int rows, RowOf row) {
    if (in_fours(x, stride, dim))
        stage_as<true, COUNT, WIDTH>(to, x, stride, dim, rows, row);
    else
        stage_as<false, COUNT, WIDTH>(to, x, stride, dim, rows, row);
}

template <int N> DEVICE void clear(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i][j] = 0.0f;
}

// acc[h] [16][8 N] += 16 rows of a from row h * ROWS + a_row . rows of b from row b_row, over their first `depth`
// components.
template <int WIDTH, int H, int N>
DEVICE void multiply_rows(float (&acc)[H][N][4], const Bf16* a, int a_row, const Bf16* b, int b_row, int depth) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int d = 0; d < WIDTH; d += 16) {
        if (d >= depth) break;
        unsigned x[H][4];
#pragma unroll
        for (int h = 0; h < H; ++h) load_matrices(x[h], a + place<WIDTH>(h * ROWS + a_row + lane % 16, d + lane / 16 * 8));
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            unsigned y[4];
            load_matrices(y, b + place<WIDTH>(b_row + j * 8 + lane / 16 * 8 + lane % 8, d + lane / 8 % 2 * 8));
#pragma unroll
            for (int h = 0; h < H; ++h) {
                mma(acc[h][j], x[h], y[0], y[1]);
                mma(acc[h][j + 1], x[h], y[2], y[3]);
            }
        }
    }
}

// acc[h] [16][WIDTH] += a[h] [16][16] . the 16 rows of b from row b_row, their first `columns` columns.
template <int WIDTH, int H>
DEVICE void multiply(float (&acc)[H][WIDTH / 8][4], const unsigned (&a)[H][4], const Bf16* b, int b_row, int columns) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < WIDTH; n += 16) {
        if (n >= columns) break;
        unsigned y[4];
        load_transposed(y, b + place<WIDTH>(b_row + lane % 16, n + lane / 16 * 8));
#pragma unroll
        for (int h = 0; h < H; ++h) {
            mma(acc[h][n / 8], a[h], y[0], y[1]);
            mma(acc[h][n / 8 + 1], a[h], y[2], y[3]);
        }
    }
}

// Two neighbouring results [16][8] as a left side.
DEVICE void as_left(unsigned (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = pack(x[0], x[1]);
    a[1] = pack(x[2], x[3]);
    a[2] = pack(y[0], y[1]);
    a[3] = pack(y[2], y[3]);
}

// Writes the thread's part of row `half` (0: g, 1: g + 8) of acc * factor + 0, the first `dim` columns.
template <int N> DEVICE void store_row(float* to, const float (&acc)[N][4], int half, float factor, int dim) {
    const bool in_pairs = ((size_t)to % 8 | (size_t)dim % 2) == 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const int d = n * 8 + threadIdx.x % 4 * 2;
        const float x = acc[n][half * 2] * factor + 0.0f, y = acc[n][half * 2 + 1] * factor + 0.0f;
        if (in_pairs) {
            if (d < dim) *(Float2*)(to + d) = Float2{x, y};
        } else {
            if (d < dim) to[d] = x;
            if (d + 1 < dim) to[d + 1] = y;
        }
    }
}

// A page's scores of a warp's 16 rows; scaled for powers of 2 rather than e.
typedef float Scores[PAGE / 8][4];

// -inf for keys that a row does not see: row g sees the first `first_count`, row g + 8 the first `second_count`.
DEVICE void scale_scores(Scores& s, float scale, int first_count, int second_count) {
#pragma unroll
    for (int j = 0; j < PAGE / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int key = j * 8 + threadIdx.x % 4 * 2 + e % 2;
            s[j][e] = key < (e < 2 ? first_count : second_count) ? s[j][e] * scale : -INFINITY_F;
        }
}

// The greatest score of a row; every thread of the four that share it gets it.
DEVICE float row_max(const Scores& s, int half) {
    float top = -INFINITY_F;
#pragma unroll
    for (int j = 0; j < PAGE / 8; ++j) top = fmaxf(top, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    return fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
}

// Turns a row's scores into weights relative to `top`; their sum.
DEVICE float weigh(Scores& s, int half, float top) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PAGE / 8; ++j) {
        float &x = s[j][half * 2], &y = s[j][half * 2 + 1];
        x = exp2_of(x - top);
        y = exp2_of(y - top);
        sum = sum + (x + y);
    }
    sum = sum + __shfl_xor_sync(FULL_WARP, sum, 1);
    return sum + __shfl_xor_sync(FULL_WARP, sum, 2);
}

// The running softmax of a row: the greatest score so far, and the sum of weights relative to it.
struct Running {
    float m, l;
};

// Takes in a page; the factor for sums of the pages before. One of which the row sees nothing is a step by 1.
DEVICE float step(Running& r, float top, float sum) {
    const float factor = exp2_of(r.m - top);
    r.l = fmaf(r.l, factor, sum);
    r.m = top;
    return factor;
}
DEVICE float lse_of(const Running& r) { return r.m * LN_2 + exact_ln(r.l); }

template <int N> DEVICE void scale_rows(float (&acc)[N][4], float first, float second) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
        acc[n][0] *= first;
        acc[n][1] *= first;
        acc[n][2] *= second;
        acc[n][3] *= second;
    }
}

// 64 query rows of HEADS heads, which have a key/value head in common.
template <int DK, int DV, int HEADS>
DEVICE void forward(const float* q, const float* k, const float* v, const int* segments, const int* tiles,
                    const int* pages, float* out, float* lse, const Shape& shape, int cached) {
    DYNAMIC_SHARED(Bf16, shared);
    Bf16 *query = shared, *key = query + HEADS * ROWS * DK, *value = key + PAGE * DK;

    // Last tiles first: they have the most keys.
    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h0 = blockIdx.y * HEADS, kv_head = h0 / (shape.heads / shape.kv_heads);
    const int r0 = tile[1], rows = min(ROWS, s.rows - r0);
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16;
    const size_t q_stride = (size_t)shape.heads * shape.dk;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;

    for (int h = 0; h < HEADS; ++h)
        stage<ROWS, DK>(query + h * ROWS * DK, q + (s.start + r0) * q_stride + (size_t)(h0 + h) * shape.dk, q_stride,
                        shape.dk, rows, [](int r) { return (size_t)r; });
    Running running[HEADS][2];
    float acc[HEADS][DV / 8][4];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        clear(acc[h]);
        running[h][0] = running[h][1] = Running{-INFINITY_F, 0.0f};
    }
    const int all_keys = s.past + r0 + rows;
    for (int base = 0; base < all_keys; base += PAGE) {
        const PageRows at = page_rows(s, pages, cached, base);
        auto key_row = [&](int r) { return row_of(at, r); };
        __syncthreads();
        stage<PAGE, DK>(key, k + (size_t)kv_head * shape.dk, k_stride, shape.dk, all_keys - base, key_row);
        stage<PAGE, DV>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, all_keys - base, key_row);
        __syncthreads();
        Scores p[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) clear(p[h]);
        multiply_rows<DK>(p, query, warp_row, key, 0, shape.dk);
        const int count = s.past + r0 + warp_row + lane / 4 + 1 - base;
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            scale_scores(p[h], shape.scale * LOG2_E, count, count + 8);
            float factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float top = fmaxf(running[h][half].m, row_max(p[h], half));
                factor[half] = step(running[h][half], top, weigh(p[h], half, top));
            }
            scale_rows(acc[h], factor[0], factor[1]);
        }
#pragma unroll
        for (int j = 0; j < PAGE / 16; ++j) {
            unsigned x[HEADS][4];
#pragma unroll
            for (int h = 0; h < HEADS; ++h) as_left(x[h], p[h][2 * j], p[h][2 * j + 1]);
            multiply<DV>(acc, x, value, j * 16, shape.dv);
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane / 4 + half * 8;
            if (row >= rows) continue;
            const size_t pair = (size_t)(s.start + r0 + row) * shape.heads + h0 + h;
            store_row(out + pair * shape.dv, acc[h], half, 1.0f / running[h][half].l, shape.dv);
            if (lane % 4 == 0) lse[pair] = lse_of(running[h][half]);
        }
}

const int DECODE_WARPS = 8;
const int DECODE_HEADS = 16;

// The two values at x, of which n are inside.
template <bool IN_FOURS> DEVICE unsigned load_two(const float* x, int n) {
    if (n <= 0) return 0;
    if (IN_FOURS) {
        const Float2 two = *(const Float2*)x;
        return pack(two.a, two.b);
    }
    return pack(x[0], n > 1 ? x[1] : 0.0f);
}

// W values at x, of which n are inside.
template <bool IN_FOURS, int W> DEVICE void load_values(float (&r)[W], const float* x, int n) {
#pragma unroll
    for (int w = 0; w < W; ++w) r[w] = 0.0f;
    if (IN_FOURS && W == 4) {
        if (n > 0) *(Float4*)r = *(const Float4*)x;
    } else if (IN_FOURS && W == 2) {
        if (n > 0) *(Float2*)r = *(const Float2*)x;
    } else {
#pragma unroll
        for (int w = 0; w < W; ++w)
            if (w < n) r[w] = x[w];
    }
}

// Up to 16 query heads of one key/value head as the rows of the mma's. Each warp scores a page of its own; then the
// softmax and the sums over values go through the pages in order, each warp with a part of the values' components. As no
// two warps want the same keys or values, these come straight from the cache into fragments.
template <bool IN_FOURS, int DK, int DV>
DEVICE void decode_as(const float* q, const float* k, const float* v, const int* segments, const int* list,
                      const int* pages, float* out, float* lse, const Shape& shape) {
    const int STEP = DECODE_WARPS * PAGE, W = DV / DECODE_WARPS / 8;
    DYNAMIC_SHARED(Bf16, shared);
    Bf16 *query = shared, *weights = query + DECODE_HEADS * DK;
    float *tops = (float*)(weights + DECODE_HEADS * STEP), *sums = tops + DECODE_HEADS * DECODE_WARPS;

    const Segment s = segment(segments, list[blockIdx.x]);
    const int group = shape.heads / shape.kv_heads, kv_head = blockIdx.y;
    const int h0 = kv_head * group + blockIdx.z * DECODE_HEADS;
    const int heads = min(DECODE_HEADS, group - (int)blockIdx.z * DECODE_HEADS);
    const int all_keys = s.past + 1;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const float* my_q = q + ((size_t)s.start * shape.heads + h0) * shape.dk;
    for (int i = threadIdx.x; i < DECODE_HEADS * DK; i += DECODE_WARPS * WARP) {
        const int row = i / DK, d = i % DK;
        query[place<DK>(row, d)] = (Bf16)pack(row < heads && d < shape.dk ? my_q[(size_t)row * shape.dk + d] : 0.0f, 0.0f);
    }
    __syncthreads();

    // This warp's components: column n of its j-th result is first_column + n * W + j.
    const int first_column = warp * 8 * W;
    const float* my_values = v + (size_t)kv_head * shape.dv + first_column + g * W;
    const int my_count = shape.dv - first_column - g * W;
    Running running[2] = {{-INFINITY_F, 0.0f}, {-INFINITY_F, 0.0f}};
    float acc[W][4], y[PAGE / 16][4][W];
    clear(acc);
    auto fetch = [&](int page, int first) {
        const float* from = my_values + ((size_t)page * PAGE + 2 * c) * v_stride;
#pragma unroll
        for (int j = 0; j < PAGE / 16; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = j * 16 + i / 2 * 8 + i % 2;
                load_values<IN_FOURS>(y[j][i], from + key * v_stride, first + key + 2 * c < all_keys ? my_count : 0);
            }
    };
    for (int base = 0; base < all_keys; base += STEP) {
        const int count = all_keys - base - warp * PAGE, pages_here = min(DECODE_WARPS, (all_keys - base + PAGE - 1) / PAGE);
        const int* my_pages = pages + s.pages + base / PAGE;
        Scores p;
        clear(p);
        if (warp < pages_here) {
            // All of the page: scores of what lies behind the last key are replaced below.
            const float* from = k + ((size_t)my_pages[warp] * PAGE + g) * k_stride + (size_t)kv_head * shape.dk;
#pragma unroll IN_FOURS ? 2 : 1
            for (int d = 0; d < shape.dk; d += 16) {
                unsigned x[4], z[PAGE / 8][2];
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int at = d + i * 8 + 2 * c;
                        z[j][i] = load_two<IN_FOURS>(from + j * 8 * k_stride + at, shape.dk - at);
                    }
                load_matrices(x, query + place<DK>(lane % 16, d + lane / 16 * 8));
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j) mma(p[j], x, z[j][0], z[j][1]);
            }
        }
        // Values are on their way while others are waited for.
        fetch(my_pages[0], base);
        if (warp < pages_here) {
            scale_scores(p, shape.scale * LOG2_E, count, count);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float top = row_max(p, half);
                if (c == 0) tops[warp * DECODE_HEADS + g + half * 8] = top;
            }
        }
        __syncthreads();
        if (warp < pages_here) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = running[half].m;
                for (int i = 0; i <= warp; ++i) top = fmaxf(top, tops[i * DECODE_HEADS + g + half * 8]);
                const float sum = weigh(p, half, top);
                if (c == 0) sums[warp * DECODE_HEADS + g + half * 8] = sum;
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j)
                    *(unsigned*)(weights + place<STEP>(g + half * 8, warp * PAGE + j * 8 + 2 * c)) =
                        pack(p[j][half * 2], p[j][half * 2 + 1]);
            }
        }
        __syncthreads();
        for (int page = 0; page < pages_here; ++page) {
            unsigned z[PAGE / 16][2][W];
#pragma unroll
            for (int j = 0; j < PAGE / 16; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int w = 0; w < W; ++w) z[j][i][w] = pack(y[j][2 * i][w], y[j][2 * i + 1][w]);
            if (page + 1 < pages_here) fetch(my_pages[page + 1], base + (page + 1) * PAGE);
            float factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = page * DECODE_HEADS + g + half * 8;
                factor[half] = step(running[half], fmaxf(running[half].m, tops[at]), sums[at]);
            }
            scale_rows(acc, factor[0], factor[1]);
#pragma unroll
            for (int j = 0; j < PAGE / 16; ++j) {
                unsigned x[4];
                load_matrices(x, weights + place<STEP>(lane % 16, page * PAGE + j * 16 + lane / 16 * 8));
#pragma unroll
                for (int w = 0; w < W; ++w) mma(acc[w], x, z[j][0][w], z[j][1][w]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = g + half * 8;
        if (row >= heads) continue;
        const size_t pair = (size_t)s.start * shape.heads + h0 + row;
        const float inv = 1.0f / running[half].l;
#pragma unroll
        for (int i = 0; i < 2 * W; ++i) {
            const int column = first_column + 2 * c * W + i;
            if (column < shape.dv) out[pair * shape.dv + column] = acc[i % W][half * 2 + i / W] * inv + 0.0f;
        }
        if (warp == 0 && c == 0) lse[pair] = lse_of(running[half]);
    }
}
template <int DK, int DV>
DEVICE void decode(const float* q, const float* k, const float* v, const int* segments, const int* list,
                   const int* pages, float* out, float* lse, const Shape& shape) {
    if (in_fours(k, 0, shape.dk) && in_fours(v, 0, shape.dv))
        decode_as<true, DK, DV>(q, k, v, segments, list, pages, out, lse, shape);
    else
        decode_as<false, DK, DV>(q, k, v, segments, list, pages, out, lse, shape);
}

// From the products q . k and dy . v of a query and a key: the key's weight, and the gradient of q . k. Zeros if the query
// does not see the key. `lse` is one to the base of 2.
DEVICE void score_gradient(float& p, float& ds, bool sees, float lse, float delta, float scale) {
    p = sees ? exp2_of(fmaf(p, scale * LOG2_E, -lse)) : 0.0f;
    ds = sees ? p * (ds - delta) * scale : 0.0f;
}

// The gradients of 64 keys (KEYS) and values (VALUES) of one key/value head, COUNT query rows at a time, of these AT_ONCE
// in a warp's products. Its rows are keys.
template <int DK, int DV, int COUNT, int AT_ONCE, bool KEYS, bool VALUES>
DEVICE void backward_keys(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                          const float* delta, const int* segments, const int* key_tiles, float* dk_part, float* dv_part,
                          const Shape& shape) {
    DYNAMIC_SHARED(Bf16, shared);
    Bf16 *key = shared, *value = key + PAGE * DK, *query = value + PAGE * DV, *dout = query + COUNT * DK;
    float *row_lse = (float*)(dout + COUNT * DV), *row_delta = row_lse + COUNT;

    const int* tile = key_tiles + 2 * blockIdx.x;
    const Segment s = segment(segments, tile[0]);
    const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    const int base = tile[1], keys = min(PAGE, s.past + s.rows - base);
    const int lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4, warp_key = threadIdx.x / WARP * 16;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const PageRows at = page_rows(s, 0, 0, base);
    auto key_row = [&](int r) { return row_of(at, r); };
    auto query_row = [](int r) { return (size_t)r; };

    stage<PAGE, DK>(key, k + (size_t)kv_head * shape.dk, k_stride, shape.dk, keys, key_row);
    if (KEYS) stage<PAGE, DV>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, keys, key_row);
    float acc_k[1][KEYS ? DK / 8 : 1][4], acc_v[1][VALUES ? DV / 8 : 1][4];
    clear(acc_k[0]);
    clear(acc_v[0]);
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (int r0 = max(0, base - s.past); r0 < s.rows; r0 += COUNT) {
            const size_t first = (size_t)s.start + r0;
            const int rows = min(COUNT, s.rows - r0);
            __syncthreads();
            stage<COUNT, DK>(query, q + first * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows, query_row);
            stage<COUNT, DV>(dout, dy + first * y_stride + (size_t)h * shape.dv, y_stride, shape.dv, rows, query_row);
            if (threadIdx.x < COUNT) {
                const size_t pair = (first + threadIdx.x) * shape.heads + h;
                const bool inside = (int)threadIdx.x < rows;
                row_lse[threadIdx.x] = inside ? lse[pair] * LOG2_E : 0.0f;
                row_delta[threadIdx.x] = inside ? delta[pair] : 0.0f;
            }
            __syncthreads();
#pragma unroll 1
            for (int r = 0; r < rows; r += AT_ONCE) {
                float p[1][AT_ONCE / 8][4], ds[1][AT_ONCE / 8][4];
                clear(p[0]);
                clear(ds[0]);
                multiply_rows<DK>(p, key, warp_key, query, r, shape.dk);
                if (KEYS) multiply_rows<DV>(ds, value, warp_key, dout, r, shape.dv);
#pragma unroll
                for (int j = 0; j < AT_ONCE / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int row = r + j * 8 + 2 * c + e % 2, my_key = base + warp_key + g + e / 2 * 8;
                        const bool sees = row < rows && my_key <= s.past + r0 + row;
                        score_gradient(p[0][j][e], ds[0][j][e], sees, row_lse[row], row_delta[row], shape.scale);
                    }
#pragma unroll
                for (int j = 0; j < AT_ONCE / 8; j += 2) {
                    unsigned x[1][4];
                    as_left(x[0], p[0][j], p[0][j + 1]);
                    if constexpr (VALUES) multiply<DV>(acc_v, x, dout, r + j * 8, shape.dv);
                    as_left(x[0], ds[0][j], ds[0][j + 1]);
                    if constexpr (KEYS) multiply<DK>(acc_k, x, query, r + j * 8, shape.dk);
                }
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int my_key = warp_key + g + half * 8;
        if (my_key >= keys) continue;
        const size_t row = ((size_t)s.first + base + my_key) * shape.kv_heads + kv_head;
        if (KEYS) store_row(dk_part + row * shape.dk, acc_k[0], half, 1.0f, shape.dk);
        if (VALUES) store_row(dv_part + row * shape.dv, acc_v[0], half, 1.0f, shape.dv);
    }
}

// The gradients of 64 queries of one head, from COUNT keys at a time, of these AT_ONCE in a warp's products.
template <int DK, int DV, int COUNT, int AT_ONCE>
DEVICE void backward_queries(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                             const float* delta, const int* segments, const int* tiles, float* dq, const Shape& shape) {
    DYNAMIC_SHARED(Bf16, shared);
    Bf16 *query = shared, *dout = query + ROWS * DK, *key = dout + ROWS * DV, *value = key + COUNT * DK;

    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h = blockIdx.y, kv_head = h / (shape.heads / shape.kv_heads);
    const int r0 = tile[1], rows = min(ROWS, s.rows - r0);
    const int lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4, warp_row = threadIdx.x / WARP * 16;
    const size_t first = (size_t)s.start + r0;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    auto query_row = [](int r) { return (size_t)r; };

    stage<ROWS, DK>(query, q + first * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows, query_row);
    stage<ROWS, DV>(dout, dy + first * y_stride + (size_t)h * shape.dv, y_stride, shape.dv, rows, query_row);
    float row_lse[2], row_delta[2], acc[1][DK / 8][4];
    clear(acc[0]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + g + half * 8;
        const size_t pair = (first + row) * shape.heads + h;
        row_lse[half] = row < rows ? lse[pair] * LOG2_E : 0.0f;
        row_delta[half] = row < rows ? delta[pair] : 0.0f;
    }
    const int all_keys = s.past + r0 + rows;
    for (int base = 0; base < all_keys; base += COUNT) {
        const int keys = min(COUNT, all_keys - base);
        const PageRows at = page_rows(s, 0, 0, base);
        auto key_row = [&](int r) { return row_of(at, r); };
        __syncthreads();
        stage<COUNT, DK>(key, k + (size_t)kv_head * shape.dk, k_stride, shape.dk, keys, key_row);
        stage<COUNT, DV>(value, v + (size_t)kv_head * shape.dv, v_stride, shape.dv, keys, key_row);
        __syncthreads();
#pragma unroll 1
        for (int i = 0; i < keys; i += AT_ONCE) {
            float p[1][AT_ONCE / 8][4], ds[1][AT_ONCE / 8][4];
            clear(p[0]);
            clear(ds[0]);
            multiply_rows<DK>(p, query, warp_row, key, i, shape.dk);
            multiply_rows<DV>(ds, dout, warp_row, value, i, shape.dv);
            const int count = s.past + r0 + warp_row + g + 1 - base - i;
#pragma unroll
            for (int j = 0; j < AT_ONCE / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    score_gradient(p[0][j][e], ds[0][j][e], j * 8 + 2 * c + e % 2 < count + e / 2 * 8, row_lse[e / 2],
                                   row_delta[e / 2], shape.scale);
#pragma unroll
            for (int j = 0; j < AT_ONCE / 8; j += 2) {
                unsigned x[1][4];
                as_left(x[0], ds[0][j], ds[0][j + 1]);
                multiply<DK>(acc, x, key, i + j * 8, shape.dk);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + g + half * 8;
        if (row < rows) store_row(dq + ((first + row) * shape.heads + h) * shape.dk, acc[0], half, 1.0f, shape.dk);
    }
}

}  // namespace fast_attention_kernels

#define FAST_ATTENTION_SIZES int heads, int kv_heads, int dk, int dv, float scale
#define FAST_ATTENTION_SHAPE fast_attention_kernels::Shape{heads, kv_heads, dk, dv, scale}

// Prefill and training.
// q [tokens, heads * dk], k and v [rows, kv_heads * dk or dv] -> out [tokens, heads * dv], lse [tokens, heads].
// tiles: rows of segments in steps of 64. pages is not read unless cached.
// Grid (tiles, heads); 128 threads. Dynamic shared memory in bytes: _64 24576, _128 49152, _192 65536, _256 98304.
#define FAST_ATTENTION_FORWARD                                                                                          \
    const float *q, const float *k, const float *v, const int *segments, const int *tiles, const int *pages, float *out, \
        float *lse, FAST_ATTENTION_SIZES, int cached
#define FAST_ATTENTION_FORWARD_ARGUMENTS q, k, v, segments, tiles, pages, out, lse, FAST_ATTENTION_SHAPE, cached
KERNEL_BOUNDED(fast_attention_forward_64, 128, 4)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<64, 64, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_128, 128, 3)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<128, 128, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_192, 128, 3)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<192, 128, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_256, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<256, 256, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}

// As above with two heads to a block, which halves the reads of keys and values; heads / kv_heads must be even. The bits
// are the same. Grid (tiles, heads / 2); 128 threads. Dynamic shared memory in bytes: _64 32768, _128 65536, _192 90112.
KERNEL_BOUNDED(fast_attention_forward_pairs_64, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<64, 64, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_pairs_128, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<128, 128, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_pairs_192, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<192, 128, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}

// Decoding from a cache: as the forward kernels for the segments in `list` [n], of one row each, any number of keys.
// Grid (n, kv_heads, ceil(heads / kv_heads / 16)); 256 threads.
// Dynamic shared memory in bytes: _64 19456, _128 21504, _192 23552, _256 25600.
#define FAST_ATTENTION_DECODE                                                                                          \
    const float *q, const float *k, const float *v, const int *segments, const int *list, const int *pages, float *out, \
        float *lse, FAST_ATTENTION_SIZES
#define FAST_ATTENTION_DECODE_ARGUMENTS q, k, v, segments, list, pages, out, lse, FAST_ATTENTION_SHAPE
KERNEL_BOUNDED(fast_attention_decode_64, 256, 2)(FAST_ATTENTION_DECODE) {
    fast_attention_kernels::decode<64, 64>(FAST_ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_decode_128, 256, 2)(FAST_ATTENTION_DECODE) {
    fast_attention_kernels::decode<128, 128>(FAST_ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_decode_192, 256, 2)(FAST_ATTENTION_DECODE) {
    fast_attention_kernels::decode<192, 128>(FAST_ATTENTION_DECODE_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_decode_256, 256, 1)(FAST_ATTENTION_DECODE) {
    fast_attention_kernels::decode<256, 256>(FAST_ATTENTION_DECODE_ARGUMENTS);
}

// dK and dV of every segment by itself, for training (no cache): for key j of segment s row s.first + j of
// dk_part [sum of past + rows, kv_heads * dk] and dv_part [.., kv_heads * dv]; all rows are written.
// q, k, v, lse as in the forward pass, dy [tokens, heads * dv], delta [tokens, heads] from attention_delta.
// key_tiles: the past + rows keys of segments in steps of 64.
// Grid (key tiles, kv_heads, 1), for _256 (key tiles, kv_heads, 2): a block has either keys or values; 128 threads.
// Dynamic shared memory in bytes: _64 33280, _128 66048, _192 82432, _256 82048.
#define FAST_ATTENTION_BACKWARD_KEYS                                                                                   \
    const float *q, const float *k, const float *v, const float *dy, const float *lse, const float *delta,             \
        const int *segments, const int *key_tiles, float *dk_part, float *dv_part, FAST_ATTENTION_SIZES
#define FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS                                                                         \
    q, k, v, dy, lse, delta, segments, key_tiles, dk_part, dv_part, FAST_ATTENTION_SHAPE
KERNEL_BOUNDED(fast_attention_backward_keys_64, 128, 3)(FAST_ATTENTION_BACKWARD_KEYS) {
    fast_attention_kernels::backward_keys<64, 64, 64, 32, true, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_keys_128, 128, 2)(FAST_ATTENTION_BACKWARD_KEYS) {
    fast_attention_kernels::backward_keys<128, 128, 64, 32, true, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_keys_192, 128, 2)(FAST_ATTENTION_BACKWARD_KEYS) {
    fast_attention_kernels::backward_keys<192, 128, 64, 16, true, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_keys_256, 128, 2)(FAST_ATTENTION_BACKWARD_KEYS) {
    if (blockIdx.z == 0)
        fast_attention_kernels::backward_keys<256, 256, 16, 16, true, false>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
    else
        fast_attention_kernels::backward_keys<256, 256, 16, 16, false, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}

// dq [tokens, heads * dk], for training (no cache); inputs as above.
// tiles: rows of segments in steps of 64. Grid (tiles, heads); 128 threads.
// Dynamic shared memory in bytes: _64 32768, _128 65536, _192 81920, _256 98304.
#define FAST_ATTENTION_BACKWARD_QUERIES                                                                                \
    const float *q, const float *k, const float *v, const float *dy, const float *lse, const float *delta,             \
        const int *segments, const int *tiles, float *dq, FAST_ATTENTION_SIZES
#define FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS q, k, v, dy, lse, delta, segments, tiles, dq, FAST_ATTENTION_SHAPE
KERNEL_BOUNDED(fast_attention_backward_queries_64, 128, 3)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<64, 64, 64, 32>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_128, 128, 3)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<128, 128, 64, 32>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_192, 128, 2)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<192, 128, 64, 32>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_256, 128, 2)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<256, 256, 32, 16>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}

#undef FAST_ATTENTION_SIZES
#undef FAST_ATTENTION_SHAPE
#undef FAST_ATTENTION_FORWARD
#undef FAST_ATTENTION_FORWARD_ARGUMENTS
#undef FAST_ATTENTION_DECODE
#undef FAST_ATTENTION_DECODE_ARGUMENTS
#undef FAST_ATTENTION_BACKWARD_KEYS
#undef FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS
#undef FAST_ATTENTION_BACKWARD_QUERIES
#undef FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS
