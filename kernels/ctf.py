"""Contrast transfer functions of many particles on a list of Fourier pixels."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import exponential, sincos_turns
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require

N_COEFFICIENTS = 9
DEFINES = (("N_COEFFICIENTS", str(N_COEFFICIENTS)), ("SYMMETRIC", "0"))
SYMMETRIC_DEFINES = (*DEFINES[:1], ("SYMMETRIC", "1"))
_TURNS_PER_RADIAN = 0.5 / math.pi


@cpu_kernel
def _ctf_cpu(coefficients, kx, ky, symmetric, group, out):  # type: ignore[no-untyped-def]
    for i in prange(out.shape[0]):
        defocus, astigmatism, angle, quadratic, quartic, offset, envelope, scale = coefficients[i, :8]
        mean = np.float32(_TURNS_PER_RADIAN * quadratic * defocus)
        along = np.float32(_TURNS_PER_RADIAN * quadratic * astigmatism * math.cos(2.0 * angle))
        across = np.float32(_TURNS_PER_RADIAN * quadratic * astigmatism * math.sin(2.0 * angle) * 2.0)
        spherical = np.float32(_TURNS_PER_RADIAN * quartic)
        constant = np.float32(_TURNS_PER_RADIAN * offset)
        if symmetric is not None:  # decided when compiled
            phase = symmetric[group[i]]
        for k in range(kx.size):
            x, y = kx[k], ky[k]
            r2 = x * x + y * y
            turns = r2 * (mean - spherical * r2) + along * (x * x - y * y) + across * (x * y) + constant
            if symmetric is not None:
                turns += phase[k]
            turns -= np.float32(np.int32(turns))
            out[i, k] = scale * sincos_turns(turns)[0] * exponential(-envelope * r2)


def evaluate_ctf(
    coefficients: Array, kx: Array, ky: Array, symmetric: Array | None = None, group: Array | None = None
) -> Array:
    """CTF of n particles at n_pixels Fourier pixels.

    Parameters
    ----------
    coefficients : float32 (n, 9) of `spa.ctf.coefficients`: mean defocus (Angstrom), half the difference
        of the defoci (Angstrom), angle (rad), pi lambda / (N px)^2, pi/2 Cs lambda^3 / (N px)^4,
        phase offset (rad), B / (4 (N px)^2), scale, reserved.
    kx, ky : float32 (n_pixels,), Fourier pixels.
    symmetric : float32 (n_groups, n_pixels), phases in turns that are added to chi, -1 to 1, or None.
    group : int32 (n,), which row of `symmetric` each particle takes; given with it.

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
    if symmetric is not None:
        require("symmetric", symmetric, np.float32, (None, n_pixels), kx)
        require("group", group, np.int32, (n,), kx)
    out = xp_of(kx).empty((n, n_pixels), np.float32)
    if is_device(kx):
        grid = (n, -(-n_pixels // BLOCK))
        extra = () if symmetric is None else (symmetric, group)
        defines = DEFINES if symmetric is None else SYMMETRIC_DEFINES
        kernel = raw_module("ctf", defines).get_function("evaluate_ctf")
        launch(kernel, grid, (coefficients, kx, ky, *extra, n_pixels, out))
    else:
        _ctf_cpu(coefficients, kx, ky, symmetric, group, out)
    return out
