// Values of weights that are held in blocks (blocks.rs has the formats): `(code - zero) * scale + minimum`, the
// processor's bits.

namespace blocks_kernels {

// ggml's numbers, as `Format::ggml` gives them.
enum Format { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

typedef const unsigned char* Bytes;

DEVICE unsigned half_word(Bytes b) { return b[0] | (unsigned)b[1] << 8; }
DEVICE unsigned word(Bytes b) { return half_word(b) | half_word(b + 2) << 16; }

// A finite IEEE half: its bits moved, and the exponent's offset corrected.
DEVICE float half_at(Bytes b) {
    unsigned half = half_word(b);
    float size = __int_as_float((half & 0x7fff) << 13) * __int_as_float((127 + 112) << 23);
    return __int_as_float(__float_as_int(size) | (half & 0x8000) << 16);
}

// Value i of the 32 whose codes of 4 bits lie in 16 bytes: first all lower halves, then all upper ones.
DEVICE unsigned nibble(Bytes codes, int i) { return codes[i % 16] >> i / 16 * 4 & 15; }

// Scale and minimum of run j of 32 values: 6 bits each, in 12 bytes, times two halves.
DEVICE Float2 scale_and_min(Bytes block, int j) {
    Bytes s = block + 4;
    unsigned scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    unsigned min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    return Float2{half_at(block) * (float)scale, half_at(block + 2) * (float)min};
}

// Value i of a row.
template <int FORMAT> DEVICE float value(Bytes row, int i) {
    if constexpr (FORMAT == F32) return __int_as_float(word(row + (size_t)i * 4));
    if constexpr (FORMAT == F16) return half_at(row + (size_t)i * 2);
    if constexpr (FORMAT == BF16) return __int_as_float(half_word(row + (size_t)i * 2) << 16);
    if constexpr (FORMAT == Q4_0) {
        Bytes b = row + (size_t)(i / 32) * 18;
        return ((float)nibble(b + 2, i % 32) - 8.0f) * half_at(b);
    }
    if constexpr (FORMAT == Q4_1) {
        Bytes b = row + (size_t)(i / 32) * 20;
        return (float)nibble(b + 4, i % 32) * half_at(b) + half_at(b + 2);
    }
    if constexpr (FORMAT == Q5_0) {
        Bytes b = row + (size_t)(i / 32) * 22;
        unsigned code = nibble(b + 6, i % 32) | (word(b + 2) >> i % 32 & 1) << 4;
        return ((float)code - 16.0f) * half_at(b);
    }
    if constexpr (FORMAT == Q5_1) {
        Bytes b = row + (size_t)(i / 32) * 24;
        unsigned code = nibble(b + 8, i % 32) | (word(b + 4) >> i % 32 & 1) << 4;
        return (float)code * half_at(b) + half_at(b + 2);
    }
    if constexpr (FORMAT == Q8_0) {
        Bytes b = row + (size_t)(i / 32) * 34;
        return (float)(signed char)b[2 + i % 32] * half_at(b);
    }
    if constexpr (FORMAT == Q4_K || FORMAT == Q5_K) {
        Bytes b = row + (size_t)(i / 256) * (FORMAT == Q5_K ? 176 : 144), low = b + (FORMAT == Q5_K ? 48 : 16);
        int j = i % 256 / 32, at = i % 32;
        unsigned code = low[j / 2 * 32 + at] >> j % 2 * 4 & 15;
        if (FORMAT == Q5_K) code |= (b[16 + at] >> j & 1u) << 4;
        Float2 s = scale_and_min(b, j);
        return (float)code * s.a + -s.b;
    }
    if constexpr (FORMAT == Q6_K) {
        Bytes b = row + (size_t)(i / 256) * 210;
        // Halves of 128; in each, four runs of 32 share their bytes of high bits.
        int part = i % 256 / 128, run = i % 128 / 32, at = i % 32;
        unsigned code = (b[part * 64 + run % 2 * 32 + at] >> run / 2 * 4 & 15) | (b[128 + part * 32 + at] >> run * 2 & 3u) << 4;
        float scale = half_at(b + 208) * (float)(signed char)b[192 + i % 256 / 16];
        return ((float)code - 32.0f) * scale;
    }
}

template <int FORMAT> DEVICE void unpack(Bytes row, float* to, int cols) {
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < cols; i += gridDim.y * blockDim.x)
        to[i] = value<FORMAT>(row, i);
}

}  // namespace blocks_kernels

// out [n, cols], row i = row rows[i] of the matrix in `blocks`, or row i where `rows` is null; its rows are `bytes` long.
// Grid (n, ceil(cols / (4 * threads))), threads 32 to 256.
KERNEL(blocks_unpack)(const unsigned char* blocks, const int* rows, float* out, int format, int cols, int bytes) {
    using namespace blocks_kernels;
    Bytes row = blocks + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * bytes;
    out += (size_t)blockIdx.x * cols;
    switch (format) {
        case F32: return unpack<F32>(row, out, cols);
        case F16: return unpack<F16>(row, out, cols);
        case BF16: return unpack<BF16>(row, out, cols);
        case Q4_0: return unpack<Q4_0>(row, out, cols);
        case Q4_1: return unpack<Q4_1>(row, out, cols);
        case Q5_0: return unpack<Q5_0>(row, out, cols);
        case Q5_1: return unpack<Q5_1>(row, out, cols);
        case Q8_0: return unpack<Q8_0>(row, out, cols);
        case Q4_K: return unpack<Q4_K>(row, out, cols);
        case Q5_K: return unpack<Q5_K>(row, out, cols);
        case Q6_K: return unpack<Q6_K>(row, out, cols);
    }
}
