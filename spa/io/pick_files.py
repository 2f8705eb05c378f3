"""The files that picking writes: coordinates and picture of each micrograph, list and picture of the set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.io import pick_micrograph, pick_plots, plots, star
from spa.io.coordinates import FOM
from spa.io.extraction_tables import COORDINATES
from spa.io.name_matching import of_micrographs
from spa.io.pick_micrograph import Shown
from spa.io.pick_tables import coordinates, write_list
from spa.io.star import Block, StarFile

COUNT, THRESHOLD, MASKED, BEATEN, ODD = (
    "spaNrPicks",
    "spaPickThreshold",
    "spaMaskedArea",
    "spaNrDecoys",
    "spaNrOddPicks",
)
OWNED = (COORDINATES, COUNT, THRESHOLD, MASKED, BEATEN, ODD)
"""Columns of the table of micrographs that picking makes."""


@dataclass(frozen=True)
class Written:
    """Lines on what was written: what to say, and what to warn of."""

    said: list[str]
    warned: list[str]


def write_micrograph(
    path: Path,
    name: str,
    shown: Shown,
    label: NDArray[np.int64],
    psi: NDArray[np.float64],
    extra: Mapping[str, NDArray[np.float64]],
) -> None:
    """Write the picks of a micrograph called `name` to the STAR file `path`, and their picture beside it.

    label, psi, extra : of each pick the number of its reference, its in-plane angle in degrees, and further columns.
    """
    star.write(path, StarFile([coordinates(shown.centres, shown.score, label, psi, extra)]))
    pick_micrograph.write(path.with_suffix(".png"), shown, name)


def write_set(path: Path, table: Block, micrographs: str, unit: str) -> Written:
    """Write the list of coordinate files to `path`, and the picture of the counts and scores beside it.

    table : the micrographs with the columns that picking made. micrographs : STAR file that they come from. unit : of
    the scores.
    """
    names, files = table.text("rlnMicrographName"), table.text(COORDINATES)
    write_list(path, names, files, micrographs)
    counts = table.floats(COUNT)
    score = [star.read(file)[""].floats(FOM) for file in files]
    picture = plots.save(path.with_suffix(".png"), pick_plots.overview(counts, table.floats(THRESHOLD), score, unit))
    said = [f"{counts.sum():.0f} picks, {np.median(counts):.0f} in the median micrograph; wrote {path}, {picture}"]
    odd = int(table.floats(ODD).sum())
    if odd:
        said.append(f"{odd} more left out for the contrast or darkness around them, {ODD} in the table of micrographs")
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    warned = [f"no picks in {of_micrographs(len(empty), len(names))}, as {empty[0]}"] if empty else []
    return Written(said, warned)
