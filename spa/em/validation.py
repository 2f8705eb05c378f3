"""What two half maps say about the resolution, and how much of it the alignment cannot have made itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.fsc import FSC_THRESHOLD, fsc, phase_randomise, resolution_shell

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
    LEAK_SHELLS more, and the sphere carries it further. So phases beyond `score_kmax` + LEAK_SHELLS are
    randomised to find what the sphere alone does there, which is taken out (Chen et al. 2013, Ultramicroscopy
    135:24), and the resolution grows only if those shells agree significantly up to it.
    """
    free = score_kmax + 1 + LEAK_SHELLS
    masked = fsc(half1 * sphere, half2 * sphere)
    curve, spread = masked.copy(), np.ones_like(masked)
    if free < len(masked):
        rng = np.random.default_rng(0)
        chance = fsc(phase_randomise(half1, free, rng) * sphere, phase_randomise(half2, free, rng) * sphere)
        spread[free:] = 1 / np.maximum(1 - chance[free:], 1e-3)
        curve[free:] = (masked[free:] - chance[free:]) * spread[free:]
    curve[kmax + 1 :] = 0
    curve[:2] = 1
    np.clip(curve, -1, 1, out=curve)
    shell = resolution_shell(curve, FSC_THRESHOLD)
    proven = shell >= free and _significant(curve, spread, sphere, free, shell, n_symmetry)
    if score_kmax < kmax and not proven:
        # what lies beyond has not been shown: neither a reference nor the final map may draw on it
        curve[free:] = np.minimum(curve[free:], 0.0)
        shell = min(shell, free - 1)
    return HalfMapFsc(curve, shell)


def _significant(
    curve: FloatArray, spread: FloatArray, sphere: FloatArray, first: int, last: int, n_symmetry: int
) -> bool:
    """Whether the mean FSC of shells first to last exceeds chance."""
    shells = np.arange(first, last + 1)
    filled = float(sphere.sum(dtype=np.float64) ** 2 / (sphere.astype(np.float64) ** 2).sum() / sphere.size)
    independent = np.maximum(2 * np.pi * shells**2 * filled / n_symmetry, 0.5)
    deviation = np.sqrt((spread[shells] ** 2 / (2 * independent)).sum()) / len(shells)
    return bool(curve[shells].mean() > SIGNIFICANCE * deviation)
