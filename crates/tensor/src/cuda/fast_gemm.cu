// The matrix product of the fast mode: bf16 factors, f32 sums, on tensor cores. A sum is one chain of mma.m16n8k16 over
// k = 0, 16, 32, ... (K filled up with zeros), whatever the tile: an output's bits follow from its row of A, its column
// of B and K. With `accumulate` the finished chain is added to what is in C.
//
// A block owns a tile of BM x BN outputs, divided among its warps. The factors stream past in stages of BK steps of k,
// copied into shared memory while earlier ones are multiplied; of a stage, a slice of 16 steps is read into registers
// while the one before is multiplied.
//
// Layouts, with row-major matrices that begin rows lda, ldb, ldc values apart:
//   nt  C [M, N] = A [M, K] B [N, K]^T   a projection
//   nn  C [M, N] = A [M, K] B [K, N]     the gradient of its input
//   tn  C [M, N] = A [K, M]^T B [K, N]   the gradient of its weight
// Sizes are free, K may be 0. Factors that begin at multiples of 16 bytes and whose leading dimensions are multiples of
// 8 are copied eight values at a time; others are much slower.
//
// Kernels, launched with grid (ceil(N / BN), ceil(M / BM)), the threads and the bytes of dynamic shared memory given.
// Shared memory above 48 KiB has to be asked for.
//
//   name                            BM   BN  threads   bytes  alone  crowded
//   fast_gemm_{nt,nn,tn}_128x256   128  256      256   98304     40       38
//   fast_gemm_{nt,nn,tn}_128x128   128  128      128   65536     26       20
//   fast_gemm_{nt,nn,tn}_64x64      64   64      128   49152      6        6
//   fast_gemm_{nt,nn}_64x32         64   32      128   49152    3.5      3.2
//   fast_gemm_tn_32x32              32   32      128   32768    2.5      2.2
//   fast_gemm_{nt,nn}_16x64         16   64      128   40960    2.5      2.4
//   fast_gemm_{nt,nn}_16x16         16   16       32   49152    2.3      0.8
// The grouped forms (at the end; not of 128 x 256 and 64 x 32) take the threads and bytes of the flat ones of their shape.
//
// Choice as in gemm.cu: the least of max(alone, ceil(tiles / multiprocessors) * crowded), cycles of one step of k; of
// equals the larger. They are estimates: tensor cores at half of what wgmma would get from an H100, reads of shared
// memory, 35 cycles for a link of a chain; small tiles wait for memory.

