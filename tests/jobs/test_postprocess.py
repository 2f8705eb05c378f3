"""`spa postprocess`: its files, its numbers against what was planted, its doubts and refusals."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from spa.cli.main import run
from spa.fsc import fsc
from spa.io import mrc, star
from spa.mask import soft_mask
from tests.half_maps import HalfMaps, half_maps, radius

PIXEL, BFACTOR = 2.0, 120.0
HALF1, HALF2 = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"


@pytest.fixture(scope="module")
def maps():
    return half_maps(pixel_size=PIXEL, bfactor=BFACTOR, noise=0.6)


@pytest.fixture
def folder(tmp_path, monkeypatch, maps):
    monkeypatch.chdir(tmp_path)
    write_inputs(maps)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, maps):
    """A folder in which the job has run with a mask and an automatic B-factor, given the second half map."""
    folder = tmp_path_factory.mktemp("postprocess")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs(maps)
        assert postprocess("--i", HALF2, "--mask", "mask.mrc", "--auto_bfac") == 0
    return folder


def write_inputs(maps: HalfMaps) -> None:
    mrc.write_volume(HALF1, maps.half1, PIXEL)
    mrc.write_volume(HALF2, maps.half2, PIXEL)
    mrc.write_volume("mask.mrc", soft_mask(maps.support, 0.5, 3, 6), PIXEL)


def postprocess(*arguments: object) -> int:
    common = ["--o", "Post/job001/postprocess", "--j", "1", "--random_seed", "3"]
    return run(["postprocess", *common, *map(str, arguments)])


def result(name: str) -> Path:
    return Path("Post/job001") / f"postprocess{name}"


def test_all_files_are_written(finished):
    for name in (".mrc", "_masked.mrc", ".star", "_fsc.xml", "_fsc.png", "_guinier.png", "_slices.png"):
        assert (finished / result(name)).stat().st_size > 0
    volume, pixel_size = mrc.read_volume(finished / result(".mrc"))
    assert pixel_size == pytest.approx(PIXEL)
    masked = mrc.read_volume(finished / result("_masked.mrc"))[0]
    assert masked == pytest.approx(volume * mrc.read_volume(finished / "mask.mrc")[0], abs=1e-6)
    assert "final resolution" in (finished / "Post/job001/run.out").read_text()
    assert (finished / "Post/job001/RELION_JOB_EXIT_SUCCESS").exists()


def test_the_tables_have_the_labels_relion_gives_them(finished):
    general, curve, guinier = star.read(finished / result(".star"))
    assert [block.name for block in (general, curve, guinier)] == ["general", "fsc", "guinier"]
    assert general.get_text("rlnUnfilteredMapHalf1") == HALF2
    assert general.get_text("rlnUnfilteredMapHalf2") == HALF1
    assert general.get_text("rlnMaskName") == "mask.mrc"
    corrected = curve.floats("rlnFourierShellCorrelationCorrected")
    last = int(np.flatnonzero(corrected[1:] < 0.143)[0])
    assert general.get_float("rlnFinalResolution") == pytest.approx(64 * PIXEL / last, abs=1e-4)
    assert curve.floats("rlnAngstromResolution")[1:] == pytest.approx(64 * PIXEL / np.arange(1, 33), abs=1e-4)
    assert general.get_float("rlnBfactorUsedForSharpening") == pytest.approx(
        4 * general.get_float("rlnFittedSlopeGuinierPlot"), abs=1e-3
    )
    steps = ("Original", "Weighted", "Sharpened", "Intercept")
    assert guinier.columns == ["rlnResolutionSquared", *(f"rlnLogAmplitudes{step}" for step in steps)]


def test_the_xml_holds_the_curve(finished):
    root = ElementTree.parse(finished / result("_fsc.xml")).getroot()
    assert root.tag == "fsc"
    points = [(float(p.findtext("x")), float(p.findtext("y"))) for p in root.findall("coordinate")]
    curve = star.read(finished / result(".star"))["fsc"].floats("rlnFourierShellCorrelationCorrected")
    assert [y for _, y in points] == pytest.approx(curve, abs=1e-5)
    assert [x for x, _ in points] == pytest.approx(np.arange(33) / (64 * PIXEL), abs=1e-6)


def test_sharpening_flattens_the_spectrum_and_leaves_the_phases(finished, maps):
    guinier = star.read(finished / result(".star"))["guinier"]
    inverse_d2, weighted = guinier.floats("rlnResolutionSquared"), guinier.floats("rlnLogAmplitudesWeighted")
    used = (inverse_d2 >= 0.01) & (weighted > -99)
    used[-1] = False  # beyond Nyquist, in the corners, there is nothing left
    before, after = (
        np.polyfit(inverse_d2[used], values[used], 1)[0]
        for values in (weighted, guinier.floats("rlnLogAmplitudesSharpened"))
    )
    assert before < -15
    assert abs(after) < 1
    volume = mrc.read_volume(finished / result(".mrc"))[0]
    assert fsc(volume, (maps.half1 + maps.half2) / 2)[1:20] == pytest.approx(np.ones(19), abs=0.01)


def test_the_mask_raises_the_resolution_of_a_particle_in_a_noisy_box(folder, finished):
    assert postprocess("--i", HALF1) == 0
    unmasked, masked = (
        star.read(place / result(".star"))["general"].get_float("rlnFinalResolution") for place in (folder, finished)
    )
    assert masked < 0.9 * unmasked
    assert not result("_masked.mrc").exists()


def test_adhoc_bfactor_and_low_pass_do_what_they_say(folder, maps):
    assert postprocess("--i", HALF1, "--adhoc_bfac", -50, "--skip_fsc_weighting", "--low_pass", 8) == 0
    ratio = np.fft.rfftn(mrc.read_volume(result(".mrc"))[0]) / np.fft.rfftn((maps.half1 + maps.half2) / 2)
    assert ratio[0, 0, 8].real == pytest.approx(np.exp(50 / 4 * (8 / 128) ** 2), rel=1e-3)
    assert abs(ratio[0, 0, 18]) < 1e-4  # 7.1 Å, two shells beyond 8 Å
    assert postprocess("--i", HALF1, "--adhoc_bfac", -50, "--skip_fsc_weighting", "--low_pass", 0) == 0
    ratio = np.fft.rfftn(mrc.read_volume(result(".mrc"))[0]) / np.fft.rfftn((maps.half1 + maps.half2) / 2)
    assert ratio[0, 0, 28].real == pytest.approx(np.exp(50 / 4 * (28 / 128) ** 2), rel=1e-3)


def test_a_seed_repeats_the_randomised_curve(folder, finished):
    assert postprocess("--i", HALF2, "--mask", "mask.mrc") == 0
    column = "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"
    again, before = (star.read(place / result(".star"))["fsc"].floats(column) for place in (folder, finished))
    assert np.array_equal(again, before)


def test_a_folder_as_output_gets_the_usual_names(folder):
    assert run(["postprocess", "--i", HALF1, "--o", "Post/job002/", "--j", "1"]) == 0
    assert Path("Post/job002/postprocess.mrc").exists()
    assert Path("Post/job002/RELION_JOB_EXIT_SUCCESS").exists()


def test_a_mask_that_makes_correlation_is_warned_of(folder, maps, capsys):
    mrc.write_volume("hard.mrc", soft_mask(maps.half1, float(np.percentile(maps.half1, 98)), 0, 0), PIXEL)
    assert postprocess("--i", HALF1, "--mask", "hard.mrc") == 0
    warnings = capsys.readouterr().err
    assert "hard edge" in warnings
    assert "mask correlates the half maps" in warnings or "cuts into the particle" in warnings


def test_a_pixel_size_that_limits_the_resolution_is_told(folder, maps, capsys):
    rng = np.random.default_rng(0)
    for name in (HALF1, HALF2):
        mrc.write_volume(name, maps.particle + 1e-3 * rng.normal(size=maps.particle.shape), PIXEL)
    assert postprocess("--i", HALF1) == 0
    assert "pixel size limits the resolution" in capsys.readouterr().err
    assert star.read(result(".star"))["general"].get_float("rlnFinalResolution") == pytest.approx(2 * PIXEL)


def test_maps_without_common_signal_have_no_resolution(folder, capsys):
    rng = np.random.default_rng(1)
    for name in (HALF1, HALF2):
        mrc.write_volume(name, rng.normal(size=(64, 64, 64)), PIXEL)
    assert postprocess("--i", HALF1, "--auto_bfac") == 0
    streams = capsys.readouterr()
    resolution = star.read(result(".star"))["general"].get_float("rlnFinalResolution")
    assert resolution > 25  # shells with few voxels may be above 0.143 by chance
    assert fsc(*(mrc.read_volume(name)[0] for name in (HALF1, HALF2)))[6:].max() < 0.143
    assert "not sharpened" in streams.err


def test_masked_half_maps_are_told(folder, maps, capsys):
    for name, half in ((HALF1, maps.half1), (HALF2, maps.half2)):
        mrc.write_volume(name, half * (radius(64) < 22), PIXEL)
    assert postprocess("--i", HALF1, "--mask", "mask.mrc") == 0
    assert "already masked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--i", HALF1, "--i2", HALF1), "the same map"),
        (("--i", HALF1, "--i2", "twice.mrc"), "the same map"),
        (("--i", HALF1, "--i2", "box48.mrc"), "box48.mrc: expected a box of 64"),
        (("--i", HALF1, "--i2", "other_pixel.mrc"), "found 3"),
        (("--i", HALF1, "--i2", "nan.mrc"), "nan.mrc"),
        (("--i", HALF1, "--i2", "missing.mrc"), "missing.mrc"),
        (("--i", "lonely_half1.mrc"), "lonely_half2.mrc"),
        (("--i", "box48.mrc"), "give --i2"),
        (("--i", HALF1, "--mask", "box48.mrc"), "box48.mrc: expected the half maps' box"),
        (("--i", HALF1, "--mask", "other_pixel.mrc"), "found 3"),
        (("--i", HALF1, "--mask", HALF2), "expected mask values from 0 to 1"),
        (("--i", HALF1, "--mask", "ones.mrc"), "ones.mrc"),
        (("--i", HALF1, "--mtf", "mtf.star"), "mtf.star"),
    ],
)
def test_wrong_input_is_told_in_one_line(folder, maps, capsys, arguments, words):
    nan = maps.half2.copy()
    nan[1, 2, 3] = np.nan
    mrc.write_volume("twice.mrc", 2 * maps.half1, PIXEL)
    mrc.write_volume("box48.mrc", maps.half2[8:56, 8:56, 8:56], PIXEL)
    mrc.write_volume("other_pixel.mrc", maps.half2, 3.0)
    mrc.write_volume("nan.mrc", nan, PIXEL)
    mrc.write_volume("lonely_half1.mrc", maps.half1, PIXEL)
    mrc.write_volume("ones.mrc", np.ones_like(maps.half1), PIXEL)
    columns = {"rlnResolutionInversePixel": [0.0, 0.2, 0.4], "rlnMtfValue": [1.0, 0.5, 0.0]}
    star.write("mtf.star", star.StarFile([star.Block.table("mtf", columns)]))
    assert postprocess(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert not result(".mrc").exists()


def test_two_bfactors_at_once_are_a_usage_error(folder, capsys):
    assert postprocess("--i", HALF1, "--auto_bfac", "--adhoc_bfac", -100) == 2
    assert "--adhoc_bfac" in capsys.readouterr().err


def test_angpix_overrules_headers_that_differ(folder, maps):
    mrc.write_volume(HALF1, maps.half1, 0.0)
    mrc.write_volume(HALF2, maps.half2, 3.0)
    assert postprocess("--i", HALF1, "--angpix", 2.5) == 0
    assert mrc.read_volume(result(".mrc"))[1] == pytest.approx(2.5)
