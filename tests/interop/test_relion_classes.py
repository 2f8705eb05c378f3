"""Classes that the installed RELION made, selected here by number, by rank and by what is stable."""

from __future__ import annotations

import subprocess
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import class_tables, star

STEM = "Class2D/run_it002"


@pytest.fixture(scope="module")
def classified(relion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two iterations of RELION's 2D classification of simulated particles."""
    folder = tmp_path_factory.mktemp("classes")
    with chdir(folder):
        flags = "--nr_particles 60 --nr_micrographs 3 --box 32 --angpix 6.5 --snr 1 --seed 1 --quiet"
        assert run(["simulate", "--o", "Sim", *flags.split()]) == 0
        Path("Class2D").mkdir()
        flags = (
            "--i Sim/particles.star --o Class2D/run --K 3 --iter 2 --tau2_fudge 2 --particle_diameter 180 --ctf "
            "--psi_step 20 --offset_range 2 --offset_step 2 --oversampling 0 --flatten_solvent --zero_mask --j 2 "
            "--random_seed 1 --dont_check_norm"
        )
        program = [relion / "relion_refine", *flags.split()]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_class_averages_are_read_as_they_are(classified: Path) -> None:
    with chdir(classified):
        found = class_tables.read_averages(f"{STEM}_model.star")
    assert found.images.shape == (3, 32, 32)
    assert found.diameter == 180
    assert found.pixel_size == pytest.approx(6.5)
    assert found.shares.sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("source", ["data", "model"])
def test_ranking_and_numbers(classified: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(classified)
    numbers = star.read(f"{STEM}_data.star")["particles"].integers("rlnClassNumber")
    command = ["select", "--i", f"{STEM}_{source}.star", "--quiet"]
    assert run([*command, "--o", "auto.star", "--auto", "--min_score", "0"]) == 0
    scores = star.read("auto.star")["particles"].floats("rlnPredictedClassScore")
    ranking = star.read("auto_classes.star")["class_averages"]
    by_class = dict(
        zip(ranking.integers("rlnClassNumber").tolist(), ranking.floats("rlnPredictedClassScore"), strict=True)
    )
    np.testing.assert_allclose(scores, [by_class[n] for n in numbers.tolist()], atol=1e-5)
    assert run([*command, "--o", "one.star", "--classes", str(numbers[0])]) == 0
    assert len(star.read("one.star")["particles"]) == (numbers == numbers[0]).sum()
    assert run([*command, "--o", "core.star", "--stable", "Class2D/run_it001_data.star"]) == 0
