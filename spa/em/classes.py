"""Classification: maps of one set of particles, each regularised by its own power, and where the first come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spa.em.maximisation import Maps, known_shell_weight, solve_class
from spa.em.state import Batch, FloatArray, Sums, resolved_shells
from spa.em.validation import HalfMapFsc
from spa.fourier import forward, shift
from spa.grids import centred_coordinates
from spa.kernels.backend import Array, to_host, to_like, xp_of
from spa.kernels.slices import insert_slices
from spa.noise import shell_average
from spa.reconstruct import new_accumulator, solve, symmetrise


def signal_power(power: FloatArray, weight: FloatArray, share: float) -> FloatArray:
    """tau2 per shell: the power of a masked map without a prior, less that of its noise; zero where nothing is left.

    Parameters
    ----------
    power : mean squared real or imaginary part of the masked map.
    weight : 1 / the variance of the noise of the map before the mask.
    share : of that noise's power which the mask lets through, the mean of its square.

    Notes
    -----
    An unbiased estimate, before it is kept from falling below zero. RELION takes the power of the last iteration's map,
    which in shells with little signal fades from one iteration to the next for good.
    """
    noise = np.divide(share, weight, out=np.full_like(power, np.inf), where=weight > 0)
    return np.maximum(power - noise, 0)


def reconstruct_classes(
    sums: Sums,
    operators: FloatArray,
    box: int,
    padding: int,
    kmax: int,
    tau2_fudge: float,
    mask: FloatArray,
    sphere: FloatArray,
    noise_share: float = 1.0,
) -> Maps:
    """New maps of all classes from the sums of all particles.

    Parameters
    ----------
    mask : what the references will be multiplied by; power outside it is noise.
    sphere : float32 (box,) * ndim, soft sphere or disc of the particle.
    noise_share : share of its noise that the prior of a 2D average does not take for signal.

    Notes
    -----
    2D averages have a prior of their own each, maps the one that all particles together give. A class without particles
    has a map of zeros, and stays empty.
    """
    n_classes, shells = len(sums.class_mass), box // 2 + 1
    if len(operators) > 1:  # the sums themselves may go on into the next iteration
        sums = replace(sums, data=sums.data.copy(), weight=sums.weight.copy())
    if sphere.ndim == 3:
        for c in range(n_classes):
            sums.data[c], sums.weight[c] = symmetrise(sums.data[c], sums.weight[c], operators)
    weights = np.stack([known_shell_weight(sums, c, padding, shells) for c in range(n_classes)])

    share = float((mask.astype(np.float64) ** 2).mean())

    def t_tau2(of: Sums, c: int, weight: FloatArray, noise_share: float = 1.0) -> FloatArray:
        plain = solve_class(of, c, box, padding, kmax, None, sphere) * mask
        power = shell_average(np.abs(forward(plain, sphere.ndim)) ** 2, sphere.ndim)[:shells] / 2
        power[kmax + 1 :] = 0
        return tau2_fudge * signal_power(power, weight, share * noise_share)

    if sphere.ndim == 3:
        # maps of one specimen have one power; with its own, a class that falls behind would fade and lose all
        whole = replace(sums, data=sums.data.sum(0)[None], weight=sums.weight.sum(0)[None])
        prior = np.tile(t_tau2(whole, 0, weights.sum(0)), (n_classes, 1))
    else:
        prior = np.stack([t_tau2(sums, c, weights[c], noise_share) for c in range(n_classes)])
    inverse = np.divide(1, prior, out=np.full_like(prior, np.inf), where=prior > 0)
    inverse[:, 0] = np.where(weights[:, 0] > 0, 0, np.inf)
    maps = [solve_class(sums, c, box, padding, kmax, inverse[c], sphere) for c in range(n_classes)]
    ssnr, tau2 = prior * weights, prior / tau2_fudge
    halves = HalfMapFsc(np.zeros(shells), int(resolved_shells(ssnr).max()))
    return Maps(np.stack(maps)[None], None, None, halves, tau2[None], ssnr[None])


def random_classes(seed: int, n: int, n_classes: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """A class for each of `n` particles, all about equally large."""
    return np.random.default_rng((seed, 4)).permutation(np.arange(n) % n_classes).astype(np.int32)


class UnalignedSums:
    """Sums of images as they come, in random classes: the averages from which 2D classification starts."""

    def __init__(self, n_classes: int, padding: int, kmax: int) -> None:
        self.n_classes, self.padding, self.kmax = n_classes, padding, kmax
        self._values: Array = 0.0
        self._weights: Array = 0.0
        self._points: tuple[Array, Array] | None = None

    def add(self, batch: Batch, classes: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Add the images of a batch to their classes."""
        n = batch.pixels.prefix(self.kmax)
        scaled = batch.ctf[:, :n] * batch.inverse_sigma2[:, :n]
        member = to_like((classes == np.arange(self.n_classes)[:, None]).astype(np.float32), batch.kx)
        self._values = self._values + member @ (batch.spectra[:, :n] * scaled)
        self._weights = self._weights + member @ (scaled * batch.ctf[:, :n])
        self._points = batch.slice_x[:n], batch.slice_y[:n]

    def averages(self, box: int) -> FloatArray:
        """float32 (n_classes, box, box), each regularised by a tenth of its mean weight."""
        if self._points is None:
            raise ValueError("no images were added")
        values, weights = self._values, self._weights
        xp = xp_of(values)
        data, weight = new_accumulator(self.n_classes, box, self.padding, self.kmax, 2, self._points[0])
        turn = xp.asarray(np.tile(np.eye(3, dtype=np.float32), (self.n_classes, 1, 1)))
        number = xp.arange(self.n_classes, dtype=np.int32)
        insert_slices(data, weight, number, turn, *self._points, values.astype(np.complex64), weights, self.padding)
        prior = 0.1 * to_host(weights).mean(1)
        return np.stack(
            [to_host(solve(data[c], weight[c], box, self.padding, self.kmax, [p])) for c, p in enumerate(prior)]
        )


def turned(rotations: FloatArray, shifts: FloatArray) -> FloatArray:
    """By how far, (n, 2) pixels, images at poses (n, 3, 3) move when their 2D references move by (n, 2)."""
    return np.asarray(np.einsum("nij,nj->ni", rotations[:, :2, :2], shifts))


def centred(maps: FloatArray, mask: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Class averages moved so that the centre of their positive density is in the middle.

    Parameters
    ----------
    maps : float32 (n, box, box); mask : the same for all, or a scalar.

    Returns
    -------
    The moved averages, and (n, 2) by how far (x, y) in pixels each was moved.
    """
    box = maps.shape[-1]
    density = np.maximum(maps * mask, 0).astype(np.float64)
    total = np.maximum(density.sum((1, 2)), 1e-30)
    y, x = centred_coordinates(box, 2)
    centre = np.stack([(density * x).sum((1, 2)), (density * y).sum((1, 2))], -1) / total[:, None]
    whole = -np.rint(centre)
    return np.asarray(shift(maps, whole), np.float32), whole
