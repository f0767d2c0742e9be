// Causal attention on tensor cores, for the fast mode: tables and results are those of attention.cu; queries, keys, values
// and the result's gradients come rounded to bf16, sums and the softmax are f32.
//
// A warp has 16 query rows (backward_keys: 16 keys) and walks the others in order; its threads are four to a row. A
// query's result must not depend on the rows beside it, nor on the kernel: keys come in pages of 64 from the start of the
// sequence, one step of the running softmax per page, every product a chain of the same mma's with zeros for what is
// masked or padded. A row of an mma's result depends on the same row of its left side alone.
//
// A kernel's suffix is the greatest dk and dv it serves: _64, _128, _192 (dk to 192, dv to 128), _256. Rows that begin at
// multiples of 16 bytes and dims that are multiples of 8 are copied eight values at a time; others are much slower.
namespace fast_attention_kernels {

using namespace tensor_cores;

const int PAGE = 64;
const int WARP = 32;
const int ROWS = 64;     // query rows of a tile
const int THREADS = 128; // of all kernels but decode

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

DEVICE Segment segment(const int* segments, int i) { return ((const Segment*)segments)[i]; }

// Where consecutive keys lie: key i in row near + i for i < split, else in row far + i.
struct PageRows {
    int near, far, split;
};
DEVICE PageRows page_rows(const Segment& s, const int* pages, int cached, int base) {
    if (cached) return {pages[s.pages + base / PAGE] * PAGE + base % PAGE, 0, PAGE};
    return {s.trunk + base, s.start - s.past + base, s.past - base};
}

DEVICE int lane() { return threadIdx.x % WARP; }
DEVICE int warp() { return threadIdx.x / WARP; }

// A matrix [..][WIDTH] in shared memory. Eights of values change places within a row by the row's number, so that the
// same ones of eight neighbouring rows lie in different banks.
template <int WIDTH> struct Matrix {
    static constexpr int LINE = WIDTH * 2, GROUPS = WIDTH / 64;
    static_assert(WIDTH % 64 == 0, "eights of values change places within 64");
    Address start;

    DEVICE_MEMBER Address place(int row, int eight) const {
        return start + row * LINE + eight / 8 * 128 + (eight % 8 ^ row % 8) * 16;
    }

    // Starts to copy COUNT rows of `dim` values, with zeros behind and for rows from `rows` on. Row r is x[row(r)].
    template <int COUNT, class RowOf>
    DEVICE_MEMBER void copy(const Bf16* x, size_t stride, int dim, int rows, RowOf row) const {
        const int eight = threadIdx.x % 8, first = threadIdx.x / 8, AT_ONCE = THREADS / 8;
        const Address to = place(first, eight);
        if (((size_t)x % 16 | stride % 8 | (size_t)dim % 8) == 0) {
#pragma unroll
            for (int i = 0; i < COUNT / AT_ONCE; ++i) {
                const int r = first + i * AT_ONCE;
                const Bf16* from = x + (r < rows ? (size_t)row(r) * stride : 0) + eight * 8;
#pragma unroll
                for (int g = 0; g < GROUPS; ++g) {
                    const bool exists = r < rows && eight * 8 + g * 64 < dim;
                    start_copy(to + i * AT_ONCE * LINE + g * 128, exists ? from + g * 64 : x, exists ? 16 : 0);
                }
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < COUNT / AT_ONCE * GROUPS; ++i) {
                const int r = first + i / GROUPS * AT_ONCE, column = eight * 8 + i % GROUPS * 64;
                const Bf16* from = x + (r < rows ? (size_t)row(r) * stride : 0) + column;
                copy_values(to + i / GROUPS * AT_ONCE * LINE + i % GROUPS * 128, from, r < rows ? dim - column : 0);
            }
        }
    }
    DEVICE_MEMBER static void copy_values(Address to, const Bf16* from, int count) {
        Pair x[4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const Pair value = j < count ? from[j] : 0;
            x[j / 2] = j % 2 ? x[j / 2] | value << 16 : value;
        }
        store_shared(to, x);
    }
};

// Where a lane's reads of 16 x 16 values begin whose first row is a multiple of 8; those `steps` sixteens of columns
// further are at, a constant away from one of four addresses.
template <int WIDTH> struct Reads {
    Address row;
    int turn;

    // As a left side, or, turned, as a right side whose rows are steps: rows 0-7 and 8-15 of the first eight columns, then
    // of the next.
    DEVICE_MEMBER static Reads down(const Matrix<WIDTH>& m, int first) {
        return {m.start + (first + lane() % 16) * Matrix<WIDTH>::LINE, (lane() / 16 ^ lane() % 8) * 16};
    }
    // As a right side whose rows are columns of the result: both eights of columns of rows 0-7, then of rows 8-15.
    DEVICE_MEMBER static Reads across(const Matrix<WIDTH>& m, int first) {
        return {m.start + (first + lane() / 16 * 8 + lane() % 8) * Matrix<WIDTH>::LINE,
                (lane() / 8 % 2 ^ lane() % 8) * 16};
    }
    DEVICE_MEMBER Address at(int step, int rows) const {
        return row + (turn ^ step % 4 * 32) + step / 4 * 128 + rows * Matrix<WIDTH>::LINE;
    }
};

template <int N> DEVICE void clear(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i][j] = 0.0f;
}

