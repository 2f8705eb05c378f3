"""The slots ctf, alignments2D or alignments3D and location of a .cs table, from particles of a STAR file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa import aberration_lengths, ctf, euler
from spa.errors import InputError
from spa.io import mrc
from spa.io.cryosparc import Say, text_of
from spa.io.cryosparc_alignments import vectors
from spa.io.cryosparc_columns import CTF, EXPOSURE_GROUP, POSTERIOR, SIZES
from spa.io.files import resolve
from spa.particles import Particles

Fields = dict[str, NDArray[Any]]

_CTF_PROPERTIES = {
    "ctf/df1_A": "defocus_u",
    "ctf/df2_A": "defocus_v",
    "ctf/df_angle_rad": "defocus_angle",
    "ctf/phase_shift_rad": "phase_shift",
    "ctf/scale": "ctf_scale",
    "ctf/bfactor": "ctf_bfactor",
}
_LENS_FIELDS = {"shift": 2, "tilt": 2, "trefoil": 2, "tetra": 4, "anisomag": 4}


def ctf_fields(particles: Particles, warn: Say) -> Fields:
    """The slot ctf with the aberrations of each particle's optics group; none where the CTF is not known."""
    optics = particles.source["optics"]
    groups = optics.integers(EXPOSURE_GROUP) if EXPOSURE_GROUP in optics else optics.integers("rlnOpticsGroup")
    exposure = {"ctf/exp_group_id": groups[particles.optics_index].astype(np.uint32)}
    if particles.ctf_missing:
        warn(f"{particles.path}: no {particles.ctf_missing}, so no CTF: cryoSPARC will ask for one")
        return {}
    if any(group.ctf_premultiplied for group in particles.optics):
        warn(f"{particles.path}: images multiplied by their CTF, which a .cs file cannot say")
    values = {name: getattr(particles, name).copy() for name in _CTF_PROPERTIES.values()}
    n_groups = len(particles.optics)
    cs = np.array([group.cs for group in particles.optics])
    lenses = {name: np.zeros((n_groups, width)) for name, width in _LENS_FIELDS.items()}
    wavelengths = ctf.wavelength([group.voltage for group in particles.optics])
    for i, found in enumerate(particles.aberrations()):
        number = particles.optics[i].number
        if any(found.odd[aberration_lengths.N_ODD :]) or any(found.even[aberration_lengths.N_EVEN :]):
            warn(f"{particles.path}: data_optics, group {number}: aberrations above the 4th order are not carried over")
        lengths, remainder = aberration_lengths.from_zernike(found.odd, found.even, float(wavelengths[i]))
        for name in ("shift", "tilt", "trefoil", "tetra"):
            lenses[name][i] = getattr(lengths, name)
        lenses["anisomag"][i] = (found.matrix - np.eye(2)).ravel()
        cs[i] += remainder.cs
        _add_remainder(remainder, np.flatnonzero(particles.optics_index == i), values)
    fields: Fields = {
        "ctf/accel_kv": single(particles.optics_values("voltage")),
        "ctf/cs_mm": single(cs[particles.optics_index]),
        "ctf/amp_contrast": single(particles.optics_values("q0")),
        **{field: single(values[name] / CTF[field][1]) for field, name in _CTF_PROPERTIES.items()},
    }
    names = {"anisomag": "ctf/anisomag", **{name: f"ctf/{name}_A" for name in ("shift", "tilt", "trefoil", "tetra")}}
    return exposure | fields | {names[name]: single(rows[particles.optics_index]) for name, rows in lenses.items()}


def _add_remainder(
    remainder: aberration_lengths.Remainder, rows: NDArray[np.int64], values: dict[str, NDArray[np.float64]]
) -> None:
    """Put what lengths do not hold into the defoci and phase shifts of the particles `rows`."""
    values["phase_shift"][rows] += np.degrees(remainder.phase)
    # less is the rounding of coefficients that had none
    if max(abs(remainder.defocus), *map(abs, remainder.astigmatism)) > 1e-3:
        names = ("defocus_u", "defocus_v", "defocus_angle")
        u, v, angle = aberration_lengths.with_remainder(remainder, *(values[name][rows] for name in names))
        for name, changed in zip(names, (u, v, angle), strict=True):
            values[name][rows] = changed


