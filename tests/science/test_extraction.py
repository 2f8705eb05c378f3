"""Windows, cropping, normalisation and recentring of particles against what they must be by their definition."""

from __future__ import annotations

import numpy as np
import pytest

from spa import extraction
from spa.ctf import wavelength
from spa.extraction import Background
from spa.fourier import fourier_crop, shift
from spa.grids import radius_grid
from spa.kernels.backend import to_host
from spa.simulation import Projector

SHAPE = (90, 120)


def numbered() -> np.ndarray:
    """A micrograph in which every pixel says where it is: 1000 row + column."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (1000 * rows + columns).astype(np.float32)


def noise(n: int, box: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, box, box)).astype(np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_pixel_at_half_the_box_is_the_whole_part_of_the_coordinate(device):
    cut = to_host(extraction.windows(device(numbered()), [(40, 30), (60.99, 50.4)], 16))
    assert cut[0, 8, 8] == 30040
    assert cut[1, 8, 8] == 50060
    assert cut[0, 0, 0] == 22032
    assert np.array_equal(np.diff(cut[0], axis=1), np.ones((16, 15)))


def test_beyond_the_edge_the_last_pixel_is_repeated(device):
    cut = to_host(extraction.windows(device(numbered()), [(2, 88), (119, 0)], 16))
    rows, columns = np.clip(np.arange(80, 96), 0, 89), np.clip(np.arange(-6, 10), 0, 119)
    assert np.array_equal(cut[0], 1000 * rows[:, None] + columns)
    assert cut[1, 0, 15] == cut[1, 8, 8] == 119


def test_a_window_reaches_a_micrograph_to_its_last_pixel():
    centres = [(-7.9, 10), (-8, 10), (127, 10), (128, 10), (50, -7), (50, 97), (50, 98), (-0.9, 0)]
    assert extraction.reaches(centres, 16, SHAPE).tolist() == [True, False, True, False, True, True, False, True]


def test_cropping_keeps_place_and_grey_values_of_what_is_coarse(device):
    y, x = np.mgrid[:48, :48] - 24
    blob = (7 + 3 * np.exp(-((x - 4) ** 2 + (y + 6) ** 2) / (2 * 3.0**2))).astype(np.float32)
    small = to_host(extraction.rescale(device(blob[None]), 24))[0]
    y, x = (np.mgrid[:24, :24] - 12) * 2
    assert np.allclose(small, 7 + 3 * np.exp(-((x - 4) ** 2 + (y + 6) ** 2) / (2 * 3.0**2)), atol=1e-4)


def test_cropping_differs_from_trigonometric_resampling_at_nyquist_only():
    images = noise(3, 32)
    difference = np.fft.rfft2(extraction.rescale(images, 20) - fourier_crop(images, 20, 2))
    assert np.abs(difference[:, :10, :10]).max() < 1e-3
    assert np.abs(difference[:, 11:, :10]).max() < 1e-3


@pytest.mark.parametrize("box", [31, 34])
def test_a_box_that_is_odd_or_larger_is_refused(box):
    with pytest.raises(ValueError, match="expected"):
        extraction.rescale(noise(1, 32), box)


@pytest.mark.parametrize("ramp", [True, False])
def test_the_background_has_mean_0_and_deviation_1_and_no_slope(device, ramp):
    y, x = np.mgrid[:40, :40]
    images = 4 * noise(5, 40) + (300 + 2 * x - 3 * y if ramp else 300)
    images[:, 15:25, 15:25] += 1000  # a particle does not count
    found, flat = extraction.normalise(device(images), Background(15, ramp), rng())
    found = to_host(found)
    outside = radius_grid(40, 2) > 15
    assert np.abs(found[:, outside].mean(axis=1)).max() < 1e-5
    assert np.abs(found[:, outside].std(axis=1) - 1).max() < 1e-5
    if ramp:
        centred = (x - 20)[outside]
        assert np.abs((found[:, outside] * centred).mean(axis=1)).max() < 1e-4
    assert found.dtype == np.float32
    assert not flat.any()


def test_normalisation_does_not_depend_on_scale_offset_or_slope():
    images = noise(4, 32)
    y, x = np.mgrid[:32, :32]
    first, _ = extraction.normalise(images, Background(12), rng())
    second, _ = extraction.normalise(7 * images + 40 + 0.5 * x - 0.2 * y, Background(12), rng())
    assert np.allclose(first, second, atol=1e-4)


def test_dust_becomes_noise_and_the_rest_stays(device):
    images = noise(2, 64)
    images[0, 3, 4], images[0, 30, 31], images[1, 60, 2] = 50, 40, -60
    white, _ = extraction.normalise(device(images), Background(24, False, white_dust=5), rng())
    both, _ = extraction.normalise(device(images), Background(24, False, white_dust=5, black_dust=5), rng())
    white, both = to_host(white), to_host(both)
    assert white.max() < 6
    assert white[1, 60, 2] < -20
    assert np.abs(both).max() < 6
    kept = np.ones((64, 64), bool)
    kept[3, 4] = kept[30, 31] = False
    fit = np.polyfit(images[0][kept], both[0][kept], 1)
    assert np.abs(np.polyval(fit, images[0][kept]) - both[0][kept]).max() < 1e-4


def test_a_flat_background_is_named_and_gives_no_nan():
    images = noise(2, 32)
    images[1] = 3.0
    found, flat = extraction.normalise(images, Background(12, ramp=False, white_dust=3), rng())
    assert flat.tolist() == [False, True]
    assert np.isfinite(found).all()


def test_a_circle_wider_than_the_box_is_refused():
    with pytest.raises(ValueError, match="half the box"):
        extraction.normalise(noise(1, 32), Background(17), rng())


def test_recentring_leaves_at_most_half_a_pixel_and_moves_no_particle():
    draw = np.random.default_rng(2)
    centres, origins = draw.uniform(50, 900, (200, 2)), draw.normal(0, 20, (200, 2))
    moved, left = extraction.recentre(centres, origins, np.zeros((200, 3)), 1.3)
    assert np.abs(left).max() <= 0.65 + 1e-9
    assert np.allclose(np.rint(moved - centres), moved - centres)
    assert np.allclose(moved * 1.3 - left, centres * 1.3 - origins)


def test_a_refined_particle_is_centred_where_its_box_moves_by_its_shift():
    box, centre = 32, np.array([48.0, 41.0])
    y, x = np.mgrid[:90, :90]
    truth = np.array([52.3, 38.6])  # where the particle is
    image = np.exp(-((x - truth[0]) ** 2 + (y - truth[1]) ** 2) / 18).astype(np.float32)
    origin = centre - truth
    moved, left = extraction.recentre(centre, origin, np.zeros(3), 1.0)
    cut = shift(extraction.windows(image, moved, box), left)[0]
    ry, rx = np.mgrid[:box, :box] - box // 2
    assert np.allclose(cut, np.exp(-(rx**2 + ry**2) / 18), atol=1e-3)


def test_another_point_of_the_reference_comes_to_the_centre():
    """The projection of a map that holds one blob off its centre, as `spa project` sees it."""
    box, point = 32, np.array([5.0, -3.0, 4.0])
    z, y, x = np.mgrid[:box, :box, :box] - box // 2
    volume = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2) / 8).astype(np.float32)
    angles = np.array([[30.0, 70.0, -40.0], [110.0, 20.0, 75.0]])
    images = Projector(volume[None])(np.zeros(2, int), angles, np.zeros((2, 2)))
    where = np.array([[40.0, 60.0], [50.0, 45.0]])
    moved, left = extraction.recentre(where, np.zeros((2, 2)), angles, 1.0, tuple(point))
    for image, old, new, rest in zip(images, where, moved, left, strict=True):
        ry, rx = np.unravel_index(int(np.argmax(image)), image.shape)
        found = old + np.array([rx, ry]) - box // 2
        assert np.abs(new - rest - found).max() < 0.8


def test_delocalisation_is_defocus_times_wavelength_times_frequency():
    assert extraction.delocalisation(20000.0, 300.0, 7.4) == pytest.approx(20000 * wavelength(300.0) / 7.4)
    assert extraction.delocalisation(20000.0, 300.0, 7.4) == pytest.approx(53, abs=0.5)


def test_contrast_tells_bright_from_dark_and_says_nothing_of_noise():
    y, x = np.mgrid[:48, :48] - 24
    radius = np.hypot(x, y)
    particle = np.where(radius < 12, 0.3, np.where(radius < 16, -0.6, 0.0)).astype(np.float32)
    images = noise(100, 48)
    assert extraction.contrast(images + particle + 0.5, 18) > 10
    assert extraction.contrast(images - particle + 0.5, 18) < -10
    assert abs(extraction.contrast(images + 0.5, 18)) < 4
