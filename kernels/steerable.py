"""Scores of listed in-plane rotations from the coefficients of directions (all at once: `spa.kernels.survivors`).

Coefficients of a direction and of a shifted image are float32 rows [Re even | Im even | Re odd | Im odd] over angular
orders m; turned by psi, the direction's are multiplied by exp(i m psi) (see `spa.em.steerable`).
"""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.elementary import RELAXED, dot, dots4, sincos_turns
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require

_TURNED = 4096
"""Floats of shared memory for a turned direction."""


@cpu_kernel
def _shifted_rows_cpu(images, kx, ky, turns, row_image, row_shift, parts):  # type: ignore[no-untyped-def]
    for n in prange(row_image.size):
        upper, lower = images[row_image[n], 0], images[row_image[n], 1]
        sx, sy = turns[row_shift[n], 0], turns[row_shift[n], 1]
        for k in range(kx.size):
            x, y = kx[k] * sx, ky[k] * sy
            t, u = x + y, x - y
            t -= np.float32(np.int32(t))
            u -= np.float32(np.int32(u))
            sine, cosine = sincos_turns(t)
            a, b = upper[2 * k], upper[2 * k + 1]
            re, im = a * cosine + b * sine, b * cosine - a * sine
            sine, cosine = sincos_turns(u)
            a, b = lower[2 * k], lower[2 * k + 1]
            mirrored_re, mirrored_im = a * cosine + b * sine, b * cosine - a * sine
            parts[0, n, k], parts[1, n, k] = re + mirrored_re, re - mirrored_re
            parts[2, n, k], parts[3, n, k] = im - mirrored_im, im + mirrored_im


