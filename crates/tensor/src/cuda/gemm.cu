// The matrix product (cpu/gemm.rs): every output is one chain of fused multiply-adds over k = 0, 1, ..., K-1 in order.
// A block owns a tile of BM x BN outputs, a thread TM x TN of them in registers; the factors stream past in stages of
// BK steps of k, copied into shared memory while earlier ones are multiplied. Only the sums' order is fixed: tiles of
// every shape give the same bits, and the sum is never split.
//
// Layouts, with row-major matrices that begin rows lda, ldb, ldc values apart:
//   nt  C [M, N] = A [M, K] B [N, K]^T   a projection
//   nn  C [M, N] = A [M, K] B [K, N]     the gradient of its input
//   tn  C [M, N] = A [K, M]^T B [K, N]   the gradient of its weight
// With `accumulate` chains begin at what is in C, else at zero. K may be 0. Nothing need be aligned, but factors whose
// pointers and leading dimensions are multiples of 16 bytes are copied four values at a time.
//
// Kernels, launched with grid (ceil(N / BN), ceil(M / BM)), the threads and the bytes of dynamic shared memory given.
// Shared memory above 48 KiB has to be asked for.
//
//   name               BM   BN  threads  bytes   alone  crowded
//   gemm_nt_128x128   128  128    256    50688    190     155
//   gemm_nt_64x64      64   64    128    34816     50      44
//   gemm_nt_32x32      32   32    128    36864     15      13
//   gemm_nt_16x32      16   32    128    39168      9       8
//   gemm_nt_8x8         8    8     32    33792    5.5       2
//   gemm_nt_4x8         4    8     32    25344      5     1.5
//   gemm_nn_128x128   128  128    256    49920    190     155
//   gemm_nn_64x64      64   64    128    33792     50      44
//   gemm_nn_32x32      32   32    128    34816     15      13
//   gemm_nn_16x32      16   32    128    37632      9       8
//   gemm_nn_8x16        8   16     64    31360    5.5       3
//   gemm_tn_128x128   128  128    256    49152    190     155
//   gemm_tn_64x64      64   64    128    32768     50      43
//   gemm_tn_32x32      32   32    128    32768     15      13
//   gemm_tn_16x32      16   32    128    36864      9       8
// The grouped forms and gemm_symmetric_* (at the end) take the threads and bytes of the flat ones of their shape.
//
// Choice: the kernel of the layout with the least cost, of equals the larger, where
//   tiles = ceil(M / BM) * ceil(N / BN), in grouped forms of all groups (if they are as large as on average)
//   t = ceil(tiles / multiprocessors)
//   cost = max(alone, t * crowded)
// `alone` is the time of one step of k, in cycles, where a multiprocessor has one tile, and `crowded` what each takes
// where it has many. They are estimates: the instructions issued, the reads of shared memory, four cycles for a link of
// a chain, and a barrier per stage.

#define GEMM_MEMBER __device__ __forceinline__

namespace gemm_kernels {

// How an operand lies in global memory, and how its tile lies in shared memory.
enum Staging {
    STEPS,    // step after step of k ([K, rows]), in both
    ROWS,     // row after row ([rows, K]), in both; a thread reads four steps of a row at once
    TURNED,   // row after row, but step after step in shared memory: a thread reads four rows at once
};

// Copies that run on while the thread goes on, in groups.
#ifndef EMULATOR
template <int W> DEVICE void start_copy(float* to, const float* from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    if constexpr (W == 4)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(from));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(address), "l"(from));
}
DEVICE void close_copies() { asm volatile("cp.async.commit_group;\n"); }
template <int N> DEVICE void wait_for_all_but() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }
#else
template <int W> DEVICE void start_copy(float* to, const float* from) { emulator::start_copy(to, from, W * 4, 0); }
DEVICE void close_copies() { emulator::close_copies(); }
template <int N> DEVICE void wait_for_all_but() { emulator::wait_for_all_but(N); }
#endif

DEVICE bool is_aligned(const float* p, int ld) { return (((size_t)p | (size_t)ld * 4) & 15) == 0; }

