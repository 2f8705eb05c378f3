import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa import healpix


@pytest.mark.parametrize("order", [0, 1, 2, 3, 6, 10, 20])
@pytest.mark.parametrize("nest", [True, False])
def test_the_centre_of_a_pixel_lies_in_that_pixel(order, nest):
    n = healpix.n_pixels(order)
    pix = np.unique(np.linspace(0, n - 1, min(n, 50000)).astype(np.int64))
    vec = healpix.pix2vec(order, pix, nest)
    np.testing.assert_allclose(np.linalg.norm(vec, axis=-1), 1, atol=1e-12)
    np.testing.assert_array_equal(healpix.vec2pix(order, 3 * vec, nest), pix)


@pytest.mark.parametrize("order", [0, 1, 2, 4, 7])
def test_ring_and_nested_numbers_are_a_permutation_that_keeps_the_centre(order):
    pix = np.arange(healpix.n_pixels(order))
    ring = healpix.nest2ring(order, pix)
    np.testing.assert_array_equal(np.sort(ring), pix)
    np.testing.assert_array_equal(healpix.ring2nest(order, ring), pix)
    np.testing.assert_allclose(healpix.pix2vec(order, ring, nest=False), healpix.pix2vec(order, pix), atol=1e-14)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_rings_lie_at_the_published_heights_with_equally_spaced_pixels(order):
    # Gorski et al. 2005, eqs 4 and 8: z of ring i in the north cap and in the belt
    nside = 2**order
    vec = healpix.pix2vec(order, np.arange(healpix.n_pixels(order)), nest=False)
    start = 0
    for i in range(1, 4 * nside):
        j = min(i, 4 * nside - i)
        length = 4 * min(j, nside)
        height = 1 - j**2 / (3 * nside**2) if j < nside else 4 / 3 - 2 * j / (3 * nside)
        ring = vec[start : start + length]
        np.testing.assert_allclose(ring[:, 2], height if i <= 2 * nside else -height, atol=1e-14)
        phi = np.unwrap(np.arctan2(ring[:, 1], ring[:, 0]))
        np.testing.assert_allclose(np.diff(phi), 2 * np.pi / length, atol=1e-12)
        first = np.pi / length if j < nside or (j - nside) % 2 == 0 else 0
        assert phi[0] == pytest.approx(first, abs=1e-12)
        start += length
    assert start == len(vec)


def test_published_pixels():
    # order 0: four pixels at z = 2/3 from phi = pi/4, four on the equator from phi = 0, four at z = -2/3
    theta, phi = healpix.pix2ang(0, np.arange(12))
    np.testing.assert_allclose(np.cos(theta), np.repeat([2 / 3, 0, -2 / 3], 4), atol=1e-15)
    np.testing.assert_allclose(phi[:8] / np.pi, [0.25, 0.75, 1.25, 1.75, 0, 0.5, 1, 1.5], atol=1e-15)
    # Nside 2 in both orderings: the last pixels of the north polar faces are 0, 1, 2, 3 on the ring scheme
    np.testing.assert_array_equal(healpix.nest2ring(1, [3, 7, 11, 15]), [0, 1, 2, 3])
    np.testing.assert_array_equal(healpix.nest2ring(1, [0, 1, 2]), [13, 5, 4])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 1000))
def test_any_direction_lies_in_the_nested_parent_of_its_pixel(order, deeper, seed):
    vec = np.random.default_rng(seed).standard_normal((500, 3))
    children = healpix.vec2pix(order + deeper, vec)
    np.testing.assert_array_equal(children >> (2 * deeper), healpix.vec2pix(order, vec))


@pytest.mark.parametrize("order", [0, 2, 3])
def test_pixels_have_equal_area(order):
    # as many centres of a much finer grid in each pixel, and as many random directions within their noise
    fine = healpix.pix2vec(order + 4, np.arange(healpix.n_pixels(order + 4)), nest=False)
    counts = np.bincount(healpix.vec2pix(order, fine), minlength=healpix.n_pixels(order))
    np.testing.assert_array_equal(counts, 4**4)
    vec = np.random.default_rng(0).standard_normal((200000, 3))
    counts = np.bincount(healpix.vec2pix(order, vec), minlength=healpix.n_pixels(order))
    expected = len(vec) / len(counts)
    assert np.sum((counts - expected) ** 2 / expected) < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_poles_and_the_meridian_have_a_pixel():
    vec = np.array([[0, 0, 1], [0, 0, -1], [1, 0, 0], [1, -1e-18, 0], [1, 0, 2 / np.sqrt(5)]])
    for order in (0, 3, 8):
        pix = healpix.vec2pix(order, vec)
        assert np.all((pix >= 0) & (pix < healpix.n_pixels(order)))
        distance = np.linalg.norm(healpix.pix2vec(order, pix) - vec / np.linalg.norm(vec, axis=1)[:, None], axis=1)
        assert np.all(distance < 1.2 / 2**order)


def test_a_pixel_outside_the_order_is_refused():
    with pytest.raises(ValueError, match="outside 0 to 47"):
        healpix.pix2vec(1, [48])


def test_frames_are_rotations_with_the_pixel_as_view_direction_and_psi_zero():
    frames = healpix.frames(2)
    np.testing.assert_allclose(frames[:, 2], healpix.pix2vec(2, np.arange(healpix.n_pixels(2))), atol=1e-12)
    np.testing.assert_allclose(frames[:, 1, 2], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frames), 1)
    assert healpix.angular_step(2) == 15
