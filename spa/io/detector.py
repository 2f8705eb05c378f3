"""What is known of a detector besides its movies: gain reference and defects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io.files import existing_file
from spa.io.movie import open_movie
from spa.io.tiff_pages import EER_SUFFIXES

_EER_GAIN = ".gain"


def read_gain(path: str | os.PathLike[str], rotation: int = 0, flip: int = 0) -> NDArray[np.float32]:
    """Read a gain reference that frames are multiplied with, float32 (rows, columns), turned as asked.

    Parameters
    ----------
    rotation : quarter turns as in RELION (--gain_rot), clockwise where row 0 is drawn at the bottom: 0 to 3.
    flip : after that, 1 turns it upside down, 2 swaps left and right (--gain_flip).

    Raises
    ------
    InputError
        Not one image, values that are negative or not finite, or none above zero.

    Notes
    -----
    Rotation and flip were compared with the file that relion_run_motioncorr writes for each of the 12 cases.
    """
    gain = _read_image(path, "gain reference")
    if not np.isfinite(gain).all() or gain.min() < 0 or gain.max() <= 0:
        found = f"{gain.min():g} to {gain.max():g}"
        raise InputError(f"{path}: expected a gain reference of finite values from 0 on, found {found}")
    gain = np.rot90(gain, -rotation)
    if flip:
        gain = gain[::-1] if flip == 1 else gain[:, ::-1]
    return np.ascontiguousarray(gain)


def gain_for_movie(
    gain: NDArray[np.float32],
    gain_path: str | os.PathLike[str],
    movie_path: str | os.PathLike[str],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """The gain reference of a movie's frames: checked for its size, and adapted to EER.

    Raises
    ------
    InputError
        If its size is not that of the frames (EER: nor half or twice it).

    Notes
    -----
    As in RELION, EER frames are divided by a gain reference in MRC or TIFF and multiplied with a .gain file; one
    for the other upsampling is repeated or summed over 2 x 2 pixels.
    """
    if Path(movie_path).suffix.lower() in EER_SUFFIXES:
        gain = _adapted(gain, shape)
        if Path(gain_path).suffix.lower() != _EER_GAIN:
            mean = float(gain.mean(dtype=np.float64))
            gain = np.divide(mean, gain, out=np.zeros_like(gain), where=gain != 0)
    if gain.shape != shape:
        raise InputError(
            f"{movie_path}: frames of {_size(shape)} pixels, but gain reference of {_size(gain.shape)} in {gain_path}"
            + (": turned the other way? See --gain_rot" if gain.shape == shape[::-1] else "")
        )
    return gain


def read_defects(path: str | os.PathLike[str], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the bad pixels of frames of `shape`: a map in MRC or TIFF (not 0 is bad), or a text list.

    The list has four whole numbers a line: first column x and row y counted from 0, width and height; "#"
    begins a comment. A rectangle may reach beyond the frame.

    Raises
    ------
    InputError
        A map of another size, a line that is not four whole numbers, or a negative width or height.
    """
    path = existing_file(path, "defect file")
    if path.suffix.lower() == ".txt":
        return _rectangles(path, shape)
    bad: NDArray[np.bool_] = _read_image(path, "defect map") != 0
    if bad.shape != shape:
        raise InputError(f"{path}: defect map of {_size(bad.shape)} pixels for frames of {_size(shape)}")
    return bad


def _rectangles(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    bad = np.zeros(shape, dtype=np.bool_)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a text list of defects, found binary data") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            x, y, width, height = (int(word) for word in words)
        except ValueError:
            width = -1
        if width < 0 or height < 0:
            raise InputError(f"{path}, line {number}: expected x y width height in whole pixels, found '{line}'")
        bad[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    return bad


def _read_image(path: str | os.PathLike[str], kind: str) -> NDArray[np.float32]:
    """The only, or first, image of an MRC or TIFF file, rows in the order of MRC; a .gain file as it is."""
    path = existing_file(path, kind)
    with open_movie(path) as file:
        if len(file) > 1 and path.suffix.lower() != _EER_GAIN:
            raise InputError(f"{path}: expected one image as {kind}, found {len(file)}")
        return file.frame(0).astype(np.float32)


def _adapted(gain: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A gain reference repeated, or summed, over 2 x 2 pixels where that makes it fit."""
    rows, columns = gain.shape
    if (2 * rows, 2 * columns) == shape:
        return gain.repeat(2, axis=0).repeat(2, axis=1)
    if (rows, columns) == (2 * shape[0], 2 * shape[1]):
        return np.asarray(gain.reshape(shape[0], 2, shape[1], 2).sum(axis=(1, 3)), dtype=np.float32)
    return gain


def _size(shape: tuple[Any, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
