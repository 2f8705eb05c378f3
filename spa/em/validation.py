"""What two half maps say about the resolution, and how much of it the alignment cannot have made itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.fourier import forward, inverse
from spa.fsc import FSC_THRESHOLD, fsc, resolution_shell
from spa.grids import rfft_shells

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

LEAK_SHELLS = 2
"""Shells beyond the last one used in alignment that interpolation mixes with it."""
SIGNIFICANCE = 3.0
"""Standard deviations by which the agreement of free shells must exceed nothing."""


@dataclass(frozen=True)
class HalfMapFsc:
    """FSC of the half maps inside the particle's sphere, corrected for the sphere, and the resolution from it.

    Attributes
    ----------
    curve : float64 (box // 2 + 1,).
    shell : last shell that the halves are known to share.
    """

    curve: FloatArray
    shell: int


def half_map_fsc(
    half1: FloatArray, half2: FloatArray, sphere: FloatArray, score_kmax: int, kmax: int, n_symmetry: int
) -> HalfMapFsc:
    """Compare two unfiltered half maps, counting as new resolution only what images were not aligned on.

    Parameters
    ----------
    half1, half2, sphere : float32 (box, box, box).
    score_kmax : last shell used in the alignment.
    kmax : last shell of the maps.
    n_symmetry : order of the point group, whose copies are no independent evidence.

    Notes
    -----
    Images aligned on a shell agree there with the reference even if they hold nothing but noise, and so do
    the two halves as long as their references have a common origin. Interpolation carries that agreement to
    LEAK_SHELLS more, and the sphere, a product that mixes shells, would carry it further. So the shells beyond are
    compared alone, all below them taken out before the sphere is applied, and the resolution grows only if they agree
    significantly up to it. (To randomise their phases and take out what the sphere then does, as Chen et al. 2013,
    Ultramicroscopy 135:24, leaves the noise of a difference where the lower shells are strong.)
    """
    free = score_kmax + 1 + LEAK_SHELLS
    curve = fsc(half1 * sphere, half2 * sphere)
    if free < len(curve):
        curve[free:] = fsc(*(_beyond(half, free) * sphere for half in (half1, half2)))[free:]
    curve[kmax + 1 :] = 0
    curve[:2] = 1
    np.clip(curve, -1, 1, out=curve)
    shell = resolution_shell(curve, FSC_THRESHOLD)
    proven = shell >= free and _significant(curve, sphere, free, shell, n_symmetry)
    if score_kmax < kmax and not proven:
        # what lies beyond has not been shown: neither a reference nor the final map may draw on it
        curve[free:] = np.minimum(curve[free:], 0.0)
        shell = min(shell, free - 1)
    return HalfMapFsc(curve, shell)


def _beyond(volume: FloatArray, first: int) -> FloatArray:
    """A map without its Fourier shells below `first`."""
    box = volume.shape[0]
    return np.asarray(inverse(forward(volume, 3) * (rfft_shells(box, 3) >= first), box, 3))


def _significant(curve: FloatArray, sphere: FloatArray, first: int, last: int, n_symmetry: int) -> bool:
    """Whether the mean FSC of shells first to last exceeds chance."""
    shells = np.arange(first, last + 1)
    filled = float(sphere.sum(dtype=np.float64) ** 2 / (sphere.astype(np.float64) ** 2).sum() / sphere.size)
    independent = np.maximum(2 * np.pi * shells**2 * filled / n_symmetry, 0.5)
    deviation = np.sqrt((1 / (2 * independent)).sum()) / len(shells)
    return bool(curve[shells].mean() > SIGNIFICANCE * deviation)
