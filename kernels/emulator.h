// Runs CUDA kernels on a CPU, so that tests need no GPU: a grid block by block, the threads of a block as fibers.
//
// The same .cu files are compiled by an ordinary C++ compiler (C++17, GCC or Clang). What a GPU would leave undefined is an
// error here: threads of a block that wait at different barriers, or for one that has ended; lanes of a warp that take
// part in different collective operations; 16-byte accesses that are not aligned; shared memory used beyond what the launch
// asked for (guards behind it, and AddressSanitizer where it is compiled in); asynchronous copies read before they were
// waited for, or to a place that is still read, because in ascending order they happen no earlier than they are waited for, and
// in descending order at once. Shared memory starts as NaN.
//
// Blocks, warps and lanes run one at a time in a fixed order, each as far as it can, so that a missing barrier shows as a
// wrong number: in ascending order by default, in descending order on demand. Tests run both and compare bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

namespace emulator {

struct Index {
    unsigned x, y, z;
};

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 256 * 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t GUARD_BYTES = 0; // it has its own
#else
constexpr size_t GUARD_BYTES = 256;
#endif

enum class State { ready, at_barrier, in_warp, done };

struct Fiber {
    State state;
    int barrier_line;
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

// A collective operation of a warp that some lanes have reached.
struct Warp {
    const char* operation;
    unsigned mask;
    unsigned arrived;
    void* lanes[LANES];
};

// An asynchronous copy that has not happened yet.
struct Copy {
    void* to;
    const void* from;
    unsigned bytes, zeros;
};

struct Block {
    Index block, blocks;
    unsigned num_threads;
    unsigned thread; // the one that runs
    std::function<void()> body;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    // Whether asynchronous copies happen as early as they can, and not as late.
    bool copies_at_once;
    // Of each thread: copies of the open group, and the groups that were closed.
    std::vector<std::vector<Copy>> open_copies;
    std::vector<std::vector<std::vector<Copy>>> groups;
    std::vector<char> stacks;
    char* shared;
    size_t shared_bytes;
    std::string error;
#if defined(__x86_64__)
    void* scheduler;
#else
    ucontext_t scheduler;
#endif
};

inline thread_local Block* current = nullptr;

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack, swaps stacks, and takes them from the other one.
__attribute__((naked, noinline)) inline void switch_stacks(void**, void*) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

// AddressSanitizer wants to know on which stack the program runs: before a switch where it goes, after it that it is there.
struct Stack {
    const void* bottom;
    size_t bytes;
};
#if defined(__SANITIZE_ADDRESS__)
inline thread_local Stack scheduler_stack{};
inline void will_switch(Stack to) {
    void* unused; // of stacks in use after return, which are not looked for
    __sanitizer_start_switch_fiber(&unused, to.bottom, to.bytes);
}
inline void to_fiber(const char* stack) { will_switch({stack, STACK_BYTES}); }
inline void to_scheduler() { will_switch(scheduler_stack); }
inline void in_fiber() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack.bottom, &scheduler_stack.bytes);
}
inline void in_scheduler() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
// Threads that a fault ended have left marks of their variables all over their stacks (clean_stacks),
// and fiber_main, which never returns, leaves its own at the top.
inline void clean_top(char* stack) { __asan_unpoison_memory_region(stack + STACK_BYTES - 4096, 4096); }
inline void clean_stacks() { __asan_unpoison_memory_region(current->stacks.data(), current->stacks.size()); }
#else
inline void to_fiber(const char*) {}
inline void to_scheduler() {}
inline void in_fiber() {}
inline void in_scheduler() {}
inline void clean_top(char*) {}
inline void clean_stacks() {}
#endif

inline void yield() {
    Block& b = *current;
    Fiber& fiber = b.fibers[b.thread];
    to_scheduler();
#if defined(__x86_64__)
    switch_stacks(&fiber.stack_pointer, b.scheduler);
#else
    swapcontext(&fiber.context, &b.scheduler);
#endif
    in_fiber();
}

