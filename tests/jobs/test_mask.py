"""`spa mask`: from a map to a mask and its picture, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc
from spa.mask import soft_mask
from tests.half_maps import half_maps, radius

PIXEL = 2.0


@pytest.fixture
def maps():
    return half_maps(pixel_size=PIXEL, noise=0.5)


@pytest.fixture
def folder(tmp_path, monkeypatch, maps):
    monkeypatch.chdir(tmp_path)
    mrc.write_volume("map.mrc", (maps.half1 + maps.half2) / 2, PIXEL)
    mrc.write_volume("ball.mrc", (radius(64) <= 15).astype(np.float32), PIXEL)
    return tmp_path


def spa_mask(*arguments: object) -> int:
    return run(["mask", "--o", "out/mask.mrc", "--j", "1", *map(str, arguments)])


def test_a_noisy_map_gets_a_soft_mask_around_its_particle(folder, maps, capsys):
    assert spa_mask("--i", "map.mrc") == 0
    mask, pixel_size = mrc.read_volume("out/mask.mrc")
    assert pixel_size == pytest.approx(PIXEL)
    assert (mask.min(), mask.max()) == (0, 1)
    assert mask[maps.support].min() > 0.8
    assert mask.mean() < 6 * maps.support.mean()
    told = capsys.readouterr().out
    assert "found automatically" in told
    assert f"{mask.mean():.2%} of the box" in told
    assert Path("out/mask.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/RELION_JOB_EXIT_SUCCESS").exists()


def test_a_given_threshold_is_taken_without_a_filter(folder):
    assert spa_mask("--i", "ball.mrc", "--ini_threshold", 0.5, "--extend_inimask", 2, "--width_soft_edge", 4) == 0
    ball = mrc.read_volume("ball.mrc")[0]
    assert np.array_equal(mrc.read_volume("out/mask.mrc")[0], soft_mask(ball, 0.5, 2, 4))


def test_invert_gives_the_solvent(folder):
    assert spa_mask("--i", "ball.mrc", "--ini_threshold", 0.5, "--invert") == 0
    inverted = mrc.read_volume("out/mask.mrc")[0]
    assert inverted[32, 32, 32] == 0
    assert inverted[0, 0, 0] == 1


def test_angpix_overrules_the_header(folder):
    assert spa_mask("--i", "map.mrc", "--angpix", 3.0) == 0
    assert mrc.read_volume("out/mask.mrc")[1] == pytest.approx(3.0)


def test_a_mask_cut_by_the_box_is_warned_of(folder, capsys):
    assert spa_mask("--i", "ball.mrc", "--ini_threshold", 0.5, "--extend_inimask", 14) == 0
    warnings = capsys.readouterr().err
    assert "reaches the edge of the box" in warnings
    assert spa_mask("--i", "ball.mrc", "--ini_threshold", 0.5, "--extend_inimask", 5) == 0
    assert "edge of the box" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--i", "map.mrc", "--ini_threshold", 1e6), "empty mask"),
        (("--i", "map.mrc", "--ini_threshold", -1e6), "mask of everything"),
        (("--i", "ball.mrc", "--ini_threshold", 0.5, "--extend_inimask", -20), "empty mask"),
        (("--i", "ball.mrc", "--ini_threshold", 0.5, "--extend_inimask", 60), "mask of everything"),
        (("--i", "noise.mrc"), "no density stands out"),
        (("--i", "nan.mrc"), "finite"),
        (("--i", "missing.mrc"), "missing.mrc"),
        (("--i", "odd.mrc"), "even box"),
    ],
)
def test_wrong_input_is_told_in_one_line(folder, capsys, arguments, words):
    mrc.write_volume("noise.mrc", np.random.default_rng(0).normal(size=(32, 32, 32)), PIXEL)
    mrc.write_volume("odd.mrc", np.zeros((33, 33, 33)), PIXEL)
    with_nan = np.zeros((32, 32, 32))
    with_nan[3, 4, 5] = np.nan
    mrc.write_volume("nan.mrc", with_nan, PIXEL)
    assert spa_mask(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert arguments[1] in error
    assert not Path("out/mask.mrc").exists()
