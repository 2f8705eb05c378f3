"""The one image of a micrograph's file, and whether particles can be seen in it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc

_FEWEST_PIXELS = 6.0  # across a particle
_LARGEST = 1e15  # the squares of a box of such pixels still add up in single precision


def read_micrograph(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """A micrograph as float32 (rows, columns).

    Raises
    ------
    InputError
        As `mrc.info`; more than one image; a pixel that is not finite, or beyond 1e15.
    """
    image, _ = mrc.read(path)
    if len(image) != 1:
        raise InputError(f"{path}: expected one image, found {len(image)}")
    if not np.isfinite(image).all():
        raise InputError(f"{path}: expected finite pixels, found {int((~np.isfinite(image)).sum())} that are not")
    largest = float(np.abs(image).max())
    if largest > _LARGEST:
        raise InputError(f"{path}: expected pixels of at most {_LARGEST:g}, found {largest:g}")
    return np.asarray(image[0])


def check_size(
    path: str | os.PathLike[str], shape: Sequence[int], diameter: float, pixel_size: float, step: float
) -> None:
    """Refuse a micrograph of `shape` (rows, columns) that a particle is too large or too small for (InputError).

    diameter, pixel_size : Angstrom, of the particle and of a pixel. step : pixels in one that is worked on.
    """
    if min(shape) < 2 * diameter / pixel_size:
        size = f"{shape[1]} x {shape[0]}"
        raise InputError(f"{path}: {size} pixels are too small for a particle of {diameter:.0f} Å")
    worked_on = step * pixel_size
    if diameter < _FEWEST_PIXELS * worked_on:
        across = f"{diameter / worked_on:.1f} pixels of {worked_on:g} Å"
        raise InputError(f"{path}: a particle of {diameter:.0f} Å is {across}: expected at least {_FEWEST_PIXELS:g}")
