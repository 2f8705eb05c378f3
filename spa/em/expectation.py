"""The expectation step's terms: what an iteration searches, the likelihood of candidates, their priors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.em.sampling import Candidates, Level, image_slice, segment_index
from spa.em.state import Batch
from spa.kernels.backend import Array, is_device, to_host, to_like, xp_of
from spa.kernels.posterior import Posterior
from spa.kernels.scoring import squared_difference
from spa.kernels.slices import extract_slices

WORKING_BYTES = 2**24
"""Slices held at one time on a CPU: so little that the C library uses the same memory again, and the cache helps."""


@dataclass(frozen=True)
class Parts:
    """Particles that fit one reference, drawn by lot for the sums of several classes.

    Attributes
    ----------
    classes : int32 (n_references, n_parts), the class to whose sums each part of a reference's particles goes.
    part : int32 (n_particles,).
    """

    classes: np.ndarray[Any, np.dtype[np.int32]]
    part: np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Step:
    """What one iteration does: the levels of its descent and where the descent starts.

    Attributes
    ----------
    levels : coarse to fine; the last level's posterior feeds the maximisation step.
    local : start from the neighbourhood of the last pose instead of the whole sphere.
    dense_orientations : int64, orientations of the first level of a global search (asymmetric unit).
    dense_shifts : int32, shifts of that level (a disc).
    fit_scale : score by the likelihood maximised over the grey scale of the reference, image by image.
    offset_sigma : standard deviation (pixels) of the Gaussian prior on the shifts.
    kmax : Fourier radius of the maximisation step, pixels.
    score_kmax : Fourier radius beyond which no level looks, pixels.
    poses_only : nothing is added to the accumulators.
    known : the images have poses; a global search looks around them, too.
    own_poses : each image is compared at its own pose alone (see `spa.em.sampling.make_own_poses`).
    parts : how particles of one reference are parted among several classes, or None.
    n_classes : number of classes of the sums.
    subset : int64, the particles that take part, or None for all.
    momentum : share of the sums of earlier iterations that stays in them.
    angle_sigma : degrees by which angles scatter about the last pose, a Gaussian; 0: all that are searched count alike.
    noise_share : share of the noise in class averages that their prior does not take for signal.
    bootstrap : the low shells of the differences between the next maps are not held against their noise.
    """

    levels: tuple[Level, ...]
    local: bool
    dense_orientations: np.ndarray[Any, np.dtype[np.int64]]
    dense_shifts: np.ndarray[Any, np.dtype[np.int32]]
    fit_scale: bool
    offset_sigma: float
    kmax: int
    score_kmax: int
    poses_only: bool = False
    known: bool = False
    own_poses: bool = False
    parts: Parts | None = None
    n_classes: int = 1
    subset: np.ndarray[Any, np.dtype[np.int64]] | None = None
    momentum: float = 0.0
    angle_sigma: float = 0.0
    noise_share: float = 1.0
    bootstrap: bool = False


@dataclass
class Reference:
    """References of one half set.

    Attributes
    ----------
    transform : complex64 (n_classes, m, m, R + 2), padded half transforms.
    log_pdf_class : float32 (n_classes,).
    radius : pixels from the centre beyond which they are zero.
    """

    transform: Array
    padding: int
    log_pdf_class: Array
    radius: float


@dataclass
class Scores:
    """The last level of a descent: its candidates, their log weights and their posterior."""

    level: Level
    candidates: Candidates
    log_weight: Array
    posterior: Posterior
    scored: int


def log_likelihood(cross: Array, norm: Array, fit_scale: bool) -> Array:
    """Log-likelihood of candidates up to a constant per image.

    Parameters
    ----------
    cross, norm : Re(Y* P) and half W |P|^2, broadcast against each other.
    fit_scale : False gives cross - norm. True gives its maximum over a grey scale a >= 0 of the reference,
        cross^2 / (4 norm): the normalised cross-correlation, in units of the log-likelihood.
    """
    if not fit_scale:
        return cross - norm
    xp = xp_of(cross)
    return xp.maximum(cross, 0) ** 2 / xp.maximum(4 * norm, np.float32(1e-20))


def offset_log_prior(batch: Batch, offsets: Array, sigma: float) -> Array:
    """Gaussian log prior, float32 (n_images, n_shifts), of the whole shift of each image."""
    total = batch.origins[:, None] + offsets[None]
    return (-(total**2).sum(-1) / (2 * max(sigma, 0.5) ** 2)).astype(np.float32)


def angle_log_prior(rotations: Array, last: Array, sigma: float) -> Array:
    """Gaussian log prior, float32 (n,), of rotations (n, 3, 3) about others; `sigma` in degrees.

    The angle between them, squared, is near zero the sum of the squares that RELION takes for direction and psi.
    """
    xp = xp_of(rotations)
    cosine = xp.clip((xp.einsum("nij,nij->n", rotations, last) - 1) / 2, -1, 1)
    return (-(xp.arccos(cosine) ** 2) / (2 * np.radians(sigma) ** 2)).astype(np.float32)


def classes_of(step: Step, level: Level, batch: Batch, orientation: Array, image: Array) -> Array:
    """Class (int32) that each orientation of an image of the batch counts for."""
    classes = level.classes(orientation)
    if step.parts is None:
        return classes
    of_image = to_like(step.parts.part[batch.indices], orientation)[image]
    return to_like(step.parts.classes, orientation)[classes, of_image]


def project(reference: Reference, level: Level, orientation: Array, kx: Array, ky: Array) -> Array:
    """Slices of orientations, complex64 (n, n_pixels)."""
    return extract_slices(
        reference.transform, level.classes(orientation), level.rotations(orientation), kx, ky, reference.padding
    )


def score_slices(
    batch: Batch, reference: Reference, level: Level, candidates: Candidates, offsets: Array, memory: int
) -> tuple[Array, Array]:
    """Cross and norm terms of a ragged list of candidates, from slices on the half plane.

    Parameters
    ----------
    memory : bytes that the slices held at one time may take (on a CPU not more than WORKING_BYTES); images are worked
        off in runs that fit, and an orientation that several images of a run ask for is projected once per run.

    Returns
    -------
    cross : float32 (n_candidates,); norm : float32 (n_groups,).
    """
    xp = xp_of(batch.scored)
    images, weights = batch.weighted(level.kmax)
    n = images.shape[1]
    cross = xp.empty(len(candidates.shift), np.float32)
    norm = xp.empty(len(candidates.orientation), np.float32)
    groups, ends = to_host(candidates.image_offsets), to_host(candidates.candidate_offsets)
    for start, stop in itertools.pairwise(runs(groups, working_slices(images, memory))):
        part = image_slice(candidates, start, stop)
        unique, slot = xp.unique(part.orientation, return_inverse=True)
        found = squared_difference(
            images[start:stop],
            weights[start:stop],
            project(reference, level, unique, batch.slice_x[:n], batch.slice_y[:n]),
            batch.kx[:n],
            batch.ky[:n],
            offsets,
            part.image_offsets,
            slot.astype(np.int32),
            part.group_offsets,
            part.shift,
            batch.pixels.box_size,
        )
        cross[ends[start] : ends[stop]], norm[groups[start] : groups[stop]] = found
    return cross, norm


def log_weights(
    batch: Batch,
    reference: Reference,
    level: Level,
    candidates: Candidates,
    step: Step,
    cross: Array,
    norm: Array,
    rotations: Array | None = None,
) -> Array:
    """Log-likelihood plus log priors, float32, of candidates from their cross and norm terms.

    rotations : (n_images, 3, 3), the last poses, if they are a prior.
    """
    offsets = to_like(level.offsets(), cross)
    prior = offset_log_prior(batch, offsets, step.offset_sigma)
    group = segment_index(candidates.group_offsets, len(candidates.shift))
    owner = segment_index(candidates.image_offsets, len(candidates.orientation))
    image = owner[group]
    result = log_likelihood(cross, norm[group], step.fit_scale)
    result += prior[image, candidates.shift]
    if rotations is not None:
        result += angle_log_prior(level.rotations(candidates.orientation), rotations[owner], step.angle_sigma)[group]
    if len(reference.log_pdf_class) > 1:
        result += reference.log_pdf_class[level.classes(candidates.orientation)][group]
    return result


def working_slices(images: Array, memory: int) -> int:
    """How many slices of as many pixels as images, (n, n_pixels), are held at one time within `memory` bytes."""
    allowed = memory if is_device(images) else min(memory, WORKING_BYTES)
    return max(1, allowed // (8 * int(images.shape[1])))


def runs(ends: np.ndarray[Any, np.dtype[np.int64]], most: int) -> list[int]:
    """Image numbers at which to cut a batch so that each run has at most `most` items (or one image).

    ends : int64 (n_images + 1,), cumulative numbers of items.
    """
    bounds = [0]
    while bounds[-1] < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[bounds[-1]] + most, side="right")) - 1
        bounds.append(max(last, bounds[-1] + 1))
    return bounds
