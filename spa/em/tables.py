"""Steerable coefficients of all directions of a level, and the two ways of scoring with them: listed and dense."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from spa.em.expectation import Reference, Step, offset_log_prior, runs
from spa.em.sampling import Candidates, Level, segment_index
from spa.em.state import Batch, FloatArray
from spa.em.steerable import Basis, Rings, table_rows
from spa.kernels.backend import Array, is_device, share_out, to_host, to_like, xp_of
from spa.kernels.slices import extract_slices
from spa.kernels.steerable import grouped_products, shifted_rows, steered_scores
from spa.kernels.survivors import Survivors, keep_best, new_survivors

IntArray = np.ndarray[Any, np.dtype[np.int64]]

RING_CHUNK = 128
"""Directions whose rings are held at one time."""
LISTED_ROWS, DEVICE_LISTED_ROWS = 1024, 16384
"""Shifted images held at one time by listed scores, on a CPU (so that memory is used again) and on a GPU."""
TILE_ROWS, TILE_DIRECTIONS = 240, 96
"""Shifted images and directions of one tile of the dense pass: its spectra stay in a core's cache."""
DEVICE_TILE_ROWS, DEVICE_TILE_DIRECTIONS = 4096, 256
"""The same on a GPU, where a tile has to fill the device."""


