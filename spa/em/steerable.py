"""Steerable scoring: a slice at every in-plane angle from one set of coefficients, and images in the same basis.

The reference is resampled to rings, P(r, theta + psi) = sum_m P_m(r) exp(i m (theta + psi)), and each P_m(r) is written
in a basis of functions u_mh(r). The adjoint of that resampling is applied to the image, so that the sum over Cartesian
pixels, and with it the likelihood, stays what it is: no image is ever interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import jv

from spa.grids import mirror_pairs
from spa.kernels.backend import Array, to_host, to_like, xp_of

FloatArray = NDArray[np.floating[Any]]

LAGRANGE_POINTS = 6
"""Rings from which a pixel's radius is interpolated."""
WIDEST_STEP = 0.15
"""Largest distance of two rings, in periods of the particle's outermost part; at 0.2 the error doubles."""
EXTRA_ANGLES = 4
"""Angles per half turn beyond those that the orders of P and |P|^2 need."""
BASIS_ORDER = 2
"""HEALPix order of the directions on which the basis is judged."""
MEAN_WEIGHT_FLOOR = 1e-7
"""Smallest eigenvalue of a basis's Gram matrix, relative to the largest, that is told from rounding."""


@dataclass(frozen=True)
class Precision:
    """How closely the rings follow the slices.

    Attributes
    ----------
    tolerance : standard deviation of the log-likelihood that leaving out basis functions may cause.
    ring_step : distance of the rings in Fourier pixels.
    bessel_floor : singular values of the Bessel functions kept, relative to the largest.
    norm_orders : highest angular order of |P|^2, on all rings, that meets those of the weights (CTF^2 / sigma^2).
    """

    tolerance: float = 0.03
    ring_step: float = 0.5
    bessel_floor: float = 2e-3
    norm_orders: int = 8


STRICT = Precision(tolerance=0.002, ring_step=0.25, bessel_floor=1e-5, norm_orders=48)
"""For tests: everything that a default leaves out, kept."""


@dataclass(frozen=True)
class Rings:
    """Geometry shared by all references of a box: rings, their angular transforms, Bessel functions on them.

    Attributes
    ----------
    box, kmax : box size and Fourier radius that they serve.
    step : distance of the rings in Fourier pixels.
    points : float32 (2, n_rings * n_angles), (x, y) of the points of all rings, angles 0 to pi.
    n_angles : points on half of a ring.
    norm : float32 (2 * n_orders, n_angles), from |P|^2 along half a ring to the real, then imaginary parts of orders.
    norm_orders : orders of |P|^2.
    bessel : for each order m an orthonormal basis (n_rings, n) of {J_m(2 pi r x / box), x <= radius}.
    """

    box: int
    kmax: int
    step: float
    n_rings: int
    points: FloatArray
    n_angles: int
    norm: FloatArray
    bessel: tuple[FloatArray, ...]
    norm_orders: tuple[int, ...]

    @property
    def norm_starts(self) -> NDArray[np.int32]:
        """Where the moments of each order start among all, int32 (n_orders + 1,)."""
        return np.arange(len(self.norm_orders) + 1, dtype=np.int32) * np.int32(self.n_rings)

    def angular(self, orders: list[int]) -> FloatArray:
        """From the values along half a ring to the real, then imaginary parts of angular orders of one parity.

        float32 (2 * len(orders), n_angles); even orders come from the real part of the values, odd ones from the
        imaginary part, since f(theta + pi) = conj f(theta).
        """
        angle = np.outer(orders, np.pi * np.arange(self.n_angles) / self.n_angles)
        odd = orders[0] % 2
        parts = (np.sin(angle), np.cos(angle)) if odd else (np.cos(angle), -np.sin(angle))
        return (np.concatenate(parts) / self.n_angles).astype(np.float32)


