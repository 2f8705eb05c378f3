"""The maximisation step: sums over the posterior, then new maps, noise and signal spectra from the sums."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.em.expectation import Reference, Scores, Step, classes_of, runs, working_slices
from spa.em.sampling import keep, segment_index
from spa.em.settings import Search
from spa.em.state import Batch, FloatArray, Sums
from spa.em.validation import LEAK_SHELLS, HalfMapFsc, half_map_fsc
from spa.euler import nearest_rotation
from spa.grids import radius_grid
from spa.kernels.backend import Array, to_host, to_like, xp_of
from spa.kernels.scoring import weighted_images
from spa.kernels.slices import extract_slices, insert_slices
from spa.reconstruct import new_accumulator, shell_weight, solve, symmetrise


@dataclass
class Estimates:
    """What a batch says about its own particles, on the host, in batch order (see `state.Poses`)."""

    rotations: FloatArray
    origins: FloatArray
    pmax: FloatArray
    log_likelihood: FloatArray
    nr_significant: np.ndarray[Any, np.dtype[np.int64]]
    noise_ratio: FloatArray
    class_number: np.ndarray[Any, np.dtype[np.int32]]
    class_share: FloatArray


def new_sums(
    n_classes: int, n_optics: int, n_groups: int, box: int, padding: int, kmax: int, like: Array, ndim: int = 3
) -> Sums:
    """Empty sums of one half set, accumulators of `ndim` dimensions on the device of `like`."""
    data, weight = new_accumulator(n_classes, box, padding, kmax, ndim, like)
    shells = box // 2 + 1
    return Sums(
        data,
        weight,
        np.zeros((n_optics, shells)),
        np.zeros(n_optics),
        np.zeros((n_groups, shells)),
        np.zeros((n_groups, shells)),
        np.zeros(n_classes),
    )


def accumulate(
    sums: Sums,
    batch: Batch,
    scores: Scores,
    reference: Reference,
    step: Step,
    search: Search,
    optics: np.ndarray[Any, Any],
    groups: np.ndarray[Any, Any],
    uniform: FloatArray,
    memory: int,
) -> Estimates:
    """Add a batch to the sums and return the estimates for its particles.

    Parameters
    ----------
    optics, groups : optics group and micrograph group of each image of the batch.
    uniform : float64 (n,), one number in [0, 1) per image that draws the pose whose residual is the noise.
    """
    if not step.poses_only:
        _insert(sums, batch, scores, step, reference.padding, memory)
    drawn = _draw(scores, uniform)
    noise_ratio, residual, cross, power = _residual(batch, scores, reference, step, drawn)
    np.add.at(sums.noise_power, optics, residual)
    np.add.at(sums.images, optics, 1)
    np.add.at(sums.signal_cross, groups, cross)
    np.add.at(sums.signal_power, groups, power)
    estimates = _estimate(batch, scores, step, search, noise_ratio)
    share = estimates.class_share
    sums.class_mass += share.sum(0)
    sums.class_entropy -= float((share * np.log(np.maximum(share, 1e-30))).sum())
    sums.offset_square += float((estimates.origins**2).sum())
    sums.log_likelihood += float(estimates.log_likelihood.sum())
    sums.pmax += float(estimates.pmax.sum())
    return estimates


def _insert(sums: Sums, batch: Batch, scores: Scores, step: Step, padding: int, memory: int) -> None:
    """Insert the posterior-weighted images of a batch into the accumulators."""
    level, n = scores.level, batch.pixels.prefix(step.kmax)
    image = segment_index(scores.candidates.candidate_offsets, len(scores.log_weight))
    mask = scores.log_weight >= scores.posterior.threshold[image]
    kept = keep(scores.candidates, mask)
    xp = xp_of(mask)
    weight, image = scores.posterior.weights[mask], image[mask]
    weight = (weight / xp.bincount(image, weight, len(batch))[image]).astype(np.float32)
    scaled = batch.ctf[:, :n] * batch.inverse_sigma2[:, :n]
    images, weights = batch.spectra[:, :n] * scaled, scaled * batch.ctf[:, :n]
    offsets = to_like(level.offsets(), images)
    ends = to_host(kept.image_offsets)
    for start, stop in itertools.pairwise(runs(ends, working_slices(images, memory // 2))):
        g0, g1 = int(ends[start]), int(ends[stop])
        c0, c1 = int(kept.group_offsets[g0]), int(kept.group_offsets[g1])
        values, group_weights = weighted_images(
            images[start:stop],
            weights[start:stop],
            batch.kx[:n],
            batch.ky[:n],
            offsets,
            kept.image_offsets[start : stop + 1] - g0,
            kept.group_offsets[g0 : g1 + 1] - c0,
            kept.shift[c0:c1],
            weight[c0:c1],
            batch.pixels.box_size,
        )
        orientation = kept.orientation[g0:g1]
        owner = segment_index(kept.image_offsets, len(kept.orientation))[g0:g1]
        insert_slices(
            sums.data,
            sums.weight,
            classes_of(step, level, batch, orientation, owner),
            level.rotations(orientation),
            batch.slice_x[:n],
            batch.slice_y[:n],
            values,
            group_weights,
            padding,
        )


def _draw(scores: Scores, uniform: FloatArray) -> Array:
    """One candidate per image, drawn from its posterior."""
    ends = scores.candidates.candidate_offsets
    cumulative = xp_of(ends).cumsum(scores.posterior.weights.astype(np.float64))
    target = to_like(np.arange(len(uniform)) + uniform, ends)
    drawn = xp_of(ends).searchsorted(cumulative, target)
    return xp_of(ends).clip(drawn, ends[:-1], ends[1:] - 1)


def _residual(
    batch: Batch, scores: Scores, reference: Reference, step: Step, drawn: Array
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Noise and signal of each image at the drawn pose.

    Returns
    -------
    noise_ratio : (n,) mean residual power over the noise power (1 where the noise model is right).
    residual : (n, n_shells) mean residual power per shell, real and imaginary part averaged.
    cross, power : (n, n_shells) sums of Re(A* X)/sigma2 and |A|^2/sigma2, A = CTF * projection.

    Notes
    -----
    The expectation of the residual at a pose drawn from the posterior is that of the full posterior sum,
    at the price of one slice per image.
    """
    xp = xp_of(drawn)
    level, candidates = scores.level, scores.candidates
    group = xp.searchsorted(candidates.group_offsets[1:], drawn, side="right")
    orientation = candidates.orientation[group]
    slices = extract_slices(
        reference.transform,
        level.classes(orientation),
        level.rotations(orientation),
        batch.slice_x,
        batch.slice_y,
        reference.padding,
    )
    shift = to_like(level.offsets(), drawn)[candidates.shift[drawn]]
    turns = (shift[:, :1] * batch.kx + shift[:, 1:] * batch.ky) * np.float32(-2 * np.pi / batch.pixels.box_size)
    image = batch.spectra * (xp.cos(turns) + np.complex64(1j) * xp.sin(turns))
    model = batch.ctf * slices
    to_shell = _shell_matrix(batch, drawn)
    cross = (model.real * image.real + model.imag * image.imag) * batch.inverse_sigma2
    power = (model.real**2 + model.imag**2) * batch.inverse_sigma2
    if step.fit_scale:
        scale = xp.maximum(cross.sum(1), 0) / xp.maximum(power.sum(1), np.float32(1e-20))
        model = model * scale[:, None]
    difference = image - model
    residual = difference.real**2 + difference.imag**2
    ratio = (residual * batch.inverse_sigma2).mean(1) / 2
    count = xp.maximum(to_shell.sum(0), 1)
    per_shell = (residual @ to_shell) / (2 * count)
    as_host = [to_host(a).astype(np.float64) for a in (ratio, per_shell, cross @ to_shell, power @ to_shell)]
    return as_host[0], as_host[1], as_host[2], as_host[3]


