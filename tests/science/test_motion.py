"""Alignment, local model, sums and dose weights against movies whose motion is known, and against formulas."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from spa import motion_sum
from spa.defects import Repair, hot_pixels
from spa.dose import critical_exposure, frame_weight, voltage_factor, weight_norm
from spa.errors import InputError
from spa.kernels.backend import to_host
from spa.motion import Track, align_frames
from spa.motion_fourier import crop_transform, even_size, moved, working_shape
from spa.motion_model import LocalModel, fit_model
from spa.motion_patches import align_patches
from spa.motion_sum import Binning, Exposure, FrameSum, SpectrumSum, binned_transform, binning
from tests.devices import device_named
from tests.movies import MadeMovie, grid, make_movie, specimen

PIXEL = 1.5
BFACTOR = 150 / PIXEL**2


@pytest.fixture(params=["cpu", "emulated", "gpu"])
def put(request):
    with device_named(request.param) as place:
        yield place


def small_transforms(frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    shape = working_shape(frames.shape[1:], BFACTOR)
    return np.stack([crop_transform(scipy.fft.rfft2(f.astype(np.float32)), shape) for f in frames]), shape


def align(frames: np.ndarray, put=np.asarray) -> Track:
    transforms, shape = small_transforms(frames)
    return align_frames(put(transforms), shape, frames.shape[1:], BFACTOR, 100 / PIXEL)


def align_locally(frames: np.ndarray, put=np.asarray, n_patches: tuple[int, int] = (5, 5)):
    transforms, shape = small_transforms(frames)
    full = frames.shape[1:]
    track = align_frames(put(transforms), shape, full, BFACTOR, 100 / PIXEL)
    placed = to_host(moved(put(transforms), shape, track.shifts * (shape[1] / full[1], shape[0] / full[0])))
    images = scipy.fft.irfft2(placed, s=shape).astype(np.float32)
    return track, *align_patches(put(images), track, full, n_patches, BFACTOR)


def misfit(movie: MadeMovie, shifts: np.ndarray, model: LocalModel | None = None) -> float:
    """Motion left over the field in Å: root mean square distance from each place's mean."""
    places = grid()
    left = movie.at(places) + shifts[:, None, :]
    if model is not None:
        left = left + model.at(np.arange(len(shifts), dtype=float), places)
    left = left - left.mean(axis=0)
    return float(np.sqrt((left**2).sum(axis=-1).mean())) * PIXEL


def error_of_mean(movie: MadeMovie, shifts: np.ndarray) -> float:
    """Distance in Å of whole-frame shifts from minus the mean motion over the field, up to a constant."""
    error = shifts + movie.at(grid()).mean(axis=1)
    return float(np.sqrt(((error - error.mean(axis=0)) ** 2).sum(axis=1).mean())) * PIXEL


@pytest.mark.parametrize(("drift", "n_frames"), [(0.0, 12), (0.5, 24), (3.0, 24)])
def test_whole_frame_shifts_are_within_a_tenth_of_an_angstrom(put, drift, n_frames):
    movie = make_movie(drift=drift, n_frames=n_frames, contrast=0.25, seed=4)
    track = align(movie.frames, put)
    assert track.found
    assert (track.shifts[0] == 0).all()
    assert error_of_mean(movie, track.shifts) < 0.1


def test_shifts_are_relions_minus_the_motion_and_not_transposed():
    movie = make_movie(drift=2.0, n_frames=10, contrast=0.25, seed=2)
    shifts = align(movie.frames).shifts
    np.testing.assert_allclose(shifts, -movie.drift, atol=0.3)
    assert abs(movie.drift[-1, 0] - movie.drift[-1, 1]) > 3


def test_errors_say_how_far_off_the_shifts_are():
    ratios = []
    for seed in range(6):
        movie = make_movie(drift=1.0, n_frames=16, contrast=0.12, seed=seed)
        track = align(movie.frames)
        ratios.append(error_of_mean(movie, track.shifts) / PIXEL / np.sqrt(2) / np.median(track.errors))
    assert 0.5 < np.median(ratios) < 1.6


