// Runs the kernels on a processor: every thread of a block is a fiber, and a barrier or a shuffle hands over to the
// next one. Blocks run one after another, so a race shows only where it is looked for: -DCHECKED, see emulator_checks.h.
//
// Before the kernels: this file. Behind them: a table of `EMULATED(name)` entries (`Gpu::emulator_source` writes it).
#pragma once
#define EMULATOR
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#ifdef CHECKED
#define __shared__ static __attribute__((section("gpu_shared")))
#define UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#else
#define __shared__ static
#define UNCHECKED inline
#endif
#define __grid_constant__
#define KERNEL(name) static void name
#define KERNEL_BOUNDED(name, threads, blocks) static void name
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::dynamic_shared

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static Dim3 blockIdx, blockDim, gridDim, threadIdx;

static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
static inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
static inline long long __double_as_longlong(double d) { long long i; memcpy(&i, &d, 8); return i; }
static inline double __longlong_as_double(long long i) { double d; memcpy(&d, &i, 8); return d; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

namespace emulator {
const unsigned MAX_THREADS = 1024, STACK = 32 << 10;
alignas(64) static unsigned char dynamic_shared[256 << 10];
static unsigned long long lanes[MAX_THREADS];
static unsigned now;
static bool done[MAX_THREADS];
static unsigned arrived, generation; // threads that wait at the barrier, and how often it has opened
static char* stacks;
static void (*body)(void*);
static void* body_data;

#if defined(__x86_64__)
// Saves what a call must keep and changes the stack.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
static void *home, *fibers[MAX_THREADS];
static void yield() {
    unsigned me = now;
    emulator_switch(&fibers[me], home);
}
static void entry() {
    body(body_data);
    done[now] = true;
    yield();
    abort();
}
static void prepare(unsigned t) {
    void** top = (void**)(stacks + (size_t)(t + 1) * STACK);
    *--top = nullptr; // where entry would return to; aligns the stack as a call does
    *--top = (void*)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fibers[t] = top;
}
static void resume(unsigned t) { emulator_switch(&home, fibers[t]); }
#else
static ucontext_t home, fibers[MAX_THREADS];
static void yield() { swapcontext(&fibers[now], &home); }
static void entry() {
    body(body_data);
    done[now] = true;
    yield();
}
static void prepare(unsigned t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
    fibers[t].uc_stack.ss_size = STACK;
    fibers[t].uc_link = &home;
    makecontext(&fibers[t], entry, 0);
}
static void resume(unsigned t) { swapcontext(&home, &fibers[t]); }
#endif

}  // namespace emulator

#ifdef CHECKED
#include "emulator_checks.h"
#else
namespace checks {
static inline void begin_launch(unsigned) {}
static inline void begin_block(unsigned) {}
static inline void pass_barrier() {}
static inline void arrive() {}
static inline void leave() {}
static inline void pass_warp() {}
static inline void access(const void*, size_t, bool, size_t = 0, bool = false) {}
static inline void at_multiple(const void*, size_t) {}
static inline const char* verdict() { return nullptr; }
}  // namespace checks
#endif

namespace emulator {
// Copies that run on while the thread goes on (cp.async): they arrive as late as they may, when it waits for their group.
struct Copy {
    void* to;
    const void* from;
    unsigned bytes, zeros; // behind them
    unsigned group;
};
const unsigned MOST_COPIES = 512;
struct Copies {
    Copy list[MOST_COPIES];
    unsigned first, count, group;
};
static Copies copies[MAX_THREADS];

static void start_copy(void* to, const void* from, unsigned bytes, unsigned zeros) {
    Copies& mine = copies[now];
    if (mine.count == MOST_COPIES) abort();
    mine.list[(mine.first + mine.count++) % MOST_COPIES] = Copy{to, from, bytes, zeros, mine.group};
    if (bytes) {
        checks::at_multiple(from, bytes + zeros);
        checks::access(from, bytes, false);
    }
    checks::at_multiple(to, bytes + zeros);
    checks::access(to, bytes + zeros, true);
}
static void close_copies() { ++copies[now].group; }
static void wait_for_all_but(unsigned groups) {
    Copies& mine = copies[now];
    for (; mine.count; --mine.count, mine.first = (mine.first + 1) % MOST_COPIES) {
        const Copy& c = mine.list[mine.first];
        if (c.group + groups >= mine.group) break;
        memcpy(c.to, c.from, c.bytes);
        memset((char*)c.to + c.bytes, 0, c.zeros);
        checks::access(c.to, c.bytes + c.zeros, true);
    }
}

static void run_block(unsigned threads) {
    checks::begin_block(threads);
    for (unsigned t = 0; t < threads; ++t) {
        done[t] = false;
        copies[t].first = copies[t].count = copies[t].group = 0;
        prepare(t);
    }
    for (unsigned live = threads; live;) {
        live = 0;
        for (unsigned t = 0; t < threads; ++t) {
            if (done[t]) continue;
            now = t;
            threadIdx = Dim3{t, 0, 0};
            resume(t);
            live += !done[t];
        }
        if (arrived == live) {
            arrived = 0;
            ++generation;
            checks::pass_barrier();
        }
    }
}

static void run(Dim3 grid, unsigned threads) {
    if (!stacks) stacks = (char*)aligned_alloc(64, (size_t)MAX_THREADS * STACK);
    gridDim = grid;
    blockDim = Dim3{threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads);
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(A*)args[I]...);
}
template <class... A> struct Call {
    void (*kernel)(A...);
    void** args;
    static void body(void* self) {
        Call* c = (Call*)self;
        call(c->kernel, c->args, std::index_sequence_for<A...>());
    }
};
template <class... A> static void start(void (*kernel)(A...), Dim3 grid, unsigned threads, void** args) {
    Call<A...> c{kernel, args};
    body = Call<A...>::body;
    body_data = &c;
    run(grid, threads);
}

// The lanes of a warp meet: what each has done before, all others see behind it.
static void meet() {
    checks::arrive();
    yield();
    checks::leave();
}

// Every thread of the block (or of the warp) leaves a value, waits for the others, and takes one.
template <class T> static T exchange(T v, unsigned from) {
    unsigned me = now;
    unsigned long long bits = 0;
    memcpy(&bits, &v, sizeof v);
    lanes[me] = bits;
    meet();
    T r;
    memcpy(&r, &lanes[from], sizeof r);
    yield();
    return r;
}
}  // namespace emulator

