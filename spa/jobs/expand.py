"""Expand the poses of particles by a point group: every particle once per equivalent pose.

For focused classification and refinement of one subunit of a symmetric particle. All copies of a particle show the same
image (rlnImageName, shifts and all other columns stay), so they are no independent evidence: copies share the half set
of their particle, which is drawn where there is none, and later steps run in C1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import euler, symmetry
from spa.errors import InputError
from spa.io import star
from spa.io.extraction_checks import refuse_replacing
from spa.io.particle_io import read_particles, to_star
from spa.io.star import Block
from spa.job import Job
from spa.options import CommonOptions, option

_POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_PRIOR = tuple(f"{column}Prior" for column in _POSE)


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa expand`, named as in relion_particle_symmetry_expand."""

    i: str = option(help="Particle STAR file with poses", role="input")
    o: str = option("expanded.star", help="STAR file to write", role="file")
    sym: str = option(help="Point group the poses were refined in, in RELION's setting", group="Particles")


def run(options: Options, job: Job) -> None:
    """Write the STAR file `--o`: the copies of a particle follow one another, its own pose first."""
    refuse_replacing("--o", options.o, [options.i])
    operators = symmetry.operators(options.sym)
    particles = read_particles(options.i)
    table = particles.source["particles"]
    for column in _POSE:
        table.require(column, "a symmetry expansion needs")
    n, copies = len(particles), len(operators)
    if copies == 1:
        job.warn(f"--sym {options.sym} has one operator: {options.o} is a copy of {options.i}")
    if len(set(particles.image_name)) < n:
        job.warn(f"{options.i}: some images appear more than once, as in a file that was expanded before")
    if not particles.half_set.any():
        particles.assign_half_sets(options.random_seed)
        job.say(f"{options.i} has no rlnRandomSubset: half sets drawn, so that copies of a particle share theirs")
    expanded = particles.subset(np.repeat(np.arange(n), copies))
    angles = _turned(np.stack([particles.rot, particles.tilt, particles.psi], axis=1), operators)
    expanded.update(rot=angles[:, 0], tilt=angles[:, 1], psi=angles[:, 2])
    found = to_star(expanded)
    _turn_priors(found["particles"], operators)
    star.write(options.o, found)
    job.say(f"{options.o}: {n * copies} poses of {n} particles, {copies} equivalent poses each in {options.sym}")


def _turned(angles: NDArray[np.float64], operators: symmetry.Matrices) -> NDArray[np.float64]:
    """Angles (n m, 3) in degrees of the poses A h for angles (n, 3) and operators h (m, 3, 3); the first stay."""
    poses = np.einsum("nij,mjk->nmik", euler.matrix(*angles.T), operators)
    result = euler.angles(poses).reshape(len(angles), len(operators), 3)
    result[:, 0] = angles
    return result.reshape(-1, 3)


def _turn_priors(table: Block, operators: symmetry.Matrices) -> None:
    """Turn the centres of local searches with the poses; a part of them cannot be turned and is refused."""
    present = [column for column in _PRIOR if column in table]
    if not present:
        return
    if len(present) < len(_PRIOR):
        raise InputError(
            f"{table.path}: data_{table.name}: expected {', '.join(_PRIOR)} or none of them, found {', '.join(present)}"
        )
    angles = np.stack([table.floats(column) for column in _PRIOR], axis=1)
    for column, values in zip(_PRIOR, _turned(angles[:: len(operators)], operators).T, strict=True):
        table.set(column, values)
