"""The files of a 2D classification: class averages with what the model says of them, and the data STAR file beside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc, star
from spa.io.files import resolve
from spa.io.particle_io import split_image_name
from spa.io.star import Block, StarFile

CLASS = "rlnClassNumber"
SCORE = "rlnPredictedClassScore"
_DATA, _MODEL, _OPTIMISER = "_data.star", "_model.star", "_optimiser.star"


@dataclass(frozen=True)
class Averages:
    """The class averages of one iteration; arrays are (n_classes, ...), class 1 first.

    images : float32 (n, box, box). shares : fraction of the particles. pixel_size : Å. diameter : of the circular mask
    in Å, 0 where not known. table : data_model_classes. resolutions : Å, infinite where not known; a single shell
    without signal, where the transform of a view has a node, does not end them.
    """

    images: NDArray[np.float32]
    shares: NDArray[np.float64]
    resolutions: NDArray[np.float64]
    pixel_size: float
    diameter: float
    table: Block

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Class numbers, from 1."""
        return np.arange(1, len(self.images) + 1)


def paths(name: str | os.PathLike[str]) -> tuple[Path, Path]:
    """(data, model) STAR files of a classification, of which either is named.

    Raises InputError if the name ends neither in _data.star nor in _model.star.
    """
    text = os.fspath(name)
    for end in (_DATA, _MODEL):
        if text.endswith(end):
            stem = text.removesuffix(end)
            return Path(stem + _DATA), Path(stem + _MODEL)
    raise InputError(f"{text}: expected the name of a classification's files, ..._data.star or ..._model.star")


def read_averages(model: str | os.PathLike[str]) -> Averages:
    """The class averages that a model STAR file names.

    Raises
    ------
    InputError
        No table of classes; a model of maps (3D); averages that are missing, no finite numbers or differ in box.
    """
    found = star.read(model)
    table, general = found["model_classes"], found["model_general"]
    if general.get_integer("rlnReferenceDimensionality", 2) != 2:
        raise InputError(f"{found.path}: data_model_general: expected 2D classes, found maps")
    images, header = _images(table, found)
    return Averages(
        images=images,
        shares=table.floats("rlnClassDistribution"),
        resolutions=_resolutions(found, table),
        pixel_size=general.get_float("rlnPixelSize", header),
        diameter=_diameter(found),
        table=table,
    )


def class_numbers(table: Block) -> NDArray[np.int64]:
    """The class of each particle of a data table (InputError where the file has none)."""
    table.require(CLASS, "a classification writes")
    return table.integers(CLASS)


def chosen(text: str) -> list[int]:
    """Class numbers in a list like "1,4,7" or "1-3,9", rising; ValueError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if low < 1 or high < low:
            raise ValueError(text)
        numbers |= set(range(low, high + 1))
    return sorted(numbers)


def ranking(averages: Averages, scores: NDArray[np.float64], kept: NDArray[np.bool_], features: Block) -> StarFile:
    """A table of the classes, best first: what the model says of each, its score, its features, and 1 if kept."""
    table = averages.table.copy()
    table.name = "class_averages"
    table.set(CLASS, averages.numbers)
    table.set(SCORE, scores)
    table.set("rlnSelected", kept.astype(np.int64))
    for column in features.columns:
        table.set(column, features.floats(column))
    return StarFile([table.rows(np.argsort(-scores, kind="stable"))])


def _images(table: Block, found: StarFile) -> tuple[NDArray[np.float32], float]:
    """The reference images of a table of classes and the pixel size in their header."""
    reader = mrc.StackReader()
    images: list[NDArray[Any]] = []
    size = 0.0
    for row, name in enumerate(table.text("rlnReferenceImage"), 1):
        where = f"{found.path}: data_model_classes, row {row}, column rlnReferenceImage"
        try:
            number, file = split_image_name(name)
        except ValueError as error:
            raise InputError(f"{where}: expected NUMBER@STACK, found '{name}'") from error
        path = resolve(file, found.path)
        if not path.exists() and Path(found.path).with_name(Path(file).name).exists():
            path = Path(found.path).with_name(Path(file).name)  # a job folder that was moved
        image = reader.read(path, number)
        if not np.isfinite(image).all():
            raise InputError(f"{path}: image {number + 1}: expected finite pixels, found NaN or infinity")
        if (images and image.shape != images[0].shape) or image.shape[0] != image.shape[1] or image.shape[0] % 2:
            raise InputError(f"{where}: expected square averages of one even box, found {image.shape} pixels")
        size = size or reader.info(path).pixel_size
        images.append(image)
    if not images:
        raise InputError(f"{found.path}: data_model_classes: expected classes, found none")
    return np.stack(images).astype(np.float32), size


def _resolutions(found: StarFile, table: Block) -> NDArray[np.float64]:
    """Resolution (n,) of each class: that of the table or, where it is finer, that of its signal-to-noise ratios."""
    told = table.text("rlnEstimatedResolution") if "rlnEstimatedResolution" in table else ["inf"] * len(table)
    values = np.array([_positive(text) for text in told])
    for k in range(len(table)):
        name = f"model_class_{k + 1}"
        if name in found and "rlnSsnrMap" in found[name] and "rlnAngstromResolution" in found[name]:
            ratio = np.array([float(text) for text in found[name].text("rlnSsnrMap")])
            below = ~(ratio[1:] >= 1)
            ends = np.flatnonzero(below & np.append(below[1:], True))
            last = int(ends[0]) if len(ends) else len(ratio) - 1
            values[k] = (
                min(values[k], _positive(found[name].text("rlnAngstromResolution")[last])) if last else values[k]
            )
    return values


def _positive(text: str) -> float:
    """A resolution, infinite where a class has none."""
    try:
        value = float(text)
    except ValueError:
        return np.inf
    return value if np.isfinite(value) and value > 0 else np.inf


def _diameter(found: StarFile) -> float:
    """The diameter of the mask in the optimiser file beside the model; 0 where there is none."""
    path = Path(found.path.removesuffix(_MODEL) + _OPTIMISER)
    if not (found.path.endswith(_MODEL) and path.exists()):
        return 0.0
    optimiser = star.read(path)
    if "optimiser_general" not in optimiser:
        return 0.0
    return max(0.0, optimiser["optimiser_general"].get_float("rlnParticleDiameter", 0.0))