@lru_cache(maxsize=8)
def make_rings(box: int, kmax: int, radius: float, precision: Precision, stretch: float = 1.0) -> Rings:
    """Rings that serve all pixels below stretch * (kmax + 1/2) for a particle of `radius` pixels in a box of `box`.

    Notes
    -----
    A projection that vanishes beyond `radius` has rings in the span of J_m(2 pi r x / box), x <= radius (Jacobi-Anger).
    """
    step = min(precision.ring_step, WIDEST_STEP * box / radius)
    n_rings = int(np.ceil(stretch * (kmax + 0.5) / step)) + LAGRANGE_POINTS // 2 + 1
    ring = np.arange(n_rings) * step
    position = np.linspace(0.25, radius, int(np.ceil(1.5 * radius)))
    bessel: list[FloatArray] = []
    largest = 0.0
    while True:
        values = jv(len(bessel), 2 * np.pi * np.outer(ring, position) / box) * np.sqrt(position)
        left, singular, _ = np.linalg.svd(values, full_matrices=False)
        largest = largest or singular[0]
        kept = int((singular > precision.bessel_floor * largest).sum())
        if kept == 0:
            break
        bessel.append(left[:, :kept])
    norm_orders = tuple(range(0, precision.norm_orders + 1, 2))
    n_angles = len(bessel) + precision.norm_orders // 2 + EXTRA_ANGLES
    theta = np.pi * np.arange(n_angles) / n_angles
    norm = np.array(norm_orders)[:, None] * theta
    return Rings(
        box=box,
        kmax=kmax,
        step=step,
        n_rings=n_rings,
        points=np.stack([np.outer(ring, f(theta)).ravel() for f in (np.cos, np.sin)]).astype(np.float32),
        n_angles=n_angles,
        norm=(np.concatenate([np.cos(norm), -np.sin(norm)]) / n_angles).astype(np.float32),
        bessel=tuple(bessel),
        norm_orders=norm_orders,
    )


