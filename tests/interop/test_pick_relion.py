"""Picks of real micrographs against hand picks, and RELION reads what `spa pick` writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star

DEFOCUS = {
    "apof_030502.mrc": (19871, 19050, -54.0),
    "apof_031302.mrc": (22379, 21385, -54.9),
    "apof_031502.mrc": (22924, 21857, -57.8),
    "apof_043227.mrc": (16950, 16384, -49.2),
    "apof_052439.mrc": (16615, 16187, -58.9),
    "apof_053100.mrc": (22262, 21916, -51.1),
    "apof_055701.mrc": (21520, 21401, -39.9),
    "apof_071335.mrc": (19741, 19438, -50.9),
}
"""Defocus U, V and angle as `spa ctffind` finds them."""

RELION_READS = 2  # micrographs, which RELION 3.1 wants in single precision


@pytest.fixture
def apoferritin(shared_data: Path, tmp_path, monkeypatch) -> Path:
    """A project with the eight real micrographs and their CTF."""
    monkeypatch.chdir(tmp_path)
    folder = shared_data / "apoferritin"
    found = star.read(folder / "micrographs.star")
    table = found["micrographs"]
    names = [Path(name).name for name in table.text("rlnMicrographName")]
    table.set("rlnMicrographName", [str(folder / "micrographs" / name) for name in names])
    for i, column in enumerate(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")):
        table.set(column, [float(DEFOCUS[name][i]) for name in names])
    star.write("micrographs.star", found)
    return folder


@pytest.mark.parametrize(("kind", "skip", "least"), [("LoG", "0", 0.92), ("ref", "0", 0.92), ("ref", "-1000", 0.95)])
def test_hand_picks_are_found_again(apoferritin, kind, skip, least):
    command = ["pick", "--i", "micrographs.star", "--odir", "Pick", "--j", "2", "--random_seed", "1", "--quiet"]
    if kind == "LoG":
        command += ["--LoG", "--LoG_diam_min", "110", "--LoG_diam_max", "140"]
    else:
        command += ["--ref", str(apoferritin / "reference_30A.mrc"), "--sym", "O"]
    assert run([*command, "--skip_side", skip, "--evaluate", str(apoferritin / "picks" / "*.star")]) == 0
    found = star.read("Pick/autopick_evaluation.star")["general"]
    assert found.get_float("spaF1") >= least
    assert found.get_float("spaMedianOffset") <= 8


def test_relion_extracts_at_the_picks(apoferritin, relion: Path):
    found = star.read("micrographs.star")
    table = found["micrographs"].rows(np.arange(RELION_READS))
    names = [f"micrographs/{Path(name).name}" for name in table.text("rlnMicrographName")]
    for name in names:
        mrc.write_volume(name, mrc.read(apoferritin / name)[0][0], 1.5)
    table.set("rlnMicrographName", names)
    found.put(table)
    star.write("micrographs.star", found)
    command = ["pick", "--i", "micrographs.star", "--odir", "Pick/job004", "--j", "1", "--random_seed", "1", "--quiet"]
    assert run([*command, "--LoG", "--LoG_diam_min", "110", "--LoG_diam_max", "140"]) == 0
    program = [str(relion / "relion_preprocess"), "--i", "micrographs.star", "--coord_dir", "Pick/job004/"]
    program += ["--coord_suffix", "_autopick.star", "--extract", "--extract_size", "128", "--part_dir", "Extract/"]
    done = subprocess.run([*program, "--part_star", "particles.star"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    particles = star.read("particles.star")["particles"]
    counts = star.read("Pick/job004/micrographs_picked.star")["micrographs"].integers("spaNrPicks")
    assert len(particles) == counts.sum()
    ours = star.read("Pick/job004/micrographs/apof_030502_autopick.star")[""]
    assert particles.floats("rlnCoordinateX")[: len(ours)].tolist() == pytest.approx(
        ours.floats("rlnCoordinateX").tolist(), abs=1e-3
    )
    assert particles.floats("rlnAutopickFigureOfMerit").min() > 0
