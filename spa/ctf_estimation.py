"""Estimate the CTF of a micrograph from its power spectrum: search, refinement, and how far to trust the result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation_evidence import Evidence, evidence
from spa.ctf_estimation_left_out import LeftOut, left_out
from spa.ctf_estimation_levels import Basis, basis
from spa.ctf_estimation_model import PEDESTAL, Parameters, Wave, flattened, ring_phase
from spa.ctf_estimation_refine import RingFit, deviance_by_ring, information, refine
from spa.ctf_estimation_rings import Rings, Whole, drift, figure_of_merit, ice_ring, rings, whole, without_ice
from spa.ctf_estimation_search import Candidate, Range, Table, posterior, search
from spa.ctf_estimation_spectrum import Spectrum, Tiles, tile_powers
from spa.kernels.backend import Array, to_host, xp_of

NYQUIST_MARGIN = 0.98
_BLOCK_SECTORS, _BLOCK_RINGS = 36, 8
_MEDIAN_CHI2 = 0.4549
_DISPERSION_OF_NOISE = 0.04
_N_CANDIDATES = 4
_HOPELESS = 0.4
_PHASE_MARGIN = math.radians(10.0)
_BROAD, _WORTH_IT = 60.0, 12.0
_FAINT_RINGS, _LONG_LAG = 1 / 6.0, 0.19
_SAME, _AT_END = 300.0, 30.0
_TELLING = 25.0


@dataclass(frozen=True)
class Settings:
    """What is searched and with which frequencies.

    Resolutions in Angstrom; defocus range and step in Angstrom; `astigmatism` in Angstrom, the difference of the
    defoci to expect; `phases` in degrees (smallest, largest, step), None for no phase plate.
    """

    resolution_min: float = 30.0
    resolution_max: float = 4.0
    defocus_min: float = 3000.0
    defocus_max: float = 60000.0
    defocus_step: float = 500.0
    astigmatism: float = 500.0
    phases: tuple[float, float, float] | None = None

    @property
    def also(self) -> tuple[str, ...]:
        """What is fitted besides defocus and astigmatism."""
        return ("phase_shift",) if self.phases is not None else ()

    @property
    def restraint(self) -> float:
        """Weight of the squared half difference of the defoci: their normal prior, per dispersion of the data."""
        return 1 / (0.5 * self.astigmatism) ** 2


@dataclass(frozen=True)
class CtfEstimate:
    """The CTF found, and what speaks for it.

    Attributes
    ----------
    defocus_u, defocus_v : Angstrom, U >= V.
    defocus_angle : degrees from the x axis to the direction of U, -90 to 90.
    phase_shift : degrees.
    gain : log-likelihood of the fit over that of no rings, in nats, corrected for the dispersion of the data.
    lead : how much of it the best different defocus lacks.
    support : how much of it is left without the ring that gives most.
    defocus_error : standard deviation of the defocus along the worst direction, Angstrom.
    phase_error : standard deviation of the phase shift, degrees; 0 where it was not fitted.
    at_limit : the defocus lies at an end of the range searched.
    averages : how many independent spectra the power has been averaged of, as the dispersion about the fit has it.
    highest : last frequency of the fit, 1/Angstrom.
    figure_of_merit : correlation of spectrum and rings.
    ice_ring, drift : see `spa.ctf_estimation_rings`.
    evidence : what each ring by itself says for the fit.
    left_out : what a phase shift, where none was fitted, or another spherical aberration would say for it.
    rings, whole : curves for pictures and the fit over all frequencies.
    """

    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    gain: float
    lead: float
    support: float
    defocus_error: float
    phase_error: float
    at_limit: bool
    averages: float
    highest: float
    figure_of_merit: float
    ice_ring: float
    drift: float
    evidence: Evidence
    left_out: LeftOut
    rings: Rings
    whole: Whole
    parameters: Parameters
    with_phase: bool

    @property
    def astigmatism(self) -> float:
        """Defocus U minus V, Angstrom."""
        return self.defocus_u - self.defocus_v


def estimate_micrograph(
    micrograph: Array, pixel_size: float, box_size: int, wave: Wave, settings: Settings
) -> tuple[CtfEstimate, Tiles]:
    """The CTF of a micrograph, float32 (rows, columns) with pixels of `pixel_size` Angstrom, and its tiles.

    Where the rings are faint and so close that tiles of `box_size` blur them, tiles of twice that size decide.

    Raises
    ------
    ValueError
        As `tile_powers` and `estimate`.
    """
    tiles = tile_powers(micrograph, pixel_size, box_size)
    found = estimate(tiles.spectrum(), wave, settings)
    # what the rings near 6 Angstrom come from lies this far apart in the image
    lag = 2 * wave.wavelength * found.parameters.defocus * _FAINT_RINGS
    larger = 2 * box_size * tiles.extent / tiles.box_size / pixel_size
    if found.defocus_error < _BROAD or found.gain < _WORTH_IT or lag < _LONG_LAG * tiles.extent:
        return found, tiles
    if min(micrograph.shape) < larger:
        return found, tiles
    tiles = tile_powers(micrograph, pixel_size, 2 * box_size)
    return estimate(tiles.spectrum(), wave, settings), tiles


def estimate(spectrum: Spectrum, wave: Wave, settings: Settings) -> CtfEstimate:
    """Find defocus, astigmatism and, where `settings.phases` asks for it, the phase shift.

    Raises
    ------
    ValueError
        If the spectrum has too few frequencies between the resolution limits.

    Notes
    -----
    Whittle likelihood of the spectrum (Whittle 1953, Ark Mat 2:423): every frequency counts by what its rings
    stand out of the noise, so that no weighting has to be chosen. Where the likelihood is broad, the mean of the
    posterior is returned instead of its peak.
    """
    low, high = _limits(spectrum, settings)
    clear = without_ice(spectrum)
    flat, _ = flattened(clear.within(low, high))
    shape = basis(flat)
    table = Table.of(flat, wave, _range(settings))
    candidates = search(table, _N_CANDIDATES)
    fits, dispersion = _refined(flat, wave, shape, candidates, settings)
    best = fits[0]
    without = deviance_by_ring(flat, wave, shape, None)
    gains = [float(without.sum() - fit.penalty) / (2 * dispersion) for fit in fits]
    by_ring = (without - deviance_by_ring(flat, wave, shape, best)) / (2 * dispersion)
    other = [g for g, fit in zip(gains, fits, strict=True) if _differs(fit.parameters, best.parameters)]
    error, phase_error = _errors(flat, wave, shape, best, settings, dispersion)
    parameters = replace(best.parameters, phase_shift=_within_range(best.parameters.phase_shift, settings))
    if error > _BROAD and settings.phases is None:
        mean, covariance = posterior(table, parameters, dispersion, 0.5 * settings.astigmatism)
        parameters = Parameters(*mean.tolist())
        error = max(error, _worst(covariance))
    fitted = whole(clear, wave, parameters, low)
    curves = rings(fitted, wave, parameters)
    averages = 1 / (dispersion * (1 + PEDESTAL) ** 2)
    return CtfEstimate(
        defocus_u=parameters.defocus + parameters.half_difference,
        defocus_v=parameters.defocus - parameters.half_difference,
        defocus_angle=parameters.angle,
        phase_shift=math.degrees(parameters.phase_shift),
        gain=gains[0],
        lead=gains[0] - max(other, default=0.0),
        support=_without_one_ring(flat, wave, best.parameters, by_ring),
        defocus_error=error,
        phase_error=phase_error,
        at_limit=not settings.defocus_min + _AT_END < parameters.defocus < settings.defocus_max - _AT_END,
        averages=averages,
        highest=high,
        figure_of_merit=figure_of_merit(fitted, high),
        ice_ring=ice_ring(spectrum),
        drift=drift(fitted),
        evidence=evidence(fitted, curves, wave, parameters, high, averages),
        left_out=_left_out(flat, wave, shape, best, gains[0], settings, dispersion),
        rings=curves,
        whole=fitted,
        parameters=parameters,
        with_phase=settings.phases is not None,
    )


def _limits(spectrum: Spectrum, settings: Settings) -> tuple[float, float]:
    """Lowest and highest frequency of the fit, 1/Angstrom."""
    nyquist = NYQUIST_MARGIN * spectrum.box_size / (2 * spectrum.extent)
    low, high = 1 / settings.resolution_min, min(1 / settings.resolution_max, nyquist)
    if (high - low) * spectrum.extent < 16:
        raise ValueError(
            f"{max(0, (high - low) * spectrum.extent):.0f} pixels of the spectrum lie between "
            f"{settings.resolution_min:g} and {1 / high:.3g} A: expected at least 16"
        )
    return low, high


def _range(settings: Settings) -> Range:
    phases: tuple[float, ...] = (0.0,)
    if settings.phases is not None:
        first, last, step = settings.phases
        phases = tuple(np.radians(np.arange(first, last + 1e-6, step)).tolist())
    half = max(500.0, settings.astigmatism)
    return Range(settings.defocus_min, settings.defocus_max, settings.defocus_step, half, phases)


def _refined(
    flat: Spectrum, wave: Wave, shape: Basis, candidates: list[Candidate], settings: Settings
) -> tuple[list[RingFit], float]:
    """The promising candidates refined, best first, and the dispersion of the data about the best."""
    also = settings.also
    promising = [c for c in candidates if c.gain > _HOPELESS * candidates[0].gain]
    restraint = _DISPERSION_OF_NOISE * settings.restraint
    fits = [refine(flat, wave, shape, c.parameters, also, restraint) for c in promising]
    fits.sort(key=lambda fit: fit.penalty)
    dispersion = _dispersion(flat, wave, fits[0])
    fits[0] = refine(flat, wave, shape, fits[0].parameters, also, dispersion * settings.restraint)
    return fits, dispersion


def _left_out(
    flat: Spectrum, wave: Wave, shape: Basis, fit: RingFit, gain: float, settings: Settings, dispersion: float
) -> LeftOut:
    """What the fit left out; nothing where a phase shift was fitted, or rings are too weak to tell."""
    if settings.phases is not None or gain < _TELLING:
        return LeftOut()
    return left_out(flat, wave, shape, fit, dispersion * settings.restraint, dispersion)


def _without_one_ring(flat: Spectrum, wave: Wave, parameters: Parameters, gain: NDArray[np.float64]) -> float:
    """The sum of a gain per radial bin, less the largest sum over any one ring."""
    first, last = int(flat.ring[0]), int(flat.ring[-1])
    s2 = flat.frequencies[first : last + 1] ** 2
    turn = np.maximum.accumulate(np.asarray(wave.phase(s2, parameters.defocus)) / np.pi)
    total = np.concatenate([[0.0], np.cumsum(gain[first : last + 1])])
    ends = np.minimum(np.searchsorted(turn, turn + 1), len(turn) - 1) + 1
    return float(total[-1] - (total[ends] - total[:-1]).max())


def _within_range(phase_shift: float, settings: Settings) -> float:
    """A phase shift (radians) far outside of the range searched, brought there by half turns, which change nothing."""
    if settings.phases is None:
        return phase_shift
    low, high = (math.radians(v) for v in settings.phases[:2])
    outside = phase_shift < low - _PHASE_MARGIN or phase_shift > high + _PHASE_MARGIN
    return phase_shift % math.pi if outside else phase_shift


def _differs(one: Parameters, other: Parameters) -> bool:
    return abs(one.defocus - other.defocus) > _SAME


def _dispersion(flat: Spectrum, wave: Wave, fit: RingFit) -> float:
    """Variance of the power about the fit, as it counts for sums over many pixels.

    Notes: the median over blocks of neighbouring pixels of (sum of residuals)^2 / n, so that the number of averages
    in the spectrum, the correlation of its pixels and what the model leaves unexplained are all in it.
    """
    xp = xp_of(flat.power)
    level, depth = (xp.asarray(v, dtype=np.float32)[flat.ring] for v in (fit.levels.level, fit.levels.depth))
    residual = flat.weight * (flat.power / (level - depth * xp.cos(ring_phase(flat, wave, fit.parameters))) - 1)
    turns = xp.arctan2(flat.sin2, flat.cos2) / (2 * np.pi) % 1
    sector = xp.minimum((turns * _BLOCK_SECTORS).astype(np.int32), _BLOCK_SECTORS - 1)
    n_bands = flat.n_rings // _BLOCK_RINGS + 1
    block = sector * n_bands + flat.ring // _BLOCK_RINGS
    sums, count = (to_host(xp.bincount(block, weights=v)) for v in (residual, flat.weight))
    used = count > _BLOCK_RINGS
    return float(np.median(sums[used] ** 2 / count[used]) / _MEDIAN_CHI2)


def _errors(
    flat: Spectrum, wave: Wave, shape: Basis, fit: RingFit, settings: Settings, dispersion: float
) -> tuple[float, float]:
    """Standard deviations of the defocus along its worst direction (Angstrom) and of the phase shift (degrees)."""
    normal, _ = information(flat, wave, shape, fit, settings.also, dispersion * settings.restraint)
    covariance = np.asarray(dispersion * np.linalg.pinv(normal), dtype=np.float64)
    phase = math.degrees(math.sqrt(covariance[3, 3])) if settings.phases is not None else 0.0
    return _worst(covariance[:3, :3]), phase


def _worst(covariance: NDArray[np.float64]) -> float:
    """Standard deviation of the defocus along the direction where it is largest."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    towards = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], axis=1)
    return float(np.sqrt(np.einsum("ni,ij,nj->n", towards, covariance, towards).max()))
