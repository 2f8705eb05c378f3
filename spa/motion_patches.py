"""Motion of patches of a movie that is left over when the whole frames are aligned, and the model fitted to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, fft_of, fft_workers, to_like
from spa.motion import Track
from spa.motion_fourier import moved, weights, whitened
from spa.motion_model import N_COEFFICIENTS, LocalModel, fit_model
from spa.motion_steps import newton_steps, slopes, smooth

_LEVELS = (4.0, 1.0)  # multiples of the B-factor
_ROUNDS = 8
_TOLERANCE = 0.04  # pixels of the cropped frame
_CURVED = 3.0  # curvature of the correlation over its noise
_TAPER = 0.1  # of a patch's width, at each side

Floats = NDArray[np.float64]


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
    for level in _LEVELS:
        for _ in range(_ROUNDS):
            before = np.swapaxes(model.at(frame_numbers, places), 0, 1) / scale
            found = []
            for window, frames, shifts in zip(windows, transforms, before, strict=True):
                shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
                full = (round(shape[0] * patch_full[0]), round(shape[1] * patch_full[1]))
                weight = to_like(weights(shape, full, bfactor * level), frames)
                found.append(slopes(moved(frames, shape, shifts), weight, shape))
            gradient, curvature, noise = (np.stack(part) for part in zip(*found, strict=True))
            if not _stands_out(curvature, noise):
                return Patches(centres * scale, measured, errors, measured, None)
            steps, errors = newton_steps(gradient, curvature, noise)
            measured = before + steps
            model = fit_model(places, measured * scale, errors * scale)
            fitted = np.swapaxes(model.at(frame_numbers, places), 0, 1)
            if np.abs(fitted / scale - before).max() < _TOLERANCE:
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
    jumps, errors = smooth(jumps, errors)
    whole += jumps
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
    return whitened(fft_of(patches).rfft2(patches, **fft_workers(patches)), shape)


def _taper(size: int) -> NDArray[np.float32]:
    """1 inside, falling to 0 as a raised cosine over the edges."""
    edge = max(1, round(size * _TAPER))
    distance = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(distance / edge, 1)), dtype=np.float32)