// acc[h] [16][8 N] += the 16 rows of a, ROWS * h further . the rows of b.
template <int WIDTH, int H, int N>
DEVICE void multiply_rows(float (&acc)[H][N][4], const Reads<WIDTH>& a, const Reads<WIDTH>& b) {
#pragma unroll
    for (int d = 0; d < WIDTH / 16; ++d) {
        Pair x[H][4];
#pragma unroll
        for (int h = 0; h < H; ++h) load_matrices<false>(a.at(d, h * ROWS), x[h]);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            Pair y[4];
            load_matrices<false>(b.at(d, j * 8), y);
#pragma unroll
            for (int h = 0; h < H; ++h) {
                multiply_add(acc[h][j], x[h], y);
                multiply_add(acc[h][j + 1], x[h], y + 2);
            }
        }
    }
}

// acc[h] [16][WIDTH] += a[h] [16][16] . 16 rows of b.
template <int WIDTH, int H>
DEVICE void multiply(float (&acc)[H][WIDTH / 8][4], const Pair (&a)[H][4], const Reads<WIDTH>& b, int row) {
#pragma unroll
    for (int n = 0; n < WIDTH / 16; ++n) {
        Pair y[4];
        load_matrices<true>(b.at(n, row), y);
#pragma unroll
        for (int h = 0; h < H; ++h) {
            multiply_add(acc[h][2 * n], a[h], y);
            multiply_add(acc[h][2 * n + 1], a[h], y + 2);
        }
    }
}

// Two neighbouring results [16][8] as a left side.
DEVICE void as_left(Pair (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = round_pair(x[0], x[1]);
    a[1] = round_pair(x[2], x[3]);
    a[2] = round_pair(y[0], y[1]);
    a[3] = round_pair(y[2], y[3]);
}

// Writes the thread's part of row `half` (0: g, 1: g + 8) of acc * factor + 0, the first `dim` columns.
template <int N> DEVICE void store_row(float* to, const float (&acc)[N][4], int half, float factor, int dim) {
    const bool in_pairs = ((size_t)to % 8 | (size_t)dim % 2) == 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const int d = n * 8 + lane() % 4 * 2;
        const float x = acc[n][half * 2] * factor + 0.0f, y = acc[n][half * 2 + 1] * factor + 0.0f;
        if (in_pairs) {
            if (d < dim) *(Float2*)(to + d) = Float2{x, y};
        } else {
            if (d < dim) to[d] = x;
            if (d + 1 < dim) to[d + 1] = y;
        }
    }
}

// A page's scores of a warp's 16 rows.
typedef float Scores[PAGE / 8][4];

