"""Overlapping windows that share a frame out into patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, fft_of, fft_workers, to_like
from spa.motion_fourier import whitened

_EDGE = 0.15  # of a patch's share: over which a window rises inside the border of the frame, and half its overlap

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """Where a patch is cut from a frame, and the weights (rows,) and (columns,) it is multiplied with."""

    rows: slice
    columns: slice
    down: Weights
    across: Weights

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.down), len(self.across)

    @property
    def centre(self) -> tuple[float, float]:
        """The place (x, y) around which its squared weights lie, in pixels of the frame."""
        return _middle(self.columns, self.across), _middle(self.rows, self.down)

    def transforms(self, images: Array) -> Array:
        """Whitened transforms (n_frames, rows, columns // 2 + 1) of the patch in images (n_frames, ...)."""
        patches = images[:, self.rows, self.columns]
        patches = patches - patches.mean(axis=(1, 2), keepdims=True)
        patches *= to_like(self.down, patches)[:, None]
        patches *= to_like(self.across, patches)
        return whitened(fft_of(patches).rfft2(patches, **fft_workers(patches)), self.shape)


def windows(shape: tuple[int, int], n_patches: tuple[int, int]) -> list[Window]:
    """Windows of one even size for patches along x and y of a frame (rows, columns), row by row.

    Notes: squared weights add up to 1 but at the border of the frame, so that all pixels count alike in what patches
    have in common.
    """
    rows, columns = (_spans(size, n) for size, n in zip(shape, n_patches[::-1], strict=True))
    return [Window(row, column, down, across) for row, down in rows for column, across in columns]


def _spans(size: int, count: int) -> list[tuple[slice, Weights]]:
    """Where windows lie along one axis, and their weights there."""
    share, edge = size / count, max(1.0, size / count * _EDGE)
    width = min(2 * math.ceil(share / 2 + edge), size - size % 2)
    spans = []
    for number in range(count):
        first, last = number * share, (number + 1) * share
        start = min(max(math.floor(first - edge), 0), size - width)
        at = np.arange(start, start + width) + 0.5
        rise, fall = (at - first) / edge, (last - at) / edge
        # between patches the rise begins before the border, so that it overlaps with the neighbour's fall
        rise = rise if number == 0 else (rise + 1) / 2
        fall = fall if number == count - 1 else (fall + 1) / 2
        weight = np.sin(np.pi / 2 * np.clip(rise, 0, 1)) * np.sin(np.pi / 2 * np.clip(fall, 0, 1))
        spans.append((slice(start, start + width), np.asarray(weight, dtype=np.float32)))
    return spans


def _middle(span: slice, weight: Weights) -> float:
    return float(np.average(np.arange(span.start, span.stop), weights=weight.astype(np.float64) ** 2))