// N values that lie side by side, moved at once.
template <int N> struct __attribute__((aligned(4 * N))) Vector {
    float v[N];
};
template <int N> DEVICE void read(const float* from, float* to) {
    const Vector<N> x = *(const Vector<N>*)from;
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = x.v[i];
}
template <int N> DEVICE void write(float* to, const float* from) {
    Vector<N> x;
#pragma unroll
    for (int i = 0; i < N; ++i) x.v[i] = from[i];
    *(Vector<N>*)to = x;
}
template <int COUNT> struct Count {
    static constexpr int N = COUNT;
};

// One operand of a block: R rows (rows of A or columns of B, the product does not care), of which each thread takes T,
// in tiles of BK steps, copied by THREADS threads.
template <int R, int BK, int T, int THREADS, Staging S> struct Operand {
    // In shared memory lines are BK or R long; the padding spreads what a warp reads or writes at once over the banks.
    static constexpr int LINE = S == STEPS ? R : S == ROWS ? BK + 4 : R + 4;
    static constexpr int SIZE = S == ROWS ? R * LINE : BK * LINE;
    // Neighbouring rows of a thread; its groups of them are spread over the tile, the threads' lying side by side.
    static constexpr int GROUP = S == ROWS ? 1 : T < 4 ? T : 4;
    // Who copies what: threads side by side take a line of global memory, in pieces of W values, and the others further
    // lines. Where a tile is turned a warp takes eight steps of four rows, which are whole sectors of global memory and
    // every bank of shared memory once.
    static constexpr int W = S == TURNED ? 1 : 4, LINES = S == STEPS ? BK : R, LENGTH = S == STEPS ? R : BK;
    static constexpr int SIDE_BY_SIDE = S == TURNED ? 8 : LENGTH / W, AT_ONCE = THREADS / SIDE_BY_SIDE;
    static_assert(THREADS % SIDE_BY_SIDE == 0 && LINES % AT_ONCE == 0, "every thread copies as much");

    DEVICE int row(int t, int i) { return i / GROUP * (R / T * GROUP) + t * GROUP + i % GROUP; }

    // Where the operand goes on, given that, from `row` and step 0 on.
    DEVICE const float* origin(const float* p, int ld, int row) {
        return S == STEPS ? p + row : p + (size_t)row * ld;
    }

    const float* from; // what this thread copies first of the tile
    float* to;
    int ld, rows; // the rows that exist
    bool aligned, full;

    GEMM_MEMBER Operand(const float* origin, int ld, int rows) : ld(ld), rows(rows) {
        aligned = W == 1 || is_aligned(origin, ld);
        from = origin + (size_t)(threadIdx.x / SIDE_BY_SIDE) * ld + threadIdx.x % SIDE_BY_SIDE * W;
    }

    // Value `at` of a line, in shared memory.
    DEVICE float* address(float* tile, int line, int at) {
        return S == TURNED ? tile + at * LINE + line : tile + line * LINE + at;
    }

    // Copies a tile of which `steps` exist, if any. A full one is copied by `parts` calls of copy, so that other work
    // may stand between them.
    GEMM_MEMBER void begin_copy(float* tile, int steps) {
        full = aligned && steps >= BK && (S == ROWS || rows >= R);
        to = address(tile, threadIdx.x / SIDE_BY_SIDE, threadIdx.x % SIDE_BY_SIDE * W);
        if (!full && steps > 0) copy_part(S == STEPS ? steps : rows, S == STEPS ? rows : steps);
    }
    GEMM_MEMBER void copy(int part, int parts) {
        constexpr int ALONG = LENGTH / (SIDE_BY_SIDE * W), PIECES = LINES / AT_ONCE * ALONG;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            if (i * parts / PIECES != part) continue;
            const int line = i / ALONG * AT_ONCE, at = i % ALONG * SIDE_BY_SIDE * W;
            // Where lines are rows, and few, a tile with some of its rows is as frequent as a whole one.
            const bool exists = S != ROWS || (int)threadIdx.x / SIDE_BY_SIDE + line < rows;
            if (full && exists) start_copy<W>(address(to, line, at), from + (size_t)line * ld + at);
        }
    }
    GEMM_MEMBER void end_copy() { from += S == STEPS ? (size_t)BK * ld : BK; }

    // As much as there is. What is missing stays as it was: it meets only outputs that are not stored, and steps that
    // are not taken.
    GEMM_MEMBER void copy_part(int lines, int length) {
        const int first = threadIdx.x / SIDE_BY_SIDE, begin = threadIdx.x % SIDE_BY_SIDE * W;
#pragma unroll 1
        for (int line = 0; line < LINES && first + line < lines; line += AT_ONCE)
#pragma unroll 1
            for (int at = 0; at < LENGTH && begin + at < length; at += SIDE_BY_SIDE * W) {
                float* to_here = address(to, line, at);
                const float* from_here = from + (size_t)line * ld + at;
                if (aligned && begin + at + W <= length) {
                    start_copy<W>(to_here, from_here);
                } else {
#pragma unroll 1
                    for (int j = 0; j < W && begin + at + j < length; ++j) start_copy<1>(to_here + j, from_here + j);
                }
            }
    }

    // Reads thread t's rows, D steps from k on.
    template <int D> DEVICE void read_steps(const float* tile, int t, int k, float (*x)[T]) {
        if constexpr (S == ROWS) {
            static_assert(D % 4 == 0 || D == 1, "rows are read four steps at a time, or one");
            constexpr int N = D == 1 ? 1 : 4;
#pragma unroll
            for (int d = 0; d < D; d += N)
#pragma unroll
                for (int i = 0; i < T; ++i) {
                    float steps[N];
                    read<N>(tile + row(t, i) * LINE + k + d, steps);
#pragma unroll
                    for (int j = 0; j < N; ++j) x[d + j][i] = steps[j];
                }
        } else {
#pragma unroll
            for (int d = 0; d < D; ++d)
#pragma unroll
                for (int i = 0; i < T; i += GROUP) read<GROUP>(tile + (k + d) * LINE + row(t, i), x[d] + i);
        }
    }
};