namespace fast_gemm_kernels {

using namespace tensor_cores;

enum Side { LEFT, RIGHT };

// One operand of a block: R rows (rows of A or columns of B), in tiles of BK steps, copied by THREADS threads.
//
// BY_STEPS says how it lies in global and in shared memory: step after step of k ([K, rows]) or row after row
// ([rows, K]). A line of shared memory is a sequence of chunks of 8 values. They change places within the line, so that
// the same chunk of eight lines one after the other, what a matrix of load_matrices is, lies in different banks.
template <Side SIDE, int R, int BK, int THREADS, bool BY_STEPS> struct Operand {
    static constexpr int LINES = BY_STEPS ? BK : R, CHUNKS = (BY_STEPS ? R : BK) / 8;
    static constexpr int LINE = CHUNKS * 16, BYTES = LINES * LINE;
    // Threads side by side copy a line, and the others further lines.
    static constexpr int AT_ONCE = THREADS / CHUNKS, COPIES = LINES / AT_ONCE;
    static_assert(THREADS % CHUNKS == 0 && LINES % AT_ONCE == 0, "every thread copies as much");

    // What a chunk's number is XORed with. Where a line's number is a sum of parts that have no bit in common, this is
    // the XOR of what it is for the parts; so what is known to the compiler is split off below.
    static constexpr DEVICE_MEMBER int swizzle(int line) {
        return CHUNKS >= 8 ? line % 8 : line / (8 / CHUNKS) % CHUNKS;
    }
    static constexpr DEVICE_MEMBER Address place(int line, int chunk) {
        return line * LINE + (chunk ^ swizzle(line)) * 16;
    }

    // Where the operand goes on, given that, from `row` and step 0 on.
    static DEVICE_MEMBER const Bf16* origin(const Bf16* p, int ld, int row) {
        return BY_STEPS ? p + row : p + (size_t)row * ld;
    }

    const Bf16* from; // what this thread copies first of the tile
    Address to; // the tile in shared memory
    int ld, rows; // the rows that exist
    bool aligned, full;

    DEVICE_MEMBER Operand(const Bf16* origin, int ld, int rows) : ld(ld), rows(rows) {
        aligned = (((size_t)origin | (size_t)ld * 2) & 15) == 0;
        from = origin + (size_t)first_line() * ld + chunk() * 8;
    }

    static DEVICE_MEMBER int first_line() { return threadIdx.x / CHUNKS; }
    static DEVICE_MEMBER int chunk() { return threadIdx.x % CHUNKS; }
    DEVICE_MEMBER Address target(int i) {
        return to + (place(first_line(), chunk()) ^ swizzle(i * AT_ONCE) * 16) + i * AT_ONCE * LINE;
    }
    DEVICE_MEMBER const Bf16* source(int i) { return from + (size_t)(i * AT_ONCE) * ld; }

    // Copies a tile of which `steps` exist, if any. A full one is copied by `parts` calls of copy, so that other work
    // may stand between them.
    DEVICE_MEMBER void begin_copy(Address tile, int steps) {
        to = tile;
        full = aligned && steps >= BK && rows >= R;
        if (!full && steps > 0) copy_part(BY_STEPS ? steps : rows, BY_STEPS ? rows : steps);
    }
    DEVICE_MEMBER void copy(int part, int parts) {
        if (!full) return;
#pragma unroll
        for (int i = 0; i < COPIES; ++i)
            if (i * parts / COPIES == part) start_copy(target(i), source(i));
    }
    DEVICE_MEMBER void end_copy() { from += BY_STEPS ? (size_t)BK * ld : BK; }

    // As much as there is, and zeros.
    DEVICE_MEMBER void copy_part(int lines, int length) {
        const int count = max(0, min(8, length - chunk() * 8)); // of the chunk's values, where there is a line
        lines -= first_line();
        if (aligned) {
#pragma unroll
            for (int i = 0; i < COPIES; ++i) start_copy(target(i), source(i), i * AT_ONCE < lines ? count * 2 : 0);
        } else {
#pragma unroll 1
            for (int i = 0; i < COPIES; ++i) copy_values(target(i), source(i), i * AT_ONCE < lines ? count : 0);
        }
    }
    static DEVICE_MEMBER void copy_values(Address to, const Bf16* from, int count) {
        Pair x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            x[j] = 2 * j < count ? from[2 * j] : 0;
            if (2 * j + 1 < count) x[j] |= (Pair)from[2 * j + 1] << 16;
        }
        store_shared(to, x);
    }

    // Where a lane's reads begin, for a warp whose rows begin at `row`, a multiple of 16. The matrices of rows 0-7 and
    // 8-15 and of steps 0-7 and 8-15 come in the order in which multiply_add takes them: on the right, those of
    // the same eight columns are neighbours.
    static DEVICE_MEMBER Address reads(int row) {
        const int lane = threadIdx.x % 32, line = lane % 8, fast = lane / 8 % 2, slow = lane / 16;
        const int row_half = SIDE == LEFT ? fast : slow, step_half = SIDE == LEFT ? slow : fast;
        return BY_STEPS ? place(step_half * 8 + line, row / 8 + row_half)
                        : place(row + row_half * 8 + line, step_half);
    }
    // Reads rows 16 t .. 16 t + 15 behind there, 16 steps from 16 s on.
    static DEVICE_MEMBER void read(Address tile, Address reads, int t, int s, Pair (&x)[4]) {
        load_matrices<BY_STEPS>(tile + (reads ^ (BY_STEPS ? t : s) * 32) + (BY_STEPS ? s : t) * 16 * LINE, x);
    }
};

// Where a tile's factors begin and its outputs lie, and what of them exists.
struct Place {
    const Bf16 *a, *b;
    float* c;
    int rows, columns, k;
};

