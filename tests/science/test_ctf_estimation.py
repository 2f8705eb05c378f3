"""CTF estimation: spectra made from the model with known noise, where the truth is exact."""

from __future__ import annotations

import numpy as np
import pytest

from spa.ctf import coefficients, ctf_image
from spa.ctf_estimation import Settings, estimate, estimate_micrograph
from spa.ctf_estimation_confidence import TRUSTED, confidence, problems, uneven_part
from spa.ctf_estimation_levels import basis, deviances, fit_levels
from spa.ctf_estimation_model import Parameters, Wave, flattened, ring_phase
from spa.ctf_estimation_refine import RingFit, information
from spa.ctf_estimation_rings import diagnostic, whole
from spa.ctf_estimation_search import Range, Table, search
from spa.ctf_estimation_spectrum import Spectrum, from_image, from_pixels, tile_powers
from spa.ctf_estimation_tilt import tilt
from spa.fourier import forward, inverse
from spa.grids import half_plane
from spa.kernels.backend import to_host

BOX, PIXEL = 512, 1.5
EXTENT = BOX * PIXEL
WAVE = Wave.of(300, 2.7, 0.1)


def parameters(u: float, v: float, angle: float, phase_shift: float = 0.0) -> Parameters:
    """From defoci in Angstrom and angles in degrees."""
    half, twice = (u - v) / 2, 2 * np.radians(angle)
    return Parameters((u + v) / 2, half * np.cos(twice), half * np.sin(twice), np.radians(phase_shift))