// -inf for keys that a row does not see: row g sees the last `window` of the first `first_count`, row g + 8 those of the
// first `second_count`; all of them unless WINDOWED.
template <bool WINDOWED> DEVICE void hide(Scores& s, int first_count, int second_count, int window) {
#pragma unroll
    for (int j = 0; j < PAGE / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int key = j * 8 + lane() % 4 * 2 + e % 2, count = e < 2 ? first_count : second_count;
            if (key >= count || (WINDOWED && key < count - window)) s[j][e] = -INFINITY_F;
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

// What scores are weighed against: 0 as long as all are -inf, as may be the first pages where a row looks through a window.
template <bool WINDOWED> DEVICE float shift_of(float top) { return !WINDOWED || top > -INFINITY_F ? top : 0.0f; }

// Turns a row's scores into weights, 2^(scale * score - top); their sum.
template <bool WINDOWED> DEVICE float weigh(Scores& s, int half, float scale, float top) {
    const float shift = shift_of<WINDOWED>(top);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PAGE / 8; ++j) {
        float &x = s[j][half * 2], &y = s[j][half * 2 + 1];
        x = exp2_of(fmaf(x, scale, -shift));
        y = exp2_of(fmaf(y, scale, -shift));
        sum = sum + (x + y);
    }
    sum = sum + __shfl_xor_sync(FULL_WARP, sum, 1);
    return sum + __shfl_xor_sync(FULL_WARP, sum, 2);
}

// The running softmax of a row, to the base of 2: the greatest scaled score so far, and the sum of weights relative to it.
struct Running {
    float m, l;
};

// Takes in a page; the factor for sums of the pages before. One of which the row sees nothing is a step by 1, or, where it
// has seen nothing yet, by 0.
template <bool WINDOWED> DEVICE float step(Running& r, float top, float sum) {
    const float factor = exp2_of(r.m - shift_of<WINDOWED>(top));
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

// The copies of step i + 1 run while step i is computed, if there are two BUFFERS; then the threads meet.
template <int BUFFERS, class Copy> DEVICE void await_step(int i, int steps, Copy copy) {
    if (BUFFERS == 1) {
        copy(i, 0);
        close_copies();
        wait_for_all_but<0>();
    } else {
        if (i == 0) {
            copy(0, 0);
            close_copies();
        }
        if (i + 1 < steps) copy(i + 1, (i + 1) % 2);
        close_copies();
        wait_for_all_but<1>();
    }
    __syncthreads();
}

// 64 query rows of HEADS heads, which have a key/value head in common; several look through no window.
template <int DK, int DV, int HEADS, int BUFFERS>
DEVICE void forward(const Bf16* q, const Bf16* k, const Bf16* v, const int* segments, const int* tiles,
                    const int* pages, float* out, float* lse, const Shape& shape, int cached) {
    typedef Matrix<DK> K;
    typedef Matrix<DV> V;
    const bool WINDOWED = HEADS == 1; // two heads leave no registers for it
    const Address shared = shared_memory(), buffer = PAGE * (K::LINE + V::LINE);
    const K query{shared}, key{shared + HEADS * ROWS * K::LINE};
    const V value{key.start + PAGE * K::LINE};

    // Last tiles first: they have the most keys.
    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h0 = blockIdx.y * HEADS, kv_head = h0 / (shape.heads / shape.kv_heads);
    const int r0 = tile[1], rows = min(ROWS, s.rows - r0), warp_row = warp() * 16;
    const size_t q_stride = (size_t)shape.heads * shape.dk;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const int all_keys = s.past + r0 + rows, first_page = WINDOWED ? max(0, s.past + r0 + 1 - shape.window) / PAGE : 0;
    const int steps = (all_keys + PAGE - 1) / PAGE - first_page;

#pragma unroll
    for (int h = 0; h < HEADS; ++h)
        K{query.start + h * ROWS * K::LINE}.template copy<ROWS>(
            q + (s.start + r0) * q_stride + (size_t)(h0 + h) * shape.dk, q_stride, shape.dk, rows, [](int r) { return r; });
    auto copy = [&](int step, int which) {
        const int base = (first_page + step) * PAGE;
        const PageRows at = page_rows(s, pages, cached, base);
        auto row = [&](int r) { return (r < at.split ? at.near : at.far) + r; };
        K{key.start + which * buffer}.template copy<PAGE>(k + (size_t)kv_head * shape.dk, k_stride, shape.dk,
                                                          all_keys - base, row);
        V{value.start + which * buffer}.template copy<PAGE>(v + (size_t)kv_head * shape.dv, v_stride, shape.dv,
                                                            all_keys - base, row);
    };
    const float scale = shape.scale * LOG2_E;
    Running running[HEADS][2];
    float acc[HEADS][DV / 8][4];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        clear(acc[h]);
        running[h][0] = running[h][1] = Running{-INFINITY_F, 0.0f};
    }
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        await_step<BUFFERS>(i, steps, copy);
        const Address buffered = BUFFERS == 1 ? 0 : i % 2 * buffer;
        Scores p[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) clear(p[h]);
        multiply_rows(p, Reads<DK>::down(query, warp_row), Reads<DK>::across(K{key.start + buffered}, 0));
        // Keys that the warp's first row sees, but for a window.
        const int count = s.past + r0 + warp_row + 1 - (first_page + i) * PAGE;
        const bool hides = count < PAGE || (WINDOWED && count + 15 > shape.window);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            if (hides) hide<WINDOWED>(p[h], count + lane() / 4, count + lane() / 4 + 8, shape.window);
            float factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float top = fmaxf(running[h][half].m, row_max(p[h], half) * scale);
                factor[half] = step<WINDOWED>(running[h][half], top, weigh<WINDOWED>(p[h], half, scale, top));
            }
            scale_rows(acc[h], factor[0], factor[1]);
        }
        const Reads<DV> values = Reads<DV>::down(V{value.start + buffered}, 0);
#pragma unroll
        for (int j = 0; j < PAGE / 16; ++j) {
            Pair x[HEADS][4];
#pragma unroll
            for (int h = 0; h < HEADS; ++h) as_left(x[h], p[h][2 * j], p[h][2 * j + 1]);
            multiply(acc, x, values, j * 16);
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row + lane() / 4 + half * 8;
            if (row >= rows) continue;
            const size_t pair = (size_t)(s.start + r0 + row) * shape.heads + h0 + h;
            store_row(out + pair * shape.dv, acc[h], half, 1.0f / running[h][half].l, shape.dv);
            if (lane() % 4 == 0) lse[pair] = lse_of(running[h][half]);
        }
}

