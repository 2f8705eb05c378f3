// Posterior per image: segments are cut into chunks of CHUNK candidates, one block each, so that one long
// segment and many short ones are served alike. Four kernels: maximum, accumulate, conclude, normalise.

#define WARPS (BLOCK / 32)
typedef unsigned long long Key;  // value in the high half, ordered as an unsigned integer; ~index in the low half

__device__ __forceinline__ Key key_of(float value, unsigned index)
{
    const unsigned bits = __float_as_uint(value);
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Key)ordered << 32 | (0xffffffffu - index);
}

__device__ __forceinline__ float value_of(Key key)
{
    const unsigned ordered = (unsigned)(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ float impossible() { return __uint_as_float(0xff800000u); }  // -infinity

struct Chunk {
    long long begin, end;  // candidates of this block
    long long segment;     // first candidate of the image
};

__device__ __forceinline__ Chunk chunk(const long long* __restrict__ offsets)
{
    Chunk c;
    c.segment = offsets[blockIdx.x];
    c.begin = c.segment + (long long)blockIdx.y * CHUNK;
    c.end = min(c.begin + CHUNK, offsets[blockIdx.x + 1]);
    return c;
}

// Combination over the block of one value per thread, returned to thread 0.
template <class T, class F> __device__ __forceinline__ T block_reduce(T value, F combine)
{
    __shared__ T partial[WARPS];
    for (int d = 16; d > 0; d /= 2)
        value = combine(value, __shfl_down_sync(0xffffffffu, value, d));
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w < WARPS; w++)
            value = combine(value, partial[w]);
    return value;
}

extern "C" __global__ void maximum(const float* __restrict__ log_weight, const long long* __restrict__ offsets,
                                   Key* __restrict__ keys)
{
    const Chunk c = chunk(offsets);
    if (c.begin >= c.end)
        return;
    Key best = 0;
    for (long long i = c.begin + threadIdx.x; i < c.end; i += BLOCK)
        if (log_weight[i] > impossible())
            best = max(best, key_of(log_weight[i], (unsigned)(i - c.segment)));
    best = block_reduce(best, [](Key a, Key b) { return max(a, b); });
    if (threadIdx.x == 0)
        atomicMax(&keys[blockIdx.x], best);
}

// Unnormalised weights, their sum per chunk, and the histogram of the distance below the maximum:
// bin b counts b - 1 < BINS_PER_UNIT (max - value) <= b.
extern "C" __global__ void accumulate(const float* __restrict__ log_weight, const long long* __restrict__ offsets,
                                      const Key* __restrict__ keys, int n_bins, float* __restrict__ weights,
                                      double* __restrict__ sums, int* __restrict__ counts)
{
    extern __shared__ int histogram[];
    const Chunk c = chunk(offsets);
    if (c.begin >= c.end)
        return;
    const Key key = keys[blockIdx.x];
    const float best = value_of(key);
    for (int b = threadIdx.x; b < n_bins; b += BLOCK)
        histogram[b] = 0;
    __syncthreads();
    double sum = 0.;
    for (long long i = c.begin + threadIdx.x; i < c.end; i += BLOCK) {
        const float weight = key ? expf(log_weight[i] - best) : 0.f;
        const float below = ceilf((best - log_weight[i]) * BINS_PER_UNIT);
        weights[i] = weight;
        sum += weight;
        if (key && below < (float)n_bins)
            atomicAdd(&histogram[(int)below], 1);
    }
    sum = block_reduce(sum, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0)
        sums[(size_t)blockIdx.x * gridDim.y + blockIdx.y] = sum;
    __syncthreads();
    for (int b = threadIdx.x; b < n_bins; b += BLOCK)
        if (histogram[b])
            atomicAdd(&counts[(size_t)blockIdx.x * n_bins + b], histogram[b]);
}

__device__ __forceinline__ double tempered(const int* counts, int b, float temperature)
{
    return counts[b] ? counts[b] * (double)expf(-temperature * fmaxf(b - 0.5f, 0.f) / BINS_PER_UNIT) : 0.;
}

// One block per image: evidence, best candidate, and the bin at which the mass or the cap is reached.
extern "C" __global__ void conclude(const long long* __restrict__ offsets, const Key* __restrict__ keys,
                                    const double* __restrict__ sums, int n_chunks, const int* __restrict__ all_counts,
                                    int n_bins, float mass, float temperature, int max_candidates,
                                    float* __restrict__ threshold, double* __restrict__ log_evidence,
                                    long long* __restrict__ best, float* __restrict__ factor)
{
    __shared__ double held[BLOCK];
    __shared__ int kept[BLOCK];
    const int image = blockIdx.x, span = (n_bins + BLOCK - 1) / BLOCK;
    const int* counts = all_counts + (size_t)image * n_bins;
    held[threadIdx.x] = 0.;
    kept[threadIdx.x] = 0;
    for (int b = threadIdx.x * span; b < min((int)(threadIdx.x + 1) * span, n_bins); b++) {
        held[threadIdx.x] += tempered(counts, b, temperature);
        kept[threadIdx.x] += counts[b];
    }
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    const Key key = keys[image];
    double total = 0., sum = 0.;
    for (int t = 0; t < BLOCK; t++)
        total += held[t];
    const long long n = offsets[image + 1] - offsets[image];
    for (int chunk = 0; chunk < n_chunks && (long long)chunk * CHUNK < n; chunk++)
        sum += sums[(size_t)image * n_chunks + chunk];

    const double wanted = mass * total;
    const int cap = max_candidates > 0 ? max_candidates : 0x7fffffff;
    double so_far = 0.;
    int number = 0, range = 0;
    while (range < BLOCK - 1 && so_far + held[range] < wanted && number + kept[range] <= cap) {
        so_far += held[range];
        number += kept[range++];
    }
    int b = range * span;
    for (; b < n_bins && so_far < wanted && (b == 0 || number + counts[b] <= cap); b++) {
        number += counts[b];
        so_far += tempered(counts, b, temperature);
    }
    const int last = max(min(b, n_bins) - 1, 0);
    threshold[image] = key ? value_of(key) - (float)last / BINS_PER_UNIT : -impossible();
    log_evidence[image] = key ? value_of(key) + log(sum) : impossible();
    best[image] = key ? offsets[image] + (0xffffffffu - (unsigned)key) : -1;
    factor[image] = key ? (float)(1. / sum) : 0.f;
}

extern "C" __global__ void normalise(const long long* __restrict__ offsets, const float* __restrict__ factor,
                                     float* __restrict__ weights)
{
    const Chunk c = chunk(offsets);
    for (long long i = c.begin + threadIdx.x; i < c.end; i += BLOCK)
        weights[i] *= factor[blockIdx.x];
}
