"""Whole refinements of tiny data: the same on both backends, handed, independent halves, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spa import euler
from spa.em import output, schedule
from spa.em.engine import Engine
from spa.em.inputs import Inputs
from spa.em.schedule import RefinementSchedule
from spa.em.settings import RefinementOptions, Search
from spa.fourier import low_pass
from tests.devices import device_named
from tests.em import tiny

BOX = 16


def options(tmp_path: Path, **given: object) -> RefinementOptions:
    values: dict[str, object] = {
        "i": "x.star",
        "o": str(tmp_path / "run"),
        "ref": "x.mrc",
        "ctf": True,
        "healpix_order": 1,
        "offset_range": 2.0,
        "offset_step": 1.0,
        "particle_diameter": 65.0,
        "ini_high": 25.0,
        "random_seed": 1,
        "flatten_solvent": True,
    }
    return RefinementOptions(**(values | given))  # type: ignore[arg-type]


def make_engine(options: RefinementOptions, inputs: Inputs, job: tiny.QuietJob) -> Engine:
    plan = RefinementSchedule(options, Search(), BOX, tiny.PIXEL_SIZE, 3)
    return Engine(options, inputs, plan, 2, job)  # type: ignore[arg-type]


def refine(
    tmp_path: Path, data: tiny.Data, reference: np.ndarray, device: int | None = None, **given: object
) -> Engine:
    job = tiny.QuietJob(str(tmp_path / "run"), () if device is None else (device,))
    tmp_path.mkdir(exist_ok=True)
    engine = make_engine(options(tmp_path, **given), data.inputs(reference), job)
    engine.run()
    return engine


@pytest.fixture(scope="module")
def data() -> tiny.Data:
    return tiny.simulate(200, BOX, snr=2.0, seed=11, shift=0.7)


@pytest.fixture(scope="module")
def start(data: tiny.Data) -> np.ndarray:
    return low_pass(data.volume, tiny.PIXEL_SIZE, 25.0)


@pytest.fixture(scope="module")
def refined(data: tiny.Data, start: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return refine(tmp_path_factory.mktemp("refined"), data, start)


def test_poses_and_map_come_back(data: tiny.Data, refined: Engine) -> None:
    error = euler.angular_distance(refined.poses.rotations, data.rotations)
    assert np.median(error) < 10
    assert np.median(np.hypot(*(refined.poses.origins - data.origins).T)) < 0.4
    assert tiny.correlation(refined.final_map * refined.sphere, data.volume * refined.sphere) > 0.9


def test_files_have_relions_names(refined: Engine) -> None:
    folder = Path(refined.job.rootname).parent
    names = {p.name for p in folder.iterdir()}
    ends = ("data.star", "optimiser.star", "sampling.star", "half1_model.star", "half2_class001.mrc")
    assert {f"run_it001_{end}" for end in ends} <= names
    final = ("data.star", "model.star", "optimiser.star", "class001.mrc", "half1_class001_unfil.mrc")
    assert {f"run_{end}" for end in final} <= names
    assert not [n for n in names if n.startswith(".") or "tmp" in n]


def test_emulated_gpu_gives_the_cpus_result(
    data: tiny.Data, start: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels through the whole loop: a global iteration, then the final local one."""
    monkeypatch.setattr(schedule, "MAX_ITERATIONS", 1)
    names = ("images", "rotations", "origins", "coefficients")
    few = replace(data, **{name: getattr(data, name)[:8] for name in names})
    small = {"healpix_order": 0, "offset_range": 1.0}
    on_cpu = refine(tmp_path / "cpu", few, start, **small)
    with device_named("emulated"):
        on_gpu = refine(tmp_path / "gpu", few, start, device=0, **small)
    assert euler.angular_distance(on_cpu.poses.rotations, on_gpu.poses.rotations).max() < 0.5
    assert tiny.correlation(on_cpu.final_map, on_gpu.final_map) > 0.9999


def test_mirrored_reference_gives_the_mirrored_map(
    data: tiny.Data, start: np.ndarray, refined: Engine, tmp_path: Path
) -> None:
    def mirror(volume: np.ndarray) -> np.ndarray:
        return np.roll(volume[:, :, ::-1], 1, axis=2)

    other = refine(tmp_path, data, mirror(start))
    a, b = refined.final_map * refined.sphere, mirror(other.final_map) * refined.sphere
    assert tiny.correlation(a, b) > 0.95
    assert tiny.correlation(a, mirror(b)) < 0.9


@pytest.mark.parametrize("scale", [50.0, 1e-3])
def test_wrong_grey_scale_is_noticed_and_fitted(
    data: tiny.Data, start: np.ndarray, refined: Engine, tmp_path: Path, scale: float
) -> None:
    other = refine(tmp_path, data, start * np.float32(scale))
    assert any("grey scale" in line for line in other.job.said)  # type: ignore[attr-defined]
    assert tiny.correlation(refined.final_map, other.final_map) > 0.95


def test_the_sums_of_a_half_do_not_depend_on_the_other(data: tiny.Data, start: np.ndarray, tmp_path: Path) -> None:
    inputs = data.inputs(start)
    scrambled = replace(data, images=data.images.copy())
    scrambled.images[inputs.half_set == 2] *= -3
    sums = []
    for mine in (data, scrambled):
        engine = make_engine(options(tmp_path), mine.inputs(start), tiny.QuietJob("x"))
        state = engine._first_state()
        step = engine.schedule.step(state, fit_scale=False)
        sums.append([engine._expectation(state, step, half, engine.half_indices(half), None)[0] for half in (0, 1)])
    np.testing.assert_array_equal(sums[0][0].data, sums[1][0].data)
    np.testing.assert_array_equal(sums[0][0].noise_power, sums[1][0].noise_power)
    assert not np.allclose(sums[0][1].data, sums[1][1].data)


def test_continuing_gives_the_same_result(data: tiny.Data, start: np.ndarray, refined: Engine, tmp_path: Path) -> None:
    optimiser = Path(refined.job.rootname + "_it002_optimiser.star")
    inputs = data.inputs(start)
    job = tiny.QuietJob(str(tmp_path / "run"))
    engine = make_engine(options(tmp_path), inputs, job)
    table = inputs.particles
    saved = output.star.read(str(optimiser).replace("optimiser", "data"))["particles"]
    table.update(
        rot=saved.floats("rlnAngleRot"),
        tilt=saved.floats("rlnAngleTilt"),
        psi=saved.floats("rlnAnglePsi"),
        origin_x_angst=saved.floats("rlnOriginXAngst"),
        origin_y_angst=saved.floats("rlnOriginYAngst"),
    )
    state, engine.poses, engine.group_scale = output.read_state(str(optimiser), inputs, engine.schedule)
    engine.run(state)
    assert tiny.correlation(engine.final_map, refined.final_map) > 0.999
    apart = euler.angular_distance(engine.poses.rotations, refined.poses.rotations)
    assert np.percentile(apart, 95) < 0.5


def test_same_seed_same_result_whatever_the_threads(
    data: tiny.Data, start: np.ndarray, refined: Engine, tmp_path: Path
) -> None:
    again = refine(tmp_path, data, start)
    np.testing.assert_array_equal(again.poses.rotations, refined.poses.rotations)
    np.testing.assert_array_equal(again.final_map, refined.final_map)
