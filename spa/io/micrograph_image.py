"""The one image of a micrograph's file."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc

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
