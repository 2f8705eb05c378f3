import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa import ctf
from spa.grids import rfft_shells


def reference_ctf(u, v, angle, kv, cs, q0, phase, b, scale, pixel_size, box):
    """The formula of the conventions, in float64, on the rfft grid."""
    s = np.fft.fftfreq(box, pixel_size)
    sy, sx = np.meshgrid(s, np.abs(s[: box // 2 + 1]), indexing="ij")
    s2 = sx**2 + sy**2
    lam = 12.2643247 / np.sqrt(kv * 1e3 * (1 + 0.978466e-6 * kv * 1e3))
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(sy, sx) - np.radians(angle)))
    chi = np.pi * lam * defocus * s2 - np.pi / 2 * cs * 1e7 * lam**3 * s2**2
    chi += np.radians(phase) + np.arctan(q0 / np.sqrt(1 - q0**2))
    return scale * np.sin(chi) * np.exp(-b / 4 * s2)


def test_wavelengths_of_the_usual_microscopes():
    np.testing.assert_allclose(ctf.wavelength([100, 200, 300]), [0.03701, 0.02508, 0.01969], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(2000, 40000),
    st.floats(-2000, 2000),
    st.floats(-180, 180),
    st.sampled_from([120, 200, 300]),
    st.floats(0, 2.7),
    st.floats(0, 0.3),
    st.floats(0, 170),
    st.floats(0, 150),
)
def test_ctf_image_is_the_formula_of_the_conventions(u, difference, angle, kv, cs, q0, phase, b):
    box, pixel_size = 32, 1.3
    parameters = (u, u + difference, angle, kv, cs, q0, phase, b, 0.9, pixel_size, box)
    image = ctf.ctf_image(ctf.coefficients(*parameters), box)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0], reference_ctf(*parameters), atol=2e-3)


def test_underfocus_is_positive_at_low_resolution_and_the_origin_is_the_amplitude_contrast():
    image = ctf.ctf_image(ctf.coefficients(15000, 15000, 0, 300, 2.7, 0.1, 0, 0, 1, 1.5, 64), 64)[0]
    assert image[0, 0] == pytest.approx(0.1, abs=1e-6)
    assert np.all(image[rfft_shells(64, 2) <= 2] > 0)


def test_the_astigmatism_axis_points_along_defocus_u():
    # along y (90 degrees) the defocus is U, the larger one: the first zero comes at a lower frequency
    image = ctf.ctf_image(ctf.coefficients(20000, 10000, 90, 300, 2.7, 0.1, 0, 0, 1, 2, 128), 128)[0]
    first_zero_x, first_zero_y = np.argmax(image[0] < 0), np.argmax(image[:64, 0] < 0)
    assert first_zero_y < first_zero_x


def test_parameters_broadcast_and_a_table_is_refused():
    coefs = ctf.coefficients([1e4, 2e4], [1e4, 2e4], 0, 300, 2.7, [0.1, 0.07], 0, 0, 1, 1.0, 64)
    assert coefs.shape == (2, 9)
    with pytest.raises(ValueError, match="expected"):
        ctf.coefficients(np.ones((2, 2)), 1e4, 0, 300, 2.7, 0.1, 0, 0, 1, 1.0, 64)