// Where a block's tile lies in a product, and how much of the product there is from its corner on.
struct Place {
    const float *a, *b;
    float* c;
    int rows, columns, k;
};

// A tile of BM x BN outputs. Values of D steps are read from shared memory while those of the D before are multiplied:
// D is such that this takes as long as the reading does.
template <int BM, int BN, int BK, int TM, int TN, int D, int STAGES, Staging SA, Staging SB> struct Tile {
    static constexpr int ROWS_OF_THREADS = BM / TM, COLUMNS_OF_THREADS = BN / TN;
    static constexpr int THREADS = ROWS_OF_THREADS * COLUMNS_OF_THREADS;
    static constexpr int HEIGHT = BM, WIDTH = BN;
    typedef Operand<BM, BK, TM, THREADS, SA> A;
    typedef Operand<BN, BK, TN, THREADS, SB> B;
    static constexpr int STAGE = A::SIZE + B::SIZE;
    static constexpr int BYTES = STAGES * STAGE * 4;
    // A warp is 4 x 8 threads, so that its reads are few and wide.
    static constexpr int WARP_WIDTH = 8, WARP_HEIGHT = 4, WARPS_ACROSS = COLUMNS_OF_THREADS / WARP_WIDTH;
    static_assert(COLUMNS_OF_THREADS % WARP_WIDTH == 0 && ROWS_OF_THREADS % WARP_HEIGHT == 0, "whole warps");
    static_assert(BK / D % 2 == 0, "the two sets of registers change places evenly");

    // The values of D steps.
    struct Factors {
        float a[D][TM], b[D][TN];
    };

    float sums[TM][TN];
    int ty, tx; // the thread's place

    GEMM_MEMBER Tile() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        ty = warp / WARPS_ACROSS * WARP_HEIGHT + lane / WARP_WIDTH;
        tx = warp % WARPS_ACROSS * WARP_WIDTH + lane % WARP_WIDTH;
    }

    template <int STEPS_READ> GEMM_MEMBER void read_factors(const float* stage, int k, float (*a)[TM], float (*b)[TN]) {
        A::template read_steps<STEPS_READ>(stage, ty, k, a);
        B::template read_steps<STEPS_READ>(stage + A::SIZE, tx, k, b);
    }

    template <int STEPS_TAKEN> GEMM_MEMBER void multiply(const float (*a)[TM], const float (*b)[TN]) {
#pragma unroll
        for (int d = 0; d < STEPS_TAKEN; ++d)
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(a[d][i], b[d][j], sums[i][j]);
    }

    // Continues the chains through all steps.
    GEMM_MEMBER void run(const Place& p, int lda, int ldb, int ldc, bool accumulate) {
        DYNAMIC_SHARED(float, shared);
        // Copies fill the gaps between dependent steps where a thread has few chains; else they take turns with blocks
        // of steps.
        constexpr int PARTS = BK / D, COPIES = TM * TN < 32 ? PARTS : 4;
        A a(p.a, lda, p.rows);
        B b(p.b, ldb, p.columns);
        int left = p.k; // steps that are not copied yet
#pragma unroll
        for (int i = 0; i < STAGES - 1; ++i) {
            begin_copy(a, b, shared + i * STAGE, left);
            a.copy(0, 1);
            b.copy(0, 1);
            end_copy(a, b);
        }
        begin(p, ldc, accumulate);
        wait_for_all_but<STAGES - 2>();
        __syncthreads();

        float *stage = shared, *previous = shared + (STAGES - 1) * STAGE;
        Factors factors[2];
        if (p.k >= BK) read_factors<D>(stage, 0, factors[0].a, factors[0].b);
        for (int k = BK; k <= p.k; k += BK) {
            begin_copy(a, b, previous, left); // everybody left that stage before the last barrier
#pragma unroll
            for (int s = 0; s < PARTS; ++s) {
                if (s % (PARTS / COPIES) == 0) {
                    a.copy(s / (PARTS / COPIES), COPIES);
                    b.copy(s / (PARTS / COPIES), COPIES);
                }
                if (s == PARTS - 1) { // the next factors are in the next stage
                    end_copy(a, b);
                    wait_for_all_but<STAGES - 2>();
                    __syncthreads();
                    previous = stage;
                    stage = stage == shared + (STAGES - 1) * STAGE ? shared : stage + STAGE;
                }
                Factors& next = factors[(s + 1) % 2];
                read_factors<D>(stage, (s + 1) * D % BK, next.a, next.b);
                multiply<D>(factors[s % 2].a, factors[s % 2].b);
            }
        }
        finish(stage, p.k % BK);
    }

    DEVICE void begin_copy(A& a, B& b, float* stage, int& left) {
        a.begin_copy(stage, left);
        b.begin_copy(stage + A::SIZE, left);
        left -= BK;
    }
    DEVICE void end_copy(A& a, B& b) {
        a.end_copy();
        b.end_copy();
        close_copies();
    }

    // The steps of a stage that is not full: exactly those there are, as one with zeros would turn -0 into +0.
    GEMM_MEMBER void finish(const float* stage, int steps) {
        int k = 0;
        if constexpr (D > 1) {
#pragma unroll 1
            for (; k + D <= steps; k += D) {
                Factors f;
                read_factors<D>(stage, k, f.a, f.b);
                multiply<D>(f.a, f.b);
            }
        }
#pragma unroll 1
        for (; k < steps; ++k) {
            float a[1][TM], b[1][TN];
            read_factors<1>(stage, k, a, b);
            multiply<1>(a, b);
        }
    }

    // Calls `move(at, sums)` with N neighbouring outputs of the thread and where they lie in C, N as move's argument:
    // four where they can be moved at once, else one.
    template <class Move> GEMM_MEMBER void outputs(const Place& p, int ldc, Move move) {
        const bool aligned = is_aligned(p.c, ldc);
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            const int row = A::row(ty, i);
            if (row >= p.rows) continue;
#pragma unroll
            for (int j = 0; j < TN; j += B::GROUP) {
                const int column = B::row(tx, j);
                float* at = p.c + (size_t)row * ldc + column;
                if (B::GROUP == 4 && aligned && column + 4 <= p.columns) {
                    move(at, &sums[i][j], Count<B::GROUP>());
                } else {
#pragma unroll
                    for (int g = 0; g < B::GROUP; ++g)
                        if (column + g < p.columns) move(at + g, &sums[i][j + g], Count<1>());
                }
            }
        }
    }

    GEMM_MEMBER void begin(const Place& p, int ldc, bool accumulate) {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) sums[i][j] = 0.0f;
        if (accumulate) outputs(p, ldc, [](float* at, float* sums, auto count) { read<count.N>(at, sums); });
    }

    GEMM_MEMBER void store(const Place& p, int ldc) {
        outputs(p, ldc, [](float* at, float* sums, auto count) { write<count.N>(at, sums); });
    }

    // Stores the transpose at c, a thread's column after the other.
    GEMM_MEMBER void store_turned(float* c, int rows, int columns, int ldc) {
        const bool aligned = is_aligned(c, ldc);
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const int column = B::row(tx, j);
            if (column >= columns) continue;
            float* line = c + (size_t)column * ldc;
#pragma unroll
            for (int i = 0; i < TM; i += A::GROUP) {
                const int row = A::row(ty, i);
                float group[A::GROUP];
#pragma unroll
                for (int g = 0; g < A::GROUP; ++g) group[g] = sums[i + g][j];
                if (A::GROUP == 4 && aligned && row + 4 <= rows) {
                    write<A::GROUP>(line + row, group);
                } else {
#pragma unroll
                    for (int g = 0; g < A::GROUP; ++g)
                        if (row + g < rows) line[row + g] = group[g];
                }
            }
        }
    }
};

