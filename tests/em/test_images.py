"""What leaves the Preparer: images as an ideal microscope gives them, at the positions that their pixels sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spa import euler
from spa.aberrations import Aberrations, with_beam_tilt
from spa.ctf import coefficients, wavelength
from spa.em.images import ALL_ORDERS, Preparer, by_magnification, unlike_the_others
from spa.em.state import Batch, Poses
from spa.errors import InputError
from spa.fourier import forward, gather, inverse, phase_factors, reference_transform, scatter
from spa.fsc import fsc
from spa.grids import half_plane, radius_grid
from spa.kernels.backend import to_host
from spa.kernels.slices import extract_slices, insert_slices
from spa.mask import soft_sphere
from spa.reconstruct import new_accumulator, solve
from tests.em import tiny

BOX, PIXEL_SIZE, PADDING, KMAX = 32, 1.6, 2, 15
PIXELS = half_plane(BOX, KMAX)
K = np.stack([PIXELS.kx, PIXELS.ky]).astype(np.float64)
TILT, CS = (4.0, -5.0), 2.7
MATRIX = np.array([[1.07, 0.03], [-0.02, 0.94]])
WAVELENGTH = float(wavelength(300))


def coma(q: np.ndarray) -> np.ndarray:
    """Phase of the beam tilt at frequencies (2, n_pixels) in 1/Å."""
    return -2e4 * np.pi * CS * WAVELENGTH**2 * (q**2).sum(0) * (TILT[0] * q[0] + TILT[1] * q[1])


def spherical(q: np.ndarray) -> np.ndarray:
    """Even phase of the Zernike polynomial (4, 0) with coefficient 40."""
    r2 = (q**2).sum(0)
    return 40 * (6 * r2**2 - 6 * r2 + 1)


TILTED = Aberrations(odd=tuple(with_beam_tilt((), *TILT, CS, WAVELENGTH).tolist()))
SPHERICAL = Aberrations(even=(0.0,) * 6 + (40.0,))
STRETCHED = Aberrations(TILTED.odd, SPHERICAL.even, tuple(MATRIX.ravel().tolist()))
GROUPS = [Aberrations(), TILTED, SPHERICAL, STRETCHED]


class Planted:
    """Images of a map by microscopes of the four groups, built from formulas in float64."""

    def __init__(self, n: int, aberrated: bool = True, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.volume = tiny.blobs(BOX, seed, n=40, width=0.7)
        self.optics = np.arange(n) % 4 if aberrated else np.zeros(n, int)
        self.rotations = np.asarray(euler.random_rotations(n, rng))
        self.origins = rng.normal(size=(n, 2))
        self.defocus = rng.uniform(8000, 16000, n)
        self.coefficients = coefficients(self.defocus, self.defocus, 0, 300, CS, 0.1, 0, 0, 1, PIXEL_SIZE, BOX)
        half = reference_transform(self.volume, 3, KMAX)[None]
        self.spectra = np.zeros((n, len(PIXELS)), complex)
        for i in range(n):
            group = self.optics[i]
            points = MATRIX @ K if group == 3 else K
            q = points / (BOX * PIXEL_SIZE)
            rotation = self.rotations[i : i + 1].astype(np.float32)
            plane = extract_slices(half, np.zeros(1, np.int32), rotation, *points.astype(np.float32), 3)[0]
            r2 = (q**2).sum(0)
            chi = np.pi * WAVELENGTH * self.defocus[i] * r2 - np.pi / 2 * CS * 1e7 * WAVELENGTH**3 * r2**2
            chi += np.arcsin(0.1) - (spherical(q) if group in (2, 3) else 0)
            plane = plane * np.sin(chi) * (np.exp(1j * coma(q)) if group in (1, 3) else 1)
            self.spectra[i] = plane
        moved = self.spectra * phase_factors(-self.origins, *K, BOX)
        self.images = inverse(scatter(moved.astype(np.complex64), PIXELS), BOX).astype(np.float32)

    def batches(self, aberrations: list[Aberrations], mask: np.ndarray | None = None) -> list[Batch]:
        """The images, centred, each batch of one magnification."""
        n = len(self.images)
        prepare = Preparer(BOX, self.coefficients, self.optics, np.zeros(n, int), mask, None, aberrations, PIXEL_SIZE)
        poses = Poses.unknown(n)
        poses.origins = self.origins
        magnification = prepare.aberrations.magnification[self.optics]
        sigma2, scale = np.ones((4, BOX // 2 + 1)), np.ones(1)
        return [
            prepare.batch(self.images[part], part, poses, sigma2, scale, KMAX)
            for part in by_magnification(np.arange(n), magnification)
        ]

    def reconstruction(self, aberrations: list[Aberrations]) -> np.ndarray:
        """The map from prepared images at their true poses."""
        data, weight = new_accumulator(1, BOX, PADDING, KMAX)
        for batch in self.batches(aberrations):
            rotations = self.rotations[batch.indices].astype(np.float32)
            classes = np.zeros(len(batch), np.int32)
            values, weights = batch.spectra * batch.ctf, batch.ctf**2
            positions = batch.slice_x, batch.slice_y
            insert_slices(data, weight, classes, rotations, *positions, values, weights, PADDING)
        return np.asarray(solve(data[0], weight[0], BOX, PADDING, KMAX))


def test_spectra_and_ctf_are_those_of_the_model() -> None:
    planted = Planted(12)
    stretched = {0: K, 1: MATRIX @ K}
    half = reference_transform(planted.volume, 3, KMAX)[None]
    batches = planted.batches(GROUPS)
    assert [b.magnification for b in batches] == [0, 1]
    for batch in batches:
        np.testing.assert_allclose([batch.slice_x, batch.slice_y], stretched[batch.magnification], atol=1e-5)
        np.testing.assert_array_equal([batch.kx, batch.ky], K)
        classes = np.zeros(len(batch), np.int32)
        rotations = planted.rotations[batch.indices].astype(np.float32)
        model = batch.ctf * extract_slices(half, classes, rotations, batch.slice_x, batch.slice_y, 3)
        np.testing.assert_allclose(batch.spectra, model, atol=2e-3 * np.abs(model).max())


def test_a_masked_image_is_that_of_the_ideal_microscope() -> None:
    planted = Planted(8)
    mask = np.asarray(soft_sphere(BOX, 10.0, 4.0, ndim=2))
    planted.images += np.float32(0.3)  # a mean that must survive
    batch = planted.batches(GROUPS, mask)[0]
    undone = np.where((planted.optics == 1)[:, None], np.exp(-1j * coma(K / (BOX * PIXEL_SIZE))), 1) * planted.spectra
    ideal = inverse(scatter(undone.astype(np.complex64), PIXELS), BOX) + 0.3
    want = gather(forward((ideal * mask).astype(np.float32)), PIXELS)[batch.indices]
    np.testing.assert_allclose(batch.scored, want, atol=2e-3 * np.abs(want).max())


def test_without_aberrations_nothing_changes_to_the_bit() -> None:
    planted = Planted(6, aberrated=False)
    mask = np.asarray(soft_sphere(BOX, 10.0, 4.0, ndim=2))
    ideal, plain = planted.batches([Aberrations()] * 2, mask)[0], planted.batches([], mask)[0]
    for name in ("spectra", "scored", "ctf", "inverse_sigma2", "slice_x", "slice_y"):
        np.testing.assert_array_equal(getattr(ideal, name), getattr(plain, name))
    assert plain.slice_x is plain.kx
    assert plain.slice_y is plain.ky


@pytest.fixture(scope="module")
def planted_400() -> Planted:
    return Planted(400)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_a_map_comes_back_only_if_the_aberrations_are_corrected(planted_400: Planted, group: int) -> None:
    inside = radius_grid(BOX, 3) < 13
    some, truth = of_images(planted_400, planted_400.optics == group), planted_400.volume * inside
    corrected, uncorrected = (some.reconstruction(groups) * inside for groups in (GROUPS, [Aberrations()] * 4))
    assert fsc(corrected, truth)[1:14].min() > 0.9
    assert fsc(uncorrected, truth)[8:14].min() < 0.3


def test_microscopes_of_all_kinds_give_one_map(planted_400: Planted) -> None:
    inside = radius_grid(BOX, 3) < 13
    assert fsc(planted_400.reconstruction(GROUPS) * inside, planted_400.volume * inside)[1:14].min() > 0.98


def of_images(planted: Planted, which: np.ndarray) -> Planted:
    """The same for some of the images."""
    some = Planted.__new__(Planted)
    some.volume = planted.volume
    for name in ("optics", "rotations", "origins", "coefficients", "images", "spectra", "defocus"):
        setattr(some, name, getattr(planted, name)[which])
    return some


def test_batches_of_several_magnifications_are_refused() -> None:
    planted = Planted(8)
    prepare = Preparer(BOX, None, planted.optics, np.zeros(8, int), None, None, GROUPS, PIXEL_SIZE)
    with pytest.raises(ValueError, match="images of 2 magnifications"):
        prepare.batch(planted.images, np.arange(8), Poses.unknown(8), np.ones((4, BOX // 2 + 1)), np.ones(1), KMAX)


def test_particles_are_split_by_magnification_in_their_order() -> None:
    magnification = np.array([0, 1, 0, 2, 1, 0])
    indices = np.array([5, 4, 1, 0, 2])
    assert [part.tolist() for part in by_magnification(indices, magnification)] == [[5, 0, 2], [4, 1]]
    (same,) = by_magnification(indices, np.zeros(6, int))
    assert same is indices


def test_preparing_works_on_every_device(device: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted(8)
    want = planted.batches(GROUPS, np.asarray(soft_sphere(BOX, 10.0, 4.0, ndim=2)))
    monkeypatch.setattr("spa.em.images.to_device", lambda array, number: device(array))
    got = planted.batches(GROUPS, np.asarray(soft_sphere(BOX, 10.0, 4.0, ndim=2)))
    for a, b in zip(got, want, strict=True):
        for name in ("spectra", "scored", "ctf", "slice_x"):
            x, y = to_host(getattr(a, name)), getattr(b, name)
            np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())


def test_a_damaged_image_is_named_and_constant_ones_are_refused() -> None:
    power = np.random.default_rng(0).uniform(0.5, 2, 40)
    assert unlike_the_others(power, "p.star") is None
    power[7], power[9] = 1e4, np.nan
    assert "p.star: 1 image has more than 30 times the power" in str(unlike_the_others(power, "p.star"))
    assert "data_particles, row 8" in str(unlike_the_others(power, "p.star"))
    power[10:] = 0
    with pytest.raises(InputError, match="data_particles, row 11: expected an image with contrast"):
        unlike_the_others(power, "p.star")


@pytest.mark.parametrize(("defocus", "difference", "expected"), [(5e3, 0, 6), (5e3, 1e4, 14), (5e4, 0, ALL_ORDERS)])
def test_the_norm_has_the_orders_that_the_ctf_asks_for(defocus: float, difference: float, expected: int) -> None:
    box, kmax = 64, 20
    ctf = coefficients(defocus + difference, defocus, 0.0, 300.0, 2.7, 0.1, 0.0, 0.0, 1.0, 4.0, box)
    prepare = Preparer(box, np.atleast_2d(ctf).astype(np.float32), np.zeros(1, int), np.zeros(1, int), None, None)
    assert prepare.norm_orders(kmax) == expected
