"""Weights of an alignment against the spectra and amplitudes that made the frames, and windows against their sum."""

from __future__ import annotations

import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.motion_fourier import rings
from spa.motion_steps import newton_steps, slopes
from spa.motion_weights import Filter, bfactor_filter, faded, ring_sums, signal_filter
from spa.motion_windows import windows
from tests.devices import device_named

SHAPE, N_FRAMES = (160, 160), 20


@pytest.fixture(params=["cpu", "emulated", "gpu"])
def put(request):
    with device_named(request.param) as place:
        yield place


def true_amplitudes() -> np.ndarray:
    """What damage leaves: faster at high frequencies, to 5 % at Nyquist."""
    n_rings = int(rings(SHAPE).max()) + 1
    return np.exp(-3 * (np.arange(N_FRAMES) / (N_FRAMES - 1))[:, None] * (np.arange(n_rings) / 80) ** 1.2)


def true_signal() -> np.ndarray:
    """Signal over noise of the first frame by ring."""
    return 0.3 * np.exp(-np.arange(int(rings(SHAPE).max()) + 1) / 40)


def made_frames(seed: int, lost: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (N_FRAMES, SHAPE[0], SHAPE[1] // 2 + 1)
    noise = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    specimen = (rng.standard_normal(shape[1:]) + 1j * rng.standard_normal(shape[1:])) / np.sqrt(2)
    amplitudes = true_amplitudes() * np.sqrt(true_signal())
    if lost is not None:
        amplitudes[lost] = 0
    return (noise + amplitudes[:, rings(SHAPE)] * specimen).astype(np.complex64)


def estimated(frames: np.ndarray, turns: int = 3) -> Filter:
    products = bfactor_filter(N_FRAMES, SHAPE, SHAPE, 4.0)
    for _ in range(turns):
        products = signal_filter(ring_sums(frames, SHAPE, products.amplitudes), products, SHAPE)
    return products


@pytest.mark.parametrize("lost", [None, 8])
def test_amplitudes_are_those_that_damage_left(put, lost):
    found = estimated(put(made_frames(1, lost))).amplitudes
    for ring in (10, 30, 50, 70):
        np.testing.assert_allclose(found[:, ring], true_amplitudes()[:, ring], atol=0.15)


def test_weights_are_those_of_the_signal_and_noise_that_made_the_frames():
    products, signal = estimated(made_frames(2)), true_signal()
    expected = signal / (1 + signal * (true_amplitudes() ** 2).sum(axis=0))
    found = np.array([products.weight[rings(SHAPE) == ring].max() for ring in range(5, 65)])
    in_tens = [values.reshape(6, 10).mean(axis=1) for values in (found, expected[5:65])]
    np.testing.assert_allclose(in_tens[0] / in_tens[0].mean(), in_tens[1] / in_tens[1].mean(), rtol=0.25)
    assert (products.weight[0] == 0).all()
    assert products.weight.max() <= 1


def test_weights_from_the_frames_lower_the_noise_of_the_steps_and_say_what_is_left():
    steps: dict[str, list[np.ndarray]] = {"flat": [], "signal": []}
    predicted = []
    for seed in range(6):
        frames = made_frames(seed)
        for name, products in (
            ("flat", bfactor_filter(N_FRAMES, SHAPE, SHAPE, 1e-6)),
            ("signal", estimated(frames)),
        ):
            found = slopes(faded(frames.copy(), SHAPE, products.amplitudes), products.weight, SHAPE)
            step, errors = newton_steps(*found, products.information)
            steps[name].append(step)
        predicted.append(errors)
    spread = {name: np.sqrt(np.mean(np.square(values), axis=(0, 2))) for name, values in steps.items()}
    early = slice(0, 6)
    assert spread["signal"][early].mean() < 0.7 * spread["flat"][early].mean()
    expected = np.mean(predicted, axis=(0, 2))
    for part in (slice(0, 7), slice(7, 14), slice(14, 20)):
        assert 0.75 < spread["signal"][part].mean() / expected[part].mean() < 1.33
    assert expected[-1] > 2 * expected[0]


def test_noise_alone_gives_finite_weights():
    rng = np.random.default_rng(3)
    frames = (rng.standard_normal((4, 32, 17)) + 1j * rng.standard_normal((4, 32, 17))).astype(np.complex64)
    for frames_here in (frames, np.zeros_like(frames)):
        products = bfactor_filter(4, (32, 32), (32, 32), 4.0)
        products = signal_filter(ring_sums(frames_here, (32, 32), products.amplitudes), products, (32, 32))
        for values in (products.weight, products.amplitudes, products.information):
            assert np.isfinite(values).all()


@pytest.mark.parametrize(("shape", "n_patches"), [((200, 200), (5, 5)), ((374, 252), (7, 4)), ((131, 90), (3, 3))])
def test_squared_windows_add_up_to_one_inside_the_frame(shape, n_patches):
    total = np.zeros(shape)
    cut = windows(shape, n_patches)
    assert len(cut) == n_patches[0] * n_patches[1]
    for window in cut:
        assert window.shape == cut[0].shape
        assert window.shape[0] % 2 == window.shape[1] % 2 == 0
        total[window.rows, window.columns] += np.outer(window.down, window.across) ** 2
    edge = [int(0.15 * n / m) + 2 for n, m in zip(shape, n_patches[::-1], strict=True)]
    inner = total[edge[0] : -edge[0], edge[1] : -edge[1]]
    np.testing.assert_allclose(inner, 1, atol=0.02)
    assert total.max() < 1.02
    x = np.array([window.centre[0] for window in cut]).reshape(n_patches[::-1])
    assert (np.diff(x, axis=1) > 0).all()
    np.testing.assert_allclose(x[0] + x[0, ::-1], shape[1] - 1, atol=1e-3)


def test_a_patch_is_what_lies_in_its_window(put):
    rng = np.random.default_rng(4)
    images = rng.standard_normal((3, 60, 80)).astype(np.float32)
    window = windows((60, 80), (4, 3))[6]
    found = to_host(window.transforms(put(images)))
    patch = images[:, window.rows, window.columns]
    patch = (patch - patch.mean(axis=(1, 2), keepdims=True)) * np.outer(window.down, window.across)
    expected = np.fft.rfft2(patch)
    # whitening divides by real numbers
    np.testing.assert_allclose(np.angle(found * expected.conj())[np.abs(expected) > 1], 0, atol=1e-3)
    assert np.mean(np.abs(found) ** 2) == pytest.approx(1, abs=0.01)
