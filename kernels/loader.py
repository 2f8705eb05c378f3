"""From a .cu file to a callable kernel, and the checks every kernel's arguments pass first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import get_num_threads, njit

from spa.kernels.backend import Array, compile_cuda, current_device, is_device
from spa.kernels.elementary import RELAXED

HERE = Path(__file__).parent
BLOCK = 256
"""Threads per block of every kernel."""


def cpu_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile the CPU twin of a kernel; its `prange` runs on the threads set for the calling thread.

    With one thread the loop is an ordinary one, so that several callers may each run their own at the same time:
    Numba's thread pools serve one parallel loop after the other.
    """
    # Numba's cache tells functions apart by name, not by options
    plain: Any = function
    parts = plain.__code__, plain.__globals__, f"{function.__name__}_serial"
    alone = FunctionType(*parts)
    alone.__qualname__, alone.__module__ = parts[2], function.__module__
    serial = njit(cache=True, nogil=True, fastmath=RELAXED)(alone)
    parallel = njit(cache=True, nogil=True, parallel=True, fastmath=RELAXED)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        (serial if get_num_threads() == 1 else parallel)(*arguments)

    return call


@functools.cache
def source(stem: str, defines: tuple[tuple[str, str], ...] = ()) -> str:
    """CUDA C of kernels/STEM.cu behind its `#define` preamble; compiler messages name the file and line."""
    path = HERE / f"{stem}.cu"
    preamble = "".join(f"#define {name} {value}\n" for name, value in (("BLOCK", str(BLOCK)), *defines))
    return f'{preamble}#line 1 "{path.name}"\n{path.read_text()}'


_compile: Callable[[str], Any] = compile_cuda


@functools.cache
def _cached_module(compiler: Callable[[str], Any], device: int, code: str) -> Any:
    return compiler(code)


def raw_module(stem: str, defines: tuple[tuple[str, str], ...] = ()) -> Any:
    """Compiled kernels/STEM.cu for the current device, compiled once per device and set of defines."""
    return _cached_module(_compile, current_device(), source(stem, defines))


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], block: int = BLOCK, shared_mem: int = 0
) -> None:
    """Start `kernel` on `grid` blocks of `block` threads; an empty grid does nothing.

    Python ints and floats are passed as 32-bit numbers. Raises TypeError for an array in host memory and
    ValueError for a grid beyond CUDA's limits.
    """
    for position, value in enumerate(arguments):
        if isinstance(value, np.ndarray) and value.ndim and not is_device(value):
            raise TypeError(f"kernel argument {position} is in host memory")
    if 0 in grid:
        return
    if grid[0] > 2**31 - 1 or any(n > 65535 for n in grid[1:]):
        raise ValueError(f"grid {grid} exceeds CUDA's limits")
    converted = tuple(
        np.int32(v) if isinstance(v, int) else np.float32(v) if isinstance(v, float) else v for v in arguments
    )
    kernel(grid, (block,), converted, shared_mem=shared_mem)


def require(name: str, array: Array, dtype: Any, shape: tuple[int | None, ...], like: Array) -> None:
    """Check one kernel argument: on the device of `like`, of this dtype and shape (None: any), C-contiguous.

    Raises TypeError for the kind of array, its device or dtype; ValueError for shape and layout.
    """
    if not hasattr(array, "dtype") or not hasattr(array, "flags"):
        raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
    if is_device(array) != is_device(like):
        raise TypeError(f"{name}: all arrays of one call must be on the same device")
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {np.dtype(dtype)}, got {array.dtype}")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), got {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: must be C-contiguous")
