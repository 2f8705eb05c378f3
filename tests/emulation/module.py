"""Stand-in for cupy.RawModule: CUDA C compiled by g++ behind cuda_on_cpu.h, launched on NumPy memory."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

HERE = Path(__file__).parent
ORDERS = ("forward", "reverse", "shuffled")
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(', re.MULTILINE
)
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
)
_KINDS = {"f": "f", "i": "iu", "u": "iu"}
_MAX_THREADS, _MAX_SHARED = 1024, 48 * 1024
_MARGIN, _POISON = 256, 0x7F


class KernelError(RuntimeError):
    """The kernel did not compile, or its threads deadlocked or diverged."""


class _Launch(ctypes.Structure):
    _fields_: ClassVar = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("order", ctypes.c_int),
        ("message", ctypes.c_char * 256),
    ]


@functools.cache
def _library(code: str) -> tuple[ctypes.CDLL, tuple[str, ...]]:
    """Compile CUDA C to a shared library, kept on disk under a hash of everything that determines it."""
    names = tuple(_KERNEL.findall(code))
    body = _DYNAMIC_SHARED.sub(r"\1* \2 = (\1*)emulation::block->dynamic_shared;", code)
    exports = "".join(f"EXPORT_KERNEL({name})\n" for name in names)
    text = f'#include "cuda_on_cpu.h"\n{body}\n{exports}'
    header = (HERE / "cuda_on_cpu.h").read_text()
    digest = hashlib.sha256("\0".join((*_FLAGS, header, text)).encode()).hexdigest()[:20]
    folder = Path(tempfile.gettempdir()) / f"cuda_on_cpu_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        if shutil.which("g++") is None:
            pytest.skip("no g++, which the emulated GPU needs (Debian: apt-get install g++)")
        partial = folder / f"{digest}.{os.getpid()}"
        command = ["g++", *_FLAGS, f"-I{HERE}", "-x", "c++", "-", "-o", str(partial)]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if result.returncode:
            raise KernelError(result.stderr)
        partial.replace(library)
    return ctypes.CDLL(str(library)), names


class _Guarded:
    """A copy of an array between two margins of a value that no index or number survives."""

    def __init__(self, host: np.ndarray) -> None:
        self.host = host
        self._buffer = np.full(host.nbytes + 2 * _MARGIN, _POISON, np.uint8)
        self.inner = self._buffer[_MARGIN : _MARGIN + host.nbytes]
        self.inner[:] = host.reshape(-1).view(np.uint8)

    def release(self, kernel: str) -> None:
        """Copy the result back; KernelError if a margin was written to."""
        margins = self._buffer[:_MARGIN], self._buffer[_MARGIN + self.host.nbytes :]
        if any((margin != _POISON).any() for margin in margins):
            raise KernelError(f"{kernel}: writes outside an array of shape {self.host.shape}")
        self.host.reshape(-1).view(np.uint8)[:] = self.inner


class EmulatedKernel:
    """One kernel; arguments are checked against its C signature, as a GPU would silently not do."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self._launch = getattr(library, f"launch_{name}")
        kinds = (ctypes.c_int * 64)()
        n = getattr(library, f"signature_{name}")(kinds)
        self.signature = [(chr(v >> 8), v & 255) for v in kinds[:n]]

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0) -> None:
        if len(args) != len(self.signature):
            raise TypeError(f"{self.name}: {len(args)} arguments for {len(self.signature)} parameters")
        if np.prod(block) > _MAX_THREADS or shared_mem > _MAX_SHARED:
            raise ValueError(f"{self.name}: more than {_MAX_THREADS} threads or {_MAX_SHARED} bytes of shared memory")
        guards: list[_Guarded] = []
        kept = [self._convert(i, value, guards) for i, value in enumerate(args)]
        pointers = (ctypes.c_void_p * max(1, len(kept)))(*(ctypes.addressof(v) for v in kept))
        request = _Launch()
        request.grid[:], request.block[:] = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        request.shared_bytes, request.seed = shared_mem, 1
        request.order = ORDERS.index(EmulatedModule.thread_order)
        if self._launch(ctypes.byref(request), pointers):
            raise KernelError(f"{self.name}: {request.message.decode()}")
        for guard in guards:
            guard.release(self.name)

    def _convert(self, position: int, value: Any, guards: list[_Guarded]) -> Any:
        kind, size = self.signature[position]
        if kind == "p":
            host = getattr(value, "host", None)
            if host is None:
                raise TypeError(
                    f"{self.name}, argument {position}: expected a device array, got {type(value).__name__}"
                )
            if not host.flags.c_contiguous:
                raise ValueError(f"{self.name}, argument {position}: not C-contiguous")
            guards.append(_Guarded(host))
            return ctypes.c_void_p(guards[-1].inner.ctypes.data)
        if not isinstance(value, np.generic) or value.itemsize != size or value.dtype.kind not in _KINDS[kind]:
            raise TypeError(
                f"{self.name}, argument {position}: {type(value).__name__} for a {kind}{8 * size} parameter"
            )
        return (ctypes.c_char * size).from_buffer_copy(value.tobytes())


class EmulatedModule:
    """Compiled CUDA C with the call surface of cupy.RawModule; `thread_order` is one of ORDERS."""

    thread_order: ClassVar[str] = "forward"

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        self._library, self.names = _library(code)

    def get_function(self, name: str) -> EmulatedKernel:
        """The kernel called `name`."""
        return EmulatedKernel(self._library, name)
