"""Communication between the processes of one job; the seam behind which several machines would work."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Communicator(Protocol):
    """What a job asks of its processes: values that add, values that are collected, work that is shared."""

    rank: int
    size: int

    def sum(self, value: T) -> T:
        """The sum of `value` over all processes, on every process."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank, on every process."""

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's contiguous part of `indices` (1D, in the caller's order)."""


class Serial:
    """The one process of an ordinary run."""

    rank = 0
    size = 1

    def sum(self, value: T) -> T:
        """`value` itself."""
        return value

    def gather(self, value: T) -> list[T]:
        """`value` alone in a list."""
        return [value]

    def share(self, indices: Any) -> NDArray[np.int64]:
        """All of `indices`, as int64 (n,)."""
        return np.asarray(indices, dtype=np.int64)
