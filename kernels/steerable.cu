// Shifted images, and scores of listed candidates from the coefficients of directions and of shifted images.
// Shifts are in fractions of the box, so that kx sx + ky sy counts turns.

#define TILE 4
#define WARPS (BLOCK / 32)

// One row per block row: image * exp(-2 pi i (kx sx + ky sy)) at (kx, ky) and (kx, -ky), their sums and differences.
extern "C" __global__ void shifted_rows(const float2* __restrict__ images, const float* __restrict__ kx,
                                        const float* __restrict__ ky, const float2* __restrict__ shifts,
                                        const int* __restrict__ row_image, const int* __restrict__ row_shift,
                                        int n_pairs, float* __restrict__ parts)
{
    const int row = blockIdx.x, k = blockIdx.y * BLOCK + threadIdx.x;
    if (k >= n_pairs)
        return;
    const float2 shift = shifts[row_shift[row]];
    const float2* image = images + (size_t)row_image[row] * 2 * n_pairs + k;
    const float2 upper = image[0], lower = image[n_pairs];
    const float x = kx[k] * shift.x, y = ky[k] * shift.y;
    float sine, cosine;
    sincospif(2.f * (x + y), &sine, &cosine);
    const float re = upper.x * cosine + upper.y * sine, im = upper.y * cosine - upper.x * sine;
    sincospif(2.f * (x - y), &sine, &cosine);
    const float re2 = lower.x * cosine + lower.y * sine, im2 = lower.y * cosine - lower.x * sine;
    const size_t part = (size_t)gridDim.x * n_pairs;
    float* to = parts + (size_t)row * n_pairs + k;
    to[0] = re + re2;
    to[part] = re - re2;
    to[2 * part] = im - im2;
    to[3 * part] = im + im2;
}

__device__ __forceinline__ float warp_sum(float value)
{
    for (int d = 16; d > 0; d /= 2)
        value += __shfl_down_sync(0xffffffffu, value, d);
    return value;
}

// This thread's share of 1/2 sum W |P|^2 at one in-plane angle, from the real, then imaginary parts of its orders.
__device__ __forceinline__ float norm_share(const float* __restrict__ weights, const float* __restrict__ moments,
                                            const float* __restrict__ turns, const int* __restrict__ order_of,
                                            int n_pairs, int n_orders)
{
    float sum = 0.f;
    for (int i = threadIdx.x; i < n_pairs; i += BLOCK) {
        const float w = weights[i], v = weights[n_pairs + i], m = moments[i], l = moments[n_pairs + i];
        const int order = order_of[i];
        sum += turns[order] * (m * w - l * v) + turns[n_orders + order] * (m * v + l * w);
    }
    return sum;
}

// turned = floats `begin` to `begin + held` of coefficients * exp(i m psi).
__device__ __forceinline__ void turn(const float* __restrict__ coefficients, const float* __restrict__ cosine,
                                     const float* __restrict__ sine, int n, int n_even, int begin, int held,
                                     float* turned)
{
    for (int k = threadIdx.x; k < n; k += BLOCK) {
        const int real = k < n_even ? k : n_even + k, imag = real + (k < n_even ? n_even : n - n_even);
        const bool has_real = (unsigned)(real - begin) < (unsigned)held;
        const bool has_imag = (unsigned)(imag - begin) < (unsigned)held;
        if (!has_real && !has_imag)
            continue;
        const float a = coefficients[real], b = coefficients[imag], c = cosine[k], s = sine[k];
        if (has_real)
            turned[real - begin] = a * c - b * s;
        if (has_imag)
            turned[imag - begin] = a * s + b * c;
    }
}

// Adds the products of one piece of N rows to this lane's sums.
template <int N>
__device__ __forceinline__ void add_products(const float2* turned, const float2* const (&row)[TILE], int n_pairs,
                                             float (&sum)[TILE])
{
#pragma unroll 4
    for (int k = threadIdx.x % 32; k < n_pairs; k += 32) {
        const float2 p = turned[k];
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float2 b = row[j][k];
            sum[j] += p.x * b.x + p.y * b.y;
        }
    }
}

// One block per group. The direction is turned once, into shared memory that holds `held` of its 2 n floats (an even
// number; more are turned piece by piece). Each warp takes up to TILE candidates at a time.
extern "C" __global__ void __launch_bounds__(BLOCK, 4)
steered_scores(const float* __restrict__ rows, const int* __restrict__ row_of, const float* __restrict__ norm_rows,
               const float* __restrict__ coefficients, const float* __restrict__ moments,
               const int* __restrict__ place, const float* __restrict__ cosine, const float* __restrict__ sine,
               const float* __restrict__ norm_turns, const int* __restrict__ order_of, int n, int n_even, int n_pairs,
               int n_orders, int n_psi, int n_shifts, int held, const int* __restrict__ owner, const long long* __restrict__ orientation,
               const long long* __restrict__ group_offsets, const int* __restrict__ candidate_shift,
               float* __restrict__ cross, float* __restrict__ norm)
{
    extern __shared__ float2 turned[];
    __shared__ float partial[WARPS];
    const int group = blockIdx.x, image = owner[group], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long direction = orientation[group] / n_psi;
    const int psi = (int)(orientation[group] - direction * n_psi), n_moments = 2 * n_pairs;
    const size_t at = place[direction];
    const float share = warp_sum(norm_share(norm_rows + (size_t)image * n_moments, moments + at * n_moments,
                                            norm_turns + psi * 2 * n_orders, order_of, n_pairs, n_orders));
    if (lane == 0)
        partial[warp] = share;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.f;
        for (int w = 0; w < WARPS; w++)
            total += partial[w];
        norm[group] = total;
    }

    const long long last = group_offsets[group + 1];
    bool ready = false;
    for (long long first = group_offsets[group]; first < last; first += TILE * WARPS) {
        const int n_left = (int)min(last - first, (long long)TILE * WARPS);
        const int n_mine = warp < n_left ? (n_left - warp + WARPS - 1) / WARPS : 0;
        const float2* row[TILE];
        float sum[TILE];
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            const int shift = candidate_shift[first + (j < n_mine ? warp + j * WARPS : 0)];
            row[j] = (const float2*)(rows + (size_t)row_of[(size_t)image * n_shifts + shift] * (2 * n));
            sum[j] = 0.f;
        }
        for (int begin = 0; begin < 2 * n; begin += held) {
            if (!ready) {
                __syncthreads();
                turn(coefficients + at * (2 * n), cosine + (size_t)psi * n, sine + (size_t)psi * n, n, n_even, begin,
                     held, (float*)turned);
                __syncthreads();
                ready = held == 2 * n;
            }
            const int n_pairs = min(held, 2 * n - begin) / 2;
            if (n_mine == 4)
                add_products<4>(turned, row, n_pairs, sum);
            else if (n_mine == 3)
                add_products<3>(turned, row, n_pairs, sum);
            else if (n_mine == 2)
                add_products<2>(turned, row, n_pairs, sum);
            else if (n_mine == 1)
                add_products<1>(turned, row, n_pairs, sum);
#pragma unroll
            for (int j = 0; j < TILE; j++)
                row[j] += held / 2;
        }
        for (int j = 0; j < n_mine; j++) {
            const float total = warp_sum(sum[j]);
            if (lane == 0)
                cross[first + warp + j * WARPS] = total;
        }
    }
}