def test_rectangular_frames_keep_x_and_y_apart():
    movie = make_movie(size=512, drift=2.0, n_frames=12, contrast=0.25, seed=5)
    track = align(movie.frames[:, :320, :])
    error = track.shifts + movie.drift
    assert np.sqrt(((error - error.mean(axis=0)) ** 2).sum(axis=1).mean()) * PIXEL < 0.15


def test_patches_halve_what_whole_frames_leave(put):
    movie = make_movie(size=768, drift=1.0, doming=4.0, contrast=0.2, n_frames=16, seed=3)
    track, whole, patches = align_locally(movie.frames, put)
    assert patches.model is not None
    assert misfit(movie, whole.shifts, patches.model) < 0.5 * misfit(movie, track.shifts)
    assert error_of_mean(movie, whole.shifts) < 0.15


def test_without_local_motion_patches_change_next_to_nothing():
    movie = make_movie(size=512, drift=1.0, contrast=0.15, n_frames=16, seed=3)
    track, whole, patches = align_locally(movie.frames)
    assert misfit(movie, whole.shifts, patches.model) < misfit(movie, track.shifts) + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_pure_noise_gives_no_shifts_and_says_so(seed):
    frames = np.random.default_rng(seed).poisson(2, (16, 512, 512))
    track = align(frames)
    assert not track.found
    assert (track.shifts == 0).all()


def test_a_static_pattern_of_the_detector_does_not_hold_the_frames():
    movie = make_movie(drift=1.5, contrast=0.25, n_frames=16, seed=6)
    pattern = 1 + 0.03 * np.random.default_rng(0).standard_normal(movie.specimen.shape)
    track = align(movie.frames * pattern)
    assert error_of_mean(movie, track.shifts) < 0.2


@pytest.mark.parametrize("lost", [[9], [6, 7, 8]])
@pytest.mark.parametrize("level", [0, 2])
def test_frames_without_specimen_follow_their_neighbours(lost, level):
    movie = make_movie(drift=1.0, contrast=0.25, n_frames=20, seed=7)
    frames = movie.frames.copy()
    frames[lost] = np.random.default_rng(0).poisson(level, frames[lost].shape)
    track = align(frames)
    assert np.isinf(track.errors[lost]).all()
    assert np.isfinite(np.delete(track.errors, lost, axis=0)).all()
    error = (track.shifts + movie.drift) * PIXEL
    assert np.abs(error - error.mean(axis=0)).max() < 0.6


def test_weak_movies_are_found_by_groups_of_frames():
    movie = make_movie(size=768, drift=0.5, contrast=0.03, n_frames=32, seed=8)
    track = align(movie.frames)
    assert track.found
    assert error_of_mean(movie, track.shifts) < 1.0


def test_patches_of_noise_have_no_model():
    rng = np.random.default_rng(1)
    images, track = rng.standard_normal((12, 200, 200)).astype(np.float32), Track(*np.zeros((2, 12, 2)), True)
    _, patches = align_patches(images, track, (512, 512), (5, 5), BFACTOR)
    model = patches.model
    assert model is None or np.abs(model.at(np.arange(12.0), grid())).max() < 0.5


def test_the_model_is_relions_polynomial():
    coefficients = np.random.default_rng(0).normal(size=(2, 18))
    model = LocalModel(coefficients)
    x, y, z = 0.3, -0.2, 5.0
    for axis in range(2):
        c = coefficients[axis]
        # micrograph_model of RELION: 1, x, x^2, y, y^2, xy, each with z, z^2, z^3
        factors = [1, x, x * x, y, y * y, x * y]
        expected = sum(f * (c[3 * i] * z + c[3 * i + 1] * z**2 + c[3 * i + 2] * z**3) for i, f in enumerate(factors))
        assert model.at(z, np.array([[x, y]]))[0, axis] == pytest.approx(expected)
    assert (model.at(0.0, grid()) == 0).all()


