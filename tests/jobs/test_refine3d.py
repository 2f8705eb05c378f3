"""`spa refine3d` from files to files: the truth comes back, noise does not, interruptions cost nothing."""

from __future__ import annotations

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
from spa.fourier import fourier_crop, resample
from spa.fsc import fsc, resolution_shell
from spa.io import mrc, star
from tests.jobs import refinement
from tests.jobs.refinement import (
    BOX,
    INI_HIGH,
    MAPS,
    PIXEL_SIZE,
    check_one_line,
    command,
    correlation,
    read,
    said,
    simulate,
)

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
    final = {f"run_{end}.star" for end in ("data", "model", "optimiser", "sampling")} | set(MAPS)
    pictures = {"run_progress.png", "run_fsc.png", "run_orientations.png", "run_class001.png"}
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
    # beyond the last shell used in alignment, the table corrects for what the sphere itself does
    np.testing.assert_allclose(written[2 : BOX // 2 - 1], found[2 : BOX // 2 - 1], atol=1e-4)
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


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "coloured"), [(1, 0.0), (2, 0.8)])
def test_noise_does_not_end_with_a_resolution(tmp_path: Path, seed: int, coloured: float) -> None:
    simulate(tmp_path / "Noise", f"--nr_particles 400 --snr 1e-6 --coloured {coloured} --seed {seed}")
    reference = tmp_path / "Noise/reference.mrc"
    shutil.copy("Sim/reference.mrc", reference)  # on the scale of a signal: that of the noise's would be nothing
    assert run(command(tmp_path / "Noise", tmp_path / "Out/run")) == 0
    limit = round(BOX * PIXEL_SIZE / INI_HIGH) + 2
    told = star.read(tmp_path / "Out/run_model.star")["model_class_1"].floats("rlnGoldStandardFsc")
    assert resolution_shell(told) <= limit
    # up to the limit such halves may agree, by their common reference; beyond it nothing may be left of that
    found = refinement.half_map_fsc(tmp_path / "Out")
    found[: limit + 1] = 1
    assert resolution_shell(found) == limit
    for folder, doubtful in ((tmp_path / "Out", True), (REFINED, False)):
        assert ("poses are hardly determined" in (folder / "run.err").read_text()) == doubtful


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
