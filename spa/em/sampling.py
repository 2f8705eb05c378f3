"""Orientations and shifts as a tree of grids, and ragged lists of candidates on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from spa import healpix
from spa.kernels.backend import Array, xp_of

_ORIENTATIONS = 2**36
"""More than any level has, for all classes together."""


@dataclass(frozen=True)
class Level:
    """One grid of the descent: HEALPix directions x in-plane angles x a square grid of shifts.

    Attributes
    ----------
    order : HEALPix order; direction d has the children 4d ... 4d+3 at order + 1 (nested scheme). Levels of 2D
        references have one direction and halve the in-plane step alone.
    n_psi : number of in-plane angles; angle s has the children 2s and 2s+1.
    offset_step : shift step in pixels; `n_offsets` grid points along each axis, centred on zero.
    kmax : Fourier radius (pixels) up to which this level scores.
    frames : (n_directions, 3, 3) Euler matrices of psi = 0, rows e1, e2, e3, float64.
    psi_origin : in-plane angle (radians) of the lower edge of the first cell.

    Notes
    -----
    An orientation is the integer (class * n_directions + direction) * n_psi + psi; a shift is the integer
    ix * n_offsets + iy. Children lie at a quarter of the parent's step on either side of it.
    """

    order: int
    n_psi: int
    offset_step: float
    n_offsets: int
    kmax: int
    frames: np.ndarray[Any, Any]
    psi_origin: float

    @property
    def n_directions(self) -> int:
        """Number of directions of the grid."""
        return len(self.frames)

    @property
    def angular_step(self) -> float:
        """In-plane step in degrees, the same as the spacing of the directions."""
        return 360.0 / self.n_psi

    def psi(self, index: Array) -> Array:
        """In-plane angles (radians) of cell centres."""
        return (index + 0.5) * (2 * np.pi / self.n_psi) + self.psi_origin

    def offsets(self) -> np.ndarray[Any, Any]:
        """Shifts (x, y) in pixels of the square grid, float32 (n_offsets**2, 2)."""
        line = (np.arange(self.n_offsets) - (self.n_offsets - 1) / 2) * self.offset_step
        x, y = np.meshgrid(line, line, indexing="ij")
        return np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)

    def classes(self, orientation: Array) -> Array:
        """Class numbers (int32) of orientations."""
        return (orientation // (self.n_directions * self.n_psi)).astype(np.int32)

    def rotations(self, orientation: Array) -> Array:
        """Euler matrices of orientations, float32 (n, 3, 3), on the device of `orientation`."""
        xp = xp_of(orientation)
        frames = xp.asarray(self.frames)[(orientation // self.n_psi) % self.n_directions]
        psi = self.psi(orientation % self.n_psi)[:, None]
        c, s = xp.cos(psi), xp.sin(psi)
        rows = [c * frames[:, 0] + s * frames[:, 1], c * frames[:, 1] - s * frames[:, 0], frames[:, 2]]
        return xp.stack(rows, 1).astype(np.float32)


def make_level(
    order: int,
    offset_step: float,
    n_offsets: int,
    kmax: int,
    perturbation: np.ndarray[Any, Any],
    base_order: int,
) -> Level:
    """Make the grid of one level.

    Parameters
    ----------
    perturbation : (3, 3) rotation applied to the whole sphere of directions, the same for all levels of
        an iteration, so that no direction is favoured over the run.
    base_order : order of the coarsest level; its first in-plane angle is zero.
    """
    frames = healpix.frames(order) @ perturbation
    return Level(
        order=order,
        n_psi=6 * 2**order,
        offset_step=offset_step,
        n_offsets=n_offsets,
        kmax=kmax,
        frames=frames,
        psi_origin=-np.pi / (6 * 2**base_order),
    )


def make_flat_level(n_psi: int, offset_step: float, n_offsets: int, kmax: int, psi_origin: float) -> Level:
    """Make the grid of one level of 2D references, for which a class is a direction: only in-plane angles and shifts.

    n_psi : an even number.
    """
    return Level(0, n_psi, offset_step, n_offsets, kmax, np.eye(3)[None], psi_origin)


def make_own_poses(rotations: np.ndarray[Any, Any], kmax: int) -> Level:
    """A level whose direction i is the pose of particle i, (n, 3, 3), with no other in-plane angle and no shift."""
    return Level(0, 1, 1.0, 1, kmax, rotations, -np.pi)


def own_poses(indices: np.ndarray[Any, Any], level: Level, n_classes: int) -> Candidates:
    """The candidates of `make_own_poses` for particles: their own pose, in every class."""
    n = len(indices)
    return Candidates(
        np.arange(n + 1, dtype=np.int64) * n_classes,
        (indices[:, None] + np.arange(n_classes, dtype=np.int64) * level.n_directions).ravel(),
        np.arange(n * n_classes + 1, dtype=np.int64),
        np.zeros(n * n_classes, np.int32),
    )


@dataclass(frozen=True)
class Candidates:
    """Ragged list image -> orientations -> shifts.

    Attributes
    ----------
    image_offsets : int64 (n_images + 1,), groups of image i are image_offsets[i] to image_offsets[i+1].
    orientation : int64 (n_groups,), one group is one orientation of one image.
    group_offsets : int64 (n_groups + 1,) into `shift`.
    shift : int32 (n_candidates,) shift index on the level's grid.
    """

    image_offsets: Array
    orientation: Array
    group_offsets: Array
    shift: Array

    @property
    def candidate_offsets(self) -> Array:
        """Offsets of each image's candidates, int64 (n_images + 1,)."""
        return self.group_offsets[self.image_offsets]