// One tile of one product.
template <class T>
DEVICE void multiply_tile(const Place& p, int lda, int ldb, int ldc, int accumulate) {
    T tile;
    tile.run(p, lda, ldb, ldc, accumulate);
    tile.store(p, ldc);
}

// The part of a product from output (row, column) on.
template <class T>
DEVICE Place place(const float* a, const float* b, float* c, int m, int n, int k, int lda, int ldb, int ldc, int row,
                   int column) {
    return {T::A::origin(a, lda, row), T::B::origin(b, ldb, column), c + (size_t)row * ldc + column,
            m - row, n - column, k};
}

template <class T>
DEVICE void whole(const float* a, const float* b, float* c, int m, int n, int k, int lda, int ldb, int ldc,
                  int accumulate) {
    Place p = place<T>(a, b, c, m, n, k, lda, ldb, ldc, blockIdx.y * T::HEIGHT, blockIdx.x * T::WIDTH);
    multiply_tile<T>(p, lda, ldb, ldc, accumulate);
}

// The group of row tile `index` where every group's rows are cut into tiles of `height`, and the tile's first row in
// the group; group -1 behind the last. Every warp searches for itself, 32 groups at a time.
struct GroupTile {
    int group, row;
};
DEVICE GroupTile find_group(const int* starts, int groups, int height, int index) {
    const int lane = threadIdx.x % 32;
    for (int first = 0; first < groups; first += 32) {
        const int g = first + lane;
        const int tiles = g < groups ? (starts[g + 1] - starts[g] + height - 1) / height : 0;
        int end = tiles; // of this group's tiles, from the first of the 32 on
#pragma unroll
        for (int w = 1; w < 32; w *= 2) {
            int before = __shfl_up_sync(FULL_WARP, end, w);
            if (lane >= w) end += before;
        }
        const unsigned beyond = __ballot_sync(FULL_WARP, end > index);
        if (beyond) {
            const int found = __ffs((int)beyond) - 1;
            const int begin = __shfl_sync(FULL_WARP, end - tiles, found);
            return {first + found, (index - begin) * height};
        }
        index -= __shfl_sync(FULL_WARP, end, 31);
    }
    return {-1, 0};
}

