"""Movies of a detector, frame by frame: TIFF, MRC and EER; gain references and defect files.

Frames are (rows, columns) in the order of MRC, first row at the bottom. TIFF counts its rows from the top, so
that its frames are turned over when read, as RELION and IMOD do; EER frames are taken as they are, as RELION does.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc
from spa.io.files import existing_file
from spa.io.tiff_pages import EER_SUFFIXES, TIFF_SUFFIXES, checked_pages, eer_problem

_EER_12_BIT, _EER_11_BIT, _EER_VARIABLE = 65000, 65001, 65002  # TIFF compression numbers
_SUB_PIXEL_FLIP = 0b1010  # the upper bit of each sub-pixel coordinate is stored inverted


class Movie(ABC):
    """An open movie; a context manager, and a sequence of frames as they are stored.

    Attributes
    ----------
    path : Path of the file.
    shape : (rows, columns) of a frame in pixels, after EER upsampling.
    dtype : type of a frame's pixels.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @abstractmethod
    def __len__(self) -> int:
        """The number of frames, after EER grouping."""

    @abstractmethod
    def frame(self, index: int) -> NDArray[Any]:
        """Frame `index`, counted from 0, (rows, columns); InputError if it cannot be decoded."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Movie:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self.frame(index) for index in range(len(self)))


def open_movie(path: str | os.PathLike[str], eer_grouping: int = 40, eer_upsampling: int = 1) -> Movie:
    """Open a movie by its suffix: .tif, .tiff, .eer, .ecc, .gain (a TIFF whose rows stay), anything else is MRC.

    Parameters
    ----------
    eer_grouping : EER frames in one frame given out; those left over at the end are left out, as in RELION.
    eer_upsampling : 1 for the detector's pixels, 2 for half their size.

    Raises
    ------
    InputError
        A missing or truncated file, pages of different sizes, pixels that are not single grey values, or too
        few EER frames for one group.
    """
    path = existing_file(path, "movie")
    suffix = path.suffix.lower()
    if suffix in EER_SUFFIXES:
        return _EerMovie(path, eer_grouping, eer_upsampling)
    if suffix in (*TIFF_SUFFIXES, ".gain"):
        return _TiffMovie(path, turned=suffix != ".gain")
    return _MrcMovie(path)


class _MrcMovie(Movie):
    def __init__(self, path: Path) -> None:
        info = mrc.info(path)
        self.path, self.shape, self.dtype = path, info.shape[1:], info.dtype.newbyteorder("=")
        self._data: NDArray[Any]
        if path.suffix == ".gz":
            self._data = mrc.read(path)[0]
        else:
            self._data = np.memmap(path, dtype=info.dtype, mode="r", offset=info.offset, shape=info.shape)

    def __len__(self) -> int:
        return len(self._data)

    def frame(self, index: int) -> NDArray[Any]:
        return np.array(self._data[index], dtype=self.dtype)

    def close(self) -> None:
        """Nothing is held open but memory maps, which go with the object."""


class _TiffMovie(Movie):
    def __init__(self, path: Path, turned: bool) -> None:
        self.path, self._turned = path, turned
        self._file, self._pages = checked_pages(path)
        page = self._pages[0]
        self.shape, self.dtype = (page.shape[0], page.shape[1]), np.dtype(page.dtype)

    def __len__(self) -> int:
        return len(self._pages)

    def frame(self, index: int) -> NDArray[Any]:
        with _decoding(self.path, index):
            data = self._pages[index].asarray()
            # the rows are contiguous again after a copy, which the sums over frames are faster with
            return np.ascontiguousarray(data[::-1]) if self._turned else np.asarray(data)

    def close(self) -> None:
        self._file.close()


class _EerMovie(Movie):
    def __init__(self, path: Path, grouping: int, upsampling: int) -> None:
        self.path, self._grouping, self._upsampling = path, grouping, upsampling
        self._file, pages = checked_pages(path)
        # some programs put the plain sum in front of the frames
        self._pages = [page for page in pages if page.compression in (_EER_12_BIT, _EER_11_BIT, _EER_VARIABLE)]
        problem = self._problem()
        if problem:
            self._file.close()
            raise InputError(f"{path}: {problem}")
        rows, columns = self._pages[0].shape
        self.shape = (rows * upsampling, columns * upsampling)
        self.dtype = np.dtype(np.uint8 if grouping < 256 else np.uint16)
        self._bits = _event_bits(self._pages[0])

    def _problem(self) -> str:
        if not self._pages:
            return "expected an EER movie, found no frame that is compressed as one"
        if len(self._pages) < self._grouping:
            few = f"expected at least --eer_grouping {self._grouping} EER frames, found {len(self._pages)}"
        else:
            few = ""
        return eer_problem(self._file, len(self._pages)) or few

    def __len__(self) -> int:
        return len(self._pages) // self._grouping

    def frame(self, index: int) -> NDArray[Any]:
        total = np.zeros(self.shape, dtype=np.uint8)
        wide = total if self.dtype == np.uint8 else np.zeros(self.shape, dtype=self.dtype)
        for number in range(index * self._grouping, (index + 1) * self._grouping):
            if wide is not total:
                total[:] = 0
            with _decoding(self.path, number):
                self._add_events(self._pages[number], total)
            if wide is not total:
                wide += total
        return wide

    def _add_events(self, page: Any, total: NDArray[np.uint8]) -> None:
        """Count the electrons of one EER frame into `total`."""
        handle = self._file.filehandle
        data = b""
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            handle.seek(offset)
            data += handle.read(count)
        if page.compression == _EER_12_BIT:
            _add_12_bit_events(data, total, self._upsampling)
        else:
            level = self._upsampling.bit_length() - 1
            data += bytes(len(data) % 2)  # the decoder takes whole 16-bit words only
            imagecodecs.eer_decode(data, self.shape, *self._bits, superres=level, out=total)

    def close(self) -> None:
        self._file.close()


def _event_bits(page: Any) -> tuple[int, int, int]:
    """Bits of the run length and of the sub-pixel coordinates along x and y."""
    if page.compression == _EER_VARIABLE:
        tags = page.tags
        return int(tags.valueof(65007, 7)), int(tags.valueof(65008, 2)), int(tags.valueof(65009, 2))
    return (7, 2, 2)


def _add_12_bit_events(data: bytes, total: NDArray[np.uint8], upsampling: int) -> None:
    """Count the electrons of an EER frame of 8 + 4 bits: run length, sub-pixel; run length 255 goes on.

    Here the sub-pixel bits are there after a run of 255 as well, which imagecodecs does not expect.
    """
    raw = np.frombuffer(data[: len(data) // 3 * 3], dtype=np.uint8).reshape(-1, 3)
    run = np.stack([raw[:, 0], raw[:, 1] >> 4 | raw[:, 2] << 4], axis=1).astype(np.int64).ravel()
    sub = np.stack([raw[:, 1] & 15, raw[:, 2] >> 4], axis=1).ravel() ^ _SUB_PIXEL_FLIP
    is_electron = run < 255
    position = np.cumsum(run + is_electron) - is_electron
    columns = total.shape[1] // upsampling
    n_pixels = columns * (total.shape[0] // upsampling)
    end = int(np.searchsorted(position, n_pixels))
    if end == len(position):
        raise ValueError("its electrons end before its last pixel")
    kept = np.flatnonzero(is_electron[:end])
    row, column = np.divmod(position[kept], columns)
    if upsampling == 2:
        row, column = 2 * row + (sub[kept] >> 3), 2 * column + ((sub[kept] >> 1) & 1)
    np.add.at(total, (row, column), 1)


@contextmanager
def _decoding(path: Path, index: int) -> Iterator[None]:
    """Turn whatever a codec raises into InputError."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, struct.error, IndexError, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: frame {index + 1} cannot be decoded: {error}") from error
