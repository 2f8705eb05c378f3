"""Sum of a Fourier half volume over the rotations of a point group, by linear interpolation."""

from __future__ import annotations

import numpy as np
from numba import prange

from spa.kernels.backend import Array, is_device, xp_of
from spa.kernels.loader import BLOCK, cpu_kernel, launch, raw_module, require


@cpu_kernel
def _symmetrise_cpu(data, weight, operators, data_sum, weight_sum):  # type: ignore[no-untyped-def]
    m, width = data.shape[0], data.shape[2]
    origin, limit = width - 1, (width - 2) ** 2
    for k in prange(m):
        for j in range(m):
            for i in range(width):
                x, y, z = i, j - origin, k - origin
                if x * x + y * y + z * z > limit:
                    continue
                value, total = complex(0.0, 0.0), 0.0
                for h in range(operators.shape[0]):
                    px = operators[h, 0, 0] * x + operators[h, 0, 1] * y + operators[h, 0, 2] * z
                    py = operators[h, 1, 0] * x + operators[h, 1, 1] * y + operators[h, 1, 2] * z
                    pz = operators[h, 2, 0] * x + operators[h, 2, 1] * y + operators[h, 2, 2] * z
                    sign = -1.0 if px < 0 else 1.0
                    px, py, pz = px * sign, py * sign + origin, pz * sign + origin
                    ix, iy, iz = int(px), int(py), int(pz)
                    fx, fy, fz = px - ix, py - iy, pz - iz
                    part = complex(0.0, 0.0)
                    for dz in range(2):
                        gz = fz if dz else 1 - fz
                        for dy in range(2):
                            g = gz * (fy if dy else 1 - fy)
                            row, summed = data[iz + dz, iy + dy], weight[iz + dz, iy + dy]
                            part += g * ((1 - fx) * row[ix] + fx * row[ix + 1])
                            total += g * ((1 - fx) * summed[ix] + fx * summed[ix + 1])
                    value += complex(part.real, sign * part.imag)
                data_sum[k, j, i] = value
                weight_sum[k, j, i] = total


def symmetrise_half_volumes(data: Array, weight: Array, operators: Array) -> tuple[Array, Array]:
    """Sums over h of data(h k) and weight(h k), k = (x, y, z), by trilinear interpolation.

    Parameters ---------- data : complex64 (m, m, R+2), axes (z, y, x); m = 2R+3, index i of z and y is the
    frequency i - (R+1), of x it is
        i. The plane x = 0 must hold both Friedel mates.
    weight : float32, same shape.
    operators : float64 (n, 3, 3), rotations in the order (x, y, z) of rows and columns.

    Returns
    -------
    (data, weight), new arrays; 0 beyond radius R.

    Raises TypeError or ValueError for arrays of another dtype, shape, layout or device.

    Notes
    -----
    Coordinates are float64, so that signed permutation matrices move voxels exactly.
    """
    m = data.shape[0]
    require("data", data, np.complex64, (m, m, (m - 3) // 2 + 2), data)
    require("weight", weight, np.float32, data.shape, data)
    require("operators", operators, np.float64, (None, 3, 3), data)
    xp = xp_of(data)
    data_sum, weight_sum = xp.zeros_like(data), xp.zeros_like(weight)
    if is_device(data):
        kernel = raw_module("symmetrise").get_function("symmetrise")
        arguments = (data, weight, operators, operators.shape[0], data.shape[2] - 2, data_sum, weight_sum)
        launch(kernel, (m * m, -(-data.shape[2] // BLOCK)), arguments)
    else:
        _symmetrise_cpu(data, weight, operators, data_sum, weight_sum)
    return data_sum, weight_sum
