"""HEALPix sampling of the sphere: nested and ring numbering, pixel centres, and frames for projection
directions.

Notes: Górski et al. 2005, ApJ 622:759. `order` is log2(Nside); there are 12 * 4**order pixels of equal area.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.euler import matrix

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# row and longitude of the lowest corner of the 12 base faces, in units of Nside rings and of pi/4
_FACE_RING = np.repeat([2, 3, 4], 4)
_FACE_LONGITUDE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


def n_pixels(order: int) -> int:
    """The number of pixels at an order."""
    return 12 << 2 * order


def angular_step(order: int) -> float:
    """RELION's nominal angular step of an order in degrees: 60, 30, 15, 7.5, ..."""
    return 60 / (1 << order)


def _spread(bits: Ints) -> Ints:
    """Move bit i of each number to bit 2i."""
    v = bits.astype(np.int64)
    for step, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
                       (2, 0x3333333333333333), (1, 0x5555555555555555)):  # fmt: skip
        v = (v | (v << step)) & mask
    return v


def _gather(bits: Ints) -> Ints:
    """Move bit 2i of each number to bit i and drop the odd ones."""
    v = bits & 0x5555555555555555
    for step, mask in ((1, 0x3333333333333333), (2, 0x0F0F0F0F0F0F0F0F), (4, 0x00FF00FF00FF00FF),
                       (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):  # fmt: skip
        v = (v | (v >> step)) & mask
    return v


def _checked(order: int, pix: ArrayLike) -> Ints:
    pixels = np.asarray(pix, dtype=np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() >= n_pixels(order)):
        raise ValueError(f"HEALPix pixel outside 0 to {n_pixels(order) - 1} of order {order}")
    return pixels


def _ring_length(nside: int, ring: Ints) -> Ints:
    """A quarter of the number of pixels on each ring 1 .. 4 * nside - 1."""
    return np.minimum(np.minimum(ring, 4 * nside - ring), nside)


def _ring_start(nside: int, ring: Ints) -> Ints:
    """The ring-scheme number of the first pixel of each ring."""
    south = 4 * nside - ring
    belt = 2 * nside * (nside - 1) + (ring - nside) * 4 * nside
    cap = np.where(ring < nside, 2 * ring * (ring - 1), 12 * nside**2 - 2 * south * (south + 1))
    return np.where((ring < nside) | (south < nside), cap, belt)


def _nest_to_place(order: int, pix: Ints) -> tuple[Ints, Ints]:
    """Ring number and longitude (in units of pi / 4 / ring length) of nested pixels."""
    nside = 1 << order
    face = pix >> (2 * order)
    inside = pix & (nside**2 - 1)
    x, y = _gather(inside), _gather(inside >> 1)
    ring = _FACE_RING[face] * nside - x - y - 1
    length = _ring_length(nside, ring)
    return ring, (_FACE_LONGITUDE[face] * length + x - y) % (8 * length)


def _ring_to_place(order: int, pix: Ints) -> tuple[Ints, Ints]:
    """Ring number and longitude (in units of pi / 4 / ring length) of ring-scheme pixels."""
    nside = 1 << order
    ring = np.searchsorted(_ring_start(nside, np.arange(1, 4 * nside)), pix, side="right")
    # rings of the caps and every second ring of the belt begin half a pixel away from longitude 0
    odd = (ring < nside) | (ring > 3 * nside) | ((ring - nside) % 2 == 0)
    return ring, 2 * (pix - _ring_start(nside, ring)) + odd


def _place(order: int, pix: ArrayLike, nest: bool) -> tuple[Floats, Floats, Floats]:
    """cos(theta), sin(theta) and phi of pixel centres."""
    nside = 1 << order
    ring, longitude = (_nest_to_place if nest else _ring_to_place)(order, _checked(order, pix))
    length = _ring_length(nside, ring)
    depth = length**2 / (3 * nside**2)
    belt = (ring >= nside) & (ring <= 3 * nside)
    z = np.where(belt, (2 * nside - ring) * 2 / (3 * nside), np.where(ring < nside, 1 - depth, depth - 1))
    # 1 - z**2 cancels near the poles
    sine = np.where(belt, np.sqrt(1 - z**2), np.sqrt(depth * (2 - depth)))
    return z, sine, np.pi / 4 * longitude / length


def pix2vec(order: int, pix: ArrayLike, nest: bool = True) -> Floats:
    """Unit vectors (..., 3) to the pixel centres; raises ValueError for a pixel outside the order's range."""
    z, sine, phi = _place(order, pix, nest)
    return np.stack([sine * np.cos(phi), sine * np.sin(phi), z], axis=-1)


def pix2ang(order: int, pix: ArrayLike, nest: bool = True) -> tuple[Floats, Floats]:
    """Colatitude theta and longitude phi of the pixel centres, radians."""
    z, sine, phi = _place(order, pix, nest)
    return np.arctan2(sine, z), phi


def vec2pix(order: int, vec: ArrayLike, nest: bool = True) -> Ints:
    """The pixels that contain the directions `vec` (..., 3), which need not be normalised."""
    v = np.asarray(vec, dtype=np.float64)
    norm = np.linalg.norm(v, axis=-1)
    z, sine = v[..., 2] / norm, np.hypot(v[..., 0], v[..., 1]) / norm
    quarter = np.mod(np.arctan2(v[..., 1], v[..., 0]) / (np.pi / 2), 4)
    pix = _place_to_nest(order, z, sine, quarter)
    return pix if nest else nest2ring(order, pix)


def _place_to_nest(order: int, z: Floats, sine: Floats, quarter: Floats) -> Ints:
    """Nested pixels at cos(theta), sin(theta) and longitude in units of pi / 2."""
    nside = 1 << order
    # equatorial belt: indices of the ascending and descending pixel edges
    up = np.floor(nside * (0.5 + quarter - 0.75 * z)).astype(np.int64)
    down = np.floor(nside * (0.5 + quarter + 0.75 * z)).astype(np.int64)
    face_up, face_down = up // nside, down // nside
    belt_face = np.where(face_up == face_down, face_up % 4 + 4, np.where(face_up < face_down, face_up, face_down + 8))
    # polar caps: distance from the pole along the two edges of the face
    sector = np.minimum(quarter.astype(np.int64), 3)
    reach = nside * sine * np.sqrt(3 / (1 + np.abs(z)))
    a = np.minimum((reach * (quarter - sector)).astype(np.int64), nside - 1)
    b = np.minimum((reach * (1 - quarter + sector)).astype(np.int64), nside - 1)
    north = z >= 0
    belt = np.abs(z) <= 2 / 3
    face = np.where(belt, belt_face, np.where(north, sector, sector + 8))
    x = np.where(belt, down % nside, np.where(north, nside - 1 - b, a))
    y = np.where(belt, nside - 1 - up % nside, np.where(north, nside - 1 - a, b))
    return (face << (2 * order)) + _spread(x) + 2 * _spread(y)


def nest2ring(order: int, pix: ArrayLike) -> Ints:
    """Ring-scheme numbers of nested pixels."""
    ring, longitude = _nest_to_place(order, _checked(order, pix))
    return np.asarray(_ring_start(1 << order, ring) + longitude // 2)


def ring2nest(order: int, pix: ArrayLike) -> Ints:
    """Nested numbers of ring-scheme pixels."""
    z, sine, phi = _place(order, pix, nest=False)
    return _place_to_nest(order, z, sine, phi / (np.pi / 2))


@lru_cache(maxsize=8)
def frames(order: int) -> Floats:
    """Image frames of all nested pixels, (n, 3, 3): the Euler matrices with rot = phi, tilt = theta, psi = 0.

    Row 2 is the pixel's direction, rows 0 and 1 the image axes; read-only.
    """
    theta, phi = pix2ang(order, np.arange(n_pixels(order)))
    result = matrix(np.degrees(phi), np.degrees(theta), 0.0)
    result.setflags(write=False)
    return result
