"""Aberrations as lengths in Å, the way cryoSPARC stores them, and as RELION's Zernike coefficients in radians.

Notes
-----
The lengths are the coefficients of Uhlemann & Haider 1998 (Ultramicroscopy 72:109) with the image shift s, axial coma
B (beam tilt times spherical aberration), threefold astigmatism T, star aberration S and fourfold astigmatism F. At the
frequency q = |q| (cos a, sin a) and wavelength l, with RELION's signs (see `spa.aberrations`),

    odd  = -2 pi (s . q + l^2 |q|^2 (B . q) + l^2 / 3 |q|^3 (T_1 cos 3a + T_2 sin 3a))
    even = pi / 2 l^3 |q|^4 (4 S_1 cos 2a + 4 S_2 sin 2a + F_1 cos 4a + F_2 sin 4a)

so that a beam tilt keeps its sign, and S and F enter as the spherical aberration does. The six odd polynomials up to
the third order are the same space in both forms. Of the nine even ones up to the fourth order, cryoSPARC keeps what is
not S or F in the spherical aberration, the defocus and the phase shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

N_ODD, N_EVEN = 6, 9
"""Zernike coefficients up to the third and the fourth order."""


@dataclass(frozen=True)
class Lengths:
    """Aberrations of one optics group in Å: shift, tilt (coma) and trefoil, two numbers each; tetra, four (S, F)."""

    shift: tuple[float, ...] = (0.0, 0.0)
    tilt: tuple[float, ...] = (0.0, 0.0)
    trefoil: tuple[float, ...] = (0.0, 0.0)
    tetra: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Remainder:
    """What even coefficients add to a CTF that lengths do not hold.

    cs in mm, phase in radians, defocus in Å, astigmatism in Å: half of U minus V times cosine and sine of 2 angle.
    """

    cs: float
    phase: float
    defocus: float
    astigmatism: tuple[float, float]


def odd_zernike(lengths: Lengths, wavelength: float) -> Floats:
    """Odd Zernike coefficients (6,) of shift, tilt and trefoil."""
    (sx, sy), (bx, by), (t1, t2) = lengths.shift, lengths.tilt, lengths.trefoil
    third = -2 * np.pi / 3 * wavelength**2
    # x r^2 = (Z(1, 3) + 2 Z(1, 1)) / 3, and the same for y
    first = [-2 * np.pi * s + 2 * third * b for s, b in ((sy, by), (sx, bx))]
    return np.array([*first, third * t2, third * by, third * bx, third * t1])


def even_zernike(lengths: Lengths, wavelength: float, cs: float = 0.0) -> Floats:
    """Even Zernike coefficients (9,) of tetra and of a spherical aberration `cs` in mm that is kept nowhere else."""
    s1, s2, f1, f2 = lengths.tetra
    unit = np.pi / 2 * wavelength**3
    # r^4 = (Z(0, 4) + 3 Z(0, 2) + 2) / 6; r^4 cos 2a = (Z(2, 4) + 3 Z(2, 2)) / 4, and the same for the sine
    c = 1e7 * cs / 6
    return unit * np.array([2 * c, 3 * s2, 3 * c, 3 * s1, f2, s2, c, s1, f1])


def from_zernike(odd: Sequence[float], even: Sequence[float], wavelength: float) -> tuple[Lengths, Remainder]:
    """Lengths and remainder of odd and even coefficients, of which those beyond (6,) and (9,) are left out."""
    o, e = np.zeros(N_ODD), np.zeros(N_EVEN)
    o[: len(odd)] = odd[:N_ODD]
    e[: len(even)] = even[:N_EVEN]
    third = -2 * np.pi / 3 * wavelength**2
    unit = np.pi / 2 * wavelength**3
    lengths = Lengths(
        shift=(_plain((o[1] - 2 * o[4]) / (-2 * np.pi)), _plain((o[0] - 2 * o[3]) / (-2 * np.pi))),
        tilt=(_plain(o[4] / third), _plain(o[3] / third)),
        trefoil=(_plain(o[5] / third), _plain(o[2] / third)),
        tetra=tuple(_plain(value / unit) for value in (e[7], e[5], e[8], e[4])),
    )
    scale = -1 / (np.pi * wavelength)
    remainder = Remainder(
        cs=float(6e-7 * e[6] / unit),
        phase=float(e[2] - e[0] - e[6]),
        defocus=float(scale * (2 * e[2] - 6 * e[6])),
        astigmatism=(float(scale * (e[3] - 3 * e[7])), float(scale * (e[1] - 3 * e[5]))),
    )
    return lengths, remainder


def with_remainder(
    remainder: Remainder, defocus_u: Floats, defocus_v: Floats, defocus_angle: Floats
) -> tuple[Floats, Floats, Floats]:
    """Defoci in Å and angles in degrees, (n,) each, with defocus and astigmatism of a remainder added."""
    twice = np.radians(2 * defocus_angle)
    half = (defocus_u - defocus_v) / 2
    x = half * np.cos(twice) + remainder.astigmatism[0]
    y = half * np.sin(twice) + remainder.astigmatism[1]
    mean, size = (defocus_u + defocus_v) / 2 + remainder.defocus, np.hypot(x, y)
    return mean + size, mean - size, np.degrees(np.arctan2(y, x) / 2)


def _plain(value: float) -> float:
    return float(value) + 0.0  # no minus zero
