"""Motion of the specimen between the frames of a movie: whole frames and patches.

A shift (x, y) is the correction: what a frame's content is to be moved by, in pixels of the unbinned frame, so
that it lies on that of the first frame. Transforms are unnormalised rfft2 of (rows, columns), origin at pixel 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, fft_of, fft_workers, to_host, to_like, xp_of
from spa.motion_model import N_COEFFICIENTS, LocalModel, fit_model

LEVELS = (16.0, 4.0, 1.0)
"""Multiples of the B-factor, from the widest peak, which finds large shifts, to the sharpest."""

GROUPS = (1, 2, 4)
"""Frames summed before their peaks are searched for: more where one has no peak."""

_FEWEST_GROUPS = 4
_LOWEST_WEIGHT = 1e-4  # where the filter leaves less than this, nothing is kept of a transform
_SEARCHES = 6
_REFINEMENTS = 8
_TOLERANCE = 0.02  # pixels of the cropped frame
_SIGNIFICANT = 4.5  # peak over the noise of its correlation map
_BLIND_ERROR = 100.0  # of a frame that says nothing, in units of the typical error
_WALKS = (0.03, 300.0, 33)  # steps of the velocity that are tried, in units of the typical error
_BLIND = 2.5  # below the mean curvature, in units of its noise
_CURVED = 3.0  # curvature of the correlation over its noise
_TAPER = 0.1  # of a patch's width, at each side
_COARSE_MODEL = 4.0

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


@dataclass(frozen=True)
class Patches:
    """Shifts of patches left over when the whole frames are aligned.

    centres : (n_patches, 2), x and y, pixels of the unbinned frame.
    measured : (n_patches, n_frames, 2), pixels of the unbinned frame, up to a constant for each patch.
    errors : the same shape, what noise does to them.
    fitted : the same shape, what the model makes of them.
    model : the smooth model fitted to them, or None where the patches show too little.
    """

    centres: Floats
    measured: Floats
    errors: Floats
    fitted: Floats
    model: LocalModel | None


def working_shape(shape: tuple[int, int], bfactor: float) -> tuple[int, int]:
    """(rows, columns) to which frames are cropped in Fourier space before they are correlated.

    `bfactor` in pixels^2: what lies beyond has a weight below 1e-4.
    """
    fraction = min(1.0, 2 * math.sqrt(-math.log(_LOWEST_WEIGHT) / (2 * bfactor))) if bfactor > 0 else 1.0
    return even_size(shape[0] * fraction, shape[0]), even_size(shape[1] * fraction, shape[1])


def even_size(size: float, largest: int) -> int:
    """The next even size without large prime factors, not more than `largest` (made even)."""
    top = largest - largest % 2
    for candidate in range(max(2 * math.ceil(size / 2), 16), top, 2):
        rest = candidate
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
    return top


def crop_transform(ft: Array, new_shape: tuple[int, int]) -> Array:
    """The low frequencies (..., new_rows, new_columns // 2 + 1) of transforms (..., rows, columns // 2 + 1).

    Values stay, so that sums over pixels stay: grey values of the smaller image are multiplied by the ratio of
    the numbers of pixels. Frequencies at the new Nyquist are those of the negative side, as RELION crops.
    """
    rows, new_rows = ft.shape[-2], new_shape[0]
    columns = new_shape[1] // 2 + 1
    if new_rows == rows:
        return ft[..., :columns].copy()
    upper = (new_rows + 1) // 2
    lower = new_rows - upper
    return xp_of(ft).concatenate([ft[..., :upper, :columns], ft[..., rows - lower :, :columns]], axis=-2)


def shift_factors(shape: tuple[int, int], shift: Array, like: Array) -> tuple[Array, Array]:
    """Factors (rows, 1) and (columns // 2 + 1,), complex64, that move content by `shift` (x, y) pixels of `shape`."""
    xp = xp_of(like)
    ky = np.fft.fftfreq(shape[0])[:, None]
    kx = np.arange(shape[1] // 2 + 1) / shape[1]
    return tuple(
        xp.asarray(np.exp(-2j * np.pi * k * float(s)).astype(np.complex64)) for k, s in ((ky, shift[1]), (kx, shift[0]))
    )


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
    correlations by Newton steps, whose errors follow from the noise of the gradient. Frames are tied to their
    neighbours in time by second differences, whose size is estimated from the shifts and their errors: what
    is well measured is hardly changed by that, and what a weak frame says is replaced by what its neighbours say.
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
    frames = _whitened(transforms.copy(), shape)
    weight = to_like(_weights(shape, full_shape, bfactor), frames)
    shifts, errors = _refine(frames, weight, shape, shifts / scale)
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
        frames = _whitened(frames, small)
        weight = to_like(_weights(small, full_shape, bfactor * level), frames)
        width = math.sqrt(bfactor * level) / math.pi  # of the peak that the filter makes
        radius = 6 * width if found else reach
        shifts, here = _search(frames, weight, small, shifts / scale, radius / scale, width / scale)
        shifts *= scale
        found = found or here
    centres = starts + (group - 1) / 2
    between = [np.interp(np.arange(n_frames), centres, shifts[:, axis]) for axis in range(2)]
    return np.stack(between, axis=1), found


def _weights(shape: tuple[int, int], full_shape: tuple[int, int], bfactor: float) -> NDArray[np.float32]:
    """exp(-2 B f^2) without the mean and the row and column of zero frequency, which edges and stripes fill."""
    fy = np.fft.fftfreq(shape[0]) * shape[0] / full_shape[0]
    fx = np.arange(shape[1] // 2 + 1) / full_shape[1]
    weight = np.exp(-2 * bfactor * (fy[:, None] ** 2 + fx**2))
    weight[0] = 0
    weight[:, 0] = 0
    return weight.astype(np.float32)


def _whitened(ft: Array, shape: tuple[int, int]) -> Array:
    """Transforms divided by the square root of their mean power per ring and by that of each frame, in place."""
    xp = xp_of(ft)
    fy = np.fft.fftfreq(shape[0]) * shape[0]
    fx = np.arange(shape[1] // 2 + 1) * (shape[0] / shape[1])
    ring = np.rint(np.hypot(fy[:, None], fx)).astype(np.int64).ravel()
    power = np.zeros(ring.size)
    for frame in ft:
        power += to_host(xp.abs(frame.ravel()) ** 2)
    mean = np.bincount(ring, power) / np.maximum(np.bincount(ring), 1)
    factor = 1 / np.sqrt(np.maximum(mean, mean.max() * 1e-12))[ring].reshape(ft.shape[1:])
    ft *= xp.asarray(factor.astype(np.float32))
    for frame in ft:
        frame /= xp.sqrt(xp.mean(xp.abs(frame) ** 2)) + 1e-12
    return ft


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
        new = _smooth(shifts + peaks[:, :2], errors)
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < 0.1:
            break
    return shifts, found


def moved(frames: Array, shape: tuple[int, int], shifts: Floats) -> Array:
    """Transforms (n, rows, columns // 2 + 1) of images of `shape` with content moved by shifts (n, 2), x and y."""
    result = xp_of(frames).empty_like(frames)
    for i, shift in enumerate(shifts):
        fy, fx = shift_factors(shape, shift, frames)
        result[i] = frames[i] * fy * fx
    return result


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


def _refine(frames: Array, weight: Array, shape: tuple[int, int], shifts: Floats) -> tuple[Floats, Floats]:
    """Shifts (n, 2) at the top of the correlation with the sum of the others, and their errors."""
    errors = np.full_like(shifts, np.inf)
    for _ in range(_REFINEMENTS):
        gradient, curvature, spread = _slopes(moved(frames, shape, shifts), weight, shape)
        measured, errors = _newton(gradient, curvature, spread)
        new = _smooth(shifts + measured, errors)
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < _TOLERANCE:
            break
    return shifts, errors


def _slopes(placed: Array, weight: Array, shape: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    """Of the correlation of each frame with the sum of the others, along x and y, (n, 2) each:
    gradient, negative curvature, and noise variances (n, 2, 2) of both."""
    xp, n_frames = xp_of(placed), len(placed)
    ky = xp.asarray((2 * np.pi * np.fft.fftfreq(shape[0])).astype(np.float32))[:, None]
    kx = xp.asarray((2 * np.pi * np.arange(shape[1] // 2 + 1) / shape[1]).astype(np.float32))
    total = placed.sum(axis=0)
    gradient, curvature, noise = np.zeros((n_frames, 2)), np.zeros((n_frames, 2)), np.zeros((n_frames, 2, 2))
    for i in range(n_frames):
        product = (total - placed[i]).conj() * placed[i] * weight
        # marginal sums over one axis are all that the moments along the other need
        power = xp.abs(product) ** 2
        for axis, k, other in ((0, kx, 0), (1, ky[:, 0], 1)):
            marginal, spread = product.sum(axis=other), power.sum(axis=other)
            gradient[i, axis] = float((k * marginal.imag).sum())
            curvature[i, axis] = float((k**2 * marginal.real).sum())
            noise[i, axis] = float((k**2 * spread).sum()) / 2, float((k**4 * spread).sum()) / 2
    return gradient, curvature, noise


def _newton(gradient: Floats, curvature: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """Newton steps (..., n_frames, 2) and their errors; a step is at most a pixel.

    The curvature, which is noisy, is that of all frames together; a frame far below it says nothing.
    """
    mean = curvature.mean(axis=-2, keepdims=True)
    uncertainty = np.sqrt(noise[..., 1].mean(axis=-2, keepdims=True) / curvature.shape[-2])
    mean = np.maximum(mean, np.maximum(uncertainty, 1e-30))
    errors = np.sqrt(noise[..., 0]) / mean
    blind = (curvature < mean - _BLIND * np.sqrt(noise[..., 1])) & (curvature < 0.5 * mean)
    return np.clip(gradient / mean, -1, 1), np.where(blind | (errors == 0), np.inf, errors)


def _smooth(measured: Floats, errors: Floats) -> Floats:
    """Values (n, axes) over time, tied by second differences of the size that explains them best.

    Notes: a random walk of the velocity, whose step is that of the largest evidence given the errors.
    """
    n_frames = len(measured)
    if n_frames < 4 or not np.isfinite(errors).any():
        return measured.copy()
    second = np.diff(np.eye(n_frames), 2, axis=0)
    typical = float(np.median(errors[np.isfinite(errors)]))
    variances = np.where(np.isfinite(errors), np.maximum(errors, 1e-3 * typical), _BLIND_ERROR * typical) ** 2
    bends = second @ measured
    noise = np.einsum("ij,ja,kj->aik", second, variances, second)
    unit = np.eye(len(second))
    walks = (typical * np.geomspace(*_WALKS)) ** 2
    walk = walks[int(np.argmax([_evidence(bends, noise + variance * unit) for variance in walks]))]
    result = np.empty_like(measured)
    for axis in range(measured.shape[1]):
        gain = np.linalg.solve(noise[axis] + walk * unit, bends[:, axis])
        result[:, axis] = measured[:, axis] - variances[:, axis] * (second.T @ gain)
    return result


def _evidence(values: Floats, covariances: Floats) -> float:
    """Logarithm of the probability of values (n, axes) under normal distributions (axes, n, n), up to a constant."""
    total = 0.0
    for value, covariance in zip(values.T, covariances, strict=True):
        total -= 0.5 * float(value @ np.linalg.solve(covariance, value)) + 0.5 * float(np.linalg.slogdet(covariance)[1])
    return total


def align_patches(images: Array, full_shape: tuple[int, int], n_patches: tuple[int, int], bfactor: float) -> Patches:
    """Follow patches of aligned frames and fit the smooth model of local motion.

    Parameters
    ----------
    images : (n_frames, rows, columns) float32, frames of the working shape with the whole-frame shifts applied.
    full_shape : (rows, columns) of the unbinned frame.
    n_patches : along x and y.
    bfactor : as in `align_frames`.

    Notes
    -----
    The patches of all frames climb their correlations together, by Newton steps from the model of the step before:
    a patch so weak that it has no peak of its own still adds its slope, weighted by its curvature and noise.
    Errors grow as patches shrink; where the curvature of all of them together does not stand out of its noise,
    there is no model.
    """
    n_frames, rows, columns = images.shape
    windows = _windows((rows, columns), n_patches)
    centres = np.array([[(w[1].start + w[1].stop - 1) / 2, (w[0].start + w[0].stop - 1) / 2] for w in windows])
    scale = np.array([full_shape[1] / columns, full_shape[0] / rows])
    places = centres / (columns, rows) - 0.5
    measured = np.zeros((len(windows), n_frames, 2))
    errors = np.full_like(measured, np.inf)
    model, frame_numbers = LocalModel(np.zeros((2, N_COEFFICIENTS))), np.arange(n_frames, dtype=np.float64)
    transforms = [_patch_transforms(images, window) for window in windows]
    patch_full = (full_shape[0] / rows, full_shape[1] / columns)
    for level in (_COARSE_MODEL, 1.0):
        for _ in range(_REFINEMENTS):
            before = np.swapaxes(model.at(frame_numbers, places), 0, 1) / scale
            slopes = []
            for window, frames, shifts in zip(windows, transforms, before, strict=True):
                shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
                full = (round(shape[0] * patch_full[0]), round(shape[1] * patch_full[1]))
                weight = to_like(_weights(shape, full, bfactor * level), frames)
                slopes.append(_slopes(moved(frames, shape, shifts), weight, shape))
            gradient, curvature, noise = (np.stack(part) for part in zip(*slopes, strict=True))
            if not _stands_out(curvature, noise):
                return Patches(centres * scale, measured, errors, measured, None)
            steps, errors = _newton(gradient, curvature, noise)
            measured = before + steps
            model = fit_model(places, measured * scale, errors * scale)
            fitted = np.swapaxes(model.at(frame_numbers, places), 0, 1)
            if np.abs(fitted / scale - before).max() < 2 * _TOLERANCE:
                break
    return Patches(centres * scale, measured * scale, errors * scale, fitted, model)


def joined(track: Track, patches: Patches) -> tuple[Track, Patches]:
    """Whole-frame shifts that are the mean over the field, and the patches around them.

    The mean that the model has over the field goes to the whole frames, and so does what the patches of a frame
    have in common beyond it: a polynomial does not follow jumps between frames. What is applied to a place is the
    sum of both, as before.
    """
    if patches.model is None:
        return track, patches
    n_frames = len(track.shifts)
    frames = np.arange(n_frames, dtype=np.float64)
    whole = track.shifts + patches.model.field_mean(frames)
    rest = patches.measured - patches.fitted
    precision = np.where(np.isfinite(patches.errors), 1 / np.maximum(patches.errors, 1e-6) ** 2, 0.0)
    total = precision.sum(axis=0)
    jumps = (precision * rest).sum(axis=0) / np.maximum(total, 1e-30)
    errors = np.where(total > 0, 1 / np.sqrt(np.maximum(total, 1e-30)), np.inf)
    whole += _smooth(jumps, errors)
    change = whole - whole[0] - track.shifts
    model = patches.model.around_field_mean()
    fitted = patches.fitted - patches.model.field_mean(frames)
    around = replace(patches, measured=patches.measured - change, fitted=fitted, model=model)
    return Track(track.shifts + change, errors, True), around


def _stands_out(curvature: Floats, noise: Floats) -> bool:
    """Whether the curvature of all frames and patches is beyond its noise, along both axes."""
    total = curvature.sum(axis=(0, 1))
    return bool((total > _CURVED * np.sqrt(noise[..., 1].sum(axis=(0, 1)))).all())


def _windows(shape: tuple[int, int], n_patches: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Even-sized windows (rows, columns) that share a frame out into patches, row by row."""
    windows = []
    for row in range(n_patches[1]):
        for column in range(n_patches[0]):
            spans = []
            for n, size, at in ((n_patches[1], shape[0], row), (n_patches[0], shape[1], column)):
                start, stop = at * size // n, (at + 1) * size // n
                spans.append(slice(start, stop - (stop - start) % 2))
            windows.append((spans[0], spans[1]))
    return windows


def _patch_transforms(images: Array, window: tuple[slice, slice]) -> Array:
    """Whitened transforms (n_frames, rows, columns // 2 + 1) of a patch, its edges brought to its mean."""
    patches = images[:, window[0], window[1]]
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    shape = patches.shape[1:]
    for axis, size in enumerate(shape):
        taper = to_like(_taper(size), patches)
        patches *= taper[:, None] if axis == 0 else taper
    return _whitened(fft_of(patches).rfft2(patches, **fft_workers(patches)), shape)


def _taper(size: int) -> NDArray[np.float32]:
    """1 inside, falling to 0 as a raised cosine over the edges."""
    edge = max(1, round(size * _TAPER))
    distance = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(distance / edge, 1)), dtype=np.float32)
