"""Which particles lie in which micrograph: lists of coordinate files, folders of them, and refined particles.

Each micrograph gets one file of coordinates, named in its row of the table that the extraction works through.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import star, vintage
from spa.io.coordinates import FOM, read_coordinates
from spa.io.files import project_path, resolve
from spa.io.micrographs import read_items, unique_stems
from spa.io.name_matching import places
from spa.io.particle_io import read_particles, to_star
from spa.io.star import Block, StarFile

COORDINATES = "rlnMicrographCoordinates"
"""Column of the micrographs that names their coordinates."""

STATE = "spaCoordinatesHash"
"""Column that changes with what the coordinate files hold, so that a resumed run sees it."""

_NAME = "rlnMicrographName"
_SAME_PIXEL = 1e-3  # relative difference of pixel sizes that is one of rounding


@dataclass
class Found:
    """Coordinate files by the row of their micrograph, one line for each that belongs to none, and what to tell."""

    files: dict[int, Path]
    strangers: list[str]
    notes: list[str] = field(default_factory=list)


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
    place = places(table.text(_NAME), micrographs)
    found = Found({}, [], [f"{path}: {place.told()}"] if place.by_stem else [])
    for row, (name, file) in enumerate(zip(table.text(_NAME), table.text(COORDINATES), strict=True)):
        number = place.rows.get(name)
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

    In a folder the path of a micrograph goes on, without the job that it came from, as RELION has it; the name with
    the hash that `spa pick` gives to micrographs of one name comes first.

    Raises
    ------
    InputError
        If one file would be that of two micrographs.
    """
    files: dict[int, Path] = {}
    owner: dict[Path, str] = {}
    for number, name in enumerate(micrographs):
        plain = Path(name).with_suffix("").as_posix() if folder is None else unique_stems([name])[0]
        hashed = unique_stems([name], [plain])[0]
        stems = (plain,) if folder is None else (hashed, plain)
        path = next((path for stem in stems if (path := Path(folder or "", f"{stem}{suffix}")).exists()), None)
        if path is None:
            continue
        if project_path(owner.setdefault(path, name)) != project_path(name):
            raise InputError(
                f"{path}: found for {owner[path]} and for {name}; expected one each, as {folder}/{hashed}{suffix}"
            )
        files[number] = path
    return Found(files, [])


def refined(
    path: str | os.PathLike[str], folder: Path, source: str, recentred: Sequence[str] = ()
) -> tuple[Found, Block]:
    """Split refined particles into a STAR file for each micrograph of `source`, in `folder`; their optics groups, too.

    Coordinates in micrographs of another pixel size are brought to that of the micrographs of `source`. `recentred` are
    columns that --recenter needs.

    Raises
    ------
    InputError
        As `read_particles`; no rlnMicrographName, no coordinates, or a column less than `recentred`.
    """
    everything = to_star(read_particles(path))
    table, optics = everything["particles"], everything["optics"]
    for column in (_NAME, "rlnCoordinateX", "rlnCoordinateY"):
        table.require(column, "extraction needs")
    for column in recentred:
        table.require(column, "--recenter needs")
    micrographs = micrograph_names(source)
    _, items = read_items(source, "micrographs", _NAME, 0, needs=())
    stems = unique_stems(list(micrographs))
    names = np.array(table.text(_NAME))
    distinct, first, member = np.unique(names, return_index=True, return_inverse=True)
    place = places(distinct.tolist(), micrographs)
    found = Found({}, [], [f"{path}: {place.told()}"] if place.by_stem else [])
    rows: dict[int, list[int]] = {}
    for index in np.argsort(first).tolist():
        number = place.rows.get(str(distinct[index]))
        if number is None:
            label = f"{path}: data_particles, row {first[index] + 1}, column {_NAME}"
            found.strangers.append(f"{label}: '{distinct[index]}' is none of the micrographs")
        else:
            rows.setdefault(number, []).extend(np.flatnonzero(member == index).tolist())
    scales: set[str] = set()
    for number, members in rows.items():
        found.files[number] = folder / f"{stems[number]}_reextract.star"
        particles = table.rows(np.array(members))
        scales |= _to_pixels_of(items[number].pixel_size, particles, optics)
        star.write(found.files[number], StarFile([optics, particles]))
    if scales:
        found.notes.append(f"{path}: coordinates scaled to the pixels of {source}: {', '.join(sorted(scales))}")
    return found, optics


def _to_pixels_of(pixel_size: float, particles: Block, optics: Block) -> set[str]:
    """Scale the coordinates of particles in micrographs of other pixels to those of `pixel_size`; says what changed."""
    if "rlnMicrographPixelSize" not in optics or "rlnOpticsGroup" not in particles:
        return set()
    numbers, sizes = optics.integers("rlnOpticsGroup").tolist(), optics.floats("rlnMicrographPixelSize").tolist()
    by_group = dict(zip(numbers, sizes, strict=True))
    before = np.array([by_group.get(number, pixel_size) for number in particles.integers("rlnOpticsGroup").tolist()])
    differs = np.abs(before - pixel_size) > _SAME_PIXEL * pixel_size
    if not differs.any():
        return set()
    factor = np.where(differs, before / pixel_size, 1.0)
    for column in ("rlnCoordinateX", "rlnCoordinateY"):
        particles.set(column, factor * particles.floats(column))
    return {f"{size:g} Å to {pixel_size:g} Å" for size in np.unique(before[differs]).tolist()}


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
        As `read_coordinates`; coordinates of other micrographs only, by what the rows say.
    """
    if path.is_file() and not path.stat().st_size:
        return Block.table("", {"rlnCoordinateX": np.zeros(0), "rlnCoordinateY": np.zeros(0)})
    picks = read_coordinates(path)
    if not picks:
        return Block.table("", {"rlnCoordinateX": np.zeros(0), "rlnCoordinateY": np.zeros(0)})
    names = [part.micrograph for part in picks]
    if names == [path.stem]:  # nothing in the file says of which micrograph it is
        return picks[0].table
    found = places(names, [micrograph]).rows
    if not found:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"{path}: expected coordinates of {micrograph}, found those of {names[0]}{more}")
    return picks[names.index(next(iter(found)))].table


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


def _from_here(name: str, source: str) -> str:
    place = resolve(name, source)
    return name if place == Path(name) else project_path(place)


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "none"
