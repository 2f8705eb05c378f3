"""`spa class2d` from the command line: files, the same result again, going on, and wrong input."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star
from tests.jobs.refinement import BOX, DIAMETER, PIXEL_SIZE, check_one_line, simulate

FLAGS = (
    f"--K 3 --iter 4 --ctf --flatten_solvent --zero_mask --particle_diameter {DIAMETER:g} --psi_step 15 "
    "--offset_range 2 --offset_step 1 --random_seed 1 --j 2 --quiet"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("class2d")
    with chdir(above):
        return above / simulate("Sim", "--nr_particles 120 --snr 1")


def classify(data: Path, rootname: str, flags: str = "") -> int:
    with chdir(data.parent):
        return run(["class2d", "--i", "Sim/particles.star", "--o", rootname, *FLAGS.split(), *flags.split()])


@pytest.fixture(scope="module", params=["", "--grad"])
def done(data: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    folder = "Grad" if request.param else "Class2D"
    assert classify(data, f"{folder}/run", request.param) == 0
    return data.parent / folder, request.param


def test_files_have_relions_names(done: tuple[Path, str]) -> None:
    folder, _ = done
    names = {path.name for path in folder.iterdir()}
    ends = ("data.star", "model.star", "optimiser.star", "sampling.star", "classes.mrcs")
    assert {f"run{stem}_{end}" for end in ends for stem in ("", "_it001", "_it004")} <= names
    assert "run_classes.png" in names
    averages, pixel_size = mrc.read(folder / "run_classes.mrcs")
    assert averages.shape == (3, BOX, BOX)
    assert pixel_size == pytest.approx(PIXEL_SIZE)


def test_the_model_tells_shares_accuracy_and_resolution_of_each_class(done: tuple[Path, str]) -> None:
    folder, _ = done
    model = star.read(folder / "run_model.star")
    classes = model["model_classes"]
    assert classes.text("rlnReferenceImage")[1].startswith("000002@")
    assert classes.floats("rlnClassDistribution").sum() == pytest.approx(1, abs=1e-4)
    assert model["model_general"].get_integer("rlnReferenceDimensionality") == 2
    resolution = classes.floats("rlnEstimatedResolution")
    assert np.all(resolution >= 2 * PIXEL_SIZE)
    assert resolution.min() < 60
    assert np.all(classes.floats("rlnAccuracyRotations") > 0)
    number = star.read(folder / "run_data.star")["particles"].floats("rlnClassNumber")
    assert set(number) <= {1.0, 2.0, 3.0}


def test_the_same_seed_gives_the_same_result_and_a_run_goes_on_to_it(
    done: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    folder, grad = done
    again = data.parent / f"Again{grad}"
    shutil.rmtree(again, ignore_errors=True)
    assert classify(data, f"{again.name}/run", grad) == 0
    for name in ("run_data.star", "run_classes.mrcs"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for path in [*again.glob("run_it00[34]*"), *again.glob("run_[dmoc]*")]:
        path.unlink()
    with chdir(data.parent):
        assert run(["class2d", "--continue", f"{again.name}/run_it002_optimiser.star", "--quiet"]) == 0
    number, wanted = (star.read(f / "run_data.star")["particles"].floats("rlnClassNumber") for f in (again, folder))
    assert (number == wanted).mean() > 0.95
    a, b = (mrc.read(f / "run_classes.mrcs")[0] for f in (again, folder))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--K 500", "--K 500: expected at most as many classes as particles, Sim/particles.star has 120"),
        ("--particle_diameter 500", "--particle_diameter 500: expected at most the box, 176 Å"),
        ("--i Sim/nothing.star", "Sim/nothing.star"),
    ],
)
def test_wrong_input_is_told_in_a_line(flags: str, line: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(data, "Wrong/run", flags) == 1
    check_one_line(capsys, line)


def test_going_on_with_another_number_of_classes_is_refused(
    done: tuple[Path, str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optimiser = f"{done[0].name}/run_it001_optimiser.star"
    assert classify(data, "Other/run", f"--K 5 --continue {optimiser}") == 1
    check_one_line(capsys, f"{optimiser}: expected references 5 of 32 x 32, found 3 of 32 x 32")


def test_particles_that_show_one_view_leave_no_trouble_for_empty_classes(data: Path) -> None:
    """Classes that lose all particles: nothing in any file is not a number."""
    assert classify(data, "Empty/run", "--K 40 --class_inactivity_threshold 0 --iter 3") == 0
    folder = data.parent / "Empty"
    averages, _ = mrc.read(folder / "run_classes.mrcs")
    assert np.isfinite(averages).all()
    assert " nan" not in (folder / "run_model.star").read_text().lower()
