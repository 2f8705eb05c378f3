"""The frames of one movie in memory, corrected for gain and bad pixels when they are asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa.defects import Repair, hot_pixels
from spa.errors import InputError
from spa.io.movie import Movie
from spa.io.tiff_pages import EER_SUFFIXES

FEWEST_FRAMES = 3

_NEIGHBOURS, _EER_NEIGHBOURS = 2, 4  # pixels from which bad ones are replaced, as in RELION


class MovieFrames:
    """Frames as stored, which for counts is a quarter or less of what they take as float32.

    Parameters
    ----------
    movie : open movie; all of it is read.
    gain : what frames are multiplied with, or None; pixels of gain 0 are bad.
    defects : bad pixels, or None.
    seed : of the values that bad pixels get.

    Attributes
    ----------
    shape : (rows, columns).
    hot : pixels found to be hot, bool (rows, columns).
    n_blank : how many frames hold one value in every pixel.

    Raises
    ------
    InputError
        Fewer than 3 frames, a pixel that is not finite, or nothing but one value.
    """

    def __init__(
        self, movie: Movie, gain: NDArray[np.float32] | None, defects: NDArray[np.bool_] | None, seed: int
    ) -> None:
        if len(movie) < FEWEST_FRAMES:
            raise InputError(f"{movie.path}: expected at least {FEWEST_FRAMES} frames, found {len(movie)}")
        self.shape = movie.shape
        self._gain = gain
        self._stored = list(movie)
        self.n_blank = sum(bool(frame.min() == frame.max()) for frame in self._stored)
        known = np.zeros(movie.shape, dtype=np.bool_) if defects is None else defects.copy()
        if gain is not None:
            known |= gain == 0
        total = self._sum(movie)
        self.hot = hot_pixels(total, known)
        distance = _EER_NEIGHBOURS if movie.path.suffix.lower() in EER_SUFFIXES else _NEIGHBOURS
        self._repair = Repair(known | self.hot, distance, seed)

    def __len__(self) -> int:
        """The number of frames."""
        return len(self._stored)

    def corrected(self, number: int) -> NDArray[np.float32]:
        """Frame `number`, times the gain and without bad pixels."""
        frame = self._stored[number].astype(np.float32)
        if self._gain is not None:
            frame *= self._gain
        self._repair(frame, number)
        return frame

    def _sum(self, movie: Movie) -> NDArray[np.float32]:
        total = np.zeros(self.shape, dtype=np.float32)
        for stored in self._stored:
            total += stored
        low, high = float(total.min()), float(total.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{movie.path}: expected finite pixels, found some that are not")
        if low == high:
            raise InputError(f"{movie.path}: expected an image, found {low:g} in every pixel of the sum of all frames")
        if self._gain is not None:
            total *= self._gain
        return total
