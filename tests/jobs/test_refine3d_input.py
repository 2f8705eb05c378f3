"""`spa refine3d` with wrong input: one line that says where and what was expected, and no file half written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star
from spa.kernels import backend
from tests.jobs import refinement
from tests.jobs.refinement import BOX, PIXEL_SIZE, check_one_line, command, read, simulate


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles of two optics groups, with paths relative to the folder above theirs."""
    above = tmp_path_factory.mktemp("input")
    with chdir(above):
        return above / simulate("Few", "--nr_particles 12 --nr_optics_groups 2")


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twelve: Path) -> Path:
    """Twelve particles in a folder of their own, to be spoilt."""
    shutil.copytree(twelve, tmp_path / "Few")
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
def test_wrong_usage_is_one_line(few: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(few, "Usage/run", flags)) == 2
    check_one_line(capsys, message)
    assert not Path("Usage").exists()


def test_a_gpu_that_is_not_there_is_an_error(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if backend.gpu_available():
        pytest.skip("this machine has a usable GPU")
    assert run(command(few, "Device/run", "--gpu 0")) == 1
    check_one_line(capsys, "--gpu 0: no usable GPU")
    assert not Path("Device").exists()
