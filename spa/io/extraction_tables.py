"""Which particles lie in which micrograph: lists of coordinate files, folders of them, and refined particles.

Each micrograph gets one file of coordinates, named in its row of the table that the extraction works through.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import star, vintage
from spa.io.coordinate_tables import match
from spa.io.coordinates import FOM, micrograph_stem, read_coordinates
from spa.io.files import project_path, resolve
from spa.io.micrographs import unique_stems
from spa.io.particle_io import read_particles, to_star
from spa.io.star import Block, StarFile

COORDINATES = "rlnMicrographCoordinates"
"""Column of the micrographs that names their coordinates."""

STATE = "spaCoordinatesHash"
"""Column that changes with what the coordinate files hold, so that a resumed run sees it."""

_NAME = "rlnMicrographName"


@dataclass
class Found:
    """Coordinate files by the row of their micrograph, and one line for each that belongs to none."""

    files: dict[int, Path]
    strangers: list[str]


def listed(path: str | os.PathLike[str], micrographs: Sequence[str]) -> Found:
    """The coordinate files that a list, as of `spa pick` or RELION 4 and later, gives for the micrographs.

    Raises
    ------
    InputError
        As `star.read`; no table with rlnMicrographName and rlnMicrographCoordinates, or the same micrograph twice.
    """
    table = next((block for block in star.read(path) if COORDINATES in block), None)
    if table is None:
        raise InputError(f"{path}: expected a table with {_NAME} and {COORDINATES}")
    place = _Places(micrographs)
    found = Found({}, [])
    for row, (name, file) in enumerate(zip(table.text(_NAME), table.text(COORDINATES), strict=True)):
        number = place.of(name)
        label = f"{path}: data_{table.name}, row {row + 1}, column {_NAME}"
        if number is None:
            found.strangers.append(f"{label}: '{name}' is none of the micrographs")
        elif number in found.files:
            raise InputError(f"{label}: expected each micrograph once, found '{name}' again")
        else:
            found.files[number] = resolve(file, path)
    return found


def in_folder(folder: str | None, suffix: str, micrographs: Sequence[str]) -> Found:
    """The files named as the micrographs but for `suffix`, in a folder, or beside the micrographs where it is None.

    In a folder the path of a micrograph goes on, without the job that it came from, as RELION has it.
    """
    files = {}
    for number, name in enumerate(micrographs):
        plain = Path(name).with_suffix("").as_posix() if folder is None else unique_stems([name])[0]
        path = Path(folder or "", f"{plain}{suffix}")
        if path.exists():
            files[number] = path
    return Found(files, [])


def refined(path: str | os.PathLike[str], folder: Path, micrographs: Sequence[str]) -> tuple[Found, Block]:
    """Split refined particles into a STAR file for each micrograph, in `folder`; returns their optics groups, too.

    Raises
    ------
    InputError
        As `read_particles`; no rlnMicrographName, or no coordinates.
    """
    everything = to_star(read_particles(path))
    table, optics = everything["particles"], everything["optics"]
    for column in (_NAME, "rlnCoordinateX", "rlnCoordinateY"):
        table.require(column, "extraction needs")
    place = _Places(micrographs)
    stems = unique_stems(list(micrographs))
    found = Found({}, [])
    names = np.array(table.text(_NAME))
    distinct, first, member = np.unique(names, return_index=True, return_inverse=True)
    rows: dict[int, list[int]] = {}
    for index in np.argsort(first).tolist():
        number = place.of(str(distinct[index]))
        if number is None:
            label = f"{path}: data_particles, row {first[index] + 1}, column {_NAME}"
            found.strangers.append(f"{label}: '{distinct[index]}' is none of the micrographs")
        else:
            rows.setdefault(number, []).extend(np.flatnonzero(member == index).tolist())
    for number, members in rows.items():
        found.files[number] = folder / f"{stems[number]}_reextract.star"
        star.write(found.files[number], StarFile([optics, table.rows(np.array(members))]))
    return found, optics


def write_worklist(path: Path, source: str, found: Found) -> StarFile:
    """Write the micrographs of `source` that have coordinates, with the names of their files; returns them."""
    everything = vintage.upgrade(star.read(source))
    numbers = sorted(found.files)
    table = everything["micrographs"].rows(np.array(numbers, dtype=np.int64))
    table.set(_NAME, [_from_here(name, source) for name in table.text(_NAME)])
    table.set(COORDINATES, [project_path(found.files[number]) for number in numbers])
    table.set(STATE, [_hash(found.files[number]) for number in numbers])
    everything.put(table)
    star.write(path, everything)
    return everything


def micrograph_names(source: str) -> list[str]:
    """The micrographs of a STAR file, as seen from the working folder (InputError as `star.read`)."""
    table = vintage.upgrade(star.read(source))["micrographs"]
    return [_from_here(name, source) for name in table.text(_NAME)]


def read_picks(path: Path, micrograph: str) -> Block:
    """The coordinates of a micrograph; a file without any line is one without particles.

    Raises
    ------
    InputError
        As `read_coordinates`; coordinates of other micrographs only.
    """
    if path.is_file() and not path.stat().st_size:
        return Block.table("", {"rlnCoordinateX": np.zeros(0), "rlnCoordinateY": np.zeros(0)})
    picks = read_coordinates(path)
    if not picks:
        return Block.table("", {"rlnCoordinateX": np.zeros(0), "rlnCoordinateY": np.zeros(0)})
    if len(picks) == 1:
        return picks[0].table
    stems = {micrograph_stem(part.micrograph): str(i) for i, part in enumerate(picks)}
    which = match(micrograph, stems)
    if which is None:
        raise InputError(f"{path}: no coordinates of {micrograph}, but of {len(picks)} others")
    return picks[int(which)].table


def read_refined(path: Path) -> tuple[Block, Block]:
    """The particles of a micrograph that `refined` wrote, and the optics groups."""
    found = star.read(path)
    return found["particles"], found["optics"]


def above(table: Block, minimum: float | None, path: Path) -> NDArray[np.bool_]:
    """Which picks have a figure of merit of at least `minimum`, None: all (InputError if they have none)."""
    if minimum is None or not len(table):
        return np.ones(len(table), dtype=bool)
    if FOM not in table:
        raise InputError(f"{path}: no column {FOM}, which --minimum_pick_fom needs")
    return table.floats(FOM) >= minimum


def joined(tables: Iterable[Block], name: str) -> tuple[Block, list[str]]:
    """Tables one after the other, with the columns that all with rows have; returns the columns left out, too."""
    everything = list(tables)
    parts = [part for part in everything if len(part)] or everything[:1]
    shared = [column for column in parts[0].columns if all(column in part for part in parts)]
    left_out = sorted({column for part in parts for column in part.columns} - set(shared))
    frame = pl.concat([part.frame.select(pl.col(shared).cast(pl.String)) for part in parts])
    return Block(name, frame), left_out


class _Places:
    """Rows of micrographs by name, and by what of a name stays the same from program to program."""

    def __init__(self, micrographs: Sequence[str]) -> None:
        self._rows = {project_path(name): row for row, name in enumerate(micrographs)}
        stems: dict[str, list[int]] = {}
        for row, name in enumerate(micrographs):
            stems.setdefault(micrograph_stem(name), []).append(row)
        self._stems: Mapping[str, str] = {stem: str(rows[0]) for stem, rows in stems.items() if len(rows) == 1}

    def of(self, name: str) -> int | None:
        """The row of a micrograph, None if it is not there."""
        if project_path(name) in self._rows:
            return self._rows[project_path(name)]
        found = match(name, self._stems)
        return None if found is None else int(found)


def _from_here(name: str, source: str) -> str:
    place = resolve(name, source)
    return name if place == Path(name) else project_path(place)


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "none"
