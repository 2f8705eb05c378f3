"""Stand-in for CuPy: arrays that refuse to mix with host arrays, computed by NumPy, with emulated kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.special

from spa.kernels import backend, loader
from tests.emulation.module import EmulatedModule


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
    """Device arrays around computed arrays; a scalar result becomes a zero-dimensional device array, as in CuPy."""
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

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(*((self, name, value) if name == "host" else (self.host, name, _unwrap(value)))) if (
            name != "host"
        ) else object.__setattr__(self, name, value)

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

    def __index__(self) -> int:
        return self.host.__index__()

    def __float__(self) -> float:
        return float(self.host)

    def __complex__(self) -> complex:
        return complex(self.host)

    def __repr__(self) -> str:
        return f"device {self.host!r}"

    def get(self) -> np.ndarray:
        """A copy in host memory."""
        return self.host.copy()
