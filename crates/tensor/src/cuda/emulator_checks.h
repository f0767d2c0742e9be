// What NVIDIA's compute-sanitizer looks for on a card, looked for in the emulator: races between threads and between
// blocks, memory outside of what was asked for, addresses that are no multiple of what is moved at once, and shuffles at
// which not all lanes of a warp meet.
//
// The compiler announces every access (-fsanitize=thread, without its library: the functions that it calls are these).
// Every two bytes of memory have a cell that says who wrote and who read them last, and when. Time is counted in
// intervals, from one barrier of a block to the next. Two accesses of which one writes are ordered
//   if they belong to two launches;
//   if they belong to one block, and a barrier lies between them;
//   if they belong to one warp, and a __syncwarp lies between them (shuffles order nothing).
// Whatever is not ordered is a race, in whichever order the emulator happened to run it.
#pragma once
#define EXEMPT __attribute__((no_sanitize("thread")))
#define ANNOUNCED extern "C" EXEMPT __attribute__((visibility("hidden"))) void

extern "C" unsigned char __start_gpu_shared[], __stop_gpu_shared[];
extern "C" unsigned char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" unsigned char _end[] __attribute__((visibility("hidden")));

namespace checks {
const unsigned MANY = 0xffff, OF_WARP = 0x8000; // readers: of several warps, or OF_WARP + warp

struct Cell {
    unsigned wrote, read, foreign; // intervals, 0 if never; the launch in which other blocks read it, too
    unsigned short writer, write_turn, reader, read_turn;
    bool atomic;
};
struct Region {
    size_t start, bytes;
    Cell* cells;
};

// By their starts. An array: what a template makes would be announced, too.
static Region *regions, *recent;
static size_t many_regions, room_for_regions;
static Cell *of_statics, *of_dynamic;
static unsigned interval = 1, first_of_launch = 1, first_of_block = 1, launch;
static unsigned shared_bytes;
static size_t caller; // a place on its stack
static unsigned short turns[emulator::MAX_THREADS]; // how often each thread has met its warp by __syncwarp
static unsigned meetings[emulator::MAX_THREADS];    // ... and in any way
static const unsigned MOST_FOUND = 20;
static struct { size_t pc; const char* what; } found[MOST_FOUND];
static unsigned many_found;
static char told[MOST_FOUND * 200];

EXEMPT static Cell* cells(size_t bytes) {
    return (Cell*)calloc((bytes + 1) / 2 + 8, sizeof(Cell));
}

EXEMPT static void complain(size_t pc, const char* what) {
    for (unsigned i = 0; i < many_found; ++i)
        if (found[i].pc == pc && found[i].what == what) return;
    if (many_found == MOST_FOUND) return;
    found[many_found].pc = pc;
    found[many_found++].what = what;
    size_t length = strlen(told);
    snprintf(told + length, 200, "\n  %s (thread %u of block %u, %u, %u; instruction 0x%zx)", what, emulator::now,
             blockIdx.x, blockIdx.y, blockIdx.z, pc ? pc - (size_t)__ehdr_start : 0);
}

// The first region that begins behind `at`.
EXEMPT static size_t behind(size_t at) {
    size_t low = 0, high = many_regions;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (regions[middle].start > at) high = middle;
        else low = middle + 1;
    }
    return low;
}
EXEMPT static Region* region(size_t at) {
    if (recent && at - recent->start < recent->bytes) return recent;
    size_t next = behind(at);
    if (next == 0 || at - regions[next - 1].start >= regions[next - 1].bytes) return nullptr;
    return recent = &regions[next - 1];
}
EXEMPT static void remember(size_t start, size_t bytes) {
    if (many_regions == room_for_regions) {
        room_for_regions = 2 * room_for_regions + 64;
        regions = (Region*)realloc(regions, room_for_regions * sizeof(Region));
    }
    size_t at = behind(start);
    memmove(regions + at + 1, regions + at, (many_regions++ - at) * sizeof(Region));
    regions[at] = Region{start, bytes, cells(bytes)};
    recent = nullptr;
}
EXEMPT static void forget(size_t start) {
    size_t at = behind(start) - 1;
    free(regions[at].cells);
    memmove(regions + at, regions + at + 1, (--many_regions - at) * sizeof(Region));
    recent = nullptr;
}

// Whether the access of `who` in `when` and `turn` is ordered before what the current thread does in this block now.
EXEMPT static bool ordered(unsigned when, unsigned who, unsigned turn) {
    if (when != interval) return true;
    unsigned me = emulator::now;
    if (who == me) return true;
    if (who == MANY) return false;
    unsigned warp = who & OF_WARP ? who & ~OF_WARP : who / 32;
    return warp == me / 32 && turn < turns[me];
}
EXEMPT static bool of_other_block(unsigned when) { return when >= first_of_launch && when < first_of_block; }

EXEMPT static void note_read(Cell& c) {
    unsigned me = emulator::now, mine = turns[me];
    if (of_other_block(c.read)) c.foreign = launch;
    if (c.read == interval && !ordered(c.read, c.reader, c.read_turn)) {
        unsigned warp = c.reader & OF_WARP ? c.reader & ~OF_WARP : c.reader / 32;
        c.reader = c.reader != MANY && warp == me / 32 ? OF_WARP + warp : MANY;
    } else {
        c.reader = me;
    }
    c.read = interval;
    c.read_turn = mine;
}
EXEMPT static void note_write(Cell& c, bool atomic) {
    c.wrote = interval;
    c.writer = emulator::now;
    c.write_turn = turns[emulator::now];
    c.atomic = atomic;
}