template <class T>
DEVICE void group_of_rows(const float* a, const float* b, float* c, int n, int k, int lda, int ldb, int ldc,
                          int accumulate, const int* starts, int groups, long long stride) {
    const GroupTile at = find_group(starts, groups, T::HEIGHT, blockIdx.y);
    if (at.group < 0) return;
    const int end = starts[at.group + 1], row = starts[at.group] + at.row;
    Place p = place<T>(a, b + at.group * stride, c, end, n, k, lda, ldb, ldc, row, blockIdx.x * T::WIDTH);
    multiply_tile<T>(p, lda, ldb, ldc, accumulate);
}

template <class T>
DEVICE void group_of_steps(const float* a, const float* b, float* c, int m, int n, int lda, int ldb, int ldc,
                           int accumulate, const int* starts, long long stride) {
    const int group = blockIdx.z, begin = starts[group], steps = starts[group + 1] - begin;
    if (steps == 0) return;
    Place p = place<T>(a + (size_t)begin * lda, b + (size_t)begin * ldb, c + group * stride, m, n, steps, lda, ldb, ldc,
                       blockIdx.y * T::HEIGHT, blockIdx.x * T::WIDTH);
    multiply_tile<T>(p, lda, ldb, ldc, accumulate);
}

template <class T> DEVICE void symmetric(const float* x, float* c, int n, int k, int ldx, int ldc) {
    static_assert(T::HEIGHT == T::WIDTH, "tiles of the diagonal are square");
    if (blockIdx.x > blockIdx.y) return;
    const int row = blockIdx.y * T::HEIGHT, column = blockIdx.x * T::WIDTH;
    Place p = place<T>(x, x, c, n, n, k, ldx, ldx, ldc, row, column);
    T tile;
    tile.run(p, ldx, ldx, ldc, false);
    tile.store(p, ldc);
    if (row != column) tile.store_turned(c + (size_t)column * ldc + row, p.rows, p.columns, ldc);
}

