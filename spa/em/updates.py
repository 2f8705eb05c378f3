"""What an iteration changes besides the maps: the poses of the particles and the signal intensity of micrographs."""

from __future__ import annotations

import numpy as np

from spa.em.maximisation import Estimates
from spa.em.state import FloatArray, Poses, Sums
from spa.em.sweep import Indices
from spa.euler import angular_distance

GROUP_SCALE_SIGMA = 0.2
"""Prior standard deviation of a micrograph's signal intensity around one."""


def take_over(
    poses: Poses, updates: list[tuple[Indices, Estimates]], norm: bool, operators: FloatArray
) -> tuple[float, float]:
    """Take over the estimates of an iteration, in place.

    Parameters
    ----------
    norm : also the noise level of each image.
    operators : (h, 3, 3) rotations of the point group.

    Returns
    -------
    Median change of angle (degrees; 180 where poses were not known) and of shift (pixels; NaN there).
    """
    indices = np.concatenate([i for i, _ in updates])
    names = ("rotations", "origins", "pmax", "log_likelihood", "nr_significant", "noise_ratio", "class_number")
    new = {name: np.concatenate([getattr(e, name) for _, e in updates]) for name in names}
    angle, offset = 180.0, float("nan")
    if poses.known[indices].all():
        angle = float(np.median(angular_distance(poses.rotations[indices], new["rotations"], operators)))
        offset = float(np.median(np.linalg.norm(poses.origins[indices] - new["origins"], axis=1)))
    noise_ratio = new.pop("noise_ratio")
    if norm:
        level = poses.norm[indices] * np.sqrt(noise_ratio)
        poses.norm[indices] = level / level.mean()
    for name, values in new.items():
        getattr(poses, name)[indices] = values
    poses.known[indices] = True
    return angle, offset


def update_group_scale(group_scale: FloatArray, sums: list[Sums], kmax: int) -> None:
    """Signal intensity of each micrograph, (n_halves, n_groups) in place, by regression with a Gaussian prior around
    one."""
    prior = 1 / GROUP_SCALE_SIGMA**2
    for half, s in enumerate(sums):
        cross, power = (a[:, 1 : kmax + 1].sum(1) for a in (s.signal_cross, s.signal_power))
        overall = max(cross.sum(), 1e-30) / max(power.sum(), 1e-30)
        ratio = (cross / overall + prior) / (power + prior)
        scale = group_scale[half] * ratio
        group_scale[half] = scale / np.average(scale, weights=power + prior)


def measured_scale(sums: Sums, kmax: int) -> float:
    """Grey scale of the images over that of the references, from shells 1 to `kmax`."""
    shells = slice(1, kmax + 1)
    return float(sums.signal_cross[:, shells].sum() / max(sums.signal_power[:, shells].sum(), 1e-30))
