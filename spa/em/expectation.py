"""The expectation step: score candidates level by level and turn the last level into a posterior."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.em.sampling import (
    Candidates,
    Level,
    children,
    from_dense,
    image_slice,
    keep,
    neighbourhood,
    segment_index,
)
from spa.em.settings import Search
from spa.em.state import Batch
from spa.kernels.backend import Array, to_like, xp_of
from spa.kernels.posterior import Posterior, posterior
from spa.kernels.scoring import dense_scores, squared_difference
from spa.kernels.slices import extract_slices


@dataclass(frozen=True)
class Step:
    """What one iteration does: the levels of its descent and where the descent starts.

    Attributes
    ----------
    levels : coarse to fine; the last level's posterior feeds the maximisation step.
    local : start from the neighbourhood of the last pose instead of the whole sphere.
    dense_orientations : int64, orientations of the first level of a global search (asymmetric unit).
    dense_shifts : int32, shifts of that level (a disc).
    fit_scale : score by the likelihood maximised over the grey scale of the reference, image by image.
    offset_sigma : standard deviation (pixels) of the Gaussian prior on the shifts.
    kmax : Fourier radius of the maximisation step, pixels.
    score_kmax : Fourier radius beyond which no level looks, pixels.
    """

    levels: tuple[Level, ...]
    local: bool
    dense_orientations: np.ndarray[Any, np.dtype[np.int64]]
    dense_shifts: np.ndarray[Any, np.dtype[np.int32]]
    fit_scale: bool
    offset_sigma: float
    kmax: int
    score_kmax: int


@dataclass
class Reference:
    """References of one half set: padded half transforms (n_classes, m, m, R + 2) and class prior."""

    transform: Array
    padding: int
    log_pdf_class: Array


@dataclass
class Scores:
    """The last level of a descent: its candidates, their log weights and their posterior."""

    level: Level
    candidates: Candidates
    log_weight: Array
    posterior: Posterior
    scored: int


def log_likelihood(cross: Array, norm: Array, fit_scale: bool) -> Array:
    """Log-likelihood of candidates up to a constant per image.

    Parameters
    ----------
    cross, norm : Re(Y* P) and half W |P|^2, broadcast against each other.
    fit_scale : False gives cross - norm. True gives its maximum over a grey scale a >= 0 of the reference,
        cross^2 / (4 norm): the normalised cross-correlation, in units of the log-likelihood.
    """
    if not fit_scale:
        return cross - norm
    xp = xp_of(cross)
    return xp.maximum(cross, 0) ** 2 / xp.maximum(4 * norm, np.float32(1e-20))


def offset_log_prior(batch: Batch, offsets: Array, sigma: float) -> Array:
    """Gaussian log prior, float32 (n_images, n_shifts), of the whole shift of each image."""
    total = batch.origins[:, None] + offsets[None]
    return (-(total**2).sum(-1) / (2 * max(sigma, 0.5) ** 2)).astype(np.float32)


class SliceTable:
    """The slices of one level, each projected when it is first asked for and kept for the images to come.

    Parameters
    ----------
    n_orientations, n_pixels : size of the level's grid and of its slices.
    like : an array on the device that holds the table.
    """

    chunk = 4096

    def __init__(self, n_orientations: int, n_pixels: int, like: Array) -> None:
        xp = xp_of(like)
        self.slices = xp.empty((n_orientations, n_pixels), np.complex64)
        self.ready = xp.zeros(n_orientations, bool)

    @staticmethod
    def size(n_orientations: int, n_pixels: int) -> int:
        """Bytes of a table."""
        return 8 * n_orientations * n_pixels

    def fill(self, reference: Reference, level: Level, orientation: Array, kx: Array, ky: Array) -> None:
        """Project the orientations that are not in the table yet."""
        xp = xp_of(orientation)
        wanted = xp.zeros(len(self.ready), bool)
        wanted[orientation] = True
        missing = xp.nonzero(wanted & ~self.ready)[0]
        for start in range(0, len(missing), self.chunk):
            part = missing[start : start + self.chunk]
            self.slices[part] = project(reference, level, part, kx, ky)
        self.ready[missing] = True


def project(reference: Reference, level: Level, orientation: Array, kx: Array, ky: Array) -> Array:
    """Slices of orientations, complex64 (n, n_pixels)."""
    return extract_slices(
        reference.transform, level.classes(orientation), level.rotations(orientation), kx, ky, reference.padding
    )


def score(
    batch: Batch,
    reference: Reference,
    level: Level,
    candidates: Candidates,
    step: Step,
    memory: int,
    table: SliceTable | None = None,
) -> Array:
    """Log weights (log-likelihood + log priors), float32, of a ragged list of candidates.

    Parameters
    ----------
    memory : bytes that the slices held at one time may take; images are worked off in runs that fit.
    table : slices of the whole level, where that fits; otherwise an orientation that several images of a run
        ask for is projected once per run.
    """
    xp = xp_of(batch.scored)
    images, weights = batch.weighted(level.kmax)
    n = images.shape[1]
    kx, ky = batch.kx[:n], batch.ky[:n]
    offsets = to_like(level.offsets(), images)
    prior = offset_log_prior(batch, offsets, step.offset_sigma)
    result = xp.empty(len(candidates.shift), np.float32)
    for start, stop in itertools.pairwise(_runs(candidates.image_offsets, max(1, memory // (8 * n)))):
        part = image_slice(candidates, start, stop)
        if table is None:
            unique, slot = xp.unique(part.orientation, return_inverse=True)
            slices = project(reference, level, unique, kx, ky)
        else:
            table.fill(reference, level, part.orientation, kx, ky)
            slices, slot = table.slices, part.orientation
        cross, norm = squared_difference(
            images[start:stop],
            weights[start:stop],
            slices,
            kx,
            ky,
            offsets,
            part.image_offsets,
            slot.astype(np.int32),
            part.group_offsets,
            part.shift,
            batch.pixels.box_size,
        )
        group = segment_index(part.group_offsets, len(part.shift))
        image = start + segment_index(part.image_offsets, len(part.orientation))[group]
        log_weight = log_likelihood(cross, norm[group], step.fit_scale) + prior[image, part.shift]
        log_weight += reference.log_pdf_class[level.classes(part.orientation)][group]
        first = int(candidates.group_offsets[int(candidates.image_offsets[start])])
        result[first : first + len(log_weight)] = log_weight
    return result


class Descent:
    """The search of one half set in one iteration: dense or local start, then children of survivors."""

    def __init__(self, reference: Reference, step: Step, search: Search, memory: int, table_memory: int = 0) -> None:
        self.reference = reference
        self.step = step
        self.search = search
        self.memory = memory
        self._dense_slices: Array | None = None
        self._tables: dict[int, SliceTable] = {}
        self._table_memory = table_memory

    def run(self, batch: Batch, rotations: np.ndarray[Any, Any]) -> Scores:
        """Posterior over the last level for a batch; `rotations` are the last poses (used when local)."""
        levels, search = self.step.levels, self.search
        scored = 0
        if self.step.local:
            survivors = _to_device(self._local_start(rotations), batch.scored)
            first = 0
        else:
            survivors = self._dense_survivors(batch)
            scored += len(batch) * len(self.step.dense_orientations) * len(self.step.dense_shifts)
            first = 1
        for depth in range(first, len(levels)):
            level = levels[depth]
            if depth > 0:
                survivors = children(survivors, levels[depth - 1], level)
            table = self._table(depth, batch)
            log_weight = score(batch, self.reference, level, survivors, self.step, self.memory, table)
            scored += len(log_weight)
            if depth == len(levels) - 1:
                break
            best = posterior(log_weight, survivors.candidate_offsets, search.mass, 1.0, 0).best
            image = segment_index(survivors.candidate_offsets, len(log_weight))
            tempered = log_weight * self._temperature(log_weight[best], depth)[image]
            chosen = posterior(tempered, survivors.candidate_offsets, search.mass, 1.0, search.level_cap)
            survivors = keep(survivors, tempered >= chosen.threshold[image])
        final = posterior(log_weight, survivors.candidate_offsets, search.insertion_mass, 1.0, search.insertion_cap)
        return Scores(levels[-1], survivors, log_weight, final, scored)

    def _table(self, depth: int, batch: Batch) -> SliceTable | None:
        """The table of a level of a global search, made while the memory for tables lasts.

        A local search asks for each orientation too seldom for a table to pay.
        """
        if self.step.local:
            return None
        if depth not in self._tables:
            level = self.step.levels[depth]
            n_orientations = len(self.reference.transform) * level.n_directions * level.n_psi
            n_pixels = batch.pixels.prefix(level.kmax)
            needed = SliceTable.size(n_orientations, n_pixels)
            if needed > self._table_memory:
                return None
            self._table_memory -= needed
            self._tables[depth] = SliceTable(n_orientations, n_pixels, batch.scored)
        return self._tables[depth]

    def _temperature(self, best: Array, depth: int) -> Array:
        """Exponent per image, float32, that lets survive what the coarseness of a level may have put too low."""
        search = self.search
        coldest = search.temperature if depth <= 1 else 1.0
        allowance = search.coarse_error * xp_of(best).maximum(best, 1)
        return xp_of(best).minimum(coldest, -np.log(1 - search.mass) / allowance).astype(np.float32)

    def _local_start(self, rotations: np.ndarray[Any, Any]) -> Candidates:
        s = self.search
        return neighbourhood(self.step.levels[0], rotations, s.local_directions, s.local_psi, s.local_offset_radius)

    def _dense_survivors(self, batch: Batch) -> Candidates:
        """Score every orientation and shift of the first level and keep what a finer level may still choose."""
        xp = xp_of(batch.scored)
        step, level = self.step, self.step.levels[0]
        images, weights = batch.weighted(level.kmax)
        n = images.shape[1]
        orientations = to_like(step.dense_orientations, images)
        shifts = to_like(step.dense_shifts, images)
        offsets = to_like(level.offsets(), images)[shifts]
        classes = level.classes(orientations)
        if self._dense_slices is None:
            self._dense_slices = project(self.reference, level, orientations, batch.kx[:n], batch.ky[:n])
        class_prior = self.reference.log_pdf_class[classes]
        per_image = len(orientations) * len(shifts)
        run = max(1, min(16, self.memory // (16 * per_image)))
        flat = []
        for start in range(0, len(batch), run):
            stop = min(start + run, len(batch))
            cross, norm = dense_scores(
                images[start:stop],
                weights[start:stop],
                self._dense_slices,
                batch.kx[:n],
                batch.ky[:n],
                offsets,
                batch.pixels.box_size,
            )
            prior = offset_log_prior(batch, offsets, step.offset_sigma)[start:stop]
            log_weight = log_likelihood(cross, norm[:, :, None], step.fit_scale)
            log_weight += class_prior[None, :, None]
            log_weight += prior[:, None, :]
            ends = xp.arange(stop - start + 1, dtype=np.int64) * per_image
            log_weight *= self._temperature(log_weight.max((1, 2)), 0)[:, None, None]
            chosen = posterior(log_weight.reshape(-1), ends, self.search.mass, 1.0, self.search.dense_cap)
            kept = xp.nonzero((log_weight >= chosen.threshold[:, None, None]).reshape(-1))[0]
            flat.append(kept + start * per_image)
        return from_dense(xp.concatenate(flat), orientations, len(batch), shifts)


def _to_device(candidates: Candidates, like: Array) -> Candidates:
    return Candidates(*(to_like(a, like) for a in (
        candidates.image_offsets, candidates.orientation, candidates.group_offsets, candidates.shift
    )))  # fmt: skip


def _runs(image_offsets: Array, max_groups: int) -> list[int]:
    """Image numbers at which to cut a batch so that each run has at most `max_groups` groups (or one image)."""
    ends = [int(e) for e in image_offsets]
    bounds = [0]
    for image in range(1, len(ends)):
        if ends[image] - ends[bounds[-1]] > max_groups and image - 1 > bounds[-1]:
            bounds.append(image - 1)
    bounds.append(len(ends) - 1)
    return bounds
