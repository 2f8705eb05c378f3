"""Phases against Zernike polynomials by another road and the beam-tilt formula; columns read, or refused by place."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import eval_jacobi

from spa import ctf
from spa.aberrations import (
    Aberrations,
    PixelAberrations,
    magnification_classes,
    read_aberrations,
    with_beam_tilt,
    zernike_sum,
)
from spa.errors import InputError
from spa.grids import half_plane
from spa.io.star import Block
from spa.kernels.backend import to_host
from spa.kernels.ctf import evaluate_ctf

BOX, PIXEL_SIZE = 48, 1.3
PIXELS = half_plane(BOX, BOX // 2 - 1)
KX, KY = PIXELS.kx.astype(np.float32), PIXELS.ky.astype(np.float32)
MATRIX = (1.04, 0.02, -0.03, 0.97)
ODD_ORDERS = [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3), (5, -5), (5, -3), (5, -1), (5, 1), (5, 3), (5, 5)]
EVEN_ORDERS = [(0, 0), (2, -2), (2, 0), (2, 2), (4, -4), (4, -2), (4, 0), (4, 2), (4, 4)]


def polar(coefficients, orders, x, y):
    """Sum of Zernike polynomials in polar form, their radial part as a Jacobi polynomial."""
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    total = np.zeros_like(r)
    for c, (n, m) in zip(coefficients, orders, strict=False):
        j = (n - abs(m)) // 2
        radial = (-1) ** j * r ** abs(m) * eval_jacobi(j, abs(m), 0, 1 - 2 * r**2)
        total += c * radial * (np.cos(m * angle) if m >= 0 else np.sin(-m * angle))
    return total


def magnified(matrix):
    """Frequencies of the pixels in 1/Å, float64, seen through a magnification matrix."""
    x, y = np.array(matrix).reshape(2, 2) @ np.stack([KX, KY]).astype(np.float64)
    return x / (BOX * PIXEL_SIZE), y / (BOX * PIXEL_SIZE)


def random_coefficients(n, seed):
    return tuple((np.random.default_rng(seed).normal(size=n) * 5).tolist())


@pytest.mark.parametrize(("orders", "first"), [(ODD_ORDERS, 1), (EVEN_ORDERS, 0)])
def test_polynomials_in_their_order(orders, first):
    x, y = np.random.default_rng(3).uniform(-1, 1, (2, 50))
    for i in range(len(orders)):
        unit = np.eye(len(orders))[i]
        np.testing.assert_allclose(zernike_sum(unit, first, x, y), polar(unit, orders, x, y), atol=1e-12)
    mixed = np.random.default_rng(4).normal(size=len(orders))
    np.testing.assert_allclose(zernike_sum(mixed, first, x, y), polar(mixed, orders, x, y), atol=1e-11)


def test_a_beam_tilt_is_coma_and_adds_to_given_coefficients():
    x, y = np.random.default_rng(5).uniform(-0.4, 0.4, (2, 50))
    lam, given = 0.0197, (1.0, 2.0, 3.0)
    want = -2 * np.pi * 2.7e7 * lam**2 * (x**2 + y**2) * (1.5e-3 * x - 0.7e-3 * y)
    found = zernike_sum(with_beam_tilt(given, 1.5, -0.7, 2.7, lam), 1, x, y)
    np.testing.assert_allclose(found, want + polar(given, ODD_ORDERS, x, y), atol=1e-9)


def groups():
    """An ideal group, one with everything, one that shares its phases, one that shares its magnification."""
    odd, even = random_coefficients(6, 1), random_coefficients(9, 2)
    return [Aberrations(), Aberrations(odd, even, MATRIX), Aberrations(odd, even, MATRIX), Aberrations((), (), MATRIX)]


def test_phases_lie_at_the_magnified_frequencies(device):
    table = PixelAberrations(groups(), device(KX), device(KY), BOX * PIXEL_SIZE)
    optics = np.array([1, 0, 3, 2, 1])
    errors = to_host(table.phase_errors(optics))
    assert errors.dtype == np.complex64
    want = np.exp(1j * polar(groups()[1].odd, ODD_ORDERS, *magnified(MATRIX)))
    for place, group in enumerate(optics):
        np.testing.assert_allclose(errors[place], want if group in (1, 2) else np.ones(len(KX)), atol=2e-6)
    assert table.magnification.tolist() == [0, 1, 1, 1]
    x, y = (to_host(a) / (BOX * PIXEL_SIZE) for a in table.slices[1])
    np.testing.assert_allclose([x, y], magnified(MATRIX), atol=1e-7)


def test_the_even_phase_is_taken_off_chi(device):
    table = PixelAberrations(groups(), device(KX), device(KY), BOX * PIXEL_SIZE)
    optics = np.array([1, 0, 2])
    u, v, angle = np.array([9000.0, 12000.0, 15000.0]), np.array([9500.0, 11000.0, 15500.0]), 25.0
    coefficients = ctf.coefficients(u, v, angle, 300, 2.7, 0.1, 10, 20, 0.9, PIXEL_SIZE, BOX)
    lam = ctf.wavelength(300)
    for i, group in enumerate(optics):
        positions = table.slices[int(table.magnification[group])]
        one = device(coefficients[i : i + 1])
        found = to_host(evaluate_ctf(one, *positions, *table.symmetric(optics[i : i + 1])))[0]
        x, y = magnified(groups()[group].magnification)
        s2 = x**2 + y**2
        defocus = (u[i] + v[i]) / 2 + (u[i] - v[i]) / 2 * np.cos(2 * (np.arctan2(y, x) - np.radians(angle)))
        chi = np.pi * lam * defocus * s2 - np.pi / 2 * 2.7e7 * lam**3 * s2**2 + np.radians(10) + np.arcsin(0.1)
        chi -= polar(groups()[group].even, EVEN_ORDERS, x, y)
        np.testing.assert_allclose(found, 0.9 * np.sin(chi) * np.exp(-20 / 4 * s2), atol=2e-4)


def test_ideal_groups_cost_nothing():
    table = PixelAberrations([Aberrations()] * 3, KX, KY, BOX * PIXEL_SIZE)
    assert table.phase_errors(np.array([0, 2])) is None
    assert table.symmetric(np.array([0, 2])) == (None, None)
    assert len(table.slices) == 1
    assert table.slices[0][0] is KX


def test_phases_of_many_turns_keep_their_precision():
    group = Aberrations(odd=(0.0, 1e5))
    errors = PixelAberrations([group], KX, KY, BOX * PIXEL_SIZE).phase_errors(np.array([0]))
    np.testing.assert_allclose(errors[0], np.exp(1e5j * magnified((1, 0, 0, 1))[0]), atol=2e-6)


def test_magnifications_are_numbered_by_appearance():
    other = Aberrations(magnification=(1.0, 0.01, 0.0, 1.0))
    assert magnification_classes([*groups(), other, Aberrations()]).tolist() == [0, 1, 1, 1, 2, 0]


def optics_block(**columns):
    block = Block.table("optics", {"rlnOpticsGroup": [1, 2], **columns})
    block.path = "p.star"
    return block


def test_columns_are_read():
    block = optics_block(
        rlnBeamTiltX=[0, 0.5],
        rlnOddZernike=["[]", "[1, -2e-1]"],
        rlnEvenZernike=["[0,0]", "[0.25]"],
        rlnMagMat00=[1, 1.01],
        rlnMagMat01=[0, 0.002],
    )
    lam = ctf.wavelength([300, 200])
    first, second = read_aberrations(block, [2.7, 1.4], lam)
    assert first == Aberrations()
    assert second.odd == tuple(with_beam_tilt((1, -0.2), 0.5, 0, 1.4, lam[1]))
    assert second.even == (0.25,)
    assert second.magnification == (1.01, 0.002, 0.0, 1.0)
    assert read_aberrations(optics_block(), 2.7, lam) == [Aberrations()] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rlnOddZernike": ["[0]", "0.1,0.2"]}, "row 2, column rlnOddZernike: expected finite numbers in brackets"),
        ({"rlnEvenZernike": ["[0,x]", "[0]"]}, "row 1, column rlnEvenZernike: expected finite numbers in brackets"),
        ({"rlnEvenZernike": ["[0", "[0]"]}, "row 1, column rlnEvenZernike: .* found '\\[0'"),
        ({"rlnOddZernike": ["[0]", "[nan]"]}, "row 2, column rlnOddZernike: .* found '\\[nan\\]'"),
        ({"rlnOddZernike": ["[0]", "[1,,2]"]}, "row 2, column rlnOddZernike"),
        ({"rlnBeamTiltX": ["0", "tilted"]}, "row 2, column rlnBeamTiltX: expected a finite number"),
        ({"rlnMagMat11": ["1", "inf"]}, "row 2, column rlnMagMat11: expected a finite number"),
        ({"rlnMagMat00": [1, 0]}, "row 2, columns rlnMagMat00 to rlnMagMat11: .* determinant of 0.5 to 2, found .* 0$"),
        ({"rlnMagMat00": [1.5, 1], "rlnMagMat11": [1.5, 1]}, "row 1, columns .* with 2.25"),
        ({"rlnMagMat00": [1, -1]}, "row 2, columns .* with -1"),
    ],
)
def test_wrong_columns_are_named(columns, message):
    with pytest.raises(InputError, match=f"p.star: data_optics, {message}"):
        read_aberrations(optics_block(**columns), 2.7, 0.02)
