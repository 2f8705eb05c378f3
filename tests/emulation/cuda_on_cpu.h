// Runs CUDA C kernels on the CPU, one block after another, for tests of correctness.
//
// Every thread of a block is a fiber with its own stack. A fiber runs until its thread ends or waits at a barrier or
// warp operation; then the scheduler resumes the next one, warp by warp. Threads are started and resumed in one of three
// orders (forward, reverse, shuffled), so that a missing barrier shows as a result that depends on the order. Reported as
// errors: threads that wait for others which never come, barriers reached at different places, lanes missing from a
// mask. Dynamic shared memory is poisoned (NaN) before each block; shuffles from inactive lanes return poison.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

constexpr size_t STACK_BYTES = 64 * 1024;
enum Order { FORWARD, REVERSE, SHUFFLED };

struct Thread {
    ucontext_t start;
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    unsigned linear = 0;
    uint3 index{};
    bool alive = false;
};

struct Warp {
    unsigned alive = 0, arrived = 0, released = 0;
    uint64_t exchange[32];
};

struct Block {
    uint3 index{};
    dim3 size{}, grid{};
    unsigned n_threads = 0, n_finished = 0, n_waiting = 0, generation = 0;
    int barrier_line = 0;
    int next_sum = 0, sum = 0;  // of the predicates of __syncthreads_count
    bool progress = false;
    const char* error = nullptr;
    std::vector<Warp> warps;
    char* dynamic_shared = nullptr;
    ucontext_t scheduler;
    void* scheduler_stack_pointer = nullptr;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
    std::vector<unsigned> order;
    size_t next_start = 0;
};

static Block* block = nullptr;
static Thread* current = nullptr;

// ---- switching stacks -------------------------------------------------------------------------------------------
#if defined(__x86_64__)
// swapcontext saves the signal mask with a system call; this saves the registers that a function must preserve.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* to);
asm(R"(
.text
.local emulation_switch
.type emulation_switch,@function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch,.-emulation_switch
)");
static inline void to_thread(Thread* thread)
{
    current = thread;
    emulation_switch(&block->scheduler_stack_pointer, thread->stack_pointer);
}
static inline void to_scheduler() { emulation_switch(&current->stack_pointer, block->scheduler_stack_pointer); }
static void prepare(Thread* thread, void (*entry)())
{
    void** top = (void**)(thread->stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = (void*)entry;
    for (int saved = 0; saved < 6; saved++)
        *--top = nullptr;
    thread->stack_pointer = top;
}
#else
static inline void to_thread(Thread* thread)
{
    current = thread;
    swapcontext(&block->scheduler, &thread->start);
}
static inline void to_scheduler() { swapcontext(&current->start, &block->scheduler); }
static void prepare(Thread* thread, void (*entry)())
{
    getcontext(&thread->start);
    thread->start.uc_stack.ss_sp = thread->stack;
    thread->start.uc_stack.ss_size = STACK_BYTES;
    thread->start.uc_link = nullptr;
    makecontext(&thread->start, entry, 0);
}
#endif

static inline void fail(const char* message)
{
    if (!block->error)
        block->error = message;
}

// ---- barriers and warp operations -------------------------------------------------------------------------------
static inline bool release_barrier()
{
    Block* b = block;
    if (!b->n_waiting || b->n_waiting != b->n_threads - b->n_finished)
        return false;
    b->sum = b->next_sum;
    b->next_sum = b->n_waiting = b->barrier_line = 0;
    b->generation++;
    b->progress = true;
    return true;
}

static inline int barrier(int line, bool predicate)
{
    Block* b = block;
    const unsigned generation = b->generation;
    if (b->barrier_line && b->barrier_line != line)
        fail("threads of a block wait at different barriers");
    b->barrier_line = line;
    b->n_waiting++;
    b->next_sum += predicate;
    b->progress = true;
    while (b->generation == generation && !release_barrier())
        to_scheduler();
    return b->sum;
}

static inline Warp& warp() { return block->warps[current->linear / 32]; }
static inline unsigned lane() { return current->linear % 32; }

static inline void warp_barrier(unsigned mask)
{
    Warp& w = warp();
    const unsigned bit = 1u << lane();
    if (!(mask & bit))
        fail("a lane takes part in a warp operation whose mask does not name it");
    w.arrived |= bit;
    block->progress = true;
    while (!(w.released & bit)) {
        if ((w.arrived & mask) == (mask & w.alive)) {
            w.arrived &= ~mask;
            w.released |= mask & w.alive;
            block->progress = true;
            break;
        }
        to_scheduler();
    }
    w.released &= ~bit;
}

template <class T> static inline T shuffle(unsigned mask, T value, int source, bool in_range)
{
    static_assert(sizeof(T) <= 8, "shuffles move at most eight bytes");
    Warp& w = warp();
    uint64_t raw = 0;
    std::memcpy(&raw, &value, sizeof(T));
    w.exchange[lane()] = raw;
    warp_barrier(mask);
    if (in_range)
        raw = (mask & w.alive) >> source & 1 ? w.exchange[source] : ~0ull;
    warp_barrier(mask);
    std::memcpy(&value, &raw, sizeof(T));
    return value;
}

static inline unsigned ballot(unsigned mask, bool predicate)
{
    Warp& w = warp();
    w.exchange[lane()] = predicate;
    warp_barrier(mask);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        if ((mask & w.alive) >> i & 1)
            bits |= (unsigned)w.exchange[i] << i;
    warp_barrier(mask);
    return bits;
}

// ---- the scheduler ----------------------------------------------------------------------------------------------
static void begin(Thread* thread, unsigned linear)
{
    const dim3& size = block->size;
    thread->linear = linear;
    thread->index = {linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)};
}

