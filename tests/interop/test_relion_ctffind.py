"""RELION reads the table that `spa ctffind` writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import star
from spa.io.star import Block, StarFile
from tests.jobs.test_ctffind import OPTICS, SHAPE, TRUTH, write_image, write_input
from tests.science.test_ctf_estimation import seen_through, white


def test_extraction_takes_over_the_ctf(relion: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = {"rlnMicrographOriginalPixelSize": OPTICS["rlnMicrographPixelSize"]}
    image = seen_through(white(SHAPE), TRUTH, 1.5)
    write_input([write_image("Micrographs/one.mrc", image), write_image("Micrographs/two.mrc", white(SHAPE, 4))])
    found = star.read("micrographs.star")
    for column, values in original.items():
        found["optics"].set(column, values)
    star.write("micrographs.star", found)
    common = ["--i", "micrographs.star", "--o", "CtfFind/job003", "--Box", "256", "--j", "1", "--random_seed", "1"]
    assert run(["ctffind", *common, "--dFMax", "30000"]) == 0
    for name in ("one", "two"):
        Path("picks/Micrographs").mkdir(parents=True, exist_ok=True)
        picks = {"rlnCoordinateX": [200.0, 400.0], "rlnCoordinateY": [200.0, 300.0]}
        star.write(f"picks/Micrographs/{name}_picks.star", StarFile([Block.table("", picks)]))
    program = [str(relion / "relion_preprocess"), "--i", "CtfFind/job003/micrographs_ctf.star"]
    program += ["--coord_dir", "picks/", "--coord_suffix", "_picks.star", "--extract", "--extract_size", "64"]
    program += ["--part_dir", "Extract/", "--part_star", "particles.star"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    particles = star.read("particles.star")["particles"]
    ours = star.read("CtfFind/job003/micrographs_ctf.star")["micrographs"]
    assert len(particles) == 4
    rows = [ours.text("rlnMicrographName").index(name) for name in particles.text("rlnMicrographName")]
    for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnCtfFigureOfMerit", "rlnCtfMaxResolution"):
        assert np.allclose(particles.floats(column), ours.floats(column)[rows], rtol=1e-4, atol=1e-3), column


@pytest.mark.parametrize("name", ["20170629_00021", "20170629_00026", "20170629_00031"])
def test_real_spectra_agree_with_published_values(shared_data: Path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shared_data / "bgal_power_spectra"
    tables = star.read(folder / "reference_ctf.star")
    reference = tables["micrographs"]
    row = next(i for i, text in enumerate(reference.text("spectrum")) if name in text)
    columns = {
        "rlnMicrographName": [f"{name}.mrc"],
        "rlnCtfPowerSpectrum": [str(folder / reference.text("spectrum")[row])],
        "rlnOpticsGroup": [1],
    }
    star.write("micrographs.star", StarFile([tables["optics"], Block.table("micrographs", columns)]))
    assert run(["ctffind", "--i", "micrographs.star", "--o", "out", "--use_given_ps", "--j", "1", "--quiet"]) == 0
    found = star.read("out/micrographs_ctf.star")["micrographs"]

    def vector(table: Block, at: int) -> complex:
        length = table.floats("rlnDefocusU")[at] - table.floats("rlnDefocusV")[at]
        return length * np.exp(2j * np.radians(table.floats("rlnDefocusAngle")[at]))

    for column in ("rlnDefocusU", "rlnDefocusV"):
        assert found.floats(column)[0] == pytest.approx(reference.floats(column)[row], abs=80)
    assert abs(vector(found, 0) - vector(reference, row)) < 100
    assert found.integers("spaCtfTrusted").tolist() == [1]
