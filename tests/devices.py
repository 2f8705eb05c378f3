"""The places where a test can run the kernels: CPU twins, emulated GPU, real GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from spa.kernels import backend
from tests.emulation import emulated_cupy


@contextlib.contextmanager
def device_named(name: str) -> Iterator[Callable[[Any], Any]]:
    """A function that places arrays: "cpu", "emulated[-ORDER]" (order of the emulated threads) or "gpu".

    Without a GPU, "gpu" skips the test, or fails it where SPA_REQUIRE_GPU=1.
    """
    kind, _, order = name.partition("-")
    if kind == "cpu":
        yield np.asarray
    elif kind == "emulated":
        with emulated_cupy(order or "forward") as cupy:
            yield cupy.asarray
    else:
        if not backend.gpu_available():
            if os.environ.get("SPA_REQUIRE_GPU") == "1":
                pytest.fail("SPA_REQUIRE_GPU=1, but CuPy finds no GPU")
            pytest.skip("no GPU (SPA_REQUIRE_GPU=1 makes this a failure)")
        yield backend.cupy.asarray
