// Sums over rotations h of data(h k) and weight(h k); one thread per voxel of the half volume, float64 coordinates.
// data: float2 (m, m, r + 2), axes (z, y, x), m = 2 r + 3, the plane x = 0 Friedel-complete.

extern "C" __global__ void symmetrise(const float2* __restrict__ data, const float* __restrict__ weight,
                                      const double* __restrict__ operators, int n_operators, int r,
                                      float2* __restrict__ data_sum, float* __restrict__ weight_sum)
{
    const int m = 2 * r + 3, width = r + 2, origin = r + 1;
    const int i = blockIdx.y * BLOCK + threadIdx.x;
    const int x = i, y = (int)(blockIdx.x % m) - origin, z = (int)(blockIdx.x / m) - origin;
    if (i >= width || x * x + y * y + z * z > r * r) return;

    double real = 0, imag = 0, total = 0;
    for (int h = 0; h < n_operators; ++h) {
        const double* a = operators + 9 * h;
        double px = a[0] * x + a[1] * y + a[2] * z;
        double py = a[3] * x + a[4] * y + a[5] * z;
        double pz = a[6] * x + a[7] * y + a[8] * z;
        const double sign = px < 0 ? -1.0 : 1.0;  // the half x < 0 is the conjugate at -k
        px *= sign;
        py = py * sign + origin;
        pz = pz * sign + origin;
        const int ix = (int)px, iy = (int)py, iz = (int)pz;
        const double fx = px - ix, fy = py - iy, fz = pz - iz;
        double part = 0;
        for (int corner = 0; corner < 4; ++corner) {
            const int dy = corner & 1, dz = corner >> 1;
            const double g1 = (dz ? fz : 1 - fz) * (dy ? fy : 1 - fy);
            const double g0 = g1 * (1 - fx), g = g1 * fx;
            const size_t voxel = ((size_t)(iz + dz) * m + iy + dy) * width + ix;
            const float2 low = data[voxel], high = data[voxel + 1];
            real += g0 * low.x + g * high.x;
            part += g0 * low.y + g * high.y;
            total += g0 * weight[voxel] + g * weight[voxel + 1];
        }
        imag += sign * part;
    }
    const size_t out = (size_t)blockIdx.x * width + i;
    data_sum[out] = make_float2((float)real, (float)imag);
    weight_sum[out] = (float)total;
}
