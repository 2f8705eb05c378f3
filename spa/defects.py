"""Bad pixels of a detector: found in the sum of a movie, replaced by their neighbours in each frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HOT_SIGMA = 6.0
"""A pixel is hot where the sum of all frames is so many standard deviations above its mean."""

_CLIPPING_ROUNDS = 3
_FEWEST_NEIGHBOURS = 7
_CHUNK = 50_000


def hot_pixels(total: NDArray[np.float32], known_bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the sum of all frames (rows, columns) that are hot and not yet known to be bad.

    Notes: RELION's rule, a pixel more than 6 standard deviations above the mean, with mean and deviation taken
    again without the pixels found, so that one very hot pixel does not hide the others.
    """
    bad = known_bad.copy()
    for _ in range(_CLIPPING_ROUNDS):
        good = total[~bad]
        if good.size == 0:
            break
        limit = good.mean(dtype=np.float64) + HOT_SIGMA * good.std(dtype=np.float64)
        found = (total > limit) & ~bad
        if not found.any():
            break
        bad |= found
    return bad & ~known_bad


class Repair:
    """Replaces bad pixels (rows, columns) by what good pixels near them hold.

    In every frame a bad pixel gets the value of a good pixel drawn at random within `distance`; one with hardly a
    good neighbour, inside a large defect, that of a good pixel drawn from anywhere. Values, not means, so that
    noise and counts stay as they are. The draws follow from `seed` and the number of the frame.
    """

    def __init__(self, bad: NDArray[np.bool_], distance: int, seed: int) -> None:
        self.bad = bad
        self.seed = seed
        self._distance = distance
        self._places = np.flatnonzero(bad)

    def __call__(self, frame: NDArray[np.float32], number: int) -> None:
        """Replace the bad pixels of frame `number` in place."""
        if not len(self._places):
            return
        rng = np.random.default_rng((self.seed, number))
        old = frame.copy() if len(self._places) > _CHUNK else frame
        for start in range(0, len(self._places), _CHUNK):
            places = self._places[start : start + _CHUNK]
            frame.flat[places] = self._drawn(old, places, rng)

    def _drawn(
        self, frame: NDArray[np.float32], places: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        rows, columns = frame.shape
        row, column = np.divmod(places, columns)
        offsets = np.arange(-self._distance, self._distance + 1)
        near_row = row[:, None, None] + offsets[:, None]
        near_column = column[:, None, None] + offsets
        inside = (near_row >= 0) & (near_row < rows) & (near_column >= 0) & (near_column < columns)
        near = (np.clip(near_row, 0, rows - 1) * columns + np.clip(near_column, 0, columns - 1)).reshape(
            len(places), -1
        )
        good = inside.reshape(len(places), -1) & ~self.bad.flat[near]
        counts = good.sum(axis=1)
        # the k-th good neighbour of each, k drawn
        wanted = (rng.random(len(places)) * counts).astype(np.int64)
        chosen = np.argmax(good.cumsum(axis=1) > wanted[:, None], axis=1)
        values = frame.flat[near[np.arange(len(places)), chosen]]
        alone = np.flatnonzero(counts < _FEWEST_NEIGHBOURS)
        if len(alone):
            values[alone] = self._from_anywhere(frame, len(alone), rng)
        return np.asarray(values, dtype=np.float32)

    def _from_anywhere(self, frame: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        drawn = rng.integers(frame.size, size=8 * count + 64)
        drawn = drawn[~self.bad.flat[drawn]]
        if not len(drawn):
            return np.zeros(count, dtype=np.float32)
        return np.asarray(frame.flat[np.resize(drawn, count)], dtype=np.float32)