// Runs threads of the kernel one after another on the same stack, until one of them waits.
static void thread_main()
{
    for (;;) {
        Block* b = block;
        b->body(b->arguments);
        b->n_finished++;
        b->progress = true;
        warp().alive &= ~(1u << lane());
        release_barrier();
        if (b->next_start < b->order.size()) {
            begin(current, b->order[b->next_start++]);
            continue;
        }
        current->alive = false;
        to_scheduler();
    }
}

struct Random {
    uint64_t state;
    unsigned below(unsigned n)
    {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (unsigned)(state >> 33) % n;
    }
};

template <class T> static void shuffle_order(std::vector<T>& items, Random& random)
{
    for (size_t i = items.size(); i > 1; i--)
        std::swap(items[i - 1], items[random.below((unsigned)i)]);
}

// Runs one warp as far as it gets without the others, so that warps overtake each other; true if it got anywhere.
static bool run_warp(unsigned number, const std::vector<Thread*>& active, Order order, Random& random)
{
    bool progress = false;
    do {
        std::vector<Thread*> members;
        for (Thread* thread : active)
            if (thread->alive && thread->linear / 32 == number)
                members.push_back(thread);
        if (order == SHUFFLED)
            shuffle_order(members, random);
        block->progress = false;
        for (Thread* thread : members)
            to_thread(thread);
        progress |= block->progress;
    } while (block->progress && !block->error);
    return progress;
}

