"""Picks in the files RELION looks for, and sets of picks as they are read back, by micrograph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import extraction_tables as tables
from spa.io import star
from spa.io.coordinates import FOM, Picks, read_coordinates
from spa.io.files import project_path, write_text
from spa.io.micrographs import Item, read_items
from spa.io.name_matching import places, unclear
from spa.io.patterns import found_files
from spa.io.star import Block, StarFile
from spa.picking_evaluation import Curve, consensus

Floats = NDArray[np.float64]


def coordinates(
    centres: Floats, score: Floats, class_number: NDArray[np.int64], psi: Floats, extra: Mapping[str, Floats]
) -> Block:
    """The table of one micrograph's picks: centres (n, 2) in pixels, and their columns, each (n,)."""
    return Block.table(
        "",
        {
            "rlnCoordinateX": centres[:, 0],
            "rlnCoordinateY": centres[:, 1],
            FOM: score,
            "rlnClassNumber": class_number,
            "rlnAnglePsi": psi,
            **extra,
        },
    )


def write_list(path: Path, names: Sequence[str], files: Sequence[str], micrographs: str) -> None:
    """Write the table of coordinate files as RELION 4 and later want it, and RELION 3.1's coords_suffix file."""
    columns = {"rlnMicrographName": list(names), tables.COORDINATES: list(files)}
    star.write(path, StarFile([Block.table("coordinate_files", columns)]))
    write_text(path.with_name(f"coords_suffix_{path.stem}.star"), f"{project_path(micrographs)}\n")


def read_set(source: str | os.PathLike[str], micrographs: str, flag: str = "") -> dict[str, Picks]:
    """Picks by the name of their micrograph in the STAR file `micrographs`.

    `source` is a list of coordinate files, a file of coordinates (of one micrograph or of many), or a pattern, given
    with `flag`, which errors name.

    Raises
    ------
    InputError
        Nothing there, no coordinates, none of any of the micrographs, or several of the same one.
    """
    try:
        return _read_set(os.fspath(source), micrographs)
    except InputError as error:
        raise InputError(f"{flag} {str(error).removeprefix('--i ')}".lstrip()) from None


def state_of(sets: Sequence[Mapping[str, Picks]]) -> str:
    """A word that changes with any centre or score of sets of picks."""
    found = hashlib.sha256()
    for one in sets:
        for name in sorted(one):
            centres, score = numbers(one[name])
            found.update(f"{name} {len(score)} ".encode() + centres.tobytes() + score.tobytes())
        found.update(b"end")
    return found.hexdigest()[:16]


def agreed(
    sources: Sequence[str], state: str, micrographs: str, item: Item, distance: float, at_least: int
) -> tuple[Floats, Floats]:
    """Centres (n, 2) and scores (n,) of what sets of picks agree on in a micrograph, as `consensus`.

    state : as of `state_of`. distance : pixels. at_least : sets, 0 for more than half.
    """
    sets = []
    for source in sources:
        picks = _kept_set(source, state, micrographs).get(item.row["rlnMicrographName"])
        sets.append(numbers(picks) if picks is not None else (np.zeros((0, 2)), np.zeros(0)))
    centres, score, _ = consensus(sets, distance, at_least or len(sets) // 2 + 1)
    return centres, score


@lru_cache(maxsize=8)
def _kept_set(source: str, state: str, micrographs: str) -> dict[str, Picks]:
    return read_set(source, micrographs)


def _read_set(text: str, micrographs: str) -> dict[str, Picks]:
    names = tables.micrograph_names(micrographs)
    if Path(text).is_file() and Path(text).suffix == ".star" and any(tables.COORDINATES in b for b in star.read(text)):
        listed = tables.listed(text, names)
        gathered = {names[n]: Picks(names[n], tables.read_picks(file, names[n])) for n, file in listed.files.items()}
    else:
        picks = [part for file in found_files([text]) for part in _read_file(file)]
        meant = [part.micrograph for part in picks]
        place = places(meant, names)
        doubt = unclear(meant, names, place)
        if doubt:
            raise InputError(f"{text}: {doubt}")
        gathered = {}
        for part in picks:
            if part.micrograph in place.rows:
                name = names[place.rows[part.micrograph]]
                if name in gathered:
                    raise InputError(f"{text}: {name}: coordinates twice")
                gathered[name] = Picks(name, part.table)
    if not gathered:
        raise InputError(f"{text}: no coordinates of any of the {len(names)} micrographs in {micrographs}")
    return gathered


def _read_file(path: Path) -> list[Picks]:
    """The picks of a file of coordinates; where nothing in it says of which micrograph they are, its path is the name.

    An empty file, as RELION leaves it where it picks nothing, is one without picks.
    """
    if path.suffix == ".star" and not path.stat().st_size:
        nothing = {"rlnCoordinateX": np.zeros(0), "rlnCoordinateY": np.zeros(0)}
        return [Picks(str(path), Block.table("", nothing))]
    found = read_coordinates(path)
    return [Picks(str(path), part.table) if part.micrograph == path.stem else part for part in found]


def numbers(picks: Picks) -> tuple[Floats, Floats]:
    """Centres (n, 2) and scores (n,); where the file has no scores, the first is the best."""
    table = picks.table
    centres = np.stack([table.floats("rlnCoordinateX"), table.floats("rlnCoordinateY")], axis=1)
    score = table.floats(FOM) if FOM in table else -np.arange(len(centres), dtype=np.float64)
    return centres, score


def pixel_sizes(micrographs: str) -> dict[str, float]:
    """Pixel size in Angstrom of each micrograph, by its name."""
    _, items = read_items(micrographs, "micrographs", "rlnMicrographName", 0, needs=())
    return {item.row["rlnMicrographName"]: item.pixel_size for item in items}


def write_evaluation(path: Path, curve: Curve, distance: float) -> float:
    """Write precision and recall of the picks (general) and over their threshold (curve); the median offset in Å."""
    offset = float(np.median(curve.offset)) if len(curve.offset) else 0.0
    general = {
        "spaNrPicks": curve.n_picks,
        "spaNrTrue": curve.n_truth,
        "spaPrecision": float(curve.precision[0]),
        "spaRecall": float(curve.recall[0]),
        "spaF1": float(curve.f1[0]),
        "spaMedianOffset": offset,
        "spaMatchDistance": distance,
        "spaBestF1": float(curve.f1[curve.best]),
        "spaBestThreshold": float(curve.threshold[curve.best]),
    }
    columns = {
        "spaPickThreshold": curve.threshold,
        "spaPrecision": curve.precision,
        "spaRecall": curve.recall,
        "spaF1": curve.f1,
    }
    star.write(path, StarFile([Block.pairs("general", general), Block.table("curve", columns)]))
    return offset
