"""Motion of whole frames of a movie.

A shift (x, y) is the correction: what a frame's content is to be moved by, in pixels of the unbinned frame, so
that it lies on that of the first frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, fft_of, fft_workers, to_host, to_like, xp_of
from spa.motion_fourier import crop_transform, moved, weights, whitened, working_shape
from spa.motion_steps import newton_steps, slopes, smooth
from spa.motion_weights import Filter, bfactor_filter, faded, ring_sums, signal_filter

LEVELS = (16.0, 4.0, 1.0)
"""Multiples of the B-factor, from the widest peak, which finds large shifts, to the sharpest."""

GROUPS = (1, 2, 4)
"""Frames summed before their peaks are searched for: more where one has no peak."""

_FEWEST_GROUPS = 4
_SEARCHES = 6
_REFINEMENTS = 8
_FILTERED = 2  # of them with the B-factor, the others with weights from the frames themselves
_TOLERANCE = 0.02  # pixels of the cropped frame
_SIGNIFICANT = 4.5  # peak over the noise of its correlation map

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """Shifts of whole frames.

    shifts : (n_frames, 2), x and y, pixels of the unbinned frame; the first is zero.
    errors : (n_frames, 2), what noise does to them, same unit; infinite where a frame shows nothing.
    found : whether the frames correlate at all; if not, the shifts are zero.
    """

    shifts: Floats
    errors: Floats
    found: bool


def align_frames(
    transforms: Array, shape: tuple[int, int], full_shape: tuple[int, int], bfactor: float, reach: float
) -> Track:
    """Align whole frames with the sum of the others.

    Parameters
    ----------
    transforms : (n_frames, rows, columns // 2 + 1) complex64, cropped to the working shape.
    shape, full_shape : (rows, columns) of the cropped and of the unbinned frame.
    bfactor : weights exp(-2 bfactor f^2), f in 1/pixel of the unbinned frame.
    reach : how far from the mean of all frames one may lie, in pixels of the unbinned frame.

    Notes
    -----
    Peaks of the correlation maps are searched for with wide filters first. Then the shifts climb the sum of the
    correlations by Newton steps, whose errors follow from the noise of the gradient; in the end with weights that
    follow from the signal and noise of the aligned frames, among which damage tells. Frames are tied
    to their neighbours in time by second differences, whose size is estimated from the shifts and their errors:
    what is well measured is hardly changed by that, what a weak frame says is replaced by what its neighbours say.
    """
    n_frames = len(transforms)
    for group in GROUPS:
        if group > 1 and n_frames < _FEWEST_GROUPS * group:
            break
        shifts, found = _found_shifts(transforms, shape, full_shape, bfactor, reach, group)
        if found:
            break
    else:
        found = False
    if not found:
        return Track(np.zeros((n_frames, 2)), np.full((n_frames, 2), np.inf), False)
    scale = np.array([full_shape[1] / shape[1], full_shape[0] / shape[0]])
    frames = whitened(transforms.copy(), shape)
    products = bfactor_filter(n_frames, shape, full_shape, bfactor)
    shifts, errors = _refine(frames, products, shape, shifts / scale)
    return Track((shifts - shifts[0]) * scale, errors * scale, True)


def _found_shifts(
    transforms: Array, shape: tuple[int, int], full_shape: tuple[int, int], bfactor: float, reach: float, group: int
) -> tuple[Floats, bool]:
    """Shifts (n_frames, 2), unbinned pixels, from peaks of sums of `group` frames, and whether there are any."""
    n_frames = len(transforms)
    starts = np.arange(0, n_frames - group + 1, group)
    shifts, found = np.zeros((len(starts), 2)), False
    for level in LEVELS:
        small = working_shape(full_shape, bfactor * level)
        small = (min(small[0], shape[0]), min(small[1], shape[1]))
        scale = np.array([full_shape[1] / small[1], full_shape[0] / small[0]])
        frames = crop_transform(transforms, small)
        if group > 1:
            frames = xp_of(frames).stack([frames[start : start + group].sum(axis=0) for start in starts])
        frames = whitened(frames, small)
        weight = to_like(weights(small, full_shape, bfactor * level), frames)
        width = math.sqrt(bfactor * level) / math.pi  # of the peak that the filter makes
        radius = 6 * width if found else reach
        shifts, here = _search(frames, weight, small, shifts / scale, radius / scale, width / scale)
        shifts *= scale
        found = found or here
    centres = starts + (group - 1) / 2
    between = [np.interp(np.arange(n_frames), centres, shifts[:, axis]) for axis in range(2)]
    return np.stack(between, axis=1), found


def _search(
    frames: Array, weight: Array, shape: tuple[int, int], shifts: Floats, radius: Floats, width: Floats
) -> tuple[Floats, bool]:
    """Shifts (n, 2) from the peaks of correlation maps, in pixels of `shape`, and whether any are there."""
    n_frames, found = len(frames), False
    for _ in range(_SEARCHES):
        placed = moved(frames, shape, shifts)
        total = placed.sum(axis=0)
        peaks = np.zeros((n_frames, 3))
        for i in range(n_frames):
            spectrum = (total - placed[i]) * placed[i].conj() * weight
            peaks[i] = _peak(fft_of(spectrum).irfft2(spectrum, s=shape, **fft_workers(spectrum)), radius)
        heights = peaks[:, 2]
        significant = heights > _SIGNIFICANT
        if significant.sum() < 3:
            return shifts, found
        found = True
        errors = np.where(significant[:, None], width / np.maximum(heights, 1e-6)[:, None], np.inf)
        new, _ = smooth(shifts + peaks[:, :2], errors)
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < 0.1:
            break
    return shifts, found


def _peak(correlation: Array, radius: Floats) -> Floats:
    """(x, y, height over noise) of the highest peak within `radius` (x, y) of the origin of a periodic map."""
    xp = xp_of(correlation)
    rows, columns = correlation.shape
    reach_x, reach_y = (max(1, min(math.ceil(r), n // 2 - 2)) for r, n in zip(radius, (columns, rows), strict=True))
    y, x = np.arange(-reach_y - 1, reach_y + 2), np.arange(-reach_x - 1, reach_x + 2)
    near = to_host(correlation[xp.asarray(y % rows)[:, None], xp.asarray(x % columns)]).astype(np.float64)
    noise = float(xp.sqrt(xp.mean(correlation**2)))
    row, column = np.unravel_index(int(near[1:-1, 1:-1].argmax()), near[1:-1, 1:-1].shape)
    row, column = row + 1, column + 1
    top = near[row, column]
    place = [float(x[column]), float(y[row])]
    for axis, (before, after) in enumerate(
        ((near[row, column - 1], near[row, column + 1]), (near[row - 1, column], near[row + 1, column]))
    ):
        bend = before + after - 2 * top
        if bend < 0:
            place[axis] += float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
    return np.array([*place, top / max(noise, 1e-30)])


def _refine(frames: Array, products: Filter, shape: tuple[int, int], shifts: Floats) -> tuple[Floats, Floats]:
    """Shifts (n, 2) at the top of the correlation with the sum of the others, and their errors."""
    errors = np.full_like(shifts, np.inf)
    for turn in range(_REFINEMENTS):
        placed = moved(frames, shape, shifts)
        if turn >= _FILTERED:
            products = signal_filter(ring_sums(placed, shape, products.amplitudes), products, shape)
        placed = faded(placed, shape, products.amplitudes)
        found = slopes(placed, to_like(products.weight, frames), shape)
        steps, errors = newton_steps(*found, products.information)
        new, errors = smooth(shifts + steps, errors)
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < _TOLERANCE and turn > _FILTERED:
            break
    return shifts, errors
