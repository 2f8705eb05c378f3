"""Squared differences between shifted images and slices, and the weighted sums of the maximisation step."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import RELAXED, dot, dots4, sincos_turns
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require


@njit(inline="always")
def _shift_row(image, kx, ky, sx, sy, row):  # type: ignore[no-untyped-def]
    """row = image * exp(-2 pi i (kx sx + ky sy)), real and imaginary parts interleaved; shifts per box."""
    for k in range(kx.size):
        turns = kx[k] * sx + ky[k] * sy
        turns -= np.float32(np.int32(turns))
        sine, cosine = sincos_turns(turns)
        real, imag = image[2 * k], image[2 * k + 1]
        row[2 * k] = real * cosine + imag * sine
        row[2 * k + 1] = imag * cosine - real * sine


@njit(nogil=True, fastmath=RELAXED)
def _shifted_rows(image, kx, ky, shifts, used, slot):  # type: ignore[no-untyped-def]
    """Rows of one image for the shifts in `used`; slot[shift] receives the row of each."""
    n_rows = 0
    for shift in used:
        if slot[shift] < 0:
            slot[shift] = n_rows
            n_rows += 1
    rows = np.empty((n_rows, image.size), np.float32)
    for shift in range(slot.size):
        if slot[shift] >= 0:
            _shift_row(image, kx, ky, shifts[shift, 0], shifts[shift, 1], rows[slot[shift]])
    return rows


@njit(nogil=True, fastmath=RELAXED)
def _norm(weights, reference):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(weights.size):
        real, imag = reference[2 * k], reference[2 * k + 1]
        total += weights[k] * (real * real + imag * imag)
    return np.float32(0.5) * total


@njit(nogil=True, fastmath=RELAXED)
def _add(total, weight, row):  # type: ignore[no-untyped-def]
    for k in range(row.size):
        total[k] += weight * row[k]


@njit(nogil=True, fastmath=RELAXED)
def _add4(total, weights, row0, row1, row2, row3):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for k in range(total.size):
        total[k] += w0 * row0[k] + w1 * row1[k] + w2 * row2[k] + w3 * row3[k]


@cpu_kernel
def _squared_difference_cpu(  # type: ignore[no-untyped-def]
    images,
    weights,
    slices,
    kx,
    ky,
    shifts,
    image_offsets,
    group_slice,
    group_offsets,
    candidate_shift,
    cross,
    norm,
):
    for i in prange(images.shape[0]):
        first, last = image_offsets[i], image_offsets[i + 1]
        slot = np.full(shifts.shape[0], -1, np.int32)
        used = candidate_shift[group_offsets[first] : group_offsets[last]]
        rows = _shifted_rows(images[i], kx, ky, shifts, used, slot)
        for group in range(first, last):
            reference = slices[group_slice[group]]
            norm[group] = _norm(weights[i], reference)
            c, stop = group_offsets[group], group_offsets[group + 1]
            while c + 4 <= stop:
                dots4(
                    reference,
                    rows[slot[candidate_shift[c]]],
                    rows[slot[candidate_shift[c + 1]]],
                    rows[slot[candidate_shift[c + 2]]],
                    rows[slot[candidate_shift[c + 3]]],
                    cross[c : c + 4],
                )
                c += 4
            while c < stop:
                cross[c] = dot(reference, rows[slot[candidate_shift[c]]])
                c += 1


@cpu_kernel
def _weighted_images_cpu(  # type: ignore[no-untyped-def]
    images,
    weights,
    kx,
    ky,
    shifts,
    image_offsets,
    group_offsets,
    candidate_shift,
    posterior,
    values,
    group_weights,
):
    for i in prange(images.shape[0]):
        first, last = image_offsets[i], image_offsets[i + 1]
        slot = np.full(shifts.shape[0], -1, np.int32)
        used = candidate_shift[group_offsets[first] : group_offsets[last]]
        rows = _shifted_rows(images[i], kx, ky, shifts, used, slot)
        for group in range(first, last):
            values[group] = 0
            total = np.float32(0)
            c, stop = group_offsets[group], group_offsets[group + 1]
            while c + 4 <= stop:
                _add4(
                    values[group],
                    posterior[c : c + 4],
                    rows[slot[candidate_shift[c]]],
                    rows[slot[candidate_shift[c + 1]]],
                    rows[slot[candidate_shift[c + 2]]],
                    rows[slot[candidate_shift[c + 3]]],
                )
                total += posterior[c] + posterior[c + 1] + posterior[c + 2] + posterior[c + 3]
                c += 4
            while c < stop:
                _add(values[group], posterior[c], rows[slot[candidate_shift[c]]])
                total += posterior[c]
                c += 1
            for k in range(kx.size):
                group_weights[group, k] = total * weights[i, k]


def _check(images: Array, weights: Array, kx: Array, ky: Array, shifts: Array) -> None:
    require("images", images, np.complex64, (None, None), images)
    require("weights", weights, np.float32, images.shape, images)
    require("kx", kx, np.float32, images.shape[1:], images)
    require("ky", ky, np.float32, images.shape[1:], images)
    require("shifts", shifts, np.float32, (None, 2), images)


def _check_candidates(images: Array, image_offsets: Array, group_offsets: Array, candidate_shift: Array) -> None:
    require("image_offsets", image_offsets, np.int64, (images.shape[0] + 1,), images)
    require("group_offsets", group_offsets, np.int64, (None,), images)
    require("candidate_shift", candidate_shift, np.int32, (None,), images)
    if group_offsets.shape[0] == 0:
        raise ValueError("group_offsets: expected n_groups + 1 entries, got none")


def _image_of_group(image_offsets: Array, n_groups: int) -> Array:
    """int32 (n_groups,): the image that each group belongs to."""
    xp = xp_of(image_offsets)
    return (xp.searchsorted(image_offsets, xp.arange(n_groups), side="right") - 1).astype(np.int32)


def squared_difference(
    images: Array,
    weights: Array,
    slices: Array,
    kx: Array,
    ky: Array,
    shifts: Array,
    image_offsets: Array,
    group_slice: Array,
    group_offsets: Array,
    candidate_shift: Array,
    box_size: int,
) -> tuple[Array, Array]:
    """Cross and norm terms of the squared difference of listed candidates: LL = cross - norm + constant.

    A group is one (image, orientation) with its list of shifts; groups are sorted by image.

    Parameters
    ----------
    images : complex64 (n_images, n_pixels), CTF * X / sigma^2.
    weights : float32 (n_images, n_pixels), CTF^2 / sigma^2.
    slices : complex64 (n_slices, n_pixels).
    kx, ky : float32 (n_pixels,), Fourier pixels.
    shifts : float32 (n_shifts, 2), (x, y) in pixels.
    image_offsets : int64 (n_images + 1,) into groups.
    group_slice : int32 (n_groups,), the slice of each group.
    group_offsets : int64 (n_groups + 1,) into candidates.
    candidate_shift : int32 (n_candidates,), the shift of each candidate.
    box_size : pixels along the image.

    Returns
    -------
    cross : float32 (n_candidates,), sum_k Re(conj(P) image exp(-2 pi i k.shift / box)), the content of the
        image moved by +shift.
    norm : float32 (n_groups,), 1/2 sum_k weights |P|^2.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    Sums over the half plane, one of each Friedel pair (Scheres 2012, J Struct Biol 180:519, eq. 4).
    """
    _check(images, weights, kx, ky, shifts)
    _check_candidates(images, image_offsets, group_offsets, candidate_shift)
    n_groups, n_pixels = group_offsets.shape[0] - 1, kx.shape[0]
    require("slices", slices, np.complex64, (None, n_pixels), images)
    require("group_slice", group_slice, np.int32, (n_groups,), images)
    xp = xp_of(images)
    cross, norm = xp.empty(candidate_shift.shape[0], np.float32), xp.empty(n_groups, np.float32)
    turns = shifts / np.float32(box_size)
    if is_device(images):
        owner = _image_of_group(image_offsets, n_groups)
        arguments = (
            images,
            weights,
            slices,
            kx,
            ky,
            turns,
            owner,
            group_slice,
            group_offsets,
            candidate_shift,
        )
        kernel = raw_module("scoring").get_function("squared_difference")
        launch(kernel, (n_groups,), (*arguments, n_pixels, cross, norm))
    else:
        parts = images.view(np.float32), weights, slices.view(np.float32), kx, ky, turns
        _squared_difference_cpu(*parts, image_offsets, group_slice, group_offsets, candidate_shift, cross, norm)
    return cross, norm


def weighted_images(
    images: Array,
    weights: Array,
    kx: Array,
    ky: Array,
    shifts: Array,
    image_offsets: Array,
    group_offsets: Array,
    candidate_shift: Array,
    posterior: Array,
    box_size: int,
) -> tuple[Array, Array]:
    """Posterior-weighted sums over the shifts of each group, ready for `insert_slices`.

    Parameters
    ----------
    images, weights, kx, ky, shifts, image_offsets, group_offsets, candidate_shift, box_size : as in
        `squared_difference`.
    posterior : float32 (n_candidates,).

    Returns
    -------
    values : complex64 (n_groups, n_pixels), sums of posterior * image * exp(-2 pi i k.shift / box).
    group_weights : float32 (n_groups, n_pixels), (sum of posterior) * weights of the group's image.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.
    """
    _check(images, weights, kx, ky, shifts)
    _check_candidates(images, image_offsets, group_offsets, candidate_shift)
    require("posterior", posterior, np.float32, candidate_shift.shape, images)
    n_groups, n_pixels = group_offsets.shape[0] - 1, kx.shape[0]
    xp = xp_of(images)
    values = xp.empty((n_groups, n_pixels), np.complex64)
    group_weights = xp.empty((n_groups, n_pixels), np.float32)
    turns = shifts / np.float32(box_size)
    if is_device(images):
        owner = _image_of_group(image_offsets, n_groups)
        arguments = (
            images,
            weights,
            kx,
            ky,
            turns,
            owner,
            group_offsets,
            candidate_shift,
            posterior,
            n_pixels,
        )
        kernel = raw_module("scoring").get_function("weighted_images")
        launch(kernel, (n_groups, -(-n_pixels // BLOCK)), (*arguments, values, group_weights))
    else:
        lists = image_offsets, group_offsets, candidate_shift, posterior
        _weighted_images_cpu(
            images.view(np.float32), weights, kx, ky, turns, *lists, values.view(np.float32), group_weights
        )
    return values, group_weights
