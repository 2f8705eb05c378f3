"""Contrast transfer functions of many particles on a list of Fourier pixels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import RELAXED, exponential, sincos_turns
from spa.kernels.loader import BLOCK, launch, raw_module, require

N_COEFFICIENTS = 9
DEFINES = (("N_COEFFICIENTS", str(N_COEFFICIENTS)),)
_TURNS_PER_RADIAN = 0.5 / math.pi


@njit(cache=True, nogil=True, parallel=True, fastmath=RELAXED)
def _ctf_cpu(coefficients, kx, ky, out):  # type: ignore[no-untyped-def]
    for i in prange(out.shape[0]):
        defocus, astigmatism, angle, quadratic, quartic, offset, envelope, scale = coefficients[i, :8]
        mean = np.float32(_TURNS_PER_RADIAN * quadratic * defocus)
        along = np.float32(_TURNS_PER_RADIAN * quadratic * astigmatism * math.cos(2.0 * angle))
        across = np.float32(_TURNS_PER_RADIAN * quadratic * astigmatism * math.sin(2.0 * angle) * 2.0)
        spherical = np.float32(_TURNS_PER_RADIAN * quartic)
        constant = np.float32(_TURNS_PER_RADIAN * offset)
        for k in range(kx.size):
            x, y = kx[k], ky[k]
            r2 = x * x + y * y
            turns = r2 * (mean - spherical * r2) + along * (x * x - y * y) + across * (x * y) + constant
            turns -= np.float32(np.int32(turns))
            out[i, k] = scale * sincos_turns(turns)[0] * exponential(-envelope * r2)


def evaluate_ctf(coefficients: Array, kx: Array, ky: Array) -> Array:
    """CTF of n particles at n_pixels Fourier pixels.

    Parameters
    ----------
    coefficients : float32 (n, 9) of `spa.ctf.coefficients`: mean defocus (Angstrom), half the difference
        of the defoci (Angstrom), angle (rad), pi lambda / (N px)^2, pi/2 Cs lambda^3 / (N px)^4,
        phase offset (rad), B / (4 (N px)^2), scale, reserved.
    kx, ky : float32 (n_pixels,), Fourier pixels.

    Returns
    -------
    float32 (n, n_pixels): scale * sin(chi) * exp(-B s^2 / 4).

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    chi = pi lambda defocus(theta) s^2 - pi/2 Cs lambda^3 s^4 + offset (Rohou & Grigorieff 2015,
    J Struct Biol 192:216), with defocus(theta) s^2 written as a polynomial in (kx, ky).
    """
    n_pixels = kx.shape[0]
    require("coefficients", coefficients, np.float32, (None, N_COEFFICIENTS), kx)
    require("kx", kx, np.float32, (n_pixels,), kx)
    require("ky", ky, np.float32, (n_pixels,), kx)
    n = coefficients.shape[0]
    out = xp_of(kx).empty((n, n_pixels), np.float32)
    if is_device(kx):
        grid = (n, -(-n_pixels // BLOCK))
        kernel = raw_module("ctf", DEFINES).get_function("evaluate_ctf")
        launch(kernel, grid, (coefficients, kx, ky, n_pixels, out))
    else:
        _ctf_cpu(coefficients, kx, ky, out)
    return out
