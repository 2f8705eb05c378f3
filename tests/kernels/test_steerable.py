"""Shifted rows, listed scores and running lists of the best, against float64 written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from spa.kernels.backend import to_host
from spa.kernels.steerable import grouped_products, shifted_rows, steered_scores
from spa.kernels.survivors import Survivors, keep_best, new_survivors
from tests.kernels import truth

BOX, KMAX = 16, 7


def test_shifted_rows(device):
    rng = np.random.default_rng(0)
    kx, ky = truth.half_plane(KMAX)
    images = truth.complex_normal(rng, (3, 2, kx.size))
    shifts = rng.uniform(-6, 6, (5, 2)).astype(np.float32)
    row_image, row_shift = (np.array(a, np.int32) for a in ([2, 0, 0, 1, 2, 2, 0], [4, 0, 3, 3, 1, 0, 0]))
    arrays = images, kx, ky, shifts, row_image, row_shift
    got = to_host(shifted_rows(*map(device, arrays), BOX))
    upper, lower = (
        images[row_image, i].astype(np.complex128) * truth.phases(kx, sign * ky, shifts, BOX)[row_shift]
        for i, sign in enumerate((1, -1))
    )
    want = (upper + lower).real, (upper - lower).real, (upper - lower).imag, (upper + lower).imag
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_no_shifted_rows(device):
    kx, ky = truth.half_plane(2)
    none = np.zeros(0, np.int32)
    arrays = np.ones((1, 2, kx.size), np.complex64), kx, ky, np.zeros((1, 2), np.float32), none, none
    assert shifted_rows(*map(device, arrays), BOX).shape == (4, 0, kx.size)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("images", lambda a: a.real.copy(), TypeError),
        ("images", lambda a: a[:, 0].copy(), ValueError),
        ("kx", lambda a: a[:-1].copy(), ValueError),
        ("ky", lambda a: a.astype(np.float64), TypeError),
        ("shifts", lambda a: a.reshape(-1), ValueError),
        ("row_image", lambda a: a.astype(np.int64), TypeError),
        ("row_shift", lambda a: a[:-1].copy(), ValueError),
    ],
)
def test_shifted_rows_refuses_wrong_arguments(device, name, change, error):
    kx, ky = truth.half_plane(2)
    arguments = {
        "images": np.ones((2, 2, kx.size), np.complex64),
        "kx": kx,
        "ky": ky,
        "shifts": np.zeros((3, 2), np.float32),
        "row_image": np.zeros(4, np.int32),
        "row_shift": np.zeros(4, np.int32),
    }
    placed = {n: device(a) for n, a in arguments.items()}
    placed[name] = change(placed[name])
    with pytest.raises(error, match=name):
        shifted_rows(**placed, box_size=BOX)


def test_grouped_products(device):
    rng = np.random.default_rng(0)
    rows, matrix = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 9), (9, 4)))
    ends, out = np.array([2, 2, 7, 9]), np.full((4, 5, 4), -1, np.float32)
    got = device(out)
    grouped_products(device(rows), ends, device(matrix), got)
    want = out.astype(np.float64)
    for j, (first, last) in enumerate(((0, 2), (2, 2), (2, 7), (7, 9))):
        if last > first:
            want[j] = rows[:, first:last].astype(np.float64) @ matrix[first:last]
    np.testing.assert_allclose(to_host(got), want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("rows", lambda a: a.astype(np.float64), TypeError),
        ("matrix", lambda a: a[:-1].copy(), ValueError),
        ("out", lambda a: a[:-1].copy(), ValueError),
        ("ends", lambda a: a - 1, ValueError),
    ],
)
def test_grouped_products_refuse_wrong_arguments(name, change, error):
    shapes = {"rows": (5, 9), "matrix": (9, 4), "out": (2, 5, 4)}
    arguments = {n: np.zeros(shape, np.float32) for n, shape in shapes.items()} | {"ends": np.array([4, 9])}
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=name):
        grouped_products(**arguments)


class Listed:
    """Random coefficients and a ragged list of candidates, as `steered_scores` takes them."""

    def __init__(self, even: int, odd: int, counts: tuple[int, ...], n_rings: int = 9) -> None:
        rng = np.random.default_rng(1)
        n_places, n_directions, n_psi, n_shifts, norm_orders = 6, 12, 5, 7, (0, 2, 4)
        # an image without groups; directions that come back after others, and that are the same modulo 4
        directions = np.resize([3, 7, 3, 11, 3, 0, 4, 8, 0, 2], len(counts))
        self.image_offsets = np.array([0, len(counts) // 2, len(counts) // 2, len(counts)])
        self.even, self.odd = np.sort(rng.integers(0, 9, even) * 2), np.sort(rng.integers(0, 9, odd) * 2 + 1)
        self.orders, self.n_even = np.concatenate([self.even, self.odd]), even
        self.angles = np.array([0.0, 0.3, 1.7, 3.0, 5.5])
        turns = self.angles[:, None] * self.orders
        self.cosine, self.sine = np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)
        self.norm_orders, angle = norm_orders, self.angles[:, None] * np.array(norm_orders)
        self.norm_turns = np.concatenate([np.cos(angle), -np.sin(angle)], 1).astype(np.float32)
        # the last order on fewer rings
        self.norm_starts = np.cumsum([0, n_rings, n_rings, (n_rings + 1) // 2]).astype(np.int32)
        self.rows = rng.standard_normal((11, 2 * (even + odd))).astype(np.float32)
        self.row_of = rng.integers(0, 11, (3, n_shifts)).astype(np.int32)
        n_moments = 2 * int(self.norm_starts[-1])
        self.norm_rows = rng.standard_normal((3, n_moments)).astype(np.float32)
        self.coefficients = rng.standard_normal((n_places, 2 * (even + odd))).astype(np.float32)
        self.moments = rng.standard_normal((n_places, n_moments)).astype(np.float32)
        self.place = rng.integers(0, n_places, n_directions).astype(np.int32)
        self.place[[3, 7, 11, 0, 4, 8]] = rng.permutation(n_places)
        self.orientation = directions * n_psi + rng.integers(0, n_psi, len(counts))
        self.group_offsets = np.concatenate([[0], np.cumsum(counts)])
        self.candidate_shift = rng.integers(0, n_shifts, self.group_offsets[-1]).astype(np.int32)
        asked = np.zeros((3, n_shifts), bool)
        asked[np.repeat([0, 1, 2], np.diff(self.group_offsets[self.image_offsets])), self.candidate_shift] = True
        self.row_of[~asked] = -1

    def arguments(self, device):
        names = (
            *("rows", "row_of", "norm_rows", "coefficients", "moments", "place", "cosine", "sine", "norm_turns"),
            *("norm_starts", "n_even", "image_offsets", "orientation", "group_offsets", "candidate_shift"),
        )
        values = {name: getattr(self, name) for name in names}
        return {name: value if name == "n_even" else device(value) for name, value in values.items()}

    def complex_of(self, row: np.ndarray) -> np.ndarray:
        """The functions' complex coefficients of a row [Re even | Im even | Re odd | Im odd]."""
        parts = np.split(row.astype(np.float64), np.cumsum([self.n_even, self.n_even, len(self.odd)]))
        return np.concatenate([parts[0] + 1j * parts[1], parts[2] + 1j * parts[3]])

    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        cross, norm = np.zeros(len(self.candidate_shift)), np.zeros(len(self.orientation))
        for group, orientation in enumerate(self.orientation):
            image = np.searchsorted(self.image_offsets, group, side="right") - 1
            direction, psi = divmod(orientation, len(self.angles))
            turned = self.complex_of(self.coefficients[self.place[direction]])
            turned = turned * np.exp(1j * self.orders * self.angles[psi])
            for c in range(self.group_offsets[group], self.group_offsets[group + 1]):
                row = self.complex_of(self.rows[self.row_of[image, self.candidate_shift[c]]])
                cross[c] = np.sum(turned * row.conj()).real
            power, weights = (
                np.split(a.astype(np.float64), 2) for a in (self.moments[self.place[direction]], self.norm_rows[image])
            )
            products = (power[0] + 1j * power[1]) * (weights[0] + 1j * weights[1])
            for order, first, last in zip(self.norm_orders, self.norm_starts, self.norm_starts[1:], strict=False):
                norm[group] += (products[first:last].sum() * np.exp(1j * order * self.angles[psi])).real
        return cross, norm


