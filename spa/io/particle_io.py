"""Particle STAR files to `Particles` and back, and their images streamed from many stacks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc, star
from spa.io.files import project_path, resolve
from spa.io.star import Block, StarFile
from spa.io.vintage import upgrade
from spa.particles import COLUMNS, Column, OpticsGroup, Particles


def read_particles(path: str | os.PathLike[str]) -> Particles:
    """Read a particle STAR file of any RELION version.

    Raises
    ------
    InputError
        As `spa.io.star.read`; no particles; no rlnImageName; an optics group that is missing or incomplete; a
        value that is not a finite number; sub-tomograms (3D images).
    """
    found = star.read(path)
    found = upgrade(found, None if "optics" in found else _header_pixel_size(found))
    table = found["particles"]
    table.require("rlnImageName", "names the image of each particle")
    if not len(table):
        raise InputError(f"{found.path}: data_particles: expected particles, found none")
    _rebase(found, table)
    columns = {name: _column(table, column) for name, column in COLUMNS.items() if column.label in table}
    if "defocus_u" in columns and "defocus_v" not in columns:
        columns["defocus_v"] = columns["defocus_u"].copy()
    optics, index = _optics(found, table, columns["image_name"])
    particles = Particles.create(optics, index, found.path, **columns)
    needed = (
        ("optics", "rlnVoltage"),
        ("optics", "rlnSphericalAberration"),
        ("optics", "rlnAmplitudeContrast"),
    )
    for block, label in (("particles", "rlnDefocusU"), *needed):
        particles.ctf_missing = particles.ctf_missing or ("" if label in found[block] else label)
    particles.source = found
    particles.rows = np.arange(len(table))
    return particles


def to_star(particles: Particles) -> StarFile:
    """The STAR file of particles: the columns and blocks they were read with, and every property that
    changed.

    A property is written if it was read or set, or is not at its default everywhere. A column that did not
    change keeps its text to the letter.
    """
    if particles.source is None:
        result = StarFile([_optics_block(particles), Block("particles")], particles.path)
        old = None
    else:
        result = particles.source.copy()
        old = result["particles"].rows(particles.rows)
        result.put(old)
    table = result["particles"]
    for name, column in COLUMNS.items():
        values = getattr(particles, name)
        if old is not None and column.label in old:
            if not np.array_equal(_column(old, column), values):
                table.set(column.label, values)
        elif name in particles.assigned or name == "image_name" or np.any(values != column.default):
            table.set(column.label, values)
    if "rlnOpticsGroup" not in table:
        table.set("rlnOpticsGroup", particles.optics_values("number"))
    return result


def write_particles(path: str | os.PathLike[str], particles: Particles) -> None:
    """Write particles as a STAR file of RELION 3.1 or later, whole or not at all."""
    star.write(path, to_star(particles))


class ParticleImages:
    """The images of particles, read from their stacks when asked for.

    Every stack is found and its header held against the particles when the object is made. Names are relative
    to the current folder or, where nothing is there, to the folder of the particles' STAR file.

    Raises
    ------
    InputError
        A stack that is missing, empty, truncated or of another box than its optics group says; an odd box; an
        image beyond the end of its stack; optics groups that differ in box or pixel size.
    """

    def __init__(self, particles: Particles, n_open: int = 32) -> None:
        self.path = particles.path
        self.box_size = particles.box_size
        self.pixel_size = particles.pixel_size
        self._reader = mrc.StackReader(n_open)
        self._files, self._file, self._slice = _locate(particles)
        for number, path in enumerate(self._files):
            self._check(path, np.flatnonzero(self._file == number))

    def __len__(self) -> int:
        return len(self._file)

    def read(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Images (n, box, box), float32, of the particles `indices`, in that order.

        Raises
        ------
        InputError
            If a pixel is not finite, naming stack and image.
        """
        indices = np.asarray(indices, dtype=np.int64)
        images = np.empty((len(indices), self.box_size, self.box_size), dtype=np.float32)
        files = self._file[indices]
        for number in np.unique(files):
            places = np.flatnonzero(files == number)
            images[places] = self._reader.read(self._files[number], self._slice[indices[places]])
        finite = np.isfinite(images.sum(axis=(1, 2)))  # a NaN or an infinity in an image makes its sum one
        if not finite.all():
            bad = indices[np.flatnonzero(~finite)[0]]
            raise InputError(
                f"{self._files[self._file[bad]]}: image {self._slice[bad] + 1}: expected finite pixels, "
                f"found NaN or "
                f"infinity ({self.path}: data_particles, row {bad + 1})"
            )
        return images

    def batches(
        self, indices: NDArray[np.integer[Any]], size: int, first: int = 0
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(indices, images) of consecutive batches of `size`; the next is read while one is used.

        first : size of the first batch, if it is smaller.
        """
        order: NDArray[np.int64] = np.asarray(indices, dtype=np.int64)
        head = min(first or size, size)
        starts = [0, *range(head, len(order), size)] if len(order) else []
        parts = [order[a:b] for a, b in itertools.pairwise([*starts, len(order)])]
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[NDArray[np.float32]] | None = reader.submit(self.read, parts[0]) if parts else None
            for number, part in enumerate(parts):
                assert ahead is not None
                images = ahead.result()
                ahead = reader.submit(self.read, parts[number + 1]) if number + 1 < len(parts) else None
                yield part, images

    def _check(self, path: Path, particles: NDArray[np.int64]) -> None:
        """Hold the header of a stack against the particles that lie in it."""
        row = f"({self.path}: data_particles, row {particles[0] + 1})"
        if not path.exists():
            raise InputError(f"{path}: no such image stack {row}")
        found = self._reader.info(path)
        if found.shape[1:] != (self.box_size, self.box_size):
            raise InputError(
                f"{path}: expected images of {self.box_size} x {self.box_size} pixels, as data_optics says, "
                f"found "
                f"{found.shape[2]} x {found.shape[1]} {row}"
            )
        mrc.check_box(self.box_size, path)
        worst = particles[np.argmax(self._slice[particles])]
        if self._slice[worst] >= found.shape[0]:
            raise InputError(
                f"{self.path}: data_particles, row {worst + 1}, column rlnImageName: image "
                f"{self._slice[worst] + 1} of "
                f"{path}, which holds {found.shape[0]}"
            )


def split_image_name(name: str) -> tuple[int, str]:
    """Image, from 0, and file of a name like "000012@stack.mrcs"; without @, the first image (ValueError)."""
    number, at, path = name.partition("@")
    if not at:
        return 0, name
    if int(number) < 1:
        raise ValueError(name)
    return int(number) - 1, path


def _locate(particles: Particles) -> tuple[list[Path], NDArray[np.int32], NDArray[np.int64]]:
    """The distinct stacks, and for each particle which of them and which image in it (from 0)."""
    names: dict[str, int] = {}
    file = np.empty(len(particles), dtype=np.int32)
    image = np.empty(len(particles), dtype=np.int64)
    for i, name in enumerate(particles.image_name):
        try:
            image[i], stack = split_image_name(name)
        except ValueError as error:
            raise InputError(
                f"{particles.path}: data_particles, row {i + 1}, column rlnImageName: expected NUMBER@STACK "
                f"with a "
                f"number from 1, found '{name}'"
            ) from error
        file[i] = names.setdefault(stack, len(names))
    return [resolve(name, particles.path) for name in names], file, image


def _rebase(found: StarFile, table: Block) -> None:
    """Name files that lie beside the STAR file as seen from the current folder."""
    new: dict[str, str] = {}

    def seen_from_here(name: str) -> str:
        if name not in new:
            path = resolve(name, found.path)
            new[name] = name if path == Path(name) else project_path(path)
        return new[name]

    names = [name.rpartition("@") for name in table.text("rlnImageName")]
    moved = [f"{number}{at}{seen_from_here(path)}" for number, at, path in names]
    if any(name != old for old, name in new.items()):
        table.set("rlnImageName", moved)
    optics = found["optics"]
    if "rlnMtfFileName" in optics:
        optics.set("rlnMtfFileName", [seen_from_here(name) if name else "" for name in optics.text("rlnMtfFileName")])


def _column(table: Block, column: Column) -> NDArray[Any]:
    if column.dtype is object:
        return np.array(table.text(column.label), dtype=object)
    return table.integers(column.label) if column.dtype is np.int64 else table.floats(column.label)


def _optics(found: StarFile, table: Block, image_names: NDArray[Any]) -> tuple[list[OpticsGroup], NDArray[np.int32]]:
    """The optics groups of a file and the place in that list of each particle's group."""
    block = found["optics"]
    numbers = block.integers("rlnOpticsGroup").tolist()
    where = {number: place for place, number in enumerate(numbers)}
    if len(where) != len(numbers):
        raise InputError(f"{found.path}: data_optics, column rlnOpticsGroup: a group number appears twice")
    members = table.integers("rlnOpticsGroup")
    for number in np.unique(members):
        if number not in where:
            row = int(np.flatnonzero(members == number)[0]) + 1
            raise InputError(
                f"{found.path}: data_particles, row {row}, column rlnOpticsGroup: group {number} is missing "
                f"from "
                f"data_optics, which has {', '.join(str(n) for n in numbers) or 'none'}"
            )
    groups = [_optics_group(block.rows(np.array([i]))) for i in range(len(numbers))]
    if "rlnImageSize" not in block:
        boxes = [_box_of_first(found, image_names[members == number]) for number in numbers]
        groups = [OpticsGroup(**{**vars(g), "box_size": box}) for g, box in zip(groups, boxes, strict=True)]
        block.set("rlnImageSize", boxes)
        block.set("rlnImageDimensionality", [2] * len(boxes))
    index = np.array([where[number] for number in members.tolist()], dtype=np.int32)
    return groups, index


def _optics_group(row: Block) -> OpticsGroup:
    """An optics group from its row of data_optics."""
    row.require("rlnImagePixelSize", "every optics group of particles needs")
    number = row.get_integer("rlnOpticsGroup")
    label = f"{row.path}: data_optics, group {number}, column"
    if row.get_integer("rlnImageDimensionality", 2) != 2:
        raise InputError(f"{label} rlnImageDimensionality: expected 2 (images), found 3 (sub-tomograms)")
    group = OpticsGroup(
        number=number,
        name=row.get_text("rlnOpticsGroupName", f"opticsGroup{number}"),
        pixel_size=row.get_float("rlnImagePixelSize"),
        box_size=row.get_integer("rlnImageSize", 0),
        voltage=row.get_float("rlnVoltage", 300.0),
        cs=row.get_float("rlnSphericalAberration", 2.7),
        q0=row.get_float("rlnAmplitudeContrast", 0.1),
        mtf_name=row.get_text("rlnMtfFileName", ""),
        mtf_pixel_size=row.get_float("rlnMicrographOriginalPixelSize", 0.0),
        ctf_premultiplied=bool(row.get_integer("rlnCtfDataAreCtfPremultiplied", 0)),
    )
    for column, value, low, high in (
        ("rlnImagePixelSize", group.pixel_size, 1e-3, 1e3),
        ("rlnVoltage", group.voltage, 1.0, 1e4),
        ("rlnSphericalAberration", group.cs, 0.0, 100.0),
        ("rlnAmplitudeContrast", group.q0, 0.0, 1.0),
    ):
        if not low <= value <= high:
            raise InputError(f"{label} {column}: expected {low:g} to {high:g}, found {value:g}")
    return group


def _optics_block(particles: Particles) -> Block:
    """data_optics of particles that were not read from a file."""
    groups = particles.optics
    block = Block.table(
        "optics",
        {
            "rlnOpticsGroupName": [g.name for g in groups],
            "rlnOpticsGroup": [g.number for g in groups],
            "rlnMicrographOriginalPixelSize": [g.mtf_pixel_size or g.pixel_size for g in groups],
            "rlnVoltage": [g.voltage for g in groups],
            "rlnSphericalAberration": [g.cs for g in groups],
            "rlnAmplitudeContrast": [g.q0 for g in groups],
            "rlnImagePixelSize": [g.pixel_size for g in groups],
            "rlnImageSize": [g.box_size for g in groups],
            "rlnImageDimensionality": [2] * len(groups),
            "rlnCtfDataAreCtfPremultiplied": [int(g.ctf_premultiplied) for g in groups],
        },
    )
    if any(g.mtf_name for g in groups):
        block.set("rlnMtfFileName", [g.mtf_name for g in groups])
    return block


def _first_header(found: StarFile, names: NDArray[Any] | list[str]) -> mrc.MrcInfo | None:
    """The header of the file that holds the first image, if it is there."""
    for name in names[:1]:
        path = resolve(name.rpartition("@")[2], found.path)
        return mrc.info(path) if path.exists() else None
    return None


def _box_of_first(found: StarFile, names: NDArray[Any]) -> int:
    header = _first_header(found, names)
    return header.shape[2] if header else 0


def _header_pixel_size(found: StarFile) -> float | None:
    block = next((b for b in found if b.loop and "rlnImageName" in b), None)
    header = _first_header(found, block.text("rlnImageName")) if block is not None else None
    return header.pixel_size if header else None
