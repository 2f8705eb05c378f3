"""CUDA C kernels and CuPy calls, executed on the CPU for tests."""
