"""Simulated particles: projections against sums of plane waves, noise, poses, normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from spa import ctf, euler, simulation
from spa.fourier import forward, low_pass
from spa.grids import radius_grid
from spa.noise import power_spectrum

BOX = 32


def _volume() -> NDArray[np.float32]:
    """An asymmetric object within a third of the box, smooth to two thirds of Nyquist."""
    volume = np.random.default_rng(1).normal(size=(BOX, BOX, BOX)).astype(np.float32)
    volume[radius_grid(BOX, 3) > BOX / 3] = 0
    return low_pass(volume, 1.0, 3.0)


def _exact(volume: NDArray[np.float32], rotation: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The central slice, (box, box // 2 + 1), by direct summation over the voxels."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    ky, kx = np.meshgrid(k, np.arange(BOX // 2 + 1), indexing="ij")
    points = kx[..., None] * rotation[0] + ky[..., None] * rotation[1]
    x = np.arange(BOX) - BOX // 2
    waves = [np.exp(-2j * np.pi / BOX * points.reshape(-1, 3)[:, i, None] * x) for i in range(3)]
    return np.einsum("zyx,px,py,pz->p", volume.astype(np.float64), *waves, optimize=True).reshape(kx.shape)


def _low(radius: float) -> NDArray[np.bool_]:
    k = np.fft.fftfreq(BOX, 1 / BOX)
    return np.asarray(np.hypot(k[:, None], np.arange(BOX // 2 + 1)) < radius)


def test_projection_is_the_direct_fourier_slice_to_one_percent_and_to_three_along_the_axes() -> None:
    volume = _volume()
    angles = np.array([[0, 0, 0], [31, 77, -120], [170, 145, 12.5]])
    images = simulation.Projector(volume[None])(np.zeros(3), angles, np.zeros((3, 2)))
    errors = []
    for image, matrix in zip(images, euler.matrix(*angles.T), strict=True):
        exact, found = _exact(volume, matrix), forward(image)
        low = _low(BOX / 2 - 1)
        errors.append(np.linalg.norm((found - exact)[low]) / np.linalg.norm(exact[low]))
    # on the axes nothing is interpolated, so the correction for interpolation is all error
    assert errors[0] < 0.032
    assert max(errors[1:]) < 0.013


def test_projection_along_an_axis_is_the_line_sum() -> None:
    volume = _volume()
    found = simulation.Projector(volume[None])([0], [[0, 0, 0]], [[0, 0]])[0]
    line_sum = volume.sum(axis=0)
    assert np.abs(found - line_sum).max() < 0.03 * np.abs(line_sum).max()


def test_class_shift_and_ctf_are_applied() -> None:
    volume = _volume()
    projector = simulation.Projector(np.stack([0 * volume, volume]))
    angles = np.array([[20.0, 50.0, 80.0]])
    plain = projector([1], angles, [[0, 0]])
    assert np.abs(projector([0], angles, [[0, 0]])).max() == 0
    moved = projector([1], angles, [[3, -2]])
    assert moved[0] == pytest.approx(np.roll(plain[0], (-2, 3), axis=(0, 1)), abs=1e-3 * float(np.abs(plain).max()))
    coefficients = ctf.coefficients(12000, 11000, 30, 300, 2.7, 0.1, 0, 0, 1, 2.0, BOX)
    seen = forward(projector([1], angles, [[0, 0]], coefficients)[0])
    expected = forward(plain[0]) * ctf.ctf_image(coefficients, BOX)[0]
    assert np.abs(seen - expected)[_low(BOX / 2)].max() < 1e-4 * np.abs(expected).max()


def test_resolution_limit_cuts_the_shells_beyond() -> None:
    image = simulation.Projector(_volume()[None], maxres_shell=5)([0], [[10, 20, 30]], [[0, 0]])
    power = power_spectrum(image)[0]
    assert power[5] > 1e4 * power[6:].max()


def test_poses_are_uniform_and_offsets_have_their_spread() -> None:
    poses = simulation.random_poses(4000, 5.0, [1.0, 3.0], seed=2)
    directions = euler.matrix(poses.rot, poses.tilt, poses.psi)[:, 2]
    # the mean of n uniform directions has components of variance 1 / 3n, their second moments of about 4 / 45n
    assert np.abs(directions.mean(axis=0)).max() < 5 / np.sqrt(3 * 4000)
    assert np.abs(directions.T @ directions / 4000 - np.eye(3) / 3).max() < 5 * np.sqrt(4 / 45 / 4000)
    assert abs(np.exp(1j * np.radians(poses.psi)).mean()) < 4 / np.sqrt(4000)
    for offset in (poses.origin_x_angst, poses.origin_y_angst):
        assert offset.std() == pytest.approx(5.0, rel=0.06)
    assert (poses.class_number == 2).mean() == pytest.approx(0.75, abs=0.03)
    assert set(poses.class_number) == {1, 2}


def test_a_particle_does_not_depend_on_how_many_there_are() -> None:
    few, many = (simulation.random_poses(n, 5.0, [1.0], seed=2) for n in (3, 10))
    assert np.array_equal(few.psi, many.psi[:3])
    assert not np.array_equal(few.psi, simulation.random_poses(3, 5.0, [1.0], seed=3).psi)
    spectrum = simulation.noise_spectrum(BOX, 3.0, 0.5)
    together = simulation.particle_noise([4, 5, 6], spectrum, seed=2)
    assert np.array_equal(together[2], simulation.particle_noise([6], spectrum, seed=2)[0])


@pytest.mark.parametrize("coloured", [0.0, 0.4, 1.0])
def test_noise_has_variance_one_and_the_colour_asked_for(coloured: float) -> None:
    pixel = 3.0
    spectrum = simulation.noise_spectrum(BOX, pixel, coloured)
    images = simulation.particle_noise(range(400), spectrum, seed=1)
    assert images.var() == pytest.approx(1.0, rel=0.02)
    measured = power_spectrum(images).mean(axis=0)
    assert measured[2:] == pytest.approx(spectrum[2:], rel=0.1)
    falling = spectrum - BOX**2 * (1 - coloured)
    frequency = np.arange(BOX // 2 + 1) / (BOX * pixel)
    assert falling * (frequency + 0.01) == pytest.approx(np.full(BOX // 2 + 1, falling[0] * 0.01), abs=1e-6)


def test_normalised_background_has_mean_zero_and_deviation_one() -> None:
    images = np.random.default_rng(0).normal(5, 3, (4, BOX, BOX)).astype(np.float32)
    images[:, 12:20, 12:20] += 50
    found, mean, deviation = simulation.normalise(images, 10)
    outside = found[:, radius_grid(BOX, 2) > 10]
    assert outside.mean(axis=1) == pytest.approx(np.zeros(4), abs=1e-5)
    assert outside.std(axis=1) == pytest.approx(np.ones(4), rel=1e-5)
    assert found * deviation[:, None, None] + mean[:, None, None] == pytest.approx(images, abs=1e-3)
    with pytest.raises(ValueError, match="no background"):
        simulation.normalise(images, BOX)
    with pytest.raises(ValueError, match="constant"):
        simulation.normalise(np.zeros((1, BOX, BOX), np.float32), 10)


def test_variance_is_taken_inside_the_circle() -> None:
    images = np.zeros((1, BOX, BOX), np.float32)
    images[:, radius_grid(BOX, 2) > 8] = 100
    assert simulation.circle_variance(images, 8) == pytest.approx(0)
    images[0, BOX // 2] += 1
    assert simulation.circle_variance(images, 8)[0] > 0