def _lagrange(position: FloatArray, n: int) -> FloatArray:
    """Matrix (len(position), n) of Lagrange interpolation from the integers 0 .. n - 1."""
    first = np.maximum(np.floor(position).astype(int) - (LAGRANGE_POINTS // 2 - 1), 0)
    matrix = np.zeros((len(position), n))
    nodes = np.arange(LAGRANGE_POINTS)
    for node in nodes:
        others = nodes[nodes != node]
        weight = np.prod((position[:, None] - first[:, None] - others) / (node - others), axis=1)
        matrix[np.arange(len(position)), first + node] += weight
    return matrix


@dataclass(frozen=True)
class Basis:
    """Functions u_mh in which rings and images meet, up to one kmax.

    Coefficients are laid out [Re even orders | Im even orders | Re odd orders | Im odd orders].

    Attributes
    ----------
    orders : int (n,), the angular order m of each function, even ones first.
    n_even : how many of them are of even order.
    analysis : for each order m with functions, float32 (n_rings, n_m): rings to coefficients.
    synthesis : the way back, float32 (n_rings, n_m).
    pairs : int32 (2, n_pairs), pixels of an image and their mirror images (see `spa.grids.mirror_pairs`).
    own : float32 (n_pairs, n_even or n_odd) for each of the four parts of `shifted_rows`: to the coefficients that the
        part has by symmetry, since cos(m theta) is the same on mirrored pixels and sin(m theta) changes its sign.
    other : the same to the coefficients of the other part, real or imaginary, of the same parity; none where pixels
        and their mirror images sample mirrored places.
    norm_rows : float32 (n_pixels, n_moments): weights to their moments on the rings, real, then imaginary parts.
    """

    rings: Rings
    orders: NDArray[np.int64]
    n_even: int
    analysis: dict[int, Array]
    synthesis: dict[int, Array]
    pairs: Array
    own: tuple[Array, ...]
    other: tuple[Array, ...]
    norm_rows: Array

    @property
    def n_coefficients(self) -> int:
        """Floats per direction, and per shifted image."""
        return 2 * len(self.orders)

    def sampled_at(self, x: FloatArray, y: FloatArray) -> Basis:
        """The same basis for images whose pixels sample the slice at other places (see `make_basis`)."""
        synthesis = {m: to_host(u) for m, u in self.synthesis.items()}
        return replace(self, **_image_side(self.rings, synthesis, x, y, self.norm_rows))

    def folded(self, images: Array) -> Array:
        """Images complex64 (n, n_pixels) as pairs of mirrored pixels, (n, 2, n_pairs); zero where there is no pair."""
        xp = xp_of(images)
        padded = xp.concatenate([images, xp.zeros((len(images), 1), images.dtype)], axis=1)
        return xp.take(padded, self.pairs, axis=1)

    def rows(self, parts: Array) -> Array:
        """Coefficients of shifted images CTF X / sigma^2, float32 (4, n, n_pairs) as from `shifted_rows`.

        Returns float32 (n, n_coefficients): with a direction's coefficients p, turned by psi, their dot product is the
        cross term Re sum_k Y* P.
        """
        out = xp_of(parts).empty((parts.shape[1], self.n_coefficients), np.float32)
        at = 0
        for block, matrix in enumerate(self.own):
            columns = slice(at, at + matrix.shape[1])
            out[:, columns] = parts[block] @ matrix
            if self.other:
                out[:, columns] += parts[block ^ 1] @ self.other[block]
            at = columns.stop
        return out


def make_basis(
    rings: Rings,
    x: FloatArray,
    y: FloatArray,
    sample: Array,
    mean_weight: FloatArray,
    tolerance: float,
    share: float = 1.0,
) -> Basis:
    """The basis for references like the sampled ones.

    Parameters
    ----------
    x, y : (n_pixels,), where the pixels of an image sample the slice: kx, ky, unless its magnification is distorted.
    sample : complex64 (n, n_rings, n_angles), slices on the rings at directions all over the sphere.
    mean_weight : float64 (n_pixels,), mean of CTF^2 / sigma^2 over the images.
    tolerance : what may be left out, as the standard deviation of the log-likelihood; 0 keeps every Bessel function.
    share : what may be left out as a share of all there is, which counts where the grey scale of the references is not
        that of the images.

    Notes
    -----
    Per order, the eigenvectors of the covariance of the sampled rings, weighted as the images weigh them; an eigenvalue
    is the log-likelihood's variance that goes with its function.
    """
    interpolation = _lagrange(np.hypot(x, y) / rings.step, rings.n_rings)
    weight = interpolation.T @ np.maximum(mean_weight, 0)
    weight = np.maximum(weight, weight[weight > 0].min() * 0.5)
    xp = xp_of(sample)
    spectra = [
        to_host(_ring_spectra(rings.angular(list(range(parity, len(rings.bessel), 2))), xp.ascontiguousarray(part)))
        for parity, part in ((0, sample.real), (1, sample.imag))
    ]
    values, functions, analyses = [], [], []
    for order, bessel in enumerate(rings.bessel):
        ring = spectra[order % 2].reshape(2, -1, len(sample), rings.n_rings)[:, order // 2]
        projected = ring.reshape(-1, rings.n_rings).astype(np.float64) @ bessel
        gram = bessel.T @ (weight[:, None] * bessel)
        eigenvalue, vector = np.linalg.eigh(gram)
        root = np.sqrt(np.maximum(eigenvalue, eigenvalue.max() * MEAN_WEIGHT_FLOOR))
        forward, backward = (vector * root) @ vector.T, (vector / root) @ vector.T
        covariance = forward @ (projected.T @ projected) @ forward / len(sample)
        power, main = np.linalg.eigh(covariance * (1 if order == 0 else 2))
        values.append(np.maximum(power[::-1], 0))
        main = main[:, ::-1]
        analyses.append(bessel @ forward @ main)
        functions.append(bessel @ backward @ main)
    everything = np.concatenate(values)
    least = _least_kept(everything, min(tolerance, share * float(np.sqrt(everything.sum()))))
    kept = [int((v >= least).sum()) for v in values]
    by_parity = [[m for m in range(parity, len(kept), 2) if kept[m]] for parity in (0, 1)]
    for parity, orders in enumerate(by_parity):
        if not orders:  # the references are symmetric, or all zero
            by_parity[parity], kept[parity] = [parity], 1
    used = [m for part in by_parity for m in part]
    synthesis = {m: functions[m][:, : kept[m]] for m in used}
    return Basis(
        rings=rings,
        orders=np.concatenate([np.full(kept[m], m) for m in used]),
        n_even=sum(kept[m] for m in by_parity[0]),
        analysis={m: to_like(analyses[m][:, : kept[m]].astype(np.float32), sample) for m in used},
        synthesis={m: to_like(u.astype(np.float32), sample) for m, u in synthesis.items()},
        **_image_side(rings, synthesis, x, y, sample),
    )


def _least_kept(values: FloatArray, tolerance: float) -> float:
    """The smallest eigenvalue to keep, so that those below it add up to at most tolerance^2."""
    ascending = np.sort(values)
    dropped = int(np.searchsorted(np.cumsum(ascending), tolerance**2))
    return float(ascending[min(dropped, len(ascending) - 1)])


def _image_side(
    rings: Rings, synthesis: dict[int, FloatArray], x: FloatArray, y: FloatArray, like: Array
) -> dict[str, Any]:
    """What a `Basis` holds for images whose pixels are at (x, y): `pairs`, `own`, `other` and `norm_rows`."""
    pairs = mirror_pairs(rings.box, rings.kmax)
    upper = x[pairs[0]], y[pairs[0]]
    # a pixel without a mirror image counts as zero there, wherever that is
    alone = pairs[1] == len(x)
    lower = np.append(x, 0)[pairs[1]], np.append(y, 0)[pairs[1]]
    lower = np.where(alone, upper[0], lower[0]), np.where(alone, -upper[1], lower[1])
    at, mirrored = (_functions(rings, synthesis, *place) for place in (upper, lower))
    sign = (1, -1, -1, 1)
    own = [(a + s * b) / 2 for a, b, s in zip(at, mirrored, sign, strict=True)]
    other = [(a - s * b) / 2 for a, b, s in zip(at, mirrored, sign, strict=True)]
    skewed = bool(np.any(lower[0] != upper[0]) or np.any(lower[1] != -upper[1]))
    interpolation, angles = _lagrange(np.hypot(x, y) / rings.step, rings.n_rings), np.arctan2(y, x)
    moments = [
        (0.5 if order == 0 else 1) * interpolation * f(order * angles)[:, None]
        for f in (np.cos, np.sin)
        for order in rings.norm_orders
    ]
    return {
        "pairs": to_like(pairs, like),
        "own": tuple(to_like(m.astype(np.float32), like) for m in own),
        "other": tuple(to_like(m.astype(np.float32), like) for m in other) if skewed else (),
        "norm_rows": to_like(np.concatenate(moments, axis=1).astype(np.float32), like),
    }


def _functions(rings: Rings, synthesis: dict[int, FloatArray], x: FloatArray, y: FloatArray) -> list[FloatArray]:
    """Functions at (x, y), by the part of the coefficients that they give: real and imaginary, even, then odd orders.

    float64 (len(x), n_even) twice and (len(x), n_odd) twice.
    """
    interpolation, angles = _lagrange(np.hypot(x, y) / rings.step, rings.n_rings), np.arctan2(y, x)
    blocks = []
    for parity in (0, 1):
        real, imag = [], []
        for order in (m for m in synthesis if m % 2 == parity):
            u = (1 if order == 0 else 2) * (interpolation @ synthesis[order])
            cosine, sine = np.cos(order * angles)[:, None], np.sin(order * angles)[:, None]
            real.append(u * (sine if parity else cosine))
            imag.append(u * (cosine if parity else -sine))
        blocks += [np.concatenate(real, axis=1), np.concatenate(imag, axis=1)]
    return blocks


def _ring_spectra(matrix: FloatArray, values: Array) -> Array:
    """Products of an angular matrix (n_rows, n_angles) with rings (n, n_rings, n_angles): (n_rows, n, n_rings)."""
    on_device = to_like(matrix, values)
    return (on_device @ values.reshape(-1, values.shape[-1]).T).reshape(len(matrix), *values.shape[:-1])


def table_rows(basis: Basis, slices: Array) -> tuple[Array, Array]:
    """Coefficients and norm moments of directions.

    Parameters
    ----------
    slices : complex64 (n, n_rings, n_angles), on the rings, at in-plane angle zero.

    Returns
    -------
    coefficients : float32 (n, n_coefficients).
    moments : float32 (n, n_moments), those of |P|^2, real, then imaginary parts of all orders; P is what the
        coefficients hold, which is smoother than interpolated slices.
    """
    xp, rings = xp_of(slices), basis.rings
    coefficients = xp.empty((len(slices), basis.n_coefficients), np.float32)
    power, at = 0, 0
    for parity, values in enumerate((xp.ascontiguousarray(slices.real), xp.ascontiguousarray(slices.imag))):
        orders = [m for m in basis.analysis if m % 2 == parity]
        angular = rings.angular(orders)
        spectra = _ring_spectra(angular, values)
        for row, order in enumerate(orders * 2):
            columns = slice(at, at + basis.analysis[order].shape[1])
            xp.matmul(spectra[row], basis.analysis[order], out=coefficients[:, columns])
            xp.matmul(coefficients[:, columns], basis.synthesis[order].T, out=spectra[row])
            at = columns.stop
        twice = np.where(np.array(orders * 2) == 0, 1, 2) * rings.n_angles
        back = to_like((angular.T * twice).astype(np.float32), slices)
        power = power + (back @ spectra.reshape(len(angular), -1)) ** 2
    moments = (to_like(rings.norm, slices) @ power).reshape(len(rings.norm), len(slices), rings.n_rings)
    return coefficients, xp.ascontiguousarray(moments.transpose(1, 0, 2)).reshape(len(slices), -1)
