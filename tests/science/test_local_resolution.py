"""Local resolution against brute force, against regions of known resolution, and against noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.errors import InputError
from spa.fourier import forward, low_pass
from spa.fsc import fsc, phase_randomise, resolution_shell
from spa.kernels.backend import to_host
from spa.local_resolution import (
    Sampling,
    corrected_curves,
    filter_gains,
    interpolated,
    local_filter,
    local_shells,
    on_grid,
    resolution_map,
    sampling,
    window_curves,
)
from tests.half_maps import Volume, blurred, planted_resolution, radius, region_maps

RANDOMISE_FROM = 6


def curves_of(half1: Volume, half2: Volume, where: Sampling) -> NDArray[np.float64]:
    """Corrected curves of all windows, phases randomised from shell 6 of the box."""
    rng = np.random.default_rng(0)
    random = [phase_randomise(half, RANDOMISE_FROM, rng) for half in (half1, half2)]
    every = slice(None)
    plain, randomised = window_curves(half1, half2, where, every), window_curves(*random, where, every)
    return corrected_curves(plain, randomised, RANDOMISE_FROM, where)


def noise(box: int, seed: int) -> Volume:
    return np.random.default_rng(seed).normal(size=(box,) * 3).astype(np.float32)


@pytest.mark.parametrize("place", [(4, 4, 4), (4, 3, 6), (1, 4, 4)])
def test_the_curve_of_a_window_is_the_fsc_of_the_maps_times_the_window(place):
    box, common = 40, noise(40, 0)
    half1, half2 = common + noise(40, 1), common + noise(40, 2)
    where = sampling(box, 4, 3, 7)
    size = len(where.window)
    assert size == 20
    (row,) = np.flatnonzero((where.points == place).all(axis=1))
    taper = where.taper[:, None, None] * where.taper[:, None] * where.taper
    assert (where.taper[0], where.taper[20]) == (pytest.approx(0, abs=0.02), 1)
    padded = [np.pad(half * taper, size) for half in (half1, half2)]
    start = where.ticks[list(place)] + size - size // 2
    cut = tuple(slice(s, s + size) for s in start)
    a, b = (np.fft.fftn(half[cut] * where.window) for half in padded)
    k = np.fft.fftfreq(size) * size
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)
    sums = [np.bincount(shell.ravel(), v.ravel()) for v in ((a * b.conj()).real, abs(a) ** 2, abs(b) ** 2)]
    truth = (sums[0] / np.sqrt(sums[1] * sums[2]))[: size // 2 + 1]
    found = window_curves(half1, half2, where, slice(row, row + 1))
    assert found[0] == pytest.approx(truth, abs=1e-5)


def test_every_device_gives_the_same(device):
    made = region_maps(40, 2.0, (0.5, 0.1))
    half1, half2 = made.half1, made.half2
    where = sampling(40, 6, 4, 6)
    curves = window_curves(device(half1), device(half2), where, slice(5, 20))
    assert curves == pytest.approx(window_curves(half1, half2, where, slice(5, 20)), abs=1e-5)
    gains = np.random.default_rng(1).random((len(where), len(where.window) // 2 + 1))
    here, there = np.zeros_like(half1), device(np.zeros_like(half1))
    local_filter(forward(half1, 3), gains, where, 3, here)
    local_filter(forward(device(half1), 3), gains, where, 3, there)
    assert abs(here).max() > 0.01
    assert to_host(there) == pytest.approx(here, abs=1e-5)


def test_noise_has_no_local_resolution():
    where = sampling(96, 12, 8, 16)
    found = local_shells(curves_of(noise(96, 1), noise(96, 2), where), where)
    assert len(found) > 100
    assert (found > 0).mean() < 0.05


def test_the_pooled_correlation_of_noise_has_the_spread_that_is_assumed():
    where = sampling(96, 12, 8, 16)
    curves = window_curves(noise(96, 1), noise(96, 2), where, slice(None))
    count = where.independent()[1:]
    pooled = (count * curves[:, 1:]).sum(axis=1) / np.sqrt(count.sum() / 2)
    assert pooled.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("amplitude", [0.1, 0.4])
def test_a_map_of_one_signal_to_noise_ratio_has_the_resolution_of_the_whole(amplitude):
    made = region_maps(96, 2.0, (amplitude, amplitude))
    where = sampling(96, 8, 8, 12)
    shells = local_shells(curves_of(made.half1, made.half2, where), where) * where.shell_width
    whole = resolution_shell(fsc(made.half1, made.half2))
    assert abs(np.median(shells) - (whole + 0.5)) <= 1  # the curve of the whole ends between two shells
    assert abs(np.median(shells) - 192 / planted_resolution(amplitude)) <= 1
    assert np.percentile(abs(shells - whole), 90) < 4
    # also at the border of the box, where a window that is cut off would hold correlation at all frequencies
    assert abs(shells - whole).max() < 9


def test_regions_have_the_resolution_planted_in_them():
    noise_levels = (0.5, 0.1)
    made = region_maps(96, 2.0, noise_levels)
    where = sampling(96, 8, 6, 12)
    shells = local_shells(curves_of(made.half1, made.half2, where), where) * where.shell_width
    z = where.ticks[where.points[:, 0]] - 48
    planted = [192 / planted_resolution(level) for level in noise_levels]
    assert planted[1] > planted[0] + 10
    for side, shell in zip((z < -16, z > 16), planted, strict=True):
        assert side.sum() > 50
        assert abs(np.median(shells[side]) - shell) <= 1.5
        assert np.percentile(abs(shells[side] - shell), 90) < 5


def test_correlation_that_a_narrow_edge_makes_is_taken_out():
    box = 48
    blob = 40 * blurred(radius(box) < 8, 1.0, 600)
    half1, half2 = (blob + 2 * noise(box, seed) for seed in (1, 2))
    where = sampling(box, 4, 8, 2)
    centre = (abs(where.points - len(where.ticks) // 2) <= 1).all(axis=1)
    masked = window_curves(half1, half2, where, slice(None))[centre]
    corrected = curves_of(half1, half2, where)[centre]
    start = int((RANDOMISE_FROM + 4) / where.shell_width) + 1
    assert masked[:, start : start + 3].mean() > 0.3
    assert abs(corrected[:, start : start + 3].mean()) < 0.1
    assert np.median(local_shells(corrected, where)) <= start
    assert np.median(local_shells(masked, where)) > start + 1


def test_a_shell_below_by_chance_does_not_end_a_curve():
    where = sampling(96, 12, 8, 16)
    curve = np.linspace(1.0, -0.25, len(where.window) // 2 + 1)[None]
    end = 0.857 / 1.25 * (curve.shape[1] - 1)
    assert local_shells(curve, where)[0] == pytest.approx(end, abs=1e-6)
    dipped = curve.copy()
    dipped[0, 2] = 0.1
    assert local_shells(dipped, where)[0] == pytest.approx(end, abs=1e-6)
    assert local_shells(np.ones_like(curve), where)[0] == curve.shape[1] - 1


def test_bands_with_factors_of_one_give_the_map_back():
    box = 48
    where = sampling(box, 6, 4, 8)
    size = len(where.window)
    volume = low_pass(noise(box, 3), 1.0, 2.3)
    total = np.zeros_like(volume)
    gains = np.ones((len(where), size // 2 + 1))
    for shell in range(size // 2 + 1):
        local_filter(forward(volume, 3), gains, where, shell, total)
    assert total == pytest.approx(volume, abs=1e-4)


def test_each_half_of_a_map_is_filtered_at_its_own_resolution():
    box = 64
    where = sampling(box, 4, 4, 8)
    volume = noise(box, 4)
    low = where.points[:, 0] < len(where.ticks) // 2
    shells = np.where(low, 3.0, 8.0)
    gains = filter_gains(np.ones((len(where), len(where.window) // 2 + 1)), shells, 1.0)
    total = np.zeros_like(volume)
    for shell in range(gains.shape[1]):
        local_filter(forward(volume, 3), gains, where, shell, total)
    for side, cut in ((slice(0, 26), 3), (slice(38, 64), 8)):
        planted = low_pass(volume, 1.0, box / ((cut + 0.5) * where.shell_width), 5)
        inner = np.zeros((box,) * 3, dtype=bool)
        inner[side, 12:52, 12:52] = True
        assert np.corrcoef(total[inner], planted[inner])[0, 1] > 0.99
        assert total[inner].std() == pytest.approx(planted[inner].std(), rel=0.1)


def test_filter_factors_are_fsc_weights_that_end_at_the_resolution():
    curves = np.array([[1.0, 0.9, 0.6, 0.2, 0.05], [0.1, 0.4, -0.3, 0.2, 0.3]])
    gains = filter_gains(curves, np.array([3.25, 0.0]), 1.5)
    assert gains[0] == pytest.approx([1, *np.sqrt(2 * curves[0, 1:4] / (1 + curves[0, 1:4])), 0.25 * 0.30861], abs=1e-5)
    assert gains[1] == pytest.approx([1, 1, 0.5, 0, 0])
    assert filter_gains(curves, np.array([3.25, 0.0]), 1.5, weighted=False)[0] == pytest.approx([1, 1, 1, 1, 0.25])


def test_the_grid_is_interpolated_linearly_and_filled_with_the_nearest():
    where = sampling(40, 5, 4, 6)
    values = where.points @ np.array([1.0, 10.0, 100.0])
    grid = on_grid(values, where)
    assert grid[tuple(where.points.T)] == pytest.approx(values)
    assert np.isin(grid, values.astype(np.float32)).all()
    dense = interpolated(grid, where)
    assert dense.dtype == np.float32
    assert dense[np.ix_(where.ticks, where.ticks, where.ticks)] == pytest.approx(grid, abs=1e-3)
    middle = where.ticks[3] + 1
    assert dense[middle, middle, middle] == pytest.approx(3.2 * 111, abs=1e-3)
    assert dense.max() == pytest.approx(grid.max(), rel=1e-6)


def test_between_a_resolution_and_none_there_is_no_third():
    where = sampling(40, 6, 4, 6)
    column = where.points[:, 2] - len(where.ticks) // 2
    shells = np.where(column < 0, 0.0, np.where(column == 0, 4.0, 6.0))
    found = resolution_map(shells, where, 1.5)[20, 20]
    assert set(found[:17]) == {1.5}
    assert found[17:21] == pytest.approx(4 * where.shell_width)
    assert found[23] == pytest.approx(5 * where.shell_width)
    assert found[26:] == pytest.approx(6 * where.shell_width)


def test_points_are_evenly_spaced_and_inside_the_sphere():
    where = sampling(64, 7.4, 5, 6)
    assert set(np.diff(where.ticks)) == {7}
    assert 32 in where.ticks
    distance = np.sqrt(((where.ticks[where.points] - 32) ** 2).sum(axis=1))
    assert distance.max() < 27
    assert distance.max() > 20
    assert where.window[12, 12, 12] == 1
    assert where.window[0].max() < 0.01


def test_memory_of_a_batch_does_not_grow_with_the_window():
    for window in (4, 16, 60):
        where = sampling(256, 64, window, window)
        assert where.batch == 1 or where.batch * where.window.size < 3e6


def test_a_window_wider_than_the_box_is_refused():
    with pytest.raises(InputError, match="42 voxels across, the box 40"):
        sampling(40, 10, 10, 11)
