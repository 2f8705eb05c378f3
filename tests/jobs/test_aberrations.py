"""Beam tilt through the jobs: simulated, corrected by `spa reconstruct`, wrong columns refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.cli.main import run
from spa.fsc import fsc
from spa.io import mrc, star
from spa.io.particle_io import ParticleImages, read_particles
from tests.jobs import refinement

BOX, PIXEL = 32, 1.8
FLAGS = (
    f"--model model.pdb --nr_particles 500 --nr_micrographs 5 --box {BOX} --angpix {PIXEL} --snr 20 --seed 1 "
    "--particle_diameter 45 --j 2 --quiet"
)
TILTS = "--nr_optics_groups 2 --beam_tilt_x 6 --beam_tilt_x -5 --beam_tilt_y 4"


def write_model(path: Path) -> None:
    """A PDB file of sharp atoms in a blob about 30 Å across."""
    positions = np.random.default_rng(0).normal(size=(60, 3)) * [6.0, 5.0, 4.0]
    lines = [
        f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00           C"
        for i, (x, y, z) in enumerate(positions)
    ]
    path.write_text("\n".join([*lines, "END", ""]))


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles of a small model, nearly free of noise, of two optics groups with strong beam tilts."""
    folder = tmp_path_factory.mktemp("tilted")
    write_model(folder / "model.pdb")
    flags = FLAGS.replace("model.pdb", f"{folder}/model.pdb")
    assert run(["simulate", "--o", str(folder / "Sim"), *flags.split(), *TILTS.split()]) == 0
    return folder / "Sim"


def test_tilts_are_written_with_the_images_and_change_only_them(tilted: Path, tmp_path: Path) -> None:
    for name in ("particles.star", "truth_particles.star"):
        optics = star.read(tilted / name)["optics"]
        assert optics.floats("rlnBeamTiltX").tolist() == [6, -5]
        assert optics.floats("rlnBeamTiltY").tolist() == [4, 4]
    flags = FLAGS.replace("model.pdb", f"{tilted.parent}/model.pdb")
    assert run(["simulate", "--o", str(tmp_path / "Plain"), *flags.split(), "--nr_optics_groups", "2"]) == 0
    plain = star.read(tmp_path / "Plain" / "truth_particles.star")
    assert not any(column.startswith("rlnBeamTilt") for column in plain["optics"].columns)
    assert plain["particles"].text("rlnAngleRot") == star.read(tilted / "truth_particles.star")["particles"].text(
        "rlnAngleRot"
    )
    images = [
        ParticleImages(read_particles(f / "particles.star")).read(np.arange(3)) for f in (tilted, tmp_path / "Plain")
    ]
    assert 0.2 < np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] < 0.98


def reconstruct(source: Path, out: Path) -> NDArray[np.float32]:
    assert run(["reconstruct", "--i", str(source), "--o", str(out), "--ctf", "--quiet", "--j", "2"]) == 0
    return mrc.read(out)[0]


def test_reconstruction_corrects_the_tilt(tilted: Path, tmp_path: Path) -> None:
    truth = mrc.read_volume(tilted / "truth_map.mrc")[0]
    corrected = fsc(reconstruct(tilted / "truth_particles.star", tmp_path / "map.mrc"), truth)
    table = star.read(tilted / "truth_particles.star")
    table["optics"].drop("rlnBeamTiltX", "rlnBeamTiltY")
    star.write(tmp_path / "untold.star", table)
    uncorrected = fsc(reconstruct(tmp_path / "untold.star", tmp_path / "worse.mrc"), truth)
    assert corrected[1:14].min() > 0.9
    assert uncorrected[10:14].max() < 0.3


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rlnOddZernike", ["[0]", "0,1"], "row 2, column rlnOddZernike: expected finite numbers in brackets"),
        ("rlnEvenZernike", ["[x]", "[0]"], "row 1, column rlnEvenZernike: expected finite numbers in brackets"),
        ("rlnBeamTiltX", ["0", "much"], "row 2, column rlnBeamTiltX: expected a finite number, found 'much'"),
        ("rlnMagMat00", ["1", "0"], "row 2, columns rlnMagMat00 to rlnMagMat11: expected a matrix with a determinant"),
    ],
)
def test_wrong_columns_are_one_line(
    tilted: Path, tmp_path: Path, column: str, values: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = star.read(tilted / "truth_particles.star")
    table["optics"].set(column, values)
    shutil.copy(tilted / "truth_map.mrc", tmp_path / "reference.mrc")
    for name in ("particles.star", "truth_particles.star"):
        star.write(tmp_path / name, table)
    commands = (
        refinement.command(tmp_path, tmp_path / "Out" / "run", "--particle_diameter 40"),
        ["reconstruct", "--i", f"{tmp_path}/particles.star", "--o", f"{tmp_path}/map.mrc", "--quiet"],
    )
    for command in commands:
        assert run(command) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"particles.star: data_optics, {message}" in lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--beam_tilt_x 1 --beam_tilt_x 2", "--beam_tilt_x: expected one value, or one for each of --nr_optics_groups"),
        ("--beam_tilt_y 1 --no_ctf", "--no_ctf: a beam tilt is seen through the CTF only"),
        ("--beam_tilt_y 1000", "--beam_tilt_y 1000: expected -100 to 100"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--o", str(tmp_path / "Sim"), *flags.split()]) == 2
    assert message in capsys.readouterr().err
