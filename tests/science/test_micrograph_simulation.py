"""Simulated micrographs: what is drawn is where and as the truth says, and the noise has its spectrum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from spa import ctf
from spa.grids import rfft_frequencies
from spa.kernels.backend import to_host
from spa.micrograph_scene import Recipe, Scene, draw_scene
from spa.micrograph_simulation import counted, crop, expected_image, frequencies, grey_scale, particle_images
from spa.simulation import circle_variance
from tests.science.micrographs import BOX, PIXEL, projector, recipe

Image = NDArray[np.float32]


def _transfer(rec: Recipe, scene: Scene, shape: tuple[int, int]) -> Image:
    """The CTF of a micrograph by the formula, rfft layout."""
    group = rec.optics[scene.optics_index]
    fy, fx = frequencies(shape, rec.pixel_size)
    s2, angle = fy**2 + fx**2, np.arctan2(fy, fx)
    wave = float(ctf.wavelength(group.voltage))
    mean, half = (scene.defocus_u + scene.defocus_v) / 2, (scene.defocus_u - scene.defocus_v) / 2
    defocus = mean + half * np.cos(2 * (angle - np.radians(scene.defocus_angle)))
    chi = np.pi * wave * defocus * s2 - np.pi / 2 * group.cs * 1e7 * wave**3 * s2**2
    chi += np.radians(scene.phase_shift) + np.arctan(group.q0 / np.sqrt(1 - group.q0**2))
    return np.asarray(np.sin(chi) * np.exp(-rec.bfactor * s2 / 4))


def _power(rec: Recipe, n: int = 6) -> tuple[Image, Scene]:
    """Mean |F|² over several micrographs without particles, per pixel and in electrons, and the last one's scene."""
    total = np.zeros(1)
    for number in range(n):
        scene = draw_scene(rec, number, 0)
        image = counted(rec, scene, expected_image(rec, scene, projector()))
        window = np.outer(*(np.hanning(size) for size in image.shape)) / (3 / 8)
        total = total + np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2 / image.size
    return np.asarray(total / n), scene


