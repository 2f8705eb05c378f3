"""Motion of patches of a movie that is left over when the whole frames are aligned, and the model fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, to_like
from spa.motion import Track
from spa.motion_fourier import moved
from spa.motion_model import LocalModel, fit_model
from spa.motion_steps import beyond_noise, newton_steps, slopes, smooth
from spa.motion_weights import Filter, RingSums, bfactor_filter, faded, ring_sums, signal_filter
from spa.motion_windows import windows

_LEVELS = (4.0, 1.0)  # multiples of the B-factor, before the weights come from the frames
_ROUNDS = 8
_TOLERANCE = 0.04  # pixels of the cropped frame
_CURVED = 3.0  # curvature of the correlation over its noise

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


def align_patches(
    images: Array, track: Track, full_shape: tuple[int, int], n_patches: tuple[int, int], bfactor: float
) -> tuple[Track, Patches]:
    """Follow patches of aligned frames: shifts of whole frames, corrected if need be, and patches around them.

    Parameters
    ----------
    images : (n_frames, rows, columns) float32, frames of the working shape with the shifts of `track` applied.
    track : shifts of whole frames.
    full_shape : (rows, columns) of the unbinned frame.
    n_patches : along x and y.
    bfactor : as in `align_frames`.

    Notes
    -----
    The patches of all frames climb their correlations together, by Newton steps from the shifts and the model of the
    step before: a patch so weak that it has no peak of its own still adds its slope, weighted by its curvature and
    noise. Products are filtered with the B-factor first, then with weights from the frames themselves, those of all
    patches together. The model is left with no mean over the field. What the patches of a frame have in common moves
    the whole frames as far as it is beyond noise (`beyond_noise`), as it is where strong local motion misled them.
    Where the curvature of all patches together does not stand out of its noise, there is no model.
    """
    n_frames, rows, columns = images.shape
    cut = windows((rows, columns), n_patches)
    shape, scale = cut[0].shape, np.array([full_shape[1] / columns, full_shape[0] / rows])
    full = (round(shape[0] * scale[1]), round(shape[1] * scale[0]))
    centres = np.array([window.centre for window in cut])
    places = centres / (columns, rows) - 0.5
    nothing = np.zeros((len(cut), n_frames, 2))
    unknown = Patches(centres * scale, nothing, np.full_like(nothing, np.inf), nothing, None)
    transforms = [window.transforms(images) for window in cut]
    whole, patches = track, unknown
    for level in (*_LEVELS, None):
        products = bfactor_filter(n_frames, shape, full, bfactor * (level or 1.0))
        for turn in range(_ROUNDS):
            before = whole.shifts + patches.fitted
            found, sums = _all_slopes(transforms, shape, (before - track.shifts) / scale, products, level is None)
            if not _stands_out(*found[1:]):
                return track, unknown
            whole, patches = _step(track, whole, patches, found, products.information, scale, places)
            if level is not None or turn == 0:
                whole = track  # only the best weights move whole frames
            if sums is not None:
                products = signal_filter(sums, products, shape)
            change = np.abs(whole.shifts + patches.fitted - before).max() / scale.min()
            if change < _TOLERANCE and (turn > 1 or level is not None):
                break
    return whole, patches


def _all_slopes(
    transforms: Sequence[Array], shape: tuple[int, int], shifts: Floats, products: Filter, with_sums: bool
) -> tuple[tuple[Floats, Floats, Floats], RingSums | None]:
    """What `slopes` gives for patches moved by shifts (n_patches, n_frames, 2), stacked, and sums over their rings."""
    found, sums = [], None
    weight = to_like(products.weight, transforms[0])
    for frames, shift in zip(transforms, shifts, strict=True):
        placed = moved(frames, shape, shift)
        if with_sums:
            here = ring_sums(placed, shape, products.amplitudes)
            sums = here if sums is None else sums + here
        found.append(slopes(faded(placed, shape, products.amplitudes), weight, shape))
    gradient, curvature, noise = (np.stack(part) for part in zip(*found, strict=True))
    return (gradient, curvature, noise), sums


def _step(
    track: Track,
    whole: Track,
    patches: Patches,
    found: tuple[Floats, Floats, Floats],
    information: Floats,
    scale: Floats,
    places: Floats,
) -> tuple[Track, Patches]:
    """The next whole-frame shifts and patches from slopes at the last ones; places (n_patches, 2) from -0.5 to 0.5."""
    steps, errors = newton_steps(*found, information)
    measured = whole.shifts + patches.fitted + steps * scale
    gradient, curvature, noise = (part.sum(axis=0) for part in found)
    common, uncertainty = newton_steps(gradient, curvature, noise, information)
    path, _ = smooth(whole.shifts + common * scale, uncertainty * scale)
    model = fit_model(places, measured - path, errors * scale)
    numbers = np.arange(len(path), dtype=np.float64)
    change = path + model.field_mean(numbers) - track.shifts
    evidence = ((change - change.mean(axis=0)) / (uncertainty * scale)) ** 2
    path = track.shifts + beyond_noise(float(evidence.sum()), change.size) * (change - change[0])
    model = model.around_field_mean()
    fitted = np.swapaxes(model.at(numbers, places), 0, 1)
    return replace(track, shifts=path), replace(
        patches, measured=measured - path, errors=errors * scale, fitted=fitted, model=model
    )


def _stands_out(curvature: Floats, noise: Floats) -> bool:
    """Whether the curvature of all frames and patches is beyond its noise, along both axes."""
    total = curvature.sum(axis=(0, 1))
    return bool((total > _CURVED * np.sqrt(noise[..., 1].sum(axis=(0, 1)))).all())
