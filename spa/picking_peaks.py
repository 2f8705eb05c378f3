"""Peaks of score maps: where they are to a fraction of a pixel, which to keep, and above which score. Arrays only.

Positions are in pixels, x along the columns, pixel centres at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

FALSE_SHARE = 0.05
"""Of the picks, how many noise alone may have made at the automatic threshold."""

_FEWEST = 12  # peaks that a distribution can be fitted to
_TAIL = 0.2  # of the peaks of noise, the highest, whose fall is extrapolated
_ROUNDS = 60
_SEPARATE = 2.0  # standard deviations between two kinds of peaks, or they are one
_NARROWEST = 0.1  # of the whole spread: a kind of peaks is not narrower


@dataclass(frozen=True)
class Peaks:
    """Peaks in the order of their scores, the highest first.

    centres : float64 (n, 2), x and y. score : float64 (n,). label : int64 (n,), which template matches best, from 0.
    size : float64 (n,), diameter in Angstrom.
    """

    centres: Floats
    score: Floats
    label: NDArray[np.int64]
    size: Floats

    def __len__(self) -> int:
        """The number of peaks."""
        return len(self.score)

    def chosen(self, which: NDArray[np.bool_]) -> Peaks:
        """Those of a mask (n,)."""
        return replace(self, **{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def at(self, image: NDArray[np.float32]) -> Floats:
        """Values of a map at the pixels nearest to the peaks, (n,)."""
        columns, rows = (
            np.clip(np.rint(c).astype(int), 0, n - 1) for c, n in zip(self.centres.T, image.shape[::-1], strict=True)
        )
        return np.asarray(image[rows, columns], dtype=np.float64)


def find_peaks(
    score: NDArray[np.float32],
    min_distance: float,
    floor: float,
    label: NDArray[np.integer] | None = None,
    sizes: Sequence[float] = (0.0,),
    usable: NDArray[np.bool_] | None = None,
) -> Peaks:
    """Peaks of at least `floor`, none nearer than `min_distance` pixels to a higher one.

    Parameters
    ----------
    score : float32 (rows, columns); label : int, like it, which template scored. usable : bool, like it, what is not
        masked; no pixel at its edge is a peak.
    sizes : diameter that goes with each label; one for all if it is the only one.

    Notes
    -----
    A parabola through each peak and its neighbours gives the fraction of a pixel, along each axis.
    """
    highest = ndimage.maximum_filter(score, size=3, mode="nearest")
    good = score >= floor
    if usable is not None:  # beside the mask a score may go on rising behind it
        good &= ndimage.binary_erosion(usable, np.ones((3, 3), dtype=bool), border_value=1)
    rows, columns = np.nonzero((score == highest) & good)
    order = np.argsort(-score[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    centres = np.stack([_refined(score, rows, columns, 1), _refined(score, rows, columns, 0)], axis=1)
    kept = apart(centres, min_distance)
    rows, columns, centres = rows[kept], columns[kept], centres[kept]
    labels = np.zeros(len(rows), dtype=np.int64) if label is None else label[rows, columns].astype(np.int64)
    diameter = np.asarray(sizes, dtype=np.float64)[labels if len(sizes) > 1 else np.zeros_like(labels)]
    return Peaks(centres, score[rows, columns].astype(np.float64), labels, diameter)


def apart(centres: Floats, min_distance: float) -> NDArray[np.int64]:
    """Indices of centres (n, 2), best first, without those nearer than `min_distance` to a better one that is kept."""
    kept = np.ones(len(centres), dtype=bool)
    if len(centres) > 1 and min_distance > 0:
        tree = cKDTree(centres)
        for i in range(len(centres)):
            if kept[i]:
                near = tree.query_ball_point(centres[i], min_distance * (1 - 1e-9))
                kept[[j for j in near if j > i]] = False
    return np.flatnonzero(kept)


def _refined(
    score: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64], axis: int
) -> NDArray[np.float64]:
    """Place of the vertex of the parabola through a pixel and its two neighbours along an axis."""
    place = columns if axis else rows
    middle = np.clip(place, 1, score.shape[axis] - 2)
    before, here, after = (
        score[(rows, middle + d) if axis else (middle + d, columns)].astype(np.float64) for d in (-1, 0, 1)
    )
    known = np.isfinite(before) & np.isfinite(after) & (middle == place)
    before, after = np.where(known, before, here), np.where(known, after, here)
    bend = before - 2 * here + after
    offset = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.where(known, place + np.clip(offset, -0.5, 0.5), place)


def automatic_threshold(scores: Floats, noise: Floats, noise_area: float) -> float:
    """The score above which peaks are particles.

    Parameters
    ----------
    scores : (n,), peaks of a micrograph. noise : (m,), peaks of noise alone, scored in the same way.
    noise_area : area of that noise over the area of the micrograph.

    Notes
    -----
    The higher of two: the score above which noise alone makes no more than `FALSE_SHARE` of the peaks, the tail of its
    peaks falling exponentially; and, where the peaks are of two kinds, the score at which both are as likely, by a
    mixture of two Gaussians (expectation maximisation).
    """
    return max(_above_noise(scores, noise, noise_area), _between_kinds(scores))


def _above_noise(scores: Floats, noise: Floats, noise_area: float) -> float:
    ordered = np.sort(scores)
    if not len(noise):
        return float(ordered[0]) if len(ordered) else 0.0
    base = float(np.quantile(noise, 1 - _TAIL))
    tail = noise[noise >= base]
    fall = max(float(np.mean(tail - base)), 1e-3)
    expected = len(tail) / noise_area * np.exp(-(ordered - base) / fall)
    share = expected / np.arange(len(ordered), 0, -1)
    good = np.flatnonzero((share <= FALSE_SHARE) & (ordered >= base))
    return float(ordered[good[0]]) if len(good) else float(max(base + 8 * fall, ordered.max(initial=0.0) + 1e-6))


def _between_kinds(scores: Floats) -> float:
    """Where two kinds of scores are equally likely; minus infinity if there is only one kind."""
    if len(scores) < _FEWEST:
        return -np.inf
    spread = float(scores.std())
    if spread == 0:
        return -np.inf
    split = _otsu(scores)
    means, deviations, shares = np.zeros(2), np.zeros(2), np.zeros(2)
    weight = np.stack([scores < split, scores >= split]).astype(np.float64)
    for _ in range(_ROUNDS):
        counts = weight.sum(axis=1)
        if counts.min() < 2:
            return -np.inf
        means, shares = weight @ scores / counts, counts / len(scores)
        squares = (weight * (scores - means[:, None]) ** 2).sum(axis=1) / counts
        deviations = np.maximum(np.sqrt(squares), _NARROWEST * spread)
        log = _log_density(scores, means, deviations, shares)
        weight = np.exp(log - np.logaddexp(log[0], log[1]))
    low, high = means
    if high - low < _SEPARATE * np.sqrt((deviations**2).mean()):
        return -np.inf
    line = np.linspace(low, high, 1001)
    log = _log_density(line, means, deviations, shares)
    return float(line[np.argmax(log[1] > log[0])])


def _log_density(values: Floats, means: Floats, deviations: Floats, shares: Floats) -> Floats:
    distance = (values - means[:, None]) / deviations[:, None]
    return np.asarray(np.log(shares / deviations)[:, None] - 0.5 * distance**2)


def _otsu(scores: Floats) -> float:
    """The value that splits scores into two groups with the largest variance between them."""
    ordered = np.sort(scores)
    n = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    difference = sums[:-1] / n - (sums[-1] - sums[:-1]) / (len(ordered) - n)
    at = int(np.argmax(n * (len(ordered) - n) * difference**2))
    return float((ordered[at] + ordered[at + 1]) / 2)
