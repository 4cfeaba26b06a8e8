// CUDA kernels on the CPU: the names of CUDA for g++, so that the very source of a kernel can be run and
// checked where there is no GPU.
//
// The blocks run one after the other. Where threads of a block wait for each other (__syncthreads, shuffles),
// each thread is a fiber with a stack of its own; it runs until it must wait, then the next one runs. So a
// barrier that is missing shows: who comes first reads what the others have not written yet.

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct Three { unsigned x, y, z; };
static Three gridDim, blockDim, blockIdx, threadIdx;
static const int warpSize = 32;

using std::isinf;
using std::isnan;
static inline float __int_as_float(int bits) { float f; __builtin_memcpy(&f, &bits, 4); return f; }
static inline float __uint_as_float(unsigned bits) { return __int_as_float(int(bits)); }
static inline unsigned __float_as_uint(float f) { unsigned bits; __builtin_memcpy(&bits, &f, 4); return bits; }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
template <class N> static inline N min(N a, N b) { return b < a ? b : a; }
template <class N> static inline N max(N a, N b) { return a < b ? b : a; }

namespace emulated {

struct Fiber {
    jmp_buf here;  // where it waits
    ucontext_t first;
    std::vector<char> stack;
    bool begun = false, done = false;
};

// Threads that wait for each other: those of a block, or of a warp.
struct Meeting {
    int alive, arrived, passed;

    void release_if_all() {
        if (arrived < alive) return;
        arrived = 0;
        passed++;
    }
};

static std::deque<Fiber> fibers;  // those of one block after the other
static jmp_buf scheduler;
static int current;
static std::function<void()> body;
static Meeting block, warps[64];
static double lanes[2][64][32];  // what each lane of each warp offers, of this exchange and of the next

// To another stack and back by setjmp, which asks nothing of the system, as swapcontext does each time.
__attribute__((noinline)) static void yield() {
    if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

static void entry() {
    for (;;) {
        body();
        fibers[current].done = true;
        for (Meeting* one : {&block, &warps[current / 32]}) {
            one->alive--;
            one->release_if_all();
        }
        yield();
    }
}

__attribute__((noinline)) static void resume(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    fiber.stack.resize(64 << 10);
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack.data();
    fiber.first.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.first, entry, 0);
    setcontext(&fiber.first);
}

// Wait until every thread that has not ended has come here as often as this one.
static void meet(Meeting& all) {
    int before = all.passed;
    all.arrived++;
    all.release_if_all();
    while (all.passed == before) yield();
}

static void run_block(int threads, bool waiting) {
    blockDim = {unsigned(threads), 1, 1};
    if (!waiting) {
        for (int t = 0; t < threads; t++) {
            threadIdx = {unsigned(t), 0, 0};
            body();
        }
        return;
    }
    if (int(fibers.size()) < threads) fibers.resize(threads);
    block = {threads, 0, 0};
    for (int t = 0; t < threads; t++) {
        fibers[t].done = false;
        if (t % 32 == 0) warps[t / 32] = {min(32, threads - t), 0, 0};
    }
    for (bool busy = true; busy;) {
        busy = false;
        for (int t = 0; t < threads; t++) {
            if (fibers[t].done) continue;
            busy = true;
            current = t;
            threadIdx = {unsigned(t), 0, 0};
            resume(fibers[t]);
        }
    }
}

template <class... A, size_t... I>
static void launch(void (*kernel)(A...), int blocks, int threads, bool waiting, void** arguments,
                   std::index_sequence<I...>) {
    gridDim = {unsigned(blocks), 1, 1};
    body = [=] { kernel(*(A*)arguments[I]...); };
    for (int b = 0; b < blocks; b++) {
        blockIdx = {unsigned(b), 0, 0};
        run_block(threads, waiting);
    }
}

template <class... A>
static int launch(void (*kernel)(A...), int blocks, int threads, bool waiting, void** arguments, int count) {
    if (count != sizeof...(A)) return sizeof...(A);
    launch(kernel, blocks, threads, waiting, arguments, std::index_sequence_for<A...>());
    return -1;
}

template <class N>
static N exchange(N value, int from) {
    int warp = current / 32, lane = current % 32, first = warp * 32;
    int last = min(first + 32, int(blockDim.x)), turn = warps[warp].passed % 2;
    lanes[turn][warp][lane] = value;
    meet(warps[warp]);
    return from >= 0 && first + from < last ? N(lanes[turn][warp][from]) : value;
}

}  // namespace emulated

static void __syncthreads() { emulated::meet(emulated::block); }
template <class N> static N __shfl_down_sync(unsigned, N value, int by) {
    int lane = emulated::current % 32;
    return emulated::exchange(value, lane + by < 32 ? lane + by : -1);
}
template <class N> static N __shfl_xor_sync(unsigned, N value, int mask) {
    return emulated::exchange(value, (emulated::current % 32) ^ mask);
}
template <class N> static N __shfl_sync(unsigned, N value, int lane) {
    return emulated::exchange(value, lane);
}