//            BM   BN   BK TM TN D stages
typedef Tile<128, 128, 16, 8, 8, 1, 3, TURNED, TURNED> Nt128x128;
typedef Tile<64, 64, 16, 8, 4, 1, 4, TURNED, TURNED> Nt64x64;
typedef Tile<32, 32, 32, 4, 2, 4, 4, ROWS, ROWS> Nt32x32;
typedef Tile<16, 32, 64, 2, 2, 8, 3, ROWS, ROWS> Nt16x32;
typedef Tile<8, 8, 128, 2, 1, 8, 4, ROWS, ROWS> Nt8x8;
typedef Tile<4, 8, 128, 1, 1, 8, 4, ROWS, ROWS> Nt4x8;
typedef Tile<128, 128, 16, 8, 8, 1, 3, TURNED, STEPS> Nn128x128;
typedef Tile<64, 64, 16, 8, 4, 1, 4, TURNED, STEPS> Nn64x64;
typedef Tile<32, 32, 32, 4, 2, 4, 4, ROWS, STEPS> Nn32x32;
typedef Tile<16, 32, 64, 2, 2, 8, 3, ROWS, STEPS> Nn16x32;
typedef Tile<8, 16, 64, 2, 1, 8, 5, ROWS, STEPS> Nn8x16;
typedef Tile<128, 128, 16, 8, 8, 1, 3, STEPS, STEPS> Tn128x128;
typedef Tile<64, 64, 16, 8, 4, 1, 4, STEPS, STEPS> Tn64x64;
typedef Tile<32, 32, 32, 4, 2, 4, 4, STEPS, STEPS> Tn32x32;
typedef Tile<16, 32, 64, 2, 2, 8, 3, STEPS, STEPS> Tn16x32;

// What the table says about threads and shared memory.
template <class T, int N, int BYTES> constexpr bool takes = T::THREADS == N && T::BYTES == BYTES;
static_assert(takes<Nt128x128, 256, 50688> && takes<Nn128x128, 256, 49920> && takes<Tn128x128, 256, 49152>);
static_assert(takes<Nt64x64, 128, 34816> && takes<Nn64x64, 128, 33792> && takes<Tn64x64, 128, 32768>);
static_assert(takes<Nt32x32, 128, 36864> && takes<Nn32x32, 128, 34816> && takes<Tn32x32, 128, 32768>);
static_assert(takes<Nt16x32, 128, 39168> && takes<Nn16x32, 128, 37632> && takes<Tn16x32, 128, 36864>);
static_assert(takes<Nt8x8, 32, 33792> && takes<Nt4x8, 32, 25344> && takes<Nn8x16, 64, 31360>);
}  // namespace gemm_kernels

#define GEMM_FACTORS                                                                                                   \
    const float *a, const float *b, float *c, int m, int n, int k, int lda, int ldb, int ldc, int accumulate
#define GEMM_GROUPS const int *starts, int groups, long long stride

// Whole products.

