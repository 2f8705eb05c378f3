"""Point groups in RELION's settings: rotation operators and asymmetric units of directions."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from spa.errors import InputError
from spa.healpix import n_pixels, pix2vec

Matrices = NDArray[np.float64]
Axis = tuple[float, float, float]

_GOLDEN = (1 + np.sqrt(5)) / 2
_Z: Axis = (0, 0, 1)
# fold and axis of the generators; I1 is I2 turned by 90 degrees about z, I3 and I4 have a fivefold axis
# along z
_GENERATORS: dict[str, list[tuple[int, Axis]]] = {
    "T": [(3, _Z), (2, (0, np.sqrt(2), 1))],
    "O": [(3, (1, 1, 1)), (4, _Z)],
    "I1": [(2, (1, 0, 0)), (5, (_GOLDEN, 0, -1)), (3, (_GOLDEN + 1, 1, 0))],
    "I2": [(2, _Z), (5, (1, 0, _GOLDEN)), (3, (0, 1, _GOLDEN + 1))],
    "I3": [(2, (-1, 0, _GOLDEN)), (5, _Z)],
    "I4": [(2, (1, 0, _GOLDEN)), (5, _Z)],
}


def _generators(group: str) -> list[tuple[int, Axis]]:
    name = group.strip().upper()
    name = "I2" if name == "I" else name
    if name in _GENERATORS:
        return _GENERATORS[name]
    match = re.fullmatch(r"([CD])([1-9]\d{0,2})", name)
    if match is None:
        raise InputError(f"symmetry group '{group}': expected Cn, Dn, T, O, I, I1, I2, I3 or I4")
    axes: list[tuple[int, Axis]] = [(int(match[2]), _Z)]
    return axes if match[1] == "C" else [*axes, (2, (1, 0, 0))]


@lru_cache(maxsize=16)
def operators(group: str) -> Matrices:
    """Rotation matrices of a point group, float64 (n, 3, 3), the identity first; read-only.

    A map with the symmetry obeys V(x) = V(h x), and A @ h is the same view as A, for every operator h.
    Raises InputError for an unknown group.

    Notes: axes as in RELION 3.1 and later, which follow Heymann et al. 2005, J Struct Biol 151:196, for I1
    to I4.
    """
    found = np.eye(3)[None]
    generators = [_rotation(fold, axis) for fold, axis in _generators(group)]
    grown = True
    while grown:
        products = np.concatenate([found] + [found @ g for g in generators])
        _, first = np.unique(np.rint(products.reshape(-1, 9) * 1e4), axis=0, return_index=True)
        grown, found = len(first) > len(found), products[np.sort(first)]
    found = _clean(found)
    found.setflags(write=False)
    return found


def _rotation(fold: int, axis: Axis) -> Matrices:
    unit = np.asarray(axis) / np.linalg.norm(axis)
    return np.asarray(Rotation.from_rotvec(unit * (2 * np.pi / fold)).as_matrix())


def _clean(matrices: Matrices) -> Matrices:
    """Replace entries within rounding of 0, 1/2 and 1 by these values, so that signed permutations are
    exact."""
    halves = np.rint(matrices * 2) / 2
    return np.where(np.abs(matrices - halves) < 1e-9, halves, matrices) + 0.0


@lru_cache(maxsize=16)
def _cell_planes(packed: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of a Dirichlet cell, the HEALPix direction farthest from its own images, and its unit plane
    normals."""
    group = np.frombuffer(packed).reshape(-1, 3, 3)
    candidates = pix2vec(3, np.arange(n_pixels(3)))
    images = np.einsum("hij,nj->hni", group[1:], candidates)
    closest = np.min(np.linalg.norm(images - candidates, axis=-1), axis=0, initial=2)
    centre = candidates[np.argmax(np.round(closest, 9))]
    normals = group[1:] @ centre - centre
    return centre, normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def asymmetric_unit(directions: ArrayLike, group_operators: ArrayLike, margin_deg: float = 0.0) -> NDArray[np.bool_]:
    """Mask (n,) of the unit directions (n, 3) inside the group's asymmetric unit, widened by a margin in
    degrees.

    The unit is the Dirichlet cell of one direction v0, {v: v.(h v0 - v0) <= 0 for every operator h},
    compact and bounded by great circles; the images of the cell under the group cover the sphere once.
    """
    v = np.asarray(directions, dtype=np.float64)
    group = np.ascontiguousarray(group_operators, dtype=np.float64)
    _, normals = _cell_planes(group.tobytes())
    return np.asarray(np.all(v @ normals.T <= np.sin(np.radians(margin_deg)) + 1e-12, axis=-1))
