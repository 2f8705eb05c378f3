"""CTF values against the formula, written with physical quantities in float64."""

from __future__ import annotations

import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.kernels.ctf import evaluate_ctf
from tests.kernels import truth

BOX, PIXEL_SIZE = 64, 1.7
VOLTAGE, CS, Q0 = 300e3, 2.7e7, 0.1
WAVELENGTH = 12.2643247 / np.sqrt(VOLTAGE * (1 + 0.978466e-6 * VOLTAGE))


def particles(n=5):
    rng = np.random.default_rng(2)
    u, v = rng.uniform(8000, 25000, (2, n))
    return u, v, rng.uniform(0, np.pi, n), rng.uniform(0, 1.5, n), rng.uniform(0, 80, n), rng.uniform(0.5, 1.5, n)


def coefficients(u, v, angle, phase_shift, bfactor, scale):
    per_pixel2 = 1 / (BOX * PIXEL_SIZE) ** 2
    one = np.ones_like(u)
    columns = (
        (u + v) / 2,
        (u - v) / 2,
        angle,
        np.pi * WAVELENGTH * per_pixel2 * one,
        np.pi / 2 * CS * WAVELENGTH**3 * per_pixel2**2 * one,
        phase_shift + np.arctan(Q0 / np.sqrt(1 - Q0**2)),
        bfactor / 4 * per_pixel2,
        scale,
        0 * one,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def test_values_follow_the_formula(device):
    u, v, angle, phase_shift, bfactor, scale = particles()
    kx, ky = truth.half_plane(BOX // 2 - 1)
    got = to_host(evaluate_ctf(*map(device, (coefficients(*particles()), kx, ky))))

    s = np.hypot(kx, ky).astype(np.float64) / (BOX * PIXEL_SIZE)
    theta = np.arctan2(ky, kx).astype(np.float64)
    for i in range(u.size):
        defocus = (u[i] + v[i]) / 2 + (u[i] - v[i]) / 2 * np.cos(2 * (theta - angle[i]))
        chi = np.pi * WAVELENGTH * defocus * s**2 - np.pi / 2 * CS * WAVELENGTH**3 * s**4
        chi += phase_shift[i] + np.arctan(Q0 / np.sqrt(1 - Q0**2))
        want = scale[i] * np.sin(chi) * np.exp(-bfactor[i] * s**2 / 4)
        np.testing.assert_allclose(got[i], want, atol=1e-4)


def test_a_symmetric_phase_is_added_to_chi(device):
    kx, ky = truth.half_plane(BOX // 2 - 1)
    rng = np.random.default_rng(4)
    symmetric = rng.uniform(-1, 1, (3, kx.size)).astype(np.float32)
    group = np.array([2, 0, 1, 2, 0], np.int32)
    rows = coefficients(*particles())
    quarter = rows.copy()
    quarter[:, 5] += np.pi / 2
    sine, cosine = (evaluate_ctf(r, kx, ky).astype(np.float64) for r in (rows, quarter))
    turns = 2 * np.pi * symmetric[group].astype(np.float64)
    got = to_host(evaluate_ctf(*map(device, (rows, kx, ky, symmetric, group))))
    np.testing.assert_allclose(got, sine * np.cos(turns) + cosine * np.sin(turns), atol=2e-4)
    none = np.zeros_like(symmetric)
    same = to_host(evaluate_ctf(*map(device, (rows, kx, ky, none, group))))
    np.testing.assert_allclose(same, to_host(evaluate_ctf(*map(device, (rows, kx, ky)))), atol=2e-7)


def test_wrong_symmetric_phases_are_refused(device):
    k, rows = device(np.zeros(3, np.float32)), device(np.zeros((2, 9), np.float32))
    phases, group = device(np.zeros((1, 3), np.float32)), device(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="symmetric"):
        evaluate_ctf(rows, k, k, device(np.zeros((1, 4), np.float32)), group)
    with pytest.raises(ValueError, match="group"):
        evaluate_ctf(rows, k, k, phases, device(np.zeros(3, np.int32)))
    with pytest.raises(TypeError, match="group"):
        evaluate_ctf(rows, k, k, phases, None)


def test_the_origin_holds_the_amplitude_contrast(device):
    zero = device(np.zeros(1, np.float32))
    values = particles()
    got = to_host(evaluate_ctf(device(coefficients(*values)), zero, zero))[:, 0]
    np.testing.assert_allclose(got, values[5] * np.sin(values[3] + np.arcsin(Q0)), atol=1e-6)


def test_wrong_coefficients_are_refused(device):
    k = device(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="coefficients"):
        evaluate_ctf(device(np.zeros((2, 8), np.float32)), k, k)
    with pytest.raises(TypeError, match="coefficients"):
        evaluate_ctf(device(np.zeros((2, 9))), k, k)
