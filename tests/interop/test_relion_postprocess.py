"""Postprocessing and mask making against the programs of an installed RELION, on the same maps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.fsc import fsc
from spa.io import mrc, star
from spa.mask import soft_mask
from spa.sharpen import sharpen
from tests.half_maps import HalfMaps, blurred, half_maps

HALF1, HALF2 = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
SHELL, MASKED = "rlnSpectralIndex", "rlnFourierShellCorrelationMaskedMaps"
UNMASKED, CORRECTED = "rlnFourierShellCorrelationUnmaskedMaps", "rlnFourierShellCorrelationCorrected"


def both(relion: Path, arguments: list[str]) -> tuple[star.StarFile, star.StarFile]:
    """Run both programs on the half maps of this folder: (ours, RELION's) tables."""
    for folder in ("ours", "theirs"):
        Path(folder).mkdir(exist_ok=True)
    common = ["--i", HALF1, "--mask", "mask.mrc", *arguments]
    assert run(["postprocess", *common, "--o", "ours/postprocess", "--j", "1", "--random_seed", "1"]) == 0
    program = [str(relion / "relion_postprocess"), *common, "--o", "theirs/postprocess"]
    if "--low_pass" not in arguments:
        program += ["--low_pass", "-1"]
    subprocess.run(program, check=True, capture_output=True)
    return star.read("ours/postprocess.star"), star.read("theirs/postprocess.star")


def resolution_shell(tables: star.StarFile, box: int, pixel_size: float) -> int:
    return round(box * pixel_size / tables["general"].get_float("rlnFinalResolution"))


@pytest.fixture(params=[(64, 2.0, 200.0, 0.15), (96, 1.4, 120.0, 0.3)], ids=["64px", "96px"])
def maps(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return written(*request.param)


def written(box: int, pixel_size: float, bfactor: float, noise: float) -> HalfMaps:
    """Half maps and mask as files in the current folder."""
    made = half_maps(box, pixel_size, bfactor, noise)
    mrc.write_volume(HALF1, made.half1, pixel_size)
    mrc.write_volume(HALF2, made.half2, pixel_size)
    mrc.write_volume("mask.mrc", soft_mask(made.support, 0.5, 3, 6), pixel_size)
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--auto_bfac"],
        ["--auto_bfac", "--autob_lowres", "12", "--autob_highres", "6"],
        ["--adhoc_bfac", "-100", "--skip_fsc_weighting", "--low_pass", "7"],
    ],
    ids=["auto", "range", "adhoc"],
)
def test_curves_resolution_bfactor_and_map_agree(relion, maps, arguments):
    box, pixel_size = len(maps.half1), maps.pixel_size
    ours, theirs = both(relion, ["--angpix", str(pixel_size), *arguments])
    for column in (UNMASKED, MASKED):
        assert ours["fsc"].floats(column)[1:] == pytest.approx(theirs["fsc"].floats(column)[1:], abs=1e-5)
    assert ours["fsc"].integers(SHELL).tolist() == theirs["fsc"].integers(SHELL).tolist()
    assert ours["general"].get_float("rlnRandomiseFrom") == pytest.approx(
        theirs["general"].get_float("rlnRandomiseFrom"), abs=1e-3
    )
    # the random phases are not the same ones
    assert np.median(np.abs(ours["fsc"].floats(CORRECTED) - theirs["fsc"].floats(CORRECTED))) < 0.03
    assert abs(resolution_shell(ours, box, pixel_size) - resolution_shell(theirs, box, pixel_size)) <= 1
    assert ours["general"].get_float("rlnBfactorUsedForSharpening") == pytest.approx(
        theirs["general"].get_float("rlnBfactorUsedForSharpening"), rel=0.1
    )
    original = "rlnLogAmplitudesOriginal"
    assert ours["guinier"].floats(original) == pytest.approx(theirs["guinier"].floats(original), abs=1e-4)
    assert set(theirs["guinier"].columns) == set(ours["guinier"].columns)
    assert set(ours["fsc"].columns) <= set(theirs["fsc"].columns)
    assert set(ours["general"].columns) <= set(theirs["general"].columns)
    pair = [mrc.read_volume(f"{who}/postprocess.mrc")[0] for who in ("ours", "theirs")]
    last = min(resolution_shell(t, box, pixel_size) for t in (ours, theirs)) - 2
    last = min(last, round(box * pixel_size / 7) - 1) if "--low_pass" in arguments else last
    assert fsc(*pair)[1:last].min() > 0.999


@pytest.mark.parametrize("detector", ["falcon2_300kV", "falcon4EC_300kV", "k2_300kV"])
def test_division_by_a_real_mtf_agrees(relion, shared_data, tmp_path, monkeypatch, detector):
    monkeypatch.chdir(tmp_path)
    maps = written(64, 2.0, 200.0, 0.15)
    mtf = shared_data / "star_vintages" / "relion_mtf" / f"mtf_{detector}.star"
    arguments = ["--angpix", str(maps.pixel_size), "--mtf", str(mtf), "--mtf_angpix", "1.1", "--auto_bfac"]
    ours, theirs = both(relion, arguments)
    assert ours["general"].get_float("rlnBfactorUsedForSharpening") == pytest.approx(
        theirs["general"].get_float("rlnBfactorUsedForSharpening"), rel=0.1
    )
    divided = "rlnLogAmplitudesMTFCorrected"
    assert ours["guinier"].floats(divided) == pytest.approx(theirs["guinier"].floats(divided), abs=3e-3)


def test_the_same_corrected_curve_gives_the_same_bfactor(relion, maps):
    """Without the part of chance, the random phases."""
    _, theirs = both(relion, ["--angpix", str(maps.pixel_size), "--auto_bfac"])
    curve = theirs["fsc"].floats(CORRECTED)
    result = sharpen((maps.half1 + maps.half2) / 2, maps.pixel_size, curve, bfactor=None)
    general = theirs["general"]
    assert result.bfactor == pytest.approx(general.get_float("rlnBfactorUsedForSharpening"), rel=0.01)
    assert result.fit is not None
    assert result.fit.intercept == pytest.approx(general.get_float("rlnFittedInterceptGuinierPlot"), abs=0.01)
    assert result.fit.correlation == pytest.approx(general.get_float("rlnCorrelationFitGuinierPlot"), abs=0.01)


@pytest.mark.parametrize(("extend", "edge"), [(0, 0), (3, 6), (4, 0), (-2, 5)])
def test_masks_are_those_of_relion_mask_create(relion, tmp_path, monkeypatch, extend, edge):
    monkeypatch.chdir(tmp_path)
    made = half_maps(noise=0.0)
    volume = blurred(made.particle, 2.0, 300)
    mrc.write_volume("map.mrc", volume, 2.0)
    flags = ["--ini_threshold", "0.3", "--extend_inimask", str(extend), "--width_soft_edge", str(edge)]
    program = [str(relion / "relion_mask_create"), "--i", "map.mrc", "--o", "theirs.mrc", *flags]
    subprocess.run(program, check=True, capture_output=True)
    theirs = mrc.read_volume("theirs.mrc")[0]
    assert 0 < theirs.mean() < 0.5
    assert soft_mask(volume, 0.3, extend, edge) == pytest.approx(theirs, abs=1e-5)
