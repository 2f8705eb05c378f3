"""Kernel tests run the emulated GPU in every thread order, so that a missing barrier shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.devices import device_named
from tests.emulation import ORDERS


@pytest.fixture(params=["cpu", *(f"emulated-{order}" for order in ORDERS), "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """A function that places an array where the kernels of this run work."""
    with device_named(request.param) as put:
        yield put
