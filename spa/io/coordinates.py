"""Particle coordinates of other programs: Topaz, EMAN, crYOLO, cryoSPARC and RELION files to one form.

Coordinates are those of RELION: centres in pixels, x along the rows, y from the first row stored in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import star
from spa.io.cryosparc import read_table
from spa.io.files import existing_file
from spa.io.star import Block

FOM = "rlnAutopickFigureOfMerit"
SUFFIXES = (".star", ".txt", ".tsv", ".box", ".cbox", ".cs")

_PICKS = re.compile(r"_(manual|manualpick|autopick|topazpicks|coords|import|pick|picks|particles)$")
_CRYOSPARC_UID = re.compile(r"^\d{15,}_")
_TOPAZ = ("image_name", "x_coord", "y_coord")
_LOCATION = ("center_x_frac", "center_y_frac", "micrograph_path", "micrograph_shape")


@dataclass
class Picks:
    """The coordinates in one micrograph.

    `micrograph` is its name as the file has it, with or without folder and suffix; `table` has rlnCoordinateX and
    rlnCoordinateY in pixels and, where the file scores its particles, rlnAutopickFigureOfMerit.
    """

    micrograph: str
    table: Block

    def scaled(self, factor: float) -> Picks:
        """The same particles in a micrograph whose pixels are `factor` times smaller."""
        table = self.table.copy()
        for column in ("rlnCoordinateX", "rlnCoordinateY"):
            table.set(column, factor * table.floats(column))
        return Picks(self.micrograph, table)

    def above(self, minimum: float) -> Picks:
        """Those with a score of at least `minimum`, all if they have none."""
        if FOM not in self.table:
            return self
        return Picks(self.micrograph, self.table.rows(self.table.floats(FOM) >= minimum))


def read_coordinates(path: str | os.PathLike[str], flip_y: bool = False) -> list[Picks]:
    """Read a file of coordinates, by its suffix: .txt (Topaz), .box (EMAN), .cbox (crYOLO), .cs (cryoSPARC), .star.

    `flip_y` turns the coordinates of a .cs file upside down, for micrographs of another program than cryoSPARC,
    whose motion correction mirrors movies.

    Raises
    ------
    InputError
        A file that is missing, empty or not what its suffix says; a value that is no finite number, by line or row.

    Notes
    -----
    EMAN and crYOLO give the corner of a box next to the first pixel, and its size; cryoSPARC fractions of the
    micrograph, whose shape is (rows, columns); Topaz pixels of the micrographs it was run on, which may be binned.
    """
    path = existing_file(path, "file of coordinates")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: expected coordinates in a file of the sort {', '.join(SUFFIXES)}")
    if suffix == ".cs":
        return _cryosparc(path, flip_y)
    if suffix == ".box":
        return [_boxes(path)]
    if suffix in (".txt", ".tsv"):
        return _topaz(path)
    found = star.read(path)
    return [_cryolo(path, found["cryolo"])] if suffix == ".cbox" else _relion(path, list(found))


def micrograph_stem(name: str) -> str:
    """A micrograph's name without folder, suffix, cryoSPARC's number or the mark of a picker."""
    name = re.split(r"[\\/]", name)[-1]
    stem = Path(name).stem if Path(name).suffix.lower() in (".mrc", ".mrcs", ".tif", ".tiff", ".eer", ".star") else name
    return _PICKS.sub("", _CRYOSPARC_UID.sub("", stem))


def _table(centres: NDArray[np.float64], score: NDArray[np.float64] | None) -> Block:
    """Coordinates of centres (n, 2) in x and y."""
    columns = {"rlnCoordinateX": centres[:, 0], "rlnCoordinateY": centres[:, 1]}
    return Block.table("", columns if score is None else {**columns, FOM: score})


def _boxes(path: Path) -> Picks:
    """EMAN .box: corner x, corner y, width, height on each line."""
    rows = [_numbers(path, number, words[:4]) for number, words in _lines(path)]
    values = np.array(rows, dtype=np.float64).reshape(-1, 4)
    centres = values[:, :2] + values[:, 2:] / 2
    return Picks(path.stem, _table(centres, None))


def _numbers(path: Path, line: int, words: list[str]) -> list[float]:
    numbers = [_number(word) for word in words]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        found = " ".join(words)[:40]
        raise InputError(f"{path}: line {line}: expected x, y, width and height of a box, found '{found}'")
    return numbers


def _topaz(path: Path) -> list[Picks]:
    """Topaz: a line that names the columns, then a particle a line, of several micrographs."""
    lines = _lines(path)
    header = next(lines, (1, []))[1]
    missing = [name for name in _TOPAZ if name not in header]
    if missing:
        raise InputError(f"{path}: line 1: expected the columns {', '.join(_TOPAZ)}, found no {', '.join(missing)}")
    columns = [name for name in ("x_coord", "y_coord", "score") if name in header]
    gathered: dict[str, list[list[float]]] = {}
    for number, words in lines:
        if len(words) != len(header):
            raise InputError(f"{path}: line {number}: expected {len(header)} values, found {len(words)}")
        row = dict(zip(header, words, strict=True))
        values = [_number(row[name]) for name in columns]
        for name, value in zip(columns, values, strict=True):
            if not math.isfinite(value):
                raise InputError(f"{path}: line {number}, column {name}: expected a number, found '{row[name]}'")
        gathered.setdefault(row["image_name"], []).append(values)
    arrays = {name: np.array(rows) for name, rows in gathered.items()}
    scored = "score" in columns
    return [Picks(name, _table(rows[:, :2], rows[:, 2] if scored else None)) for name, rows in arrays.items()]


def _cryolo(path: Path, block: Block) -> Picks:
    """crYOLO .cbox: STAR table of box corners and sizes; many boxes are below the threshold of a pick."""
    x = block.floats("CoordinateX") + block.floats("Width") / 2
    y = block.floats("CoordinateY") + block.floats("Height") / 2
    return Picks(
        path.stem, _table(np.stack([x, y], axis=1), block.floats("Confidence") if "Confidence" in block else None)
    )


def _relion(path: Path, blocks: list[Block]) -> list[Picks]:
    """A STAR file with rlnCoordinateX and rlnCoordinateY, of the micrographs it names or the one it is named after."""
    block = next((block for block in blocks if "rlnCoordinateX" in block), None)
    if block is None:
        raise InputError(f"{path}: expected a table with rlnCoordinateX and rlnCoordinateY")
    for column in ("rlnCoordinateX", "rlnCoordinateY"):
        block.floats(column)
    names = np.array(block.text("rlnMicrographName") if "rlnMicrographName" in block else [path.stem] * len(block))
    picks = []
    for name in dict.fromkeys(names.tolist() or [path.stem]):
        table = block.rows(names == name)
        table.name = ""
        table.drop("rlnMicrographName", "rlnOpticsGroup")
        picks.append(Picks(name, table))
    return picks


def _cryosparc(path: Path, flip_y: bool) -> list[Picks]:
    """cryoSPARC .cs: a NumPy table with the places of particles as fractions of their micrographs."""
    found = read_table(path)
    names = [f"location/{name}" for name in _LOCATION]
    found.require(*names)
    table, known = found.rows, found.fields
    fractions = np.stack([table[name].astype(np.float64) for name in names[:2]], axis=1)
    if not len(table):
        raise InputError(f"{path}: expected particles, found none")
    outside = ~((fractions >= -0.5) & (fractions <= 1.5)).all(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InputError(f"{path}: row {row + 1}, {names[0]}: expected 0 to 1, found {fractions[row].tolist()}")
    if flip_y:
        fractions[:, 1] = 1 - fractions[:, 1]
    centres = fractions * table[names[3]][:, ::-1].astype(np.float64)
    score = table["pick_stats/ncc_score"].astype(np.float64) if "pick_stats/ncc_score" in known else None
    if score is not None and not np.isfinite(score).all():
        score = None
    micrographs = np.array(found.text(names[2]))
    picks = []
    for name in dict.fromkeys(micrographs.tolist()):
        here = micrographs == name
        picks.append(Picks(name, _table(centres[here], None if score is None else score[here])))
    return picks


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, words) of the lines that hold something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8: {error.reason} at byte {error.start}") from error
    numbered: Iterable[tuple[int, str]] = enumerate(text.splitlines(), 1)
    for number, line in numbered:
        words = line.split("\t") if "\t" in line else line.split()
        words = [word.strip() for word in words if word.strip()]
        if words and not words[0].startswith("#"):
            yield number, words
