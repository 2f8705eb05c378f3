"""From movies to CTF fits, job after job, as the README has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star


@pytest.mark.slow
def test_simulated_movies_come_to_the_defocus_they_were_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    movies = ["--nr_micrographs", "2", "--nr_particles", "20", "--micrograph_size", "768", "--angpix", "1.5"]
    movies += ["--nr_frames", "8", "--dose", "60", "--defocus_min", "10000", "--defocus_max", "20000", "--ice", "0.5"]
    common = ["--j", "1", "--quiet", "--random_seed", "5"]
    assert run(["simulate", "--kind", "movies", "--o", "mov", *movies, *common]) == 0
    motion = ["--gainref", "mov/gain.mrc", "--dose_weighting", "--dose_per_frame", "7.5", "--grouping_for_ps", "2"]
    assert run(["motioncorr", "--i", "mov/movies.star", "--o", "Motion", *motion, *common]) == 0
    corrected = star.read("Motion/corrected_micrographs.star")["micrographs"]
    for name in corrected.text("rlnCtfPowerSpectrum"):
        spectrum, _ = mrc.read(name.partition(":")[0])
        assert spectrum.min() >= 0
        assert spectrum.max() < 500 * np.median(spectrum)
    truth = star.read("mov/truth_ctf.star")["micrographs"]
    for given in ([], ["--use_given_ps"]):
        folder = f"Ctf{len(given)}"
        assert run(["ctffind", "--i", "Motion/corrected_micrographs.star", "--o", folder, *given, *common]) == 0
        found = star.read(f"{folder}/micrographs_ctf.star")["micrographs"]
        for label in ("rlnDefocusU", "rlnDefocusV"):
            np.testing.assert_allclose(found.floats(label), truth.floats(label), atol=150)
