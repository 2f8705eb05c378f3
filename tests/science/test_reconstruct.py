import numpy as np
import pytest

from spa import euler, fourier, reconstruct
from spa.fsc import fsc
from spa.grids import half_plane, radius_grid, rfft_shells
from spa.kernels.slices import extract_slices, insert_slices
from spa.noise import coloured_noise
from spa.symmetry import operators


def smooth_map(box, rng, decay=6.0):
    """A random map with a falling spectrum, fading out towards the edge of the box."""
    spectrum = 1e3 * np.exp(-np.arange(box // 2 + 1) / decay)
    v = coloured_noise((1, *(box,) * 3), spectrum, rng)[0]
    return (v * np.exp(-((radius_grid(box, 3) / (0.25 * box)) ** 4))).astype(np.float32)


def project(volume, rotations, pixels, padding=2):
    transform = fourier.reference_transform(volume, padding, pixels.kmax)[None]
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    classes = np.zeros(len(rotations), np.int32)
    return extract_slices(transform, classes, rotations.astype(np.float32), kx, ky, padding)


def accumulate(values, weights, rotations, pixels, padding=2):
    data, weight = reconstruct.new_accumulator(1, pixels.box_size, padding, pixels.kmax)
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    classes = np.zeros(len(rotations), np.int32)
    insert_slices(data, weight, classes, rotations.astype(np.float32), kx, ky, values, weights, padding)
    return data[0], weight[0]


def shell_correlation(a, b, kmax):
    """Correlation of two maps on the Fourier shells 1 .. kmax, and the scale of the first relative to the second."""
    fa, fb, shells = fourier.forward(a, 3), fourier.forward(b, 3), rfft_shells(a.shape[0], 3)
    pairs = [(fa[shells == s], fb[shells == s]) for s in range(1, kmax + 1)]
    cross = np.array([np.vdot(x, y).real for x, y in pairs])
    power = np.array([[np.vdot(x, x).real, np.vdot(y, y).real] for x, y in pairs])
    return cross / np.sqrt(power.prod(1)), cross / power[:, 1]


@pytest.mark.parametrize("padding", [1, 2])
def test_slices_of_a_map_give_the_map_back(padding):
    rng = np.random.default_rng(0)
    box, pixels = 32, half_plane(32, 14)
    truth, rotations = smooth_map(box, rng), euler.random_rotations(800, rng)
    slices = project(truth, rotations, pixels)
    ctf2 = np.broadcast_to(rng.uniform(0.1, 1, (len(rotations), 1)), slices.shape).astype(np.float32)
    data, weight = accumulate(slices * ctf2, ctf2, rotations, pixels, padding)
    result = reconstruct.solve(data, weight, box, padding, pixels.kmax)
    assert result.dtype == np.float32
    assert result.shape == (box,) * 3
    sphere = radius_grid(box, 3) < 14
    correlation, scale = shell_correlation(result * sphere, truth * sphere, 11)
    assert correlation[1:].min() > (0.999 if padding == 2 else 0.95)
    if padding == 2:
        np.testing.assert_allclose(scale[1:], 1, atol=0.03)


def test_shells_beyond_a_band_hold_nothing_of_it():
    """Two maps that share strong low shells up to the edge of their boxes, and beyond them nothing but chance."""
    rng = np.random.default_rng(5)
    box, padding, kmax, shared = 32, 2, 14, 4
    data, weight = reconstruct.new_accumulator(2, box, padding, kmax)
    centre = data.shape[1] // 2
    full, half = np.arange(-centre, centre + 1) / padding, np.arange(data.shape[-1]) / padding
    radius = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2)
    weight[:] = radius < kmax + 0.5
    common, *own = rng.normal(size=(3, *radius.shape)) + 1j * rng.normal(size=(3, *radius.shape))
    data[:] = (np.array(own) + 300 * common * (radius < shared + 0.5)) * weight
    plain, apart = (
        [reconstruct.solve(data[h], weight[h], box, padding, kmax, band=band) for h in range(2)]
        for band in (None, shared + 2)
    )
    assert fsc(*plain)[shared + 3 : 9].min() > 0.5
    assert np.abs(fsc(*apart)[shared + 3 : kmax]).max() < 0.2
    correlation, scale = shell_correlation(apart[0], plain[0], shared)
    assert correlation[1:].min() > 0.999
    np.testing.assert_allclose(scale, 1, atol=0.02)


def test_images_of_a_2d_reference_give_it_back():
    rng = np.random.default_rng(1)
    box, padding, pixels = 32, 2, half_plane(32, 13)
    image = smooth_map(box, rng).sum(0)
    psi = rng.uniform(-180, 180, 300)
    rotations = euler.matrix(0, 0, psi).astype(np.float32)
    kx, ky = pixels.kx.astype(np.float32), pixels.ky.astype(np.float32)
    classes = np.zeros(len(psi), np.int32)
    transform = fourier.reference_transform(image, padding, pixels.kmax)[None]
    slices = extract_slices(transform, classes, rotations, kx, ky, padding)
    data, weight = reconstruct.new_accumulator(1, box, padding, pixels.kmax, ndim=2)
    insert_slices(data, weight, classes, rotations, kx, ky, slices, np.ones(slices.shape, np.float32), padding)
    result = reconstruct.solve(data[0], weight[0], box, padding, pixels.kmax)
    a, b = (fourier.gather(fourier.forward(x), pixels) for x in (result, image))
    for shell in range(2, 12):
        on = pixels.shell == shell
        assert np.vdot(a[on], b[on]).real > 0.999 * np.sqrt(np.vdot(a[on], a[on]).real * np.vdot(b[on], b[on]).real)


def test_a_class_axis_or_a_smaller_accumulator_is_refused():
    data, weight = reconstruct.new_accumulator(1, 32, 2, 8)
    with pytest.raises(ValueError, match="expected one reference"):
        reconstruct.solve(data, weight, 32, 2, 8)
    with pytest.raises(ValueError, match="kmax 9"):
        reconstruct.solve(data[0], weight[0], 32, 2, 9)
    with pytest.raises(ValueError, match="kmax 16"):
        reconstruct.new_accumulator(1, 32, 2, 16)


def test_shell_weight_is_the_density_of_the_inserted_pixels():
    # n slices of unit weight put n (2 pi r) pixels on a shell of 4 pi r^2 voxels: n / (2 r)
    rng = np.random.default_rng(2)
    pixels, rotations = half_plane(48, 20), euler.random_rotations(2000, rng)
    ones = np.ones((len(rotations), len(pixels)), np.float32)
    for padding in (1, 2):
        _, weight = accumulate(ones.astype(np.complex64), ones, rotations, pixels, padding)
        result = reconstruct.shell_weight(weight, padding)
        assert result.shape == (21,)
        np.testing.assert_allclose(result[3:20], 1000 / np.arange(3, 20), rtol=0.08)


def test_an_empty_accumulator_gives_an_empty_map():
    data, weight = reconstruct.new_accumulator(1, 16, 2, 7)
    np.testing.assert_array_equal(reconstruct.solve(data[0], weight[0], 16, 2, 7), 0)


def test_the_prior_scales_each_shell_as_a_wiener_filter():
    rng = np.random.default_rng(3)
    box, pixels = 32, half_plane(32, 13)
    truth, rotations = smooth_map(box, rng), euler.random_rotations(1500, rng)
    slices = project(truth, rotations, pixels)
    data, weight = accumulate(slices, np.ones(slices.shape, np.float32), rotations, pixels)
    density = reconstruct.shell_weight(weight, 2)
    plain = reconstruct.solve(data, weight, box, 2, pixels.kmax)
    filtered = reconstruct.solve(data, weight, box, 2, pixels.kmax, inverse_tau2=density)
    correlation, scale = shell_correlation(filtered, plain, 12)
    assert correlation[3:].min() > 0.99
    np.testing.assert_allclose(scale[3:], 0.5, atol=0.04)
    blocked = np.where(np.arange(14) > 6, np.inf, 0)
    cut = reconstruct.solve(data, weight, box, 2, pixels.kmax, inverse_tau2=blocked)
    assert np.all(np.isfinite(cut))
    _, scale = shell_correlation(cut, plain, 12)
    np.testing.assert_allclose(scale[[2, 3, 4, 8, 9, 10]], [1, 1, 1, 0, 0, 0], atol=0.05)


@pytest.mark.parametrize("group", ["C4", "D2", "O"])
def test_symmetrise_is_exact_for_signed_permutations(group):
    # inserting the images in all equivalent poses is the same as rotating and adding the sums
    rng = np.random.default_rng(4)
    pixels, rotations, h = half_plane(16, 6), euler.random_rotations(5, rng), operators(group)
    shape = (len(rotations), len(pixels))
    values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    weights = rng.uniform(0, 1, shape).astype(np.float32)
    data, weight = reconstruct.symmetrise(*accumulate(values, weights, rotations, pixels), h)
    copies = (rotations[:, None] @ h).reshape(-1, 3, 3)
    repeated = (np.repeat(x, len(h), axis=0) for x in (values, weights))
    expected, expected_weight = accumulate(*repeated, copies, pixels)
    # in the plane x = 0 only the sum of Friedel mates is determined
    for result, truth in ((data, expected), (weight, expected_weight)):
        np.testing.assert_allclose(result[..., 1:], truth[..., 1:], atol=2e-4)
        planes = [x[..., 0] + np.conj(x[::-1, ::-1, 0]) for x in (result, truth)]
        np.testing.assert_allclose(*planes, atol=2e-4)


@pytest.mark.parametrize("group", ["C3", "D7", "T", "I2"])
def test_a_symmetrised_map_is_invariant_under_its_group(group):
    rng = np.random.default_rng(5)
    box, pixels, h = 32, half_plane(32, 10), operators(group)
    rotations = euler.random_rotations(300, rng)
    slices = project(smooth_map(box, rng, 3.0), rotations, pixels)
    sums = accumulate(slices, np.ones(slices.shape, np.float32), rotations, pixels)
    result = reconstruct.solve(*reconstruct.symmetrise(*sums, h), box, 2, pixels.kmax)
    result *= radius_grid(box, 3) < 13
    views = euler.random_rotations(10, rng)
    first = project(result, views, pixels)
    for operator in h[[1, len(h) // 2, -1]]:
        turned = project(result, views @ operator, pixels)
        assert np.vdot(first, turned).real > 0.99 * np.vdot(first, first).real
        asymmetric = project(result, views @ euler.matrix(17, 31, 7), pixels)
        assert np.vdot(first, asymmetric).real < 0.9 * np.vdot(first, first).real


def test_symmetrise_twice_multiplies_by_the_order_of_the_group():
    rng = np.random.default_rng(6)
    pixels, rotations, h = half_plane(16, 6), euler.random_rotations(5, rng), operators("D2")
    ones = np.ones((5, len(pixels)), np.float32)
    once = reconstruct.symmetrise(*accumulate(ones.astype(np.complex64), ones, rotations, pixels), h)
    twice = reconstruct.symmetrise(*once, h)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(b, 4 * a, atol=1e-4)
