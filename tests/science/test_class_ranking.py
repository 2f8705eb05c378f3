"""Ranking of class averages: protein above all that is not, whatever the grey scale and the orientation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from spa import class_ranking
from spa.fourier import low_pass
from spa.grids import centred_coordinates
from spa.mask import soft_sphere

BOX, PIXEL, DIAMETER = 64, 4.0, 220.0
RADIUS = DIAMETER / 2 / PIXEL
Y, X = centred_coordinates(BOX, 2)


def masked(image: np.ndarray, seed: int, noise: float = 0.1) -> np.ndarray:
    """An average with some noise left, within a soft circle."""
    rest = np.random.default_rng(seed).normal(size=image.shape)
    rest = low_pass(rest, PIXEL, 25.0, ndim=2)
    return (image / image.std() + noise * rest / rest.std()) * soft_sphere(BOX, RADIUS - 5, 5, 2)


def ball(x: float, y: float, width: float) -> np.ndarray:
    """A Gaussian spot."""
    return np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * width**2))


def protein(seed: int) -> np.ndarray:
    """Domains at random within 60 Å of the centre."""
    rng = np.random.default_rng(seed)
    return masked(sum(ball(*rng.uniform(-13, 13, 2), rng.uniform(2, 3.5)) for _ in range(14)), seed)


def noise(seed: int) -> np.ndarray:
    """Noise with detail and coarse variation everywhere."""
    rng = np.random.default_rng(seed)
    fine, coarse = (low_pass(rng.normal(size=(BOX, BOX)), PIXEL, d, ndim=2) for d in (20.0, 90.0))
    return masked(fine / fine.std() + coarse / coarse.std(), seed)


def ice(seed: int) -> np.ndarray:
    """A smooth bright spot off the centre."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    return masked(ball(16 * np.cos(angle), 16 * np.sin(angle), rng.uniform(5, 8)), seed, 0.03)


def dirt(seed: int) -> np.ndarray:
    """A dark spot."""
    return -ice(seed)


def carbon(seed: int) -> np.ndarray:
    """The edge of a film."""
    rng = np.random.default_rng(seed)
    angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(-12, 12)
    return masked(1 / (1 + np.exp(-(X * np.cos(angle) + Y * np.sin(angle) - at) / 1.5)), seed)


def ripples(seed: int) -> np.ndarray:
    """The lattice of a crystal."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi)
    return masked(np.cos(2 * np.pi * rng.uniform(0.08, 0.2) * (X * np.cos(angle) + Y * np.sin(angle))), seed)


def round_spot(seed: int) -> np.ndarray:
    """What is left of many things that were centred but not aligned."""
    return masked(ball(0, 0, 8), seed, 0.02)


def ring(seed: int) -> np.ndarray:
    """A circle, as dirt at another height shows, anywhere near the centre."""
    rng = np.random.default_rng(seed)
    x, y, radius = *rng.uniform(-8, 8, 2), rng.uniform(6, 12)
    return masked(np.exp(-(((np.hypot(X - x, Y - y) - radius) / 2) ** 2)), seed, 0.05)


def scores(images: list[np.ndarray], resolution: float = 20.0, share: float | None = None) -> np.ndarray:
    n = len(images)
    shares = np.full(n, 1 / n if share is None else share)
    return class_ranking.score(class_ranking.features(images, shares, np.full(n, resolution), PIXEL, DIAMETER))


def test_protein_is_kept():
    assert scores([protein(seed) for seed in range(20)]).min() > 0.6


@pytest.mark.parametrize("kind", [noise, ice, dirt, carbon, ripples, round_spot, ring])
def test_junk_is_left_and_ranks_below_all_protein(kind):
    junk = scores([kind(seed) for seed in range(20)])
    assert junk.max() < 0.4
    assert junk.max() < scores([protein(seed) for seed in range(20)]).min()


def test_pure_noise_is_left_even_where_a_resolution_is_claimed():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = low_pass(rng.normal(size=(BOX, BOX)), PIXEL, 10.0, ndim=2) * soft_sphere(BOX, RADIUS - 5, 5, 2)
        assert scores([image], resolution=10.0)[0] < 0.1


def test_a_class_without_resolution_or_particles_is_left():
    image = protein(1)
    assert scores([image], resolution=np.inf)[0] < 0.05
    assert scores([image], share=0.0)[0] == 0
    assert scores([image], share=0.01)[0] < scores([image])[0]
    assert scores([np.zeros((BOX, BOX)), image]).tolist()[0] == 0
    assert scores([np.full((BOX, BOX), 3.0)])[0] == 0


def test_neither_grey_scale_nor_orientation_matter():
    image = protein(3)
    expected = scores([image])[0]
    assert scores([1000 * image])[0] == pytest.approx(expected, rel=1e-6)
    assert scores([1e-6 * image])[0] == pytest.approx(expected, rel=1e-6)
    assert scores([image + 5])[0] == pytest.approx(expected, rel=1e-6)
    turned = np.roll(np.rot90(image), 1, axis=0)  # about the pixel box // 2
    assert scores([turned])[0] == pytest.approx(expected, abs=0.02)
    assert scores([ndimage.rotate(image, 30, reshape=False, order=3)])[0] == pytest.approx(expected, abs=0.1)


def test_contrast_the_wrong_way_round_is_left():
    assert scores([-protein(seed) for seed in range(5)]).max() < 0.1


def test_the_mask_is_found_where_the_averages_end():
    images = np.stack([protein(seed) for seed in range(5)] + [noise(seed) for seed in range(5)])
    assert class_ranking.mask_radius(images) == pytest.approx(RADIUS, abs=3)
    assert class_ranking.mask_radius(images + 7) == pytest.approx(RADIUS, abs=3)
    shares, resolutions = np.full(10, 0.1), np.full(10, 20.0)
    found = class_ranking.score(class_ranking.features(images, shares, resolutions, PIXEL))
    assert found[:5].min() > 0.5 > found[5:].max()