def test_the_field_is_the_particles_through_the_ctf_at_their_places() -> None:
    rec = recipe(ice=0.0, bfactor=40.0)
    scene, project = draw_scene(rec, 0, 12), projector(0.02)
    found = expected_image(rec, scene, project)
    # the whole field at once: box centres moved to their places by phases, one CTF for all
    particles, shape = scene.particles, rec.field_shape
    angles = np.stack([particles.rot, particles.tilt, particles.psi], axis=1)
    images = project(np.zeros(12, int), angles, np.zeros((12, 2)))
    total = np.zeros((shape[0], shape[1] // 2 + 1), complex)
    fy, fx = frequencies(shape, 1.0)
    for image, (x, y) in zip(images, scene.coordinates, strict=True):
        field = np.zeros(shape)
        field[:BOX, :BOX] = image
        dx, dy = x + rec.origin[1] - BOX // 2, y + rec.origin[0] - BOX // 2
        total += np.fft.rfft2(field) * np.exp(-2j * np.pi * (fx * dx + fy * dy))
    field = np.fft.irfft2(total * _transfer(rec, scene, shape), s=shape)
    expected = 1 - rec.noise_deviation * field
    # the unevenness of the ice is slower than 800 Å
    slow = np.hypot(*np.broadcast_arrays(*frequencies(shape, PIXEL))) < 1 / 700
    difference = np.fft.irfft2(np.where(slow, 0, np.fft.rfft2(found - expected)), s=shape)
    assert np.sqrt((difference**2).mean()) < 0.02 * expected.std()


def test_protein_is_dark() -> None:
    rec = recipe(ice=0.0, defocus=(8000.0, 8000.0))
    scene = draw_scene(rec, 0, 6)
    image = crop(rec, expected_image(rec, scene, projector(0.02)))
    particles = to_host(particle_images(scene.particles, projector(), np.zeros((6, 2)), BOX))
    for particle, (x, y) in zip(particles, np.rint(scene.coordinates).astype(int), strict=True):
        # what is white in the projection is dark in the micrograph
        seen = image[max(y - 10, 0) : y + 10, max(x - 10, 0) : x + 10]
        wanted = particle[BOX // 2 - 10 :, BOX // 2 - 10 :][max(10 - y, 0) : 20, max(10 - x, 0) : 20]
        wanted = wanted[: seen.shape[0], : seen.shape[1]]
        assert np.corrcoef(seen.ravel(), wanted.ravel())[0, 1] < -0.4


@pytest.mark.parametrize("phase_shift", [0.0, 70.0])
def test_rings_are_where_the_ctf_says(phase_shift: float) -> None:
    rec = recipe(ice=0.5, astigmatism=1500.0, bfactor=30.0, phase_shift=(phase_shift, phase_shift), seed=9)
    rec = replace(rec, shape=(256, 256))
    scene = draw_scene(rec, 0, 0)
    assert scene.phase_shift == phase_shift
    assert scene.defocus_u - scene.defocus_v > 300
    image = counted(rec, scene, expected_image(rec, scene, projector()))
    window = np.outer(np.hanning(256), np.hanning(256))
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2
    transfer = _transfer(rec, scene, image.shape) ** 2
    s = np.hypot(*np.broadcast_arrays(*frequencies(image.shape, PIXEL)))
    # where the rings are wider than the window blurs them
    clear = (s > 0.03) & (s < 0.1)
    dark, bright = power[clear & (transfer < 0.05)].mean(), power[clear & (transfer > 0.6)].mean()
    assert bright > 2.5 * dark
    assert np.corrcoef(power[clear], transfer[clear])[0, 1] > 0.3
    wrong = _transfer(rec, replace(scene, phase_shift=phase_shift + 90), image.shape) ** 2
    assert np.corrcoef(power[clear], wrong[clear])[0, 1] < 0


def test_noise_is_a_white_floor_and_the_ice_through_the_ctf() -> None:
    rec = recipe(ice=0.3, bfactor=20.0, seed=4)
    power, scene = _power(rec)
    s = np.hypot(*np.broadcast_arrays(*frequencies(rec.shape, PIXEL)))
    structural = _transfer(rec, scene, rec.shape) ** 2
    weight = np.full(structural.shape, 2.0)
    weight[:, [0, -1]] = 1
    structural *= 0.3 / 0.7 / np.average(structural, weights=weight)
    expected = rec.electrons * (1 + structural)
    edges = np.linspace(0.02, 0.16, 15)
    for low, high in itertools.pairwise(edges):
        ring = (s >= low) & (s < high)
        assert power[ring].mean() == pytest.approx(expected[ring].mean(), rel=0.1)


def test_ice_and_counting_share_the_variance() -> None:
    for ice in (0.0, 0.2, 0.6):
        rec = recipe(ice=ice)
        scene = draw_scene(rec, 0, 0)
        image = expected_image(rec, scene, projector())
        ft = np.fft.rfft2(crop(rec, image))
        ft[np.hypot(*np.broadcast_arrays(*frequencies(rec.shape, PIXEL))) < 1 / 400] = 0
        structural = np.fft.irfft2(ft, s=rec.shape).var()
        assert structural == pytest.approx(ice * rec.noise_deviation**2, rel=0.06, abs=5e-5)
        shot = counted(rec, scene, image) / rec.electrons - crop(rec, image)
        assert shot.var() == pytest.approx((1 - ice) * rec.noise_deviation**2, rel=0.03)


def test_signal_has_the_variance_asked_for() -> None:
    rec, counts = recipe(defocus_spread=300.0), [10] * 30
    scale = grey_scale(rec, counts, projector(), 0.25)
    variances = []
    for number in range(30):
        particles = draw_scene(rec, number, 10).particles
        images = particle_images(particles, projector(float(scale)), np.zeros((10, 2)), rec.particle_box)
        variances.append(to_host(circle_variance(images, 10.0)))
    assert np.mean(variances) == pytest.approx(0.25, rel=0.02)


def test_the_box_holds_what_the_ctf_spreads() -> None:
    rec = recipe(defocus=(30000.0, 30000.0))
    particles = draw_scene(rec, 0, 4).particles
    small = particle_images(particles, projector(), np.zeros((4, 2)), rec.particle_box)
    large = particle_images(particles, projector(), np.zeros((4, 2)), 2 * rec.particle_box)
    start = rec.particle_box // 2
    inner = large[:, start : start + rec.particle_box, start : start + rec.particle_box]
    assert np.abs(small - inner).max() < 0.02 * np.abs(large).max()


def test_ice_peak_and_bfactor_shape_the_rings() -> None:
    group = recipe().optics[0]
    plain = recipe(pixel_size=1.5, optics=[replace(group, pixel_size=1.5)], ice=0.5)
    s = np.hypot(*np.broadcast_arrays(*frequencies(plain.shape, 1.5)))
    near, far = np.abs(s - 1 / 3.7) < 0.008, np.abs(s - 1 / 6) < 0.008
    ratios = []
    for changes in ({}, {"ice_peak": 4.0}, {"bfactor": 60.0}):
        power, _ = _power(replace(plain, **changes), n=3)  # type: ignore[arg-type]
        floor = plain.electrons
        ratios.append((power[near].mean() - floor) / (power[far].mean() - floor))
    assert ratios[0] == pytest.approx(1, rel=0.25)
    assert ratios[1] > 3
    assert ratios[2] == pytest.approx(np.exp(-30 * (1 / 3.7**2 - 1 / 6**2)), rel=0.15)


def test_carbon_and_dirt_are_darker_and_grainier() -> None:
    rec = recipe(carbon=1.0, pixel_size=8.0, optics=[replace(recipe().optics[0], pixel_size=8.0)])
    scene = draw_scene(rec, 0, 0)
    assert scene.surroundings.hole is not None
    image = crop(rec, expected_image(rec, scene, projector()))
    on = scene.surroundings.hole.drawn(rec.shape, (0, 0)).thickness
    carbon, ice = image[on == 1], image[on == 0]
    assert carbon.mean() < 0.85 * ice.mean()
    assert carbon.std() > 1.3 * ice.std()
    dirty = replace(rec, carbon=0.0, contamination=3.0)
    scene = draw_scene(dirty, 1, 0)
    lump = scene.surroundings.blobs[0].drawn(dirty.shape, (0, 0))
    image = crop(dirty, expected_image(dirty, scene, projector()))
    assert lump.part(image)[lump.thickness > 0.7].mean() < 0.85 * np.median(image)


def test_a_micrograph_follows_from_its_number_and_the_seed_alone() -> None:
    rec = recipe(defocus=(5000.0, 20000.0), astigmatism=500.0, contamination=0.5, carbon=0.5, diameter=30.0)
    first, again = draw_scene(rec, 2, 20), draw_scene(rec, 2, 20)
    assert np.array_equal(first.coordinates, again.coordinates)
    assert len(first.coordinates) > 0
    images = [expected_image(rec, scene, projector()) for scene in (first, again)]
    assert np.array_equal(*images)
    assert np.array_equal(counted(rec, first, images[0]), counted(rec, again, images[1]))
    for other in (draw_scene(rec, 3, 20), draw_scene(replace(rec, seed=4), 2, 20)):
        assert not np.array_equal(other.coordinates, first.coordinates)
        assert other.defocus_u != first.defocus_u
    scenes = [draw_scene(rec, number, 5) for number in range(200)]
    mean = np.array([(scene.defocus_u + scene.defocus_v) / 2 for scene in scenes])
    assert 5000 <= mean.min() < 5500
    assert 19500 < mean.max() <= 20000
    split = np.array([scene.defocus_u - scene.defocus_v for scene in scenes])
    assert 0 <= split.min() < 20
    assert 480 < split.max() <= 500


def test_particles_have_heights_of_their_own_and_models_in_proportion() -> None:
    rec = recipe(defocus_spread=250.0, fractions=(1.0, 3.0), diameter=6.0)
    particles = draw_scene(rec, 0, 800).particles
    assert (particles.defocus_u - 12000).std() == pytest.approx(250, rel=0.1)
    assert particles.defocus_v == pytest.approx(particles.defocus_u)
    assert (particles.class_number == 2).mean() == pytest.approx(0.75, abs=0.06)
    assert abs(np.cos(np.radians(particles.tilt)).mean()) < 5 / np.sqrt(3 * 800)


def test_field_is_even_with_room_for_motion() -> None:
    still, moving = recipe(), recipe(motion=300.0)
    for rec in (still, moving):
        assert not any(size % 2 for size in rec.field_shape)
        assert crop(rec, np.zeros(rec.field_shape, np.float32)).shape == rec.shape
    assert moving.origin[0] >= still.origin[0] + 90
    assert rfft_frequencies(still.particle_box, 2)[0].shape[0] == still.particle_box