const int DECODE_WARPS = 8;
const int DECODE_HEADS = 16;

// The two values at x, of which n are inside.
template <bool WHOLE> DEVICE Pair load_two(const Bf16* x, int n) {
    if (n <= 0) return 0;
    if (WHOLE) return *(const Pair*)x;
    return x[0] | (n > 1 ? (Pair)x[1] << 16 : 0);
}

// W values at x, of which n are inside, in pairs.
template <bool WHOLE, int W> DEVICE void load_values(Pair (&r)[(W + 1) / 2], const Bf16* x, int n) {
#pragma unroll
    for (int i = 0; i < (W + 1) / 2; ++i) {
        if (W == 1) r[i] = n > 0 ? x[0] : 0;
        else r[i] = load_two<WHOLE>(x + 2 * i, n - 2 * i);
    }
}

// Up to 16 query heads of one key/value head as the rows of the mma's. Each warp scores a page of its own; then the
// softmax and the sums over values go through the pages in order, each warp with a part of the values' components. As no
// two warps want the same keys or values, these come straight from the cache into fragments.
template <bool WHOLE, int DK, int DV>
DEVICE void decode_as(const Bf16* q, const Bf16* k, const Bf16* v, const int* segments, const int* list,
                      const int* pages, float* out, float* lse, const Shape& shape) {
    const int STEP = DECODE_WARPS * PAGE, W = DV / DECODE_WARPS / 8;
    DYNAMIC_SHARED(unsigned char, memory);
    const Matrix<DK> query{shared_memory()};
    const Matrix<STEP> weights{query.start + DECODE_HEADS * Matrix<DK>::LINE};
    float* tops = (float*)(memory + DECODE_HEADS * (Matrix<DK>::LINE + Matrix<STEP>::LINE));
    float* sums = tops + DECODE_HEADS * DECODE_WARPS;

    const Segment s = segment(segments, list[blockIdx.x]);
    const int group = shape.heads / shape.kv_heads, kv_head = blockIdx.y;
    const int h0 = kv_head * group + blockIdx.z * DECODE_HEADS;
    const int heads = min(DECODE_HEADS, group - (int)blockIdx.z * DECODE_HEADS);
    const int all_keys = s.past + 1, warp = threadIdx.x / WARP, g = lane() / 4, c = lane() % 4;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const Bf16* my_q = q + ((size_t)s.start * shape.heads + h0) * shape.dk;
    for (int i = threadIdx.x; i < DECODE_HEADS * DK / 2; i += DECODE_WARPS * WARP) {
        const int row = i / (DK / 2), d = i % (DK / 2) * 2;
        const int count = row < heads ? shape.dk - d : 0;
        store_pair(query.place(row, d / 8) + d % 8 * 2, load_two<WHOLE>(my_q + (size_t)row * shape.dk + d, count));
    }
    __syncthreads();

    // This warp's components: column n of its j-th result is first_column + n * W + j.
    const int first_column = warp * 8 * W;
    const Bf16* my_values = v + (size_t)kv_head * shape.dv + first_column + g * W;
    const int my_count = shape.dv - first_column - g * W;
    const float scale = shape.scale * LOG2_E;
    const Reads<DK> my_query = Reads<DK>::down(query, 0);
    const Reads<STEP> my_weights = Reads<STEP>::down(weights, 0);
    Running running[2] = {{-INFINITY_F, 0.0f}, {-INFINITY_F, 0.0f}};
    float acc[W][4];
    Pair y[PAGE / 16][4][(W + 1) / 2];
    clear(acc);
    auto fetch = [&](int page, int first) {
        const Bf16* from = my_values + ((size_t)page * PAGE + 2 * c) * v_stride;
#pragma unroll
        for (int j = 0; j < PAGE / 16; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = j * 16 + i / 2 * 8 + i % 2;
                load_values<WHOLE, W>(y[j][i], from + key * v_stride, first + key + 2 * c < all_keys ? my_count : 0);
            }
    };
    for (int base = max(0, all_keys - shape.window) / PAGE * PAGE; base < all_keys; base += STEP) {
        const int count = all_keys - base - warp * PAGE, pages_here = min(DECODE_WARPS, (all_keys - base + PAGE - 1) / PAGE);
        const int* my_pages = pages + s.pages + base / PAGE;
        Scores p;
        clear(p);
        if (warp < pages_here) {
            // All of the page: scores of what lies behind the last key are replaced below.
            const Bf16* from = k + ((size_t)my_pages[warp] * PAGE + g) * k_stride + (size_t)kv_head * shape.dk;
#pragma unroll WHOLE ? 2 : 1
            for (int d = 0; d < shape.dk; d += 16) {
                Pair x[4], z[PAGE / 8][2];
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int at = d + i * 8 + 2 * c;
                        z[j][i] = load_two<WHOLE>(from + j * 8 * k_stride + at, shape.dk - at);
                    }
                load_matrices<false>(my_query.at(d / 16, 0), x);
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j) multiply_add(p[j], x, z[j]);
            }
        }
        // Values are on their way while others are waited for.
        fetch(my_pages[0], base);
        if (warp < pages_here) {
            if (count < PAGE || count > shape.window) hide<true>(p, count, count, shape.window);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float top = row_max(p, half) * scale;
                if (c == 0) tops[warp * DECODE_HEADS + g + half * 8] = top;
            }
        }
        __syncthreads();
        if (warp < pages_here) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = running[half].m;
                for (int i = 0; i <= warp; ++i) top = fmaxf(top, tops[i * DECODE_HEADS + g + half * 8]);
                const float sum = weigh<true>(p, half, scale, top);
                if (c == 0) sums[warp * DECODE_HEADS + g + half * 8] = sum;
