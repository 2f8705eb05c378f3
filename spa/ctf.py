"""The contrast transfer function: electron wavelength, coefficients per particle, CTF images.

Notes: CTF = scale * sin(chi) * exp(-B s^2 / 4) with chi = pi lambda df s^2 - pi/2 Cs lambda^3 s^4 + phase
shift + atan(Q0 / sqrt(1 - Q0^2)), df the underfocus along the direction of s; positive at low s. The sign
convention and the angles are RELION's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.grids import rfft_frequencies
from spa.kernels.backend import Array, xp_of
from spa.kernels.ctf import N_COEFFICIENTS, evaluate_ctf


def wavelength(voltage: ArrayLike) -> NDArray[np.float64]:
    """Relativistic electron wavelength in Angstrom for an accelerating voltage in kV."""
    volts = np.asarray(voltage, dtype=np.float64) * 1e3
    return np.asarray(12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))


def coefficients(
    defocus_u: ArrayLike,
    defocus_v: ArrayLike,
    defocus_angle: ArrayLike,
    voltage: ArrayLike,
    cs: ArrayLike,
    q0: ArrayLike,
    phase_shift: ArrayLike,
    bfactor: ArrayLike,
    scale: ArrayLike,
    pixel_size: ArrayLike,
    box_size: int,
) -> NDArray[np.float32]:
    """Coefficients, float32 (n, 9), that `spa.kernels.ctf.evaluate_ctf` turns into CTF values.

    Arguments broadcast to (n,): defoci in Angstrom (underfocus positive), angle and phase shift in degrees,
    voltage in kV, cs in mm, q0 the amplitude contrast (0 to 1), bfactor in Angstrom^2, pixel size in
    Angstrom.
    """
    u, v, angle, kv, cs_mm, q, phase, b, s, px = (
        np.asarray(x, dtype=np.float64)
        for x in (
            defocus_u,
            defocus_v,
            defocus_angle,
            voltage,
            cs,
            q0,
            phase_shift,
            bfactor,
            scale,
            pixel_size,
        )
    )
    lam, extent = wavelength(kv), px * box_size
    columns = (
        (u + v) / 2,
        (u - v) / 2,
        np.radians(angle),
        np.pi * lam / extent**2,
        np.pi / 2 * cs_mm * 1e7 * lam**3 / extent**4,
        np.radians(phase) + np.arctan2(q, np.sqrt(1 - q**2)),
        b / (4 * extent**2),
        s,
        np.zeros(1),
    )
    table = np.stack(np.broadcast_arrays(*(np.atleast_1d(c) for c in columns)), axis=-1)
    if table.shape[-1] != N_COEFFICIENTS or table.ndim != 2:
        raise ValueError(f"CTF parameters broadcast to shape {table.shape[:-1]}: expected (n,)")
    return np.ascontiguousarray(table, dtype=np.float32)


def ctf_image(coefs: Array, box_size: int) -> Array:
    """CTFs in the rfft layout, float32 (n, box, box // 2 + 1), of coefficients (n, 9) made for the same
    box."""
    xp = xp_of(coefs)
    ky, kx = np.broadcast_arrays(*rfft_frequencies(box_size, 2))
    values = evaluate_ctf(coefs, xp.asarray(kx.ravel()), xp.asarray(ky.ravel()))
    return values.reshape(-1, box_size, box_size // 2 + 1)
