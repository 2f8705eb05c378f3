"""`spa refine3d` from files to files: the truth comes back, noise does not, interruptions cost nothing, errors are told."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.fourier import fourier_crop, low_pass, resample
from spa.fsc import fsc, resolution_shell
from spa.io import mrc, star
from spa.kernels import backend
from tests.jobs import refinement
from tests.jobs.refinement import BOX, INI_HIGH, MAPS, PIXEL_SIZE, command, correlation, read, simulate

REFINED = Path("Refine3D/job001")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with simulated particles and one complete refinement of them."""
    folder = tmp_path_factory.mktemp("project")
    with chdir(folder):
        simulate("Sim", "--nr_particles 80 --snr 2")
        assert run(command(Path("Sim"), REFINED / "run")) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def said(folder: Path) -> str:
    return (folder / "run.out").read_text()


# From particles to a map


def test_poses_and_map_are_the_truth() -> None:
    truth = read("Sim/truth_map.mrc")
    assert np.median(refinement.angular_errors(REFINED / "run_data.star", "Sim/truth_particles.star")) < 6
    assert np.median(refinement.shift_errors(REFINED / "run_data.star", "Sim/truth_particles.star")) < 1
    refined = read(REFINED / "run_class001.mrc")
    assert correlation(refined, truth) > 0.8
    curve = fsc(refined, truth, refinement.sphere())
    assert (curve[: BOX // 2 - 1] > 0.6).all()  # the reference ends at shell 7


def test_files_have_relions_names_and_nothing_else_is_left() -> None:
    names = {path.name for path in REFINED.iterdir()}
    last = max(int(name[6:9]) for name in names if name.startswith("run_it"))
    each = ["data.star", "optimiser.star", "sampling.star"]
    each += [f"half{h}_{end}" for h in (1, 2) for end in ("model.star", "class001.mrc")]
    final = {f"run_{end}.star" for end in ("data", "model", "optimiser")} | set(MAPS)
    pictures = {"run_fsc.png", "run_orientations.png", "run_class001.png"}
    log = {"run.out", "run.err", "job.json", "RELION_JOB_EXIT_SUCCESS"}
    iterations = {f"run_it{i:03d}_{end}" for i in range(1, last + 1) for end in each}
    assert last >= 2
    assert names == iterations | final | pictures | log


def test_the_data_table_keeps_rows_and_says_what_was_found() -> None:
    before, after = star.read("Sim/particles.star")["particles"], star.read(REFINED / "run_data.star")["particles"]
    for column in before.columns:
        assert after.text(column) == before.text(column)
    assert set(after.integers("rlnRandomSubset").tolist()) == {1, 2}
    chance = after.floats("rlnMaxValueProbDistribution")
    assert (chance > 0).all()
    assert (chance <= 1 + 1e-6).all()
    assert (after.integers("rlnNrOfSignificantSamples") >= 1).all()


def test_model_tables_and_the_resolution_told_agree_with_the_half_maps() -> None:
    model = star.read(REFINED / "run_model.star")
    tables = ["model_general", "model_classes", "model_class_1", "model_groups"]
    assert model.names == [*tables, "model_optics_group_1", "model_pdf_orient_class_1"]
    written = model["model_class_1"].floats("rlnGoldStandardFsc")
    found = refinement.half_map_fsc(REFINED)
    np.testing.assert_allclose(written[2 : BOX // 2], found[2 : BOX // 2], atol=1e-4)
    shell = resolution_shell(written)
    told = model["model_general"].get_float("rlnCurrentResolution")
    assert told == pytest.approx(BOX * PIXEL_SIZE / shell, rel=1e-4)
    assert f"resolution {told:.2f} Å (FSC = 0.143" in said(REFINED)
    assert model["model_pdf_orient_class_1"].floats("rlnOrientationDistribution").sum() == pytest.approx(1, abs=1e-4)


def test_mask_and_postprocess_take_the_result() -> None:
    assert run(["mask", "--i", str(REFINED / MAPS[0]), "--o", "Mask/mask.mrc", "--j", "2", "--quiet"]) == 0
    half = str(REFINED / MAPS[1])
    arguments = ["--i", half, "--mask", "Mask/mask.mrc", "--o", "Post/postprocess", "--random_seed", "1", "--quiet"]
    assert run(["postprocess", *arguments]) == 0
    shell = BOX * PIXEL_SIZE / star.read("Post/postprocess.star")["general"].get_float("rlnFinalResolution")
    assert shell >= round(BOX * PIXEL_SIZE / INI_HIGH) + 3
    curve = fsc(read("Post/postprocess.mrc"), read("Sim/truth_map.mrc"), refinement.sphere())
    assert (curve[: BOX // 2 - 3] > 0.5).all()


# Noise is not a structure


@pytest.mark.parametrize(("seed", "coloured"), [(1, 0.0), (2, 0.8), (3, 0.0)])
def test_noise_does_not_end_with_a_resolution(tmp_path: Path, seed: int, coloured: float) -> None:
    simulate(tmp_path / "Noise", f"--nr_particles 60 --snr 1e-6 --coloured {coloured} --seed {seed}")
    reference = tmp_path / "Noise/reference.mrc"
    shutil.copy("Sim/reference.mrc", reference)  # on the scale of a signal: that of the noise's would be nothing
    assert run(command(tmp_path / "Noise", tmp_path / "Out/run")) == 0
    limit = round(BOX * PIXEL_SIZE / INI_HIGH) + 2
    told = star.read(tmp_path / "Out/run_model.star")["model_class_1"].floats("rlnGoldStandardFsc")
    assert resolution_shell(told) <= limit
    # the first shells of such halves agree by the reference or by chance alone: what counts is the fall after them
    found = refinement.half_map_fsc(tmp_path / "Out")
    found[: limit - 1] = 1
    assert resolution_shell(found) <= limit


# References that do not fit


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda v: (v[4:-4, 4:-4, 4:-4], PIXEL_SIZE), "padded from a box of 24 to 32 voxels"),
        (lambda v: (np.pad(v, 6), PIXEL_SIZE), "cropped from a box of 44 to 32 voxels"),
        (
            lambda v: (fourier_crop(v, 24, 3), PIXEL_SIZE * 32 / 24),
            "resampled from 24 voxels of 7.33333 Å to 32 voxels of 5.5 Å",
        ),
        (lambda v: (resample(v, PIXEL_SIZE, 3.1, 64), 3.1), "resampled from 64 voxels of 3.1 Å to 32 voxels of 5.5 Å"),
    ],
    ids=["small", "large", "coarse", "fine"],
)
def test_another_box_or_pixel_of_the_reference(tmp_path: Path, make: Callable[..., object], line: str) -> None:
    volume, pixel_size = make(read("Sim/reference.mrc"))  # type: ignore[misc]
    mrc.write_volume(tmp_path / "other.mrc", volume, pixel_size)
    with refinement.two_iterations():
        assert run(command(Path("Sim"), tmp_path / "Out/run", f"--ref {tmp_path}/other.mrc")) == 0
    assert line in said(tmp_path / "Out")
    assert np.median(refinement.angular_errors(tmp_path / "Out/run_data.star", "Sim/truth_particles.star")) < 10
    assert correlation(read(tmp_path / "Out/run_class001.mrc"), read("Sim/truth_map.mrc")) > 0.8


# Interrupted and continued


def started(folder: Path) -> subprocess.Popen[str]:
    """The refinement of the project in another process, once its first iteration is on disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spa.cli.main", *command(Path("Sim"), folder / "run")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    wait_for(folder / "run_it001_optimiser.star", process)
    return process


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None
        time.sleep(0.01)


def check_whole(folder: Path) -> None:
    """Every file under a final name can be read from its first to its last byte."""
    for path in folder.glob("run_*"):
        if path.suffix == ".mrc":
            assert np.isfinite(read(path)).all()
        elif path.suffix == ".star":
            star.read(path)


def check_same_end(folder: Path) -> None:
    """A run that was continued ends as the one that was not."""
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    assert not list(folder.glob("RELION_JOB_EXIT_A*"))
    ends = [resolution_shell(refinement.half_map_fsc(f)) for f in (folder, REFINED)]
    assert ends[0] == ends[1]
    for name in MAPS:
        assert correlation(read(folder / name), read(REFINED / name)) > 0.99
    before, after = (star.read(f / "run_data.star")["particles"].text("rlnRandomSubset") for f in (REFINED, folder))
    assert before == after


def test_a_signal_stops_at_a_point_from_which_the_command_told_goes_on() -> None:
    folder = Path("Terminated")
    process = started(folder)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: interrupted (SIGTERM); continue with: spa refine3d --continue ")
    assert (folder / "RELION_JOB_EXIT_ABORTED").exists()
    assert not list(folder.glob(".*"))
    check_whole(folder)
    told = shlex.split(lines[0].partition("continue with: spa ")[2])
    assert Path(told[-1]).parent == folder
    assert run(told) == 0
    check_same_end(folder)


def test_a_killed_run_goes_on_from_its_last_iteration() -> None:
    folder = Path("Killed")
    process = started(folder)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    check_whole(folder)
    last = sorted(folder.glob("run_it*_optimiser.star"))[-1]
    assert run(["refine3d", "--continue", str(last)]) == 0
    check_same_end(folder)


def test_the_abort_file_stops_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("Aborted")

    def abort() -> None:
        wait_for(folder / "run_it002_optimiser.star")
        (folder / "RELION_JOB_ABORT_NOW").touch()

    asking = threading.Thread(target=abort)
    asking.start()
    assert run(command(Path("Sim"), folder / "run")) == 3
    asking.join()
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "RELION_JOB_ABORT_NOW found" in err[0]
    assert not (folder / "RELION_JOB_ABORT_NOW").exists()
    assert (folder / "RELION_JOB_EXIT_ABORTED").exists()
    assert run(shlex.split(err[0].partition("continue with: spa ")[2])) == 0
    check_same_end(folder)


def test_a_finished_run_is_left_as_it_is_unless_its_last_files_are_missing() -> None:
    last = sorted(REFINED.glob("run_it*_optimiser.star"))[-1]
    shutil.copytree(REFINED, "Copy")
    for path in Path("Copy").glob("run_it*.star"):
        star_text = path.read_text().replace(f"{REFINED}/", "Copy/")
        path.write_text(star_text)
    before = {path: path.stat().st_mtime_ns for path in Path("Copy").glob("run_*")}
    again = ["refine3d", "--continue", f"Copy/{last.name}", "--o", "Copy/run", "--quiet"]
    assert run(again) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("Copy").glob("run_*")} == before
    assert "nothing to continue" in said(Path("Copy"))
    for name in (*MAPS, "run_data.star", "run_model.star", "run_optimiser.star"):
        Path("Copy", name).unlink()
    assert run(again) == 0
    assert (Path("Copy") / "RELION_JOB_EXIT_SUCCESS").exists()
    assert correlation(read(f"Copy/{MAPS[0]}"), read(REFINED / MAPS[0])) > 0.95


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run_data.star", "data_optimiser_general"),
        ("run_it001_half1_model.star", "data_optimiser_general"),
        ("run_class001.mrc", "expected"),
        ("run_it099_optimiser.star", "run_it099_optimiser.star"),
    ],
)
def test_continuing_from_another_file_is_refused(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["refine3d", "--continue", f"{REFINED}/{name}", "--o", "Wrong/run"]) == 1
    check_one_line(capsys, f"{REFINED}/{name}", message)


def check_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Nothing on the terminal but one line of error, which holds the parts."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


# Every flag changes what it says


@pytest.fixture(scope="module")
def short(project: Path) -> Callable[..., Path]:
    """Refine in two coarse iterations with some more flags; returns the folder. The same flags are run once."""
    done: dict[tuple[str, str, str], Path] = {}

    def ran(flags: str = "", data: str = "Sim", switches: str = refinement.SWITCHES) -> Path:
        key = (flags, data, switches)
        if key not in done:
            folder = project / f"Short{len(done):03d}"
            coarse = f"--healpix_order 0 --offset_range 1 {flags}"
            with refinement.two_iterations():
                assert run(command(data, folder / "run", coarse, switches)) == 0
            done[key] = folder
        return done[key]

    return ran


Short = Callable[..., Path]


def test_sym_makes_the_map_symmetric(short: Short) -> None:
    def half_turn(folder: Path) -> float:
        volume = read(folder / "run_class001.mrc")
        return correlation(volume[1:, 1:, 1:], volume[1:, :0:-1, :0:-1])

    assert half_turn(short()) < 0.9
    assert half_turn(short("--sym C2")) > 0.999


def test_ini_high_limits_the_first_iteration(short: Short) -> None:
    def first_line(folder: Path) -> str:
        return next(line for line in said(folder).splitlines() if line.startswith("iteration 1:"))

    # resolution shell 3 and the margin of ten beyond it
    assert "current size 26," in first_line(short("--ini_high 60"))
    assert "current size 30," in first_line(short())


def test_a_reference_on_another_grey_scale_is_noticed_or_told(short: Short, tmp_path: Path) -> None:
    mrc.write_volume(tmp_path / "bright.mrc", 50 * read("Sim/reference.mrc"), PIXEL_SIZE)
    noticed, told = short(f"--ref {tmp_path}/bright.mrc"), short(f"--ref {tmp_path}/bright.mrc --firstiter_cc")
    assert "grey scale is" in said(noticed)
    assert "grey scale is" not in said(told)
    assert "grey scale is" not in said(short())
    for name in MAPS:
        np.testing.assert_array_equal(read(noticed / name), read(told / name))
    assert correlation(read(told / MAPS[0]), read(short() / MAPS[0])) > 0.9
    assert not np.array_equal(read(short("--firstiter_cc") / MAPS[0]), read(short() / MAPS[0]))


def test_zero_mask_keeps_neighbours_out_of_the_scores(short: Short) -> None:
    rng = np.random.default_rng(1)
    y, x = np.indices((BOX, BOX)) - BOX // 2

    def with_neighbour(images: np.ndarray) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi, (len(images), 1, 1))
        distance = (x - 14.5 * np.cos(angle)) ** 2 + (y - 14.5 * np.sin(angle)) ** 2
        return images + 8 * np.exp(-distance / 4)

    def error(switches: str) -> float:
        folder = short("--particle_diameter 115", data="Neighbours", switches=switches)
        return float(np.median(refinement.angular_errors(folder / "run_data.star", "Sim/truth_particles.star")))

    changed("Sim", "Neighbours", with_neighbour)
    assert error(refinement.SWITCHES) < 0.8 * error(refinement.SWITCHES.replace("--zero_mask", ""))


def changed(data: str, folder: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Simulated particles in another folder with their images changed, stack by stack."""
    shutil.copytree(data, folder)
    for path in sorted(Path(folder).glob("stacks/*.mrcs")):
        images, pixel_size = mrc.read(path)
        mrc.write_stack(path, change(images), pixel_size)
    table = star.read(f"{data}/particles.star")
    names = [name.replace(f"{data}/", f"{folder}/") for name in table["particles"].text("rlnImageName")]
    table["particles"].set("rlnImageName", names)
    star.write(f"{folder}/particles.star", table)


def outside_sphere(volume: np.ndarray) -> np.ndarray:
    return volume[refinement.sphere() == 0]


def test_flatten_solvent_empties_the_map_outside_the_sphere(short: Short) -> None:
    plain = short(switches=refinement.SWITCHES.replace("--flatten_solvent", ""))
    assert np.abs(outside_sphere(read(plain / MAPS[0]))).max() > 0
    assert np.abs(outside_sphere(read(short() / MAPS[0]))).max() == 0


def test_solvent_mask_takes_the_place_of_the_sphere(short: Short, project: Path) -> None:
    mask = refinement.sphere()
    mask[: BOX // 2] = 0
    mrc.write_volume(project / "half_mask.mrc", mask, PIXEL_SIZE)
    volume = read(short("--solvent_mask half_mask.mrc") / MAPS[0])
    assert np.abs(volume[mask == 0]).max() == 0
    assert np.abs(volume[mask > 0.5]).max() > 0


def test_norm_finds_the_noise_level_of_each_image(short: Short) -> None:
    levels = iter((1.0, 2.0, 1.0, 2.0))
    changed("Sim", "Loud", lambda images: images * next(levels))
    plain, corrected = short(data="Loud"), short("--norm", data="Loud")
    assert set(star.read(plain / "run_data.star")["particles"].floats("rlnNormCorrection").tolist()) == {1.0}
    table = star.read(corrected / "run_data.star")["particles"]
    found = table.floats("rlnNormCorrection")
    loud = np.array(["mic00002" in name or "mic00004" in name for name in table.text("rlnImageName")])
    assert found[loud].mean() / found[~loud].mean() == pytest.approx(2, rel=0.1)
    assert found.mean() == pytest.approx(1, abs=1e-3)


def test_scale_finds_the_signal_of_each_micrograph(short: Short) -> None:
    true = {"mic00001": 1.3, "mic00002": 0.7, "mic00003": 1.3, "mic00004": 0.7}
    refinement.with_signal_levels("Sim", "Uneven", true, snr=0.5)
    plain, corrected = short(data="Uneven"), short("--scale", data="Uneven")
    for folder, ratio in ((plain, 1.0), (corrected, 1.3 / 0.7)):
        for name in ("run_model.star", "run_it002_half2_model.star"):
            groups = star.read(folder / name)["model_groups"]
            assert [n.split("/")[-1].split(".")[0] for n in groups.text("rlnGroupName")] == list(true)
            found = groups.floats("rlnGroupScaleCorrection")
            assert found[[0, 2]].mean() / found[[1, 3]].mean() == pytest.approx(ratio, rel=0.15)


def test_low_resol_join_halves_shares_the_low_frequencies(short: Short) -> None:
    def first_fsc(folder: Path) -> np.ndarray:
        return fsc(*(read(folder / f"run_it001_half{h}_class001.mrc") for h in (1, 2)))

    limit = int(BOX * PIXEL_SIZE / 25)
    apart, joined = first_fsc(short()), first_fsc(short("--low_resol_join_halves 25"))
    assert (joined[1 : limit - 1] > 0.995).all()
    assert (apart[1 : limit - 1] < joined[1 : limit - 1]).all()
    assert (joined[limit + 4 : -1] < 0.9).all()


def test_pad_is_the_padding_of_the_transforms(short: Short) -> None:
    folder = short("--pad 1")
    assert star.read(folder / "run_model.star")["model_general"].get_float("rlnPaddingFactor") == 1
    assert 0.9 < correlation(read(folder / MAPS[0]), read(short() / MAPS[0])) < 1 - 1e-6


def test_sampling_flags_set_the_steps(short: Short) -> None:
    def steps(folder: Path) -> list[str]:
        lines = [line for line in said(folder).splitlines() if line.startswith("iteration 1:")]
        return lines[0].split("search to ")[1].split(" Å")[0].split()

    coarse, fine = steps(short()), steps(short("--oversampling 2"))
    assert coarse[0] == "30.00°"
    assert fine[0] == "15.00°"
    assert steps(short("--healpix_order 1"))[0] == "15.00°"
    assert float(steps(short("--offset_step 0.5"))[1]) == pytest.approx(float(coarse[1]) / 2, abs=0.006)
    sampling = star.read(short("--oversampling 2") / "run_it001_sampling.star")["sampling_general"]
    assert sampling.get_float("rlnPsiStep") == 360 / (6 * 2 ** sampling.get_integer("rlnHealpixOrder"))


def test_offset_range_bounds_the_shifts_found(short: Short) -> None:
    simulate("Shifted", "--nr_particles 40 --snr 2 --sigma_offset 15")

    def largest(folder: Path) -> float:
        table = star.read(folder / "run_it001_data.star")["particles"]
        return float(np.hypot(table.floats("rlnOriginXAngst"), table.floats("rlnOriginYAngst")).max()) / PIXEL_SIZE

    narrow, wide = short(data="Shifted"), short("--offset_range 6", data="Shifted")
    assert largest(narrow) < 2.5
    assert 4 < largest(wide) < 7.5
    errors = [
        np.median(refinement.shift_errors(f / "run_data.star", "Shifted/truth_particles.star")) for f in (narrow, wide)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_tau2_fudge_lets_weak_frequencies_through(short: Short) -> None:
    def strength(folder: Path) -> float:
        volume = read(folder / "run_it001_half1_class001.mrc")
        return float((volume - low_passed(volume)).std())

    def low_passed(volume: np.ndarray) -> np.ndarray:
        return np.asarray(low_pass(volume, PIXEL_SIZE, 20.0))

    weak, plain, strong = (strength(short(f)) for f in ("--tau2_fudge 0.1", "", "--tau2_fudge 10"))
    assert weak < 0.8 * plain
    assert strong > 1.1 * plain


def test_the_seed_decides_the_halves_and_the_result(short: Short) -> None:
    first, again, other = short(), short("--random_seed 1"), short("--random_seed 2")
    for name in MAPS:
        np.testing.assert_array_equal(read(first / name), read(again / name))
        assert not np.array_equal(read(first / name), read(other / name))
    halves = [star.read(f / "run_data.star")["particles"].text("rlnRandomSubset") for f in (first, again, other)]
    assert halves[0] == halves[1]
    assert halves[0] != halves[2]


def test_without_ctf_the_user_is_warned_and_the_map_differs(short: Short) -> None:
    folder = short(switches=refinement.SWITCHES.replace("--ctf", ""))
    assert "--ctf was not given" in (folder / "run.err").read_text()
    assert "--ctf was not given" not in (short() / "run.err").read_text()
    truth = read("Sim/truth_map.mrc")
    assert correlation(read(folder / MAPS[0]), truth) < correlation(read(short() / MAPS[0]), truth)


# Wrong input


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> Path:
    """Twelve particles in a folder of their own, to be spoilt."""
    monkeypatch.chdir(project)
    if not Path("Few").exists():
        simulate("Few", "--nr_particles 12 --nr_optics_groups 2")
    shutil.copytree("Few", tmp_path / "Few")
    monkeypatch.chdir(tmp_path)
    return Path("Few")


def set_cell(path: Path, block: str, column: str, row: int, value: object) -> None:
    table = star.read(path)
    values: list[object] = list(table[block].text(column))
    values[row] = value
    table[block].set(column, [str(v) for v in values])
    star.write(path, table)


def drop_columns(few: Path, *columns: str) -> None:
    table = star.read(few / "particles.star")
    for block in ("particles", "optics"):
        table[block].drop(*(c for c in columns if c in table[block]))
    star.write(few / "particles.star", table)


def drop_optics_group(few: Path) -> None:
    table = star.read(few / "particles.star")
    table.put(table["optics"].rows(np.array([0])))
    star.write(few / "particles.star", table)


def nan_pixel(path: Path) -> None:
    images, pixel_size = mrc.read(path)
    images = images.copy()
    images[2, 5, 5] = np.nan
    mrc.write_stack(path, images, pixel_size)


def cropped_stack(path: Path, box: int) -> None:
    images, pixel_size = mrc.read(path)
    mrc.write_stack(path, images[:, :box, :box], pixel_size)


def odd_box(few: Path) -> None:
    for path in few.glob("stacks/*.mrcs"):
        cropped_stack(path, 31)
    for row in (0, 1):
        set_cell(few / "particles.star", "optics", "rlnImageSize", row, 31)


def one_in_half_1(few: Path) -> None:
    table = star.read(few / "particles.star")
    table["particles"].set("rlnRandomSubset", [1] + [2] * 11)
    star.write(few / "particles.star", table)


def nan_reference(few: Path) -> None:
    volume = read(few / "reference.mrc").copy()
    volume[3, 4, 5] = np.nan
    mrc.write_volume(few / "reference.mrc", volume, PIXEL_SIZE)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


STACK = "stacks/mic00002.mrcs"
SPOILT: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "missing stack": (lambda f: (f / STACK).unlink(), "", [f"Few/{STACK}: no such image stack", "row 4"]),
    "truncated stack": (lambda f: cut(f / STACK, 9000), "", [f"Few/{STACK}"]),
    "truncated header": (lambda f: cut(f / STACK, 500), "", [f"Few/{STACK}"]),
    "empty stack": (lambda f: cut(f / STACK, 0), "", [f"Few/{STACK}"]),
    "stack too short": (
        lambda f: set_cell(f / "particles.star", "particles", "rlnImageName", 4, f"000007@Few/{STACK}"),
        "",
        ["Few/particles.star: data_particles, row 5, column rlnImageName: image 7", "holds 3"],
    ),
    "box of a stack": (lambda f: cropped_stack(f / STACK, 30), "", [f"Few/{STACK}: expected images of 32 x 32", "30"]),
    "box of an optics group": (
        lambda f: set_cell(f / "particles.star", "optics", "rlnImageSize", 1, 30),
        "",
        ["Few/particles.star: data_optics: expected one box size", "32", "30", "group 2"],
    ),
    "pixel size of an optics group": (
        lambda f: set_cell(f / "particles.star", "optics", "rlnImagePixelSize", 1, 4.4),
        "",
        ["Few/particles.star: data_optics: expected one pixel size", "5.5", "4.4", "group 2"],
    ),
    "optics group missing": (
        drop_optics_group,
        "",
        ["Few/particles.star: data_particles, row 4, column rlnOpticsGroup: group 2 is missing"],
    ),
    "NaN pixel": (lambda f: nan_pixel(f / STACK), "", [f"Few/{STACK}: image 3: expected finite pixels", "row 6"]),
    "NaN defocus": (
        lambda f: set_cell(f / "particles.star", "particles", "rlnDefocusU", 6, "nan"),
        "",
        ["Few/particles.star: data_particles, row 7, column rlnDefocusU"],
    ),
    "word for a defocus": (
        lambda f: set_cell(f / "particles.star", "particles", "rlnDefocusV", 6, "deep"),
        "",
        ["Few/particles.star: data_particles, row 7, column rlnDefocusV", "deep"],
    ),
    "no defocus": (lambda f: drop_columns(f, "rlnDefocusU", "rlnDefocusV"), "", ["Few/particles.star", "rlnDefocusU"]),
    "no voltage": (lambda f: drop_columns(f, "rlnVoltage"), "", ["Few/particles.star", "rlnVoltage"]),
    "odd box": (odd_box, "", ["Few/stacks/mic00001.mrcs", "even", "31"]),
    "one particle in a half": (one_in_half_1, "", ["Few/particles.star: data_particles", "2 particles", "found 1"]),
    "half set 3": (
        lambda f: set_cell(f / "truth_particles.star", "particles", "rlnRandomSubset", 3, 3),
        "--i Few/truth_particles.star",
        ["Few/truth_particles.star: data_particles, row 4, column rlnRandomSubset: expected 1 or 2, found 3"],
    ),
    "particles missing": (lambda f: (f / "particles.star").unlink(), "", ["Few/particles.star"]),
    "particles empty": (lambda f: cut(f / "particles.star", 0), "", ["Few/particles.star"]),
    "reference missing": (lambda f: (f / "reference.mrc").unlink(), "", ["Few/reference.mrc"]),
    "reference truncated": (lambda f: cut(f / "reference.mrc", 5000), "", ["Few/reference.mrc"]),
    "reference with NaN": (nan_reference, "", ["Few/reference.mrc: expected finite voxels"]),
    "reference flat": (
        lambda f: mrc.write_volume(f / "reference.mrc", np.ones((BOX,) * 3, np.float32), PIXEL_SIZE),
        "",
        ["Few/reference.mrc: expected a map, found the same value everywhere"],
    ),
    "stack for a reference": (lambda f: None, f"--ref Few/{STACK}", [f"Few/{STACK}"]),
    "box of the mask": (
        lambda f: mrc.write_volume(f / "mask.mrc", np.ones((24,) * 3, np.float32), PIXEL_SIZE),
        "--solvent_mask Few/mask.mrc",
        ["Few/mask.mrc: expected a mask of 32 voxels", "found 24"],
    ),
    "values of the mask": (
        lambda f: mrc.write_volume(f / "mask.mrc", 7 * refinement.sphere(), PIXEL_SIZE),
        "--solvent_mask Few/mask.mrc",
        ["Few/mask.mrc: expected mask values from 0 to 1, found 0 to 7"],
    ),
    "NaN in the mask": (
        lambda f: mrc.write_volume(f / "mask.mrc", np.full((BOX,) * 3, np.nan, np.float32), PIXEL_SIZE),
        "--solvent_mask Few/mask.mrc",
        ["Few/mask.mrc: expected"],
    ),
    "particle wider than the box": (lambda f: None, "--particle_diameter 177", ["--particle_diameter 177", "176 Å"]),
    "symmetry": (lambda f: None, "--sym Q5", ["symmetry group 'Q5': expected"]),
    "output below a file": (lambda f: None, "--o Few/particles.star/run", ["Few/particles.star", "cannot be written"]),
}


@pytest.mark.parametrize("what", SPOILT)
def test_wrong_input_is_one_line_and_no_file(few: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, flags, parts = SPOILT[what]
    spoil(few)
    assert run(command(few, "Out/run", flags)) == 1
    check_one_line(capsys, *parts)
    left = {path.name for path in Path("Out").glob("*")} if Path("Out").exists() else set()
    assert left <= {"run.out", "run.err", "job.json", "RELION_JOB_EXIT_FAILURE"}
    assert "Traceback" not in (Path("Out/run.err").read_text() if left else "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--ini_hihg 40", "unknown flag --ini_hihg: did you mean --ini_high?"),
        ("--particle_diamter 40", "unknown flag --particle_diamter: did you mean --particle_diameter?"),
        ("--healpix_order 9", "--healpix_order 9: expected 0 to 7"),
        ("--offset_step 0", "--offset_step 0: expected 0.05 to 50 px"),
        ("--tau2_fudge nan", "--tau2_fudge nan: expected"),
        ("--pad two", "--pad two: expected a whole number"),
    ],
)
def test_wrong_usage_is_one_line(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("Sim", "Usage/run", flags)) == 2
    check_one_line(capsys, message)
    assert not Path("Usage").exists()


def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if backend.gpu_available():
        pytest.skip("this machine has a usable GPU")
    assert run(command("Sim", "Device/run", "--gpu 0")) == 1
    check_one_line(capsys, "--gpu 0: no usable GPU")
    assert not Path("Device").exists()
