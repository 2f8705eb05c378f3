"""What a refinement writes, read by the programs of an installed RELION."""

from __future__ import annotations

import subprocess
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.fourier import low_pass
from spa.fsc import fsc, resolution_shell
from spa.io import star
from tests.jobs import refinement
from tests.jobs.refinement import BOX, MAPS, PIXEL_SIZE, command, correlation, read, simulate


@pytest.fixture(scope="module")
def refined(relion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a refinement, and a mask."""
    folder = tmp_path_factory.mktemp("refined")
    with chdir(folder):
        simulate("Sim", "--nr_particles 80 --snr 2")
        assert run(command("Sim", "Refine3D/run")) == 0
        assert run(["mask", "--i", f"Refine3D/{MAPS[0]}", "--o", "mask.mrc", "--j", "2", "--quiet"]) == 0
    return folder


def call(relion: Path, folder: Path, program: str, *arguments: str) -> None:
    done = subprocess.run([relion / program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_relion_reconstructs_our_map_from_our_poses(relion: Path, refined: Path) -> None:
    table = ["--i", "Refine3D/run_data.star", "--o", "theirs.mrc", "--ctf", "--sym", "C1"]
    call(relion, refined, "relion_reconstruct", *table, "--angpix", str(PIXEL_SIZE))
    theirs = read(refined / "theirs.mrc")
    half1, half2 = (read(refined / "Refine3D" / name) for name in MAPS[1:])
    shell = resolution_shell(refinement.half_map_fsc(refined / "Refine3D"))
    ours, as_far = (low_pass(v, PIXEL_SIZE, BOX * PIXEL_SIZE / shell) for v in ((half1 + half2) / 2, theirs))
    assert correlation(ours, as_far) > 0.9  # ours weighs many poses of each image, theirs the best one
    assert (fsc(ours, as_far, refinement.sphere())[:8] > 0.95).all()
    assert correlation(ours, np.roll(as_far[::-1], 1, axis=0)) < 0.8


@pytest.mark.parametrize("half", [1, 2])
def test_relion_reconstructs_our_half_maps(relion: Path, refined: Path, half: int) -> None:
    table = ["--i", "Refine3D/run_data.star", "--o", f"half{half}.mrc", "--ctf", "--subset", str(half)]
    call(relion, refined, "relion_reconstruct", *table, "--angpix", str(PIXEL_SIZE))
    shell = resolution_shell(refinement.half_map_fsc(refined / "Refine3D"))
    names = [f"Refine3D/{MAPS[half]}", f"half{half}.mrc", f"Refine3D/{MAPS[3 - half]}"]
    mine, theirs, other = (low_pass(read(refined / f), PIXEL_SIZE, BOX * PIXEL_SIZE / shell) for f in names)
    assert correlation(mine, theirs) > 0.9
    assert correlation(mine, theirs) > correlation(other, theirs)


def test_relion_postprocesses_our_half_maps_and_mask(relion: Path, refined: Path) -> None:
    half = f"Refine3D/{MAPS[1]}"
    common = ["--i", half, "--mask", "mask.mrc", "--angpix", str(PIXEL_SIZE)]
    (refined / "theirs").mkdir()
    call(relion, refined, "relion_postprocess", *common, "--o", "theirs/postprocess", "--low_pass", "-1")
    with chdir(refined):
        assert run(["postprocess", *common, "--o", "ours/postprocess", "--random_seed", "1", "--quiet"]) == 0
    found = [star.read(refined / name) for name in ("ours/postprocess.star", "theirs/postprocess.star")]
    shells = [round(BOX * PIXEL_SIZE / table["general"].get_float("rlnFinalResolution")) for table in found]
    assert abs(shells[0] - shells[1]) <= 1
    masked = [table["fsc"].floats("rlnFourierShellCorrelationMaskedMaps")[1:] for table in found]
    np.testing.assert_allclose(masked[0], masked[1], atol=1e-4)
    assert correlation(read(refined / "ours/postprocess.mrc"), read(refined / "theirs/postprocess.mrc")) > 0.95
