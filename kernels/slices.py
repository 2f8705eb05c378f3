"""Central slices of Fourier references (2D or 3D) and their adjoint, by linear interpolation."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.cell import add_to_pair, interpolate_cell, times_plus
from spa.kernels.elementary import RELAXED
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require

_TILE = 64
_TOGETHER = 32
"""Slices that share a pass over the pixels: neighbours on the sphere then find each other's voxels in the cache."""
_CELLS = 8
"""Cells per unit into which directions are sorted, about 7° each."""
_SAMPLE = 37


def half_radius(padding: int, kmax: int) -> int:
    """Radius R (padded voxels) of a half volume that serves every pixel of radius below kmax + 1/2."""
    return padding * kmax + 2 * padding


@njit(inline="always")
def _locate(kx, ky, rotation, shape, sign, fraction, line, column):  # type: ignore[no-untyped-def]
    """Per pixel of a tile: sign (-1: conjugate, 0: outside), position in its cell, and the cell's lower corner.

    The corner is voxel `column` of the line of voxels along x numbered `line`, both of 32 bits: LLVM has vectors for
    these only. They are unsigned, since Numba tests signed indices for negative values on every access.
    """
    planes, m, width = shape
    r, lines = width - 2, np.int32(m)
    limit = np.float32(r * r)
    origin, origin_z = np.float32(r + 1), np.float32(r + 1 if planes > 1 else 0)
    for k in range(kx.size):
        u, v = kx[k], ky[k]
        x = times_plus(u, rotation[0, 0], v * rotation[1, 0])
        y = times_plus(u, rotation[0, 1], v * rotation[1, 1])
        z = times_plus(u, rotation[0, 2], v * rotation[1, 2])
        inside = np.float32(1) if times_plus(x, x, times_plus(y, y, z * z)) <= limit else np.float32(0)
        s = -inside if x < 0 else inside
        sign[k] = s
        x, y, z = x * s, y * s + origin, z * s + origin_z
        i, j, h = np.int32(x), np.int32(y), np.int32(z)
        fraction[0, k] = x - np.float32(i)
        fraction[1, k] = y - np.float32(j)
        fraction[2, k] = z - np.float32(h)
        line[k] = h * lines + j
        column[k] = i


