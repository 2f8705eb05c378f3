"""The search: dense or local start, then the children of what survives, down to the last level's posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from spa.em.costs import steerable_pays
from spa.em.expectation import Reference, Scores, Step, log_weights, score_slices
from spa.em.sampling import (
    Candidates,
    Level,
    children,
    from_dense,
    keep,
    make_level,
    nearest_directions,
    neighbourhood,
    own_poses,
    segment_index,
    united,
)
from spa.em.settings import Search
from spa.em.state import Batch
from spa.em.steerable import BASIS_ORDER, Basis, Rings, make_basis, make_rings
from spa.em.tables import DensePass, DirectionTable, ring_slices
from spa.kernels.backend import Array, to_host, to_like, xp_of
from spa.kernels.posterior import posterior


class Descent:
    """The search of one half set in one iteration.

    Parameters
    ----------
    memory : bytes that the working arrays of one batch may take.
    table_memory : bytes that the tables of all levels may take.
    rotations : (n, 3, 3) last poses of all images that will be searched; their number tells whether a table pays.
    stretch : how much further out than its pixels an image may sample a slice (see `Preparer.stretch`).
    norm_orders : angular orders that the CTFs of the images ask for (see `Preparer.norm_orders`).

    Notes
    -----
    The first batch makes the tables, level by level, from what it asks for; from then on batches may be run from
    several threads.
    """

    def __init__(
        self,
        reference: Reference,
        step: Step,
        search: Search,
        memory: int,
        table_memory: int,
        rotations: np.ndarray[Any, Any],
        stretch: float = 1.0,
        norm_orders: int = 0,
    ) -> None:
        self.reference = reference
        self.step = step
        self.search = search
        self.memory = memory
        self._n_classes = len(reference.transform)
        self._seeded = step.known and not step.local
        rescue = search.rescue_cap if step.poses_only else None
        self._dense_cap, self._level_cap = rescue or search.dense_cap, rescue or search.level_cap
        self._stretch = stretch
        self._norm_orders = max(norm_orders, search.precision.norm_orders)
        self._table_memory = table_memory
        self._rotations = rotations
        self._tables: dict[int, DirectionTable | None] = {}
        self._bases: dict[tuple[int, float], Basis] = {}
        self._dense: DensePass | None = None

    def run(self, batch: Batch, rotations: np.ndarray[Any, Any]) -> Scores:
        """Posterior over the last level for a batch; `rotations` are the last poses (used when local).

        The first batch decides, level by level, how those to come are scored.
        """
        levels, search = self.step.levels, self.search
        scored = 0
        if self.step.local:
            survivors = _to_device(self._local_start(batch, rotations), batch.scored)
            first = 0
        else:
            survivors = self._dense_survivors(batch)
            scored += len(batch) * len(self.step.dense_orientations) * len(self.step.dense_shifts)
            first = 1
        for depth in range(first, len(levels)):
            level = levels[depth]
            if depth > 0:
                if self._seeded and depth == len(levels) - 1:
                    around = _to_device(self._around(depth - 1, rotations), batch.scored)
                    survivors = united(survivors, around, levels[depth - 1])
                survivors = children(survivors, levels[depth - 1], level)
            log_weight = self._score(depth, batch, survivors, rotations)
            scored += len(log_weight)
            if depth == len(levels) - 1:
                break
            best = posterior(log_weight, survivors.candidate_offsets, search.mass, 1.0, 0).best
            image = segment_index(survivors.candidate_offsets, len(log_weight))
            tempered = log_weight * self._temperature(log_weight[best], depth, batch.pixels.box_size)[image]
            chosen = posterior(tempered, survivors.candidate_offsets, search.mass, 1.0, self._level_cap)
            survivors = keep(survivors, tempered >= chosen.threshold[image])
        final = posterior(log_weight, survivors.candidate_offsets, search.insertion_mass, 1.0, search.insertion_cap)
        return Scores(levels[-1], survivors, log_weight, final, scored)

    def _score(self, depth: int, batch: Batch, candidates: Candidates, rotations: np.ndarray[Any, Any]) -> Array:
        """Log weights of candidates at a level, from its table where it has one, otherwise from slices."""
        level = self.step.levels[depth]
        if depth not in self._tables:
            self._tables[depth] = self._table(depth, batch, candidates)
        table = self._tables[depth]
        offsets = to_like(level.offsets(), batch.scored)
        if table is None:
            cross, norm = score_slices(batch, self.reference, level, candidates, offsets, self.memory)
        else:
            cross, norm = table.score(batch, candidates, offsets, self.memory)
        prior = to_like(rotations.astype(np.float32), batch.scored) if self.step.angle_sigma > 0 else None
        return log_weights(batch, self.reference, level, candidates, self.step, cross, norm, prior)

    def _table(self, depth: int, batch: Batch, candidates: Candidates) -> DirectionTable | None:
        """The table of a level, where it fits into memory and costs less than slices would."""
        level = self.step.levels[depth]
        if self.step.own_poses:
            return None
        rings = self._rings(level.kmax, batch.pixels.box_size)
        directions = self._directions(level)
        share = len(self._rotations) / len(batch)
        if not steerable_pays(rings, level, len(directions), candidates, share, self.reference.transform.shape[-1]):
            return None
        basis = self._basis(depth, batch)
        needed = DirectionTable.size(len(directions), basis)
        if needed > self._table_memory:
            return None
        self._table_memory -= needed
        return DirectionTable(self.reference, level, directions, basis, batch.magnification)

    def _directions(self, level: Level) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The directions of a level that the search can come to: those below the first level's and near known poses."""
        first, search = self.step.levels[0], self.search
        if self.step.local:
            return self._below(first, self._near(first, search.local_directions), level)
        found = self._below(first, np.unique(self.step.dense_orientations // first.n_psi), level)
        if not self._seeded or level is not self.step.levels[-1]:
            return found
        parent = self.step.levels[-2]
        return np.union1d(found, self._below(parent, self._near(parent, search.known_directions), level))

    def _near(self, level: Level, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The directions of a level, of every class, that are nearest to the last poses."""
        near = np.unique(nearest_directions(level, self._rotations, count))
        return np.asarray((np.arange(self._n_classes)[:, None] * level.n_directions + near).ravel(), dtype=np.int64)

    @staticmethod
    def _below(parent: Level, directions: np.ndarray[Any, Any], level: Level) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The descendants at a level of directions of a coarser one."""
        ratio = level.n_directions // parent.n_directions
        return np.asarray((directions[:, None] * ratio + np.arange(ratio)).ravel(), dtype=np.int64)

    def _rings(self, kmax: int, box: int) -> Rings:
        precision = replace(self.search.precision, norm_orders=self._norm_orders)
        return make_rings(box, kmax, self.reference.radius, precision, self._stretch)

    def _basis(self, depth: int, batch: Batch) -> Basis:
        """The basis of a level; levels with the same kmax and tolerance share theirs."""
        kmax, last = self.step.levels[depth].kmax, len(self.step.levels) - 1
        tolerance = self.search.precision.tolerance if depth == last else self.search.coarse_tolerance
        if (kmax, tolerance) not in self._bases:
            rings = self._rings(kmax, batch.pixels.box_size)
            flat = self.reference.transform.ndim == 3
            level = self.step.levels[0] if flat else make_level(BASIS_ORDER, 1.0, 1, kmax, np.eye(3), BASIS_ORDER)
            directions = to_like(np.arange(self._n_classes * level.n_directions), batch.scored)
            sample = ring_slices(self.reference, level, directions, rings)
            mean_weight = to_host(batch.weighted(kmax)[1].mean(0)).astype(np.float64)
            n = len(mean_weight)
            x, y = to_host(batch.slice_x[:n]), to_host(batch.slice_y[:n])
            share = self.search.unscaled_share if self.step.fit_scale else 1.0
            self._bases[kmax, tolerance] = make_basis(rings, x, y, sample, mean_weight, tolerance, share)
        return self._bases[kmax, tolerance]

    def _temperature(self, best: Array, depth: int, box: int) -> Array:
        """Exponent per image, float32, that lets survive what the coarseness of a level may have put too low."""
        search, level = self.search, self.step.levels[depth]
        coarseness = min(1.0, level.kmax / search.resolved_kmax(level.angular_step, self.reference.radius, box))
        coldest = 1 - coarseness * (1 - search.temperature) if depth <= 1 else 1.0
        allowance = coarseness * search.coarse_error * xp_of(best).maximum(best, 1)
        return xp_of(best).minimum(coldest, -np.log(1 - search.mass) / allowance).astype(np.float32)

    def _local_start(self, batch: Batch, rotations: np.ndarray[Any, Any]) -> Candidates:
        if self.step.own_poses:
            return own_poses(batch.indices, self.step.levels[0], self._n_classes)
        s = self.search
        reach = s.local_directions, s.local_psi, s.local_offset_radius
        return neighbourhood(self.step.levels[0], rotations, *reach, self._n_classes)

    def _around(self, depth: int, rotations: np.ndarray[Any, Any]) -> Candidates:
        s = self.search
        few = self.step.poses_only or self._n_classes > 1
        directions, psi = s.foothold if few else (s.known_directions, s.known_psi)
        reach = directions, psi, s.known_offset_radius
        return neighbourhood(self.step.levels[depth], rotations, *reach, self._n_classes)

    def _dense_survivors(self, batch: Batch) -> Candidates:
        """Score every orientation and shift of the first level and keep what a finer level may still choose."""
        xp = xp_of(batch.scored)
        step, search = self.step, self.search
        level = step.levels[0]
        if self._dense is None:
            table = DirectionTable(
                self.reference,
                level,
                self._directions(level),
                self._basis(0, batch),
                batch.magnification,
            )
            self._dense = DensePass(table, self.reference)
            self._table_memory -= DirectionTable.size(len(table.directions), table.basis)
        per_image = len(step.dense_orientations) * len(step.dense_shifts)
        found = self._dense.run(batch, step, min(self._dense_cap or per_image, per_image))
        width = int(found.counts.max())
        used = xp.arange(width) < found.counts[:, None]
        values, codes = found.values[:, :width][used], found.codes[:, :width][used].astype(np.int64)
        ends = xp.concatenate([xp.zeros(1, np.int64), xp.cumsum(found.counts)])
        image = segment_index(ends, len(values))
        best = posterior(values, ends, search.mass, 1.0, 0).best
        tempered = values * self._temperature(values[best], 0, batch.pixels.box_size)[image]
        chosen = posterior(tempered, ends, search.mass, 1.0, self._dense_cap)
        kept = tempered >= chosen.threshold[image]
        flat = xp.sort(image[kept] * per_image + codes[kept])
        orientations = to_like(step.dense_orientations, batch.scored)
        return from_dense(flat, orientations, len(batch), to_like(step.dense_shifts, batch.scored))


def _to_device(candidates: Candidates, like: Array) -> Candidates:
    return Candidates(*(to_like(a, like) for a in (
        candidates.image_offsets, candidates.orientation, candidates.group_offsets, candidates.shift
    )))  # fmt: skip
