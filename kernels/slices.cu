// Central slices of half transforms and their adjoint. DIM: dimension of the references, 2 or 3.
// Stacks are (class, [z,] y, x) with m = 2R+3 rows and R+2 columns; see extract_slices in slices.py.

struct Cell {
    size_t corner;     // flat index of the lower corner within one reference
    float sign;        // -1: the conjugate is stored; 0: outside the radius
    float fx, fy, fz;  // position within the cell
};

__device__ __forceinline__ Cell locate(const float* __restrict__ a, float u, float v, int radius)
{
    float x = u * a[0] + v * a[3], y = u * a[1] + v * a[4], z = DIM == 3 ? u * a[2] + v * a[5] : 0.f;
    Cell cell;
    cell.sign = x * x + y * y + z * z > (float)radius * radius ? 0.f : x < 0.f ? -1.f : 1.f;
    x *= cell.sign;
    y = y * cell.sign + (radius + 1);
    z = z * cell.sign + (DIM == 3 ? radius + 1 : 0);
    const int i = (int)x, j = (int)y, l = (int)z;
    cell.fx = x - i;
    cell.fy = y - j;
    cell.fz = z - l;
    cell.corner = ((size_t)l * (2 * radius + 3) + j) * (radius + 2) + i;
    return cell;
}

__device__ __forceinline__ size_t voxels(int radius)
{
    const size_t m = 2 * radius + 3;
    return (DIM == 3 ? m : 1) * m * (radius + 2);
}

__device__ __forceinline__ float2 mix(float2 a, float2 b, float f)
{
    return make_float2(a.x + f * (b.x - a.x), a.y + f * (b.y - a.y));
}

// Bilinear value at (fx, fy) in the plane that starts at p.
__device__ __forceinline__ float2 plane_value(const float2* __restrict__ p, int row, float fx, float fy)
{
    return mix(mix(p[0], p[1], fx), mix(p[row], p[row + 1], fx), fy);
}

extern "C" __global__ void extract_slices(const float2* __restrict__ references, const int* __restrict__ classes,
                                          const float* __restrict__ rotations, const float* __restrict__ kx,
                                          const float* __restrict__ ky, int n_pixels, int radius,
                                          float2* __restrict__ out)
{
    const int n = blockIdx.x, k = blockIdx.y * BLOCK + threadIdx.x;
    if (k >= n_pixels)
        return;
    const Cell cell = locate(rotations + 9 * (size_t)n, kx[k], ky[k], radius);
    float2 value = make_float2(0.f, 0.f);
    if (cell.sign != 0.f) {
        const int row = radius + 2;
        const float2* p = references + classes[n] * voxels(radius) + cell.corner;
        value = plane_value(p, row, cell.fx, cell.fy);
        if (DIM == 3)
            value = mix(value, plane_value(p + (size_t)row * (2 * radius + 3), row, cell.fx, cell.fy), cell.fz);
        value.y *= cell.sign;
    }
    out[(size_t)n * n_pixels + k] = value;
}

__device__ __forceinline__ void add(float2* data, float* weight, size_t at, float g, float2 value, float w)
{
    atomicAdd(&data[at].x, g * value.x);
    atomicAdd(&data[at].y, g * value.y);
    atomicAdd(&weight[at], g * w);
}

extern "C" __global__ void insert_slices(float2* __restrict__ data, float* __restrict__ weight,
                                         const int* __restrict__ classes, const float* __restrict__ rotations,
                                         const float* __restrict__ kx, const float* __restrict__ ky,
                                         const float2* __restrict__ values, const float* __restrict__ weights,
                                         int n_pixels, int radius)
{
    const int n = blockIdx.x, k = blockIdx.y * BLOCK + threadIdx.x;
    if (k >= n_pixels)
        return;
    const Cell cell = locate(rotations + 9 * (size_t)n, kx[k], ky[k], radius);
    if (cell.sign == 0.f)
        return;
    const size_t row = radius + 2, plane = row * (2 * radius + 3);
    const size_t base = classes[n] * voxels(radius) + cell.corner;
    float2 value = values[(size_t)n * n_pixels + k];
    const float w = weights[(size_t)n * n_pixels + k];
    value.y *= cell.sign;
    for (int dz = 0; dz < DIM - 1; dz++) {
        const float gz = DIM == 2 ? 1.f : dz ? cell.fz : 1.f - cell.fz;
        for (int dy = 0; dy < 2; dy++) {
            const float g = gz * (dy ? cell.fy : 1.f - cell.fy);
            const size_t at = base + dz * plane + dy * row;
            add(data, weight, at, g * (1.f - cell.fx), value, w);
            add(data, weight, at + 1, g * cell.fx, value, w);
        }
    }
}
