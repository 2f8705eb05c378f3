import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.kernels.symmetrise import symmetrise_half_volumes
from spa.symmetry import operators


def friedel_complete(full):
    """Half volume x >= 0 of a full (m, m, m) volume made Hermitian about its centre."""
    full = full + np.conj(full[::-1, ::-1, ::-1])
    return np.ascontiguousarray(full[..., full.shape[0] // 2 :]), full


def rotated_sum(full, group, r):
    """The sum over h of full(h k) by trilinear interpolation, float64, on the whole volume."""
    c = full.shape[0] // 2
    z, y, x = np.meshgrid(*[np.arange(-c, c + 1)] * 3, indexing="ij")
    total = np.zeros(full.shape, full.dtype)
    inside = x**2 + y**2 + z**2 <= r * r
    k = np.stack([x[inside], y[inside], z[inside]]).astype(float)
    for h in group:
        p = h @ k + c
        low = np.minimum(np.floor(p).astype(int), 2 * c - 1)
        f = p - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod([f[a] if corner[a] else 1 - f[a] for a in range(3)], axis=0)
            i = low + np.array(corner)[:, None]
            total[inside] += weight * full[i[2], i[1], i[0]]
    return total


@pytest.mark.parametrize("group", ["C1", "D2", "C5", "T", "I1"])
def test_sum_over_rotations_is_that_of_the_whole_volume(group, device):
    rng = np.random.default_rng(0)
    r, h = 4, operators(group)
    m = 2 * r + 3
    shape = (m, m, m)
    half, full = friedel_complete(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    half_weight, full_weight = friedel_complete(rng.uniform(0, 1, shape))
    data, weight = symmetrise_half_volumes(
        device(half.astype(np.complex64)), device(half_weight.astype(np.float32)), device(np.array(h))
    )
    expected, expected_weight = rotated_sum(full, h, r), rotated_sum(full_weight, h, r)
    np.testing.assert_allclose(to_host(data), expected[..., r + 1 :], atol=1e-4)
    np.testing.assert_allclose(to_host(weight), expected_weight[..., r + 1 :], atol=1e-4)


def test_arguments_of_another_dtype_or_shape_are_refused(device):
    data, weight = device(np.zeros((11, 11, 6), np.complex64)), device(np.zeros((11, 11, 6), np.float32))
    h = device(np.eye(3)[None])
    with pytest.raises(TypeError, match="operators"):
        symmetrise_half_volumes(data, weight, device(np.eye(3, dtype=np.float32)[None]))
    with pytest.raises(ValueError, match="data"):
        symmetrise_half_volumes(device(np.zeros((11, 11, 5), np.complex64)), weight, h)
    with pytest.raises(ValueError, match="weight"):
        symmetrise_half_volumes(data, device(np.zeros((11, 11, 5), np.float32)), h)