// Ends the launch with a sentence. The fiber that finds the fault never goes on.
[[noreturn]] inline void fail(const std::string& what) {
    Block& b = *current;
    if (b.error.empty()) {
        b.error = what + " (block " + std::to_string(b.block.x) + ", " + std::to_string(b.block.y) + ", " +
                  std::to_string(b.block.z) + ", thread " + std::to_string(b.thread) + ")";
    }
    b.fibers[b.thread].state = State::done;
    yield();
    std::abort();
}

inline void fiber_main() {
    in_fiber();
    current->body();
    current->fibers[current->thread].state = State::done;
    yield();
    std::abort();
}

inline void resume(unsigned thread) {
    Block& b = *current;
    b.thread = thread;
    Fiber& fiber = b.fibers[thread];
    to_fiber(b.stacks.data() + thread * STACK_BYTES);
#if defined(__x86_64__)
    switch_stacks(&b.scheduler, fiber.stack_pointer);
#else
    swapcontext(&b.scheduler, &fiber.context);
#endif
    in_scheduler();
}

inline void prepare(unsigned thread) {
    Block& b = *current;
    Fiber& fiber = b.fibers[thread];
    fiber.state = State::ready;
    char* stack = b.stacks.data() + thread * STACK_BYTES;
    clean_top(stack);
#if defined(__x86_64__)
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + STACK_BYTES) & ~uintptr_t(63);
    void** frame = reinterpret_cast<void**>(top) - 8; // six registers, the entry, and room that keeps calls aligned
    for (int i = 0; i < 6; ++i) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(&fiber_main);
    frame[7] = nullptr;
    fiber.stack_pointer = frame;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

// Runs the threads of one block to their ends.
inline void run_block(bool descending) {
    Block& b = *current;
    b.copies_at_once = descending;
    for (unsigned t = 0; t < b.num_threads; ++t) prepare(t);
    for (Warp& warp : b.warps) warp = Warp{};
    for (auto& copies : b.open_copies) copies.clear();
    for (auto& groups : b.groups) groups.clear();
    std::memset(b.shared, 0xff, b.shared_bytes);
    std::memset(b.shared + b.shared_bytes, 0xa5, GUARD_BYTES);
    while (b.error.empty()) {
        // A warp runs as far as it can before the next one begins, so that nothing but barriers holds it back.
        for (unsigned i = 0; i < b.warps.size() && b.error.empty(); ++i) {
            unsigned first = (descending ? static_cast<unsigned>(b.warps.size()) - 1 - i : i) * LANES;
            for (bool ran = true; ran && b.error.empty();) {
                ran = false;
                for (unsigned lane = 0; lane < LANES && b.error.empty(); ++lane) {
                    unsigned t = first + (descending ? LANES - 1 - lane : lane);
                    if (b.fibers[t].state != State::ready) continue;
                    resume(t);
                    ran = true;
                }
            }
        }
        if (!b.error.empty()) break;
        unsigned done = 0, waiting = 0;
        int line = -1;
        bool same = true;
        for (const Fiber& fiber : b.fibers) {
            done += fiber.state == State::done;
            if (fiber.state == State::at_barrier) {
                same = same && (line < 0 || line == fiber.barrier_line);
                line = fiber.barrier_line;
                waiting += 1;
            }
        }
        if (done == b.num_threads) break;
        if (waiting == b.num_threads && same) {
            for (Fiber& fiber : b.fibers) fiber.state = State::ready;
        } else if (waiting + done == b.num_threads) {
            b.error = "barrier divergence: " + std::to_string(waiting) + " of " + std::to_string(b.num_threads) +
                      " threads wait at " + (same ? "a barrier" : "barriers in different lines") + ", one of them line " +
                      std::to_string(line) + ", and " + std::to_string(done) + " have ended";
        } else {
            for (const Warp& warp : b.warps) {
                if (warp.arrived) b.error = std::string("lanes of a warp never came to ") + warp.operation;
            }
        }
    }
    for (size_t i = 0; i < GUARD_BYTES && b.error.empty(); ++i) {
        if (static_cast<unsigned char>(b.shared[b.shared_bytes + i]) != 0xa5) {
            b.error = "shared memory was written behind its end";
        }
    }
}