def test_the_mean_over_the_field_can_be_taken_out():
    model = LocalModel(np.random.default_rng(0).normal(size=(2, 18)) / 1000)
    frames = np.arange(8.0)
    fine = grid(200)
    np.testing.assert_allclose(model.field_mean(frames), model.at(frames, fine).mean(axis=1), rtol=1e-3, atol=1e-5)
    rest = model.around_field_mean()
    np.testing.assert_allclose(
        rest.at(frames, grid()) + model.field_mean(frames)[:, None], model.at(frames, grid()), atol=1e-9
    )


def test_fitting_finds_a_polynomial_in_spite_of_constants_and_outliers():
    rng = np.random.default_rng(2)
    truth = LocalModel(rng.normal(size=(2, 18)) * np.tile([0.2, 0.02, 0.001], 6))
    places = grid(5)
    shifts = np.swapaxes(truth.at(np.arange(20.0), places), 0, 1)
    measured = shifts + rng.normal(size=(25, 1, 2)) * 3 + 0.05 * rng.normal(size=shifts.shape)
    measured[7] += 8 * rng.normal(size=shifts[7].shape)
    fitted = fit_model(places, measured, np.full_like(measured, 0.05))
    np.testing.assert_allclose(np.swapaxes(fitted.at(np.arange(20.0), places), 0, 1), shifts, atol=0.25)


def test_fitting_noise_gives_next_to_nothing():
    measured = np.random.default_rng(3).normal(size=(25, 24, 2))
    model = fit_model(grid(5), measured, np.ones_like(measured))
    assert np.abs(model.at(np.arange(24.0), grid(5))).max() < 0.35


def test_working_sizes_are_even_fast_and_not_larger_than_the_frame():
    assert even_size(1433, 4096) == 1440
    assert even_size(5000, 4095) == 4094
    rows, columns = working_shape((4092, 5760), 150)
    assert (rows % 2, columns % 2) == (0, 0)
    assert rows / columns == pytest.approx(4092 / 5760, rel=0.03)
    assert working_shape((512, 512), 1e-3) == (512, 512)


def test_summing_shifted_frames_puts_the_specimen_back(put):
    movie = make_movie(drift=2.0, contrast=0.3, n_frames=12, seed=9)
    sizes = binning(movie.specimen.shape, 1.0)
    total = FrameSum(sizes, 12, -movie.drift)
    for number, frame in enumerate(movie.frames):
        total.add(number, binned_transform(put(frame.astype(np.float32)), sizes))
    aligned, plain = to_host(total.finish()), movie.frames.sum(axis=0)
    assert aligned.mean() == pytest.approx(plain.mean(), rel=1e-4)
    assert correlation(aligned, movie.specimen) > 1.3 * correlation(plain, movie.specimen)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_a_bent_frame_is_straightened_like_an_analytic_wave(put):
    size = 96
    model = LocalModel(np.random.default_rng(4).normal(size=(2, 18)) / 2)
    row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    def wave(x, y):
        return np.sin(2 * np.pi * (9 * x + 5 * y) / size) + np.cos(2 * np.pi * 7 * x / size)

    u = model.at(1.0, np.stack([column, row], axis=-1).reshape(-1, 2) / size - 0.5).reshape(size, size, 2)
    sizes = binning((size, size), 1.0)
    total = FrameSum(sizes, 2, np.zeros((2, 2)), model)
    total.add(1, binned_transform(put(wave(column, row).astype(np.float32)), sizes))
    expected = wave(column - u[..., 0], row - u[..., 1])
    np.testing.assert_allclose(to_host(total.finish()), expected, atol=0.01)


def test_array_operations_bend_as_the_compiled_loop_does():
    rng = np.random.default_rng(5)
    coefficients = rng.standard_normal((60, 80)).astype(np.float32)
    bend, place = rng.normal(size=(2, 6)) * 5, (1.1, 1.05)
    total = np.zeros((60, 80), dtype=np.float32)
    motion_sum._add_bent(total, coefficients, bend, place)
    rows = [motion_sum._bent_rows(coefficients, bend, place, slice(a, a + 20)) for a in (0, 20, 40)]
    np.testing.assert_allclose(np.concatenate(rows), total, atol=2e-4)


