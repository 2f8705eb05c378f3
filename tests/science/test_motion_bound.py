"""The least error of shifts, against frames made of the model it holds for."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.jobs.motion_bound import variances
from spa.motion_fourier import moved, rings
from spa.motion_steps import newton_steps, slopes

SHAPE, N_FRAMES = (64, 64), 12


def model(strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power of signal and noise in each ring, and amplitudes of frames that fade."""
    ring = np.arange(int(rings(SHAPE).max()) + 1)
    fading = np.exp(-np.arange(N_FRAMES)[:, None] * ring / 400)
    return strength * np.exp(-ring / 8.0), np.ones(len(ring)), fading


def test_a_strong_signal_leaves_the_error_of_a_known_one():
    signal, noise, amplitudes = model(1e6)
    ky, kx = 2 * np.pi * np.fft.fftfreq(64)[:, None], 2 * np.pi * np.arange(33) / 64
    used = (ky != 0) & (kx != 0)
    information = 2 * (kx**2 * signal[rings(SHAPE)] * used).sum()
    flat = variances(signal, noise, np.ones_like(amplitudes), SHAPE)
    assert flat[:, 0] == pytest.approx(np.full(N_FRAMES, (1 - 1 / N_FRAMES) / information), rel=1e-3)


@pytest.mark.parametrize("strength", [0.5, 8.0])
def test_the_maximum_of_the_likelihood_reaches_the_bound(strength):
    signal, noise, amplitudes = model(strength)
    rng, ring = np.random.default_rng(1), rings(SHAPE)
    ky, kx = np.fft.fftfreq(64)[:, None], np.arange(33)
    used, errors = (ky != 0) & (kx != 0), []
    total = (amplitudes**2).sum(axis=0)
    weight = ((signal / (noise * (noise + signal * total)))[ring] * used).astype(np.float32)
    for _ in range(30):
        shown = np.sqrt(signal)[ring] * np.fft.rfft2(rng.standard_normal(SHAPE)) / 64
        noisy = np.fft.rfft2(rng.standard_normal((N_FRAMES, *SHAPE))) / 64
        frames = ((amplitudes[:, ring] * shown + noisy) * amplitudes[:, ring]).astype(np.complex64)
        shifts = np.zeros((N_FRAMES, 2))
        for _ in range(6):
            curvature = slopes(moved(frames, SHAPE, shifts), weight, SHAPE)
            information = curvature[1].mean(axis=1) / curvature[1].mean()
            shifts += newton_steps(*curvature, information)[0]
        errors.append(((shifts - shifts.mean(axis=0)) ** 2).sum(axis=1).mean())
    least = variances(signal, noise, amplitudes, SHAPE).sum(axis=1).mean()
    assert 0.9 < np.mean(errors) / least < 1.3
