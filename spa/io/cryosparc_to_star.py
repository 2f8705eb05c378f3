"""Particles of cryoSPARC .cs tables as STAR files of RELION 3.1 and later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import aberration_lengths, ctf, euler
from spa.errors import InputError
from spa.io.cryosparc import Say, Table
from spa.io.cryosparc_alignments import alignment
from spa.io.cryosparc_columns import (
    CTF,
    EXPOSURE_GROUP,
    LENSES,
    MAGNIFICATION,
    OPTICS,
    POSTERIOR,
    SCORES,
    SIGN,
    SIZES,
    UID,
)
from spa.io.files import project_path
from spa.io.star import Block, StarFile

Floats = NDArray[np.float64]

_LARGEST_CS = 100.0  # mm
_SCALES = ("alignments3D/alpha", "alignments2D/alpha", "ctf/scale_const")
_SLOTS = ("uid", "blob", "ctf", "location", "micrograph_blob", "pick_stats")


def to_star(table: Table, flip_y: bool, warn: Say) -> StarFile:
    """The STAR file of a table of particles: data_optics and data_particles.

    flip_y : turn coordinates upside down, for micrographs that cryoSPARC did not write.
    warn : told, in lines, what is not carried over.

    Raises
    ------
    InputError
        No particles; no blob/path, blob/idx, blob/psize_A or blob/shape; fields of another form; values that are not
        finite.
    """
    _require_particles(table)
    optics, group = _optics(table)
    particles = Block("particles", path=table.path)
    particles.set("rlnImageName", _image_names(table))
    _add_location(particles, table, flip_y, warn)
    for field, (column, factor) in CTF.items():
        if field in table:
            particles.set(column, table.floats(field) * factor)
    if "ctf/df1_A" not in table:
        warn(f"{table.path}: no ctf/df1_A, so no CTF; --passthrough takes the .cs file of the same job that has it")
    for field, column in SCORES.items():
        if field in table and np.isfinite(table.rows[field].astype(np.float64)).all():
            particles.set(column, table.floats(field))
    _add_alignment(particles, table, warn)
    particles.set("rlnOpticsGroup", group + 1)
    if "uid" in table:
        particles.set(UID, [str(uid) for uid in table.uids().tolist()])
    _add_sign(particles, table, warn)
    _tell_lost(table, warn)
    return StarFile([optics, particles], table.path)


def _tell_lost(table: Table, warn: Say) -> None:
    """Say what may matter and has no column: scales that vary and whole slots."""
    lost = [field for field in _SCALES if field in table and np.ptp(table.floats(field)) > 0]
    slots = dict.fromkeys(name.partition("/")[0] for name in table.fields)
    lost += [slot for slot in slots if slot not in _SLOTS and not slot.startswith("alignments")]
    if lost:
        warn(f"{table.path}: not carried over, for want of such columns: {', '.join(lost)}")


def _require_particles(table: Table) -> None:
    if not len(table):
        raise InputError(f"{table.path}: expected particles, found none")
    if "blob/path" not in table and "location/center_x_frac" in table:
        raise InputError(
            f"{table.path}: no blob/path: picks without images; make coordinates of them with spa import, or give the "
            ".cs file of the extraction (--passthrough)"
        )
    slots = list(dict.fromkeys(name.partition("/")[0] for name in table.fields))
    exposures = "blob" not in slots and any(slot.endswith("_blob") for slot in slots)
    if exposures or not any(slot in ("blob", "ctf") or slot.startswith("alignments") for slot in slots):
        found = ", ".join(slot for slot in slots if slot != "uid")
        raise InputError(f"{table.path}: expected particles (blob/path, blob/idx, ...), found {found or 'no slots'}")
    table.require("blob/path", "blob/idx", "blob/psize_A", "blob/shape")


def _image_names(table: Table) -> list[str]:
    """NUMBER@STACK of each particle, the stack as seen from here where it can be found."""
    numbers = table.integers("blob/idx") + 1
    paths = table.text("blob/path")
    seen = {path: _stack_link(_seen_from_here(path, table.path)) for path in dict.fromkeys(paths)}
    return [f"{number:06d}@{seen[path]}" for number, path in zip(numbers.tolist(), paths, strict=True)]


def _seen_from_here(name: str, cs_path: str) -> str:
    """A path in a cryoSPARC project, looked for here and in the folders above the .cs file."""
    if Path(name).is_absolute():
        return project_path(name)
    folders = (Path.cwd(), *Path(cs_path).absolute().parents)
    return next((project_path(folder / name) for folder in folders if (folder / name).exists()), name)


def _stack_link(name: str) -> str:
    """The link called .mrcs to a stack called .mrc, where there is one."""
    return f"{name}s" if name.endswith(".mrc") and Path(f"{name}s").exists() else name


def _optics(table: Table) -> tuple[Block, NDArray[np.int64]]:
    """data_optics of the distinct optics, and the place of each particle in it."""
    columns: dict[str, Floats] = {}
    exposure = next((f for f in ("ctf/exp_group_id", "location/exp_group_id") if f in table), None)
    if exposure:
        columns[exposure] = table.floats(exposure)
    columns |= {field: table.floats(field) for field in OPTICS if field in table}
    columns |= {field: table.floats(field, n) for field, n in LENSES.items() if field in table}
    boxes = table.floats("blob/shape", 2)
    table.refuse("blob/shape", boxes[:, 0] != boxes[:, 1], "square images")
    table.refuse("blob/psize_A", columns["blob/psize_A"] <= 0, "a number above 0")
    parts = [values.reshape(len(table), -1) for values in (*columns.values(), boxes[:, 0])]
    _, first, group = np.unique(np.hstack(parts), axis=0, return_index=True, return_inverse=True)
    n = len(first)
    block = Block("optics", path=table.path)
    block.set("rlnOpticsGroup", np.arange(1, n + 1))
    block.set("rlnOpticsGroupName", [f"opticsGroup{i + 1}" for i in range(n)])
    for field, column in OPTICS.items():
        if field in columns and (field != "location/micrograph_psize_A" or columns[field].all()):
            block.set(column, [repr(value) for value in columns[field][first].tolist()])
    block.set("rlnImageSize", boxes[first, 0].astype(np.int64))
    block.set("rlnImageDimensionality", [2] * n)
    block.set("rlnCtfDataAreCtfPremultiplied", [0] * n)
    _add_lenses(block, {field: columns[field][first] for field in LENSES if field in columns})
    if exposure:
        block.set(EXPOSURE_GROUP, columns[exposure][first].astype(np.int64))
    return block, np.asarray(group, dtype=np.int64).ravel()


def _add_lenses(block: Block, lenses: dict[str, Floats]) -> None:
    """Beam tilt, Zernike coefficients and magnification, each where a group has any.

    A spherical aberration that RELION would refuse, as a fit may give, goes into the coefficients.
    """
    cs = block.floats("rlnSphericalAberration") if "rlnSphericalAberration" in block else np.zeros(len(block))
    written = np.where((cs >= 0) & (cs <= _LARGEST_CS), cs, 0.0)
    lenses["cs"] = cs - written
    if not any(values.any() for values in lenses.values()) or "rlnVoltage" not in block:
        return
    if lenses["cs"].any():
        block.set("rlnSphericalAberration", [repr(value) for value in written.tolist()])
    values = {field: lenses.get(field, np.zeros((len(block), width))) for field, width in LENSES.items()}
    if values["ctf/anisomag"].any():
        for place, column in enumerate(MAGNIFICATION):
            elements = values["ctf/anisomag"][:, place] + (place in (0, 3))
            block.set(column, [f"{element:.12g}" for element in elements.tolist()])
    coma = values["ctf/tilt_A"]
    tilts = np.divide(1e-4 * coma, written[:, None], out=np.zeros_like(coma), where=written[:, None] > 0)
    if tilts.any():
        for column, tilt in zip(("rlnBeamTiltX", "rlnBeamTiltY"), tilts.T.tolist(), strict=True):
            block.set(column, [f"{value:.12g}" for value in tilt])
    values["ctf/tilt_A"] = np.where(written[:, None] > 0, 0.0, coma)
    _add_zernike(block, values, lenses["cs"])


def _add_zernike(block: Block, values: dict[str, Floats], cs: Floats) -> None:
    """Columns of odd and even coefficients, each where a group has any."""
    odd, even = [], []
    for i, wavelength in enumerate(ctf.wavelength(block.floats("rlnVoltage")).tolist()):
        names = ("shift", "tilt", "trefoil", "tetra")
        lengths = aberration_lengths.Lengths(**{name: tuple(values[f"ctf/{name}_A"][i].tolist()) for name in names})
        odd.append(aberration_lengths.odd_zernike(lengths, wavelength))
        even.append(aberration_lengths.even_zernike(lengths, wavelength, cs[i]))
    for column, rows in (("rlnOddZernike", odd), ("rlnEvenZernike", even)):
        if np.any(rows):
            block.set(column, [f"[{','.join(f'{c + 0.0:.12g}' for c in row)}]" for row in rows])


def _add_location(particles: Block, table: Table, flip_y: bool, warn: Say) -> None:
    """Micrograph names and coordinates in pixels, y from the first row stored."""
    name = next((f for f in ("location/micrograph_path", "micrograph_blob/path") if f in table), None)
    if name is None:
        return
    paths = table.text(name)
    if any(paths):
        seen = {path: _seen_from_here(path, table.path) for path in dict.fromkeys(paths)}
        particles.set("rlnMicrographName", [seen[path] for path in paths])
    fields = ("location/center_x_frac", "location/center_y_frac", "location/micrograph_shape")
    if any(field not in table for field in fields):
        return
    shape = table.floats("location/micrograph_shape", 2)
    if (shape < 1).any():
        warn(f"{table.path}: no coordinates: location/micrograph_shape is not set")
        return
    x, y = (table.floats(field) for field in fields[:2])
    particles.set("rlnCoordinateX", x * shape[:, 1])
    particles.set("rlnCoordinateY", (1 - y if flip_y else y) * shape[:, 0])
    for column, size in zip(SIZES, (shape[:, 1], shape[:, 0]), strict=True):
        particles.set(column, size.astype(np.int64))


def _add_alignment(particles: Block, table: Table, warn: Say) -> None:
    found = alignment(table)
    if found is None:
        warn(f"{table.path}: no alignments, so no angles and shifts")
        return
    if found.slot != "alignments2D" and "alignments2D/pose" in table:
        source = found.slot if found.slot == "alignments3D" else "the likeliest 3D class"
        warn(f"{table.path}: angles, shifts and classes are those of {source}; alignments2D is left out")
    angles = euler.angles(found.poses)
    for column, values in zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T, strict=True):
        particles.set(column, values)
    for column, values in zip(("rlnOriginXAngst", "rlnOriginYAngst"), found.shifts.T, strict=True):
        particles.set(column, values)
    if found.split is not None:
        table.refuse(f"{found.slot}/split", ~np.isin(found.split, (0, 1)), "0 or 1")
        if found.split.any():
            particles.set("rlnRandomSubset", found.split + 1)
        elif found.slot != "alignments2D":
            warn(f"{table.path}: {found.slot}/split is 0 everywhere: no half sets, so no rlnRandomSubset")
    if found.class_number is not None:
        particles.set("rlnClassNumber", found.class_number)
    if found.posterior is not None and (found.posterior != 1).any():
        particles.set(POSTERIOR, found.posterior)


def _add_sign(particles: Block, table: Table, warn: Say) -> None:
    if "blob/sign" not in table:
        return
    signs = table.floats("blob/sign")
    table.refuse("blob/sign", ~np.isin(signs, (-1, 0, 1)), "1 or -1")
    if (signs < 0).any():
        particles.set(SIGN, signs.astype(np.int64))
        some = "" if (signs < 0).all() else f" of {int((signs < 0).sum())} particles"
        warn(f"{table.path}: blob/sign is -1{some}: dark images, where RELION takes white particles on dark ground")