@pytest.mark.parametrize("bin_factor", [1.0, 1.5, 2.0, 2.7])
def test_binning_keeps_grey_values_and_places(bin_factor):
    size, pixel = 512, 2 * np.pi / 512
    sizes = binning((size, size + 8), bin_factor)
    row, column = np.meshgrid(np.arange(size), np.arange(size + 8), indexing="ij")
    image = (10 + np.sin(6 * pixel * row) * np.exp(-(((column - 250) / 60) ** 2))).astype(np.float32)
    total = FrameSum(sizes, 1, np.zeros((1, 2)))
    total.add(0, binned_transform(image, sizes))
    got = total.finish()
    assert got.shape == sizes.binned
    assert all(n % 2 == 0 for n in sizes.binned)
    y, x = np.meshgrid(*(np.arange(n) * u / n for n, u in zip(sizes.binned, sizes.used, strict=True)), indexing="ij")
    expected = 10 + np.sin(6 * pixel * y) * np.exp(-(((x - 250) / 60) ** 2))
    inner = np.s_[20:-20]
    np.testing.assert_allclose(got[inner], expected[inner], atol=0.02)
    assert sizes.used[0] / sizes.binned[0] == pytest.approx(bin_factor, rel=1e-3)


def test_binning_to_nothing_is_refused():
    with pytest.raises(InputError, match="too small"):
        binning((512, 512), 16)


def test_dose_weights_follow_grant_and_grigorieff():
    s = np.array([0.05, 0.1, 1 / 3])
    critical = 0.245 * s**-1.665 + 2.81
    np.testing.assert_allclose(critical_exposure(s, 300), critical)
    np.testing.assert_allclose(critical_exposure(s, 200), 0.8 * critical)
    assert np.isinf(critical_exposure(np.zeros(1), 300))[0]
    np.testing.assert_allclose(frame_weight(2, s, 300, 1.5, 4.0), np.exp(-8.5 / (2 * critical)))
    weights = np.stack([frame_weight(i, s, 300, 1.5, 0) for i in range(24)]) / weight_norm(24, s, 300, 1.5, 0)
    np.testing.assert_allclose((weights**2).sum(axis=0), 1)
    with pytest.raises(InputError, match="not for 3 kV"):
        voltage_factor(3)


def test_dose_weighting_keeps_noise_white():
    rng = np.random.default_rng(6)
    sizes = binning((256, 256), 1.0)
    total = FrameSum(sizes, 20, np.zeros((20, 2)), None, Exposure(1.0, 300, 2.0, 0.0))
    for i in range(20):
        total.add(i, binned_transform(rng.standard_normal((256, 256)).astype(np.float32), sizes))
    power = np.abs(scipy.fft.rfft2(total.finish())) ** 2 / 256**2
    radius = np.hypot(scipy.fft.fftfreq(256)[:, None], scipy.fft.rfftfreq(256))
    for low, high in ((0.02, 0.1), (0.1, 0.3), (0.3, 0.5)):
        assert power[(radius > low) & (radius < high)].mean() == pytest.approx(1, abs=0.1)


def test_dose_weighting_raises_the_correlation_with_an_undamaged_specimen():
    movie = make_movie(size=512, drift=0, contrast=0.3, n_frames=24, damage=6.0, seed=10)
    sizes = binning(movie.specimen.shape, 1.0)
    sums = [FrameSum(sizes, 24, np.zeros((24, 2)), None, e) for e in (None, Exposure(PIXEL, 300, 2.0, 0.0))]
    for i, frame in enumerate(movie.frames):
        for total in sums:
            total.add(i, binned_transform(frame.astype(np.float32), sizes))
    plain, weighted = (correlation(total.finish(), movie.specimen) for total in sums)
    assert weighted > plain + 0.005