// A tile of BM x BN outputs, of which a warp has WM x WN.
template <int BM, int BN, int BK, int WM, int WN, int STAGES, bool A_BY_STEPS, bool B_BY_STEPS> struct Tile {
    static constexpr int HEIGHT = BM, WIDTH = BN;
    static constexpr int WARPS_ACROSS = BN / WN, THREADS = BM / WM * WARPS_ACROSS * 32;
    typedef Operand<LEFT, BM, BK, THREADS, A_BY_STEPS> A;
    typedef Operand<RIGHT, BN, BK, THREADS, B_BY_STEPS> B;
    static constexpr Address STAGE = A::BYTES + B::BYTES;
    static constexpr int BYTES = STAGES * STAGE;
    // Blocks of 16 rows and of 16 columns of a warp, and slices of a stage.
    static constexpr int TM = WM / 16, TN = WN / 16, SLICES = BK / 16;
    static_assert(SLICES % 2 == 0, "the two sets of registers change places evenly");
    static_assert((WM & (WM - 1)) == 0 && (WN & (WN - 1)) == 0 && WM <= 64 && WN <= 64, "XORs of chunks do not carry");

    struct Factors {
        Pair a[TM][4], b[TN][4];
    };

    float sums[TM][TN * 2][4];
    int row, column; // where the warp's outputs begin
    Address reads_a, reads_b;

    DEVICE_MEMBER Tile() {
        const int warp = threadIdx.x / 32;
        row = warp / WARPS_ACROSS * WM;
        column = warp % WARPS_ACROSS * WN;
        reads_a = A::reads(row);
        reads_b = B::reads(column);
    }

    DEVICE_MEMBER void read(Address stage, int slice, Factors& f) {
#pragma unroll
        for (int i = 0; i < TM; ++i) A::read(stage, reads_a, i, slice, f.a[i]);
#pragma unroll
        for (int j = 0; j < TN; ++j) B::read(stage + A::BYTES, reads_b, j, slice, f.b[j]);
    }

    DEVICE_MEMBER void multiply(const Factors& f) {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                multiply_add(sums[i][2 * j], f.a[i], f.b[j]);
                multiply_add(sums[i][2 * j + 1], f.a[i], f.b[j] + 2);
            }
    }

    // The chains through all steps. Those behind K are zeros, which leave a sum as it is.
    DEVICE_MEMBER void run(const Place& p, int lda, int ldb) {
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN * 2; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
        const Address shared = shared_memory();
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
        wait_for_all_but<STAGES - 2>();
        __syncthreads();

        Address stage = shared, previous = shared + (STAGES - 1) * STAGE;
        Factors factors[2];
        if (p.k > 0) read(stage, 0, factors[0]);
#pragma unroll 1
        for (int k = 0; k < p.k; k += BK) {
            begin_copy(a, b, previous, left); // everybody left that stage before the last barrier
#pragma unroll
            for (int s = 0; s < SLICES; ++s) {
                if (s == SLICES - 1) { // the next slice is in the next stage
                    end_copy(a, b);
                    wait_for_all_but<STAGES - 2>();
                    __syncthreads();
                    previous = stage;
                    stage = stage == shared + (STAGES - 1) * STAGE ? shared : stage + STAGE;
                }
                read(stage, (s + 1) % SLICES, factors[(s + 1) % 2]);
                a.copy(s, SLICES - 1);
                b.copy(s, SLICES - 1);
                multiply(factors[s % 2]);
            }
        }
    }

    DEVICE_MEMBER void begin_copy(A& a, B& b, Address stage, int& left) {
        a.begin_copy(stage, left);
        b.begin_copy(stage + A::BYTES, left);
        left -= BK;
    }
    DEVICE_MEMBER void end_copy(A& a, B& b) {
        a.end_copy();
        b.end_copy();
        close_copies();
    }

    DEVICE_MEMBER void store(const Place& p, int ldc, bool accumulate) {
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            if (accumulate) {
                float before[TN * 2][4]; // read at once, as they take long to come
                move<false>(p, ldc, i, before);
#pragma unroll
                for (int j = 0; j < TN * 2; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[i][j][e] = before[j][e] + sums[i][j][e];
            }
            move<true>(p, ldc, i, sums[i]);
        }
    }

    // Writes the lane's values of the warp's rows 16 i .. 16 i + 15 to C, or reads what is there.
    template <bool WRITE> DEVICE_MEMBER void move(const Place& p, int ldc, int i, float (&values)[TN * 2][4]) {
        const bool pairs = (((size_t)p.c | (size_t)ldc * 4) & 7) == 0;
        const int lane = threadIdx.x % 32, first = column + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = row + i * 16 + half * 8 + lane / 4;
            if (r >= p.rows) continue;
            float* line = p.c + (size_t)r * ldc + first;
#pragma unroll
            for (int j = 0; j < TN * 2; ++j) {
                float *at = line + j * 8, *pair = &values[j][half * 2];
                const int count = p.columns - first - j * 8;
                if (pairs && count >= 2) {
                    if (WRITE) *(Float2*)at = Float2{pair[0], pair[1]};
                    else {
                        const Float2 x = *(const Float2*)at;
                        pair[0] = x.a, pair[1] = x.b;
                    }
                } else {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        if (e >= count) continue;
                        if (WRITE) at[e] = pair[e];
                        else pair[e] = at[e];
                    }
                }
            }
        }
    }
};

