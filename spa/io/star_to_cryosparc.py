"""Particles of STAR files as cryoSPARC .cs tables; the conventions are in `spa.io.cryosparc_columns`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io.cryosparc import Say, Table, rows_of, structured
from spa.io.cryosparc_columns import CTF, EXPOSURE_GROUP, MAGNIFICATION, OPTICS, POSTERIOR, SCORES, SIGN, SIZES, UID
from spa.io.cryosparc_fields import (
    Fields,
    alignment_fields,
    as_bytes,
    ctf_fields,
    file_stem,
    hashed,
    location_fields,
    same_files,
    single,
)
from spa.io.particle_io import split_image_name
from spa.io.star import Block
from spa.particles import Particles

_ONES = ("alpha", "class_posterior", "class_ess")
_ZEROS = (
    *("error", "error_min", "resid_pow", "slice_pow", "image_pow", "cross_cor", "alpha_min", "weight", "pose_ess"),
    "shift_ess",
)
_CARRIED = {
    *("rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnAngleRot", "rlnAngleTilt"),
    *("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset", "rlnClassNumber", "rlnOpticsGroup"),
    *("rlnOpticsGroupName", "rlnImageSize", "rlnImageDimensionality", "rlnCtfDataAreCtfPremultiplied"),
    *("rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike", "rlnEvenZernike", *MAGNIFICATION, *OPTICS.values()),
    *(column for column, _ in CTF.values()),
    *(UID, SIGN, POSTERIOR, EXPOSURE_GROUP, *SIZES, *SCORES.values()),
}


def to_table(particles: Particles, passthrough: Sequence[Table], flip_y: bool, warn: Say) -> NDArray[Any]:
    """The structured array (n,) of a .cs file, with the slots blob, ctf, alignments2D or 3D and location.

    Values come from the STAR file, else from the same particle in a table of `passthrough` (by cryosparcUid, else by
    number and name of its image), whose other fields are kept, else from cryoSPARC's defaults.

    flip_y : turn coordinates upside down, for micrographs that cryoSPARC did not write.
    warn : told, in lines, what is not carried over.

    Raises
    ------
    InputError
        Image names that are none, columns that hold no numbers, a box that is not known, a passthrough table of other
        particles.
    """
    source = particles.source["particles"]
    numbers, stacks = _images(particles)
    uids = _own_uids(source)
    kept = _passed(passthrough, uids, numbers, stacks)
    known: Fields = {"blob/path": as_bytes(stacks), "blob/idx": numbers.astype(np.uint32)}
    if "blob/idx" in kept and np.array_equal(kept["blob/idx"], numbers) and same_files(kept, "blob/path", stacks):
        del known["blob/path"]  # theirs is as seen from the cryoSPARC project
    boxes = particles.optics_values("box_size").astype(np.uint32)
    if not boxes.all():
        raise InputError(f"{particles.path}: data_optics: no rlnImageSize, and no image to read it from")
    known["blob/shape"] = np.stack([boxes, boxes], axis=1)
    known["blob/psize_A"] = single(particles.optics_values("pixel_size"))
    if SIGN in source:
        known["blob/sign"] = single(source.floats(SIGN))
    known |= {field: single(source.floats(column)) for field, column in SCORES.items() if column in source}
    known |= ctf_fields(particles, warn)
    known |= alignment_fields(particles)
    known |= location_fields(particles, kept, flip_y, warn)
    _refuse_infinite(particles, known)
    _tell_spare(particles, source, warn)
    fields = _defaults(particles, known) | kept | known
    fields["uid"] = _different(uids, kept, particles.image_name)
    return structured({name: fields[name] for name in _ordered(fields)})


def _images(particles: Particles) -> tuple[NDArray[np.int64], list[str]]:
    """Number, from 0, and stack of each particle's image."""
    numbers, stacks = np.empty(len(particles), dtype=np.int64), []
    for row, name in enumerate(particles.image_name):
        try:
            numbers[row], stack = split_image_name(name)
        except ValueError as error:
            raise InputError(
                f"{particles.path}: data_particles, row {row + 1}, column rlnImageName: expected NUMBER@STACK with a "
                f"number from 1, found '{name}'"
            ) from error
        stacks.append(stack)
    return numbers, stacks