def test_amplitude_spectra_of_aligned_groups():
    size, n_frames = 256, 8
    rng = np.random.default_rng(7)
    image = specimen(size, PIXEL, 1)
    drift = np.cumsum(rng.normal(size=(n_frames, 2)), axis=0)
    sizes = Binning((size, size), (size, size), (size, size))
    spectrum = SpectrumSum(sizes, -drift, 3)
    fy, fx = scipy.fft.fftfreq(size)[:, None], scipy.fft.rfftfreq(size)
    for i in range(n_frames):
        phase = np.exp(-2j * np.pi * (fx * drift[i, 0] + fy * drift[i, 1]))
        spectrum.add(i, (scipy.fft.rfft2(image) * phase).astype(np.complex64))
    got, pixel = spectrum.finish(PIXEL, size)
    expected = np.fft.fftshift(np.abs(np.fft.fft2(image))) * n_frames / size**2
    assert pixel == pytest.approx(PIXEL)
    centre = size // 2
    assert got[centre, centre] < 2 * expected[centre - 1 : centre + 2, centre - 1 : centre + 2].max()
    got[centre, centre] = expected[centre, centre] = 0
    np.testing.assert_allclose(got[1:, 1:], expected[1:, 1:], atol=1e-3 * expected.max())


def test_a_bright_movie_leaves_no_ripples_in_its_spectrum():
    """The mean of the counts is thousands of times what the rest of the spectrum holds."""
    rng = np.random.default_rng(0)
    sizes = binning((512, 512), 1.0)
    spectrum = SpectrumSum(sizes, np.zeros((3, 2)), 1)
    for _ in range(3):
        spectrum.add(0, binned_transform((1000 + rng.normal(size=(512, 512))).astype(np.float32), sizes))
    image, _ = spectrum.finish(1.5, 256)
    assert image.min() > 0
    assert image.max() < 10 * np.median(image)


def test_spectra_of_fine_pixels_are_cut_and_shrunk_to_the_box():
    sizes = binning((512, 768), 1.0)
    spectrum = SpectrumSum(sizes, np.zeros((2, 2)), 1)
    row, column = np.meshgrid(np.arange(512), np.arange(768), indexing="ij")
    for i in range(2):
        spectrum.add(i, binned_transform(np.cos(2 * np.pi * (row / 16 + column / 12)).astype(np.float32), sizes))
    image, pixel = spectrum.finish(0.7, 128)
    assert image.shape == (128, 128)
    assert pixel == pytest.approx(1.4, rel=0.01)
    # the wave of 16 and 12 pixels of 0.7 A lies at its frequency, in either half
    y, x = np.unravel_index(int(image.argmax()), image.shape)
    at = np.array([x - 64, y - 64]) / (128 * pixel)
    np.testing.assert_allclose(np.abs(at), [1 / (12 * 0.7), 1 / (16 * 0.7)], atol=0.6 / (128 * pixel))


def test_hot_pixels_do_not_hide_each_other():
    rng = np.random.default_rng(8)
    total = rng.poisson(40, (200, 300)).astype(np.float32)
    total[20, 30], total[100, 200], total[5, 5] = 1e6, 300, 120
    known = np.zeros(total.shape, dtype=bool)
    known[5, 5] = True
    np.testing.assert_array_equal(np.argwhere(hot_pixels(total, known)), [[20, 30], [100, 200]])


def test_bad_pixels_take_values_of_good_neighbours():
    rng = np.random.default_rng(9)
    frame = rng.poisson(5, (120, 120)).astype(np.float32)
    frame[:, 60:] += 100
    bad = np.zeros(frame.shape, dtype=bool)
    bad[10, 10] = bad[0, 0] = bad[50, 90] = True
    bad[80:110, 5:40] = True
    broken = frame.copy()
    broken[bad] = 1e5
    mended = broken.copy()
    Repair(bad, 2, seed=1)(mended, 3)
    assert (mended[~bad] == frame[~bad]).all()
    assert mended[10, 10] in frame[8:13, 8:13]
    assert mended[50, 90] in frame[48:53, 88:93]
    assert mended[bad].max() < 130
    again = broken.copy()
    Repair(bad, 2, seed=1)(again, 3)
    np.testing.assert_array_equal(again, mended)
    # counts stay counts: means of neighbours would have less noise
    assert mended[80:110, 5:40].std() > frame[:, :60].std()
