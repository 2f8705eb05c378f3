"""CUDA C kernels and CuPy calls, executed on the CPU for tests."""

from tests.emulation.device import DeviceArray, emulated_cupy
from tests.emulation.module import ORDERS, EmulatedModule, KernelError

__all__ = ["ORDERS", "DeviceArray", "EmulatedModule", "KernelError", "emulated_cupy"]
