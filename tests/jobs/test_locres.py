"""`spa postprocess --locres`: its files, what each flag changes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.cli.main import run
from spa.fsc import fsc
from spa.io import mrc, plots, star
from spa.mask import soft_mask
from tests.half_maps import planted_resolution, radius, region_maps

BOX, PIXEL = 64, 2.0
NOISE = (0.5, 0.1)
HALF1, HALF2 = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
SMALL = ("--locres", "--locres_sampling", 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = region_maps(BOX, PIXEL, NOISE)
    mrc.write_volume(HALF1, made.half1, PIXEL)
    mrc.write_volume(HALF2, made.half2, PIXEL)
    mrc.write_volume("mask.mrc", soft_mask(radius(BOX) < 22, 0.5, 2, 4), PIXEL)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of the time of a job on so small a box."""
    monkeypatch.setattr(plots, "save", lambda path, figure: None)


def postprocess(*arguments: object) -> int:
    return run(["postprocess", "--i", HALF1, "--o", "Local/p", "--j", "1", "--random_seed", "3", *map(str, arguments)])


def result(name: str) -> NDArray[np.float32]:
    return mrc.read_volume(f"Local/p{name}.mrc")[0]


def test_regions_their_filtered_map_and_the_line_about_them(folder, capsys):
    assert postprocess(*SMALL, "--mask", "mask.mrc") == 0
    local, pixel_size = mrc.read_volume("Local/p_locres.mrc")
    filtered = mrc.read_volume("Local/p_locres_filtered.mrc")[0]
    assert pixel_size == pytest.approx(PIXEL)
    assert Path("Local/p_locres.png").stat().st_size > 20_000
    assert np.isfinite(filtered).all()
    assert local.min() >= 2 * PIXEL
    assert local.max() <= 50 * (1 + 1e-6)
    z = np.indices(local.shape)[0] - BOX // 2
    inner = radius(BOX) < 24
    for side, level in zip((z < -12, z > 12), NOISE, strict=True):
        shells = BOX * PIXEL / local[side & inner]
        assert abs(np.median(shells) - BOX * PIXEL / planted_resolution(level)) < 2
    particle = region_maps(BOX, PIXEL, NOISE).particle
    for side in (z < -12, z > 12):
        errors = [np.square((volume - particle)[side]).mean() for volume in (filtered, result(""))]
        assert errors[0] < 0.95 * errors[1]
    said = capsys.readouterr().out
    assert "local resolution: median" in said
    assert "of the mask" in said


def test_without_the_flag_there_is_no_local_resolution(folder):
    assert postprocess() == 0
    assert not list(Path("Local").glob("*locres*"))


def test_each_flag_of_the_window_and_the_correction_changes_the_map(folder, no_pictures):
    flags = {
        "": (),
        "sampling": ("--locres_sampling", 20),
        "maskrad": ("--locres_maskrad", 14),
        "edgwidth": ("--locres_edgwidth", 10),
        "randomize_at": ("--locres_randomize_at", 14),
        "minres": ("--locres_minres", 5.5),
    }
    maps = {}
    for name, changed in flags.items():
        assert postprocess(*SMALL, *changed) == 0
        maps[name] = result("_locres")
    for name in flags:
        assert not name or abs(maps[name] - maps[""]).max() > 0.1
    assert maps["minres"].max() <= 5.5 * (1 + 1e-6)
    assert postprocess(*SMALL, "--locres_maskrad", 8, "--locres_edgwidth", 16) == 0
    assert np.array_equal(result("_locres"), maps[""])


def test_the_filtered_map_is_sharpened_and_weighted_as_asked(folder, no_pictures):
    assert postprocess(*SMALL) == 0
    plain = result("_locres_filtered")
    assert postprocess(*SMALL, "--adhoc_bfac", -100) == 0
    ratio = abs(np.fft.rfftn(result("_locres_filtered"))[0, 0, 6:18]) / abs(np.fft.rfftn(plain)[0, 0, 6:18])
    frequency = np.arange(6, 18) / (BOX * PIXEL)
    assert ratio == pytest.approx(np.exp(25 * frequency**2), rel=0.1)
    assert postprocess(*SMALL, "--skip_fsc_weighting") == 0
    unweighted = result("_locres_filtered")
    assert unweighted.std() > 1.02 * plain.std()
    assert fsc(unweighted, plain)[1:20].min() > 0.9


def test_the_detector_is_divided_out_of_the_filtered_map(folder, no_pictures):
    columns = {"rlnResolutionInversePixel": [0.0, 0.5], "rlnMtfValue": [1.0, 0.25]}
    star.write("mtf.star", star.StarFile([star.Block.table("mtf", columns)]))
    assert postprocess(*SMALL) == 0
    plain = np.fft.rfftn(result("_locres_filtered"))
    assert postprocess(*SMALL, "--mtf", "mtf.star") == 0
    ratio = abs(np.fft.rfftn(result("_locres_filtered"))[0, 0, 4:16]) / abs(plain[0, 0, 4:16])
    assert ratio == pytest.approx(1 / (1 - 1.5 * np.arange(4, 16) / BOX), rel=0.1)


def test_noise_is_told_to_have_no_resolution_and_takes_the_lowest(folder, capsys):
    rng = np.random.default_rng(2)
    for name in (HALF1, HALF2):
        mrc.write_volume(name, rng.normal(size=(BOX,) * 3), PIXEL)
    assert postprocess("--locres", "--locres_sampling", 20, "--locres_minres", 40) == 0
    local = result("_locres")
    assert (local > 39.9).mean() > 0.9
    assert np.isfinite(result("_locres_filtered")).all()
    streams = capsys.readouterr()
    assert "no local resolution" in streams.err or "local resolution: median" in streams.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--locres_maskrad", 40, "--locres_edgwidth", 30), "the window is 70 voxels across, the box 64"),
        (("--locres_minres", 3), "--locres_minres 3: expected more than two pixels"),
        (("--locres_randomize_at", 2), "--locres_randomize_at 2: expected more than two pixels"),
        (("--locres_maskrad", 0, "--locres_edgwidth", 0), "--locres_maskrad 0"),
    ],
)
def test_a_window_or_limit_that_cannot_be_is_told_in_one_line(folder, capsys, arguments, words):
    assert postprocess("--locres", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert words in error[0]
    assert not Path("Local/p.mrc").exists()


def test_it_can_be_stopped_between_windows(folder, no_pictures, monkeypatch, capsys):
    from spa.jobs import postprocess as module

    real = module.window_curves

    def stop_after_the_first(*arguments):
        Path("Local/RELION_JOB_ABORT_NOW").touch()
        return real(*arguments)

    monkeypatch.setattr(module, "window_curves", stop_after_the_first)
    assert postprocess("--locres", "--locres_sampling", 8) == 3
    assert "start again with: spa postprocess" in capsys.readouterr().err
    assert not list(Path("Local").glob("*locres*"))
