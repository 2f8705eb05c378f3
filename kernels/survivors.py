"""The best candidates of each image, kept while a dense pass goes over directions tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import RELAXED
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require

_SELECT_BLOCK = 1024
_SLACK = 4096
_NONE = np.float32(-np.inf)


@njit(nogil=True, fastmath=RELAXED)
def _prune(values, codes, count, cap):  # type: ignore[no-untyped-def]
    """Keep the `cap` best of a list, in place; of equal ones at the end, the first. Returns the least kept value."""
    least = np.partition(values[:count], count - cap)[count - cap]
    above = 0
    for c in range(count):
        if values[c] > least:
            above += 1
    ties, kept = cap - above, 0
    for c in range(count):
        if values[c] > least or (values[c] == least and ties > 0):
            if values[c] == least:
                ties -= 1
            values[kept], codes[kept] = values[c], codes[c]
            kept += 1
    return least


@njit(inline="always")
def _log_likelihood(cross, norm, prior, fit_scale):  # type: ignore[no-untyped-def]
    if not fit_scale:
        return cross - norm + prior
    positive = max(cross, np.float32(0))
    return positive * positive / max(np.float32(4) * norm, np.float32(1e-20)) + prior


@njit(nogil=True, fastmath=RELAXED)
def _sums(spectrum, row, turns, n_even, even, odd):  # type: ignore[no-untyped-def]
    """Sums over even and over odd q of a row's coefficients, times `turns`, for every direction."""
    even[:], odd[:] = np.float32(0), np.float32(0)
    for k in range(turns.size):
        total, w, coefficients = even if k < n_even else odd, turns[k], spectrum[k, row]
        for d in range(total.size):
            total[d] += w * coefficients[d]


@cpu_kernel
def _keep_best_cpu(  # type: ignore[no-untyped-def]
    real,
    imag,
    cosine,
    sine,
    norm,
    prior,
    direction_prior,
    first,
    n_psi,
    fit_scale,
    cap,
    values,
    codes,
    counts,
    floor,
):
    half, n_shifts, n_directions = n_psi // 2, prior.shape[1], direction_prior.size
    n_even = n_psi // 4 + 1
    for i in prange(prior.shape[0]):
        score = np.empty((4, n_directions), np.float32)
        sums = np.empty((4, n_directions), np.float32)
        ce, co, se, so = sums[0], sums[1], sums[2], sums[3]
        psi = np.empty(4, np.int64)
        count, least = counts[i], floor[i]
        for t in range(n_shifts):
            for s in range(n_even):
                psi[0], psi[1], psi[2], psi[3] = s, half - s, n_psi - s, half + s
                # s = 0 and, where n_psi divides by 4, s = n_psi / 4 are their own mirrors
                own = 2 * s != half
                used = (True, own, s > 0, own and s > 0)
                n0, n1 = norm[i, s], norm[i, (half - s) % half]
                _sums(real, i * n_shifts + t, cosine[s], n_even, ce, co)
                _sums(imag, i * n_shifts + t, sine[s], n_even, se, so)
                top = _NONE
                for d in range(n_directions):
                    p, q, y, z = ce[d] + co[d], ce[d] - co[d], se[d] + so[d], so[d] - se[d]
                    added = prior[i, t] + direction_prior[d]
                    v0 = _log_likelihood(p + y, n0[d], added, fit_scale)
                    v1 = _log_likelihood(q + z, n1[d], added, fit_scale)
                    v2 = _log_likelihood(p - y, n1[d], added, fit_scale)
                    v3 = _log_likelihood(q - z, n0[d], added, fit_scale)
                    score[0, d], score[1, d], score[2, d], score[3, d] = v0, v1, v2, v3
                    top = max(top, max(max(v0, v1), max(v2, v3)))
                if top <= least:
                    continue
                for w in range(4):
                    if not used[w]:
                        continue
                    for d in range(n_directions):
                        if score[w, d] > least:
                            if count == values.shape[1]:
                                least = _prune(values[i], codes[i], count, cap)
                                count = cap
                                if score[w, d] <= least:
                                    continue
                            values[i, count] = score[w, d]
                            codes[i, count] = ((first + d) * n_psi + psi[w]) * n_shifts + t
                            count += 1
        counts[i], floor[i] = count, least


@dataclass
class Survivors:
    """The best candidates of each image so far.

    Attributes
    ----------
    values : float32 (n_images, capacity), log weights, in no order; `counts` of them are in use.
    codes : int32 (n_images, capacity), (direction * n_psi + psi) * n_shifts + shift.
    counts : int64 (n_images,).
    floor : float32 (n_images,); what does not exceed it has been left out.
    """

    values: Array
    codes: Array
    counts: Array
    floor: Array

    def part(self, start: int, stop: int) -> Survivors:
        """The lists of images start to stop, in the same memory."""
        return Survivors(*(a[start:stop] for a in (self.values, self.codes, self.counts, self.floor)))


def new_survivors(n_images: int, cap: int, tile: int, like: Array) -> Survivors:
    """Empty lists that keep at least the best `cap` candidates of each image.

    `tile` is the largest number of candidates per image in one call of `keep_best`.
    """
    xp = xp_of(like)
    capacity = cap + (tile if is_device(like) else max(cap, _SLACK))
    return Survivors(
        xp.empty((n_images, capacity), np.float32),
        xp.empty((n_images, capacity), np.int32),
        xp.zeros(n_images, np.int64),
        xp.full(n_images, -np.inf, np.float32),
    )


