// The best candidates of each image, from Fourier coefficients over N_PSI in-plane angles; TURNS lists their (cosine,
// sine). Four kernels: best_angles finds the best angle of each (shift, direction), raise_floor takes the value below
// which none of those can be among the best, keep_best scores the others again and adds to the lists what is above
// the floor, prune cuts the lists back. What best_angles and keep_best compute is the same to the last bit.

#define HALF (N_PSI / 2)
#define N_EVEN (N_PSI / 4 + 1)
#define N_ODD (HALF + 1 - N_EVEN)
#define ALL 0xffffffffu
constexpr int STEPS = N_EVEN < 13 ? N_EVEN : N_PSI <= 96 ? 13 : 7;  // angles whose sums a thread holds at once
constexpr int UNROLLED = N_PSI <= 96 ? N_EVEN : 1;

__constant__ float2 turns[N_PSI] = {TURNS};

struct Tile {
    const float *real, *imag, *norm, *prior, *direction_prior;
    int n_shifts, n_directions, fit_scale;
};

__device__ __forceinline__ float log_likelihood(float cross, float norm, float prior, int fit_scale)
{
    if (!fit_scale)
        return cross - norm + prior;
    const float positive = fmaxf(cross, 0.f);
    return positive * positive / fmaxf(4.f * norm, 1e-20f) + prior;
}

__device__ __forceinline__ int angle(int s, int w)
{
    return w == 0 ? s : w == 1 ? HALF - s : w == 2 ? N_PSI - s : HALF + s;
}

// Whether angle(s, w) is one of its own: s = 0 and s = N_PSI / 4 are mirrored onto themselves.
__device__ __forceinline__ bool distinct(int s, int w)
{
    return s < N_EVEN && (w < 2 || s > 0) && !(2 * s == HALF && w % 2);
}

// Scores of one (shift, direction) at angle(s0 + j, w): sums over even and odd q serve four angles.
__device__ __forceinline__ void score_angles(const Tile& tile, int image, int pair, int s0, float (&score)[STEPS][4])
{
    const size_t n_pairs = (size_t)tile.n_shifts * tile.n_directions, plane = gridDim.x * n_pairs;
    const float* real = tile.real + image * n_pairs + pair;
    const float* imag = tile.imag + image * n_pairs + pair;
#pragma unroll
    for (int j = 0; j < STEPS; j++)
        score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0.f;
#pragma unroll UNROLLED
    for (int k = 0; k < N_EVEN; k++) {
        const float re = real[k * plane], im = imag[k * plane];
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const float2 t = turns[2 * k * (s0 + j) % N_PSI];
            score[j][0] = fmaf(t.x, re, score[j][0]);
            score[j][2] = fmaf(-t.y, im, score[j][2]);
        }
    }
#pragma unroll UNROLLED
    for (int k = 0; k < N_ODD; k++) {
        const float re = real[(N_EVEN + k) * plane], im = imag[(N_EVEN + k) * plane];
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const float2 t = turns[(2 * k + 1) * (s0 + j) % N_PSI];
            score[j][1] = fmaf(t.x, re, score[j][1]);
            score[j][3] = fmaf(-t.y, im, score[j][3]);
        }
    }
    const int direction = pair % tile.n_directions, shift = pair / tile.n_directions;
    const float added = tile.prior[(size_t)image * tile.n_shifts + shift] + tile.direction_prior[direction];
    const float* norm = tile.norm + (size_t)image * HALF * tile.n_directions + direction;
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
        const int s = s0 + j;
        if (s >= N_EVEN)
            break;
        const float n0 = norm[(size_t)s * tile.n_directions], n1 = norm[(size_t)((HALF - s) % HALF) * tile.n_directions];
        const float sum = score[j][0] + score[j][1], difference = score[j][0] - score[j][1];
        const float sines = score[j][2] + score[j][3], flipped = score[j][3] - score[j][2];
        score[j][0] = log_likelihood(sum + sines, n0, added, tile.fit_scale);
        score[j][1] = log_likelihood(difference + flipped, n1, added, tile.fit_scale);
        score[j][2] = log_likelihood(sum - sines, n1, added, tile.fit_scale);
        score[j][3] = log_likelihood(difference - flipped, n0, added, tile.fit_scale);
    }
}

