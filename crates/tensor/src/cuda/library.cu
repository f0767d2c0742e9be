// The test of NVIDIA's library (library.rs): factors that show how a product was summed, and the comparison of two
// results. Values are a function of their place and a seed.

namespace library_kernels {

// Well mixed bits (the finalizer of MurmurHash3).
DEVICE unsigned mix(unsigned h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

// Rows of A and columns of B, given by their number, are of four sorts: one in 32 each is so small that two of them
// give subnormal sums, so small that their products vanish and leave a signed zero, and zero itself.
enum Sort { ORDINARY, SMALL, VANISHING, ZERO };
DEVICE Sort sort_of(int line) {
    int at = line % 32;
    return at == 5 ? SMALL : at == 11 ? VANISHING : at == 17 ? ZERO : ORDINARY;
}

// The bits of a value of either sign between 2^-8 and 2^9, if its line is ordinary: sums of products of such differ with
// their order.
DEVICE unsigned noise(int row, int col, int line, int seed) {
    unsigned h = mix(mix((unsigned)row * 0x9e3779b9u + (unsigned)seed) + (unsigned)col), g = mix(h ^ 0x5bd1e995u);
    Sort sort = sort_of(line);
    int shift = sort == SMALL ? -72 : sort == VANISHING ? -90 : 0;
    unsigned exponent = (unsigned)(127 - 8 + (int)(g % 17u) + shift);
    return sort == ZERO ? h & 0x80000000u : (h & 0x807fffffu) | exponent << 23;
}

// Atomic, but of integers: the order does not show.
DEVICE void add(int* count, int n) {
    atomicAdd(count, n);
}

}

// Noise into to [rows, width]. Lines, by whose number values are of several sorts, are rows if `by_rows`, else columns.
// Grid (rows, any number), any number of threads.
KERNEL(library_fill)(unsigned* __restrict__ to, int rows, int width, int by_rows, int seed) {
    using namespace library_kernels;
    int row = blockIdx.x, stride = gridDim.y * blockDim.x;
    if (row >= rows) return;
    for (int col = blockIdx.y * blockDim.x + threadIdx.x; col < width; col += stride)
        to[(size_t)row * width + col] = noise(row, col, by_rows ? row : col, seed);
}

// The same in bf16.
KERNEL(library_fill_half)(unsigned short* __restrict__ to, int rows, int width, int by_rows, int seed) {
    using namespace library_kernels;
    int row = blockIdx.x, stride = gridDim.y * blockDim.x;
    if (row >= rows) return;
    for (int col = blockIdx.y * blockDim.x + threadIdx.x; col < width; col += stride)
        to[(size_t)row * width + col] = (unsigned short)(noise(row, col, by_rows ? row : col, seed) >> 16);
}

// Adds to counts[0] how many words of a and b [rows, width] differ in ordinary rows and columns, to counts[1] how many
// do in others. Grid (rows, any number), any number of threads.
KERNEL(library_compare)
(const unsigned* __restrict__ a, const unsigned* __restrict__ b, int* __restrict__ counts, int rows, int width) {
    using namespace library_kernels;
    int row = blockIdx.x, stride = gridDim.y * blockDim.x;
    if (row >= rows) return;
    int ordinary = 0, others = 0;
    for (int col = blockIdx.y * blockDim.x + threadIdx.x; col < width; col += stride) {
        size_t at = (size_t)row * width + col;
        int differ = a[at] != b[at];
        if (sort_of(row) == ORDINARY && sort_of(col) == ORDINARY)
            ordinary += differ;
        else
            others += differ;
    }
    if (ordinary > 0) add(&counts[0], ordinary);
    if (others > 0) add(&counts[1], others);
}
