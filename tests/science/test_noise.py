import numpy as np
import pytest

from spa.fourier import forward
from spa.grids import rfft_shells
from spa.noise import coloured_noise, shell_average


@pytest.mark.parametrize("ndim", [2, 3])
def test_shell_average_of_a_radial_function_is_that_function(ndim):
    box = 16
    values = (rfft_shells(box, ndim) ** 2 + 3.0)[None].repeat(2, axis=0)
    np.testing.assert_allclose(shell_average(values, ndim), [np.arange(box // 2 + 1) ** 2 + 3.0] * 2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_shell_average_weighs_the_half_transform_like_the_full_one(ndim):
    box = 12
    a = np.random.default_rng(0).standard_normal((box,) * ndim)
    full = np.abs(np.fft.fftn(a)) ** 2
    k = np.meshgrid(*[np.fft.fftfreq(box) * box] * ndim, indexing="ij")
    shells = np.rint(np.sqrt(sum(x**2 for x in k))).astype(int).ravel()
    expected = np.bincount(shells, full.ravel()) / np.bincount(shells)
    result = shell_average(np.abs(forward(a.astype(np.float32), ndim)) ** 2, ndim)
    np.testing.assert_allclose(result, expected[: box // 2 + 1], rtol=1e-4)


@pytest.mark.parametrize("shape", [(400, 32, 32), (20, 24, 24, 24)])
def test_coloured_noise_has_the_spectrum_asked_for(shape):
    half = shape[-1] // 2
    spectrum = 50 * np.exp(-np.arange(half + 1) / 5) + 2
    noise = coloured_noise(shape, spectrum, np.random.default_rng(2))
    assert noise.dtype == np.float32
    power = shell_average(np.abs(forward(noise, len(shape) - 1)) ** 2, len(shape) - 1).mean(0)
    np.testing.assert_allclose(power[2:], spectrum[2:], rtol=0.12)
    np.testing.assert_array_equal(noise, coloured_noise(shape, spectrum, np.random.default_rng(2)))
