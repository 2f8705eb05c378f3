"""How much signal the frames of a movie show at each frequency, and the weights that follow for aligning them.

A frame is seen as a_f(r) signal + noise in ring r, with one signal for all frames. Radiation damage lowers a_f(r)
with time, faster at high frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.kernels.backend import Array, to_host, xp_of
from spa.motion_fourier import rings, weights
from spa.motion_steps import beyond_noise

_BAND = 8  # rings that share an amplitude, at least
_BANDS = 16  # of them, at most
_SMOOTH_RINGS = 5
_FAINTEST = 1e-3  # amplitude of a frame that shows nothing of a band
_DEGREE = 2  # of amplitudes over time
_ROBUST_ROUNDS = 5
_HUBER = 2.0
_LEAST_NOISE = 0.01  # of the power of a ring

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Filter:
    """What the product of a frame with the sum of the others is multiplied with.

    weight : (rows, columns // 2 + 1) float32, of products, at most 1.
    amplitudes : (n_frames, n_rings), of the signal in each frame, at most 1: both factors take theirs.
    information : (n_frames,), how much of the curvature of all correlations is expected of a frame, mean 1.
    """

    weight: NDArray[np.float32]
    amplitudes: Floats
    information: Floats


@dataclass(frozen=True)
class RingSums:
    """Sums over rings from which signal and noise are estimated; those of patches of one size add.

    cross : (n_frames, n_rings), real part of a frame times the conjugate of the sum of the others times amplitude.
    power : (n_frames, n_rings), of each frame.
    counts : (n_rings,), frequencies.
    """

    cross: Floats
    power: Floats
    counts: Floats

    def __add__(self, other: RingSums) -> RingSums:
        return RingSums(self.cross + other.cross, self.power + other.power, self.counts + other.counts)


def bfactor_filter(n_frames: int, shape: tuple[int, int], full_shape: tuple[int, int], bfactor: float) -> Filter:
    """The filter exp(-2 B f^2), as `motion_fourier.weights`, for a signal that is the same in all frames."""
    flat = np.ones((n_frames, int(rings(shape).max()) + 1))
    return Filter(weights(shape, full_shape, bfactor), flat, np.ones(n_frames))


def ring_sums(placed: Array, shape: tuple[int, int], amplitudes: Floats) -> RingSums:
    """Sums over the rings of aligned frames (n_frames, rows, columns // 2 + 1) of `shape`."""
    xp, ring, n_rings = xp_of(placed), rings(shape), amplitudes.shape[1]
    total = xp.zeros_like(placed[0])
    for frame, amplitude in zip(placed, amplitudes, strict=True):
        total += frame * xp.asarray(amplitude.astype(np.float32)[ring])
    cross, power = np.zeros((len(placed), n_rings)), np.zeros((len(placed), n_rings))
    flat = ring.ravel()
    for i, frame in enumerate(placed):
        power[i] = np.bincount(flat, to_host(xp.abs(frame) ** 2).ravel(), n_rings)
        cross[i] = np.bincount(flat, to_host((frame * total.conj()).real).ravel(), n_rings)
    counts = np.bincount(flat, minlength=n_rings).astype(np.float64)
    return RingSums(cross - amplitudes * power, power, counts)


def faded(placed: Array, shape: tuple[int, int], amplitudes: Floats) -> Array:
    """Frames (n_frames, rows, columns // 2 + 1) of `shape` times their amplitudes, in place."""
    xp, ring = xp_of(placed), rings(shape)
    for frame, amplitude in zip(placed, amplitudes, strict=True):
        frame *= xp.asarray(amplitude.astype(np.float32)[ring])
    return placed


def signal_filter(sums: RingSums, before: Filter, shape: tuple[int, int]) -> Filter:
    """The filter that gives steps of an alignment the least noise, where `before` lets anything through.

    Parameters
    ----------
    sums : of frames that are aligned as well as is known, made with the amplitudes of `before`.

    Notes
    -----
    For a signal of normal distribution the logarithm of the probability of all frames is, up to a constant, half the
    sum over frequencies of S / (N (N + S sum_f a_f^2)) |sum_f a_f X_f|^2 with S and N the power of signal and noise.
    S and N are estimated for each ring, amplitudes for bands of rings, as parabolas over time.
    """
    amplitudes = _amplitudes(sums, before.amplitudes)
    signal, noise = spectra(sums, before.amplitudes)
    squares = (amplitudes**2).sum(axis=0)
    weight = signal / (noise * (noise + signal * squares))
    curvature = np.arange(len(signal)) ** 2 * sums.counts * weight * signal * amplitudes**2 * (squares - amplitudes**2)
    information = curvature.sum(axis=1)
    weight /= max(float(weight.max()), 1e-30)
    return Filter(
        np.asarray(weight[rings(shape)] * (before.weight > 0), dtype=np.float32),
        amplitudes,
        information / max(float(information.mean()), 1e-30),
    )


def spectra(sums: RingSums, amplitudes: Floats) -> tuple[Floats, Floats]:
    """Power of signal and noise, (n_rings,) each, of frames with these amplitudes (n_frames, n_rings) of the signal."""
    squares = amplitudes**2
    pairs = squares.sum(axis=0) ** 2 - (squares**2).sum(axis=0)
    counts = np.maximum(sums.counts, 1)
    signal = np.maximum(_smoothed((amplitudes * sums.cross).sum(axis=0) / counts / np.maximum(pairs, 1e-30)), 0)
    power = _smoothed(sums.power.mean(axis=0) / counts)
    least = np.maximum(_LEAST_NOISE * power, 1e-6 * power.max() + 1e-20)
    return signal, np.maximum(power - signal * squares.mean(axis=0), least)


def _amplitudes(sums: RingSums, before: Floats) -> Floats:
    """Amplitudes (n_frames, n_rings): in each band 1 where the signal is strongest, 1 throughout without a signal."""
    signal, noise = spectra(sums, before)
    n_rings = before.shape[1]
    squares = before**2
    others = squares.sum(axis=0) - squares
    edges = np.linspace(1, n_rings, max(1, min(_BANDS, (n_rings - 1) // _BAND)) + 1).astype(int)

    def banded(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, edges[:-1], axis=1))

    matched = signal / noise**2
    expected = banded(matched * signal * sums.counts * others)
    variance = banded(matched**2 * noise * sums.counts * others * (noise + signal * others) / 2)
    bands = np.ones_like(expected)
    shown = (expected > 0).all(axis=0)
    if shown.any():
        expected, variance = expected[:, shown], variance[:, shown]
        values = _course(banded(matched * sums.cross)[:, shown] / expected, np.sqrt(variance) / expected)
        top = values.max(axis=0)
        bands[:, shown] = np.where(top > 0, np.maximum(values / np.where(top > 0, top, 1.0), _FAINTEST), 1.0)
    centres = (edges[:-1] + edges[1:] - 1) / 2
    return np.stack([np.interp(np.arange(n_rings), centres, band) for band in bands])


def _course(measured: Floats, errors: Floats) -> Floats:
    """Parabolas over time through values (n_frames, n_bands), past frames that are outliers in all bands together.

    As far as noise could have made them, they are drawn towards constants.
    """
    n_frames = len(measured)
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, n_frames), min(_DEGREE, n_frames - 1))
    trust, fitted = np.ones(n_frames), measured
    for _ in range(_ROBUST_ROUNDS):
        root = np.sqrt(trust)[:, None]
        fitted = basis @ np.linalg.lstsq(root * basis, root * measured, rcond=None)[0]
        misfit = np.sqrt((((measured - fitted) / errors) ** 2).mean(axis=1))
        trust = np.minimum(1.0, (_HUBER * max(float(np.median(misfit)), 1e-12) / np.maximum(misfit, 1e-12)) ** 2)
    mean = fitted.mean(axis=0)
    explained = float((((fitted - mean) / errors) ** 2).sum())
    return np.asarray(mean + beyond_noise(explained, (basis.shape[1] - 1) * measured.shape[1]) * (fitted - mean))


def _smoothed(values: Floats) -> Floats:
    width = np.ones(_SMOOTH_RINGS)
    return np.asarray(np.convolve(values, width, "same") / np.convolve(np.ones(len(values)), width, "same"))