def alignment_fields(particles: Particles) -> Fields:
    """The slot alignments3D, or alignments2D of particles turned in the plane only; none without angles."""
    source = particles.source["particles"]
    if not any(column in source for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")):
        return {}
    flat = not (particles.rot.any() or particles.tilt.any())
    slot = "alignments2D" if flat else "alignments3D"
    sizes = particles.optics_values("pixel_size")
    poses = euler.matrix(particles.rot, particles.tilt, particles.psi)
    shifts = np.stack([particles.origin_x_angst, particles.origin_y_angst], axis=1) / sizes[:, None]
    fields: Fields = {
        f"{slot}/split": np.maximum(particles.half_set - 1, 0).astype(np.uint32),
        f"{slot}/shift": single(shifts),
        f"{slot}/pose": single(np.radians(particles.psi) if flat else vectors(poses)),
        f"{slot}/psize_A": single(sizes),
        f"{slot}/class": np.maximum(particles.class_number - 1, 0).astype(np.uint32),
    }
    if POSTERIOR in source:
        fields[f"{slot}/class_posterior"] = single(source.floats(POSTERIOR))
    return fields


def location_fields(particles: Particles, kept: Mapping[str, NDArray[Any]], flip_y: bool, warn: Say) -> Fields:
    """The slot location, as far as it is known; `kept` are fields of the same particles in other .cs tables."""
    source = particles.source["particles"]
    names = particles.micrograph_name.tolist()
    if not any(names):
        return {}
    uids = {name: hashed(name) for name in dict.fromkeys(names)}
    fields: Fields = {}
    if not same_files(kept, "location/micrograph_path", names):
        fields["location/micrograph_path"] = as_bytes(names)
    if "location/micrograph_uid" not in kept:
        fields["location/micrograph_uid"] = np.array([uids[name] for name in names], dtype=np.uint64)
    if "rlnCoordinateX" not in source or "rlnCoordinateY" not in source:
        return fields
    headers = _headers(uids, particles.path) if SIZES[0] not in source else {}
    if SIZES[0] in source:
        shape = np.stack([source.integers(SIZES[1]), source.integers(SIZES[0])], axis=1)
    elif "location/micrograph_shape" in kept:
        shape = kept["location/micrograph_shape"].astype(np.int64)
    else:
        missing = [name for name in uids if name not in headers]
        if missing:
            warn(
                f"{particles.path}: coordinates are not carried over, which takes the size of every micrograph: "
                f"{len(missing)} of {len(uids)} are not there, the first {missing[0]}"
            )
            return fields
        shape = np.array([headers[name].shape[1:] for name in names], dtype=np.int64)
    x, y = (source.floats(column) for column in ("rlnCoordinateX", "rlnCoordinateY"))
    if (shape < 1).any():
        raise InputError(f"{source.path}: data_{source.name}, column {SIZES[0]}: expected pixels, found less than 1")
    y = y / shape[:, 0]
    fields["location/micrograph_shape"] = shape.astype(np.uint32)
    fields["location/center_x_frac"] = single(x / shape[:, 1])
    fields["location/center_y_frac"] = single(1 - y if flip_y else y)
    sizes = _micrograph_pixels(particles, headers, names)
    return fields | ({} if sizes is None else {"location/micrograph_psize_A": single(sizes)})


def _headers(names: Iterable[str], star_path: str) -> dict[str, mrc.MrcInfo]:
    """Headers of the micrographs that are there."""
    found = {}
    for name in names:
        path = resolve(name, star_path)
        if path.is_file():
            found[name] = mrc.info(path)
    return found


def _micrograph_pixels(
    particles: Particles, headers: dict[str, mrc.MrcInfo], names: Sequence[str]
) -> NDArray[np.float64] | None:
    """Pixel size of each particle's micrograph, from data_optics or its header; None where neither says it."""
    optics = particles.source["optics"]
    if "rlnMicrographPixelSize" in optics:
        values: NDArray[np.float64] = optics.floats("rlnMicrographPixelSize")[particles.optics_index]
        return values
    sizes = np.array([headers[name].pixel_size if name in headers else 0.0 for name in names])
    return sizes if sizes.all() else None


def same_files(kept: Mapping[str, NDArray[Any]], field: str, names: Sequence[str]) -> bool:
    """Whether a field of paths names the same files as `names`, whatever their folders and suffixes."""
    return field in kept and list(map(file_stem, map(text_of, kept[field].tolist()))) == list(map(file_stem, names))


def file_stem(path: str) -> str:
    """The name of a file without folder and suffix."""
    return Path(path.removeprefix(">")).stem


def hashed(text: str) -> int:
    """A number of 64 bits that is always the same for the same text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def single(values: ArrayLike) -> NDArray[np.float32]:
    """Values in the precision of a .cs file, infinite where they are too large for it."""
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float64).astype(np.float32)


def as_bytes(values: Sequence[str]) -> NDArray[Any]:
    """Text as cryoSPARC stores it, UTF-8 in fields of the longest value's length."""
    return np.array([value.encode() for value in values], dtype=np.bytes_)
