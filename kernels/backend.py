"""Where arrays live: the only module that imports CuPy, and the only place where data changes device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeAlias

import numba
import numpy as np
import scipy.fft
from threadpoolctl import threadpool_limits

try:
    import cupy
    import cupyx.scipy.fft
except ImportError:  # the GPU packages are an extra
    cupy = None

Array: TypeAlias = Any
"""A NumPy or a CuPy array; the array decides where a function runs."""

_limits: list[Any] = []


def is_device(array: Array) -> bool:
    """True for an array in GPU memory."""
    return cupy is not None and isinstance(array, cupy.ndarray)


def xp_of(array: Array) -> Any:
    """The array module, numpy or cupy, that `array` belongs to."""
    return cupy if is_device(array) else np


def fft_of(array: Array) -> ModuleType:
    """The FFT module (scipy.fft interface) for arrays like `array`."""
    return cupyx.scipy.fft if is_device(array) else scipy.fft


def fft_workers(array: Array) -> dict[str, int]:
    """Keyword arguments that let a CPU transform use the threads set by `set_threads`."""
    return {} if is_device(array) else {"workers": threads()}


def gpu_available() -> bool:
    """True where CuPy is installed and sees at least one device."""
    return cupy is not None and bool(cupy.cuda.is_available())


def gpu_problem() -> str | None:
    """Why no GPU can be used, in a few words; None when one can."""
    if cupy is None:
        return "CuPy is not installed (pip install 'spa-cryoem[cuda12]')"
    if not cupy.cuda.is_available():
        return "CuPy finds no CUDA driver or device"
    return None


def gpu_count() -> int:
    """The number of GPUs this process sees."""
    return int(cupy.cuda.runtime.getDeviceCount()) if gpu_available() else 0


def to_device(array: Array, device: int | None) -> Array:
    """Move an array to GPU `device`; None keeps (or brings) it on the CPU."""
    if device is None:
        return to_host(array)
    with cupy.cuda.Device(device):
        return cupy.asarray(array)


def to_like(array: Array, like: Array) -> Array:
    """A host array on the device of `like`."""
    return xp_of(like).asarray(array)


def to_host(array: Array) -> Array:
    """Bring an array to CPU memory (no copy if it is there)."""
    return cupy.asnumpy(array) if is_device(array) else np.asarray(array)


def use_device(device: int | None) -> None:
    """Make GPU `device` current for this thread; None is the CPU and does nothing."""
    if device is not None:
        cupy.cuda.Device(device).use()


def current_device() -> int:
    """The number of the GPU that is current for this thread."""
    return int(cupy.cuda.runtime.getDevice())


def compile_cuda(code: str) -> Any:
    """Compile CUDA C for the current GPU; the result has `get_function(name)`."""
    return cupy.RawModule(code=code, options=("-std=c++17",))


def device_memory(device: int | None) -> int | None:
    """Free bytes on GPU `device`; None for the CPU."""
    if device is None:
        return None
    with cupy.cuda.Device(device):
        return int(cupy.cuda.runtime.memGetInfo()[0])


def set_threads(n: int) -> None:
    """Let this process compute on `n` threads: Numba and the FFT, and the threads of a sweep.

    BLAS stays on the thread that calls it: its own threads spin while they wait, and the matrices here are small.
    """
    numba.set_num_threads(max(1, min(n, numba.config.NUMBA_NUM_THREADS)))  # type: ignore[attr-defined]
    _limits[:] = [threadpool_limits(limits=1, user_api="blas")]


def one_thread() -> None:
    """Let what the calling thread runs (Numba, FFT) stay on it, because others like it run beside."""
    numba.set_num_threads(1)


def share_out(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call `work` for each item, on as many threads as are set; the calls must not depend on each other."""
    with ThreadPoolExecutor(threads(), initializer=one_thread) as pool:
        for _ in pool.map(work, items):
            pass


def threads() -> int:
    """The number of threads set by `set_threads`."""
    return int(numba.get_num_threads())


def host_memory() -> int:
    """Bytes of memory that this machine has free."""
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
