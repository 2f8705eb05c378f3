"""Posterior weights of each image's candidates, and the cut that keeps the significant ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import RELAXED, exponential
from spa.kernels.loader import cpu_kernel, launch, raw_module, require

BINS_PER_UNIT = 64
"""Histogram bins per unit of log weight: a power of two, so that bin edges are exact in float32."""
_MAX_BINS = 12000
_CHUNK = 16384
_MAX_IMAGES = 2048
DEFINES = ("CHUNK", str(_CHUNK)), ("BINS_PER_UNIT", str(BINS_PER_UNIT))


class Posterior(NamedTuple):
    """Result of `posterior`, per candidate and per image."""

    weights: Array
    threshold: Array
    log_evidence: Array
    best: Array


@njit(nogil=True, fastmath=RELAXED)
def _maximum(segment):  # type: ignore[no-untyped-def]
    """Largest value and its first index; (-inf, -1) for a segment that is empty or all -inf."""
    best = np.float32(-np.inf)
    for c in range(segment.size):
        best = max(best, segment[c])
    if best > -np.inf:
        for c in range(segment.size):
            if segment[c] == best:
                return best, c
    return best, -1


@njit(nogil=True, fastmath=RELAXED)
def _weigh(segment, best, weights):  # type: ignore[no-untyped-def]
    total = 0.0
    for c in range(segment.size):
        weights[c] = exponential(segment[c] - best)
        total += weights[c]
    factor = np.float32(1.0 / total)
    for c in range(segment.size):
        weights[c] *= factor
    return total


@njit(nogil=True, fastmath=RELAXED)
def _count(segment, best, counts):  # type: ignore[no-untyped-def]
    """counts[b]: values v with b - 1 < BINS_PER_UNIT (best - v) <= b; further ones are left out."""
    limit = np.float32(counts.size - 1)
    for c in range(segment.size):
        below = (best - segment[c]) * np.float32(BINS_PER_UNIT)
        if below <= limit:
            b = np.int32(below)
            counts[b + 1 if below > np.float32(b) else b] += 1


@njit(nogil=True, fastmath=RELAXED)
def _last_bin(counts, temperature, mass, max_candidates):  # type: ignore[no-untyped-def]
    """First bin up to which the counts hold `mass` of the tempered weight, lowered to the cap; at least 0."""
    total = 0.0
    for b in range(counts.size):
        if counts[b] > 0:
            total += counts[b] * math.exp(-temperature * max(b - 0.5, 0.0) / BINS_PER_UNIT)
    held, kept = 0.0, 0
    for b in range(counts.size):
        kept += counts[b]
        if b > 0 and 0 < max_candidates < kept:
            return b - 1
        if counts[b] > 0:
            held += counts[b] * math.exp(-temperature * max(b - 0.5, 0.0) / BINS_PER_UNIT)
            if held >= mass * total:
                return b
    return counts.size - 1


@cpu_kernel
def _posterior_cpu(  # type: ignore[no-untyped-def]
    log_weight, offsets, mass, temperature, max_candidates, n_bins, weights, threshold, log_evidence, best
):
    for i in prange(offsets.size - 1):
        segment = log_weight[offsets[i] : offsets[i + 1]]
        top, index = _maximum(segment)
        best[i] = offsets[i] + index if index >= 0 else -1
        if index < 0:
            weights[offsets[i] : offsets[i + 1]] = 0
            threshold[i], log_evidence[i] = np.inf, -np.inf
            continue
        log_evidence[i] = top + math.log(_weigh(segment, top, weights[offsets[i] : offsets[i + 1]]))
        counts = np.zeros(n_bins, np.int64)
        _count(segment, top, counts)
        last = _last_bin(counts, temperature, mass, max_candidates)
        threshold[i] = top - np.float32(last) / np.float32(BINS_PER_UNIT)


def _posterior_device(
    log_weight: Array,
    offsets: Array,
    cut: tuple[float, float, int],
    n_chunks: int,
    n_bins: int,
    result: Posterior,
) -> None:
    """The four kernels of posterior.cu, on at most _MAX_IMAGES images (and their histograms) at a time."""
    xp = xp_of(log_weight)
    module = raw_module("posterior", DEFINES)
    maximum, accumulate, conclude, normalise = map(
        module.get_function, ("maximum", "accumulate", "conclude", "normalise")
    )
    n_images = offsets.shape[0] - 1
    for first in range(0, n_images, _MAX_IMAGES):
        last = min(first + _MAX_IMAGES, n_images)
        n, segments, chunks = last - first, offsets[first : last + 1], (last - first, n_chunks)
        keys = xp.zeros(n, np.uint64)
        sums = xp.empty(chunks, np.float64)
        counts = xp.zeros((n, n_bins), np.int32)
        factor = xp.empty(n, np.float32)
        launch(maximum, chunks, (log_weight, segments, keys))
        arguments = (log_weight, segments, keys, n_bins, result.weights, sums, counts)
        launch(accumulate, chunks, arguments, shared_mem=4 * n_bins)
        per_image = tuple(a[first:last] for a in (result.threshold, result.log_evidence, result.best))
        launch(conclude, (n,), (segments, keys, sums, n_chunks, counts, n_bins, *cut, *per_image, factor))
        launch(normalise, chunks, (segments, factor, result.weights))


def _n_bins(longest: int, mass: float, temperature: float) -> int:
    """Bins beyond which even `longest` candidates hold at most a tenth of the mass that may be left out."""
    reach = math.log(10 * max(longest, 1) / max(1 - mass, 1e-7)) / temperature
    return min(_MAX_BINS, math.ceil(BINS_PER_UNIT * reach) + 2)


def posterior(log_weight: Array, offsets: Array, mass: float, temperature: float, max_candidates: int) -> Posterior:
    """Normalised posterior of each image's candidates and the threshold of the significant ones.

    Parameters
    ----------
    log_weight : float32 (n,), log likelihood plus log prior; -inf marks an impossible candidate.
    offsets : int64 (n_images + 1,), the candidates of image i are offsets[i] to offsets[i + 1].
    mass : share of the tempered weight exp(temperature * log_weight) to be kept, in (0, 1].
    temperature : positive exponent; 1 is the posterior itself.
    max_candidates : largest number kept per image; 0 is no cap.

    Returns
    -------
    Posterior with
    weights : float32 (n,), untempered softmax per image (0 below exp(-87) of the best).
    threshold : float32 (n_images,), keep {log_weight >= threshold}: the smallest such set that holds `mass`,
        to a resolution of 1/64 in log weight; the cap drops whole bins of that width, never the best.
    log_evidence : float64 (n_images,), log of the sum of exp(log_weight).
    best : int64 (n_images,), index into `log_weight` of the image's first maximum.
    An image without a possible candidate has threshold +inf, log_evidence -inf, best -1.

    Raises TypeError or ValueError for arrays of another dtype, shape or layout, or parameters out of range.

    Notes
    -----
    Candidates more than min(log(10 n / (1 - mass)) / temperature, 187) below the best are never kept.
    """
    require("log_weight", log_weight, np.float32, (None,), log_weight)
    require("offsets", offsets, np.int64, (None,), log_weight)
    if not (0 < mass <= 1 and temperature > 0 and max_candidates >= 0 and offsets.shape[0] > 0):
        raise ValueError("expected 0 < mass <= 1, temperature > 0, max_candidates >= 0, n_images + 1 offsets")
    xp = xp_of(log_weight)
    n_images = offsets.shape[0] - 1
    result = Posterior(
        xp.empty(log_weight.shape[0], np.float32),
        xp.empty(n_images, np.float32),
        xp.empty(n_images, np.float64),
        xp.empty(n_images, np.int64),
    )
    longest = int((offsets[1:] - offsets[:-1]).max()) if n_images else 0
    n_bins = _n_bins(longest, mass, temperature)
    if is_device(log_weight):
        cut = (float(mass), float(temperature), int(max_candidates))
        _posterior_device(log_weight, offsets, cut, max(1, -(-longest // _CHUNK)), n_bins, result)
    else:
        _posterior_cpu(log_weight, offsets, mass, temperature, max_candidates, n_bins, *result)
    return result