RAGGED = (1, 0, 17, 4, 8, 5, 9, 2, 16, 3, 0, 13)


@pytest.mark.parametrize(("even", "odd", "n_rings"), [(13, 10, 9), (1, 1, 1), (2, 31, 90), (70, 75, 120)])
def test_listed_scores(device, even, odd, n_rings):
    problem = Listed(even, odd, RAGGED, n_rings)
    cross, norm = map(to_host, steered_scores(**problem.arguments(device)))
    want_cross, want_norm = problem.truth()
    np.testing.assert_allclose(cross, want_cross, atol=3e-5)
    np.testing.assert_allclose(norm, want_norm, atol=5e-5)


@pytest.mark.parametrize(("even", "odd"), [(1100, 1101), (2049, 2100)])
def test_a_basis_larger_than_shared_memory(device, even, odd):
    problem = Listed(even, odd, (35, 3, 0, 33))
    cross, norm = map(to_host, steered_scores(**problem.arguments(device)))
    want_cross, want_norm = problem.truth()
    np.testing.assert_allclose(cross, want_cross, atol=1e-3)
    np.testing.assert_allclose(norm, want_norm, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("rows", lambda a: a[:, :-2].copy(), ValueError),
        ("row_of", lambda a: a.astype(np.int64), TypeError),
        ("norm_rows", lambda a: a[:, :-1].copy(), ValueError),
        ("norm_starts", lambda a: a[:-1].copy(), ValueError),
        ("coefficients", lambda a: a[:, ::2], ValueError),
        ("moments", lambda a: a.astype(np.float64), TypeError),
        ("place", lambda a: a.astype(np.int64), TypeError),
        ("cosine", lambda a: a.astype(np.float64), TypeError),
        ("sine", lambda a: a[:-1].copy(), ValueError),
        ("norm_turns", lambda a: a[:-1].copy(), ValueError),
        ("moments", lambda a: a, ValueError),
        ("image_offsets", lambda a: a.astype(np.int32), TypeError),
        ("orientation", lambda a: a.astype(np.int32), TypeError),
        ("group_offsets", lambda a: a[:-1].copy(), ValueError),
        ("candidate_shift", lambda a: a.reshape(1, -1), ValueError),
    ],
)
def test_listed_scores_refuse_wrong_arguments(device, name, change, error):
    problem = Listed(3, 4, RAGGED)
    arguments = problem.arguments(device)
    arguments[name] = change(arguments[name])
    if (name, error) == ("moments", ValueError):
        arguments["norm_rows"], arguments["moments"] = (
            device(a[:, :-1].copy()) for a in (problem.norm_rows, problem.moments)
        )
    with pytest.raises(error, match=name):
        steered_scores(**arguments)


