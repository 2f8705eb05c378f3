"""Stand-in for CuPy: arrays that refuse to mix with host arrays, computed by NumPy, with emulated kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from spa.kernels import backend, loader
from tests.emulation.module import EmulatedModule

_MEMORY = 2**31
# What NumPy has and CuPy 14.2 lacks, as far as numerical code might want it.
_ABSENT = frozenset(
    [
        "block",
        "einsum_path",
        "errstate",
        "frompyfunc",
        "geomspace",
        "histogram_bin_edges",
        "insert",
        "memmap",
        "nanpercentile",
        "nanquantile",
        "ndenumerate",
        "nditer",
        "polyder",
        "polyint",
        "spacing",
        "unstack",
        "vecdot",
        "vecmat",
        "matvec",
    ]
)


def _unwrap(value: Any) -> Any:
    """The host memory behind device arrays, also inside tuples, lists and dicts; a host array is an error."""
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a host array meets a device array: move one of them explicitly")
    if type(value) in (list, tuple):
        return type(value)(_unwrap(v) for v in value)
    if type(value) is dict:
        return {k: _unwrap(v) for k, v in value.items()}
    return value


def _wrap(value: Any) -> Any:
    """Device arrays around results; a scalar becomes a zero-dimensional device array, as in CuPy."""
    if isinstance(value, np.ndarray | np.generic):
        return DeviceArray(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_wrap(v) for v in value)
    return [_wrap(v) for v in value] if isinstance(value, list) else value


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*_unwrap(args), **_unwrap(kwargs))
        out = kwargs.get("out")
        return _wrap(result) if out is None else out

    return call


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in emulated device memory, `host` to the emulated kernels only."""

    __array_priority__ = 100
    __slots__ = ("host",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion of a device array to a NumPy array: use to_host")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        result = getattr(ufunc, method)(*_unwrap(inputs), **_unwrap(kwargs))
        return _wrap(result) if out is None else out[0] if len(out) == 1 else out

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        return _on_device(function)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("ctypes", "tofile", "data"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        return _on_device(value) if callable(value) else _wrap(value) if isinstance(value, np.ndarray) else value

    def __getitem__(self, index: Any) -> Any:
        return _wrap(self.host[_unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_unwrap(index)] = _unwrap(value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __complex__(self) -> complex:
        return complex(self.host)

    def __repr__(self) -> str:
        return f"device {self.host!r}"

    def get(self) -> np.ndarray:
        """A copy in host memory."""
        return self.host.copy()


class _DeviceUfunc:
    """A universal function of the stand-in module, with its methods at, reduceat, outer, ..."""

    def __init__(self, ufunc: np.ufunc) -> None:
        self._ufunc = ufunc

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _on_device(self._ufunc)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _on_device(getattr(self._ufunc, name))


class _Namespace(ModuleType):
    """A NumPy or SciPy module whose functions work on device arrays only."""

    def __init__(self, module: ModuleType, absent: frozenset[str] = frozenset()) -> None:
        super().__init__(module.__name__)
        self._module, self._absent = module, absent

    def __getattr__(self, name: str) -> Any:
        if name in self._absent:
            raise AttributeError(f"CuPy has no {name}")
        value = getattr(self._module, name)
        if isinstance(value, np.ufunc):
            return _DeviceUfunc(value)
        if isinstance(value, ModuleType):
            return _Namespace(value)
        return _on_device(value) if callable(value) and not isinstance(value, type) else value


class _Device:
    """The one emulated GPU."""

    def __init__(self, number: int = 0) -> None:
        self.id = int(number)

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def use(self) -> _Device:
        """Already current."""
        return self

    def synchronize(self) -> None:
        """Emulated kernels have finished when their launch returns."""


def _to_device(value: Any, *args: Any, **kwargs: Any) -> DeviceArray:
    host = value if isinstance(value, np.ndarray) else _unwrap(value)
    return DeviceArray(np.array(host, *args, **{"order": "C", **kwargs}))


def _as_device(value: Any, *args: Any, **kwargs: Any) -> DeviceArray:
    if isinstance(value, DeviceArray):
        return DeviceArray(np.asarray(value.host, *args, **kwargs))
    return _to_device(value, *args, **kwargs)


def _contiguous(value: Any, dtype: Any = None) -> DeviceArray:
    return DeviceArray(np.ascontiguousarray(_as_device(value).host, dtype))


def _make_cupy() -> ModuleType:
    cupy: Any = _Namespace(np, _ABSENT)
    cupy.ndarray = DeviceArray
    cupy.array, cupy.asarray, cupy.ascontiguousarray = _to_device, _as_device, _contiguous
    cupy.asnumpy = lambda value: value.get() if isinstance(value, DeviceArray) else np.array(value)
    cupy.RawModule = EmulatedModule
    runtime = SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (_MEMORY, _MEMORY),
        deviceSynchronize=lambda: None,
    )
    cupy.cuda = SimpleNamespace(Device=_Device, runtime=runtime, is_available=lambda: True)
    pool = SimpleNamespace(free_all_blocks=lambda: None, used_bytes=lambda: 0)
    cupy.get_default_memory_pool = lambda: pool
    return cupy


@contextlib.contextmanager
def emulated_cupy(thread_order: str = "forward") -> Iterator[Any]:
    """Let `spa` find an emulated GPU: yields the stand-in for CuPy.

    thread_order : order in which the threads of a block run: "forward", "reverse" or "shuffled".
    """
    cupy = _make_cupy()
    cupyx = SimpleNamespace(scipy=SimpleNamespace(fft=_Namespace(scipy.fft), ndimage=_Namespace(scipy.ndimage)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "cupy", cupy)
        patch.setattr(backend, "cupyx", cupyx, raising=False)
        patch.setattr(loader, "_compile", EmulatedModule)
        patch.setattr(EmulatedModule, "thread_order", thread_order)
        yield cupy
