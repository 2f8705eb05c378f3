"""Numerical kernels: arrays in, arrays out, on the CPU (Numba) or on a GPU (CUDA)."""