def shifted_rows(
    images: Array, kx: Array, ky: Array, shifts: Array, row_image: Array, row_shift: Array, box_size: int
) -> Array:
    """Listed shifts of images, image exp(-2 pi i k.shift / box), as sums and differences of mirrored pixels.

    Parameters
    ----------
    images : complex64 (n_images, 2, n_pairs), at (kx, ky) and at (kx, -ky).
    kx, ky : float32 (n_pairs,), Fourier pixels.
    shifts : float32 (n_shifts, 2), (x, y) in pixels.
    row_image, row_shift : int32 (n_rows,), image and shift of each row.
    box_size : pixels along the image.

    Returns
    -------
    float32 (4, n_rows, n_pairs): sums and differences of the real parts, differences and sums of the imaginary ones.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.
    """
    require("images", images, np.complex64, (None, 2, None), images)
    n_pairs = images.shape[2]
    require("kx", kx, np.float32, (n_pairs,), images)
    require("ky", ky, np.float32, (n_pairs,), images)
    require("shifts", shifts, np.float32, (None, 2), images)
    require("row_image", row_image, np.int32, (None,), images)
    require("row_shift", row_shift, np.int32, row_image.shape, images)
    xp, n_rows = xp_of(images), row_image.shape[0]
    parts = xp.empty((4, n_rows, n_pairs), np.float32)
    turns = shifts / np.float32(box_size)
    if is_device(images):
        kernel = raw_module("steerable").get_function("shifted_rows")
        arguments = (images, kx, ky, turns, row_image, row_shift, n_pairs, parts)
        launch(kernel, (n_rows, -(-n_pairs // BLOCK)), arguments)
    else:
        _shifted_rows_cpu(images.view(np.float32), kx, ky, turns, row_image, row_shift, parts)
    return parts


@njit(cache=True, nogil=True)
def _grouped_products_cpu(rows, ends, matrix, out):  # type: ignore[no-untyped-def]
    first = 0
    for j in range(ends.size):
        last = ends[j]
        if last > first:
            np.dot(np.ascontiguousarray(rows[:, first:last]), matrix[first:last], out[j])
        first = last


def grouped_products(rows: Array, ends: Array, matrix: Array, out: Array) -> None:
    """Matrix products over groups of columns, out[j] = rows[:, a:b] @ matrix[a:b] with a = ends[j - 1], b = ends[j].

    Parameters
    ----------
    rows : float32 (n_rows, n_columns); matrix : float32 (n_columns, n).
    ends : int64 (n_groups,), on the host, the last of them n_columns. An empty group leaves its part of `out` alone.
    out : float32 (n_groups, n_rows, n), changed in place.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    On a CPU the interpreter's lock is left once for all groups: products of few columns by several threads would spend
    more time waiting for it than multiplying.
    """
    require("rows", rows, np.float32, (None, None), rows)
    require("matrix", matrix, np.float32, (rows.shape[1], None), rows)
    require("out", out, np.float32, (len(ends), rows.shape[0], matrix.shape[1]), rows)
    if len(ends) == 0 or ends[-1] != rows.shape[1]:
        raise ValueError(f"ends: expected the last to be {rows.shape[1]}")
    if not is_device(rows):
        _grouped_products_cpu(rows, ends, matrix, out)
        return
    for j, (first, last) in enumerate(itertools.pairwise([0, *ends.tolist()])):
        if last > first:
            xp_of(rows).matmul(rows[:, first:last], matrix[first:last], out=out[j])


@njit(inline="always")
def _turn(coefficients, cosine, sine, n_even, turned):  # type: ignore[no-untyped-def]
    """turned = coefficients * exp(i m psi)."""
    n_odd = cosine.size - n_even
    odd = 2 * n_even
    for k in range(n_even):
        a, b, c, s = coefficients[k], coefficients[n_even + k], cosine[k], sine[k]
        turned[k] = a * c - b * s
        turned[n_even + k] = a * s + b * c
    for k in range(n_odd):
        a, b, c, s = coefficients[odd + k], coefficients[odd + n_odd + k], cosine[n_even + k], sine[n_even + k]
        turned[odd + k] = a * c - b * s
        turned[odd + n_odd + k] = a * s + b * c


@njit(nogil=True, fastmath=RELAXED)
def _norm_spectrum(weights, moments, starts, spectrum):  # type: ignore[no-untyped-def]
    """Angular Fourier coefficients of half the weighted power: the real parts of all orders, then the imaginary."""
    n, n_orders = weights.size // 2, starts.size - 1
    for order in range(n_orders):
        first, last = starts[order], starts[order + 1]
        w0, w1 = weights[first:last], weights[n + first : n + last]
        m0, m1 = moments[first:last], moments[n + first : n + last]
        re, im = np.float32(0), np.float32(0)
        for j in range(last - first):
            re += m0[j] * w0[j] - m1[j] * w1[j]
            im += m0[j] * w1[j] + m1[j] * w0[j]
        spectrum[order], spectrum[n_orders + order] = re, im


@cpu_kernel
def _steered_scores_cpu(  # type: ignore[no-untyped-def]
    rows,
    row_of,
    norm_rows,
    coefficients,
    moments,
    place,
    cosine,
    sine,
    norm_turns,
    norm_starts,
    n_even,
    image_offsets,
    orientation,
    group_offsets,
    candidate_shift,
    cross,
    norm,
):
    n_psi = cosine.shape[0]
    for i in prange(image_offsets.size - 1):
        turned = np.empty(coefficients.shape[1], np.float32)
        # children of one parent come in turns, four directions each
        known = np.full(4, -1, np.int64)
        spectrum = np.empty((4, norm_turns.shape[1]), np.float32)
        for group in range(image_offsets[i], image_offsets[i + 1]):
            direction, psi = orientation[group] // n_psi, orientation[group] % n_psi
            at, slot = place[direction], direction & 3
            if known[slot] != direction:
                known[slot] = direction
                _norm_spectrum(norm_rows[i], moments[at], norm_starts, spectrum[slot])
            norm[group] = dot(spectrum[slot], norm_turns[psi])
            _turn(coefficients[at], cosine[psi], sine[psi], n_even, turned)
            c, stop = group_offsets[group], group_offsets[group + 1]
            while c + 4 <= stop:
                dots4(
                    turned,
                    rows[row_of[i, candidate_shift[c]]],
                    rows[row_of[i, candidate_shift[c + 1]]],
                    rows[row_of[i, candidate_shift[c + 2]]],
                    rows[row_of[i, candidate_shift[c + 3]]],
                    cross[c : c + 4],
                )
                c += 4
            while c < stop:
                cross[c] = dot(turned, rows[row_of[i, candidate_shift[c]]])
                c += 1


def steered_scores(
    rows: Array,
    row_of: Array,
    norm_rows: Array,
    coefficients: Array,
    moments: Array,
    place: Array,
    cosine: Array,
    sine: Array,
    norm_turns: Array,
    norm_starts: Array,
    n_even: int,
    image_offsets: Array,
    orientation: Array,
    group_offsets: Array,
    candidate_shift: Array,
) -> tuple[Array, Array]:
    """Cross and norm terms of listed candidates from coefficients: what `squared_difference` gives from slices.

    A group is one (image, orientation) with its list of shifts; groups are sorted by image.

    Parameters
    ----------
    rows : float32 (n_rows, 2 n), coefficients of shifted images.
    row_of : int32 (n_images, n_shifts), the row of each shifted image (-1: not asked for).
    norm_rows : float32 (n_images, n_moments), moments of each image's weights: real parts, then imaginary parts.
    coefficients, moments : float32 (n_places, 2 n) and (n_places, n_moments), those of directions.
    place : int32 (n_directions,), where a direction is in them.
    cosine, sine : float32 (n_psi, n), of m psi.
    norm_turns : float32 (n_psi, 2 * n_orders), cos(m psi), then -sin(m psi) of the norm's orders m.
    norm_starts : int32 (n_orders + 1,), the moments of each order among the n_moments / 2 real parts.
    n_even : how many of the n functions are of even order.
    image_offsets : int64 (n_images + 1,) into groups.
    orientation : int64 (n_groups,), direction * n_psi + psi.
    group_offsets : int64 (n_groups + 1,) into candidates.
    candidate_shift : int32 (n_candidates,).

    Returns
    -------
    cross : float32 (n_candidates,); norm : float32 (n_groups,).

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    cross = Re sum_m exp(i m psi) sum_h p_mh conj(b_mh); norm the same with |P|^2 and the weights.
    """
    n_images, n_groups, n_psi = norm_rows.shape[0], orientation.shape[0], cosine.shape[0]
    n = cosine.shape[1]
    require("rows", rows, np.float32, (None, 2 * n), rows)
    require("row_of", row_of, np.int32, (n_images, None), rows)
    require("norm_rows", norm_rows, np.float32, (n_images, moments.shape[1]), rows)
    require("coefficients", coefficients, np.float32, (moments.shape[0], 2 * n), rows)
    require("moments", moments, np.float32, (None, None), rows)
    require("place", place, np.int32, (None,), rows)
    require("cosine", cosine, np.float32, (n_psi, n), rows)
    require("sine", sine, np.float32, (n_psi, n), rows)
    require("norm_turns", norm_turns, np.float32, (n_psi, None), rows)
    require("image_offsets", image_offsets, np.int64, (n_images + 1,), rows)
    require("orientation", orientation, np.int64, (None,), rows)
    require("group_offsets", group_offsets, np.int64, (n_groups + 1,), rows)
    require("candidate_shift", candidate_shift, np.int32, (None,), rows)
    n_orders, n_pairs = norm_turns.shape[1] // 2, moments.shape[1] // 2
    require("norm_starts", norm_starts, np.int32, (n_orders + 1,), rows)
    if moments.shape[1] % 2 or norm_turns.shape[1] % 2:
        raise ValueError("moments, norm_turns: expected real and imaginary parts, an even number of columns")
    xp = xp_of(rows)
    cross, norm = xp.empty(candidate_shift.shape[0], np.float32), xp.empty(n_groups, np.float32)
    if is_device(rows):
        owner = (xp.searchsorted(image_offsets, xp.arange(n_groups), side="right") - 1).astype(np.int32)
        order_of = xp.searchsorted(norm_starts, xp.arange(n_pairs), side="right") - 1
        norms = norm_turns, order_of.astype(np.int32)
        tables = (rows, row_of, norm_rows, coefficients, moments, place, cosine, sine, *norms)
        held = min(2 * n, _TURNED)
        sizes = (n, n_even, n_pairs, n_orders, n_psi, row_of.shape[1], held)
        lists = (owner, orientation, group_offsets, candidate_shift)
        kernel = raw_module("steerable").get_function("steered_scores")
        launch(kernel, (n_groups,), (*tables, *sizes, *lists, cross, norm), shared_mem=4 * held)
    else:
        tables = (rows, row_of, norm_rows, coefficients, moments, place, cosine, sine, norm_turns, norm_starts)
        lists = (image_offsets, orientation, group_offsets, candidate_shift)
        _steered_scores_cpu(*tables, n_even, *lists, cross, norm)
    return cross, norm
