"""Aberrations of optics groups: beam tilt, higher orders and anisotropic magnification.

Notes
-----
RELION's conventions since 3.1 (Zivanov, Nakane & Scheres 2020, IUCrJ 7:253). What the lenses did to the wave lies at
the frequencies q = M k, with k the frequency in the image and M the group's magnification matrix (rlnMagMat00, 01, 10,
11, row by row): the central slice, the CTF and all phases are taken at q, only shifts and noise at k. (RELION reaches
the same point by multiplying the projection matrix by the inverse of M and inverting the product.)

Phases are sums of Zernike polynomials of q in 1/Å, the unit circle at 1 Å, with coefficients in radians: odd orders
(rlnOddZernike: n = 1, 3, ...) and even orders (rlnEvenZernike: n = 0, 2, ...), within an order m = -n, -n + 2, ..., n;
negative m is the sine. An image is exp(i odd) times what an ideal microscope gives, and its CTF is sin(chi - even). A
beam tilt t (mrad) adds the odd phase -2 pi 10^4 Cs lambda^2 |q|^2 (t . q), with Cs in mm and lambda in Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.errors import InputError
from spa.kernels.backend import Array, to_host, to_like, xp_of

Floats = NDArray[np.float64]

DETERMINANTS = (0.5, 2.0)
"""Determinants that a magnification matrix may have."""
_MATRIX = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_IDENTITY = (1.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Aberrations:
    """Of one optics group.

    odd, even : Zernike coefficients in radians, in RELION's order. magnification : 2 x 2 matrix, row by row.
    """

    odd: tuple[float, ...] = ()
    even: tuple[float, ...] = ()
    magnification: tuple[float, float, float, float] = _IDENTITY

    @property
    def matrix(self) -> Floats:
        """The magnification matrix, float64 (2, 2)."""
        return np.array(self.magnification).reshape(2, 2)


def with_beam_tilt(odd: Sequence[float], tilt_x: float, tilt_y: float, cs: float, wavelength: float) -> Floats:
    """Odd coefficients with those of a beam tilt added: tilt in mrad, cs in mm, wavelength in Å."""
    result = np.zeros(max(len(odd), 6))
    result[: len(odd)] = odd
    for tilt, first, third in ((tilt_x, 1, 4), (tilt_y, 0, 3)):
        # x r^2 = (Z(1, 3) + 2 Z(1, 1)) / 3, and the same for y
        coma = -2e4 * np.pi * cs * wavelength**2 * tilt / 3
        result[first] += 2 * coma
        result[third] += coma
    return result


def zernike_sum(coefficients: Sequence[float], first_order: int, x: ArrayLike, y: ArrayLike) -> Floats:
    """Sum of Zernike polynomials, float64, of orders first_order, first_order + 2, ... at x, y (unit circle 1)."""
    z = np.asarray(x, np.float64) + 1j * np.asarray(y, np.float64)
    squared = z.real**2 + z.imag**2
    total = np.zeros(z.shape)
    n, m = first_order, -first_order
    for coefficient in coefficients:
        if coefficient:
            angular = z ** abs(m)
            total += coefficient * _radial(abs(m), n, squared) * (angular.real if m >= 0 else angular.imag)
        m += 2
        if m > n:
            n += 2
            m = -n
    return total


def _radial(m: int, n: int, squared: Floats) -> Floats:
    """The radial Zernike polynomial of order n over r^m, at r^2."""
    total = np.zeros_like(squared)
    for k in range((n - m) // 2 + 1):
        c = (-1) ** k * factorial(n - k) / (factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k))
        total += c * squared ** ((n - m) // 2 - k)
    return total


def read_aberrations(table: Any, cs: ArrayLike, wavelength: ArrayLike) -> list[Aberrations]:
    """Aberrations of the rows of a data_optics block; cs in mm and wavelength in Å, (n_groups,).

    Raises
    ------
    InputError
        A beam tilt or matrix element that is not a finite number, Zernike coefficients that are not a list of
        numbers in brackets, a magnification matrix whose determinant is outside DETERMINANTS.
    """
    n = len(table)
    tilts = [table.floats(c) if c in table else np.zeros(n) for c in ("rlnBeamTiltX", "rlnBeamTiltY")]
    odd, even = (_lists(table, c) if c in table else [()] * n for c in ("rlnOddZernike", "rlnEvenZernike"))
    matrices = _matrices(table)
    cs, wavelength = np.broadcast_to(np.asarray(cs), n), np.broadcast_to(np.asarray(wavelength), n)
    found = []
    for i in range(n):
        if tilts[0][i] or tilts[1][i]:
            odd[i] = tuple(with_beam_tilt(odd[i], tilts[0][i], tilts[1][i], cs[i], wavelength[i]).tolist())
        found.append(Aberrations(odd[i] if any(odd[i]) else (), even[i] if any(even[i]) else (), matrices[i]))
    return found


def _lists(table: Any, column: str) -> list[tuple[float, ...]]:
    """A column of lists like [0.1,-2e-3]."""
    found = []
    for row, text in enumerate(table.text(column), 1):
        inner = text.strip()
        try:
            if not (inner.startswith("[") and inner.endswith("]")):
                raise ValueError(text)
            numbers = tuple(float(part) for part in inner[1:-1].split(",")) if inner[1:-1].strip() else ()
            if not np.isfinite(numbers).all():
                raise ValueError(text)
        except ValueError as error:
            raise InputError(
                f"{table.path}: data_optics, row {row}, column {column}: expected finite numbers in brackets "
                f"like [0.1,-0.2], found '{text}'"
            ) from error
        found.append(numbers)
    return found


def _matrices(table: Any) -> list[tuple[float, float, float, float]]:
    """Magnification matrices; an element without a column is that of the identity."""
    n = len(table)
    columns = [table.floats(c) if c in table else np.full(n, one) for c, one in zip(_MATRIX, _IDENTITY, strict=True)]
    a, b, c, d = columns
    low, high = DETERMINANTS
    for row, determinant in enumerate(a * d - b * c):
        if not low <= determinant <= high:
            raise InputError(
                f"{table.path}: data_optics, row {row + 1}, columns rlnMagMat00 to rlnMagMat11: expected a matrix "
                f"with a determinant of {low:g} to {high:g}, found "
                f"[[{a[row]:g}, {b[row]:g}], [{c[row]:g}, {d[row]:g}]] with {determinant:g}"
            )
    return list(zip(*(column.tolist() for column in columns), strict=True))


def magnification_classes(groups: Sequence[Aberrations]) -> NDArray[np.int64]:
    """Number, int64 (n_groups,), of each group's magnification among the distinct ones, by first appearance."""
    order: dict[tuple[float, ...], int] = {}
    return np.array([order.setdefault(g.magnification, len(order)) for g in groups], dtype=np.int64)


