"""Particles in a prepared micrograph: by their shape alone, or by templates, with decoys that compete. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spa.kernels.backend import Array, to_host, xp_of
from spa.picking_image import Prepared
from spa.picking_log import FEWEST_SEEDS, PROFILE_REACH, blob_scores, ladder, profile, scrambled
from spa.picking_peaks import Peaks, automatic_threshold, find_peaks
from spa.picking_scores import Bank, Field, noise_field

_FLOOR = 1.0  # of scores that are looked at
_ROUNDS = 4  # of the particles' own profile
_SETTLED = 0.01  # of how much the picks stand out: a smaller change ends the rounds
_NOISE_SIZE = 224  # pixels of the noise that thresholds come from, rows and columns
_BEGINNINGS = (0.5, 0.25, 0.1)  # of the blobs, the highest, of which the first profile is made
_DECOY_REACH = 0.25  # of the shortest distance between particles: a decoy this near a peak competes with it
_CONTRAST = 2.0  # times the usual deviation of a particle: more is none


@dataclass(frozen=True)
class Found:
    """What was picked.

    peaks : those at or above `threshold`; every : also those below.
    beaten : number of peaks that looked more like a decoy. odd : number of peaks whose
    surroundings have too much contrast or are too dark.
    """

    peaks: Peaks
    every: Peaks
    threshold: float
    beaten: int = 0
    odd: int = 0

    def relabelled(self, label: NDArray[np.int64]) -> Found:
        """The same with other labels of the peaks, (n,)."""
        return replace(self, peaks=replace(self.peaks, label=label))

    def within(self, area: NDArray[np.bool_]) -> Found:
        """The same with only those peaks that lie in an area, bool (rows, columns)."""
        return replace(self, peaks=self.peaks.chosen(self.peaks.at(area.astype(np.float32)) > 0))


@dataclass(frozen=True)
class Limits:
    """What a peak must meet.

    min_distance : pixels of the prepared image. threshold : lowest score, None for the automatic one, to which
    `adjust` is added. upper : highest score. max_stddev, min_average : of the micrograph under the disc, in its
    robust standard deviations; None for no limit. usual : leave out peaks around which the micrograph deviates
    more than twice as much as around most of them: they are dirt.
    """

    min_distance: float
    threshold: float | None = None
    adjust: float = 0.0
    upper: float = np.inf
    max_stddev: float | None = None
    min_average: float | None = None
    usual: bool = True


def given(centres: NDArray[np.float64], score: NDArray[np.float64], threshold: float) -> Found:
    """Picks made elsewhere, centres (n, 2) and scores (n,)."""
    n = len(score)
    peaks = Peaks(centres, score, np.zeros(n, dtype=np.int64), np.zeros(n))
    return Found(peaks, peaks, threshold)


def by_shape(
    prepared: Prepared, diameters: tuple[float, float], limits: Limits, seed: int, refine: bool = True
) -> Found:
    """Pick blobs of `diameters` (smallest, largest; Angstrom), then what looks as most of them do.

    With `refine` the rotational average of the best blobs becomes the template of another search, several times; where
    there are too few, or without it, the blobs themselves are the picks. Their scores are then in robust standard
    deviations of all scores, otherwise in those of noise.
    """
    sizes = ladder(*diameters)
    score, label = (to_host(a) for a in blob_scores(prepared.flat, prepared.usable, sizes / prepared.pixel_size))
    blobs = find_peaks(score, limits.min_distance, _FLOOR, label, sizes.tolist(), to_host(prepared.usable))
    field = Field.of(prepared, PROFILE_REACH / 2 * float(np.mean(diameters)) / prepared.pixel_size)
    found = _by_profile(prepared, field, blobs, limits, seed) if refine else None
    if found is None:
        threshold = limits.threshold
        if threshold is None:
            threshold = _blob_threshold(prepared, blobs, sizes, limits, seed) + limits.adjust
        above = (blobs.score >= threshold) & (blobs.score <= limits.upper)
        found = Found(blobs.chosen(above), blobs, threshold)
    found = _with_limits(found, prepared, field, limits)
    size = sizes[found.peaks.at(label).astype(np.int64)]
    return replace(found, peaks=replace(found.peaks, label=np.zeros(len(size), dtype=np.int64), size=size))


def _by_profile(prepared: Prepared, field: Field, blobs: Peaks, limits: Limits, seed: int) -> Found | None:
    """Peaks of the profile that the best blobs lead to; None if they lead to none.

    Blobs in the wrong places, as between particles that are packed densely, lead to another profile than those on
    particles: of several beginnings that one is taken whose picks stand out most in all.
    """
    noise = noise_field(field.radius, (_NOISE_SIZE, _NOISE_SIZE), seed, prepared.values)
    values = to_host(prepared.values)
    one = np.zeros(1, dtype=np.int32)
    best, most = None, 0.0
    for share in _BEGINNINGS:
        seeds, clear = _highest(blobs, share), 0.0
        for _ in range(_ROUNDS):
            if len(seeds) < FEWEST_SEEDS:
                break
            bank = Bank.of(xp_of(prepared.values).asarray(profile(values, seeds.centres, field.inside)))
            found = _scored(field, noise, bank, one, None, limits)
            seeds = found.peaks
            if len(seeds) < FEWEST_SEEDS:
                seeds = _highest(found.every, share)
                continue
            last, clear = clear, float(seeds.score.sum() - found.threshold * len(seeds))
            if clear > most:
                best, most = found, clear
            if abs(clear - last) < _SETTLED * clear:
                break
    return best


def _highest(peaks: Peaks, share: float) -> Peaks:
    """The highest peaks, a share of them, and as many as a profile needs."""
    return peaks.chosen(np.arange(len(peaks)) < max(share * len(peaks), FEWEST_SEEDS))


def _blob_threshold(prepared: Prepared, blobs: Peaks, sizes: NDArray[np.float64], limits: Limits, seed: int) -> float:
    """The score above which blobs are more than those of noise with the same power spectrum."""
    xp = xp_of(prepared.flat)
    noise = xp.asarray(scrambled(to_host(prepared.flat), seed))
    score, _ = blob_scores(noise, xp.ones(noise.shape, dtype=bool), sizes / prepared.pixel_size)
    alone = find_peaks(to_host(score), limits.min_distance, _FLOOR)
    return automatic_threshold(blobs.score, alone.score, noise.size / float(prepared.usable.sum()))


def by_templates(
    prepared: Prepared, field: Field, templates: Array, decoy: NDArray[np.bool_], limits: Limits, seed: int
) -> Found:
    """Pick what matches templates, float32 (n, n_pixels) under the disc of `field`, better than decoys among them.

    decoy : bool (n,), which templates are of what is no particle.

    Notes
    -----
    Decoys: Sigworth 2004, J Struct Biol 145:111.
    """
    noise = noise_field(field.radius, (_NOISE_SIZE, _NOISE_SIZE), seed, prepared.values)
    numbers = np.arange(len(templates), dtype=np.int32)
    others = numbers[decoy] if decoy.any() else None
    found = _scored(field, noise, Bank.of(templates), numbers[~decoy], others, limits)
    return _with_limits(found, prepared, field, limits)


def _scored(
    field: Field,
    noise: Field,
    bank: Bank,
    wanted: NDArray[np.int32],
    decoys: NDArray[np.int32] | None,
    limits: Limits,
) -> Found:
    """Peaks of the templates' scores above a threshold that the scores of noise set."""
    groups = [wanted] if decoys is None else [wanted, decoys]
    scores = [(to_host(score), to_host(label)) for score, label in field.best_of(groups, bank)]
    score, label = scores[0]
    peaks = find_peaks(score, limits.min_distance, _FLOOR, label, usable=to_host(field.usable))
    beaten = 0
    if decoys is not None:
        reach = 1 + 2 * int(_DECOY_REACH * limits.min_distance)
        rival = peaks.at(ndimage.maximum_filter(scores[1][0], size=reach, mode="nearest"))
        lost = rival > peaks.score
        kept = peaks.chosen(~lost)
    else:
        lost, kept = np.zeros(len(peaks), dtype=bool), peaks
    threshold = limits.threshold
    if threshold is None:
        alone = find_peaks(to_host(noise.best(bank, wanted)[0]), limits.min_distance, _FLOOR)
        area = float(noise.valid.sum()) / max(float(field.valid.sum()), 1.0)
        threshold = automatic_threshold(kept.score, alone.score, area) + limits.adjust
    beaten = int((lost & (peaks.score >= threshold)).sum())
    above = (kept.score >= threshold) & (kept.score <= limits.upper)
    return Found(kept.chosen(above), kept, threshold, beaten)


def _with_limits(found: Found, prepared: Prepared, field: Field, limits: Limits) -> Found:
    """Without peaks whose surroundings have too much contrast, or are too dark."""
    even = xp_of(prepared.plain).where(prepared.usable, prepared.plain, 0)
    plain = Field(even, prepared.usable, field.radius)
    deviation = found.peaks.at(to_host(plain.deviation))
    good = np.ones(len(deviation), dtype=bool)
    if limits.usual and len(deviation) >= FEWEST_SEEDS:
        good &= deviation <= _CONTRAST * np.median(deviation)
    if limits.max_stddev is not None:
        good &= deviation <= limits.max_stddev
    if limits.min_average is not None:
        good &= found.peaks.at(to_host(plain.mean)) >= limits.min_average
    return replace(found, peaks=found.peaks.chosen(good), odd=int((~good).sum()))
