"""How far a refinement is from the truth of a simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import euler
from spa.fsc import fsc
from spa.io import mrc
from spa.io.particle_io import read_particles
from spa.mask import soft_sphere
from spa.symmetry import operators


@dataclass(frozen=True)
class Errors:
    """Errors of poses (degrees, Å) and of the map: FSC per shell, and the resolution where it falls to 0.5."""

    median_angle: float
    within_10_degrees: float
    median_shift: float
    map_fsc: NDArray[np.float64]
    map_resolution: float


def compare(
    data: str | Path, truth: str | Path, map_path: str | Path, truth_map: str | Path, sym: str, diameter: float
) -> Errors:
    """Errors of a refined data STAR and map; particles are matched by row, maps compared inside a soft sphere.

    Parameters
    ----------
    diameter : of that sphere, Å.

    Notes
    -----
    The refined map need not lie exactly on the truth: both maps start from the same reference, so nothing is
    aligned here, and a drift of the refinement counts as an error.
    """
    found, true = read_particles(data), read_particles(truth)
    angle = euler.angular_distance(
        euler.matrix(true.rot, true.tilt, true.psi), euler.matrix(found.rot, found.tilt, found.psi), operators(sym)
    )
    shift = np.hypot(found.origin_x_angst - true.origin_x_angst, found.origin_y_angst - true.origin_y_angst)
    refined, pixel_size = mrc.read_volume(map_path)
    wanted, _ = mrc.read_volume(truth_map)
    box = len(wanted)
    sphere = soft_sphere(box, min(diameter / pixel_size / 2, box // 2 - 6), 5)
    curve = fsc(refined * sphere, wanted * sphere)
    return Errors(
        float(np.median(angle)),
        float((angle < 10).mean()),
        float(np.median(shift)),
        curve,
        box * pixel_size / crossing(curve, 0.5),
    )


def crossing(curve: NDArray[np.float64], threshold: float) -> float:
    """The shell at which a curve first falls to a threshold, between shells by linear interpolation, at least 1."""
    below = np.nonzero(curve[1:] < threshold)[0]
    if not len(below):
        return float(len(curve) - 1)
    last = int(below[0])
    if last == 0:
        return 1.0
    return float(last + (curve[last] - threshold) / (curve[last] - curve[last + 1]))