def _shell_matrix(batch: Batch, like: Array) -> Array:
    """One-hot float32 (n_pixels, n_shells): multiplication by it sums over shells."""
    shells = np.arange(batch.pixels.box_size // 2 + 1)
    return to_like((batch.pixels.shell[:, None] == shells).astype(np.float32), like)


def _estimate(batch: Batch, scores: Scores, step: Step, search: Search, noise_ratio: FloatArray) -> Estimates:
    """Posterior-mean poses: weighted means over the candidates near the best one.

    Notes
    -----
    The mean is more accurate than the argmax, which jitters with the grid's random rotation.
    """
    xp = xp_of(scores.log_weight)
    result, level = scores.posterior, scores.level
    image = segment_index(scores.candidates.candidate_offsets, len(scores.log_weight))
    best_weight = result.weights[result.best]
    heavy = xp.nonzero(result.weights > search.mean_pose_weight * best_weight[image])[0]
    both = xp.concatenate([heavy, result.best])
    group = xp.searchsorted(scores.candidates.group_offsets[1:], both, side="right")
    orientation = scores.candidates.orientation[group]
    rotations = to_host(level.rotations(orientation)).astype(np.float64)
    classes = to_host(classes_of(step, level, batch, orientation, image[both]))
    offsets = level.offsets()[to_host(scores.candidates.shift[both])].astype(np.float64)
    n, m = len(batch), len(heavy)
    owner, weight = to_host(image[heavy]), to_host(result.weights[heavy]).astype(np.float64)
    trace = np.einsum("nij,nij->n", rotations[:m], rotations[m:][owner])
    near = (trace > 1 + 2 * np.cos(np.radians(search.mean_pose_angle))) & (classes[:m] == classes[m:][owner])
    weight = weight * near
    summed = np.zeros((n, 3, 3))
    np.add.at(summed, owner, weight[:, None, None] * rotations[:m])
    moments = [np.bincount(owner, weight * offsets[:m, a], n) for a in (0, 1)]
    mean_offset = np.stack(moments, -1) / np.bincount(owner, weight, n)[:, None]
    power = (xp.abs(batch.scored) ** 2 * batch.inverse_sigma2).sum(1)
    variance = xp.log(2 * np.pi / batch.inverse_sigma2).sum(1)
    significant = xp.bincount(image[scores.log_weight >= result.threshold[image]], minlength=n)
    return Estimates(
        rotations=np.asarray(nearest_rotation(summed)),
        origins=to_host(batch.origins).astype(np.float64) + mean_offset,
        pmax=to_host(best_weight).astype(np.float64),
        log_likelihood=to_host(result.log_evidence - power / 2 - variance).astype(np.float64),
        nr_significant=to_host(significant).astype(np.int64),
        noise_ratio=noise_ratio,
        class_number=classes[m:].astype(np.int32),
        class_share=_class_shares(batch, scores, step, image),
    )


def _class_shares(batch: Batch, scores: Scores, step: Step, image: Array) -> FloatArray:
    """Posterior probability of each class, float64 (n_images, n_classes)."""
    n, n_classes = len(batch), step.n_classes
    if n_classes == 1:
        return np.ones((n, 1))
    candidates = scores.candidates
    owner = segment_index(candidates.image_offsets, len(candidates.orientation))
    classes = classes_of(step, scores.level, batch, candidates.orientation, owner).astype(np.int64)
    group = segment_index(candidates.group_offsets, len(candidates.shift))
    mass = xp_of(image).bincount(image * n_classes + classes[group], scores.posterior.weights, n * n_classes)
    shares = to_host(mass).astype(np.float64).reshape(n, n_classes)
    return np.asarray(shares / shares.sum(1, keepdims=True))


@dataclass
class Maps:
    """Reconstructions of one iteration.

    Attributes
    ----------
    regularised : float32 (n_halves, n_classes, box, box, box).
    unfiltered : the same without the prior (the half maps that validate), or None without halves.
    joined : float32 (n_classes, box, box, box) from both halves, or None unless asked for.
    halves : how the two halves agree; without them, the best resolution of a class and no curve.
    tau2, ssnr : float64 (n_halves, n_classes, n_shells), signal power and its ratio to the noise of the map.
    """

    regularised: FloatArray
    unfiltered: FloatArray | None
    joined: FloatArray | None
    halves: HalfMapFsc
    tau2: FloatArray
    ssnr: FloatArray


def reconstruct_halves(
    sums: list[Sums],
    operators: FloatArray,
    box: int,
    padding: int,
    kmax: int,
    score_kmax: int,
    tau2_fudge: float,
    sphere: FloatArray,
    join_shell: int,
    join: bool,
) -> Maps:
    """New maps from the sums of the half sets.

    Parameters
    ----------
    score_kmax : Fourier radius up to which images were aligned.
    sphere : float32 (box, box, box), soft sphere of the particle, under which the halves are compared.
    join_shell : shells below this are shared by the halves (0: none); they cannot be told apart there.
    join : also reconstruct both halves together.

    Notes
    -----
    1/tau2 = weight * (1 - FSC) / FSC (Scheres 2012, J Struct Biol 180:519, eq. 11 with the signal-to-noise ratio
    FSC / (1 - FSC)).
    """
    n_classes = len(sums[0].class_mass)
    for half in sums:
        for c in range(n_classes):
            half.data[c], half.weight[c] = symmetrise(half.data[c], half.weight[c], operators)
    unfiltered = np.array(
        [
            [solve_class(h, c, box, padding, kmax, None, sphere, score_kmax + LEAK_SHELLS) for c in range(n_classes)]
            for h in sums
        ],
        dtype=np.float32,
    )
    shells = box // 2 + 1
    weights = np.array([[known_shell_weight(h, c, padding, shells) for c in range(n_classes)] for h in sums])
    halves = half_map_fsc(unfiltered[0, 0], unfiltered[1, 0], sphere, score_kmax, kmax, len(operators))
    if join_shell > 0:
        _join_low_resolution(sums, padding, join_shell)
    trusted = np.clip(halves.curve, 1e-3, 0.999)
    noise_to_signal = (1 - trusted) / trusted / tau2_fudge
    inverse = weights * noise_to_signal
    joined_inverse = weights.mean(0) * noise_to_signal
    regularised = np.array(
        [
            [solve_class(h, c, box, padding, kmax, inverse[i, c], sphere) for c in range(n_classes)]
            for i, h in enumerate(sums)
        ],
        dtype=np.float32,
    )
    joined = None
    if join:
        both = sum(sums[1:], sums[0])
        joined = np.array(
            [solve_class(both, c, box, padding, kmax, joined_inverse[c], sphere) for c in range(n_classes)], np.float32
        )
    tau2 = 1 / np.maximum(inverse, 1e-30)
    ssnr = np.broadcast_to(halves.curve / np.maximum(1 - halves.curve, 1e-3), tau2.shape)
    return Maps(regularised, unfiltered, joined, halves, tau2, ssnr)


def solve_class(
    sums: Sums,
    c: int,
    box: int,
    padding: int,
    kmax: int,
    inverse_tau2: FloatArray | None,
    sphere: FloatArray,
    band: int | None = None,
) -> FloatArray:
    """The map of one class, its solvent at zero.

    The images carry no mean (their background is normalised away), so the grey level of the solvent, outside
    the particle's sphere, settles the mean of the map. `band` as in `solve`.
    """
    volume: FloatArray = to_host(solve(sums.data[c], sums.weight[c], box, padding, kmax, inverse_tau2, band))
    solvent = (sphere == 0) & (radius_grid(box, sphere.ndim) < box // 2)
    if solvent.any():
        volume -= volume[solvent].mean(dtype=np.float64)
    return volume


def known_shell_weight(sums: Sums, c: int, padding: int, n_shells: int) -> FloatArray:
    """Mean weight of each shell, float64 (n_shells,); the last known value beyond the accumulator."""
    known = shell_weight(sums.weight[c], padding)
    return known[np.minimum(np.arange(n_shells), len(known) - 1)]


def _join_low_resolution(sums: list[Sums], padding: int, join_shell: int) -> None:
    """Give both halves the mean of their accumulators below a shell, so that they keep the same orientation."""
    centre = sums[0].data.shape[-2] // 2
    reach = min(padding * join_shell, centre - 1)
    around = slice(centre - reach, centre + reach + 1)
    xp = xp_of(sums[0].data)
    full, half = xp.arange(-reach, reach + 1) ** 2, xp.arange(reach + 1) ** 2
    low = (full[:, None, None] + full[:, None] + half) < (padding * join_shell) ** 2
    for first, second in ((sums[0].data, sums[1].data), (sums[0].weight, sums[1].weight)):
        a, b = (x[:, around, around, : reach + 1] for x in (first, second))
        mean = (a + b) / 2
        a[...] = xp.where(low, mean, a)
        b[...] = xp.where(low, mean, b)


def noise_spectra(sums: Sums, previous: FloatArray) -> FloatArray:
    """Noise variance per optics group and shell, float64 (n_optics, n_shells); groups without images keep theirs."""
    sigma2 = previous.copy()
    used = sums.images > 0
    sigma2[used] = sums.noise_power[used] / sums.images[used, None]
    sigma2[:, 0] = sigma2[:, 1]
    sigma2[:, -1] = np.where(sigma2[:, -1] > 0, sigma2[:, -1], sigma2[:, -2])
    return np.asarray(np.maximum(sigma2, sigma2.max() * 1e-8))


def draw_uniform(seed: int, iteration: int, n: int) -> FloatArray:
    """One number in [0, 1) for each of `n` particles that depends on seed, iteration and particle only."""
    return np.random.default_rng((seed, iteration, 2)).random(n)
