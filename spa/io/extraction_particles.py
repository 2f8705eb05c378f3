"""The tables of extracted particles: what they take over from their micrographs, and their optics groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spa.errors import InputError
from spa.io import star, vintage
from spa.io.extraction_tables import STATE
from spa.io.files import project_path
from spa.io.micrographs import PIXEL_SIZES
from spa.io.star import Block, StarFile

CTF_COLUMNS = (
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfBfactor",
    "rlnCtfScalefactor",
    "rlnCtfMaxResolution",
    "rlnCtfFigureOfMerit",
)
"""Columns of the CTF that belong to a micrograph or to a particle."""

_DEFAULTS = {"rlnCtfBfactor": "0.000000", "rlnCtfScalefactor": "1.000000"}


def with_micrograph(
    table: Block, micrograph: Mapping[str, str], stack: Path, picked: bool, keep_ctf: bool = False
) -> Block:
    """Particles of one micrograph with the names of their images in `stack` and what they take from its row.

    Those `picked` take all its columns that hold a number and that they do not have; those extracted again only its
    CTF, where they have none or with `keep_ctf`.
    """
    n = len(table)
    table = Block("particles", table.frame, True, table.path)
    table.set("rlnImageName", [f"{i + 1:06d}@{project_path(stack)}" for i in range(n)])
    table.set("rlnMicrographName", [micrograph["rlnMicrographName"]] * n)
    if picked or "rlnOpticsGroup" not in table:
        table.set("rlnOpticsGroup", [micrograph["rlnOpticsGroup"]] * n)
    has_ctf = "rlnDefocusU" in table
    ctf = {column: micrograph[column] for column in CTF_COLUMNS if column in micrograph}
    if "rlnDefocusU" in ctf:
        ctf = {**_DEFAULTS, **ctf}
    if keep_ctf:
        table.drop(*CTF_COLUMNS)
    if picked or keep_ctf or not has_ctf:
        for column, value in ctf.items():
            table.set(column, [value] * n)
    if picked:
        for column, value in micrograph.items():
            if column not in table and column != STATE and _is_number(value):
                table.set(column, [value] * n)
    return table


def extracted_optics(groups: Block, box_size: int, binning: float) -> Block:
    """The optics groups of micrographs as those of particles with `binning` of their pixels in one."""
    return _with_images(groups, [size * binning for size in _pixel_sizes(groups).values()], box_size)


def without_particles(source: str, box_size: int, binning: float) -> StarFile:
    """The tables of an extraction from the micrographs of `source` that finds nothing to extract."""
    columns = ("rlnCoordinateX", "rlnCoordinateY", "rlnImageName", "rlnMicrographName", "rlnOpticsGroup")
    particles = Block.table("particles", {column: np.zeros(0) for column in columns})
    return StarFile([extracted_optics(vintage.upgrade(star.read(source))["optics"], box_size, binning), particles])


def reextracted_optics(
    optics: Block, groups: Block, micrographs: Block, particles: Block, box_size: int, binning: float
) -> Block:
    """The optics groups of refined particles with the pixel size of the `micrographs` that show them, and `groups`.

    Raises
    ------
    InputError
        If the micrographs of one optics group of the particles have different pixel sizes.
    """
    sizes = _pixel_sizes(groups)
    numbers = micrographs.integers("rlnOpticsGroup").tolist()
    of = dict(zip(micrographs.text("rlnMicrographName"), (sizes[number] for number in numbers), strict=True))
    found: dict[int, float] = {}
    members = particles.integers("rlnOpticsGroup").tolist() if len(particles) else []
    for row, (number, name) in enumerate(zip(members, particles.text("rlnMicrographName"), strict=True)):
        if abs(found.setdefault(number, of[name]) - of[name]) > 1e-3 * of[name]:
            raise InputError(
                f"{optics.path}: data_particles, row {row + 1}, column rlnOpticsGroup: expected micrographs of one "
                f"pixel size in group {number}, found {found[number]:g} and {of[name]:g} Å"
            )
    only = next(iter(sizes.values()))
    group_sizes = [found.get(number, only) for number in optics.integers("rlnOpticsGroup").tolist()]
    result = _with_images(optics, [size * binning for size in group_sizes], box_size)
    if "rlnMicrographPixelSize" in optics:
        result.set("rlnMicrographPixelSize", np.array(group_sizes))
    return result


def _pixel_sizes(groups: Block) -> dict[int, float]:
    """Optics group -> pixel size of its micrographs in Å."""
    column = next(column for column in PIXEL_SIZES["micrographs"] if column in groups)
    return dict(zip(groups.integers("rlnOpticsGroup").tolist(), groups.floats(column).tolist(), strict=True))


def _with_images(groups: Block, pixel_sizes: list[float], box_size: int) -> Block:
    optics = groups.copy()
    optics.set("rlnImagePixelSize", np.array(pixel_sizes))
    optics.set("rlnImageSize", [box_size] * len(optics))
    optics.set("rlnImageDimensionality", [2] * len(optics))
    return optics


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
