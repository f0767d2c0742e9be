// bf16 factors and the instructions of tensor cores, for the files of the fast mode: in front of each of them.
#pragma once

// The upper half of an f32's bits.
typedef unsigned short Bf16;

#define DEVICE_MEMBER __device__ __forceinline__

namespace tensor_cores {

const float LOG2_E = 1.44269504088896340736f, LN_2 = 0.693147180559945309417f;

#ifndef EMULATOR
// 2^x, within 2 units in the last place; exact for 0 and -inf.
DEVICE float exp2_of(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
#else
DEVICE float exp2_of(float x) { return exp2f(x); }
#endif

// Two bf16 values side by side, the first one low.
typedef unsigned Pair;

// Shared memory is addressed in bytes from the beginning of all of it; addresses are multiples of 16.
typedef unsigned Address;

#ifndef EMULATOR
DEVICE Address shared_memory() {
    DYNAMIC_SHARED(unsigned char, shared);
    return (Address)__cvta_generic_to_shared(shared);
}

// Copies that run on while the thread goes on: 16 bytes, or the first `bytes` of them and zeros behind.
DEVICE void start_copy(Address to, const Bf16* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
}
DEVICE void start_copy(Address to, const Bf16* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// The same of one value, or a zero.
DEVICE void start_copy_of_value(Address to, const float* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(exists ? 4 : 0) : "memory");
}
DEVICE void close_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N> DEVICE void wait_for_all_but() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

DEVICE void store_shared(Address to, const Pair (&x)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

DEVICE void store_pair(Address to, Pair x) { asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(x) : "memory"); }

// Four matrices of 8 x 8 values, whose rows are where lanes 0-7, 8-15, 16-23, 24-31 say. A lane gets from each, in row
// lane / 4, columns lane % 4 * 2 and the next one; with TURN, of its transpose.
template <bool TURN> DEVICE void load_matrices(Address row, Pair (&x)[4]) {
    if constexpr (TURN)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(row)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(row)
                     : "memory");
}

// Sixteen steps of 16 x 8 sums. A lane has rows lane / 4 and 8 further, and of each two neighbouring columns from
// lane % 4 * 2 on; of a, the matrices (rows 0-7, steps 0-7), (rows 8-15, steps 0-7), then both of steps 8-15; of b,
// whose rows are the columns of the sums, steps 0-7 and 8-15.
DEVICE void multiply_add(float (&sums)[4], const Pair (&a)[4], const Pair* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounds to nearest, ties to even; a NaN becomes 0x7fff.
DEVICE Pair round_pair(float first, float second) {
    Pair r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
#else
// The same in plain C++; a card rounds sums within multiply_add otherwise, so tests against it need a tolerance.
DEVICE Address shared_memory() { return 0; }
DEVICE unsigned char* at_address(Address at) { return emulator::dynamic_shared + at; }
DEVICE void start_copy(Address to, const Bf16* from, int bytes = 16) {
    emulator::start_copy(at_address(to), from, bytes, 16 - bytes);
}
DEVICE void start_copy_of_value(Address to, const float* from, bool exists) {
    emulator::start_copy(at_address(to), from, exists ? 4 : 0, exists ? 0 : 4);
}
DEVICE void close_copies() { emulator::close_copies(); }
template <int N> DEVICE void wait_for_all_but() { emulator::wait_for_all_but(N); }
DEVICE void store_shared(Address to, const Pair (&x)[4]) { memcpy(at_address(to), x, 16); }

DEVICE void store_pair(Address to, Pair x) { memcpy(at_address(to), &x, 4); }

// What the lanes of every warp show each other.
static Pair shown[emulator::MAX_THREADS][6];

DEVICE Bf16 at_column(Address row, int column) {
    Bf16 v;
    memcpy(&v, at_address(row) + 2 * column, 2);
    return v;
}
template <bool TURN> DEVICE void load_matrices(Address row, Pair (&x)[4]) {
    const unsigned me = emulator::now, warp = me / 32 * 32, i = me % 32 / 4, j = me % 4 * 2;
    shown[me][0] = row;
    emulator::meet();
    for (unsigned m = 0; m < 4; ++m) {
        const unsigned first = warp + m * 8;
        x[m] = TURN ? at_column(shown[first + j][0], i) | (Pair)at_column(shown[first + j + 1][0], i) << 16
                    : at_column(shown[first + i][0], j) | (Pair)at_column(shown[first + i][0], j + 1) << 16;
    }
    emulator::yield();
}
DEVICE double value(Pair x, int which) { return __int_as_float((int)(which ? x & 0xffff0000u : x << 16)); }
DEVICE void multiply_add(float (&sums)[4], const Pair (&a)[4], const Pair* b) {
    const unsigned me = emulator::now, warp = me / 32 * 32;
    for (int i = 0; i < 4; ++i) shown[me][i] = a[i];
    shown[me][4] = b[0];
    shown[me][5] = b[1];
    emulator::meet();
    for (int i = 0; i < 4; ++i) {
        const Pair(*of_row)[6] = shown + warp + me % 32 / 4 * 4;
        const Pair(*of_column)[6] = shown + warp + (me % 4 * 2 + i % 2) * 4;
        double sum = sums[i];
        for (int k = 0; k < 16; ++k)
            sum += value(of_row[k % 8 / 2][i / 2 + k / 8 * 2], k % 2) * value(of_column[k % 8 / 2][4 + k / 8], k % 2);
        sums[i] = (float)sum;
    }
    emulator::yield();
}
DEVICE unsigned round_one(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
DEVICE Pair round_pair(float first, float second) { return round_one(first) | round_one(second) << 16; }
#endif

// Eight values of a row, of which `count` exist, rounded.
DEVICE void round_eight(const float* x, Bf16* y, int count, bool aligned) {
    if (aligned && count >= 8) {
        const Float4 low = ((const Float4*)x)[0], high = ((const Float4*)x)[1];
        struct __attribute__((aligned(16))) Eight {
            Pair p[4];
        };
        *(Eight*)y = {{round_pair(low.v[0], low.v[1]), round_pair(low.v[2], low.v[3]),
                       round_pair(high.v[0], high.v[1]), round_pair(high.v[2], high.v[3])}};
    } else {
        for (int i = 0; i < count && i < 8; ++i) y[i] = (Bf16)round_pair(x[i], 0.0f);
    }
}

}  // namespace tensor_cores