def made_spectrum(
    truth: Parameters, strength: float, seed: int = 1, averages: float = 30.0, wave: Wave = WAVE
) -> Spectrum:
    """Power with rings of `strength` over the noise at 15 Angstrom, on strong low frequencies, gamma distributed."""
    pixels = half_plane(BOX, BOX // 2 - 1)
    empty = from_pixels(np.ones(len(pixels), dtype=np.float32), pixels, EXTENT)
    s2 = empty.s2
    signal = strength * np.exp(-90 * (s2 - 1 / 225)) * (0.3 + np.exp(-s2 / 0.004))
    noise = 1 + 40 * np.exp(-np.sqrt(s2) / 0.012) - 0.3 * s2 / s2.max()
    rings = np.sin(ring_phase(empty, wave, truth) / 2) ** 2
    power = (noise + signal * rings) * np.random.default_rng(seed).gamma(averages, 1 / averages, len(pixels))
    return Spectrum(
        power.astype(np.float32), empty.weight, s2, empty.cos2, empty.sin2, empty.ring, empty.box_size, empty.extent
    )


def vector_error(found: Parameters, truth: Parameters) -> float:
    """Length of the difference of the astigmatism vectors, defocus U minus V, Angstrom."""
    return 2 * float(np.hypot(found.along - truth.along, found.across - truth.across))


@pytest.mark.parametrize(
    ("truth", "within"),
    [((3400, 3300, 20), 60), ((8000, 7100, -60), 15), ((21000, 20000, 85), 15), ((58000, 57500, 5), 15)],
)
def test_defocus_and_astigmatism_are_found_from_coarse_to_fine_rings(truth, within):
    true = parameters(*truth)
    found = estimate(made_spectrum(true, 8.0), WAVE, Settings())
    assert found.parameters.defocus == pytest.approx(true.defocus, abs=within)
    assert vector_error(found.parameters, true) < 4 * within
    assert found.defocus_u >= found.defocus_v
    assert problems(found, 0.0) == []


@pytest.mark.parametrize("phase_shift", [25.0, 90.0, 150.0])
def test_phase_shift_is_found_with_the_defocus(phase_shift):
    true = parameters(12500, 12100, 40, phase_shift)
    found = estimate(made_spectrum(true, 6.0), WAVE, Settings(phases=(0, 180, 10)))
    assert found.phase_shift == pytest.approx(phase_shift, abs=3)
    assert found.parameters.defocus == pytest.approx(true.defocus, abs=40)
    assert 0 < found.phase_error < 3


def test_the_convention_is_that_of_the_ctf_of_the_particles():
    u, v, angle = 14000.0, 12500.0, 30.0
    images = np.random.default_rng(3).standard_normal((12, 1, BOX, BOX), dtype=np.float32)
    image_ctf = ctf_image(coefficients(u, v, angle, 300, 2.7, 0.1, 0, 80, 1, PIXEL, BOX), BOX)
    power = sum(
        np.abs(forward(inverse(forward(image) * image_ctf, BOX) * 3 + np.roll(image, 9, -1))) ** 2 for image in images
    )
    full = np.concatenate([power[0], np.roll(np.roll(power[0, ::-1], 1, 0)[:, 1:-1][:, ::-1], 0, 0)], axis=1)
    found = estimate(from_image(np.sqrt(np.fft.fftshift(full)), PIXEL), WAVE, Settings())
    assert found.defocus_u == pytest.approx(u, abs=30)
    assert found.defocus_v == pytest.approx(v, abs=30)
    assert found.defocus_angle == pytest.approx(angle, abs=1)


def test_noise_is_not_fitted_with_confidence():
    for seed in range(3):
        found = estimate(made_spectrum(Parameters(15000.0), 0.0, seed), WAVE, Settings())
        assert found.gain < 20
        assert confidence(found) < TRUSTED
        assert "rings_too_weak" in problems(found, 0.0)


def test_a_bend_of_the_background_is_no_ring():
    noise = made_spectrum(Parameters(15000.0), 0.0)
    s = np.sqrt(noise.s2)
    bent = from_pixels_like(noise, noise.power * (1 + 400 * np.exp(-((s / 0.035) ** 2))))
    found = estimate(bent, WAVE, Settings())
    assert confidence(found) < 0.5
    assert problems(found, 0.0)


def test_the_stated_error_is_about_the_error():
    true = parameters(16000, 15600, 10)
    founds = [estimate(made_spectrum(true, 0.08, seed), WAVE, Settings()) for seed in range(6)]
    errors = [abs(f.parameters.defocus - true.defocus) for f in founds]
    stated = np.median([f.defocus_error for f in founds])
    assert 0.1 * stated < np.median(errors) < 1.5 * stated
    assert min(confidence(f) for f in founds) > 0.3


def test_dispersion_counts_the_averages():
    for averages in (10.0, 40.0):
        found = estimate(made_spectrum(parameters(15000, 14500, 0), 0.5, averages=averages), WAVE, Settings())
        assert found.averages == pytest.approx(averages, rel=0.25)


def test_gradient_of_the_likelihood_is_its_slope():
    true = parameters(11000, 10500, 25, 30)
    flat, _ = flattened(made_spectrum(true, 1.0).within(1 / 30, 1 / 5))
    start = parameters(11060, 10520, 30, 33)
    ring_cos = np.cos(ring_phase(flat, WAVE, start))
    shape = basis(flat)
    levels = fit_levels(flat, ring_cos, shape, rounds=12)

    def at(defocus: float, along: float, across: float, phase: float, spherical: float) -> float:
        moved = Parameters(
            start.defocus + defocus, start.along + along, start.across + across, start.phase_shift + phase, spherical
        )
        moved_cos = np.cos(ring_phase(flat, WAVE, moved))
        return float(deviances(flat, moved_cos, fit_levels(flat, moved_cos, shape, levels, rounds=8)).sum())

    _, gradient = information(flat, WAVE, shape, RingFit(start, levels, 0.0), ("phase_shift", "spherical"), 0.0)
    steps = np.array([4.0, 4.0, 4.0, 0.01, 3e4])
    rises = [at(*move) - at(*-move) for move in np.diag(steps)]
    assert -4 * gradient * steps == pytest.approx(rises, rel=0.2, abs=0.02 * np.abs(rises).max())


def test_search_ranks_the_true_defocus_first():
    true = parameters(24000, 23200, 70)
    flat, _ = flattened(made_spectrum(true, 3.0).within(1 / 30, 1 / 4))
    found = search(Table.of(flat, WAVE, Range(3000, 60000, 500, 500)))
    assert found[0].parameters.defocus == pytest.approx(true.defocus, abs=150)
    assert vector_error(found[0].parameters, true) < 400
    assert found[0].gain > 2 * found[1].gain


def test_rings_end_where_the_envelope_ends_them():
    strong = estimate(made_spectrum(parameters(9000, 8800, 0), 4.0), WAVE, Settings())
    weak = estimate(made_spectrum(parameters(9000, 8800, 0), 0.1), WAVE, Settings())
    assert strong.rings.max_resolution < 5 < weak.rings.max_resolution
    assert strong.figure_of_merit > 2 * weak.figure_of_merit > 0


def test_an_ice_ring_is_measured():
    plain = made_spectrum(parameters(9000, 8800, 0), 1.0)
    ring = 1 + 0.8 * np.exp(-0.5 * ((np.sqrt(plain.s2) - 1 / 3.7) / 0.006) ** 2)
    icy = from_pixels_like(plain, plain.power * ring)
    assert abs(estimate(plain, WAVE, Settings()).ice_ring) < 0.05
    found = estimate(icy, WAVE, Settings(resolution_max=3.4))
    assert 0.4 < found.ice_ring < 0.9
    assert found.parameters.defocus == pytest.approx(8900, abs=15)


def from_pixels_like(spectrum: Spectrum, power: np.ndarray) -> Spectrum:
    """The spectrum with other power."""
    return Spectrum(
        power.astype(np.float32),
        spectrum.weight,
        spectrum.s2,
        spectrum.cos2,
        spectrum.sin2,
        spectrum.ring,
        spectrum.box_size,
        spectrum.extent,
    )


def test_drift_is_measured():
    plain = made_spectrum(parameters(15000, 14800, 0), 1.0)
    s = np.sqrt(plain.s2) * np.cos(np.arctan2(plain.sin2, plain.cos2) / 2 - 0.7)
    blurred = from_pixels_like(plain, plain.power * np.sinc(10 * PIXEL * s) ** 2)
    assert estimate(plain, WAVE, Settings()).drift < 0.05
    found = estimate(blurred, WAVE, Settings())
    assert found.drift > 0.5
    assert "drift" in problems(found, 0.0)


def test_diagnostic_image_has_the_fit_left_and_the_data_right():
    true = parameters(9000, 8000, 30)
    spectrum = made_spectrum(true, 20.0, averages=300.0)
    picture = diagnostic(whole(spectrum, WAVE, true, 1 / 30))
    assert picture.shape == (BOX, BOX)
    assert picture.min() >= 0
    assert picture.max() <= 1
    left = picture[1:, 1 : BOX // 2]
    right = picture[1:, BOX // 2 + 1 :][::-1, ::-1]
    inner = np.hypot(*np.meshgrid(np.arange(-255, 0), np.arange(-255, 256))) < 120
    assert np.corrcoef(left[inner], right[inner])[0, 1] > 0.9


def white(shape: tuple[int, int], seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def seen_through(noise: np.ndarray, truth: Parameters, strength: float, pixel_size: float = PIXEL) -> np.ndarray:
    """A micrograph of white noise, part of it seen through a CTF."""
    rows, columns = noise.shape
    fy, fx = np.fft.fftfreq(rows, pixel_size)[:, None], np.fft.rfftfreq(columns, pixel_size)[None]
    s2 = fx**2 + fy**2
    azimuth = np.arctan2(fy, fx)
    defocus = truth.towards(np.cos(2 * azimuth), np.sin(2 * azimuth))
    ctf = np.sin(WAVE.phase(s2, defocus, truth.phase_shift)) * np.exp(-40 * s2)
    signal = np.fft.irfft2(np.fft.rfft2(noise) * ctf, s=noise.shape)
    return (white(noise.shape, 77) + strength * signal).astype(np.float32)


@pytest.mark.parametrize(("pixel_size", "shape"), [(1.5, (1100, 1300)), (0.7, (2000, 1900))])
def test_a_micrograph_is_fitted_at_any_pixel_size(pixel_size, shape):
    true = parameters(14000, 13400, 50)
    found, tiles = estimate_micrograph(
        seen_through(white(shape), true, 1.0, pixel_size), pixel_size, BOX, WAVE, Settings()
    )
    assert tiles.extent >= 0.99 * BOX * 1.4
    assert found.parameters.defocus == pytest.approx(true.defocus, abs=40)
    assert vector_error(found.parameters, true) < 100


def test_tilt_is_found_with_its_direction_and_not_where_there_is_none():
    size, n = 1536, 6
    level, tilted = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    noise = white((size, size), 11)
    centre = (np.arange(n) + 0.5) * size / n * PIXEL - size / 2 * PIXEL
    strips = [seen_through(noise, Parameters(15000.0 + 0.55 * y), 2.0) for y in centre]
    for i, strip in enumerate(strips):
        rows = slice(i * size // n, (i + 1) * size // n)
        tilted[rows] = strip[rows]
    level = seen_through(noise, Parameters(15000.0), 2.0)
    for image, angle in ((tilted, np.degrees(np.arctan(0.55))), (level, 0.0)):
        found, tiles = estimate_micrograph(image, PIXEL, BOX, WAVE, Settings(resolution_max=6))
        plane = tilt(tiles, WAVE, found.parameters, found.whole, 1 / 6, found.averages / len(tiles.kept))
        assert plane.angle == pytest.approx(angle, abs=4)
        if angle:
            assert abs((plane.axis + 90) % 180 - 90) < 8
            assert plane.per_y > 0


def test_sums_over_radial_bins_are_those_of_a_count_of_bins():
    spectrum = made_spectrum(Parameters(9000.0), 1.0)
    for part in (spectrum, spectrum.within(1 / 30, 1 / 4)):
        wanted = np.bincount(part.ring, weights=part.power, minlength=part.n_rings)[: part.n_rings]
        assert np.allclose(part.sums(part.power), wanted, rtol=1e-6)


def test_odd_tiles_are_left_out():
    image = white((1200, 1200))
    image[:300, :300] *= 30
    tiles = tile_powers(image, PIXEL, BOX)
    assert not tiles.kept[0]
    assert tiles.kept[-1]
    assert to_host(tiles.spectrum().power).mean() < 0.05


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_scale_of_the_pixels_does_not_matter(scale):
    image = seen_through(white((640, 700)), parameters(9000, 8600, 30), 1.5)
    settings = Settings(defocus_max=20000)
    plain, _ = estimate_micrograph(image, PIXEL, 256, WAVE, settings)
    scaled, _ = estimate_micrograph(image * np.float32(scale), PIXEL, 256, WAVE, settings)
    assert scaled.defocus_u == pytest.approx(plain.defocus_u, abs=0.5)
    amplitudes = np.abs(white((256, 256))) + 1
    power = from_image(amplitudes * np.float32(scale), PIXEL).power
    assert np.allclose(power, from_image(amplitudes, PIXEL).power, rtol=1e-4)


def noise_through(amplitude, seed: int) -> np.ndarray:
    """White noise of 1024 x 1024 pixels through a filter amplitude(f), f in 1/pixel."""
    f = np.hypot(np.fft.fftfreq(1024)[:, None], np.fft.rfftfreq(1024)[None])
    return np.fft.irfft2(np.fft.rfft2(white((1024, 1024), seed)) * amplitude(f)).astype(np.float32)


def smooth_background(f: np.ndarray) -> np.ndarray:
    return np.hypot(5 * np.exp(-0.5 * (2 * np.pi * 4 * f) ** 2), 0.3)


def broad_ring(at: float):
    return lambda f: 1 + 3 * np.exp(-(((f - at) / 0.03) ** 2))


@pytest.mark.parametrize(
    ("amplitude", "seed"),
    [*((smooth_background, seed) for seed in range(4)), (broad_ring(0.10), 5), (broad_ring(0.18), 5)],
)
def test_smooth_noise_is_not_trusted_whatever_its_likelihood(amplitude, seed):
    found, _ = estimate_micrograph(noise_through(amplitude, seed), PIXEL, BOX, WAVE, Settings())
    assert {"too_few_rings", "one_ring_only"} & set(problems(found, 0.0))


@pytest.mark.parametrize("phase_shift", [40.0, 90.0])
def test_a_phase_plate_that_is_not_fitted_shows(phase_shift):
    spectrum = made_spectrum(parameters(15500, 15000, 20, phase_shift), 1.0)
    without = estimate(spectrum, WAVE, Settings())
    assert abs(without.parameters.defocus - 15250) > 100
    assert "phase_shift_left_out" in problems(without, 0.0)
    assert problems(estimate(spectrum, WAVE, Settings(phases=(0, 180, 10))), 0.0) == []


@pytest.mark.parametrize("wave", [Wave.of(200, 2.7, 0.1), Wave.of(300, 0.01, 0.1)])
def test_a_wrong_voltage_or_aberration_shows(wave):
    spectrum = made_spectrum(parameters(15500, 15000, 20), 15.0)
    assert estimate(spectrum, WAVE, Settings()).left_out.spherical_gain < 6
    assert problems(estimate(spectrum, wave, Settings()), 0.0) == ["wrong_voltage_or_cs"]


@pytest.mark.parametrize("seed", range(3))
def test_a_phase_plate_at_strong_signal_is_fitted_from_any_start(seed):
    phase_shift = 40.0 + 30 * seed
    true = parameters(5900, 5000, 43, phase_shift)
    found = estimate(made_spectrum(true, 30.0, seed), WAVE, Settings(phases=(0, 180, 10)))
    assert found.phase_shift == pytest.approx(phase_shift, abs=1)
    assert found.parameters.defocus == pytest.approx(true.defocus, abs=20)


def test_large_astigmatism_and_fine_steps_stay_in_the_range_searched():
    weak = made_spectrum(Parameters(15000.0), 0.0)
    assert problems(estimate(weak, WAVE, Settings(resolution_max=3.1, astigmatism=2000.0)), 0.0)


def test_each_ring_of_a_good_fit_is_seen_in_its_place():
    found = estimate(made_spectrum(parameters(9000, 8700, 20), 2.0), WAVE, Settings(resolution_max=6))
    assert len(found.evidence.depth) >= 3
    assert found.evidence.depth.min() > 4
    assert found.evidence.offset.max() < 0


def test_uneven_fields_are_told_from_slopes():
    image = white((1000, 900))
    slope = np.linspace(-3, 3, 900, dtype=np.float32)
    assert uneven_part(image) == 0
    assert uneven_part(image + slope) == 0
    half = image.copy()
    half[:, :400] += 1.5
    assert uneven_part(half) == pytest.approx(4 / 9, abs=0.03)
    corner = image.copy()
    corner[:200, :200] += 5
    assert uneven_part(corner) == 0


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="no contrast"):
        tile_powers(np.full((600, 600), 3.0, np.float32), PIXEL, BOX)
    with pytest.raises(ValueError, match="too small"):
        tile_powers(white((100, 900)), PIXEL, BOX)
    with pytest.raises(ValueError, match="square"):
        from_image(np.abs(white((512, 500))), PIXEL)
    with pytest.raises(ValueError, match="pixels of the spectrum"):
        estimate(made_spectrum(Parameters(9000.0), 1.0), WAVE, Settings(resolution_min=2.9, resolution_max=2.8))


def test_every_device_gives_the_same(device):
    true = parameters(9000, 8500, 30)
    image = seen_through(white((700, 700)), true, 1.5)
    here, ours = estimate_micrograph(image, PIXEL, 256, WAVE, Settings(defocus_max=20000))
    there, tiles = estimate_micrograph(device(image), PIXEL, 256, WAVE, Settings(defocus_max=20000))
    assert there.defocus_u == pytest.approx(here.defocus_u, abs=0.5)
    assert there.defocus_v == pytest.approx(here.defocus_v, abs=0.5)
    assert there.gain == pytest.approx(here.gain, rel=1e-3)
    assert there.drift == pytest.approx(here.drift, abs=1e-4)
    assert uneven_part(device(image)) == uneven_part(image)
    assert np.allclose(diagnostic(there.whole), diagnostic(here.whole), atol=1e-3)
    gains = [tilt(t, WAVE, f.parameters, f.whole, 1 / 6).gain for t, f in ((ours, here), (tiles, there))]
    assert gains[1] == pytest.approx(gains[0], abs=0.05)