// Waits until all threads of the block are here.
inline void barrier(int line) {
    Fiber& fiber = current->fibers[current->thread];
    fiber.state = State::at_barrier;
    fiber.barrier_line = line;
    yield();
}

// Waits until all lanes of the mask are here with the same operation; the last one computes it for all:
// `compute(lanes)` gets each lane's `Payload`, null for lanes beyond the mask.
template <class Payload, class Compute>
inline void collective(const char* operation, unsigned mask, Payload& payload, Compute compute) {
    Block& b = *current;
    unsigned lane = b.thread % LANES;
    Warp& warp = b.warps[b.thread / LANES];
    if (!(mask >> lane & 1)) fail(std::string(operation) + " by a lane that its mask leaves out");
    if (warp.arrived == 0) {
        warp.operation = operation;
        warp.mask = mask;
    } else if (std::strcmp(warp.operation, operation) != 0 || warp.mask != mask) {
        fail(std::string("lanes of a warp diverged: ") + operation + " and " + warp.operation);
    }
    warp.lanes[lane] = &payload;
    warp.arrived |= 1u << lane;
    if (warp.arrived != mask) {
        b.fibers[b.thread].state = State::in_warp;
        yield();
        return;
    }
    Payload* lanes[LANES];
    for (unsigned i = 0; i < LANES; ++i) lanes[i] = mask >> i & 1 ? static_cast<Payload*>(warp.lanes[i]) : nullptr;
    compute(lanes);
    warp.arrived = 0;
    unsigned first = b.thread / LANES * LANES;
    for (unsigned i = 0; i < LANES; ++i) {
        if ((mask >> i & 1) && i != lane) b.fibers[first + i].state = State::ready;
    }
}

inline void require_aligned(const void* pointer, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) fail("an access is not aligned to its size");
}

// An address in the block's shared memory that holds `bytes`, as the hardware's shared addresses do.
inline void require_shared(const void* pointer, size_t bytes) {
    const char* p = static_cast<const char*>(pointer);
    const Block& b = *current;
    if (p < b.shared || p + bytes > b.shared + b.shared_bytes) fail("an access leaves the shared memory of the launch");
}

inline void happen(const Copy& copy) {
    if (copy.bytes) std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
}

inline void copy_some_time(void* to, const void* from, unsigned bytes, unsigned valid) {
    require_aligned(to, bytes);
    require_shared(to, bytes);
    if (valid) require_aligned(from, bytes);
    Copy copy{to, from, valid, bytes - valid};
    if (current->copies_at_once) return happen(copy);
    current->open_copies[current->thread].push_back(copy);
}

inline void close_copies() {
    Block& b = *current;
    b.groups[b.thread].push_back(std::move(b.open_copies[b.thread]));
    b.open_copies[b.thread].clear();
}

// Makes all groups but the last `pending` happen.
inline void wait_for_copies(size_t pending) {
    auto& groups = current->groups[current->thread];
    while (groups.size() > pending) {
        for (const Copy& copy : groups.front()) happen(copy);
        groups.erase(groups.begin());
    }
}

// What the host asks for.
struct Launch {
    unsigned blocks[3];
    unsigned threads;
    unsigned shared_bytes;
    unsigned descending;
};

