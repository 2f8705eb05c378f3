"""`spa class3d` from the command line: files, poses kept, repeats, going on, and wrong input."""

from __future__ import annotations

from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.em.class_schedule import MapSchedule
from spa.em.engine import Engine
from spa.em.inputs import read_inputs, read_reference
from spa.em.settings import Search
from spa.io import mrc, star
from spa.job import Job
from spa.jobs.class3d import Options
from tests.jobs.refinement import BOX, DIAMETER, INI_HIGH, check_one_line, simulate

FLAGS = (
    f"--K 2 --iter 3 --ctf --flatten_solvent --zero_mask --particle_diameter {DIAMETER:g} --healpix_order 1 "
    f"--ini_high {INI_HIGH:g} --offset_range 2 --offset_step 1 --random_seed 1 --j 2 --quiet"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("class3d")
    with chdir(above):
        return above / simulate("Sim", "--nr_particles 80 --snr 1")


def classify(data: Path, rootname: str, flags: str = "", i: str = "Sim/particles.star") -> int:
    words = ["class3d", "--i", i, "--ref", "Sim/reference.mrc", "--o", rootname, *FLAGS.split(), *flags.split()]
    with chdir(data.parent):
        return run(words)


def test_files_have_relions_names_and_a_run_goes_on(data: Path) -> None:
    assert classify(data, "Class3D/run") == 0
    folder = data.parent / "Class3D"
    names = {path.name for path in folder.iterdir()}
    ends = ("data.star", "model.star", "optimiser.star", "class001.mrc", "class002.mrc")
    assert {f"run{stem}_{end}" for end in ends for stem in ("", "_it003")} <= names
    assert "run_it001_class001.mrc" in names
    assert "run_it001_class002.mrc" not in names
    assert "run_classes.png" in names
    maps = [mrc.read_volume(folder / f"run_class00{k}.mrc")[0] for k in (1, 2)]
    assert maps[0].shape == (BOX,) * 3
    assert not np.array_equal(*maps)
    before = star.read(folder / "run_data.star")["particles"].floats("rlnClassNumber")
    for path in [*folder.glob("run_it003*"), *folder.glob("run_[dmoc]*")]:
        path.unlink()
    with chdir(data.parent):
        assert run(["class3d", "--continue", "Class3D/run_it002_optimiser.star", "--quiet"]) == 0
    after = star.read(folder / "run_data.star")["particles"].floats("rlnClassNumber")
    assert (before == after).mean() > 0.9


def test_skip_align_keeps_the_poses(data: Path) -> None:
    assert classify(data, "Skip/run", "--skip_align", "Sim/truth_particles.star") == 0
    found = star.read(data.parent / "Skip/run_data.star")["particles"]
    truth = star.read(data / "truth_particles.star")["particles"]
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        difference = found.floats(column) - truth.floats(column)
        np.testing.assert_allclose((difference + 180) % 360 - 180, 0, atol=0.01)


def test_sigma_ang_searches_around_the_poses(data: Path) -> None:
    assert classify(data, "Near/run", "--sigma_ang 2 --healpix_order 3 --iter 1", "Sim/truth_particles.star") == 0
    found = star.read(data.parent / "Near/run_data.star")["particles"]
    truth = star.read(data / "truth_particles.star")["particles"]
    tilt = np.abs(found.floats("rlnAngleTilt") - truth.floats("rlnAngleTilt"))
    assert 0 < tilt.max() < 15


def test_particles_of_one_state_are_told_as_such(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(data, "Repeats/run", "--repeats 2 --iter 2") == 0
    folder = data.parent / "Repeats"
    assert (folder / "run_repeat2_data.star").exists()
    said = (folder / "run.out").read_text() + (folder / "run.err").read_text()
    assert "adjusted Rand index" in said
    assert "one state" in said


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--K 81", "--K 81: expected at most as many classes as particles, Sim/particles.star has 80"),
        ("--skip_align", "Sim/particles.star: --skip_align needs the angles of the particles, found none"),
        ("--sigma_ang 3", "Sim/particles.star: searches are local, but it has no angles to start from"),
        ("--sigma_ang 0", "--sigma_ang 0: expected a positive angle, or -1 to search everywhere"),
        ("--strict_highres_exp 900", "--strict_highres_exp 900: expected at most"),
        ("--solvent_mask wide.mrc", "wide.mrc: expected voxels of"),
        ("--ref two.star --K 3", "two.star: expected 3 references (--K), found 2"),
    ],
)
def test_wrong_input_is_told_in_a_line(flags: str, line: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "\n".join(["Sim/reference.mrc"] * 2)
    (data.parent / "two.star").write_text(f"data_\n\nloop_\n_rlnReferenceImage #1\n{names}\n")
    mrc.write_volume(data.parent / "wide.mrc", np.ones((BOX,) * 3, np.float32), 99.0)
    assert classify(data, "Wrong/run", flags) == 1
    check_one_line(capsys, line)


def test_a_run_is_continued_by_its_own_job_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(data, "Own/run", "--iter 1") == 0
    before = {path.name: path.read_bytes() for path in (data.parent / "Own").iterdir()}
    with chdir(data.parent):
        assert run(["class2d", "--continue", "Own/run_it001_optimiser.star"]) == 2
    assert "is the record of class3d" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (data.parent / "Own").iterdir()}


def test_one_class_is_the_plain_run_of_the_engine(data: Path) -> None:
    assert classify(data, "One/run", "--K 1") == 0
    with chdir(data.parent):
        options = Options(
            i="Sim/particles.star",
            o="Plain/run",
            ref="Sim/reference.mrc",
            nr_classes=1,
            iter=3,
            ctf=True,
            flatten_solvent=True,
            zero_mask=True,
            particle_diameter=DIAMETER,
            healpix_order=1,
            ini_high=INI_HIGH,
            offset_range=2,
            offset_step=1,
            random_seed=1,
            quiet=True,
        )
        read = partial(read_reference, options.ref, INI_HIGH, say=print)
        inputs = read_inputs(options, lambda box, pixel_size: read(box, pixel_size)[None], print, False)
        grid = inputs.box_size, inputs.pixel_size, options.iter, -1.0, 1
        schedule = MapSchedule(options, Search(insertion_mass=0.95, insertion_cap=300), *grid)
        plain = Engine(options, inputs, schedule, 1, Job("class3d", options)).run()
    found, _ = mrc.read_volume(data.parent / "One/run_class001.mrc")
    np.testing.assert_allclose(found, plain.maps[0, 0], atol=1e-5 * np.abs(found).max())