@cpu_kernel
def _extract_cpu(references, shape, classes, rotations, kx, ky, out):  # type: ignore[no-untyped-def]
    # in 2D there is no other plane, and its weight is zero
    row, plane = np.uint64(2 * shape[2]), np.uint64(2 * shape[2] * shape[1] if shape[0] > 1 else 0)
    two, width = np.uint64(2), np.uint64(shape[2])
    for group in prange(-(-classes.size // _TOGETHER)):
        sign = np.empty(_TILE, np.float32)
        fraction = np.empty((3, _TILE), np.float32)
        line, column = np.empty(_TILE, np.uint32), np.empty(_TILE, np.uint32)
        first, last = group * _TOGETHER, min((group + 1) * _TOGETHER, classes.size)
        for start in range(0, kx.size, _TILE):
            stop = min(start + _TILE, kx.size)
            for n in range(first, last):
                voxels, values = references[classes[n]], out[n]
                _locate(kx[start:stop], ky[start:stop], rotations[n], shape, sign, fraction, line, column)
                for k in range(stop - start):
                    at = two * (np.uint64(line[k]) * width + np.uint64(column[k]))
                    fx, fy, fz = fraction[0, k], fraction[1, k], fraction[2, k]
                    interpolate_cell(voxels, at, row, plane, fx, fy, fz, sign[k], values, two * np.uint64(start + k))


@njit(cache=True, nogil=True, fastmath=RELAXED)
def _slab_edges(n_slabs, n_rows, axis, rotations, kx, ky, r):  # type: ignore[no-untyped-def]
    """Rows (z, or y in 2D) cut so that slabs receive about equal numbers of pixels, judged by a sample."""
    counts = np.ones(n_rows, np.int64)
    for n in range(rotations.shape[0]):
        for k in range(n % _SAMPLE, kx.size, _SAMPLE):
            x = kx[k] * rotations[n, 0, 0] + ky[k] * rotations[n, 1, 0]
            row = kx[k] * rotations[n, 0, axis] + ky[k] * rotations[n, 1, axis]
            index = int((-row if x < 0 else row) + r + 1)
            if 0 <= index < n_rows:
                counts[index] += 1
    total = counts.sum()
    edges = np.full(n_slabs + 1, n_rows)
    edges[0], slab, seen = 0, 1, 0
    for row in range(n_rows):
        while slab < n_slabs and seen * n_slabs >= slab * total:
            edges[slab] = row
            slab += 1
        seen += counts[row]
    return edges


@cpu_kernel
def _insert_cpu(data, weight, shape, classes, rotations, kx, ky, values, weights, order, edges):  # type: ignore[no-untyped-def]
    flat = shape[0] == 1
    row, plane = np.uint64(shape[2]), np.uint64(shape[2] * shape[1])
    owned = np.uint32(1 if flat else shape[1])
    for slab in prange(edges.size - 1):
        first, last = edges[slab], edges[slab + 1]
        sign = np.empty(_TILE, np.float32)
        fraction = np.empty((3, _TILE), np.float32)
        line, column = np.empty(_TILE, np.uint32), np.empty(_TILE, np.uint32)
        for group in range(0, classes.size, _TOGETHER):
            for start in range(0, kx.size, _TILE):
                stop = min(start + _TILE, kx.size)
                for n in order[group : group + _TOGETHER]:
                    volume, total = data[classes[n]], weight[classes[n]]
                    _locate(kx[start:stop], ky[start:stop], rotations[n], shape, sign, fraction, line, column)
                    for k in range(stop - start):
                        low = np.int64(line[k] // owned)
                        if sign[k] == 0 or low < first - 1 or low >= last:
                            continue
                        at = np.uint64(line[k]) * row + np.uint64(column[k])
                        real = values[n, 2 * (start + k)]
                        imag = sign[k] * values[n, 2 * (start + k) + 1]
                        w = weights[n, start + k]
                        fx, fy = fraction[0, k], fraction[1, k]
                        fz = fy if flat else fraction[2, k]
                        for side in range(2):
                            if low + side < first or low + side >= last:
                                continue
                            g = fz if side else np.float32(1) - fz
                            corner_at = at + (row if flat else plane) * np.uint64(side)
                            for dy in range(1 if flat else 2):
                                share = g if flat else g * (fy if dy else np.float32(1) - fy)
                                here = corner_at + row * np.uint64(dy)
                                add_to_pair(volume, total, here, share, fx, real, imag, w)


def _check(stack: Array, classes: Array, rotations: Array, kx: Array, ky: Array) -> tuple[int, ...]:
    """Check the arguments both directions share; returns the stack's shape as (n_classes, 1 or m, m, R+2)."""
    if getattr(stack, "ndim", 0) not in (3, 4):
        raise ValueError("references: expected a stack of 2D (ndim 3) or 3D (ndim 4) half transforms")
    m = stack.shape[-2]
    shape = (stack.shape[0], *(m,) * (stack.ndim - 2), (m - 3) // 2 + 2)
    require("references", stack, np.complex64, shape, stack)
    require("classes", classes, np.int32, (None,), stack)
    require("rotations", rotations, np.float32, (classes.shape[0], 3, 3), stack)
    require("kx", kx, np.float32, (None,), stack)
    require("ky", ky, np.float32, kx.shape, stack)
    return (shape[0], m if stack.ndim == 4 else 1, m, shape[-1])


def _scaled(rotations: Array, padding: int, ndim: int) -> Array:
    """Rotations that take unpadded slice pixels to padded voxels; a 2D reference has no third coordinate."""
    scaled = rotations * np.float32(padding)
    if ndim == 3:
        scaled[:, :, 2] = 0
    return scaled


def _neighbours(rotations: Array) -> Array:
    """An order of slices in which those of like direction stand together."""
    return np.lexsort(np.rint(_CELLS * rotations[:, 2]).T)


def extract_slices(references: Array, classes: Array, rotations: Array, kx: Array, ky: Array, padding: int) -> Array:
    """Central slices P of half transforms: n slices at n_pixels Fourier pixels.

    Parameters
    ----------
    references : complex64 (n_classes, m, m, R+2), axes (class, z, y, x), or (n_classes, m, R+2) for 2D
        references; m = 2R+3, index i of z and y is the padded frequency i - (R+1), of x it is i.
    classes : int32 (n,), which reference each slice is cut from.
    rotations : float32 (n, 3, 3), RELION's matrix A: slice point (kx, ky) is kx A[0] + ky A[1]. For 2D
        references only the x and y components count.
    kx, ky : float32 (n_pixels,), unpadded Fourier pixels, any real numbers.
    padding : integer padding factor of the references.

    Returns
    -------
    complex64 (n, n_pixels); 0 where the padded radius exceeds R.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    Central slice theorem with linear interpolation in the Hermitian half x >= 0 (Scheres 2012, J Struct Biol
    180:519).
    """
    shape = _check(references, classes, rotations, kx, ky)
    n, n_pixels = classes.shape[0], kx.shape[0]
    scaled = _scaled(rotations, padding, references.ndim)
    out = xp_of(references).empty((n, n_pixels), np.complex64)
    if is_device(references):
        kernel = raw_module("slices", (("DIM", str(references.ndim - 1)),)).get_function("extract_slices")
        arguments = (references, classes, scaled, kx, ky, n_pixels, shape[3] - 2, out)
        launch(kernel, (n, -(-n_pixels // BLOCK)), arguments)
    else:
        voxels = references.reshape(shape[0], -1).view(np.float32)
        _extract_cpu(voxels, shape[1:], classes, scaled, kx, ky, out.view(np.float32))
    return out


def insert_slices(
    data: Array,
    weight: Array,
    classes: Array,
    rotations: Array,
    kx: Array,
    ky: Array,
    values: Array,
    weights: Array,
    padding: int,
) -> None:
    """Add P^T values to `data` and P^T weights to `weight`, in place: the adjoint of `extract_slices`.

    Parameters
    ----------
    data : complex64 stack of half transforms, shaped as the references of `extract_slices`.
    weight : float32, same shape.
    classes, rotations, kx, ky, padding : as in `extract_slices`.
    values : complex64 (n, n_pixels); weights : float32 (n, n_pixels).

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    A point in the half x < 0 enters as its conjugate at -k; the plane x = 0 lacks its Friedel mates. The CPU
    result does not depend on the number of threads (each owns rows of the volume); on a GPU the order of the
    atomic additions varies.
    """
    shape = _check(data, classes, rotations, kx, ky)
    n, n_pixels = classes.shape[0], kx.shape[0]
    require("weight", weight, np.float32, data.shape, data)
    require("values", values, np.complex64, (n, n_pixels), data)
    require("weights", weights, np.float32, (n, n_pixels), data)
    scaled = _scaled(rotations, padding, data.ndim)
    if is_device(data):
        kernel = raw_module("slices", (("DIM", str(data.ndim - 1)),)).get_function("insert_slices")
        arguments = (data, weight, classes, scaled, kx, ky, values, weights, n_pixels, shape[3] - 2)
        launch(kernel, (n, -(-n_pixels // BLOCK)), arguments)
    else:
        flat = data.ndim == 3
        edges = _slab_edges(get_num_threads(), shape[2], 1 if flat else 2, scaled, kx, ky, shape[3] - 2)
        volumes = data.reshape(shape[0], -1).view(np.float32), weight.reshape(shape[0], -1)
        parts = values.view(np.float32), weights
        _insert_cpu(*volumes, shape[1:], classes, scaled, kx, ky, *parts, _neighbours(rotations), edges)