class Tiles:
    """Random spectra over the in-plane angle of several tiles of directions, and all scores by the definition."""

    def __init__(self, n_psi: int, fit_scale: bool, tiles: tuple[int, ...] = (9, 9, 4), seed: int = 0) -> None:
        rng = np.random.default_rng([n_psi, seed])
        self.n_psi, self.fit_scale, self.tiles = n_psi, fit_scale, tiles
        self.n_images, self.n_shifts, n, n_q = 3, 5, sum(tiles), n_psi // 2 + 1
        shape = n_q, self.n_images * self.n_shifts, n
        self.real, self.imag = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        # the first image likes the last directions: every tile brings some of its best
        self.real[0, : self.n_shifts] += np.linspace(0, 4, n, dtype=np.float32)
        self.norm = rng.uniform(0.5, 4, (self.n_images, n_psi // 2, n)).astype(np.float32)
        self.prior = rng.uniform(-2, 0, (self.n_images, self.n_shifts)).astype(np.float32)
        self.direction_prior = rng.uniform(-2, 0, n).astype(np.float32)
        self.direction_prior[2] = -np.inf

    def scores(self) -> np.ndarray:
        """float64 (n_images, direction, psi, shift), flattened by code."""
        n_q = self.n_psi // 2 + 1
        q = np.r_[0:n_q:2, 1:n_q:2]
        angle = 2 * np.pi / self.n_psi * np.outer(np.arange(self.n_psi), q)
        parts = self.real.astype(np.float64), self.imag.astype(np.float64)
        cross = np.einsum("sq,qrd->rds", np.cos(angle), parts[0]) - np.einsum("sq,qrd->rds", np.sin(angle), parts[1])
        cross = cross.reshape(self.n_images, self.n_shifts, -1, self.n_psi).transpose(0, 2, 3, 1)
        norm = np.concatenate([self.norm, self.norm], 1).astype(np.float64).transpose(0, 2, 1)[..., None]
        value = np.maximum(cross, 0) ** 2 / (4 * norm) if self.fit_scale else cross - norm
        value = value + self.prior[:, None, None] + self.direction_prior[:, None, None]
        return value.reshape(self.n_images, -1)

    def survivors(self, device, cap: int) -> Survivors:
        return new_survivors(self.n_images, cap, max(self.tiles) * self.n_psi * self.n_shifts, device(self.prior))

    def run(self, device, cap: int, survivors: Survivors | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Values and codes of each image after all tiles."""
        survivors = survivors or self.survivors(device, cap)
        first = 0
        for n in self.tiles:
            part = slice(first, first + n)
            spectra = (device(np.ascontiguousarray(a[..., part])) for a in (self.real, self.imag, self.norm))
            priors = device(self.prior), device(self.direction_prior[part].copy())
            keep_best(survivors, *spectra, *priors, first, self.n_psi, self.fit_scale, cap)
            first += n
        counts = to_host(survivors.counts)
        return tuple(
            [a[:n] for a, n in zip(to_host(b), counts, strict=True)] for b in (survivors.values, survivors.codes)
        )


def check_kept(values: list[np.ndarray], codes: list[np.ndarray], want: np.ndarray, cap: int) -> None:
    """Each candidate once, with its value, and the best `cap` among them."""
    for value, code, all_scores in zip(values, codes, want, strict=True):
        possible = int(np.isfinite(all_scores).sum())
        assert len(np.unique(code)) == len(code)
        np.testing.assert_allclose(value, all_scores[code], atol=2e-5, rtol=2e-6)
        assert min(cap, possible) <= len(code) <= possible
        best = np.sort(all_scores)[::-1][: min(cap, possible)]
        kept = np.sort(all_scores[code])[::-1][: len(best)]
        np.testing.assert_allclose(kept, best, atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("fit_scale", [False, True])
@pytest.mark.parametrize("n_psi", [2, 6, 10, 12, 24, 48, 96])
def test_the_best_of_several_tiles(device, n_psi, fit_scale):
    problem = Tiles(n_psi, fit_scale)
    check_kept(*problem.run(device, 37), problem.scores(), 37)


@pytest.mark.parametrize("cap", [1, 4, 200, 45 * 12, 45 * 12 + 1, 100_000])
def test_caps_around_the_number_of_candidates(device, cap):
    problem = Tiles(12, False)
    check_kept(*problem.run(device, cap), problem.scores(), cap)


def test_a_tile_of_many_blocks_and_a_cap_that_the_lists_reach_often(device):
    problem = Tiles(6, False, tiles=(130, 131, 70))
    survivors = problem.survivors(device, 50)
    if device is np.asarray:
        survivors = Survivors(survivors.values[:, :70].copy(), survivors.codes[:, :70].copy(), *_rest(survivors))
    check_kept(*problem.run(device, 50, survivors), problem.scores(), 50)


def _rest(survivors: Survivors) -> tuple:
    return survivors.counts, survivors.floor


@pytest.mark.parametrize("fit_scale", [False, True])
def test_equal_scores(device, fit_scale):
    problem = Tiles(12, fit_scale, tiles=(90, 90, 20))
    for part in (problem.real, problem.imag, problem.prior, problem.direction_prior):
        part[...] = 0
    problem.norm[...] = 1
    survivors = problem.survivors(device, 40)
    values, codes = problem.run(device, 40, survivors)
    for value, code in zip(values, codes, strict=True):
        assert 40 <= len(code) <= survivors.values.shape[1]
        assert len(np.unique(code)) == len(code)
        assert code.min() >= 0
        assert code.max() < 200 * 12 * problem.n_shifts
        assert (value == (0 if fit_scale else -1)).all()
    if survivors.values.shape[1] < 90 * 12 * problem.n_shifts or device is not np.asarray:
        assert {len(code) for code in codes} == {40}


def test_ties_at_the_end_leave_none_that_is_better_out(device):
    problem = Tiles(12, True, tiles=(40, 40))
    problem.prior[...] = problem.direction_prior[...] = 0
    problem.real[...] = np.sign(problem.real) * (np.abs(problem.real) > 1.9)
    problem.imag[...] = 0
    want = problem.scores()
    cap = int((want > 0).sum(1).min()) + 5
    check_kept(*problem.run(device, cap), want, cap)


def test_what_is_impossible_is_not_kept(device):
    problem = Tiles(12, False)
    problem.prior[1] = -np.inf
    values, _ = problem.run(device, 30)
    assert [len(v) > 0 for v in values] == [True, False, True]


def test_lists_of_some_images_fill_in_place(device):
    """A part of the lists shares their memory."""
    problem = Tiles(12, False)
    survivors = problem.survivors(device, 20)
    part = survivors.part(1, 2)
    inner = dataclasses.replace(part)
    rows = slice(problem.n_shifts, 2 * problem.n_shifts)
    whole = problem.scores()
    problem.real, problem.imag = (np.ascontiguousarray(a[:, rows]) for a in (problem.real, problem.imag))
    problem.norm, problem.prior, problem.n_images = problem.norm[1:2], problem.prior[1:2], 1
    check_kept(*problem.run(device, 20, inner), whole[1:2], 20)
    assert (to_host(survivors.counts) > 0).tolist() == [False, True, False]
    n = int(to_host(survivors.counts)[1])
    codes = to_host(survivors.codes)[1, :n]
    np.testing.assert_allclose(to_host(survivors.values)[1, :n], whole[1, codes], atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("real", lambda a: a.astype(np.float64), TypeError),
        ("imag", lambda a: a[:-1].copy(), ValueError),
        ("norm", lambda a: a[:, :-1].copy(), ValueError),
        ("prior", lambda a: a.astype(np.float64), TypeError),
        ("direction_prior", lambda a: a.astype(np.float64), TypeError),
        ("n_psi", lambda _: 7, ValueError),
        ("cap", lambda _: 0, ValueError),
        ("cap", lambda _: 10**7, ValueError),
        ("first", lambda _: 2**30, ValueError),
        ("values", lambda a: a[:, ::2], ValueError),
        ("codes", lambda a: a.astype(np.int64), TypeError),
        ("counts", lambda a: a[:-1].copy(), ValueError),
        ("floor", lambda a: a.astype(np.float64), TypeError),
    ],
)
def test_wrong_arguments_are_refused(device, name, change, error):
    problem = Tiles(12, False, tiles=(9,))
    survivors = problem.survivors(device, 4)
    arguments = {n: device(getattr(problem, n)) for n in ("real", "imag", "norm", "prior", "direction_prior")}
    arguments |= {"first": 0, "n_psi": 12, "fit_scale": False, "cap": 4}
    if name in arguments:
        arguments[name] = change(arguments[name])
    else:
        survivors = dataclasses.replace(survivors, **{name: change(getattr(survivors, name))})
    with pytest.raises(error, match="values" if (name, arguments["cap"]) == ("cap", 10**7) else name):
        keep_best(survivors, **arguments)