def segment_index(offsets: Array, n: int) -> Array:
    """Number of the segment that each of `n` elements belongs to; `offsets` has one entry more than segments."""
    xp = xp_of(offsets)
    if len(offsets) == 2:  # CuPy's bincount refuses an empty array
        return xp.zeros(n, np.int64)
    return xp.cumsum(xp.bincount(offsets[1:-1], minlength=n + 1)[:n])


def children(parents: Candidates, parent: Level, child: Level) -> Candidates:
    """The candidates of the next finer level: 8 orientations per parent (2 of a 2D reference), and 4 shifts where the
    step halves."""
    xp = xp_of(parents.orientation)
    refine = child.n_offsets == 2 * parent.n_offsets
    direction, psi = parents.orientation // parent.n_psi, parents.orientation % parent.n_psi
    per_direction = child.n_directions // parent.n_directions
    per_group = 2 * per_direction
    part = xp.arange(per_group, dtype=np.int64)
    finer = per_direction * direction[:, None] + part // 2
    orientation = (finer * child.n_psi + 2 * psi[:, None] + part % 2).ravel()
    if refine:
        ix, iy = parents.shift // parent.n_offsets, parents.shift % parent.n_offsets
        corner = xp.arange(4, dtype=np.int32)
        shift = ((2 * ix[:, None] + corner // 2) * child.n_offsets + 2 * iy[:, None] + corner % 2).ravel()
    else:
        shift = parents.shift
    per_shift = 4 if refine else 1
    counts = xp.diff(parents.group_offsets) * per_shift
    group_counts = xp.broadcast_to(counts[:, None], (len(counts), per_group)).ravel()
    group_offsets = _offsets(group_counts)
    n = int(group_offsets[-1])
    group = segment_index(group_offsets, n)
    source = parents.group_offsets[group // per_group] * per_shift + xp.arange(n, dtype=np.int64) - group_offsets[group]
    return Candidates(parents.image_offsets * per_group, orientation, group_offsets, shift[source].astype(np.int32))


def keep(candidates: Candidates, mask: Array) -> Candidates:
    """The candidates where `mask` is true; orientations without any are dropped."""
    cumulative = _offsets(mask)
    counts = xp_of(mask).diff(cumulative[candidates.group_offsets])
    alive = counts > 0
    alive_before = _offsets(alive)
    return Candidates(
        alive_before[candidates.image_offsets],
        candidates.orientation[alive],
        _offsets(counts[alive]),
        candidates.shift[mask],
    )


def united(first: Candidates, second: Candidates, level: Level) -> Candidates:
    """The candidates of a level that are in either of two lists for the same images, each once."""
    xp = xp_of(first.orientation)
    n_shifts, codes = level.n_offsets**2, []
    for part in (first, second):
        group = segment_index(part.group_offsets, len(part.shift))
        image = segment_index(part.image_offsets, len(part.orientation))
        codes.append((image * _ORIENTATIONS + part.orientation)[group] * n_shifts + part.shift)
    merged = xp.unique(xp.concatenate(codes))
    owner = merged // n_shifts
    start = xp.nonzero(xp.concatenate([xp.ones(min(1, len(owner)), bool), owner[1:] != owner[:-1]]))[0]
    images = xp.arange(len(first.image_offsets), dtype=np.int64)
    return Candidates(
        xp.searchsorted(owner[start], images * _ORIENTATIONS).astype(np.int64),
        owner[start] % _ORIENTATIONS,
        xp.concatenate([start, xp.asarray([len(merged)])]).astype(np.int64),
        (merged % n_shifts).astype(np.int32),
    )


def from_dense(flat: Array, orientations: Array, n_images: int, shifts: Array) -> Candidates:
    """Candidates from sorted flat indices into a dense (n_images, n_orientations, n_shifts) array."""
    xp = xp_of(flat)
    n_shifts, n_orientations = len(shifts), len(orientations)
    group = flat // n_shifts
    first = xp.concatenate([xp.ones(min(1, len(group)), bool), group[1:] != group[:-1]])
    start = xp.nonzero(first)[0]
    groups = group[start]
    image_offsets = xp.searchsorted(groups // n_orientations, xp.arange(n_images + 1, dtype=np.int64))
    group_offsets = xp.concatenate([start, xp.asarray([len(flat)])]).astype(np.int64)
    return Candidates(
        image_offsets.astype(np.int64),
        orientations[groups % n_orientations],
        group_offsets,
        shifts[flat % n_shifts].astype(np.int32),
    )


def nearest_directions(
    level: Level, rotations: np.ndarray[Any, Any], n_directions: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The directions nearest to poses, (n, n_directions) or all there are, each row ascending."""
    n_directions = min(n_directions, level.n_directions)
    _, near = cKDTree(level.frames[:, 2]).query(rotations[:, 2], k=n_directions)
    return np.sort(near.reshape(len(rotations), n_directions), 1)


def neighbourhood(
    level: Level,
    rotations: np.ndarray[Any, Any],
    n_directions: int,
    psi_radius: int,
    offset_radius: int,
    n_classes: int = 1,
) -> Candidates:
    """Candidates around known poses: in every class the nearest directions x in-plane angles x a disc of shifts.

    Parameters
    ----------
    rotations : (n, 3, 3) Euler matrices of the poses; shifts are relative to each image's own.
    """
    n = len(rotations)
    near = nearest_directions(level, rotations, n_directions)
    n_directions = near.shape[1]
    e1, e2 = level.frames[near, 0], level.frames[near, 1]
    sine = np.einsum("ndj,nj->nd", e2, rotations[:, 0]) - np.einsum("ndj,nj->nd", e1, rotations[:, 1])
    cosine = np.einsum("ndj,nj->nd", e1, rotations[:, 0]) + np.einsum("ndj,nj->nd", e2, rotations[:, 1])
    step = 2 * np.pi / level.n_psi
    nearest = np.rint((np.arctan2(sine, cosine) - level.psi_origin) / step - 0.5).astype(np.int64)
    window = np.arange(-psi_radius, psi_radius + 1)
    psi = (nearest[..., None] + window) % level.n_psi
    one_class = near[..., None].astype(np.int64) * level.n_psi + psi
    classes = np.arange(n_classes, dtype=np.int64)[:, None, None] * (level.n_directions * level.n_psi)
    orientation = (one_class[:, None] + classes).ravel()
    x, y = level.offsets().T / level.offset_step
    disc = np.nonzero(x**2 + y**2 <= offset_radius**2 + 1e-6)[0].astype(np.int32)
    per_image = n_classes * n_directions * len(window)
    return Candidates(
        np.arange(n + 1, dtype=np.int64) * per_image,
        orientation,
        np.arange(n * per_image + 1, dtype=np.int64) * len(disc),
        np.tile(disc, n * per_image),
    )


def image_slice(candidates: Candidates, start: int, stop: int) -> Candidates:
    """The candidates of images start to stop."""
    g0, g1 = int(candidates.image_offsets[start]), int(candidates.image_offsets[stop])
    c0, c1 = int(candidates.group_offsets[g0]), int(candidates.group_offsets[g1])
    return Candidates(
        candidates.image_offsets[start : stop + 1] - g0,
        candidates.orientation[g0:g1],
        candidates.group_offsets[g0 : g1 + 1] - c0,
        candidates.shift[c0:c1],
    )


def _offsets(counts: Array) -> Array:
    xp = xp_of(counts)
    return xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(counts, dtype=np.int64)])