// The tile of a block. Blocks that run at the same time take a square of tiles rather than a line of them, as they then
// read less between them: eight rows of tiles at a time, column after column.
struct TileIndex {
    int row, column;
};
DEVICE TileIndex tile_index() {
    const unsigned index = blockIdx.y * gridDim.x + blockIdx.x, band = 8 * gridDim.x, first = index / band * 8;
    const unsigned height = (unsigned)min(8, (int)(gridDim.y - first)), within = index % band;
    return {(int)(first + within % height), (int)(within / height)};
}

// The part of a product from output (row, column) on.
template <class T>
DEVICE void multiply_tile(const Bf16* a, const Bf16* b, float* c, int m, int n, int k, int lda,
                          int ldb, int ldc, int accumulate, int row, int column) {
    const Place p = {T::A::origin(a, lda, row), T::B::origin(b, ldb, column), c + (size_t)row * ldc + column,
                     m - row, n - column, k};
    T tile;
    tile.run(p, lda, ldb);
    tile.store(p, ldc, accumulate);
}

template <class T>
DEVICE void whole(const Bf16* a, const Bf16* b, float* c, int m, int n, int k, int lda, int ldb,
                  int ldc, int accumulate) {
    const TileIndex at = tile_index();
    multiply_tile<T>(a, b, c, m, n, k, lda, ldb, ldc, accumulate, at.row * T::HEIGHT, at.column * T::WIDTH);
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
DEVICE void group_of_rows(const Bf16* a, const Bf16* b, float* c, int n, int k, int lda, int ldb,
                          int ldc, int accumulate, const int* starts, int groups, long long stride) {
    const TileIndex at = tile_index();
    const GroupTile tile = find_group(starts, groups, T::HEIGHT, at.row);
    if (tile.group < 0) return;
    const int end = starts[tile.group + 1], row = starts[tile.group] + tile.row;
    multiply_tile<T>(a, b + tile.group * stride, c, end, n, k, lda, ldb, ldc, accumulate, row, at.column * T::WIDTH);
}

template <class T>
DEVICE void group_of_steps(const Bf16* a, const Bf16* b, float* c, int m, int n, int lda, int ldb,
                           int ldc, int accumulate, const int* starts, long long stride) {
    const int group = blockIdx.z, begin = starts[group], steps = starts[group + 1] - begin;
    if (steps == 0) return;
    whole<T>(a + (size_t)begin * lda, b + (size_t)begin * ldb, c + group * stride, m, n, steps, lda, ldb, ldc,
             accumulate);
}

//             BM   BN  BK  WM  WN  stages, [K, rows]?
typedef Tile<128, 256, 32, 64, 64, 4, false, false> Nt128x256;
typedef Tile<128, 128, 32, 64, 64, 4, false, false> Nt128x128;
typedef Tile<64, 64, 64, 32, 32, 3, false, false> Nt64x64;
typedef Tile<64, 32, 64, 32, 16, 4, false, false> Nt64x32;
typedef Tile<16, 64, 64, 16, 16, 4, false, false> Nt16x64;
typedef Tile<16, 16, 128, 16, 16, 6, false, false> Nt16x16;
typedef Tile<128, 256, 32, 64, 64, 4, false, true> Nn128x256;
typedef Tile<128, 128, 32, 64, 64, 4, false, true> Nn128x128;
typedef Tile<64, 64, 64, 32, 32, 3, false, true> Nn64x64;
typedef Tile<64, 32, 64, 32, 16, 4, false, true> Nn64x32;
typedef Tile<16, 64, 64, 16, 16, 4, false, true> Nn16x64;
typedef Tile<16, 16, 128, 16, 16, 6, false, true> Nn16x16;
typedef Tile<128, 256, 32, 64, 64, 4, true, true> Tn128x256;
typedef Tile<128, 128, 32, 64, 64, 4, true, true> Tn128x128;
typedef Tile<64, 64, 64, 32, 32, 3, true, true> Tn64x64;
typedef Tile<32, 32, 64, 16, 16, 4, true, true> Tn32x32;

// What the table says about threads and shared memory; layouts do not differ.
template <class T, int N, int BYTES> constexpr bool takes = T::THREADS == N && T::BYTES == BYTES;
static_assert(takes<Nt128x256, 256, 98304> && takes<Nt128x128, 128, 65536> && takes<Nt64x64, 128, 49152>);
static_assert(takes<Nt64x32, 128, 49152> && takes<Nt16x64, 128, 40960> && takes<Nt16x16, 32, 49152>);
static_assert(takes<Nn128x256, 256, 98304> && takes<Nn128x128, 128, 65536> && takes<Nn64x64, 128, 49152>);
static_assert(takes<Nn64x32, 128, 49152> && takes<Nn16x64, 128, 40960> && takes<Nn16x16, 32, 49152>);
static_assert(takes<Tn128x256, 256, 98304> && takes<Tn128x128, 128, 65536> && takes<Tn64x64, 128, 49152>);
static_assert(takes<Tn32x32, 128, 32768>);

}  // namespace fast_gemm_kernels

