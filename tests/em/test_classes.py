"""Several references, in three dimensions and in two: tables and slices score them alike, classes are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from spa.em import output
from spa.em.class_schedule import FlatSchedule, MapSchedule
from spa.em.classes import centred, random_classes, signal_power, turned
from spa.em.descent import Descent
from spa.em.engine import Engine
from spa.em.expectation import Reference, log_weights, score_slices
from spa.em.folds import make_folds
from spa.em.sampling import Candidates, Level, make_flat_level, make_level
from spa.em.settings import RefinementOptions, Search, SearchOptions
from spa.em.state import Poses, resolved_shells
from spa.fourier import reference_transform
from spa.kernels.backend import to_host
from tests.em import tiny
from tests.em.test_expectation import BOX, KMAX, TURN, log_prior, make_batch, make_step, place

N_CLASSES = 3
EVERYTHING = Search(mass=1 - 1e-12, temperature=1e-6, dense_cap=0, level_cap=0, insertion_mass=1.0, insertion_cap=0)


def volumes() -> list[np.ndarray]:
    return [tiny.blobs(BOX, seed) for seed in range(N_CLASSES)]


def make_references(put: Callable[[Any], Any], maps: list[np.ndarray], padding: int) -> Reference:
    """References of unequal prior probability; with much padding, linear interpolation is nearly exact."""
    transforms = np.stack([reference_transform(v, padding, BOX // 2 - 1) for v in maps])
    prior = np.log(np.arange(1, len(maps) + 1) / 6).astype(np.float32)
    return Reference(put(transforms), padding, put(prior), np.sqrt(3) * BOX / 2)


def every_orientation(step: Any, levels: tuple[Level, ...]) -> Any:
    first = levels[0]
    return replace(step, dense_orientations=np.arange(N_CLASSES * first.n_directions * first.n_psi, dtype=np.int64))


def by_slices(batch: Any, reference: Reference, level: Level, step: Any, n: int) -> np.ndarray:
    """Log weights of everything at a level, (image, orientation, shift), from slices."""
    n_orientations, n_shifts = N_CLASSES * level.n_directions * level.n_psi, level.n_offsets**2
    everything = Candidates(
        np.arange(n + 1) * n_orientations,
        np.tile(np.arange(n_orientations), n),
        np.arange(n * n_orientations + 1) * n_shifts,
        np.tile(np.arange(n_shifts, dtype=np.int32), n * n_orientations),
    )
    terms = score_slices(batch, reference, level, everything, level.offsets(), 10**9)
    found = log_weights(batch, reference, level, everything, step, *terms)
    return found.reshape(n, n_orientations, n_shifts)


@pytest.mark.parametrize("flat", [False, True])
def test_tables_of_several_references_score_as_slices_do(device: Callable[[Any], Any], flat: bool) -> None:
    data = tiny.simulate(4, BOX, snr=0.5)
    maps = [v.sum(0) for v in volumes()] if flat else volumes()
    levels = (
        (make_flat_level(24, 2.0, 3, KMAX, -np.pi / 24), make_flat_level(48, 1.0, 6, KMAX, -np.pi / 24))
        if flat
        else (make_level(0, 2.0, 1, KMAX, TURN, 0), make_level(1, 1.0, 2, KMAX, TURN, 0))
    )
    step = every_orientation(make_step(levels), levels)
    rotations = np.tile(np.eye(3), (4, 1, 1))
    descent = Descent(make_references(device, maps, 8), step, EVERYTHING, 10**9, 10**9, rotations)
    scores = descent.run(place(device, make_batch(data)), rotations)
    wanted = by_slices(make_batch(data), make_references(lambda a: a, maps, 8), levels[-1], step, 4)
    assert len(scores.log_weight) == wanted.size
    flat_wanted = wanted.reshape(4, -1)
    evidence = np.logaddexp.reduce(flat_wanted.astype(np.float64), axis=1)
    np.testing.assert_allclose(to_host(scores.posterior.log_evidence), evidence, atol=0.05)
    best = to_host(scores.posterior.best)
    ends = to_host(scores.candidates.candidate_offsets)
    np.testing.assert_allclose(to_host(scores.log_weight)[best], flat_wanted.max(1), atol=0.1)
    assert np.array_equal(np.searchsorted(ends[1:], best, side="right"), np.arange(4))


def test_the_prior_of_a_class_counts() -> None:
    """The same map three times: what tells the classes apart is their prior alone."""
    data = tiny.simulate(3, BOX, snr=0.5)
    levels = (make_level(1, 1.0, 3, KMAX, TURN, 1),)
    step = every_orientation(make_step(levels), levels)
    found = by_slices(make_batch(data), make_references(lambda a: a, [data.volume] * 3, 2), levels[0], step, 3)
    by_class = found.reshape(3, 3, -1)
    np.testing.assert_allclose(by_class[:, 1] - by_class[:, 0], np.log(2), atol=2e-3)
    np.testing.assert_allclose(by_class[:, 2] - by_class[:, 0], np.log(3), atol=2e-3)
    assert log_prior(levels[0], 1.5).max() == 0


@pytest.mark.parametrize("tables", [False, True])
def test_a_local_search_looks_at_every_class(monkeypatch: pytest.MonkeyPatch, tables: bool) -> None:
    monkeypatch.setattr("spa.em.descent.steerable_pays", lambda *_: tables)
    n = 12
    data = tiny.simulate(n, BOX, snr=20.0, seed=2, volume=volumes()[2])
    levels = (make_level(3, 0.25, 5, KMAX, TURN, 3), make_level(4, 0.25, 5, KMAX, TURN, 3))
    step = make_step(levels, local=True)
    reference = make_references(lambda a: a, volumes(), 2)
    descent = Descent(reference, step, Search(), 10**9, 10**9, data.rotations)
    poses = Poses.unknown(n)
    poses.rotations, poses.origins = data.rotations, data.origins
    scores = descent.run(make_batch(data, poses), poses.rotations)
    group = np.searchsorted(scores.candidates.group_offsets[1:], scores.posterior.best, side="right")
    assert np.all(scores.level.classes(scores.candidates.orientation[group]) == 2)


def test_images_of_2d_references_find_their_class_angle_and_shift() -> None:
    rng = np.random.default_rng(3)
    n, pictures = 18, np.stack([v.sum(0) for v in volumes()])
    which, psi, origins = rng.integers(0, N_CLASSES, n), rng.uniform(0, 360, n), rng.normal(scale=1.0, size=(n, 2))
    data = tiny.simulate_pictures(pictures, which, psi, origins, snr=20.0)
    levels = tuple(make_flat_level(24 * 2**k, 1.0 / 2**k, 7 * 2**k, KMAX, -np.pi / 24) for k in range(3))
    step = every_orientation(make_step(levels), levels)
    rotations = np.tile(np.eye(3), (n, 1, 1))
    descent = Descent(make_references(lambda a: a, list(pictures), 2), step, Search(), 10**9, 10**9, rotations)
    scores = descent.run(make_batch(data), rotations)
    best = scores.posterior.best
    group = np.searchsorted(scores.candidates.group_offsets[1:], best, side="right")
    orientation = scores.candidates.orientation[group]
    assert np.array_equal(scores.level.classes(orientation), which)
    found = np.degrees(scores.level.psi(orientation % scores.level.n_psi))
    error = (found - psi + 180) % 360 - 180
    assert np.median(np.abs(error)) < scores.level.angular_step
    offset = scores.level.offsets()[scores.candidates.shift[best]]
    assert np.median(np.hypot(*(offset - origins).T)) < 0.3


def test_the_prior_is_the_signal_in_a_masked_map() -> None:
    """Noise alone leaves nothing, within chance; a planted power comes out."""
    rng = np.random.default_rng(2)
    box, weight = 64, 4.0
    inside = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    noise = rng.normal(size=(400, box, box)) * np.sqrt(2 / weight) / box
    pattern = rng.normal(size=(400, box, box)) * inside * 3 / box
    for signal in (np.zeros_like(noise), pattern):
        spectra = np.abs(np.fft.rfft2((noise + signal) * inside)) ** 2 / 2
        power = np.array([spectra[:, k, 5].mean() for k in range(1, 30)])
        wanted = (np.abs(np.fft.rfft2(signal)) ** 2 / 2)[:, 1:30, 5].mean()
        found = signal_power(power, np.full(power.size, weight), float(inside.mean()))
        assert found.mean() == pytest.approx(wanted, abs=0.02 / weight)


def test_averages_are_centred_and_images_go_with_them() -> None:
    """What a moved reference shows at a pose is what the image shows that its new origin has moved."""
    rng = np.random.default_rng(5)
    picture = np.roll(volumes()[1].sum(0), (2, -1), (0, 1))
    where, moved = centred(picture[None], np.ones(()))
    density, line = np.maximum(where[0], 0), np.arange(BOX) - BOX // 2
    assert abs((density * line).sum() / density.sum()) <= 0.5
    assert abs((density * line[:, None]).sum() / density.sum()) <= 0.5
    psi = rng.uniform(0, 360, 3)
    before = tiny.simulate_pictures(picture[None], np.zeros(3, int), psi, np.zeros((3, 2)), snr=1e9)
    shifts = turned(before.rotations, np.tile(moved, (3, 1)))
    after = tiny.simulate_pictures(where, np.zeros(3, int), psi, shifts, snr=1e9)
    for a, b in zip(before.images, after.images, strict=True):
        assert tiny.correlation(a, b) > 0.98


def flat_options(tmp_path: Path, **given: Any) -> SearchOptions:
    values = {"i": "x.star", "o": str(tmp_path / "run"), "ctf": True, "offset_range": 3.0, "offset_step": 1.0}
    values |= {"particle_diameter": 65.0, "random_seed": 1, "flatten_solvent": True, "tau2_fudge": 2.0}
    return SearchOptions(**(values | given))


def classify(tmp_path: Path, data: tiny.Data, n_classes: int, n_iterations: int = 12, **given: Any) -> Engine:
    tmp_path.mkdir(exist_ok=True)
    options = flat_options(tmp_path, **given)
    inputs = replace(data.inputs(), references=np.zeros((n_classes, BOX, BOX), np.float32))
    n = len(data.images)
    plan = FlatSchedule(options, Search(), BOX, tiny.PIXEL_SIZE, n_iterations, 15.0, inactivity=0.1, n_particles=n)
    engine = Engine(options, inputs, plan, 1, tiny.QuietJob(options.o), False)  # type: ignore[arg-type]
    engine.run()
    return engine


def agreement(found: np.ndarray, truth: np.ndarray, n: int) -> float:
    """Share of the particles whose class is the one that stands for their truth."""
    table = np.zeros((n, n))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


@pytest.fixture(scope="module")
def mixed() -> tuple[tiny.Data, np.ndarray]:
    rng = np.random.default_rng(8)
    n, pictures = 240, np.stack([v.sum(0) for v in volumes()])
    which = rng.integers(0, N_CLASSES, n)
    origins = rng.normal(scale=1.0, size=(n, 2))
    return tiny.simulate_pictures(pictures, which, rng.uniform(0, 360, n), origins, snr=3.0), which


def test_2d_classes_are_found_from_nothing(mixed: tuple[tiny.Data, np.ndarray], tmp_path: Path) -> None:
    data, which = mixed
    engine = classify(tmp_path, data, N_CLASSES)
    assert agreement(engine.poses.class_number, which, N_CLASSES) > 0.95
    names = {p.name for p in tmp_path.iterdir()}
    assert {"run_it012_classes.mrcs", "run_classes.mrcs", "run_model.star", "run_data.star"} <= names


def test_2d_classification_continues_where_it_was(mixed: tuple[tiny.Data, np.ndarray], tmp_path: Path) -> None:
    data, _ = mixed
    whole = classify(tmp_path / "whole", data, N_CLASSES, 6)
    options = flat_options(tmp_path / "whole")
    inputs = replace(data.inputs(), references=np.zeros((N_CLASSES, BOX, BOX), np.float32))
    plan = FlatSchedule(options, Search(), BOX, tiny.PIXEL_SIZE, 6, 15.0, inactivity=0.1, n_particles=240)
    engine = Engine(options, inputs, plan, 1, tiny.QuietJob(str(tmp_path / "b")), False)  # type: ignore[arg-type]
    state, engine.poses, engine.group_scale = output.read_state(
        str(tmp_path / "whole/run_it003_optimiser.star"), inputs, plan
    )
    saved = output.star.read(str(tmp_path / "whole/run_it003_data.star"))["particles"]
    engine.poses.origins = np.stack([saved.floats(f"rlnOrigin{a}Angst") for a in "XY"], -1) / tiny.PIXEL_SIZE
    engine.poses.class_number = saved.floats("rlnClassNumber").astype(np.int32) - 1
    engine.run(state)
    assert (engine.poses.class_number == whole.poses.class_number).mean() > 0.97


def test_particles_of_noise_alone_give_no_resolution(tmp_path: Path) -> None:
    data = tiny.simulate(200, BOX, snr=1.0)
    data.images[:] = np.random.default_rng(1).normal(size=data.images.shape)
    engine = classify(tmp_path, data, 4)
    assert np.all(np.abs(engine.final_map) < 10)
    said = [line for line in engine.job.said if line.startswith("iteration 12")]  # type: ignore[attr-defined]
    first = engine.schedule.first_shell()
    assert float(said[0].split("resolution ")[1].split()[0]) >= BOX * tiny.PIXEL_SIZE / (first + 1)


@pytest.mark.parametrize("own_poses", [False, True])
def test_3d_classes_from_one_reference(own_poses: bool, tmp_path: Path) -> None:
    """Two maps that differ in a blob; with poses given, and with poses searched."""
    rng = np.random.default_rng(3)
    one = tiny.blobs(BOX, 4)
    z, y, x = np.ogrid[:BOX, :BOX, :BOX]
    other = one + 3 * np.exp(-((z - 8) ** 2 + (y - 12) ** 2 + (x - 8) ** 2) / 4).astype(np.float32)
    n = 300
    which = rng.integers(0, 2, n)
    parts = [tiny.simulate(n, BOX, snr=3.0, seed=4, volume=v) for v in (one, other)]
    data = replace(parts[0], images=np.where((which == 1)[:, None, None], parts[1].images, parts[0].images))
    reference = (one + other) / 2
    options = RefinementOptions(
        i="x.star", o=str(tmp_path / "run"), ref="x.mrc", ctf=True, offset_range=2.0, offset_step=1.0,
        particle_diameter=75.0, random_seed=1, flatten_solvent=True, healpix_order=1, ini_high=20.0,
    )  # fmt: skip
    inputs = replace(data.inputs(), references=reference[None].astype(np.float32))
    seeds = random_classes(1, n, 2)
    plan = MapSchedule(options, Search(), BOX, tiny.PIXEL_SIZE, 10, -1.0, 2, skip_align=own_poses, seeds=seeds)
    folds = make_folds(1, np.arange(n), 4)
    engine = Engine(options, inputs, plan, 1, tiny.QuietJob(options.o), folds=folds)  # type: ignore[arg-type]
    plan.poses = engine.poses
    if own_poses:
        engine.poses.rotations, engine.poses.origins = data.rotations.copy(), data.origins.copy()
        engine.poses.known[:] = True
    engine.run()
    assert agreement(engine.poses.class_number, which, 2) > 0.9


def test_a_node_of_the_transform_is_not_the_end_of_the_resolution() -> None:
    ratios = np.array(
        [[9, 9, 0, 9, 9, 0, 0, 9.0], [9, 0, 0, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9, 9, 9], [9, 0, 2, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(resolved_shells(ratios), [4, 0, 7, 2])