def keep_best(
    survivors: Survivors,
    real: Array,
    imag: Array,
    norm: Array,
    prior: Array,
    direction_prior: Array,
    first: int,
    n_psi: int,
    fit_scale: bool,
    cap: int,
) -> None:
    """Score a tile of directions at every in-plane angle and shift, and add what is among the best to `survivors`.

    Parameters
    ----------
    survivors : of the n_images images; changed in place.
    real, imag : float32 (n_psi // 2 + 1, n_images * n_shifts, n_directions), Fourier coefficients of the cross term
        over the in-plane angle, q even first, then q odd.
    norm : float32 (n_images, n_psi // 2, n_directions), of half the in-plane angles (its period is half a turn).
    prior : float32 (n_images, n_shifts); direction_prior : float32 (n_directions,). Log priors.
    first : number of the tile's first direction.
    n_psi : in-plane angles, an even number.
    fit_scale : maximise over the grey scale of the reference (see `spa.em.expectation.log_likelihood`).
    cap : the best so many candidates of each image are sure to be kept; of equal ones at the end, some.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    cross(psi_s) = sum_q Re_q cos(2 pi q s / n_psi) - Im_q sin(2 pi q s / n_psi). Four angles share each pair of sums
    over even and odd q.
    """
    if n_psi % 2 or n_psi < 2 or cap < 1:
        raise ValueError(f"n_psi, cap: expected an even number of angles and a positive cap, got {n_psi} and {cap}")
    require("prior", prior, np.float32, (None, None), prior)
    n_images, n_shifts = prior.shape
    n_q, n_directions = n_psi // 2 + 1, direction_prior.shape[0]
    require("direction_prior", direction_prior, np.float32, (None,), prior)
    for name, part in (("real", real), ("imag", imag)):
        require(name, part, np.float32, (n_q, n_images * n_shifts, n_directions), prior)
    require("norm", norm, np.float32, (n_images, n_psi // 2, n_directions), prior)
    require("values", survivors.values, np.float32, (n_images, None), prior)
    require("codes", survivors.codes, np.int32, survivors.values.shape, prior)
    require("counts", survivors.counts, np.int64, (n_images,), prior)
    require("floor", survivors.floor, np.float32, (n_images,), prior)
    capacity, last = survivors.values.shape[1], first + n_directions
    needed = cap + (n_directions * n_psi * n_shifts if is_device(prior) else 1)
    if capacity < needed:
        raise ValueError(f"values: expected room for {needed} candidates of each image, got {capacity}")
    if last * n_psi * n_shifts > 2**31:
        raise ValueError(f"first: the codes of {last} directions exceed 32 bits")
    if is_device(prior):
        _keep_best_device(survivors, (real, imag, norm, prior, direction_prior), first, n_psi, fit_scale, cap)
        return
    angle = (2 * np.pi / n_psi) * np.outer(np.arange(n_psi // 4 + 1), np.r_[0:n_q:2, 1:n_q:2])
    turns = np.cos(angle).astype(np.float32), -np.sin(angle).astype(np.float32)
    lists = (survivors.values, survivors.codes, survivors.counts, survivors.floor)
    _keep_best_cpu(real, imag, *turns, norm, prior, direction_prior, first, n_psi, fit_scale, cap, *lists)


def _keep_best_device(
    survivors: Survivors, tile: tuple[Array, ...], first: int, n_psi: int, fit_scale: bool, cap: int
) -> None:
    """The four kernels of survivors.cu; nothing is brought to the host."""
    n_images, n_shifts = tile[3].shape
    n_directions, capacity = tile[4].shape[0], survivors.values.shape[1]
    n_pairs = n_shifts * n_directions
    module, grid = raw_module("survivors", survivor_defines(n_psi)), (n_images, -(-n_pairs // BLOCK))
    arguments = (*tile, n_shifts, n_directions, int(fit_scale))
    best = xp_of(tile[0]).empty((n_images, n_pairs), np.float32)
    lists = (survivors.values, survivors.codes, survivors.counts)
    launch(module.get_function("best_angles"), grid, (*arguments, best))
    raised = (best, n_pairs, cap, survivors.floor)
    launch(module.get_function("raise_floor"), (n_images,), raised, block=_SELECT_BLOCK)
    launch(module.get_function("keep_best"), grid, (*arguments, best, survivors.floor, first, capacity, *lists))
    pruned = (capacity, cap, *lists, survivors.floor)
    launch(module.get_function("prune"), (n_images,), pruned, block=_SELECT_BLOCK)


def survivor_defines(n_psi: int) -> tuple[tuple[str, str], ...]:
    """The preamble of survivors.cu for a number of in-plane angles."""
    angle = 2 * np.pi * np.arange(n_psi) / n_psi
    turns = ", ".join(f"{{{c:.9e}f, {s:.9e}f}}" for c, s in zip(np.cos(angle), np.sin(angle), strict=True))
    return ("N_PSI", str(n_psi)), ("TURNS", turns), ("SELECT", str(_SELECT_BLOCK))
