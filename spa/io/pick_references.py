"""References for picking, a map or a stack of images: read once, turned once for each size of pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import picking_templates as templates
from spa import symmetry
from spa.ctf import coefficients
from spa.errors import InputError
from spa.io import mrc, star, vintage
from spa.io.micrographs import MICROSCOPE, Item
from spa.kernels.backend import to_device
from spa.picking_scores import SCORES_AT_ONCE

_EVEN = 1e-6  # of the largest value: a smaller range is rounding, not contrast
_LARGEST_DEFOCUS = 1e6  # Angstrom


def read_reference(
    path: str, angpix: float = -1.0, flag: str = "--angpix_ref"
) -> tuple[NDArray[np.float32], float, bool]:
    """A map (size,) * 3 or square images (n, size, size), their pixel size in Angstrom, and whether it is a map.

    A positive `angpix` overrules the header, `flag` sets it. What is not a cube, or called .mrcs, are images.

    Raises
    ------
    InputError
        As `mrc.info`; an odd or uneven box, no pixel size, a value that is not finite, one value everywhere.
    """
    is_map = _is_map(path, mrc.info(path).shape)
    if is_map:
        volume, pixel_size = mrc.read_volume(path, angpix)
        _check_contrast(path, volume)
        return volume, pixel_size, True
    images, pixel_size = mrc.read(path)
    pixel_size = angpix if angpix > 0 else pixel_size
    if images.shape[1] != images.shape[2]:
        raise InputError(f"{path}: expected square references, found {images.shape[2]} x {images.shape[1]} pixels")
    mrc.check_box(images.shape[1], path)
    if pixel_size <= 0:
        raise InputError(f"{path}: its header has no pixel size; give {flag}")
    if not np.isfinite(images).all():
        raise InputError(f"{path}: expected finite pixels, found {int((~np.isfinite(images)).sum())} that are not")
    _check_contrast(path, images)
    return images, pixel_size, False


def _check_contrast(path: str, reference: NDArray[np.float32]) -> None:
    """Refuse a reference of one grey value."""
    if np.ptp(reference) <= _EVEN * float(np.abs(reference).max()):
        raise InputError(f"{path}: expected a reference, found the same value everywhere")


@lru_cache(maxsize=4)
def reference_diameter(path: str, state: tuple[int, int], angpix: float) -> float:
    """Diameter in Angstrom of what a reference shows; `state` is the file's, as of `file_state`.

    Raises
    ------
    InputError
        As `read_reference`; no density stands out.
    """
    reference, pixel_size, is_map = read_reference(path, angpix)
    if not is_map:
        return templates.image_diameter(reference, pixel_size)
    try:
        return templates.map_diameter(reference, pixel_size)
    except InputError as error:
        raise InputError(f"{path}: {error}; give --particle_diameter") from None


@lru_cache(maxsize=2)
def turned(
    path: str,
    state: tuple[int, int],
    angpix: float,
    sym: str,
    order: int,
    ang: float,
    pixel_size: float,
    box: int,
    device: int | None,
) -> templates.Templates:
    """The templates of a reference with `pixel_size` (Angstrom) in a `box`, in all orientations, on a device.

    state : of the file, as of `file_state`. angpix, sym, order : of a map, as in `read_reference` and `of_map`. ang :
    in-plane step in degrees.
    """
    reference, own, is_map = read_reference(path, angpix)
    moved = to_device(reference, device)
    if is_map:
        return templates.of_map(moved, own, pixel_size, box, order, sym, ang)
    return templates.of_images(moved, own, pixel_size, box, ang)


def check_references(
    references: Sequence[tuple[str, float, str, str]], micrographs: str, with_ctf: bool
) -> Iterator[str]:
    """Refuse references and micrographs that cannot be used together; a line about each of the references.

    references : of each the path, the pixel size that overrules its header, point group, and flag of the size.
    """
    try:
        symmetry.operators(references[0][2])
    except InputError as error:
        raise InputError(f"--sym {references[0][2]}: {error}") from None
    found = vintage.upgrade(star.read(micrographs))
    table = found["micrographs"]
    if with_ctf:
        for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
            table.require(column, "--ctf needs; run spa ctffind first, or give --no_ctf")
    sizes = [
        column for column in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize") if column in found["optics"]
    ]
    own = float(found["optics"].floats(sizes[0])[0]) if sizes else 0.0
    for path, angpix, _, flag in references:
        reference, pixel_size, is_map = read_reference(path, angpix, flag)
        what = "map" if is_map else f"{len(reference)} images"
        also = f", resampled from {pixel_size:g} Å pixels, those of the micrographs being {own:g} Å"
        yield f"{path}: {what} of {reference.shape[-1]} px{also if abs(pixel_size - own) > 1e-3 else ''}"


def ctf_of(item: Item, extent: float, box: int) -> NDArray[np.float32]:
    """CTF coefficients of a micrograph for templates of `extent` Angstrom and `box` pixels."""
    values = {}
    for name, text in (item.row | item.optics).items():
        if name.startswith("rlnDefocus") or name in (*MICROSCOPE, "rlnPhaseShift"):
            values[name] = text
    row = {name: _as_number(text) for name, text in values.items()}
    for name, value in row.items():
        limit = _LARGEST_DEFOCUS if name in ("rlnDefocusU", "rlnDefocusV") else np.inf
        if not (np.isfinite(value) and abs(value) <= limit):
            below = f" of at most {limit:g} Å" if np.isfinite(limit) else ""
            raise InputError(f"{item.path}: its CTF, {name}: expected a number{below}, found '{values[name]}'")
    defocus = (row["rlnDefocusU"], row["rlnDefocusV"], row["rlnDefocusAngle"])
    voltage, cs, q0 = (row[name] for name in MICROSCOPE)
    phase = row.get("rlnPhaseShift", 0.0)
    return coefficients(*defocus, voltage, cs, q0, phase, 0.0, 1.0, extent / box, box)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _n_templates(path: str, order: int, sym: str, ang: float) -> int:
    """How many templates `turned` makes of a reference."""
    found = mrc.info(path)
    if _is_map(path, found.shape):
        return templates.n_of_map(order, sym, ang)
    return found.shape[0] * len(templates.in_plane(ang))


def memory_of(references: Sequence[tuple[str, int, str, float]], box: int, n_pixels: int) -> int:
    """Bytes that templates take, with their transforms in a `box`, when they are scored in `n_pixels` pixels.

    references : of each the path, HEALPix order, point group and in-plane step (InputError as `mrc.info`).
    """
    n = sum(_n_templates(*reference) for reference in references)
    transforms = 8 * box * (box // 2 + 1)
    seen = 4 * int(np.pi / 4 * (box / 2) ** 2)
    return n * (transforms + 4 * seen) + 4 * min(n * n_pixels, SCORES_AT_ONCE)


def _is_map(path: str, shape: tuple[int, ...]) -> bool:
    return Path(path).suffix != ".mrcs" and len(set(shape)) == 1