// The best score over the in-plane angles, (n_images, n_shifts, n_directions). Grid: images, blocks of pairs.
extern "C" __global__ void __launch_bounds__(BLOCK)
best_angles(const float* __restrict__ real, const float* __restrict__ imag, const float* __restrict__ norm,
            const float* __restrict__ prior, const float* __restrict__ direction_prior, int n_shifts,
            int n_directions, int fit_scale, float* __restrict__ best)
{
    const Tile tile{real, imag, norm, prior, direction_prior, n_shifts, n_directions, fit_scale};
    const int pair = blockIdx.y * BLOCK + threadIdx.x, n_pairs = n_shifts * n_directions;
    if (pair >= n_pairs)
        return;
    float top = __uint_as_float(0xff800000u);
#pragma unroll UNROLLED
    for (int s0 = 0; s0 < N_EVEN; s0 += STEPS) {
        float score[STEPS][4];
        score_angles(tile, blockIdx.x, pair, s0, score);
#pragma unroll
        for (int j = 0; j < STEPS; j++)
            if (s0 + j < N_EVEN)
                top = fmaxf(top, fmaxf(fmaxf(score[j][0], score[j][1]), fmaxf(score[j][2], score[j][3])));
    }
    best[(size_t)blockIdx.x * n_pairs + pair] = top;
}

// A place in a list for every lane of the warp that wants one, with one atomic operation.
__device__ __forceinline__ int claim(bool wants, int* counter)
{
    const unsigned lane = threadIdx.x % 32, who = __ballot_sync(ALL, wants);
    int first = 0;
    if (lane == 0 && who)
        first = atomicAdd(counter, __popc(who));
    return __shfl_sync(ALL, first, 0) + __popc(who & ((1u << lane) - 1));
}

// Add what is above the floor to the lists. The pairs that need it are gathered first, so that warps are full.
extern "C" __global__ void __launch_bounds__(BLOCK)
keep_best(const float* __restrict__ real, const float* __restrict__ imag, const float* __restrict__ norm,
          const float* __restrict__ prior, const float* __restrict__ direction_prior, int n_shifts, int n_directions,
          int fit_scale, const float* __restrict__ best, const float* __restrict__ floor, int first_direction,
          int capacity, float* __restrict__ values, int* __restrict__ codes, unsigned long long* __restrict__ counts)
{
    __shared__ int listed[BLOCK];
    __shared__ int n_listed;
    const Tile tile{real, imag, norm, prior, direction_prior, n_shifts, n_directions, fit_scale};
    const int image = blockIdx.x, n_pairs = n_shifts * n_directions, own = blockIdx.y * BLOCK + threadIdx.x;
    const float least = floor[image];
    if (threadIdx.x == 0)
        n_listed = 0;
    __syncthreads();
    const bool wanted = own < n_pairs && best[(size_t)image * n_pairs + own] > least;
    const int place = claim(wanted, &n_listed);
    if (wanted)
        listed[place] = own;
    __syncthreads();
    if ((int)(threadIdx.x & ~31u) >= n_listed)
        return;
    const bool active = (int)threadIdx.x < n_listed;
    const int pair = listed[active ? threadIdx.x : 0], lane = threadIdx.x % 32;
    const int direction = first_direction + pair % n_directions, shift = pair / n_directions;
#pragma unroll UNROLLED
    for (int s0 = 0; s0 < N_EVEN; s0 += STEPS) {
        float score[STEPS][4];
        score_angles(tile, image, pair, s0, score);
        unsigned long long kept = 0;
#pragma unroll
        for (int b = 0; b < 4 * STEPS; b++)
            if (active && distinct(s0 + b / 4, b % 4) && score[b / 4][b % 4] > least)
                kept |= 1ull << b;
        const int n_kept = __popc((unsigned)kept) + __popc((unsigned)(kept >> 32));
        int upto = n_kept;
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(ALL, upto, d);
            upto += lane >= d ? other : 0;
        }
        unsigned long long at = 0;
        if (lane == 31 && upto)
            at = atomicAdd(&counts[image], (unsigned long long)upto);
        at = __shfl_sync(ALL, at, 31) + (upto - n_kept);
#pragma unroll
        for (int b = 0; b < 4 * STEPS; b++)
            if (kept >> b & 1 && at < (unsigned long long)capacity) {
                const size_t to = (size_t)image * capacity + at++;
                values[to] = score[b / 4][b % 4];
                codes[to] = (direction * N_PSI + angle(s0 + b / 4, b % 4)) * n_shifts + shift;
            }
    }
}

