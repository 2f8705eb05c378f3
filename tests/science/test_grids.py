import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa.grids import (
    centred_coordinates,
    half_plane,
    radius_grid,
    rfft_frequencies,
    rfft_multiplicity,
    rfft_shells,
)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 40), st.data())
def test_half_plane_and_its_mates_are_the_disc_without_its_centre(half, data):
    kmax = data.draw(st.integers(1, half - 1))
    pixels = half_plane(2 * half, kmax)
    points = {(int(x), int(y)) for x, y in zip(pixels.kx, pixels.ky, strict=True)}
    mates = {(-x, -y) for x, y in points}
    k = range(-kmax - 1, kmax + 2)
    disc = {(x, y) for x in k for y in k if 0 < x * x + y * y < (kmax + 0.5) ** 2}
    assert points.isdisjoint(mates)
    assert points | mates == disc
    assert len(points) == len(pixels)
    assert np.all(np.diff(pixels.shell) >= 0)
    np.testing.assert_array_equal(pixels.shell, np.rint(np.hypot(pixels.kx, pixels.ky)))
    assert pixels.shell.max() == kmax


def test_smaller_kmax_is_a_prefix():
    large = half_plane(64, 31)
    for kmax in (1, 7, 20, 31):
        small, n = half_plane(64, kmax), large.prefix(kmax)
        assert n == len(small)
        np.testing.assert_array_equal(small.kx, large.kx[:n])
        np.testing.assert_array_equal(small.ky, large.ky[:n])


@pytest.mark.parametrize(("box", "kmax"), [(64, 32), (64, 0), (63, 10)])
def test_half_plane_refuses_nyquist_and_odd_boxes(box, kmax):
    with pytest.raises(ValueError, match="expected"):
        half_plane(box, kmax)


@pytest.mark.parametrize("ndim", [2, 3])
def test_centre_pixel_is_box_over_two(ndim):
    radius = radius_grid(8, ndim)
    assert np.argwhere(radius == 0).tolist() == [[4] * ndim]
    assert centred_coordinates(8, ndim)[-1].ravel().tolist() == list(range(-4, 4))
    assert radius[(4,) * (ndim - 1) + (7,)] == 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_rfft_layout_counts_every_frequency_of_the_full_transform_once(ndim):
    box = 12
    full = np.stack(np.meshgrid(*[np.fft.fftfreq(box) * box] * ndim, indexing="ij"))
    expected = np.bincount(np.rint(np.sqrt((full**2).sum(0))).astype(int).ravel())
    shells = rfft_shells(box, ndim)
    weight = np.broadcast_to(rfft_multiplicity(box), shells.shape)
    np.testing.assert_array_equal(np.bincount(shells.ravel(), weight.ravel()), expected)
    assert rfft_frequencies(box, ndim)[0].ravel()[box // 2] == -box // 2
