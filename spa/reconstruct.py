"""Reconstruction from Fourier accumulators: new sums, symmetry, weights per shell, and the map they give.

An accumulator is the pair (data, weight) that `spa.kernels.slices.insert_slices` fills: half transforms,
complex64 and float32 (m, m, R + 2) or (m, R + 2), m = 2 R + 3. Partial sums add. All functions but
`new_accumulator` take one reference, without the axis of classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spa.fourier import forward, from_half_transform, gridding_correction, inverse
from spa.grids import rfft_frequencies
from spa.kernels.backend import Array, to_host, xp_of
from spa.kernels.slices import half_radius
from spa.kernels.symmetrise import symmetrise_half_volumes

_WEIGHT_FLOOR = 1e-3
_PLANES = 16


def new_accumulator(
    n_classes: int, box: int, padding: int, kmax: int, ndim: int = 3, like: Array | None = None
) -> tuple[Array, Array]:
    """Empty sums (data, weight) for `n_classes` references of `ndim` dimensions, (n_classes, m, m, R + 2) or
    (n_classes, m, R + 2), on the device of `like` (default CPU).

    Raises ValueError unless kmax < box / 2.
    """
    if kmax >= box // 2:
        raise ValueError(f"kmax {kmax}: expected less than {box // 2} for a box of {box}")
    xp = xp_of(like)
    r = half_radius(padding, kmax)
    shape = (n_classes, *(2 * r + 3,) * (ndim - 1), r + 2)
    return xp.zeros(shape, dtype=np.complex64), xp.zeros(shape, dtype=np.float32)


def symmetrise(data: Array, weight: Array, operators: ArrayLike) -> tuple[Array, Array]:
    """Sum of an accumulator over the rotations of a point group, (h, 3, 3), the identity included: data'(k) =
    sum of data(h k), by linear interpolation.

    Exact for signed permutation matrices. The result is an accumulator like those that entered: the plane x
    = 0 holds half of the sum, its Friedel mate the other half.
    """
    group = np.ascontiguousarray(operators, dtype=np.float64)
    if len(group) == 1:
        return data, weight
    data_sum, weight_sum = symmetrise_half_volumes(_completed(data), _completed(weight), xp_of(data).asarray(group))
    data_sum[..., 0] /= 2
    weight_sum[..., 0] /= 2
    return data_sum, weight_sum


def shell_weight(weight: Array, padding: int) -> NDArray[np.float64]:
    """Mean weight per voxel of the unpadded transform on shells 0 .. kmax, float64 (kmax + 1,) on the CPU.

    The sum over the padding ** ndim padded voxels that share the weight of one voxel.
    """
    kmax = (weight.shape[-1] - 2) // padding - 2
    return _shell_means(weight, padding)[: kmax + 1] * float(padding**weight.ndim)


def solve(
    data: Array,
    weight: Array,
    box: int,
    padding: int,
    kmax: int,
    inverse_tau2: ArrayLike | None = None,
    band: int | None = None,
) -> Array:
    """The map of an accumulator: data / (weight + 1 / tau2) up to shell kmax, float32 (box,) * ndim.

    inverse_tau2 (n_shells,), if given, is the Wiener prior's 1 / tau2 per voxel of the unpadded transform;
    shells beyond its end take its last value, infinite values give zero. Weights below 1/1000 of their
    shell's mean are raised to that. With `band`, shells 0 .. band and those beyond it are cut from the padded box
    apart, and none of the first is left in the others, into which the cut spreads them otherwise. Raises
    ValueError for an accumulator made for a smaller kmax or with an axis of classes.

    Notes: Scheres 2012, J Struct Biol 180:519, eq. 9. The real-space fall-off of linear insertion is
    divided out.
    """
    xp, r = xp_of(data), data.shape[-1] - 2
    if data.ndim not in (2, 3) or data.shape[0] != 2 * r + 3 or half_radius(padding, kmax) > r:
        raise ValueError(f"accumulator of shape {data.shape}: expected one reference, padding {padding}, kmax {kmax}")
    means = _shell_means(weight, padding)
    floor = xp.asarray(np.maximum(_WEIGHT_FLOOR * means, np.finfo(np.float32).tiny).astype(np.float32))
    prior = xp.asarray(_prior(inverse_tau2, len(means)) / float(padding**data.ndim), dtype=np.float32)
    cut = int(padding * (kmax + 0.5))
    inner = (slice(r + 1 - cut, r + 2 + cut),) * (data.ndim - 1)
    data_plane, weight_plane = _completed_plane(data)[inner], _completed_plane(weight)[inner]
    data, weight = data[(*inner, slice(0, cut + 1))], weight[(*inner, slice(0, cut + 1))]
    quotient = xp.empty(data.shape, dtype=np.complex64)
    for planes, squared in _slabs(data):
        numerator, denominator = data[planes].copy(), weight[planes].copy()
        numerator[..., 0], denominator[..., 0] = data_plane[planes], weight_plane[planes]
        shell = xp.minimum(xp.rint(xp.sqrt(squared) / padding), len(means) - 1).astype(np.int32)
        denominator = xp.maximum(denominator + prior[shell], floor[shell])
        # times the reciprocal: a complex number over infinity is not a number on every device
        quotient[planes] = numerator * xp.where(squared <= cut * cut, 1 / denominator, 0)
    if band is None or band >= kmax:
        return _map(quotient, padding, box)
    low = xp.zeros_like(quotient)
    for planes, squared in _slabs(quotient):
        inside = squared < (padding * (band + 0.5)) ** 2
        low[planes] = xp.where(inside, quotient[planes], 0)
        quotient[planes] = xp.where(inside, 0, quotient[planes])
    return _map(quotient, padding, box) + _cut_above(_map(low, padding, box), band)


def _map(quotient: Array, padding: int, box: int) -> Array:
    """The map of a half transform, without the fall-off of linear insertion."""
    volume = from_half_transform(quotient, padding, box)
    volume /= gridding_correction(box, padding, volume)
    return volume


def _cut_above(volume: Array, band: int) -> Array:
    """A map without the shells beyond `band`."""
    xp, box = xp_of(volume), volume.shape[-1]
    squared = sum(xp.asarray(k) ** 2 for k in rfft_frequencies(box, volume.ndim))
    return inverse(forward(volume, volume.ndim) * (squared < (band + 0.5) ** 2), box, volume.ndim)


def _completed(half: Array) -> Array:
    """A copy of a half transform whose plane x = 0 is complete."""
    whole = half.copy()
    whole[..., 0] = _completed_plane(half)
    return whole


def _completed_plane(half: Array) -> Array:
    """The plane x = 0 of a half transform with the Friedel mate of each voxel added."""
    plane = half[..., 0]
    return plane + xp_of(half).conj(xp_of(half).flip(plane))


def _slabs(half: Array) -> Iterator[tuple[slice, Array]]:
    """Slices along the first axis of a half transform, each with the squared radius of its voxels
    (float32)."""
    xp, m = xp_of(half), half.shape[0]
    full, positive = np.arange(m, dtype=np.float32) - m // 2, np.arange(half.shape[-1], dtype=np.float32)
    rest = positive**2 if half.ndim == 2 else (full**2)[:, None] + positive**2
    rest, first = xp.asarray(rest), xp.asarray((full**2).reshape(-1, *(1,) * (half.ndim - 1)))
    for start in range(0, m, _PLANES):
        planes = slice(start, min(start + _PLANES, m))
        yield planes, first[planes] + rest


def _shell_means(weight: Array, padding: int) -> NDArray[np.float64]:
    """Mean weight per padded voxel on each unpadded shell the half transform reaches, float64 on the CPU."""
    xp, n_shells = xp_of(weight), (weight.shape[-1] - 1) // padding + 1
    total, count = xp.zeros(n_shells), xp.zeros(n_shells)
    plane = _completed_plane(weight)
    for planes, squared in _slabs(weight):
        shell = xp.minimum(xp.rint(xp.sqrt(squared) / padding), n_shells).astype(np.int32)
        # the plane x = 0 lists both mates, every other voxel stands for two
        share = xp.ones(shell.shape, dtype=np.float32)
        share[..., 0] = 0.5
        values = weight[planes].copy()
        values[..., 0] = plane[planes] / 2
        total += xp.bincount(shell.ravel(), values.ravel(), n_shells + 1)[:n_shells]
        count += xp.bincount(shell.ravel(), share.ravel(), n_shells + 1)[:n_shells]
    return np.asarray(to_host(total / count))


def _prior(inverse_tau2: ArrayLike | None, n_shells: int) -> NDArray[np.float64]:
    """1 / tau2 on each shell, the last value repeated; zero without a prior."""
    if inverse_tau2 is None:
        return np.zeros(n_shells)
    given = np.asarray(inverse_tau2, dtype=np.float64)
    return given[np.minimum(np.arange(n_shells), len(given) - 1)]