#pragma unroll
                for (int j = 0; j < PAGE / 8; ++j)
                    store_pair(weights.place(g + half * 8, warp * (PAGE / 8) + j) + 4 * c,
                               round_pair(p[j][half * 2], p[j][half * 2 + 1]));
            }
        }
        __syncthreads();
        for (int page = 0; page < pages_here; ++page) {
            Pair z[PAGE / 16][W][2];
#pragma unroll
            for (int j = 0; j < PAGE / 16; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int w = 0; w < W; ++w) {
                        const Pair first = y[j][2 * i][w / 2], second = y[j][2 * i + 1][w / 2];
                        z[j][w][i] = w % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffff) | second << 16;
                    }
            if (page + 1 < pages_here) fetch(my_pages[page + 1], base + (page + 1) * PAGE);
            float factor[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = page * DECODE_HEADS + g + half * 8;
                factor[half] = step<true>(running[half], fmaxf(running[half].m, tops[at]), sums[at]);
            }
            scale_rows(acc, factor[0], factor[1]);
#pragma unroll
            for (int j = 0; j < PAGE / 16; ++j) {
                Pair x[4];
                load_matrices<false>(my_weights.at(page * (PAGE / 16) + j, 0), x);
#pragma unroll
                for (int w = 0; w < W; ++w) multiply_add(acc[w], x, z[j][w]);
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
DEVICE void decode(const Bf16* q, const Bf16* k, const Bf16* v, const int* segments, const int* list,
                   const int* pages, float* out, float* lse, const Shape& shape) {
    const int W = DV / DECODE_WARPS / 8;
    if (shape.dk % 2 == 0 && shape.dv % max(W, 2) == 0)
        decode_as<true, DK, DV>(q, k, v, segments, list, pages, out, lse, shape);
    else
        decode_as<false, DK, DV>(q, k, v, segments, list, pages, out, lse, shape);
}

// From the products q . k and dy . v of a query and a key: the key's weight, and the gradient of q . k without the scale.
// `lse` is one to the base of 2.
DEVICE void score_gradient(float& p, float& ds, float scale, float lse, float delta) {
    p = exp2_of(fmaf(p, scale, -lse));
    ds = p * (ds - delta);
}

// The gradients of 64 keys (KEYS) and values (VALUES) of one key/value head, COUNT query rows at a time, of these AT_ONCE
// in a warp's products. Its rows are keys.
template <int DK, int DV, int COUNT, int AT_ONCE, bool KEYS, bool VALUES>
DEVICE void backward_keys(const Bf16* q, const Bf16* k, const Bf16* v, const Bf16* dy, const float* lse,
                          const float* delta, const int* segments, const int* key_tiles, float* dk_part, float* dv_part,
                          const Shape& shape) {
    typedef Matrix<DK> K;
    typedef Matrix<DV> V;
    DYNAMIC_SHARED(unsigned char, memory);
    const Address shared = shared_memory(), buffer = COUNT * (K::LINE + V::LINE + 8);
    const K key{shared}, query{shared + PAGE * (K::LINE + V::LINE)};
    const V value{shared + PAGE * K::LINE}, dout{query.start + COUNT * K::LINE};
    const Address sums = dout.start + COUNT * V::LINE; // COUNT lse, then COUNT delta

    const int* tile = key_tiles + 2 * blockIdx.x;
    const Segment s = segment(segments, tile[0]);
    const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    const int base = tile[1], keys = min(PAGE, s.past + s.rows - base);
    const int g = lane() / 4, c = lane() % 4, warp_key = warp() * 16;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const PageRows at = page_rows(s, 0, 0, base);
    auto key_row = [&](int r) { return (r < at.split ? at.near : at.far) + r; };

    key.template copy<PAGE>(k + (size_t)kv_head * shape.dk, k_stride, shape.dk, keys, key_row);
    if (KEYS) value.template copy<PAGE>(v + (size_t)kv_head * shape.dv, v_stride, shape.dv, keys, key_row);
    // Rows behind `end` see none of the keys.
    const int first_row = max(0, base - s.past), end = min(s.rows, base + keys + shape.window - s.past);
    const int steps = max(1, (end - first_row + COUNT - 1) / COUNT);
    auto copy = [&](int step, int which) {
        const int h = kv_head * group + step / steps, r0 = first_row + step % steps * COUNT, rows = s.rows - r0;
        const size_t first = (size_t)s.start + r0;
        auto row = [](int r) { return r; };
        K{query.start + which * buffer}.template copy<COUNT>(q + first * q_stride + (size_t)h * shape.dk, q_stride,
                                                             shape.dk, rows, row);
        V{dout.start + which * buffer}.template copy<COUNT>(dy + first * y_stride + (size_t)h * shape.dv, y_stride,
                                                            shape.dv, rows, row);
        if (threadIdx.x < 2 * COUNT) {
            const int r = threadIdx.x % COUNT;
            const float* of = threadIdx.x < COUNT ? lse : delta;
            start_copy_of_value(sums + which * buffer + threadIdx.x * 4,
                                r < rows ? of + (first + r) * shape.heads + h : of, r < rows);
        }
    };
    float acc_k[1][KEYS ? DK / 8 : 1][4], acc_v[1][VALUES ? DV / 8 : 1][4];
    clear(acc_k[0]);
    clear(acc_v[0]);
    const Reads<DK> my_keys = Reads<DK>::down(key, warp_key);
    const Reads<DV> my_values = Reads<DV>::down(value, warp_key);
    const float scale = shape.scale * LOG2_E;
#pragma unroll 1
    for (int step = 0; step < steps * group; ++step) {
        await_step<2>(step, steps * group, copy);
        const Address buffered = step % 2 * buffer;
        const K queries{query.start + buffered};
        const V douts{dout.start + buffered};
        const float* row_lse = (const float*)(memory + (sums - shared) + buffered);
        // Of a row and a key before it, or itself, both are positive or zero.
        const int ahead = s.past + first_row + step % steps * COUNT - base - warp_key;
#pragma unroll 1
        for (int r = 0; r < COUNT; r += AT_ONCE) {
            float p[1][AT_ONCE / 8][4], ds[1][AT_ONCE / 8][4];
            clear(p[0]);
            clear(ds[0]);
            multiply_rows(p, my_keys, Reads<DK>::across(queries, r));
            if constexpr (KEYS) multiply_rows(ds, my_values, Reads<DV>::across(douts, r));
#pragma unroll
            for (int j = 0; j < AT_ONCE / 8; ++j) {
                const int row = r + j * 8 + 2 * c;
                const Float2 l = *(const Float2*)(row_lse + row), d = *(const Float2*)(row_lse + COUNT + row);
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    score_gradient(p[0][j][e], ds[0][j][e], scale, (e % 2 ? l.b : l.a) * LOG2_E, e % 2 ? d.b : d.a);
            }
            // Some keys are behind some of the rows, or out of their window.
            if (ahead + r < 15 || ahead + r + AT_ONCE > shape.window) {
#pragma unroll
                for (int j = 0; j < AT_ONCE / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int before = ahead + r + j * 8 + 2 * c + e % 2 - (g + e / 2 * 8);
                        if (before < 0 || before >= shape.window) p[0][j][e] = ds[0][j][e] = 0.0f;
                    }
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE / 8; j += 2) {
                Pair x[1][4];
                if constexpr (VALUES) {
                    as_left(x[0], p[0][j], p[0][j + 1]);
                    multiply(acc_v, x, Reads<DV>::down(douts, r), j * 8);
                }
                if constexpr (KEYS) {
                    as_left(x[0], ds[0][j], ds[0][j + 1]);
                    multiply(acc_k, x, Reads<DK>::down(queries, r), j * 8);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int my_key = warp_key + g + half * 8;
        if (my_key >= keys) continue;
        const size_t row = ((size_t)s.first + base + my_key) * shape.kv_heads + kv_head;
        if (KEYS) store_row(dk_part + row * shape.dk, acc_k[0], half, shape.scale, shape.dk);
        if (VALUES) store_row(dv_part + row * shape.dv, acc_v[0], half, 1.0f, shape.dv);
    }
}

// The gradients of 64 queries of one head, from COUNT keys at a time.
template <int DK, int DV, int COUNT>
DEVICE void backward_queries(const Bf16* q, const Bf16* k, const Bf16* v, const Bf16* dy, const float* lse,
                             const float* delta, const int* segments, const int* tiles, float* dq, const Shape& shape) {
    typedef Matrix<DK> K;
    typedef Matrix<DV> V;
    const Address shared = shared_memory(), buffer = COUNT * (K::LINE + V::LINE);
    const K query{shared}, key{shared + ROWS * (K::LINE + V::LINE)};
    const V dout{shared + ROWS * K::LINE}, value{key.start + COUNT * K::LINE};

    const int* tile = tiles + 2 * (gridDim.x - 1 - blockIdx.x);
    const Segment s = segment(segments, tile[0]);
    const int h = blockIdx.y, kv_head = h / (shape.heads / shape.kv_heads);
    const int r0 = tile[1], rows = min(ROWS, s.rows - r0);
    const int g = lane() / 4, c = lane() % 4, warp_row = warp() * 16;
    const size_t first = (size_t)s.start + r0;
    const size_t q_stride = (size_t)shape.heads * shape.dk, y_stride = (size_t)shape.heads * shape.dv;
    const size_t k_stride = (size_t)shape.kv_heads * shape.dk, v_stride = (size_t)shape.kv_heads * shape.dv;
    const int all_keys = s.past + r0 + rows, skipped = max(0, s.past + r0 + 1 - shape.window) / COUNT;
    const int steps = (all_keys + COUNT - 1) / COUNT - skipped;

    auto query_row = [](int r) { return r; };
    query.template copy<ROWS>(q + first * q_stride + (size_t)h * shape.dk, q_stride, shape.dk, rows, query_row);
    dout.template copy<ROWS>(dy + first * y_stride + (size_t)h * shape.dv, y_stride, shape.dv, rows, query_row);
    auto copy = [&](int step, int which) {
        const int base = (skipped + step) * COUNT;
        const PageRows at = page_rows(s, 0, 0, base);
        auto row = [&](int r) { return (r < at.split ? at.near : at.far) + r; };
        K{key.start + which * buffer}.template copy<COUNT>(k + (size_t)kv_head * shape.dk, k_stride, shape.dk,
                                                           all_keys - base, row);
        V{value.start + which * buffer}.template copy<COUNT>(v + (size_t)kv_head * shape.dv, v_stride, shape.dv,
                                                             all_keys - base, row);
    };
    float row_lse[2], row_delta[2], acc[1][DK / 8][4];
    clear(acc[0]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + g + half * 8;
        const size_t pair = (first + row) * shape.heads + h;
        row_lse[half] = row < rows ? lse[pair] * LOG2_E : 0.0f;
        row_delta[half] = row < rows ? delta[pair] : 0.0f;
    }
    const Reads<DK> my_queries = Reads<DK>::down(query, warp_row);
    const Reads<DV> my_douts = Reads<DV>::down(dout, warp_row);
    const float scale = shape.scale * LOG2_E;
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        await_step<2>(i, steps, copy);
        const K keys{key.start + i % 2 * buffer};
        const V values{value.start + i % 2 * buffer};
        float p[1][COUNT / 8][4], ds[1][COUNT / 8][4];
        clear(p[0]);
        clear(ds[0]);
        multiply_rows(p, my_queries, Reads<DK>::across(keys, 0));
        multiply_rows(ds, my_douts, Reads<DV>::across(values, 0));
        // Keys that the warp's first row sees, but for a window.
        const int count = s.past + r0 + warp_row + 1 - (skipped + i) * COUNT;
#pragma unroll
        for (int j = 0; j < COUNT / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                score_gradient(p[0][j][e], ds[0][j][e], scale, row_lse[e / 2], row_delta[e / 2]);
        if (count < COUNT || count + 15 > shape.window) {
#pragma unroll
            for (int j = 0; j < COUNT / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = j * 8 + 2 * c + e % 2, my_count = count + g + e / 2 * 8;
                    if (key >= my_count || key < my_count - shape.window) ds[0][j][e] = 0.0f;
                }
        }
        const Reads<DK> down = Reads<DK>::down(keys, 0);
#pragma unroll
        for (int j = 0; j < COUNT / 8; j += 2) {
            Pair x[1][4];
            as_left(x[0], ds[0][j], ds[0][j + 1]);
            multiply(acc, x, down, j * 8);
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp_row + g + half * 8;
        if (row < rows) store_row(dq + ((first + row) * shape.heads + h) * shape.dk, acc[0], half, shape.scale, shape.dk);
    }
}

}  // namespace fast_attention_kernels

#define FAST_ATTENTION_SIZES int heads, int kv_heads, int dk, int dv, float scale, int window
#define FAST_ATTENTION_SHAPE fast_attention_kernels::Shape{heads, kv_heads, dk, dv, scale, window}

// Prefill and training.
// q [tokens, heads * dk], k and v [rows, kv_heads * dk or dv] -> out [tokens, heads * dv], lse [tokens, heads].
// tiles: rows of segments in steps of 64. pages is not read unless cached.
// Grid (tiles, heads); 128 threads. Dynamic shared memory in bytes: _64 40960, _128 81920, _192 65536, _256 98304.
#define FAST_ATTENTION_FORWARD                                                                                          \
    const Bf16 *q, const Bf16 *k, const Bf16 *v, const int *segments, const int *tiles, const int *pages, float *out,    \
        float *lse, FAST_ATTENTION_SIZES, int cached
#define FAST_ATTENTION_FORWARD_ARGUMENTS q, k, v, segments, tiles, pages, out, lse, FAST_ATTENTION_SHAPE, cached
KERNEL_BOUNDED(fast_attention_forward_64, 128, 4)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<64, 64, 1, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_128, 128, 3)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<128, 128, 1, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_192, 128, 3)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<192, 128, 1, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_256, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<256, 256, 1, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}

// As above, without a window, with two heads to a block, which halves the reads of keys and values; heads / kv_heads must be
// even. The bits are the same. Grid (tiles, heads / 2); 128 threads. Dynamic shared memory in bytes: _64 49152, _128 98304, _192 90112.
KERNEL_BOUNDED(fast_attention_forward_pairs_64, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<64, 64, 2, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_pairs_128, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<128, 128, 2, 2>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_forward_pairs_192, 128, 2)(FAST_ATTENTION_FORWARD) {
    fast_attention_kernels::forward<192, 128, 2, 1>(FAST_ATTENTION_FORWARD_ARGUMENTS);
}

// Keys or values into a cache: row slots[i] of out [., width] = row i of x [n, width].
// Grid (n, ceil(width / (4 * threads))), threads 32 to 256.
KERNEL(fast_attention_store)(const Bf16* x, const int* slots, Bf16* out, int width) {
    const Bf16* from = x + (size_t)blockIdx.x * width;
    Bf16* to = out + (size_t)slots[blockIdx.x] * width;
    const int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (width % 2 == 0) {
        for (int i = first; i < width / 2; i += stride) ((unsigned*)to)[i] = ((const unsigned*)from)[i];
    } else {
        for (int i = first; i < width; i += stride) to[i] = from[i];
    }
}

// Decoding from a cache: as the forward kernels for the segments in `list` [n], of one row each, any number of keys.
// Grid (n, kv_heads, ceil(heads / kv_heads / 16)); 256 threads.
// Dynamic shared memory in bytes: _64 19456, _128 21504, _192 23552, _256 25600.
#define FAST_ATTENTION_DECODE                                                                                          \
    const Bf16 *q, const Bf16 *k, const Bf16 *v, const int *segments, const int *list, const int *pages, float *out,   \
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
// Dynamic shared memory in bytes: _64 50176, _128 99328, _192 82432, _256 98560.
#define FAST_ATTENTION_BACKWARD_KEYS                                                                                   \
    const Bf16 *q, const Bf16 *k, const Bf16 *v, const Bf16 *dy, const float *lse, const float *delta,                 \
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
    fast_attention_kernels::backward_keys<192, 128, 32, 16, true, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_keys_256, 128, 2)(FAST_ATTENTION_BACKWARD_KEYS) {
    if (blockIdx.z == 0)
        fast_attention_kernels::backward_keys<256, 256, 16, 16, true, false>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
    else
        fast_attention_kernels::backward_keys<256, 256, 16, 16, false, true>(FAST_ATTENTION_BACKWARD_KEYS_ARGUMENTS);
}

// dq [tokens, heads * dk], for training (no cache); inputs as above.
// tiles: rows of segments in steps of 64. Grid (tiles, heads); 128 threads.
// Dynamic shared memory in bytes: _64 49152, _128 65536, _192 81920, _256 98304.
#define FAST_ATTENTION_BACKWARD_QUERIES                                                                                \
    const Bf16 *q, const Bf16 *k, const Bf16 *v, const Bf16 *dy, const float *lse, const float *delta,                 \
        const int *segments, const int *tiles, float *dq, FAST_ATTENTION_SIZES
#define FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS q, k, v, dy, lse, delta, segments, tiles, dq, FAST_ATTENTION_SHAPE
KERNEL_BOUNDED(fast_attention_backward_queries_64, 128, 3)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<64, 64, 64>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_128, 128, 3)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<128, 128, 32>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_192, 128, 2)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<192, 128, 32>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
}
KERNEL_BOUNDED(fast_attention_backward_queries_256, 128, 2)(FAST_ATTENTION_BACKWARD_QUERIES) {
    fast_attention_kernels::backward_queries<256, 256, 16>(FAST_ATTENTION_BACKWARD_QUERIES_ARGUMENTS);
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
