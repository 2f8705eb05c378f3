"""`spa reconstruct`: the truth comes back, every option matters, wrong input is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.cli.main import run
from spa.fourier import low_pass, resample
from spa.fsc import fsc
from spa.io import mrc, star
from tests.jobs.model import write_model

BOX, PIXEL = 32, 3.5
Reconstruct = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 nearly noise-free particles with their truth."""
    folder = tmp_path_factory.mktemp("reconstruct")
    write_model(folder / "model.pdb")
    flags = f"--model {folder}/model.pdb --nr_particles 600 --box {BOX} --angpix {PIXEL} --snr 20 --seed 1 --quiet"
    assert run(["simulate", "--o", str(folder / "Sim"), *flags.split()]) == 0
    return folder / "Sim"


@pytest.fixture
def reconstruct(simulated: Path, tmp_path: Path) -> Reconstruct:
    """Run the job on the truth STAR file (or another) and return the map."""

    def ran(extra: str = "", source: Path | None = None) -> NDArray[np.float32]:
        out = tmp_path / "map.mrc"
        source = source or simulated / "truth_particles.star"
        assert run(["reconstruct", "--i", str(source), "--o", str(out), "--quiet", "--j", "2", *extra.split()]) == 0
        return mrc.read(out)[0]

    return ran


@pytest.fixture
def truth(simulated: Path) -> NDArray[np.float32]:
    return mrc.read_volume(simulated / "truth_map.mrc")[0]


def test_truth_comes_back_with_its_grey_scale(
    reconstruct: Reconstruct, simulated: Path, truth: NDArray[np.float32]
) -> None:
    found = reconstruct("--ctf")
    curve = fsc(found, truth)
    assert curve[1 : 3 * BOX // 8].min() > 0.97
    assert curve[3 * BOX // 8 : BOX // 2 - 1].min() > 0.9
    # normalisation divided the images by more than one, since much of their signal lies outside the circle
    line = next(line for line in (simulated / "run.out").read_text().splitlines() if "divided by" in line)
    scale = float(line.split("divided by ")[1].split()[0])
    low = low_pass(truth, PIXEL, 9.0)
    assert scale * (found * low).sum() / (truth * low).sum() == pytest.approx(1.0, abs=0.04)


def test_without_ctf_correction_the_map_is_worse(reconstruct: Reconstruct, truth: NDArray[np.float32]) -> None:
    assert fsc(reconstruct(), truth)[2:14].mean() < fsc(reconstruct("--ctf"), truth)[2:14].mean() - 0.2


def test_half_sets_differ_and_add_up(reconstruct: Reconstruct, simulated: Path, tmp_path: Path) -> None:
    one, two, both = (reconstruct(f"--ctf {flags}") for flags in ("--subset 1", "--subset 2", ""))
    assert not np.allclose(one, two, atol=1e-3)
    assert fsc(one, two)[1:12].min() > 0.9
    table = star.read(simulated / "truth_particles.star")
    rows = table["particles"].integers("rlnRandomSubset") == 1
    table.put(table["particles"].rows(rows))
    star.write(tmp_path / "half.star", table)
    alone = reconstruct("--ctf", tmp_path / "half.star")
    assert alone == pytest.approx(one, abs=1e-4 * float(np.abs(one).max()))
    assert both != pytest.approx(one, abs=1e-4 * float(np.abs(one).max()))


def test_class_selects_particles(reconstruct: Reconstruct, simulated: Path, tmp_path: Path) -> None:
    table = star.read(simulated / "truth_particles.star")
    n = len(table["particles"])
    table["particles"].set("rlnClassNumber", np.where(np.arange(n) % 2 == 0, 1, 2))
    star.write(tmp_path / "classes.star", table)
    assert reconstruct("--ctf --class 2", tmp_path / "classes.star") == pytest.approx(
        reconstruct("--ctf --subset 2"), abs=1e-5
    )


def test_symmetry_is_imposed(reconstruct: Reconstruct) -> None:
    inner = reconstruct("--ctf --sym D2")[1:, 1:, 1:]
    for turned in (inner[:, ::-1, ::-1], inner[::-1, ::-1], inner[::-1, :, ::-1]):
        assert np.corrcoef(inner.ravel(), turned.ravel())[0, 1] > 0.9999


def test_resolution_limit_and_padding(reconstruct: Reconstruct, truth: NDArray[np.float32]) -> None:
    full, limited = reconstruct("--ctf"), reconstruct("--ctf --maxres 14")
    shell = round(BOX * PIXEL / 14)
    power = np.abs(np.fft.rfftn(limited))
    k = np.fft.fftfreq(BOX, 1 / BOX)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(BOX // 2 + 1) ** 2)
    assert power[radius > shell + 2].max() < 0.15 * power[(radius > shell - 2) & (radius < shell)].mean()
    assert fsc(limited, full)[1 : shell - 1].min() > 0.99
    padded = reconstruct("--ctf --pad 3")
    assert fsc(padded, truth)[1:12].min() > 0.97
    assert not np.allclose(padded, full, atol=1e-4)


def test_another_pixel_size_rescales_the_map(reconstruct: Reconstruct, truth: NDArray[np.float32]) -> None:
    coarse = reconstruct("--ctf --angpix 4.2")
    expected = resample(truth, PIXEL, 4.2, BOX)
    assert fsc(coarse, expected)[1:12].min() > 0.95
    assert fsc(coarse, truth)[6:12].mean() < 0.9
    # the density is per voxel, and stays
    low = low_pass(expected, 4.2, 12.0)
    ratio = (coarse * low).sum() / (expected * low).sum()
    full = reconstruct("--ctf")
    low = low_pass(truth, PIXEL, 12.0)
    assert ratio == pytest.approx((full * low).sum() / (truth * low).sum(), rel=0.04)


def test_the_header_has_the_pixel_size(reconstruct: Reconstruct, tmp_path: Path) -> None:
    reconstruct("--ctf --angpix 4.2")
    assert mrc.info(tmp_path / "map.mrc").pixel_size == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--i {sim}/particles.star", "no column rlnAngleRot, which a reconstruction needs"),
        ("--i {sim}/missing.star", "missing.star: cannot be read: No such file or directory"),
        ("--i {sim}/truth_particles.star --class 7", "no particle is in half set -1 and class 7"),
        ("--i {sim}/truth_particles.star --sym X", "symmetry group 'X'"),
        ("--i {sim}/truth_particles.star --maxres 900", "--maxres 900: expected less than the box, 112 Å"),
    ],
)
def test_wrong_input_is_one_line(
    simulated: Path, tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reconstruct", "--o", str(tmp_path / "x.mrc"), *flags.format(sim=simulated).split()]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "x.mrc").exists()


def test_an_output_that_is_a_folder_is_refused(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(simulated / "truth_particles.star")
    assert run(["reconstruct", "--i", source, "--o", str(tmp_path) + "/"]) == 1
    assert "expected the name of a file, found a folder" in capsys.readouterr().err
