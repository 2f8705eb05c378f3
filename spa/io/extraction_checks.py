"""What an extraction refuses before it begins: outputs in the place of inputs, missing CTF, pixel sizes that differ."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import star, vintage
from spa.io.coordinate_tables import many_outside
from spa.io.extraction_tables import COORDINATES
from spa.io.micrographs import Item, unique_stems
from spa.io.star import Block

_LOGS = ("job.json", "run.out", "run.err")


def refuse_replacing(flag: str, output: str | os.PathLike[str], taken: Iterable[str | os.PathLike[str] | None]) -> None:
    """Refuse an output that is one of the files `taken`, or a record of the job beside it (InputError)."""
    path = Path(output)
    records = [path.with_name(name) for name in _LOGS]
    for other in (*records, *taken):
        if other is not None and os.path.realpath(other) == os.path.realpath(path):
            raise InputError(f"{flag} {output}: would replace a file of this job or its input; give another name")


def own_files(folder: Path, micrographs: list[str], tables: Iterable[str]) -> list[Path]:
    """The files that an extraction writes into its folder besides the particles' table."""
    stems = unique_stems(micrographs)
    ends = (".mrcs", "_extract.star", "_reextract.star")
    return [folder / name for name in (*_LOGS, *tables)] + [folder / f"{stem}{end}" for stem in stems for end in ends]


def require_ctf(source: str) -> None:
    """Refuse micrographs without a CTF, where that of the particles is to be replaced (InputError)."""
    table = vintage.upgrade(star.read(source))["micrographs"]
    for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
        table.require(column, "--keep_ctfs_micrographs needs")


def require_one_pixel_size(optics: Block) -> None:
    """Refuse particles of several pixel sizes, for which a point in pixels of the reference means several."""
    sizes = optics.floats("rlnImagePixelSize")
    if len(sizes) and np.ptp(sizes) > 1e-3 * sizes.min():
        found = " and ".join(f"{size:g}" for size in np.unique(sizes))
        raise InputError(f"{optics.path}: --recenter_x, y and z: particles of {found} Å; give --ref_angpix")


def refuse_outside(inside: NDArray[np.bool_], centres: NDArray[np.float64], table: Block, item: Item) -> None:
    """Refuse coordinates of which many have their whole box outside the micrograph, as those of another size have."""
    if not many_outside(~inside):
        return
    row = int(np.flatnonzero(~inside)[0])
    x, y = centres[row]
    raise InputError(
        f"{item.row[COORDINATES]}: data_{table.name}, row {row + 1}, column rlnCoordinateX: expected a box in "
        f"{item.path}, found ({x:g}, {y:g}) and {int((~inside).sum())} of {len(inside)} like it outside"
    )
