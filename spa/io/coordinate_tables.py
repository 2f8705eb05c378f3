"""Coordinates in the files RELION looks for: one STAR file a micrograph, and a table of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import star
from spa.io.coordinates import Picks, micrograph_stem
from spa.io.files import project_path, resolve, write_text
from spa.io.headers import image_header
from spa.io.micrographs import unique_stems
from spa.io.name_matching import bare_stem
from spa.io.star import Block, StarFile

SUFFIX = "_coords.star"
_OUTSIDE, _FEW = 0.1, 3  # more than that fraction and that number outside show coordinates of another size


def many_outside(outside: NDArray[np.bool_]) -> bool:
    """Whether so many coordinates (n,) of a micrograph lie outside it that they are of another pixel size.

    More than 10 % and more than 3 of them, or all of several: one or two at an edge are a picker's.
    """
    count = int(outside.sum())
    return count > _OUTSIDE * len(outside) and (count > _FEW or 1 < count == len(outside))


def known_micrographs(path: str | os.PathLike[str]) -> dict[str, str]:
    """Stem -> name, as seen from the working folder, of the micrographs of a STAR file.

    Raises
    ------
    InputError
        As `star.read`; two micrographs with the same stem, which coordinates could not be told apart by.
    """
    table = star.read(path)["micrographs"]
    known: dict[str, str] = {}
    for row, name in enumerate(table.text("rlnMicrographName")):
        stem = micrograph_stem(name)
        if stem in known:
            raise InputError(
                f"{path}: data_micrographs, row {row + 1}, column rlnMicrographName: expected names that differ "
                f"without folder and suffix, found '{name}' after '{known[stem]}'"
            )
        place = resolve(name, path)
        known[stem] = name if place == Path(name) else project_path(place)
    return known


def match(name: str, micrographs: Mapping[str, str]) -> str | None:
    """The micrograph that the coordinates of `name` belong to, among `micrographs` (stem -> file name).

    The stems are the same, or one begins with the other and goes on with known marks such as "_DW"; the longest known
    beginning wins. None if there is no such micrograph, or several go on from `name`.
    """
    stem = micrograph_stem(name)
    if stem in micrographs:
        return micrographs[stem]
    begun = [known for known in micrographs if _continues(stem, known)]
    if begun:
        return micrographs[max(begun, key=len)]
    longer = [known for known in micrographs if _continues(known, stem)]
    return micrographs[longer[0]] if len(longer) == 1 else None


def _continues(longer: str, shorter: str) -> bool:
    """Whether `longer` is `shorter` with marks; any other word that follows makes it another micrograph."""
    return bool(shorter) and longer.startswith(shorter) and len(longer) > len(shorter) >= len(bare_stem(longer))


def gather(gathered: dict[str, Picks], picks: Iterable[Picks], known: Mapping[str, str] | None) -> list[str]:
    """Add picks under the names of their micrographs; returns those of `known` (stem -> name) that are not there.

    Without `known` the names are those that the picks have, with ".mrc" where a suffix is missing.

    Raises
    ------
    InputError
        If there are coordinates of the same micrograph already.
    """
    unknown = []
    for part in picks:
        name = _named(part.micrograph) if known is None else match(part.micrograph, known)
        if name is None:
            unknown.append(part.micrograph)
        elif name in gathered:
            first = gathered[name].micrograph
            raise InputError(f"{name}: coordinates twice, as of {first} and of {part.micrograph}; import one of them")
        else:
            gathered[name] = part
    return unknown


def _named(micrograph: str) -> str:
    return micrograph if Path(micrograph).suffix in (".mrc", ".mrcs") else f"{micrograph_stem(micrograph)}.mrc"


def write_coordinates(path: Path, gathered: Mapping[str, Picks], micrographs: str | None) -> None:
    """Write coordinates by micrograph beside the table `path`, which lists them as RELION 4 and later want.

    With the STAR file `micrographs` RELION 3.1's file coords_suffix_coords.star is written, too.

    Raises
    ------
    InputError
        If many coordinates of a micrograph lie outside it, where it can be looked at.
    """
    files = [path.parent / f"{stem}{SUFFIX}" for stem in unique_stems(list(gathered))]
    for name, picks in gathered.items():
        _check_inside(name, picks)
    for file, picks in zip(files, gathered.values(), strict=True):
        star.write(file, StarFile([picks.table]))
    columns = {"rlnMicrographName": list(gathered), "rlnMicrographCoordinates": [project_path(file) for file in files]}
    star.write(path, StarFile([Block.table("coordinate_files", columns)]))
    if micrographs is not None:
        write_text(path.parent / f"coords_suffix{SUFFIX}", f"{project_path(micrographs)}\n")


def _check_inside(name: str, picks: Picks) -> None:
    path = Path(name)
    if not len(picks.table) or not path.is_file():
        return
    header = image_header(path)
    x, y = picks.table.floats("rlnCoordinateX"), picks.table.floats("rlnCoordinateY")
    outside = (x < 0) | (x > header.columns) | (y < 0) | (y > header.rows)
    if many_outside(outside):
        first = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"{name}: {int(outside.sum())} of {len(x)} coordinates lie outside its {header.size} pixels, as "
            f"({x[first]:g}, {y[first]:g}); picks of binned micrographs need --coordinate_scale"
        )
