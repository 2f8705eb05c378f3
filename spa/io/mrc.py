"""MRC maps and stacks: read whole, mapped or in slices; written whole or not at all.

Arrays are (z, y, x) for volumes and (n, y, x) for stacks, x fastest in the file, pixel sizes in Angstrom.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io.files import existing_file, whole_file

HEADER = 1024
DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}
"""MRC mode -> type of the data."""

_LABEL = "Created by spa"  # and no time, so that two runs of one seed give the same bytes


@dataclass(frozen=True)
class MrcInfo:
    """What the header of an MRC file says.

    `shape` is (sections, rows, columns); `pixel_size` in Angstrom along x (0 if the header has none); `dtype`
    with the file's byte order; `offset` bytes of header before the data; `origin` (x, y, z) in Angstrom.
    """

    path: Path
    shape: tuple[int, int, int]
    mode: int
    pixel_size: float
    dtype: np.dtype[Any]
    offset: int
    origin: tuple[float, float, float]
    axes: tuple[int, int, int]


def info(path: str | os.PathLike[str]) -> MrcInfo:
    """Read and check the header of an MRC file (also gzipped maps) against the size of the file.

    Raises
    ------
    InputError
        Missing, empty or too short a file; a header that is not MRC; a mode that is not 0, 1, 2, 6 or 12;
        data that are truncated or followed by bytes the header does not know of.
    """
    path = existing_file(path, "map or stack")
    with _opened(path) as handle:
        raw = handle.read(HEADER)
        size = handle.seek(0, os.SEEK_END)
    if len(raw) < HEADER:
        raise InputError(f"{path}: expected an MRC file, found {len(raw)} bytes, less than its header of {HEADER}")
    header = _header(path, raw)
    order = header.dtype["nx"].byteorder
    mode = int(header["mode"])
    shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    if min(shape) < 1 or int(header["nsymbt"]) < 0:
        raise InputError(f"{path}: corrupt MRC header: {_size(shape)} pixels, {int(header['nsymbt'])} extended bytes")
    if mode not in DTYPES:
        known = ", ".join(f"{m} ({np.dtype(t).name})" for m, t in DTYPES.items())
        raise InputError(f"{path}: MRC mode {mode} cannot be read; expected one of {known}")
    dtype = np.dtype(DTYPES[mode]).newbyteorder(order)
    offset = HEADER + int(header["nsymbt"])
    _check_size(path, shape, dtype, offset, size)
    grid = int(header["mx"])
    pixel_size = float(header["cella"]["x"]) / grid if grid > 0 else 0.0
    origin = tuple(float(header["origin"][axis]) for axis in "xyz")
    axes = (int(header["mapc"]), int(header["mapr"]), int(header["maps"]))
    return MrcInfo(
        path,
        shape,
        mode,
        pixel_size if np.isfinite(pixel_size) else 0.0,
        dtype,
        offset,
        (origin[0], origin[1], origin[2]),
        axes,
    )


def read(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], float]:
    """Read any MRC file as float32 (sections, rows, columns) with its pixel size (0 if it has none)."""
    found = info(path)
    with _opened(found.path) as handle:
        handle.seek(found.offset)
        data = np.frombuffer(handle.read(), dtype=found.dtype).reshape(found.shape)
    return data.astype(np.float32), found.pixel_size


def read_volume(path: str | os.PathLike[str], angpix: float = 0.0) -> tuple[NDArray[np.float32], float]:
    """Read a cubic map with an even box: float32 (z, y, x) and its pixel size in Angstrom.

    A map stored with its axes in another order is brought to x fastest. A positive `angpix` overrules the header.

    Raises
    ------
    InputError
        As `info`, and if the map is not a cube, its box is odd, its header has no pixel size, or it holds a
        value that is not finite.
    """
    found = info(path)
    volume, pixel_size = read(path)
    pixel_size = angpix if angpix > 0 else pixel_size
    stored = (found.axes[2], found.axes[1], found.axes[0])
    if sorted(stored) == [1, 2, 3] and stored != (3, 2, 1):
        volume = np.ascontiguousarray(volume.transpose([stored.index(axis) for axis in (3, 2, 1)]))
    if len(set(volume.shape)) != 1:
        raise InputError(f"{path}: expected a cubic map, found {_size(volume.shape)} voxels")
    check_box(volume.shape[0], path)
    if pixel_size <= 0:
        raise InputError(f"{path}: expected a pixel size in the header, found {pixel_size:g} A")
    if not np.isfinite(volume).all():
        raise InputError(f"{path}: expected finite voxels, found {int((~np.isfinite(volume)).sum())} that are not")
    return volume, pixel_size


def check_box(box_size: int, path: str | os.PathLike[str]) -> None:
    """Refuse an odd box (InputError)."""
    if box_size % 2:
        raise InputError(f"{path}: expected an even box, found {box_size} pixels")


def write_volume(path: str | os.PathLike[str], volume: NDArray[Any], pixel_size: float, float16: bool = False) -> None:
    """Write a map (z, y, x), `pixel_size` in Angstrom, as mode 2 (or 12: float16), whole or not at all."""
    _write(path, volume, pixel_size, float16, stack=False)


def write_stack(path: str | os.PathLike[str], images: NDArray[Any], pixel_size: float, float16: bool = False) -> None:
    """Write images (n, y, x), or one image (y, x), as an image stack; as `write_volume` otherwise."""
    _write(path, images if images.ndim == 3 else images[None], pixel_size, float16, stack=True)


class StackWriter:
    """Takes the images of a stack piece by piece; made by `stack_writer`."""

    def __init__(self, file: Any, path: Path) -> None:
        self.path = path
        self.n_written = 0
        self._file = file
        self._sums = np.zeros(2)
        self._range = (np.inf, -np.inf)

    def append(self, images: NDArray[Any]) -> None:
        """Add images (n, rows, columns) or one image (rows, columns)."""
        images = np.asarray(images if images.ndim == 3 else images[None], dtype=np.float32)
        shape = self._file.data.shape
        stop = self.n_written + len(images)
        if images.shape[1:] != shape[1:] or stop > shape[0]:
            raise ValueError(f"{self.path}: {images.shape} after {self.n_written} images does not fit {shape}")
        self._file.data[self.n_written : stop] = images
        images = self._file.data[self.n_written : stop].astype(np.float32)  # as rounded for the file
        self._sums += images.sum(dtype=np.float64), np.square(images, dtype=np.float64).sum()
        self._range = (min(self._range[0], float(images.min())), max(self._range[1], float(images.max())))
        self.n_written = stop

    def finish(self, pixel_size: float) -> None:
        """Complete the header (ValueError if images are missing)."""
        n_images = self._file.data.shape[0]
        if self.n_written != n_images:
            raise ValueError(f"{self.path}: {self.n_written} of {n_images} images written")
        mean, square = self._sums / self._file.data.size
        header = self._file.header
        header.dmin, header.dmax, header.dmean = *self._range, mean
        header.rms = np.sqrt(max(square - mean**2, 0.0))
        _finish(self._file, pixel_size, stack=True)


@contextmanager
def stack_writer(
    path: str | os.PathLike[str],
    n_images: int,
    box_size: int | tuple[int, int],
    pixel_size: float,
    float16: bool = False,
) -> Iterator[StackWriter]:
    """Write a stack that need not fit in memory; it appears, whole, when the block ends without an error.

    `box_size` pixels square, or (rows, columns); `pixel_size` in Angstrom; `float16` is mode 12, else mode 2.

    Raises
    ------
    ValueError
        If more or fewer than `n_images` are appended, or images of another shape.
    """
    rows, columns = (box_size, box_size) if isinstance(box_size, int) else box_size
    with (
        whole_file(path) as temporary,
        mrcfile.new_mmap(temporary, (n_images, rows, columns), 12 if float16 else 2, overwrite=True) as file,
    ):
        writer = StackWriter(file, Path(path))
        yield writer
        writer.finish(pixel_size)


class StackReader:
    """Slices of many MRC stacks through memory maps, of which the `n_open` last used stay open."""

    def __init__(self, n_open: int = 32) -> None:
        self.n_open = n_open
        self._open: OrderedDict[Path, NDArray[Any]] = OrderedDict()
        self._infos: dict[Path, MrcInfo] = {}

    def info(self, path: str | os.PathLike[str]) -> MrcInfo:
        """The checked header of a stack, read once."""
        key = Path(path)
        if key not in self._infos:
            self._infos[key] = info(key)
        return self._infos[key]

    def read(self, path: str | os.PathLike[str], indices: int | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Image(s) of a stack, counted from 0: float32 (rows, columns), or (n, rows, columns) for an array.

        Raises
        ------
        InputError
            As `info`, and an index beyond the stack.
        """
        chosen = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        data = self._data(Path(path))
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(data)):
            worst = int(chosen.max() if chosen.max() >= len(data) else chosen.min())
            raise InputError(f"{path}: no image {worst + 1}; the stack holds {len(data)}")
        order = np.argsort(chosen, kind="stable")
        images = np.empty((len(chosen), *data.shape[1:]), dtype=np.float32)
        for at in order:
            images[at] = data[chosen[at]]
        return images[0] if np.ndim(indices) == 0 else images

    def _data(self, path: Path) -> NDArray[Any]:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        found = self.info(path)
        data: NDArray[Any]
        if path.suffix == ".gz":
            data = read(path)[0]
        else:
            try:
                data = np.memmap(path, dtype=found.dtype, mode="r", offset=found.offset, shape=found.shape)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: cannot be read any more: {error}") from error
        self._open[path] = data
        while len(self._open) > self.n_open:
            self._open.popitem(last=False)
        return data


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a plain or gzipped file; damage and denied access become InputError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            yield handle
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _header(path: Path, raw: bytes) -> Any:
    """The header as a mrcfile record, in the byte order in which its axes and mode make sense."""
    for order in "<>":
        header = np.frombuffer(raw, dtype=mrcfile.dtypes.HEADER_DTYPE.newbyteorder(order))[0]
        axes = sorted(int(header[axis]) for axis in ("mapc", "mapr", "maps"))
        # Some programs leave the axes zero; the stamp alone must do then.
        if (axes == [1, 2, 3] or (axes == [0, 0, 0] and header["map"][:3] == b"MAP")) and (
            0 <= int(header["mode"]) < 128
        ):
            return header
    raise InputError(f"{path}: expected an MRC file, found a header whose axes and mode make no sense")


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, size: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    promised = f"{_size(shape)} {dtype.name} ({expected:,} bytes of data)"
    promise = f"header promises {promised}, file has {size - offset:,}"
    if size - offset < expected:
        raise InputError(f"{path}: truncated: {promise}")
    if size - offset > expected:
        raise InputError(f"{path}: trailing bytes: {promise}")


def _write(path: str | os.PathLike[str], data: NDArray[Any], pixel_size: float, float16: bool, stack: bool) -> None:
    dtype = np.float16 if float16 else np.float32
    with whole_file(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # statistics of a map that holds a NaN
            file.set_data(np.ascontiguousarray(data, dtype=dtype))
        _finish(file, pixel_size, stack)


def _finish(file: Any, pixel_size: float, stack: bool) -> None:
    """Voxel size and kind of data in the header of an open mrcfile object, and a label without mrcfile's time."""
    if stack:
        file.set_image_stack()
    elif file.data.ndim == 3:
        file.set_volume()
    file.voxel_size = pixel_size
    file.header.label[0] = _LABEL


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
