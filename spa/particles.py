"""Particles as columns: one array per property, with the optics groups they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa import ctf
from spa.aberrations import Aberrations, read_aberrations
from spa.errors import InputError


class Column(NamedTuple):
    """Name of a property in a STAR file, its type (object for text) and its value where a file has none."""

    label: str
    dtype: type
    default: float | int | str


COLUMNS = {
    "image_name": Column("rlnImageName", object, ""),
    "micrograph_name": Column("rlnMicrographName", object, ""),
    "group_name": Column("rlnGroupName", object, ""),
    "defocus_u": Column("rlnDefocusU", np.float64, 0.0),
    "defocus_v": Column("rlnDefocusV", np.float64, 0.0),
    "defocus_angle": Column("rlnDefocusAngle", np.float64, 0.0),
    "phase_shift": Column("rlnPhaseShift", np.float64, 0.0),
    "ctf_bfactor": Column("rlnCtfBfactor", np.float64, 0.0),
    "ctf_scale": Column("rlnCtfScalefactor", np.float64, 1.0),
    "rot": Column("rlnAngleRot", np.float64, 0.0),
    "tilt": Column("rlnAngleTilt", np.float64, 0.0),
    "psi": Column("rlnAnglePsi", np.float64, 0.0),
    "origin_x_angst": Column("rlnOriginXAngst", np.float64, 0.0),
    "origin_y_angst": Column("rlnOriginYAngst", np.float64, 0.0),
    "half_set": Column("rlnRandomSubset", np.int64, 0),
    "class_number": Column("rlnClassNumber", np.int64, 0),
    "group_number": Column("rlnGroupNumber", np.int64, 0),
    "norm_correction": Column("rlnNormCorrection", np.float64, 1.0),
    "max_value_prob": Column("rlnMaxValueProbDistribution", np.float64, 0.0),
    "log_likelihood": Column("rlnLogLikeliContribution", np.float64, 0.0),
    "nr_significant": Column("rlnNrOfSignificantSamples", np.int64, 0),
}
"""Property -> its column."""


@dataclass(frozen=True)
class OpticsGroup:
    """What the particles of one session and one detector share.

    `pixel_size` in Angstrom and `box_size` in pixels of the particle images; `voltage` in kV, `cs` in mm,
    `q0` the amplitude contrast; `mtf_name` a file with the detector's MTF ("" for none) at `mtf_pixel_size`
    (Angstrom).
    """

    number: int
    name: str
    pixel_size: float
    box_size: int
    voltage: float
    cs: float
    q0: float
    mtf_name: str = ""
    mtf_pixel_size: float = 0.0
    ctf_premultiplied: bool = False


@dataclass
class Particles:
    """A set of n particles.

    Every property of COLUMNS is an array (n,): text as object arrays, angles in degrees, defoci and origins
    in Angstrom, `half_set` 1 or 2 (0 where not assigned), `class_number` from 1 (0 where not assigned).
    `optics_index` (int32) points into the list `optics`. `ctf_missing` names the column without which the CTF
    is not known ("" if none is missing). `path` is the file named in errors. `source` and `rows` are the
    table the particles were read from and their rows in it; they belong to `spa.io.particle_io`, which passes
    columns unknown here through. `assigned` names properties that are written even where they hold their
    default.
    """

    optics: list[OpticsGroup]
    optics_index: NDArray[np.int32]
    image_name: NDArray[Any]
    micrograph_name: NDArray[Any]
    group_name: NDArray[Any]
    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    defocus_angle: NDArray[np.float64]
    phase_shift: NDArray[np.float64]
    ctf_bfactor: NDArray[np.float64]
    ctf_scale: NDArray[np.float64]
    rot: NDArray[np.float64]
    tilt: NDArray[np.float64]
    psi: NDArray[np.float64]
    origin_x_angst: NDArray[np.float64]
    origin_y_angst: NDArray[np.float64]
    half_set: NDArray[np.int64]
    class_number: NDArray[np.int64]
    group_number: NDArray[np.int64]
    norm_correction: NDArray[np.float64]
    max_value_prob: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    nr_significant: NDArray[np.int64]
    ctf_missing: str = ""
    path: str = "particles"
    source: Any = None
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    assigned: set[str] = field(default_factory=set)

    @classmethod
    def create(
        cls,
        optics: Sequence[OpticsGroup],
        optics_index: ArrayLike,
        path: str = "particles",
        **columns: ArrayLike,
    ) -> Particles:
        """Particles from arrays; properties not given take their default (no `defocus_u`: no CTF).

        Raises
        ------
        ValueError
            A property that COLUMNS does not know, or arrays of different lengths.
        """
        index = np.asarray(optics_index, dtype=np.int32)
        n = len(index)
        missing = "" if "defocus_u" in columns else "rlnDefocusU"
        arrays: dict[str, Any] = {}
        for name, column in COLUMNS.items():
            given = columns.pop(name, None)
            arrays[name] = _array(column.default if given is None else given, column, n, name)
        if columns:
            raise ValueError(f"unknown properties of particles: {', '.join(columns)}")
        return cls(list(optics), index, path=path, ctf_missing=missing, **arrays)

    def __len__(self) -> int:
        return len(self.optics_index)

    @property
    def n(self) -> int:
        """Number of particles."""
        return len(self)

    @property
    def has_ctf(self) -> bool:
        """True where everything that the CTF depends on is known."""
        return not self.ctf_missing

    @property
    def pixel_size(self) -> float:
        """The pixel size in Angstrom that all particles share (InputError if they differ)."""
        return float(self._shared("pixel_size", "A"))

    @property
    def box_size(self) -> int:
        """The box in pixels that all particles share (InputError if they differ)."""
        return int(self._shared("box_size", "pixels"))

    def optics_values(self, name: str) -> NDArray[Any]:
        """A field of the optics group of each particle, shape (n,)."""
        return np.array([getattr(group, name) for group in self.optics])[self.optics_index]

    def subset(self, which: NDArray[Any]) -> Particles:
        """The particles `which` (a boolean mask or indices, in that order) with arrays of their own."""
        chosen = np.flatnonzero(which) if which.dtype == bool else np.asarray(which, dtype=np.int64)
        arrays = {name: getattr(self, name)[chosen] for name in (*COLUMNS, "optics_index")}
        rows = self.rows[chosen] if len(self.rows) else self.rows
        return replace(self, rows=rows, assigned=set(self.assigned), **arrays)

    def update(self, indices: NDArray[Any] | slice | None = None, **columns: ArrayLike) -> None:
        """Set properties of the particles `indices` (all if None), to be written even at their default."""
        for name, values in columns.items():
            getattr(self, name)[slice(None) if indices is None else indices] = values
            self.assigned.add(name)

    def assign_half_sets(self, seed: int) -> None:
        """Put the images at random, in equal numbers, into half sets 1 and 2; keep an assignment that is complete.

        Raises
        ------
        InputError
            If some particles have a half set and others do not, or one is neither 1 nor 2.
        """
        if np.isin(self.half_set, (1, 2)).all() and len(self):
            return
        if self.half_set.any():
            row = int(np.flatnonzero(~np.isin(self.half_set, (1, 2)))[0])
            raise InputError(
                f"{self.path}: data_particles, row {row + 1}, column rlnRandomSubset: expected 1 or 2, "
                f"found {self.half_set[row]}"
            )
        images = self.image_numbers()
        halves = np.arange(int(images.max(initial=-1)) + 1) % 2 + 1
        self.update(half_set=np.random.default_rng(seed).permutation(halves)[images])

    def image_numbers(self) -> NDArray[np.int64]:
        """Number (n,) of the image of each particle: the row, but where images stand in several rows, as after
        `spa expand`, one number for all of an image."""
        names, numbers = np.unique(self.image_name.astype(str), return_inverse=True)
        if len(names) == len(self) or "" in names:
            return np.arange(len(self))
        return np.asarray(numbers, dtype=np.int64)

    def groups(self) -> tuple[list[str], NDArray[np.int32]]:
        """Names of the groups whose intensity scale is refined, and the group index (n,) of each particle.

        A group is a group name where there are any, else a micrograph; in order of first appearance.
        """
        names = self.group_name if np.any(self.group_name != "") else self.micrograph_name
        order: dict[str, int] = {}
        index = np.array([order.setdefault(name, len(order)) for name in names], dtype=np.int32)
        return list(order), index

    def ctf_coefficients(self, box_size: int | None = None) -> NDArray[np.float32]:
        """Coefficients (n, 9) of the particles' CTFs for `spa.kernels.ctf.evaluate_ctf`, in their own or
        another box.

        Raises
        ------
        InputError
            If the particles have no CTF parameters, or images that were multiplied by their CTF.
        """
        if self.ctf_missing:
            raise InputError(f"{self.path}: no column {self.ctf_missing}, which the CTF correction needs")
        for group in self.optics:
            if group.ctf_premultiplied:
                raise InputError(f"{self.path}: data_optics, group {group.number}: images multiplied by their CTF")
        return ctf.coefficients(
            self.defocus_u,
            self.defocus_v,
            self.defocus_angle,
            self.optics_values("voltage"),
            self.optics_values("cs"),
            self.optics_values("q0"),
            self.phase_shift,
            self.ctf_bfactor,
            self.ctf_scale,
            self.optics_values("pixel_size"),
            box_size or self.box_size,
        )

    def aberrations(self) -> list[Aberrations]:
        """Beam tilt, higher aberrations and magnification of each of `optics`, from the file the particles come from.

        None for particles that were not read from a file. Raises InputError as `read_aberrations`.
        """
        if self.source is None:
            return [Aberrations()] * len(self.optics)
        cs, voltage = np.array([(group.cs, group.voltage) for group in self.optics]).T
        return read_aberrations(self.source["optics"], cs, ctf.wavelength(voltage))

    def _shared(self, name: str, unit: str) -> float:
        used = [self.optics[i] for i in np.unique(self.optics_index)] or self.optics
        for group in used[1:]:
            first = getattr(used[0], name)
            if abs(getattr(group, name) - first) > 1e-3 * first:
                raise InputError(
                    f"{self.path}: data_optics: expected one {name.replace('_', ' ')} for all particles, "
                    f"found "
                    f"{first:g} {unit} (group {used[0].number}) and {getattr(group, name):g} {unit} (group "
                    f"{group.number})"
                )
        return float(getattr(used[0], name))


def _array(values: ArrayLike, column: Column, n: int, name: str) -> NDArray[Any]:
    """An array (n,) of the column's type from an array or one value for all."""
    array: NDArray[Any] = np.empty(n, dtype=column.dtype)
    given = np.asarray(values)
    if given.ndim and given.shape != (n,):
        raise ValueError(f"{name}: shape {given.shape}, expected ({n},)")
    array[:] = given.tolist() if column.dtype is object else given
    return array