// Runs a grid; the error is written to `message` (empty without one).
inline void run(const Launch& launch, const std::function<void()>& body, char* message, size_t message_bytes) {
    static thread_local Block block;
    current = &block;
    block.body = body;
    block.error.clear();
    block.num_threads = launch.threads;
    block.blocks = {launch.blocks[0], launch.blocks[1], launch.blocks[2]};
    block.fibers.resize(launch.threads);
    block.warps.resize((launch.threads + LANES - 1) / LANES);
    block.open_copies.resize(launch.threads);
    block.groups.resize(launch.threads);
    // Anew and not resized, since nothing on old stacks is worth a copy, which AddressSanitizer would not like.
    if (block.stacks.size() < launch.threads * STACK_BYTES) block.stacks = std::vector<char>(launch.threads * STACK_BYTES);
    // An allocation of its own, so that AddressSanitizer sees its ends.
    block.shared_bytes = launch.shared_bytes;
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, launch.shared_bytes + GUARD_BYTES) != 0) std::abort();
    block.shared = static_cast<char*>(shared);
    unsigned total = launch.blocks[0] * launch.blocks[1] * launch.blocks[2];
    for (unsigned i = 0; i < total && block.error.empty(); ++i) {
        unsigned index = launch.descending ? total - 1 - i : i;
        unsigned x = index % launch.blocks[0], rest = index / launch.blocks[0];
        block.block = {x, rest % launch.blocks[1], rest / launch.blocks[1]};
        run_block(launch.descending != 0);
    }
    if (!block.error.empty()) clean_stacks();
    std::free(block.shared);
    std::snprintf(message, message_bytes, "%s", block.error.c_str());
    current = nullptr;
}

struct ThreadIndex {
    struct X {
        operator unsigned() const { return current->thread; }
    } x;
};
struct BlockIndex {
    struct X {
        operator unsigned() const { return current->block.x; }
    } x;
    struct Y {
        operator unsigned() const { return current->block.y; }
    } y;
    struct Z {
        operator unsigned() const { return current->block.z; }
    } z;
};
struct GridSize {
    struct X {
        operator unsigned() const { return current->blocks.x; }
    } x;
    struct Y {
        operator unsigned() const { return current->blocks.y; }
    } y;
    struct Z {
        operator unsigned() const { return current->blocks.z; }
    } z;
};
struct BlockSize {
    struct X {
        operator unsigned() const { return current->num_threads; }
    } x;
};

// One letter per parameter: p pointer, i int, u unsigned, l unsigned long long, f float.
template <class T>
constexpr char letter() {
    if constexpr (std::is_pointer_v<T>) return 'p';
    else if constexpr (std::is_same_v<T, int>) return 'i';
    else if constexpr (std::is_same_v<T, unsigned>) return 'u';
    else if constexpr (std::is_same_v<T, unsigned long long>) return 'l';
    else {
        static_assert(std::is_same_v<T, float>, "a kernel's parameter is a pointer, an int, an unsigned or a float");
        return 'f';
    }
}

template <class... Params>
inline const char* signature(void (*)(Params...)) {
    static const char letters[] = {letter<Params>()..., 0};
    return letters;
}

template <class... Params, size_t... I>
inline void call(void (*kernel)(Params...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Params>*>(args[I])...);
}

template <class... Params>
inline void launch(void (*kernel)(Params...), const Launch& how, void** args, char* message, size_t message_bytes) {
    run(how, [=] { call(kernel, args, std::index_sequence_for<Params...>{}); }, message, message_bytes);
}

} // namespace emulator

// GCC shares these among the files; they have no state.
static const emulator::ThreadIndex threadIdx;
static const emulator::BlockIndex blockIdx;
static const emulator::GridSize gridDim;
static const emulator::BlockSize blockDim;

#define __syncthreads() emulator::barrier(__LINE__)

// Makes a kernel callable from the tests: what it takes, and a way to run it.
#define EXPORT(kernel)                                                                                       \
    extern "C" const char* signature_of_##kernel() { return emulator::signature(&kernel); }                  \
    extern "C" void run_##kernel(const emulator::Launch* how, void** args, char* message, size_t bytes) {    \
        emulator::launch(&kernel, *how, args, message, bytes);                                               \
    }