// An integer that orders as the number does; both zeros have the same.
__device__ __forceinline__ unsigned key_of(float value)
{
    const unsigned bits = __float_as_uint(value + 0.f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Selected {
    unsigned key;
    int equal;  // how many of those with this key belong to the best
};

// The `wanted`-th largest of n >= wanted values, byte by byte of its key. For all threads of the block.
__device__ __forceinline__ Selected nth_largest(const float* __restrict__ values, int n, int wanted)
{
    __shared__ int bins[256];
    __shared__ Selected found;
    const int lane = threadIdx.x % 32;
    Selected sought{0, wanted};
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int b = threadIdx.x; b < 256; b += SELECT)
            bins[b] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i - lane < n; i += SELECT) {
            const unsigned key = i < n ? key_of(values[i]) : 0;
            const int bin = key >> shift & 255;
            const bool open = i < n && (shift == 24 || (key ^ sought.key) >> (shift + 8) == 0);
            const unsigned who = __ballot_sync(ALL, open);
            if (!who)
                continue;
            // most share a bin: one lane counts for them
            const int leader = __ffs(who) - 1, common = __shfl_sync(ALL, bin, leader);
            const unsigned same = __ballot_sync(ALL, open && bin == common);
            if (lane == leader)
                atomicAdd(&bins[common], __popc(same));
            else if (open && bin != common)
                atomicAdd(&bins[bin], 1);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            int own = 0;
            for (int b = 0; b < 8; b++)
                own += bins[8 * lane + b];
            int from = own;
            for (int d = 1; d < 32; d *= 2) {
                const int other = __shfl_down_sync(ALL, from, d);
                from += lane + d < 32 ? other : 0;
            }
            int above = from - own;
            if (above < sought.equal && sought.equal <= from) {
                int bin = 8 * lane + 7;
                while (above + bins[bin] < sought.equal)
                    above += bins[bin--];
                found = {sought.key | (unsigned)bin << shift, sought.equal - above};
            }
        }
        __syncthreads();
        sought = found;
    }
    return sought;
}

// floor = just below the cap-th largest of an image's best angles, where that is more. One block per image.
extern "C" __global__ void __launch_bounds__(SELECT)
raise_floor(const float* __restrict__ best, int n_pairs, int cap, float* __restrict__ floor)
{
    if (n_pairs < cap)
        return;
    const float least = value_of(nth_largest(best + (size_t)blockIdx.x * n_pairs, n_pairs, cap).key);
    if (threadIdx.x == 0)
        floor[blockIdx.x] = fmaxf(floor[blockIdx.x], nextafterf(least, __uint_as_float(0xff800000u)));
}

// Cut an image's list back to its best `cap`, in place: nothing is written beyond what has been read.
extern "C" __global__ void __launch_bounds__(SELECT)
prune(int capacity, int cap, float* values, int* codes, long long* __restrict__ counts, float* __restrict__ floor)
{
    __shared__ int n_kept, n_equal;
    values += (size_t)blockIdx.x * capacity;
    codes += (size_t)blockIdx.x * capacity;
    const int n = (int)min(counts[blockIdx.x], (long long)capacity);
    if (n < cap)
        return;
    if (threadIdx.x == 0)
        n_kept = n_equal = 0;
    const Selected least = nth_largest(values, n, cap);
    for (int i = threadIdx.x; n > cap && i - (int)threadIdx.x < n; i += SELECT) {
        const float value = i < n ? values[i] : 0.f;
        const int code = i < n ? codes[i] : 0;
        const unsigned key = key_of(value);
        const bool equal = i < n && key == least.key;
        const int rank = claim(equal, &n_equal);
        const bool kept = i < n && (key > least.key || (equal && rank < least.equal));
        const int place = claim(kept, &n_kept);
        __syncthreads();
        if (kept) {
            values[place] = value;
            codes[place] = code;
        }
    }
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = cap;
        floor[blockIdx.x] = value_of(least.key);
    }
}
