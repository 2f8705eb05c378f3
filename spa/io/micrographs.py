"""Movies and micrographs as a STAR file lists them: one `Item` a row, its optics checked, its file found."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spa.errors import InputError
from spa.io import star, vintage
from spa.io.files import project_path, resolve
from spa.io.micrograph_tables import REASON
from spa.io.star import Block, StarFile

RANGES = {
    "rlnVoltage": (30.0, 1000.0, "kV"),
    "rlnSphericalAberration": (0.0, 10.0, "mm"),
    "rlnAmplitudeContrast": (0.0, 1.0, ""),
    "rlnMicrographPixelSize": (0.1, 50.0, "Å"),
    "rlnMicrographOriginalPixelSize": (0.1, 50.0, "Å"),
}
"""Column of an optics group -> smallest and largest sane value, and unit."""

PIXEL_SIZES = {
    "movies": ("rlnMicrographOriginalPixelSize",),
    "micrographs": ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"),
}
"""Block -> the columns that hold the pixel size of its images, the one that holds first."""

MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")

_PATH_COLUMNS = (
    "rlnMicrographName",
    "rlnMicrographMovieName",
    "rlnMicrographNameNoDW",
    "rlnMicrographMetadata",
    "rlnCtfPowerSpectrum",
    "rlnCtfImage",
    "rlnMicrographGainName",
    "rlnMicrographDefectFile",
    "rlnMtfFileName",
)
_PIPELINE_FOLDER = re.compile(r"^[A-Za-z0-9]+/job\d{3,}/")


@dataclass(frozen=True)
class Item:
    """One row of a table of movies or micrographs.

    `number` counts the rows from 0; `row` and `optics` hold the text of the row and of its optics group, by
    column; `path` is the image file; `stem` is unlike that of any other row and names the output files, such as
    "Micrographs/foo", inside the output folder; `random_seed` follows from the job's and the file's name.
    """

    number: int
    row: dict[str, str]
    optics: dict[str, str]
    path: Path
    stem: str
    random_seed: int

    @property
    def pixel_size(self) -> float:
        """Pixel size of the image in Angstrom."""
        kind = "micrographs" if "rlnMicrographName" in self.row else "movies"
        return float(next(self.optics[column] for column in PIXEL_SIZES[kind] if column in self.optics))


def read_items(
    path: str | os.PathLike[str],
    block: str,
    column: str,
    random_seed: int,
    needs: Sequence[str] = MICROSCOPE,
    named_after: str | None = None,
    reserved: Sequence[str] = (),
) -> tuple[StarFile, list[Item]]:
    """The STAR file `path`, in the form of RELION 3.1 or later, and the rows of its table `block`.

    `column` holds the names of the images. Names that are found only beside the STAR file are brought to the
    working folder; whether an image is there is not asked. `needs` are columns that every optics group must have
    besides its pixel size; `named_after` is the column whose names give the stems, `column` if None; `reserved` are
    stems that no row may have. The reasons in a list of failed images are left out.

    Raises
    ------
    InputError
        As `star.read`; no such block or column; a table without rows; a row of an optics group that is not there or
        there twice;
        a voltage, pixel size, spherical aberration or amplitude contrast that is missing or not sane.
    """
    found = vintage.upgrade(star.read(path))
    table = found[block]
    table.drop(REASON)
    for required in (column, named_after or column, "rlnOpticsGroup"):
        table.require(required)
    if not len(table):
        raise InputError(f"{path}: data_{block}: expected at least one row, found none")
    optics = found["optics"]
    groups = groups_of(table, optics)
    for row in sorted(set(groups)):
        check_group(optics, row, block, needs)
    for part in (table, optics):
        _find_files(part, path, column)
    rows, group_rows = _as_rows(table), _as_rows(optics)
    names = [row[column] for row in rows]
    stems = unique_stems([row[named_after or column] for row in rows], reserved)
    items = [
        Item(i, row, group_rows[groups[i]], Path(names[i]), stems[i], _seed(random_seed, names[i]))
        for i, row in enumerate(rows)
    ]
    return found, items


def check_group(optics: Block, row: int, block: str, needs: Sequence[str] = MICROSCOPE) -> None:
    """Refuse row `row` (from 0) of an optics table if a value is missing or not sane (InputError).

    A voltage of 3 (for 300), a pixel size of 0 or in metres and the like are mistakes that nothing later shows.
    """
    sizes = PIXEL_SIZES[block]
    if not any(column in optics for column in sizes):
        raise InputError(f"{optics.path}: data_optics: no pixel size, expected a column {' or '.join(sizes)}")
    for column in needs:
        optics.require(column)
    for column, (low, high, unit) in RANGES.items():
        if column not in optics:
            continue
        text = optics.text(column)[row]
        if not low <= _number(text) <= high:
            expected = f"{low:g} to {high:g} {unit}".rstrip()
            raise InputError(
                f"{optics.path}: data_optics, row {row + 1}, column {column}: expected {expected}, found '{text}'"
            )


def unique_stems(names: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """For each file name a path without suffix under which its outputs can be told from all others'.

    "MotionCorr/job002/Movies/foo.mrc" becomes "Movies/foo", as RELION names outputs; of a name outside the working
    folder the last folder stays, with a hash of the whole name. Different files that would share a stem, without
    regard to case, all get a hash, as does one whose stem is `reserved`: no stem depends on the order of the names,
    and none passes from one file to another when some of them are done again.
    """
    files = [project_path(name) for name in names]
    plain = [_plain_stem(file) for file in files]
    sharing: dict[str, set[str]] = {stem.lower(): {""} for stem in reserved}
    for file, stem in zip(files, plain, strict=True):
        sharing.setdefault(stem.lower(), set()).add(file)
    seen: Counter[str] = Counter()
    stems = []
    for file, stem in zip(files, plain, strict=True):
        seen[file] += 1
        if seen[file] > 1:
            stem = f"{stem}_{_hash(f'{file} {seen[file]}')}"
        elif len(sharing[stem.lower()]) > 1:
            stem = f"{stem}_{_hash(file)}"
        stems.append(stem)
    return stems


def _plain_stem(file: str) -> str:
    """The stem of a file that shares it with no other."""
    path = Path(_PIPELINE_FOLDER.sub("", file))
    if path.is_absolute():
        return f"{Path(*path.parts[1:][-2:]).with_suffix('').as_posix()}_{_hash(file)}"
    return path.with_suffix("").as_posix()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def groups_of(table: Block, optics: Block) -> list[int]:
    """For each row of `table` the row of its group in `optics`."""
    optics.require("rlnOpticsGroup")
    places: dict[int, int] = {}
    for row, number in enumerate(optics.integers("rlnOpticsGroup").tolist()):
        if number in places:
            raise InputError(
                f"{optics.path}: data_optics, rows {places[number] + 1} and {row + 1}, column rlnOpticsGroup: "
                f"expected different groups, found {number} in both"
            )
        places[number] = row
    numbers = table.integers("rlnOpticsGroup").tolist()
    for row, number in enumerate(numbers):
        if number not in places:
            raise InputError(
                f"{table.path}: data_{table.name}, row {row + 1}, column rlnOpticsGroup: "
                f"expected a group of data_optics, found {number}"
            )
    return [places[number] for number in numbers]


def _find_files(block: Block, path: str | os.PathLike[str], images: str) -> None:
    """Bring the names of files, `images` among them, that lie beside the STAR file `path` to the working folder."""
    for column in dict.fromkeys((*_PATH_COLUMNS, images)):
        if column in block:
            block.set(column, [_found(name, path) for name in block.text(column)])


def _found(name: str, path: str | os.PathLike[str]) -> str:
    bare, mark, ending = name.partition(":mrc")  # RELION's mark of a file that is MRC in spite of its suffix
    place = resolve(bare, path)
    return name if place == Path(bare) else project_path(place) + mark + ending


def _as_rows(block: Block) -> list[dict[str, str]]:
    columns = [block.text(column) for column in block.columns]
    return [dict(zip(block.columns, values, strict=True)) for values in zip(*columns, strict=True)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seed(random_seed: int, name: str) -> int:
    """A seed that does not depend on the other rows, so that a resumed run draws the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{random_seed} {name}".encode()).digest()[:4], "big")


def file_state(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Bytes and time of change (ns) of a file; (-1, -1) where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def names_of_files(values: Mapping[str, object]) -> list[str]:
    """The values of a row that name files which exist."""
    texts = (value.partition(":mrc")[0] for value in values.values() if isinstance(value, str))
    return sorted({text for text in texts if text and os.path.isfile(text)})