EXEMPT static void touch(Cell& c, bool writes, bool atomic, bool shared, size_t pc) {
    if (shared && c.wrote < first_of_block && c.read < first_of_block) c = Cell{};
    bool spared = atomic && c.atomic;
    if (c.wrote && !spared) {
        if (!ordered(c.wrote, c.writer, c.write_turn)) complain(pc, writes ? "writes what another thread writes" : "reads what another thread writes");
        if (of_other_block(c.wrote)) complain(pc, writes ? "writes what another block writes" : "reads what another block writes");
    }
    if (writes && !spared && c.read) {
        if (!ordered(c.read, c.reader, c.read_turn)) complain(pc, "writes what another thread reads");
        if (of_other_block(c.read) || c.foreign == launch) complain(pc, "writes what another block reads");
    }
    if (writes) note_write(c, atomic);
    else note_read(c);
}

EXEMPT static void access(const void* address, size_t bytes, bool writes, size_t pc = 0, bool atomic = false) {
    size_t at = (size_t)address, offset;
    size_t statics = __stop_gpu_shared - __start_gpu_shared, dynamic = sizeof emulator::dynamic_shared;
    bool shared = true;
    Cell* cells;
    if (at - (size_t)emulator::stacks < (size_t)emulator::MAX_THREADS * emulator::STACK) return; // a thread's own
    if (at - (size_t)__start_gpu_shared < statics) {
        cells = of_statics, offset = at - (size_t)__start_gpu_shared;
    } else if (at - (size_t)emulator::dynamic_shared < dynamic) {
        cells = of_dynamic, offset = at - (size_t)emulator::dynamic_shared;
        if (offset + bytes > shared_bytes) return complain(pc, "goes beyond the shared memory that was asked for");
    } else if (Region* r = region(at)) {
        shared = false;
        cells = r->cells, offset = at - r->start;
        if (offset + bytes > r->bytes) return complain(pc, "goes beyond the memory that was asked for");
    } else {
        bool constant = at - (size_t)__ehdr_start < (size_t)(_end - __ehdr_start);
        bool of_caller = at - (caller - (64 << 10)) < 256 << 10; // arguments, and the emulator's own
        if (!constant && !of_caller) complain(pc, writes ? "writes outside of all memory" : "reads outside of all memory");
        return;
    }
    for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) touch(cells[i], writes, atomic, shared, pc);
}

static const char UNALIGNED[] = "moves at once what does not lie at a multiple of its size";
EXEMPT static void at_multiple(const void* address, size_t bytes) {
    if ((size_t)address % bytes) complain(0, UNALIGNED);
}

EXEMPT static void begin_launch(unsigned shared) {
    ++launch;
    first_of_launch = interval + 1;
    shared_bytes = shared;
    caller = (size_t)__builtin_frame_address(0);
    many_found = 0;
    told[0] = 0;
    if (of_dynamic) return;
    of_dynamic = cells(sizeof emulator::dynamic_shared);
    of_statics = cells(__stop_gpu_shared - __start_gpu_shared);
}
EXEMPT static void begin_block(unsigned threads) {
    first_of_block = ++interval;
    for (unsigned t = 0; t < threads; ++t) turns[t] = meetings[t] = 0;
}
EXEMPT static void pass_barrier() { ++interval; }

// The lanes of a warp meet between the two.
EXEMPT static void arrive() { ++meetings[emulator::now]; }
EXEMPT static void leave() {
    unsigned me = emulator::now, first = me & ~31u;
    for (unsigned t = first; t < first + 32; ++t)
        if (emulator::done[t] || meetings[t] != meetings[me]) complain(0, "meets its warp where not all lanes do");
}
EXEMPT static void pass_warp() { ++turns[emulator::now]; }
EXEMPT static const char* verdict() { return told[0] ? told : nullptr; }
}  // namespace checks

// What the host does: memory is given from `start` on, or, where there are no bytes, given back.
extern "C" EXEMPT void emulator_memory(size_t start, size_t bytes) {
    if (bytes) checks::remember(start, bytes);
    else checks::forget(start);
}

#define ANNOUNCE(bytes)                                                                                         \
    ANNOUNCED __tsan_read##bytes(void* at) { checks::access(at, bytes, false, (size_t)__builtin_return_address(0)); } \
    ANNOUNCED __tsan_write##bytes(void* at) { checks::access(at, bytes, true, (size_t)__builtin_return_address(0)); }
ANNOUNCE(1)
ANNOUNCE(2)
ANNOUNCE(4)
ANNOUNCE(8)
ANNOUNCE(16)
ANNOUNCED __tsan_read_range(void* at, size_t bytes) { checks::access(at, bytes, false, (size_t)__builtin_return_address(0)); }
ANNOUNCED __tsan_write_range(void* at, size_t bytes) { checks::access(at, bytes, true, (size_t)__builtin_return_address(0)); }
// A pointer to what has to lie at a multiple of more (-fsanitize=alignment).
ANNOUNCED __ubsan_handle_type_mismatch_v1(void*, void*) {
    checks::complain((size_t)__builtin_return_address(0), checks::UNALIGNED);
}
ANNOUNCED __tsan_init() {}
ANNOUNCED __tsan_func_entry(void*) {}
ANNOUNCED __tsan_func_exit() {}
