import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa import euler, fourier
from spa.grids import centred_coordinates, half_plane, radius_grid, rfft_multiplicity
from spa.kernels.slices import extract_slices, half_radius


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def blob(box, centre, width, pixel_size=1.0):
    """A Gaussian at `centre` (z, y, x in Angstrom from the box centre), sampled at `pixel_size`."""
    coordinates = [c * pixel_size for c in centred_coordinates(box, len(centre))]
    squared = sum((c - o) ** 2 for c, o in zip(coordinates, centre, strict=True))
    return np.exp(-squared / (2 * width**2)).astype(np.float32)


@pytest.mark.parametrize("ndim", [2, 3])
def test_forward_is_unnormalised_with_the_origin_at_the_centre(ndim, rng):
    box = 8
    point = np.zeros((box,) * ndim, np.float32)
    point[(box // 2,) * ndim] = 3
    np.testing.assert_allclose(fourier.forward(point, ndim), 3, atol=1e-6)
    a = rng.standard_normal((2, *(box,) * ndim)).astype(np.float32)
    ft = fourier.forward(a, ndim)
    assert ft.dtype == np.complex64
    np.testing.assert_allclose(fourier.inverse(ft, box, ndim), a, atol=1e-5)
    parseval = (np.abs(ft) ** 2 * rfft_multiplicity(box)).sum() / box**ndim
    assert parseval == pytest.approx((a.astype(float) ** 2).sum(), rel=1e-5)


def test_scatter_restores_what_gather_took_and_is_friedel_symmetric(rng):
    image = rng.standard_normal((3, 16, 16)).astype(np.float32)
    pixels = half_plane(16, 7)
    values = fourier.gather(fourier.forward(image), pixels)
    ft = fourier.scatter(values, pixels)
    np.testing.assert_array_equal(fourier.gather(ft, pixels), values)
    column = ft[:, :, 0]
    np.testing.assert_array_equal(column[:, 1:], np.conj(column[:, :0:-1]))
    back = fourier.forward(fourier.inverse(ft, 16))
    np.testing.assert_allclose(back, ft, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(0, 6), st.integers(1, 3), st.integers(0, 99))
def test_padding_in_fourier_space_then_cropping_is_the_identity(half, more, ndim, seed):
    a = np.random.default_rng(seed).standard_normal((2 * half,) * ndim).astype(np.float32)
    padded = fourier.fourier_crop(a, 2 * (half + more), ndim)
    np.testing.assert_allclose(fourier.fourier_crop(padded, 2 * half, ndim), a, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(0, 6), st.integers(1, 3))
def test_padding_in_real_space_then_cropping_is_the_identity(half, more, ndim):
    a = np.arange((2 * half) ** ndim, dtype=np.float32).reshape((2 * half,) * ndim)
    padded = fourier.pad_or_crop(a, 2 * (half + more), ndim, fill=-1)
    assert padded[(half + more,) * ndim] == a[(half,) * ndim]
    assert (padded == -1).sum() == padded.size - a.size
    np.testing.assert_array_equal(fourier.pad_or_crop(padded, 2 * half, ndim), a)


def test_whole_pixel_shifts_roll_the_image(rng):
    images = rng.standard_normal((3, 12, 12)).astype(np.float32)
    moved = fourier.shift(images, np.array([[3, -2], [0, 1], [-5, 0]]))
    for image, result, (x, y) in zip(images, moved, [(3, -2), (0, 1), (-5, 0)], strict=True):
        np.testing.assert_allclose(result, np.roll(image, (y, x), (0, 1)), atol=1e-5)


def test_fractional_shift_moves_a_blob_and_agrees_with_the_phase_factors():
    image = blob(32, (1.0, -2.0), 2.5)[None]
    offset = np.array([[1.3, -0.6]])
    moved = fourier.shift(image, offset)
    np.testing.assert_allclose(moved[0], blob(32, (0.4, -0.7), 2.5), atol=2e-5)
    pixels = half_plane(32, 12)
    phases = fourier.phase_factors(offset, pixels.kx, pixels.ky, 32)
    before, after = (fourier.gather(fourier.forward(x), pixels) for x in (image, moved))
    np.testing.assert_allclose(before * phases, after, atol=1e-4)


def test_low_pass_is_a_raised_cosine_two_shells_wide_around_the_resolution():
    box, pixel_size, shell = 32, 2.0, 8
    point = np.zeros((box,) * 3, np.float32)
    point[(box // 2,) * 3] = 1
    filtered = fourier.low_pass(point, pixel_size, box * pixel_size / shell)
    line = fourier.forward(filtered, 3)[0, 0].real
    np.testing.assert_allclose(line[:shell], 1, atol=1e-5)
    assert line[shell] == pytest.approx(0.5, abs=1e-5)
    np.testing.assert_allclose(line[shell + 1 :], 0, atol=1e-5)


@pytest.mark.parametrize(("pixel_size", "new_box"), [(3.0, 24), (1.5, 48), (1.37, 40), (2.3, 32), (2.0, 40), (4.0, 16)])
def test_resample_keeps_grey_values_and_centre(pixel_size, new_box):
    centre = (3.0, -5.0, 2.0)
    resampled = fourier.resample(blob(32, centre, 6.0, 2.0), 2.0, pixel_size, new_box)
    assert resampled.shape == (new_box,) * 3
    np.testing.assert_allclose(resampled, blob(new_box, centre, 6.0, pixel_size), atol=2e-3)


def test_resample_at_the_same_extent_is_the_fourier_crop(rng):
    a = rng.standard_normal((16, 16, 16)).astype(np.float32)
    for new in (8, 12, 24):
        expected = fourier.fourier_crop(a, new, 3)
        np.testing.assert_allclose(fourier.resample(a, 1.0, 16 / new, new), expected, atol=1e-5)
    image = a[0]
    expected = fourier.fourier_crop(image, 12, 2)
    np.testing.assert_allclose(fourier.resample(image, 1.0, 16 / 12, 12, ndim=2), expected, atol=1e-5)


@pytest.mark.parametrize(("ndim", "padding", "kmax"), [(3, 2, 7), (3, 1, 4), (2, 2, 7), (2, 3, 5)])
def test_reference_transform_is_the_padded_transform_at_its_frequencies(ndim, padding, kmax, rng):
    box = 16
    a = rng.standard_normal((box,) * ndim).astype(np.float32)
    r = half_radius(padding, kmax)
    corrected = a / fourier.gridding_correction(box, padding, a)
    padded = fourier.pad_or_crop(corrected, padding * box, ndim)
    full = np.fft.fftn(np.fft.ifftshift(padded))
    frequency = np.arange(-(r + 1), r + 2) % (padding * box)
    expected = full[np.ix_(*[frequency] * (ndim - 1), np.arange(r + 2) % (padding * box))]
    result = fourier.reference_transform(a, padding, kmax)
    assert result.dtype == np.complex64
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_axis_views_are_the_transforms_of_the_projections_along_the_axes(rng):
    box, kmax = 16, 7
    v = rng.standard_normal((box,) * 3).astype(np.float32)
    pixels = half_plane(box, kmax)
    # on the voxels nothing is interpolated, so the correction for interpolation is undone beforehand
    transform = fourier.reference_transform(v * fourier.gridding_correction(box, 2, v), 2, kmax)[None]
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    views = {
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)): v.sum(0),
        ((0, 1, 0), (0, 0, 1), (1, 0, 0)): v.sum(2),
        ((0, 0, 1), (1, 0, 0), (0, 1, 0)): v.sum(1).T,
    }
    for rotation, projection in views.items():
        matrix = np.array(rotation, np.float32)[None]
        result = extract_slices(transform, np.zeros(1, np.int32), matrix, kx, ky, 2)[0]
        np.testing.assert_allclose(result, fourier.gather(fourier.forward(projection), pixels), atol=1e-3)


def test_slices_of_gaussians_are_their_analytic_transforms(rng):
    box, kmax, width = 32, 12, 2.0
    centres = rng.uniform(-5, 5, (4, 3))
    amplitudes = np.array([1.0, -0.7, 0.5, 0.8])
    v = sum(a * blob(box, c[::-1], width) for a, c in zip(amplitudes, centres, strict=True))
    pixels, rotations = half_plane(box, kmax), euler.random_rotations(20, rng)
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    transform = fourier.reference_transform(v.astype(np.float32), 2, kmax)[None]
    slices = extract_slices(transform, np.zeros(20, np.int32), rotations.astype(np.float32), kx, ky, 2)
    k = kx[:, None] * rotations[:, None, 0] + ky[:, None] * rotations[:, None, 1]
    waves = np.exp(-2j * np.pi / box * (k @ centres.T)) @ amplitudes
    expected = (2 * np.pi) ** 1.5 * width**3 * np.exp(-2 * (np.pi * width * pixels.radius / box) ** 2) * waves
    for shell in range(1, kmax + 1):
        a, b = slices[:, pixels.shell == shell], expected[:, pixels.shell == shell]
        correlation = np.vdot(b, a).real / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)
        assert correlation > 0.999
        assert np.vdot(b, a).real / np.vdot(b, b).real == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("ndim", [2, 3])
def test_from_half_transform_inverts_the_padded_transform(ndim, rng):
    box, padding = 16, 2
    a = rng.standard_normal((box,) * ndim).astype(np.float32)
    # band limit well below the padded Nyquist frequency, and nothing near the edge of the box
    a = a * (radius_grid(box, ndim) < 6)
    full = np.fft.fftn(np.fft.ifftshift(fourier.pad_or_crop(a, padding * box, ndim)))
    c = padding * box // 2 - 1
    half = full[np.ix_(*[np.arange(-c, c + 1)] * (ndim - 1), np.arange(c + 1))].astype(np.complex64)
    result = fourier.from_half_transform(half, padding, box)
    nyquist = full.copy()
    nyquist[np.ix_(*[np.arange(-c, c + 1)] * ndim)] = 0
    missing = np.fft.fftshift(np.fft.ifftn(nyquist).real)
    expected = a - fourier.pad_or_crop(missing, box, ndim)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected less than"):
        fourier.from_half_transform(np.zeros((2 * 16 + 1,) * (ndim - 1) + (17,), np.complex64), padding, box)