KERNEL_BOUNDED(gemm_nt_128x128, 256, 2)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nt_64x64, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nt_32x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt32x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nt_16x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt16x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nt_8x8, 32, 6)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt8x8>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nt_4x8, 32, 8)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nt4x8>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nn_128x128, 256, 2)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nn128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nn_64x64, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nn64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nn_32x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nn32x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nn_16x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nn16x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_nn_8x16, 64, 6)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Nn8x16>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_tn_128x128, 256, 2)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Tn128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_tn_64x64, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Tn64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_tn_32x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Tn32x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_tn_16x32, 128, 4)(GEMM_FACTORS) {
    gemm_kernels::whole<gemm_kernels::Tn16x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}

// Products of groups of rows (the slots of an expert): rows starts[g] .. starts[g + 1] of A and C, and the weight that
// begins g * stride values behind b. `starts` [groups + 1] is on the device, and m is not looked at: grid.y is at least
// the number of row tiles, ceil(rows / BM) + groups.

KERNEL_BOUNDED(gemm_grouped_nt_128x128, 256, 2)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nt128x128>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nt_64x64, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nt64x64>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nt_32x32, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nt32x32>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nt_16x32, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nt16x32>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nt_8x8, 32, 6)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nt8x8>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nn_128x128, 256, 2)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nn128x128>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nn_64x64, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nn64x64>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nn_32x32, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nn32x32>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nn_16x32, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nn16x32>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}
KERNEL_BOUNDED(gemm_grouped_nn_8x16, 64, 6)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_rows<gemm_kernels::Nn8x16>(a, b, c, n, k, lda, ldb, ldc, accumulate, starts, groups, stride);
}

// Products of groups of steps (the gradient of an expert's weight): steps starts[g] .. starts[g + 1] of A and B, and
// the output that begins g * stride values behind c. grid.z is the number of groups; k is not looked at. A group
// without steps leaves its output alone, also where it does not accumulate.

KERNEL_BOUNDED(gemm_grouped_tn_128x128, 256, 2)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_steps<gemm_kernels::Tn128x128>(a, b, c, m, n, lda, ldb, ldc, accumulate, starts, stride);
}
KERNEL_BOUNDED(gemm_grouped_tn_64x64, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_steps<gemm_kernels::Tn64x64>(a, b, c, m, n, lda, ldb, ldc, accumulate, starts, stride);
}
KERNEL_BOUNDED(gemm_grouped_tn_32x32, 128, 4)(GEMM_FACTORS, GEMM_GROUPS) {
    gemm_kernels::group_of_steps<gemm_kernels::Tn32x32>(a, b, c, m, n, lda, ldb, ldc, accumulate, starts, stride);
}

// A batch of products, one for each z of the grid, whose matrices lie stride_a, stride_b, stride_c values apart.

#define GEMM_STRIDES long long stride_a, long long stride_b, long long stride_c
KERNEL_BOUNDED(gemm_batched_nn_64x64, 128, 4)(GEMM_FACTORS, GEMM_STRIDES) {
    gemm_kernels::whole<gemm_kernels::Nn64x64>(a + blockIdx.z * stride_a, b + blockIdx.z * stride_b,
                                               c + blockIdx.z * stride_c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(gemm_batched_nn_32x32, 128, 4)(GEMM_FACTORS, GEMM_STRIDES) {
    gemm_kernels::whole<gemm_kernels::Nn32x32>(a + blockIdx.z * stride_a, b + blockIdx.z * stride_b,
                                               c + blockIdx.z * stride_c, m, n, k, lda, ldb, ldc, accumulate);
}

// C [n, n] = X [n, k] X^T, which is symmetric: the tiles below the diagonal and on it are computed, and mirrored. C is
// not X. Launched as gemm_nt_64x64 and gemm_nt_32x32 with M = N = n are; several, one behind the other, for z of the grid.

KERNEL_BOUNDED(gemm_symmetric_64x64, 128, 4)(const float* x, float* c, int n, int k, int ldx, int ldc) {
    const size_t z = (size_t)blockIdx.z * n;
    gemm_kernels::symmetric<gemm_kernels::Nt64x64>(x + z * ldx, c + z * ldc, n, k, ldx, ldc);
}
KERNEL_BOUNDED(gemm_symmetric_32x32, 128, 4)(const float* x, float* c, int n, int k, int ldx, int ldc) {
    const size_t z = (size_t)blockIdx.z * n;
    gemm_kernels::symmetric<gemm_kernels::Nt32x32>(x + z * ldx, c + z * ldc, n, k, ldx, ldc);
}