def _own_uids(source: Block) -> NDArray[np.uint64] | None:
    if UID not in source:
        return None
    values = source.text(UID)
    for row, value in enumerate(values, 1):
        if not value.isdigit() or int(value) >= 1 << 64:
            raise InputError(
                f"{source.path}: data_{source.name}, row {row}, column {UID}: expected a whole number of 64 bits, "
                f"found '{value}'"
            )
    return np.array([int(value) for value in values], dtype=np.uint64)


def _passed(
    tables: Sequence[Table], uids: NDArray[np.uint64] | None, numbers: NDArray[np.int64], stacks: Sequence[str]
) -> Fields:
    """The fields of the particles in other tables; the first table that has a field decides."""
    fields: Fields = {}
    for table in tables:
        rows = _rows_of_images(table, numbers, stacks) if uids is None else rows_of(uids, table)
        fields |= {name: table.rows[name][rows] for name in table.fields if name not in fields}
    return fields


def _rows_of_images(table: Table, numbers: NDArray[np.int64], stacks: Sequence[str]) -> NDArray[np.int64]:
    """The rows that show the same images, known by number and file name."""
    theirs = list(zip(table.integers("blob/idx").tolist(), map(file_stem, table.text("blob/path")), strict=True))
    place = {key: row for row, key in enumerate(theirs)}
    if len(place) < len(theirs):
        raise InputError(
            f"{table.path}: an image appears twice; expected a STAR file with {UID} to tell such rows apart"
        )
    ours = list(zip(numbers.tolist(), map(file_stem, stacks), strict=True))
    missing = [key for key in ours if key not in place]
    if missing:
        number, stem = missing[0]
        raise InputError(
            f"{table.path}: no row for {len(missing)} of {len(ours)} particles, the first of them image {number + 1} "
            f"of {stem}; expected a .cs file of the same particles"
        )
    return np.array([place[key] for key in ours], dtype=np.int64)


def _refuse_infinite(particles: Particles, known: Fields) -> None:
    for name, values in known.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            raise InputError(f"{particles.path}: data_particles, row {row + 1}: a value too large for {name}")


def _defaults(particles: Particles, known: Fields) -> Fields:
    """What cryoSPARC keeps in the slots that are there and a STAR file does not say."""
    n = len(particles)
    fields: Fields = {"blob/sign": single(np.ones(n)), "blob/import_sig": np.zeros(n, dtype=np.uint64)}
    if "ctf/df1_A" in known:
        fields |= {"ctf/type": as_bytes(["imported"] * n), "ctf/scale_const": single(np.ones(n))}
    for slot in ("alignments2D", "alignments3D"):
        if f"{slot}/pose" in known:
            fields |= {f"{slot}/{name}": single(np.zeros(n)) for name in _ZEROS}
            fields |= {f"{slot}/{name}": single(np.ones(n)) for name in _ONES}
    if any(name.startswith("location/") for name in known) and "ctf/exp_group_id" in known:
        fields["location/exp_group_id"] = known["ctf/exp_group_id"]
    return fields


def _different(uids: NDArray[np.uint64] | None, kept: Fields, names: NDArray[Any]) -> NDArray[np.uint64]:
    """Identifiers that are all different: the STAR file's, the passthrough's, else of the name of the image.

    A particle that appears again, as after a symmetry expansion, gets one made of its own and of how often it was seen.
    """
    given = uids if uids is not None else kept.get("uid")
    keys = names.tolist() if given is None else given.tolist()
    seen: Counter[Any] = Counter()
    result = np.empty(len(keys), dtype=np.uint64)
    for row, key in enumerate(keys):
        again = seen[key]
        seen[key] += 1
        result[row] = key if again == 0 and given is not None else hashed(f"{key} {again}")
    return result


def _tell_spare(particles: Particles, source: Block, warn: Say) -> None:
    columns = [*source.columns, *particles.source["optics"].columns]
    spare = [column for column in columns if column not in _CARRIED]
    if spare:
        warn(f"{particles.path}: not carried over, for want of such fields: {', '.join(spare)}")


def _ordered(fields: Fields) -> list[str]:
    slots = ("uid", "blob", "ctf", "alignments3D", "alignments2D", "location")
    rank = {slot: i for i, slot in enumerate(slots)}
    return sorted(fields, key=lambda name: rank.get(name.partition("/")[0], len(slots)))