#define FAST_GEMM_FACTORS                                                                                              \
    const Bf16 *a, const Bf16 *b, float *c, int m, int n, int k, int lda, int ldb, int ldc, int accumulate
#define FAST_GEMM_GROUPS const int *starts, int groups, long long stride

// Rounding to bf16, to nearest, ties to even.

// y [n] = x [n]. Launch: any grid, best min(ceil(n / 2048), 16 * multiprocessors); 256 threads.
KERNEL_BOUNDED(fast_gemm_round, 256, 4)(const float* x, Bf16* y, long long n) {
    const bool both = aligned(x) && aligned(y);
    const long long stride = (long long)gridDim.x * blockDim.x * 8;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n; i += stride)
        tensor_cores::round_eight(x + i, y + i, n - i < 8 ? (int)(n - i) : 8, both);
}

// Whole products.

KERNEL_BOUNDED(fast_gemm_nt_128x256, 256, 1)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt128x256>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nt_128x128, 128, 2)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nt_64x64, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nt_64x32, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt64x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nt_16x64, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt16x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nt_16x16, 32, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nt16x16>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_128x256, 256, 1)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn128x256>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_128x128, 128, 2)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_64x64, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_64x32, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn64x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_16x64, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn16x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_nn_16x16, 32, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Nn16x16>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_tn_128x256, 256, 1)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Tn128x256>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_tn_128x128, 128, 2)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Tn128x128>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_tn_64x64, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Tn64x64>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}
KERNEL_BOUNDED(fast_gemm_tn_32x32, 128, 4)(FAST_GEMM_FACTORS) {
    fast_gemm_kernels::whole<fast_gemm_kernels::Tn32x32>(a, b, c, m, n, k, lda, ldb, ldc, accumulate);
}

// Products of groups of rows (the slots of an expert): rows starts[g] .. starts[g + 1] of A and C, and the weight that
// begins g * stride values behind b. `starts` [groups + 1] is on the device, and m is not looked at: grid.y is at least
// the number of row tiles, ceil(rows / BM) + groups.

KERNEL_BOUNDED(fast_gemm_grouped_nt_128x128, 128, 2)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nt128x128>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nt_64x64, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nt64x64>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nt_16x64, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nt16x64>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nt_16x16, 32, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nt16x16>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nn_128x128, 128, 2)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nn128x128>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nn_64x64, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nn64x64>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nn_16x64, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nn16x64>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_nn_16x16, 32, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_rows<fast_gemm_kernels::Nn16x16>(a, b, c, n, k, lda, ldb, ldc, accumulate,
                                      starts, groups, stride);
}

// Products of groups of steps (the gradient of an expert's weight): steps starts[g] .. starts[g + 1] of A and B, and
// the output that begins g * stride values behind c. grid.z is the number of groups; k is not looked at. A group
// without steps leaves its output alone, also where it does not accumulate.

KERNEL_BOUNDED(fast_gemm_grouped_tn_128x128, 128, 2)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_steps<fast_gemm_kernels::Tn128x128>(a, b, c, m, n, lda, ldb, ldc, accumulate,
                                       starts, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_tn_64x64, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_steps<fast_gemm_kernels::Tn64x64>(a, b, c, m, n, lda, ldb, ldc, accumulate,
                                       starts, stride);
}
KERNEL_BOUNDED(fast_gemm_grouped_tn_32x32, 128, 4)(FAST_GEMM_FACTORS, FAST_GEMM_GROUPS) {
    fast_gemm_kernels::group_of_steps<fast_gemm_kernels::Tn32x32>(a, b, c, m, n, lda, ldb, ldc, accumulate,
                                       starts, stride);
}