static void run_block(Block& b, Order order, Random& random, size_t shared_bytes)
{
    static std::vector<Thread*> threads;
    std::vector<uint64_t> shared(shared_bytes / 8 + 8, ~0ull);
    block = &b;
    b.dynamic_shared = (char*)(((uintptr_t)shared.data() + 15) & ~(uintptr_t)15);
    b.warps.assign((b.n_threads + 31) / 32, Warp());
    for (unsigned i = 0; i < b.n_threads; i++) {
        b.warps[i / 32].alive |= 1u << i % 32;
        b.order.push_back(order == REVERSE ? b.n_threads - 1 - i : i);
    }
    if (order == SHUFFLED)
        shuffle_order(b.order, random);

    std::vector<Thread*> active;
    std::vector<unsigned> warps;
    for (unsigned w = 0; w < b.warps.size(); w++)
        warps.push_back(order == REVERSE ? (unsigned)b.warps.size() - 1 - w : w);
    while (b.n_finished < b.n_threads && !b.error) {
        while (b.next_start < b.order.size()) {
            if (active.size() == threads.size()) {
                threads.push_back(new Thread);
                threads.back()->stack = (char*)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            }
            Thread* thread = threads[active.size()];
            active.push_back(thread);
            prepare(thread, thread_main);
            thread->alive = true;
            begin(thread, b.order[b.next_start++]);
            to_thread(thread);
        }
        if (order == SHUFFLED)
            shuffle_order(warps, random);
        bool progress = false;
        for (unsigned w : warps)
            progress |= run_warp(w, active, order, random);
        if (b.n_finished < b.n_threads && !progress)
            fail("deadlock: threads wait for others that never come");
    }
    block = nullptr;
}

struct Launch {
    unsigned grid[3], block[3];
    uint64_t shared_bytes, seed;
    int order;
    char message[256];
};

template <class F> static int launch(Launch* request, F&& call)
{
    auto body = [](void* f) { (*(F*)f)(); };
    const dim3 grid{request->grid[0], request->grid[1], request->grid[2]};
    const dim3 size{request->block[0], request->block[1], request->block[2]};
    const size_t n_blocks = (size_t)grid.x * grid.y * grid.z;
    Random random{request->seed};
    for (size_t i = 0; i < n_blocks; i++) {
        const size_t j = request->order == REVERSE ? n_blocks - 1 - i : i;
        Block b;
        b.grid = grid;
        b.size = size;
        b.n_threads = size.x * size.y * size.z;
        b.index = {(unsigned)(j % grid.x), (unsigned)(j / grid.x % grid.y), (unsigned)(j / ((size_t)grid.x * grid.y))};
        b.body = body;
        b.arguments = &call;
        run_block(b, (Order)request->order, random, request->shared_bytes);
        if (b.error) {
            std::snprintf(request->message, sizeof request->message, "%s (block %u, %u, %u)", b.error, b.index.x,
                          b.index.y, b.index.z);
            return 1;
        }
    }
    return 0;
}

template <class... A, size_t... I>
static int launch_unpacked(Launch* request, void (*kernel)(A...), void** arguments, std::index_sequence<I...>)
{
    return launch(request, [&] { kernel(*(std::remove_reference_t<A>*)arguments[I]...); });
}
template <class... A> static int launch_kernel(Launch* request, void (*kernel)(A...), void** arguments)
{
    return launch_unpacked(request, kernel, arguments, std::index_sequence_for<A...>());
}

// Kind ('p' pointer, 'f' floating, 'i' signed, 'u' unsigned) and size in bytes of each kernel parameter.
template <class T> static constexpr int kind_of()
{
    const char kind = std::is_pointer<T>::value          ? 'p'
                      : std::is_floating_point<T>::value ? 'f'
                      : std::is_signed<T>::value         ? 'i'
                                                         : 'u';
    return kind << 8 | (int)sizeof(T);
}
template <class... A> static int signature(void (*)(A...), int* out)
{
    const int kinds[] = {kind_of<A>()..., 0};
    std::memcpy(out, kinds, sizeof...(A) * sizeof(int));
    return (int)sizeof...(A);
}

template <class T> struct identity {
    using type = T;
};
template <class T> using as_given = typename identity<T>::type;

}  // namespace emulation

#define EXPORT_KERNEL(name)                                                                \
    extern "C" int launch_##name(emulation::Launch* request, void** arguments)             \
    {                                                                                      \
        return emulation::launch_kernel(request, name, arguments);                         \
    }                                                                                      \
    extern "C" int signature_##name(int* out) { return emulation::signature(name, out); }

