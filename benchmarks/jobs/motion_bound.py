"""How well the frames of a movie can be aligned at best: the Cramér-Rao bound of their shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from spa.io.detector import read_gain
from spa.io.movie import open_movie
from spa.io.movie_frames import MovieFrames
from spa.motion_fourier import crop_transform, moved, rings, whitened, working_shape
from spa.motion_weights import bfactor_filter, ring_sums, signal_filter, spectra

Floats = NDArray[np.float64]

_ROUNDS = 3  # of signal, noise and amplitudes, each of which needs the others


def least_error(path: Path, gain: Path, corrections: Floats, bfactor: float) -> float:
    """Root mean square length, pixels, of what noise must do to the shifts of a movie, around their mean.

    corrections : (n_frames, 2), the true ones, x and y, pixels. bfactor : pixels^2, as in `align_frames`.
    """
    with open_movie(path) as movie:
        frames = MovieFrames(movie, read_gain(gain), None, 1)
    full, shape = frames.shape, working_shape(frames.shape, bfactor)
    scale = np.array([full[1] / shape[1], full[0] / shape[0]])
    transforms = np.stack([crop_transform(scipy.fft.rfft2(frames.corrected(i)), shape) for i in range(len(frames))])
    placed = moved(whitened(transforms, shape), shape, corrections / scale)
    used = bfactor_filter(len(placed), shape, full, bfactor)
    for _ in range(_ROUNDS):
        sums = ring_sums(placed, shape, used.amplitudes)
        used = signal_filter(sums, used, shape)
    signal, noise = spectra(ring_sums(placed, shape, used.amplitudes), used.amplitudes)
    return float(np.sqrt(((variances(signal, noise, used.amplitudes, shape) * scale**2).sum(axis=1)).mean()))


def variances(signal: Floats, noise: Floats, amplitudes: Floats, shape: tuple[int, int]) -> Floats:
    """Least variances (n_frames, 2) of shifts along x and y around their mean, pixels^2, of any unbiased estimate.

    Parameters
    ----------
    signal, noise : (n_rings,), power in the rings of transforms of `shape`. amplitudes : (n_frames, n_rings), of the
        signal in each frame.

    Notes
    -----
    Frames are a_f S exp(-i k d_f) + noise, S and noise of normal distribution with power P and N, and S unknown. With
    A the sum of all a_f^2, the information on two shifts is the sum over frequencies of
    2 k^2 P^2 / (N (N + P A)) (A a_f^2 delta_fg - a_f^2 a_g^2); its null space is a shift of all frames.
    What is known of the motion beforehand, such as that it is smooth, is not in it.
    """
    squares, ring = amplitudes**2, rings(shape)
    total = squares.sum(axis=0)
    each = 2 * signal**2 / (noise * (noise + signal * total))
    ky = 2 * np.pi * np.fft.fftfreq(shape[0])[:, None]
    kx = 2 * np.pi * np.arange(shape[1] // 2 + 1) / shape[1]
    inner = (ky != 0) & (kx != 0)  # the axes are left out of all correlations
    found = []
    for k in (kx + 0 * ky, ky + 0 * kx):
        known = each * np.bincount(ring[inner], k[inner] ** 2, len(signal))
        information = np.diag(squares @ (known * total)) - (squares * known) @ squares.T
        found.append(np.diag(np.linalg.pinv(information, rcond=1e-9, hermitian=True)))
    return np.stack(found, axis=1)
