"""Movies of counts written frame by frame, whole or not at all: TIFF with LZW, or MRC."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import mrcfile
import numpy as np
import tifffile
from numpy.typing import NDArray

from spa.io.files import whole_file

_CLASSIC_LIMIT = 1 << 32  # bytes that offsets in a plain TIFF reach
_ROWS_PER_STRIP = 64


def write_tiff(
    path: str | os.PathLike[str], frames: Iterable[NDArray[Any]], n_frames: int, shape: tuple[int, int]
) -> None:
    """Write frames (rows, columns), uint8 or uint16, as an LZW-compressed TIFF that appears whole or not at all.

    Row 0 of a frame, the bottom one in the order of MRC, is the last row of the file: TIFF counts from the top.

    Raises
    ------
    ValueError
        If there are more or fewer than `n_frames`, or one is not of the `shape`; InputError if the file cannot be
        written.
    """
    big = 3 * n_frames * shape[0] * shape[1] > _CLASSIC_LIMIT  # LZW can make noise of 16 bits larger
    with whole_file(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as file:
        for frame in _checked(frames, n_frames, shape):
            file.write(
                np.ascontiguousarray(frame[::-1]),
                compression="lzw",
                photometric="minisblack",
                rowsperstrip=_ROWS_PER_STRIP,
                metadata=None,
                maxworkers=1,
            )


def write_mrcs(
    path: str | os.PathLike[str],
    frames: Iterable[NDArray[Any]],
    n_frames: int,
    shape: tuple[int, int],
    pixel_size: float,
) -> None:
    """Write frames (rows, columns) of counts below 32768 as an MRC stack of mode 1 (int16), as `write_tiff` otherwise.

    `pixel_size` in Å.
    """
    with whole_file(path) as temporary, mrcfile.new_mmap(temporary, (n_frames, *shape), 1, overwrite=True) as file:
        sums, lowest, highest = np.zeros(2), np.inf, -np.inf
        for i, frame in enumerate(_checked(frames, n_frames, shape)):
            file.data[i] = frame
            sums += frame.sum(dtype=np.float64), np.square(frame, dtype=np.float64).sum()
            lowest, highest = min(lowest, frame.min()), max(highest, frame.max())
        file.set_image_stack()
        file.voxel_size = pixel_size
        header, (mean, square) = file.header, sums / file.data.size
        header.dmin, header.dmax, header.dmean, header.rms = lowest, highest, mean, np.sqrt(square - mean**2)


def _checked(frames: Iterable[NDArray[Any]], n_frames: int, shape: tuple[int, int]) -> Iterable[NDArray[Any]]:
    count = 0
    for frame in frames:
        if frame.shape != shape:
            raise ValueError(f"frame {count + 1}: {frame.shape} pixels, expected {shape}")
        count += 1
        yield frame
    if count != n_frames:
        raise ValueError(f"{count} frames, expected {n_frames}")