// ---- the CUDA language ------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)
#define warpSize 32
#define __syncthreads() ((void)emulation::barrier(__LINE__, false))
#define __syncthreads_count(predicate) emulation::barrier(__LINE__, (predicate) != 0)
#define __syncthreads_or(predicate) (emulation::barrier(__LINE__, (predicate) != 0) != 0)

static inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::warp_barrier(mask); }
static inline void __threadfence() {}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    return emulation::shuffle(mask, value, (int)(emulation::lane() & ~(width - 1)) | (source & (width - 1)), true);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int lane = (int)emulation::lane();
    return emulation::shuffle(mask, value, lane + (int)delta, (lane & (width - 1)) + (int)delta < width);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int lane = (int)emulation::lane();
    return emulation::shuffle(mask, value, lane - (int)delta, (lane & (width - 1)) >= (int)delta);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32)
{
    const int lane = (int)emulation::lane(), source = lane ^ bits;
    return emulation::shuffle(mask, value, source, (source & ~(width - 1)) <= (lane & ~(width - 1)));
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulation::ballot(mask, predicate != 0); }
static inline int __any_sync(unsigned mask, int predicate) { return emulation::ballot(mask, predicate != 0) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return emulation::ballot(mask, predicate == 0) == 0; }

// Threads change places only at barriers and warp operations, so that a plain update is atomic.
template <class T, class F> static inline T emulated_update(T* at, F update)
{
    const T old = *at;
    *at = update(old);
    return old;
}
template <class T> static inline T atomicAdd(T* at, emulation::as_given<T> v)
{
    return emulated_update(at, [=](T old) { return (T)(old + v); });
}
template <class T> static inline T atomicMax(T* at, emulation::as_given<T> v)
{
    return emulated_update(at, [=](T old) { return old < v ? v : old; });
}
template <class T> static inline T atomicMin(T* at, emulation::as_given<T> v)
{
    return emulated_update(at, [=](T old) { return v < old ? v : old; });
}
template <class T> static inline T atomicExch(T* at, emulation::as_given<T> v)
{
    return emulated_update(at, [=](T) { return v; });
}
template <class T> static inline T atomicCAS(T* at, emulation::as_given<T> expected, emulation::as_given<T> v)
{
    return emulated_update(at, [=](T old) { return old == expected ? v : old; });
}

template <class To, class From> static inline To emulated_bits(From value)
{
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
static inline unsigned __float_as_uint(float v) { return emulated_bits<unsigned>(v); }
static inline float __uint_as_float(unsigned v) { return emulated_bits<float>(v); }
static inline int __float_as_int(float v) { return emulated_bits<int>(v); }
static inline float __int_as_float(int v) { return emulated_bits<float>(v); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __float2int_rn(float v) { return (int)std::rint(v); }
static inline int __float2int_rd(float v) { return (int)std::floor(v); }
template <class T> static inline T __ldg(const T* at) { return *at; }

template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
static inline float emulated_rsqrtf(float v) { return 1.f / std::sqrt(v); }
static inline void emulated_sincospif(float v, float* sine, float* cosine)
{
    const double reduced = M_PI * (v - 2. * std::rint(v / 2.));
    *sine = (float)std::sin(reduced);
    *cosine = (float)std::cos(reduced);
}
static inline float emulated_sinpif(float v)
{
    float sine, cosine;
    emulated_sincospif(v, &sine, &cosine);
    return sine;
}
static inline float emulated_cospif(float v)
{
    float sine, cosine;
    emulated_sincospif(v, &sine, &cosine);
    return cosine;
}
// By macro, because the C library may declare functions of these names.
#define rsqrtf emulated_rsqrtf
#define sincospif emulated_sincospif
#define sinpif emulated_sinpif
#define cospif emulated_cospif
#define __expf expf
#define __logf logf