class PixelAberrations:
    """What the aberrations of optics groups do to a list of Fourier pixels.

    Parameters
    ----------
    groups : one for each optics group.
    kx, ky : float32 (n_pixels,), Fourier pixels on the device that works with them.
    extent : box size times pixel size, Å.

    Attributes
    ----------
    magnification : int64 (n_groups,), see `magnification_classes`.
    slices : (slice_x, slice_y) of each magnification class, float32 (n_pixels,) each: the positions q = M k in
        Fourier pixels; kx and ky themselves for the identity.
    """

    def __init__(self, groups: Sequence[Aberrations], kx: Array, ky: Array, extent: float) -> None:
        self.magnification = magnification_classes(groups)
        _, first = np.unique(self.magnification, return_index=True)
        positions = [_magnified(groups[i], kx, ky) for i in first]
        self.slices: list[tuple[Array, Array]] = [
            (kx, ky)
            if groups[i].magnification == _IDENTITY
            else (to_like(x.astype(np.float32), kx), to_like(y.astype(np.float32), kx))
            for i, (x, y) in zip(first, positions, strict=True)
        ]
        at = [(x / extent, y / extent) for x, y in positions]
        self._odd, self._odd_row = self._table([(g.odd, c) for g, c in self._keys(groups)], 1, at, kx)
        self._even, self._even_row = self._table([(g.even, c) for g, c in self._keys(groups)], 0, at, kx)

    def phase_errors(self, optics: NDArray[np.integer[Any]]) -> Array | None:
        """exp(i odd phase), complex64 (n, n_pixels), of the optics groups (n,); None where no group has any.

        An image holds it as a factor; its conjugate takes it off.
        """
        if self._odd is None:
            return None
        xp = xp_of(self._odd)
        rows, place = np.unique(self._odd_row[optics], return_inverse=True)
        angle = np.float32(2 * np.pi) * self._odd[xp.asarray(rows)]
        return (xp.cos(angle) + np.complex64(1j) * xp.sin(angle))[xp.asarray(place.ravel())]

    def symmetric(self, optics: NDArray[np.integer[Any]]) -> tuple[Array | None, Array | None]:
        """What `evaluate_ctf` takes as `symmetric` and `group` for images of the optics groups (n,)."""
        if self._even is None:
            return None, None
        return self._even, to_like(self._even_row[optics], self._even)

    def _keys(self, groups: Sequence[Aberrations]) -> list[tuple[Aberrations, int]]:
        return list(zip(groups, self.magnification.tolist(), strict=True))

    @staticmethod
    def _table(
        wanted: list[tuple[tuple[float, ...], int]], first_order: int, at: list[tuple[Floats, Floats]], like: Array
    ) -> tuple[Array | None, NDArray[np.int32]]:
        """Distinct phases in turns, float32 (n_rows, n_pixels), and the row of each group; None if all are zero.

        The even phase enters chi with a minus sign.
        """
        rows: dict[tuple[tuple[float, ...], int], int] = {}
        row = np.array([rows.setdefault(w if any(w[0]) else ((), 0), len(rows)) for w in wanted], dtype=np.int32)
        if not any(coefficients for coefficients, _ in rows):
            return None, row
        sign = 1.0 if first_order else -1.0
        turns = [sign * zernike_sum(c, first_order, *at[place]) / (2 * np.pi) for c, place in rows]
        # reduced in float64, so that large phases keep their precision in float32
        return to_like(np.stack([t - np.rint(t) for t in turns]).astype(np.float32), like), row


def _magnified(group: Aberrations, kx: Array, ky: Array) -> tuple[Floats, Floats]:
    """Positions M k of Fourier pixels, float64 (n_pixels,) on the CPU."""
    x, y = group.matrix @ np.stack([to_host(kx), to_host(ky)]).astype(np.float64)
    return x, y
