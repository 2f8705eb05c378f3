"""The poses that a cryoSPARC .cs table holds, of one refinement, of several 3D classes or of 2D classes.

Notes
-----
A pose is the rotation vector, in radians, of the matrix that turns the image's axes into the object's: the transpose of
RELION's Euler matrix. In 2D it is an angle about z. A shift has the sign of rlnOriginX and is in pixels of `psize_A`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from spa.io.cryosparc import Table

Floats = NDArray[np.float64]

_CLASS = "alignments_class_"


@dataclass
class Alignment:
    """Poses of n particles: RELION's matrices (n, 3, 3), shifts (n, 2) in Å, class from 1, half, probability."""

    slot: str
    poses: Floats
    shifts: Floats
    class_number: NDArray[np.int64] | None
    split: NDArray[np.int64] | None
    posterior: Floats | None


def alignment(table: Table) -> Alignment | None:
    """The poses of a table: of its refinement, else of the likeliest 3D class, else of the 2D classes; None if none."""
    classes = _class_slots(table)
    if "alignments3D/pose" in table:
        return _one(table, "alignments3D")
    if "alignments3D_multi/pose" in table:
        return _most_probable_of_arrays(table, "alignments3D_multi")
    if classes:
        return _most_probable(table, classes)
    return _one(table, "alignments2D") if "alignments2D/pose" in table else None


def _class_slots(table: Table) -> list[str]:
    """The slots alignments_class_0, 1, ... that hold poses, by number."""
    ends = [name.removeprefix(_CLASS).removesuffix("/pose") for name in table.fields if name.startswith(_CLASS)]
    return [f"{_CLASS}{number}" for number in sorted(int(end) for end in ends if end.isdigit())]


def _one(table: Table, slot: str) -> Alignment:
    vectors = table.floats(f"{slot}/pose", 3) if slot != "alignments2D" else _about_z(table.floats(f"{slot}/pose"))
    sizes = table.floats(f"{slot}/psize_A" if f"{slot}/psize_A" in table else "blob/psize_A")
    return Alignment(
        slot,
        matrices(vectors),
        table.floats(f"{slot}/shift", 2) * sizes[:, None],
        table.integers(f"{slot}/class") + 1 if f"{slot}/class" in table else None,
        table.integers(f"{slot}/split") if f"{slot}/split" in table else None,
        table.floats(f"{slot}/class_posterior") if f"{slot}/class_posterior" in table else None,
    )


def _most_probable(table: Table, slots: list[str]) -> Alignment:
    """Of one slot per class, that with the highest posterior."""
    posteriors = np.stack([table.floats(f"{slot}/class_posterior") for slot in slots], axis=1)
    best = posteriors.argmax(axis=1)
    rows = np.arange(len(table))
    each = [_one(table, slot) for slot in slots]
    split = each[0].split
    numbers = np.array([int(slot.removeprefix(_CLASS)) for slot in slots])
    poses, shifts = (np.stack(parts)[best, rows] for parts in ([e.poses for e in each], [e.shifts for e in each]))
    return Alignment(slots[0], poses, shifts, numbers[best] + 1, split, posteriors[rows, best])


def _most_probable_of_arrays(table: Table, slot: str) -> Alignment:
    """Of one slot that holds all classes (cryoSPARC 4.5 and later), that with the highest posterior."""
    count = int(np.prod(table.rows.dtype[f"{slot}/class_posterior"].shape)) if f"{slot}/class_posterior" in table else 0
    posteriors = table.floats(f"{slot}/class_posterior", count)
    best, rows = posteriors.argmax(axis=1), np.arange(len(table))
    own = f"{slot}/psize_A"
    each = own in table and table.rows.dtype[own].shape != ()
    sizes = table.floats(own, count)[rows, best] if each else table.floats(own if own in table else "blob/psize_A")
    return Alignment(
        slot,
        matrices(table.floats(f"{slot}/pose", count, 3)[rows, best]),
        table.floats(f"{slot}/shift", count, 2)[rows, best] * sizes[:, None],
        best.astype(np.int64) + 1,
        table.integers(f"{slot}/split") if f"{slot}/split" in table else None,
        posteriors[rows, best],
    )


def _about_z(angles: Floats) -> Floats:
    return np.stack([np.zeros_like(angles), np.zeros_like(angles), angles], axis=1)


def matrices(vectors: Floats) -> Floats:
    """RELION's Euler matrices (n, 3, 3) of cryoSPARC's rotation vectors (n, 3) in radians."""
    return np.asarray(Rotation.from_rotvec(vectors).as_matrix().swapaxes(-1, -2), dtype=np.float64)


def vectors(matrices: Floats) -> Floats:
    """cryoSPARC's rotation vectors (n, 3) in radians of RELION's Euler matrices (n, 3, 3)."""
    return np.asarray(Rotation.from_matrix(matrices.swapaxes(-1, -2)).as_rotvec(), dtype=np.float64)
