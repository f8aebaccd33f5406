// Emulation of CUDA for a C++ compiler: blocks run one after another, the threads of a block as fibers.
//
// A fiber runs until it ends, waits at a shuffle for its warp, or waits at __syncthreads for its block. Then the next
// fiber of the warp runs. Each warp runs as far as possible before the next one starts. Every run is therefore the same,
// and AddressSanitizer checks every access.
//
// The program aborts at a barrier that only some threads of a block, or some lanes of a warp, reach. `backwards`
// reverses the order of lanes and warps: a kernel that lacks a barrier then gives a different result.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <setjmp.h>
#include <tuple>
#include <utility>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void **, const void *, size_t) {}
static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) {}
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

using std::exp;
using std::fabs;
using std::floor;
using std::sqrt;

struct Dim3 {
    unsigned x;
};
static Dim3 blockIdx, blockDim, threadIdx;

namespace host {

enum State { READY, AT_BLOCK, AT_WARP, DONE };
constexpr int WARP_SIZE = 32, MAX_THREADS = 1024;
constexpr size_t STACK = 1 << 17;

struct Fiber {
    ucontext_t context;  // starts the fiber
    jmp_buf position;    // resumes the fiber where it waits
    char *stack;
    void *fake_stack;  // of AddressSanitizer
    State state;
    bool started;
    int shuffles;  // number of shuffles so far
};

static Fiber fibers[MAX_THREADS];
static jmp_buf scheduler;
static const void *scheduler_stack;
static size_t scheduler_size;
static void (*body)(void *);
static void *body_arguments;
static double slots[2][MAX_THREADS];

[[noreturn]] static void fail(const char *what) {
    std::fprintf(stderr, "cuda_on_host: block %u: %s\n", blockIdx.x, what);
    std::abort();
}

static void wait(State state) {
    Fiber &self = fibers[threadIdx.x];
    self.state = state;
    __sanitizer_start_switch_fiber(state == DONE ? nullptr : &self.fake_stack, scheduler_stack, scheduler_size);
    if (!_setjmp(self.position)) _longjmp(scheduler, 1);  // swapcontext is slower: a system call for the signal mask
    __sanitizer_finish_switch_fiber(fibers[threadIdx.x].fake_stack, &scheduler_stack, &scheduler_size);
}

static void start() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
    body(body_arguments);
    wait(DONE);
}

static void *scheduler_fake_stack;

static void resume(int thread) {
    Fiber &fiber = fibers[thread];
    threadIdx.x = thread;
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK);
    if (!_setjmp(scheduler)) {
        if (fiber.started) _longjmp(fiber.position, 1);
        fiber.started = true;
        setcontext(&fiber.context);
    }
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

static int count(int first, int threads, State state) {
    int n = 0;
    for (int i = first; i < first + threads; i++) n += fibers[i].state == state;
    return n;
}

static void make_ready(int first, int threads) {
    for (int i = first; i < first + threads; i++) fibers[i].state = READY;
}

// Run a warp until each of its lanes waits at __syncthreads or has ended.
static void run_warp(int first, bool backwards) {
    for (;;) {
        for (int n = 0; n < WARP_SIZE; n++) {
            const int i = first + (backwards ? WARP_SIZE - 1 - n : n);
            if (fibers[i].state == READY) resume(i);
        }
        const int at_warp = count(first, WARP_SIZE, AT_WARP);
        if (!at_warp) return;
        if (at_warp < WARP_SIZE) fail("lanes of a warp do not meet at a shuffle");
        make_ready(first, WARP_SIZE);
    }
}

static void run_block(int threads, bool backwards) {
    for (int i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        if (!fiber.stack)
            fiber.stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
        fiber.started = false;
        fiber.shuffles = 0;
    }
    do {
        make_ready(0, threads);
        for (int n = 0; n < threads; n += WARP_SIZE) run_warp(backwards ? threads - WARP_SIZE - n : n, backwards);
        if (count(0, threads, DONE) == threads) return;
    } while (count(0, threads, AT_BLOCK) == threads);
    fail("threads of a block do not meet at __syncthreads");
}

template <typename... A>
struct Call {
    void (*kernel)(A...);
    void **addresses;
    template <size_t... I>
    void make(std::index_sequence<I...>) {
        kernel(*static_cast<A *>(addresses[I])...);
    }
};

// Launch a kernel. As in cuLaunchKernel, `addresses` holds the address of each argument.
template <typename... A>
void run(void (*kernel)(A...), int blocks, int threads, bool backwards, void **addresses) {
    if (threads < 1 || threads > MAX_THREADS || threads % WARP_SIZE) fail("a block must be 1 to 32 whole warps");
    Call<A...> call{kernel, addresses};
    body = [](void *p) { static_cast<Call<A...> *>(p)->make(std::index_sequence_for<A...>()); };
    body_arguments = &call;
    blockDim.x = threads;
    for (int b = 0; b < blocks; b++) {
        blockIdx.x = b;
        run_block(threads, backwards);
    }
}

}  // namespace host

static void __syncthreads() { host::wait(host::AT_BLOCK); }

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int step) {
    static_assert(sizeof(T) <= sizeof(double), "");
    if (lanes != 0xffffffffu) host::fail("a shuffle must include all lanes of the warp");
    const int thread = threadIdx.x;
    // two slots per thread: a lane may reach the next shuffle before the others have read the value of this one
    double *slots = host::slots[host::fibers[thread].shuffles++ % 2];
    std::memcpy(&slots[thread], &value, sizeof value);
    host::wait(host::AT_WARP);
    std::memcpy(&value, &slots[thread ^ step], sizeof value);
    return value;
}