def ring_slices(reference: Reference, level: Level, directions: Array, rings: Rings) -> Array:
    """Slices on the rings, complex64 (n, n_rings, n_angles); a direction is class * n_directions + direction."""
    classes = (directions // level.n_directions).astype(np.int32)
    frames = to_like(level.frames.astype(np.float32), reference.transform)[directions % level.n_directions]
    x, y = (to_like(p, reference.transform) for p in rings.points)
    slices = extract_slices(reference.transform, classes, frames, x, y, reference.padding)
    return slices.reshape(len(directions), rings.n_rings, -1)


class DirectionTable:
    """Coefficients and norm moments of the directions of one level.

    Parameters
    ----------
    directions : int64, those that may be asked for, class * n_directions + direction.
    magnification : that of the images for whose pixels the basis was made.

    Attributes
    ----------
    place : int32 (n_classes * n_directions,), where each of them is (-1: not here).
    """

    def __init__(
        self, reference: Reference, level: Level, directions: IntArray, basis: Basis, magnification: int
    ) -> None:
        self.basis = basis
        self.bases = {magnification: basis}
        self.level = level
        self.directions = directions
        like = reference.transform
        xp = xp_of(like)
        place = np.full(len(like) * level.n_directions, -1, np.int32)
        place[directions] = np.arange(len(directions))
        self.place = to_like(place, like)
        n_moments = basis.norm_rows.shape[1]
        self.coefficients = xp.empty((len(directions), basis.n_coefficients), np.float32)
        self.moments = xp.empty((len(directions), n_moments), np.float32)

        def fill(start: int) -> None:
            part = slice(start, start + RING_CHUNK)
            rings = ring_slices(reference, level, to_like(directions[part], like), basis.rings)
            self.coefficients[part], self.moments[part] = table_rows(basis, rings)

        chunks = range(0, len(directions), RING_CHUNK)
        if is_device(like):
            for start in chunks:
                fill(start)
        else:
            share_out(fill, chunks)
        psi = level.psi(np.arange(level.n_psi))
        angle = psi[:, None] * basis.orders
        self.cosine, self.sine = (to_like(f(angle).astype(np.float32), like) for f in (np.cos, np.sin))
        self.norm_turns = to_like(norm_turns(basis.rings, psi), like)
        self.norm_starts = to_like(basis.rings.norm_starts, like)

    @staticmethod
    def size(n_directions: int, basis: Basis) -> int:
        """Bytes of a table."""
        return int(4 * n_directions * (basis.n_coefficients + basis.norm_rows.shape[1]))

    def basis_for(self, batch: Batch) -> Basis:
        """The basis on the image side, for the magnification of a batch."""
        if batch.magnification not in self.bases:
            n = len(self.basis.norm_rows)
            x, y = to_host(batch.slice_x[:n]), to_host(batch.slice_y[:n])
            self.bases[batch.magnification] = self.basis.sampled_at(x, y)
        return self.bases[batch.magnification]

    def score(self, batch: Batch, candidates: Candidates, offsets: Array, memory: int) -> tuple[Array, Array]:
        """Cross and norm terms of a ragged list of candidates (see `spa.em.expectation.score_slices`).

        memory : bytes that the coefficients of shifted images may take at one time. Raises ValueError for a direction
        that is not in the table.
        """
        xp = xp_of(batch.scored)
        if bool((self.place[candidates.orientation // self.level.n_psi] < 0).any()):
            raise ValueError("a candidate's direction is not in the table of its level")
        basis = self.basis_for(batch)
        images, weights = batch.weighted(self.level.kmax)
        n_images, n_shifts = len(batch), len(offsets)
        folded, (kx, ky) = basis.folded(images), (k[basis.pairs[0]] for k in (batch.kx, batch.ky))
        group = segment_index(candidates.group_offsets, len(candidates.shift))
        image = segment_index(candidates.image_offsets, len(candidates.orientation))[group]
        used = xp.zeros(n_images * n_shifts, bool)
        used[image * n_shifts + candidates.shift] = True
        flat = xp.nonzero(used)[0]
        row_image, row_shift = (flat // n_shifts).astype(np.int32), (flat % n_shifts).astype(np.int32)
        row_of = (xp.cumsum(used) - 1).astype(np.int32).reshape(n_images, n_shifts)
        row_ends = np.concatenate([[0], np.cumsum(to_host(used.reshape(n_images, -1).sum(1)))])
        groups, ends = to_host(candidates.image_offsets), to_host(candidates.candidate_offsets)
        cross = xp.empty(len(candidates.shift), np.float32)
        norm = xp.empty(len(candidates.orientation), np.float32)
        moments = weights @ basis.norm_rows
        most = DEVICE_LISTED_ROWS if is_device(images) else LISTED_ROWS
        most = max(1, min(most, memory // (4 * basis.n_coefficients + 16 * len(kx))))
        for start, stop in itertools.pairwise(runs(row_ends, most)):
            rows = slice(int(row_ends[start]), int(row_ends[stop]))
            shifted = shifted_rows(folded, kx, ky, offsets, row_image[rows], row_shift[rows], batch.pixels.box_size)
            g, c = slice(int(groups[start]), int(groups[stop])), slice(int(ends[start]), int(ends[stop]))
            cross[c], norm[g] = steered_scores(
                basis.rows(shifted),
                row_of[start:stop] - np.int32(rows.start),
                moments[start:stop],
                self.coefficients,
                self.moments,
                self.place,
                self.cosine,
                self.sine,
                self.norm_turns,
                self.norm_starts,
                basis.n_even,
                candidates.image_offsets[start : stop + 1] - g.start,
                candidates.orientation[g],
                candidates.group_offsets[g.start : g.stop + 1] - c.start,
                candidates.shift[c],
            )
        return cross, norm


def norm_turns(rings: Rings, psi: FloatArray) -> FloatArray:
    """cos(m psi), then -sin(m psi) of the norm's orders m, float32 (n_psi, 2 * n_orders)."""
    angle = psi[:, None] * np.array(rings.norm_orders)
    return np.concatenate([np.cos(angle), -np.sin(angle)], axis=1).astype(np.float32)


class DensePass:
    """Scores every direction of a table at every in-plane angle and shift, and keeps the best of each image.

    Notes
    -----
    The orders m are folded modulo the number of in-plane angles n (m and n - m are conjugate), so that a small product
    per q = 0 ... n / 2 and an inverse transform over q give all angles exactly, for any even n.
    """

    def __init__(self, table: DirectionTable, reference: Reference) -> None:
        self.table = table
        self.n_psi = table.level.n_psi
        on_device = is_device(table.coefficients)
        self.tile_rows = DEVICE_TILE_ROWS if on_device else TILE_ROWS
        self.tile_directions = DEVICE_TILE_DIRECTIONS if on_device else TILE_DIRECTIONS
        classes = to_like(table.directions // table.level.n_directions, table.coefficients)
        self.direction_prior = reference.log_pdf_class[classes]
        self._fold()

    def _fold(self) -> None:
        """Sort functions by the q that their order falls on, and turn the directions to the first in-plane angle."""
        table, basis, n = self.table, self.table.basis, self.n_psi
        xp = xp_of(table.coefficients)
        n_even = basis.n_even
        residue = basis.orders % n
        conjugate = residue > n // 2
        q = np.where(conjugate, n - residue, residue)
        phase = to_like(np.exp(1j * basis.orders * table.level.psi(0)).astype(np.complex64), table.coefficients)
        split = 2 * n_even
        even, odd = table.coefficients[:, :split], table.coefficients[:, split:]
        n_odd = odd.shape[1] // 2
        turned = xp.concatenate(
            [a[:, :m] + np.complex64(1j) * a[:, m:] for a, m in ((even, n_even), (odd, n_odd))], axis=1
        )
        turned *= phase
        sign = to_like(np.where(conjugate, -1, 1).astype(np.float32), table.coefficients)
        ends: list[int] = []
        order: list[IntArray] = []
        products: list[tuple[Array, Array]] = []
        for parity in (0, 1):
            for this in range(parity, n // 2 + 1, 2):
                # n is even, so the functions of a q are all of its parity
                mine = np.nonzero(q == this)[0]
                real = mine + parity * n_even
                order += [real, real + (n_odd if parity else n_even)]
                ends.append(2 * len(mine) + (ends[-1] if ends else 0))
                chosen = to_like(mine, turned)
                p, s = turned[:, chosen], sign[chosen]
                # the sum over q = 0 and q = n / 2 is real
                i = (p * s if 0 < this < n // 2 else xp.zeros_like(p)).astype(np.complex64)
                products.append((xp.concatenate([p.real, p.imag], axis=1), xp.concatenate([i.imag, -i.real], axis=1)))
        self.order = to_like(np.concatenate(order), table.coefficients)
        self.ends = np.array(ends)
        both = [xp.concatenate(parts, axis=1) for parts in zip(*products, strict=True)]
        tiles = [slice(start, start + self.tile_directions) for start in range(0, len(turned), self.tile_directions)]
        self.directions = [tuple(xp.ascontiguousarray(p[tile].T) for p in both) for tile in tiles]
        self._fold_norm()

    def _fold_norm(self) -> None:
        """Sort the norm's moments by order, real and imaginary parts of each beside each other."""
        table = self.table
        xp, moments, starts = xp_of(table.moments), table.moments, table.basis.rings.norm_starts
        n_pairs = moments.shape[1] // 2
        groups = [(np.s_[a:b], np.s_[n_pairs + a : n_pairs + b]) for a, b in itertools.pairwise(starts)]
        self.norm_order = to_like(np.concatenate([np.r_[pair] for pair in groups]), moments)
        self.norm_ends = 2 * np.asarray(starts[1:], dtype=np.int64)
        to_real = [xp.concatenate([moments[:, real], -moments[:, imag]], axis=1) for real, imag in groups]
        to_imag = [xp.concatenate([moments[:, imag], moments[:, real]], axis=1) for real, imag in groups]
        self.norm_products = tuple(xp.ascontiguousarray(xp.concatenate(p, axis=1).T) for p in (to_real, to_imag))

    def run(self, batch: Batch, step: Step, cap: int) -> Survivors:
        """The best `cap` (or somewhat more) candidates of each image.

        Codes count the table's directions, all in-plane angles and the shifts of `step.dense_shifts`.
        """
        table, level = self.table, self.table.level
        basis = table.basis_for(batch)
        images, weights = batch.weighted(level.kmax)
        n_shifts = len(step.dense_shifts)
        offsets = to_like(level.offsets()[step.dense_shifts], images)
        prior = offset_log_prior(batch, offsets, step.offset_sigma)
        moments = weights @ basis.norm_rows
        folded, (kx, ky) = basis.folded(images), (k[basis.pairs[0]] for k in (batch.kx, batch.ky))
        survivors = new_survivors(len(batch), cap, self.tile_directions * self.n_psi * n_shifts, images)
        block = max(1, self.tile_rows // n_shifts)
        shift = to_like(np.tile(np.arange(n_shifts, dtype=np.int32), block), images)
        owner = to_like(np.repeat(np.arange(block, dtype=np.int32), n_shifts), images)
        for start in range(0, len(batch), block):
            stop = min(start + block, len(batch))
            n_rows = (stop - start) * n_shifts
            shifted = shifted_rows(
                folded[start:stop], kx, ky, offsets, owner[:n_rows], shift[:n_rows], batch.pixels.box_size
            )
            rows = xp_of(folded).take(basis.rows(shifted), self.order, axis=1)
            norm = self._norm(moments[start:stop])
            mine = survivors.part(start, stop)
            self._tiles(rows, norm, prior[start:stop], step.fit_scale, cap, mine)
            survivors.counts[start:stop] = mine.counts
        return survivors

    def _tiles(self, rows: Array, norm: Array, prior: Array, fit_scale: bool, cap: int, survivors: Survivors) -> None:
        """All tiles of directions for the rows of some images."""
        xp, n_q = xp_of(rows), self.n_psi // 2 + 1
        first = 0
        spectra = xp.zeros((2, n_q, len(rows), 0), np.float32)
        for products in self.directions:
            n = products[0].shape[1]
            if spectra.shape[3] != n:
                spectra = xp.zeros((2, n_q, len(rows), n), np.float32)
            for product, spectrum in zip(products, spectra, strict=True):
                grouped_products(rows, self.ends, product, spectrum)
            direction_prior = self.direction_prior[first : first + n]
            part = xp.ascontiguousarray(norm[:, :, first : first + n])
            real, imag = spectra
            keep_best(survivors, real, imag, part, prior, direction_prior, first, self.n_psi, fit_scale, cap)
            first += n

    def _norm(self, moments: Array) -> Array:
        """Norm terms, float32 (n_images, n_psi / 2, n_directions)."""
        xp = xp_of(moments)
        weights = xp.take(moments, self.norm_order, axis=1)
        spectrum = xp.empty((2, len(self.norm_ends), len(moments), self.norm_products[0].shape[1]), np.float32)
        for product, part in zip(self.norm_products, spectrum, strict=True):
            grouped_products(weights, self.norm_ends, product, part)
        turns = self.table.norm_turns[: self.n_psi // 2]
        norm = (turns @ spectrum.reshape(turns.shape[1], -1)).reshape(len(turns), *spectrum.shape[2:])
        return xp.ascontiguousarray(norm.transpose(1, 0, 2))
