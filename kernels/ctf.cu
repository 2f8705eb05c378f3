// Contrast transfer functions; coefficients as described in evaluate_ctf (ctf.py).
// SYMMETRIC 1: a row of phases (turns) per group of images is added to chi.

#define TURNS_PER_RADIAN 0.15915494309189535f

extern "C" __global__ void evaluate_ctf(const float* __restrict__ coefficients, const float* __restrict__ kx,
                                        const float* __restrict__ ky,
#if SYMMETRIC
                                        const float* __restrict__ symmetric, const int* __restrict__ group,
#endif
                                        int n_pixels, float* __restrict__ out)
{
    const int k = blockIdx.y * BLOCK + threadIdx.x;
    if (k >= n_pixels)
        return;
    const float* c = coefficients + (size_t)blockIdx.x * N_COEFFICIENTS;
    const float x = kx[k], y = ky[k], r2 = x * x + y * y;
    const float quadratic = TURNS_PER_RADIAN * c[3], spherical = TURNS_PER_RADIAN * c[4];
    float sine, cosine;
    sincosf(2.f * c[2], &sine, &cosine);
    const float defocus_r2 = c[0] * r2 + c[1] * (cosine * (x * x - y * y) + 2.f * sine * x * y);
    float turns = quadratic * defocus_r2 - spherical * r2 * r2 + TURNS_PER_RADIAN * c[5];
#if SYMMETRIC
    turns += symmetric[(size_t)group[blockIdx.x] * n_pixels + k];
#endif
    out[(size_t)blockIdx.x * n_pixels + k] = c[7] * sinpif(2.f * turns) * expf(-c[6] * r2);
}
