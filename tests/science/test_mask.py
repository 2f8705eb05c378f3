"""Masks: geometry of spheres and soft edges, and thresholds that find the particle."""

from __future__ import annotations

import numpy as np
import pytest

from spa.errors import InputError
from spa.fourier import low_pass
from spa.mask import automatic_threshold, largest_pieces, soft_mask, soft_sphere
from tests.half_maps import blurred, half_maps, radius


@pytest.mark.parametrize(("ndim", "unit_ball"), [(2, np.pi), (3, 4 / 3 * np.pi)])
def test_a_hard_sphere_has_the_volume_of_a_ball_about_the_box_centre(ndim, unit_ball):
    sphere = soft_sphere(64, 20, 0, ndim)
    assert sphere.dtype == np.float32
    assert sphere.sum() == pytest.approx(unit_ball * 20**ndim, rel=0.01)
    centre = [np.average(c, weights=sphere) for c in np.indices(sphere.shape)]
    assert centre == pytest.approx([32] * ndim)


def test_the_edge_of_a_soft_sphere_falls_as_a_raised_cosine():
    row = soft_sphere(64, 20, 8)[32, 32, 32:]
    assert np.all(row[:21] == 1)
    assert np.all(row[28:] == 0)
    assert np.all(np.diff(row[20:29]) < 0)
    assert row[24] == pytest.approx(0.5, abs=1e-6)
    assert row[22] == pytest.approx(0.5 + 0.5 * np.cos(np.pi / 4), abs=1e-6)


@pytest.mark.parametrize("extend", [0, 3, 6, -4])
def test_extending_a_ball_gives_a_ball_of_the_larger_radius(extend):
    ball = np.where(radius(64) <= 15, 1.0, 0.0)
    mask = soft_mask(ball, 0.5, extend, 0)
    assert set(np.unique(mask)) == {0, 1}
    # strictly nearer than `extend`: half a voxel short of it on average
    expected = 15 + extend - 0.5 * np.sign(extend)
    assert (3 * mask.sum() / (4 * np.pi)) ** (1 / 3) == pytest.approx(expected, abs=0.3)


def test_the_soft_edge_lies_outside_and_falls_with_distance():
    ball = radius(64) <= 15
    hard, soft = soft_mask(ball, 0.5, 2, 0), soft_mask(ball, 0.5, 2, 5)
    assert np.all(soft[hard == 1] == 1)
    assert soft.min() >= 0
    assert soft.max() == 1
    row = soft[32, 32, 32:]
    assert np.all(np.diff(row) <= 0)
    assert ((row > 0) & (row < 1)).sum() == 4  # distances 1 to 4 of an edge of 5


def test_small_pieces_are_dropped_and_large_ones_kept():
    binary = (radius(48, (0, 0, -10)) < 8) | (radius(48, (0, 0, 12)) < 6) | (radius(48, (18, 18, 18)) < 1.5)
    kept = largest_pieces(binary)
    assert kept[24, 24, 14]
    assert kept[24, 24, 36]
    assert not kept[42, 42, 42]
    assert largest_pieces(np.zeros((4, 4, 4), dtype=bool)).sum() == 0


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("where", ["box", "sphere"])
def test_the_threshold_finds_the_particle_in_noise(noise, where):
    maps = half_maps(noise=noise)
    volume = (maps.half1 + maps.half2) / 2
    if where == "sphere":  # refined maps hold noise only where the images were not masked
        volume = np.where(radius(64) < 26, volume, 0).astype(np.float32)
    filtered = low_pass(volume, maps.pixel_size, 15)
    found = largest_pieces(filtered >= automatic_threshold(filtered, maps.pixel_size))
    assert 0.7 < found.sum() / maps.support.sum() < 1.5
    mask = soft_mask(found, 0.5, 3, 6)
    assert mask[maps.support].min() > 0.8
    assert mask.mean() < 6 * maps.support.mean()


@pytest.mark.parametrize("scale", [1e-4, 1e3])
@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_the_threshold_follows_the_grey_scale(scale, offset):
    filtered = low_pass(half_maps(noise=0.5).half1, 2.0, 15)
    threshold = automatic_threshold(filtered, 2.0)
    assert automatic_threshold(scale * (filtered + offset), 2.0) == pytest.approx(
        scale * (threshold + offset), rel=1e-3, abs=1e-3 * scale
    )


def test_a_small_particle_in_a_large_box_is_found():
    volume = np.zeros((96, 96, 96), dtype=np.float32)
    volume[24:72, 24:72, 24:72] = blurred((radius(48) < 8).astype(float), 2.0, 100)
    noisy = low_pass(volume + 0.1 * np.random.default_rng(0).normal(size=volume.shape), 2.0, 15)
    found = largest_pieces(noisy >= automatic_threshold(noisy, 2.0))
    assert (3 * found.sum() / (4 * np.pi)) ** (1 / 3) == pytest.approx(8, abs=1)


@pytest.mark.parametrize("pixel_size", [1.0, 3.0])
def test_pure_noise_and_nothing_have_no_threshold(pixel_size):
    noise = np.random.default_rng(2).normal(size=(64, 64, 64))
    for volume in (low_pass(noise, pixel_size, 15), np.zeros((32, 32, 32))):
        with pytest.raises(InputError, match="no density stands out"):
            automatic_threshold(volume, pixel_size)