static inline void __syncthreads() {
    unsigned before = emulator::generation;
    ++emulator::arrived;
    while (emulator::generation == before) emulator::yield();
}
static inline int __syncthreads_or(int p) {
    static int votes;
    votes |= p != 0;
    __syncthreads();
    int any = votes;
    __syncthreads();
    votes = 0;
    __syncthreads();
    return any;
}
static inline void __syncwarp(unsigned = 0) {
    emulator::meet();
    checks::pass_warp();
    emulator::yield();
}
template <class T> static inline T __shfl_sync(unsigned, T v, int lane, int width = 32) {
    unsigned me = emulator::now;
    return emulator::exchange(v, me / width * width + (unsigned)lane % width);
}
template <class T> static inline T __shfl_down_sync(unsigned, T v, unsigned d, int width = 32) {
    unsigned me = emulator::now;
    return emulator::exchange(v, me % width + d < (unsigned)width ? me + d : me);
}
template <class T> static inline T __shfl_up_sync(unsigned, T v, unsigned d, int width = 32) {
    unsigned me = emulator::now;
    return emulator::exchange(v, me % width >= d ? me - d : me);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T v, unsigned m, int width = 32) {
    unsigned me = emulator::now;
    return emulator::exchange(v, (me % width ^ m) < (unsigned)width ? me ^ m : me);
}
static inline unsigned __ballot_sync(unsigned, int p) {
    unsigned me = emulator::now, first = me & ~31u, r = 0;
    emulator::lanes[me] = p != 0;
    emulator::meet();
    for (unsigned i = 0; i < 32 && first + i < blockDim.x; ++i) r |= (unsigned)emulator::lanes[first + i] << i;
    emulator::yield();
    return r;
}
UNCHECKED static int atomicAdd(int* to, int n) {
    checks::access(to, sizeof *to, true, 0, true);
    int before;
    memcpy(&before, to, sizeof before);
    int after = before + n;
    memcpy(to, &after, sizeof after);
    return before;
}

// The table: name -> kernel.
#define EMULATED(name) if (!strcmp(wanted, #name)) { emulator::start(name, grid, threads, args); return checks::verdict(); }
