// Squared differences of shifted images against slices, and posterior-weighted sums of shifted images.
// Shifts are in fractions of the box, so that kx sx + ky sy counts turns.

#define TILE 8
#define WARPS (BLOCK / 32)

// exp(-2 pi i turns) as (cosine, sine): the phase is cosine - i sine.
__device__ __forceinline__ float2 phase(float kx, float ky, float2 shift)
{
    float2 p;
    sincospif(2.f * (kx * shift.x + ky * shift.y), &p.y, &p.x);
    return p;
}

// Sum over the block of N values per thread; thread j < N returns the sum of value j.
template <int N>
__device__ __forceinline__ float block_sums(float (&value)[N])
{
    __shared__ float partial[WARPS][N];
    for (int j = 0; j < N; j++)
        for (int d = 16; d > 0; d /= 2)
            value[j] += __shfl_down_sync(0xffffffffu, value[j], d);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        for (int j = 0; j < N; j++)
            partial[threadIdx.x / 32][j] = value[j];
    __syncthreads();
    float sum = 0.f;
    if (threadIdx.x < N)
        for (int w = 0; w < WARPS; w++)
            sum += partial[w][threadIdx.x];
    return sum;
}

// One block per group; each pass over the pixels serves a register tile of shifts.
extern "C" __global__ void __launch_bounds__(BLOCK)
squared_difference(const float2* __restrict__ images, const float* __restrict__ weights,
                   const float2* __restrict__ slices, const float* __restrict__ kx, const float* __restrict__ ky,
                   const float2* __restrict__ shifts, const int* __restrict__ group_image,
                   const int* __restrict__ group_slice, const long long* __restrict__ group_offsets,
                   const int* __restrict__ candidate_shift, int n_pixels, float* __restrict__ cross,
                   float* __restrict__ norm)
{
    const int group = blockIdx.x;
    const float2* image = images + (size_t)group_image[group] * n_pixels;
    const float* weight = weights + (size_t)group_image[group] * n_pixels;
    const float2* slice = slices + (size_t)group_slice[group] * n_pixels;
    const long long first = group_offsets[group], last = group_offsets[group + 1];

    float power[1] = {0.f};
    for (int k = threadIdx.x; k < n_pixels; k += BLOCK) {
        const float2 p = slice[k];
        power[0] += weight[k] * (p.x * p.x + p.y * p.y);
    }
    const float total = block_sums(power);
    if (threadIdx.x == 0)
        norm[group] = 0.5f * total;

    for (long long c = first; c < last; c += TILE) {
        float2 shift[TILE];
        float sum[TILE];
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            shift[j] = shifts[candidate_shift[c + j < last ? c + j : last - 1]];
            sum[j] = 0.f;
        }
        for (int k = threadIdx.x; k < n_pixels; k += BLOCK) {
            const float2 p = slice[k], y = image[k];
            const float real = p.x * y.x + p.y * y.y, imag = p.x * y.y - p.y * y.x;
            const float u = kx[k], v = ky[k];
#pragma unroll
            for (int j = 0; j < TILE; j++) {
                const float2 e = phase(u, v, shift[j]);
                sum[j] += real * e.x + imag * e.y;
            }
        }
        const float s = block_sums(sum);
        if (threadIdx.x < TILE && c + threadIdx.x < last)
            cross[c + threadIdx.x] = s;
    }
}

extern "C" __global__ void weighted_images(const float2* __restrict__ images, const float* __restrict__ weights,
                                           const float* __restrict__ kx, const float* __restrict__ ky,
                                           const float2* __restrict__ shifts, const int* __restrict__ group_image,
                                           const long long* __restrict__ group_offsets,
                                           const int* __restrict__ candidate_shift,
                                           const float* __restrict__ posterior, int n_pixels,
                                           float2* __restrict__ values, float* __restrict__ group_weights)
{
    const int group = blockIdx.x, k = blockIdx.y * BLOCK + threadIdx.x;
    if (k >= n_pixels)
        return;
    const size_t at = (size_t)group_image[group] * n_pixels + k, to = (size_t)group * n_pixels + k;
    const float u = kx[k], v = ky[k];
    float cosine = 0.f, sine = 0.f, total = 0.f;
    for (long long c = group_offsets[group]; c < group_offsets[group + 1]; c++) {
        const float weight = posterior[c];
        const float2 e = phase(u, v, shifts[candidate_shift[c]]);
        cosine += weight * e.x;
        sine += weight * e.y;
        total += weight;
    }
    const float2 y = images[at];
    values[to] = make_float2(y.x * cosine + y.y * sine, y.y * cosine - y.x * sine);
    group_weights[to] = total * weights[at];
}
