"""STAR files of RELION 1 to 3.0 brought to the form of RELION 3.1 and later, in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io.star import Block, StarFile

OPTICS = {
    "rlnVoltage": "rlnVoltage",
    "rlnSphericalAberration": "rlnSphericalAberration",
    "rlnAmplitudeContrast": "rlnAmplitudeContrast",
    "rlnBeamTiltX": "rlnBeamTiltX",
    "rlnBeamTiltY": "rlnBeamTiltY",
}
"""Columns of a row that belong to the optics group."""

PIXELS_TO_ANGSTROM = {
    "rlnOriginX": "rlnOriginXAngst",
    "rlnOriginY": "rlnOriginYAngst",
    "rlnOriginZ": "rlnOriginZAngst",
    "rlnOriginXPrior": "rlnOriginXPriorAngst",
    "rlnOriginYPrior": "rlnOriginYPriorAngst",
    "rlnOriginZPrior": "rlnOriginZPriorAngst",
}
"""Column in pixels -> its successor in Angstrom."""

_TYPES = {"rlnImageName": "particles", "rlnMicrographName": "micrographs", "rlnMicrographMovieName": "movies"}
_SIZES = {
    "particles": "rlnImagePixelSize",
    "micrographs": "rlnMicrographPixelSize",
    "movies": "rlnMicrographOriginalPixelSize",
}


def upgrade(star: StarFile, pixel_size: float | None = None) -> StarFile:
    """A STAR file with data_optics and data_particles, _micrographs or _movies, shifts in Angstrom.

    A file of RELION 3.1 or later is returned as it is, but for shifts in pixels that some programs still
    write. Otherwise the table of images becomes the main block, and its rows are put into optics groups by
    their distinct voltage, spherical aberration, amplitude contrast, beam tilt and pixel size (10^4
    rlnDetectorPixelSize / rlnMagnification, else `rlnPixelSize`, else `pixel_size` in Angstrom). Other
    columns and blocks stay.

    Raises
    ------
    InputError
        No table of images; a table without a pixel size where none is given; values that are no numbers.
    """
    star = star.copy()
    if "optics" in star:
        main = next((star[name] for name in _TYPES.values() if name in star), None)
        if main is not None and "rlnOpticsGroup" in main and any(old in main for old in PIXELS_TO_ANGSTROM):
            _origins_to_angstrom(main, _pixel_size_of_groups(star, main))
        return star
    main, kind = _main_table(star)
    sizes = _pixel_sizes(main, pixel_size, kind)
    optics, numbers = _optics_groups(main, sizes, kind)
    _origins_to_angstrom(main, sizes)
    main.drop(*OPTICS, "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize", "rlnOpticsGroup")
    main.set("rlnOpticsGroup", numbers)
    others = [block for block in star if block.name != main.name]
    main.name = kind
    return StarFile([optics, main, *others], star.path)


def _main_table(star: StarFile) -> tuple[Block, str]:
    """The block of images and what it holds."""
    for label, kind in _TYPES.items():
        for block in star:
            if block.loop and label in block:
                return block, kind
    raise InputError(
        f"{star.path}: no data_optics and no table with {' or '.join(_TYPES)}; blocks: "
        + ", ".join(f"data_{name}" for name in star.names)
    )


def _pixel_sizes(main: Block, pixel_size: float | None, kind: str) -> NDArray[np.float64]:
    if "rlnMagnification" in main and "rlnDetectorPixelSize" in main:
        magnification = main.floats("rlnMagnification")
        if np.any(magnification <= 0):
            row = int(np.flatnonzero(magnification <= 0)[0]) + 1
            raise InputError(
                f"{main.path}: data_{main.name}, row {row}, column rlnMagnification: expected a number above 0"
            )
        return np.round(1e4 * main.floats("rlnDetectorPixelSize") / magnification, 6)
    if "rlnPixelSize" in main:
        return main.floats("rlnPixelSize")
    if pixel_size is None or pixel_size <= 0:
        headers = ", and no pixel size in the image headers" if kind == "particles" else ""
        raise InputError(
            f"{main.path}: data_{main.name}: no rlnMagnification and rlnDetectorPixelSize{headers}; expected a "
            f"data_optics table with {_SIZES[kind]} (spa import makes one)"
        )
    return np.full(len(main), float(pixel_size))


def _optics_groups(main: Block, sizes: NDArray[np.float64], kind: str) -> tuple[Block, NDArray[np.int64]]:
    """The optics table of the distinct values in the rows, by appearance, and the group of each row."""
    labels = [label for label in OPTICS if label in main]
    values = np.stack([*(main.floats(label) for label in labels), sizes], axis=1)
    distinct, first, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    size_label = "rlnImagePixelSize" if kind == "particles" else "rlnMicrographOriginalPixelSize"
    optics = Block.table(
        "optics",
        {
            "rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(len(order))],
            "rlnOpticsGroup": np.arange(1, len(order) + 1),
            **{label: distinct[order, i] for i, label in enumerate(labels)},
            size_label: distinct[order, -1],
        },
    )
    optics.path = main.path
    if kind == "micrographs":
        optics.set("rlnMicrographPixelSize", distinct[order, -1])
    return optics, rank[inverse.ravel()]


def _pixel_size_of_groups(star: StarFile, main: Block) -> NDArray[np.float64]:
    optics = star["optics"]
    sizes = dict(zip(optics.integers("rlnOpticsGroup"), optics.floats("rlnImagePixelSize"), strict=True))
    return np.array([sizes.get(number, np.nan) for number in main.integers("rlnOpticsGroup")])


def _origins_to_angstrom(main: Block, sizes: NDArray[np.float64]) -> None:
    """Replace shifts in pixels by shifts in Angstrom; where both are there, those in Angstrom hold."""
    for old, new in PIXELS_TO_ANGSTROM.items():
        if old in main:
            if new not in main:
                main.set(new, main.floats(old) * sizes)
            main.drop(old)
