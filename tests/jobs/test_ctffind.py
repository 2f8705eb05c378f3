"""`spa ctffind`: its table, files and pictures, what it flags and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa import map_job
from spa.cli.main import run
from spa.io import mrc, star
from spa.io.star import Block, StarFile
from tests.science.test_ctf_estimation import parameters, seen_through, white

PIXEL, SHAPE = 1.5, (640, 768)
TRUTH = parameters(9000, 8600, 30)
OPTICS = {
    "rlnOpticsGroupName": ["first"],
    "rlnOpticsGroup": [1],
    "rlnMicrographPixelSize": [PIXEL],
    "rlnVoltage": [300.0],
    "rlnSphericalAberration": [2.7],
    "rlnAmplitudeContrast": [0.1],
}


def write_input(names: list[str], **columns: list[str]) -> None:
    """micrographs.star of these micrographs, one optics group."""
    groups = dict(OPTICS)
    for name in [name for name in columns if name in OPTICS]:
        groups[name] = columns.pop(name)
    rows = {"rlnMicrographName": names, "rlnOpticsGroup": [1] * len(names), **columns}
    blocks = [Block.table("optics", groups), Block.table("micrographs", rows)]
    star.write("micrographs.star", StarFile(blocks))


def write_image(name: str, image: np.ndarray) -> str:
    mrc.write_stack(name, image, PIXEL)
    return name


def ctffind(*arguments: object) -> int:
    common = ["--i", "micrographs.star", "--o", "CtfFind/job003", "--Box", "256", "--j", "1", "--random_seed", "1"]
    return run(["ctffind", *common, *map(str, arguments)])


def result() -> Block:
    return star.read("CtfFind/job003/micrographs_ctf.star")["micrographs"]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def good() -> np.ndarray:
    return seen_through(white(SHAPE), TRUTH, 1.5)


def test_good_and_hopeless_micrographs_get_rows_files_and_a_verdict(good, capsys):
    blurred = np.mean([np.roll(good, (i, i), (0, 1)) for i in range(12)], axis=0)
    half = good + np.where(np.arange(SHAPE[1]) < SHAPE[1] // 2, 3.0, 0.0).astype(np.float32)
    images = {"good": good, "noise": white(SHAPE, 9), "blurred": blurred, "half": half}
    names = [write_image(f"MotionCorr/job002/Movies/{name}.mrc", image) for name, image in images.items()]
    write_input(names)
    assert ctffind("--dFMax", 30000) == 0
    table = result()
    assert table.integers("spaCtfTrusted").tolist() == [1, 0, 0, 0]
    assert table.text("spaCtfProblems")[0] == "none"
    assert "rings_too_weak" in table.text("spaCtfProblems")[1]
    assert "drift" in table.text("spaCtfProblems")[2]
    assert "uneven_field" in table.text("spaCtfProblems")[3]
    u, v = table.floats("rlnDefocusU"), table.floats("rlnDefocusV")
    assert (u[0] + v[0]) / 2 == pytest.approx(TRUTH.defocus, abs=60)
    assert np.allclose(u - v, table.floats("rlnCtfAstigmatism"), atol=1e-3)
    assert table.text("rlnCtfImage")[0] == "CtfFind/job003/Movies/good.ctf:mrc"
    assert "rlnPhaseShift" not in table
    warnings = capsys.readouterr().err
    assert "noise.mrc: its CTF is not to be trusted: rings too weak" in warnings
    assert "good.mrc" not in warnings
    for name in images:
        for suffix in (".ctf", ".txt", "_avrot.txt", "_ctf.png"):
            assert Path(f"CtfFind/job003/Movies/{name}{suffix}").stat().st_size > 0
    assert Path("CtfFind/job003/micrographs_ctf.png").read_bytes().startswith(b"\x89PNG")


def test_text_files_read_as_those_of_ctffind(good):
    write_input([write_image("mics/good.mrc", good)])
    assert ctffind() == 0
    table = result()
    values = np.loadtxt("CtfFind/job003/mics/good.txt")
    assert values.shape == (7,)
    wanted = [table.floats(f"rln{name}")[0] for name in ("DefocusU", "DefocusV", "DefocusAngle")]
    assert np.allclose(values[1:4], wanted, atol=1e-3)
    curves = np.loadtxt("CtfFind/job003/mics/good_avrot.txt")
    assert curves.shape[0] == 6
    assert np.all(np.diff(curves[0]) > 0)
    assert np.isfinite(curves).all()
    assert np.corrcoef(curves[2], curves[3])[0, 1] > 0.7
    image, pixel_size = mrc.read("CtfFind/job003/mics/good.ctf")
    assert image.shape == (1, 256, 256)
    assert pixel_size == pytest.approx(PIXEL)


def test_a_given_spectrum_gives_what_the_micrograph_gives(good):
    tiles = [good[y : y + 256, x : x + 256] for y in range(0, 385, 128) for x in range(0, 513, 128)]
    window = np.sin(np.pi * (np.arange(256) + 0.5) / 256)
    power = np.mean([np.abs(np.fft.fft2((t - t.mean()) * np.outer(window, window))) ** 2 for t in tiles], axis=0)
    write_image("MotionCorr/job002/Movies/good_PS.mrc", np.fft.fftshift(np.sqrt(power)).astype(np.float32))
    write_input(["MotionCorr/job002/Movies/gone.mrc"], rlnCtfPowerSpectrum=["MotionCorr/job002/Movies/good_PS.mrc"])
    assert ctffind("--use_given_ps") == 0
    table = result()
    assert (table.floats("rlnDefocusU") + table.floats("rlnDefocusV"))[0] / 2 == pytest.approx(TRUTH.defocus, abs=60)
    assert table.text("rlnCtfImage") == ["CtfFind/job003/Movies/gone.ctf:mrc"]
    assert table.text("rlnMicrographName") == ["MotionCorr/job002/Movies/gone.mrc"]


def test_micrographs_without_dose_weighting_are_taken_when_asked_for(good):
    names = {"rlnMicrographNameNoDW": [write_image("mics/good_noDW.mrc", good)]}
    write_input([write_image("mics/good.mrc", white(SHAPE, 3))], **names)
    assert ctffind("--use_noDW") == 0
    assert result().integers("spaCtfTrusted").tolist() == [1]
    assert result().text("rlnCtfImage") == ["CtfFind/job003/mics/good.ctf:mrc"]


def test_few_workers_are_taken_where_memory_is_short(good, monkeypatch):
    names = [write_image(f"mics/{name}.mrc", good) for name in ("one", "two")]
    write_input(names)
    monkeypatch.setattr(map_job, "available_memory", lambda: 400 << 20)
    assert ctffind("--dFMax", 20000, "--j", 2) == 0
    assert "1 at a time, for the memory that is free" in Path("CtfFind/job003/run.out").read_text()
    assert len(result()) == 2


def test_phase_shift_and_tilt_get_columns_when_asked_for():
    image = seen_through(white(SHAPE), parameters(9000, 8600, 30, 60), 3.0)
    write_input([write_image("mics/plate.mrc", image)])
    assert ctffind("--do_phaseshift", "--tilt") == 0
    table = result()
    assert table.floats("rlnPhaseShift")[0] == pytest.approx(60, abs=5)
    assert 0 < table.floats("spaPhaseShiftError")[0] < 5
    assert table.floats("spaTiltAngle")[0] < 10
    assert "spaTiltAxis" in table


def test_columns_of_an_earlier_run_do_not_stay(good):
    stale = {"rlnPhaseShift": [60.0], "spaTiltAngle": [30.0], "spaTiltAxis": [10.0], "rlnAccumMotionTotal": [5.0]}
    write_input([write_image("mics/good.mrc", good)], **stale)
    assert ctffind("--dFMax", 20000) == 0
    table = result()
    assert not [column for column in ("rlnPhaseShift", "spaTiltAngle", "spaTiltAxis") if column in table]
    assert table.floats("rlnAccumMotionTotal")[0] == 5


def test_an_unfitted_phase_plate_is_named_in_the_warning(capsys):
    plate = seen_through(white((1024, 1024)), parameters(15500, 15000, 20, 60), 3.0)
    write_input([write_image("mics/plate.mrc", plate)])
    assert ctffind("--dFMax", 30000, "--Box", 512) == 0
    assert result().integers("spaCtfTrusted").tolist() == [0]
    told = capsys.readouterr().err
    assert "phase shift left out; give --do_phaseshift" in told


def test_a_defocus_at_the_end_of_the_range_names_the_range(good, capsys):
    write_input([write_image("mics/good.mrc", good)])
    assert ctffind("--dFMin", 8790, "--dFMax", 30000) == 0
    assert "defocus at limit; give a wider range with --dFMin and --dFMax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--dFMin", 30000, "--dFMax", 5000), 2, "--dFMin 30000: expected less than --dFMax 5000"),
        (("--ResMin", 5, "--ResMax", 5), 2, "--ResMin 5: expected more than --ResMax 5"),
        (("--Box", 301), 2, "--Box 301: expected an even number"),
        (("--do_phaseshift", "--phase_min", 90, "--phase_max", 10), 2, "--phase_min 90"),
        (("--use_given_ps",), 1, "no column rlnCtfPowerSpectrum"),
        (("--i", "mics"), 1, "mics: expected a file, found a folder"),
    ],
)
def test_wrong_options_are_told_in_a_line(arguments, status, words, capsys):
    write_input([write_image("mics/flat.mrc", np.ones(SHAPE, np.float32))])
    assert ctffind(*arguments) == status
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("rlnVoltage", 3.0, "rlnVoltage: expected 30 to 1000 kV"), ("rlnMicrographPixelSize", 0.0, "expected 0.1 to 50")],
)
def test_wrong_optics_are_told_in_a_line(column, value, words, good, capsys):
    write_input([write_image("mics/good.mrc", good)], **{column: [value]})
    assert ctffind() == 1
    assert words in capsys.readouterr().err


def test_bad_micrographs_are_left_out_with_a_reason(good):
    spoilt = good.copy()
    spoilt[3, 4] = np.nan
    images = {"flat": np.full(SHAPE, 7.0, np.float32), "nan": spoilt, "small": good[:50, :60], "good": good}
    names = [write_image(f"mics/{name}.mrc", image) for name, image in images.items()]
    names.append(write_image("mics/movie.mrc", np.stack([good, good])))
    Path("mics/folder.mrc").mkdir()
    write_input([*names, "mics/folder.mrc"])
    assert ctffind() == 0
    assert result().text("rlnMicrographName") == ["mics/good.mrc"]
    failed = star.read("CtfFind/job003/micrographs_ctf_failed.star")["micrographs"]
    reasons = dict(zip(failed.text("rlnMicrographName"), failed.text("spaFailure"), strict=True))
    for name, words in (
        ("flat", "no contrast"),
        ("nan", "1 that are not"),
        ("small", "too small"),
        ("movie", "expected one image, found 2"),
        ("folder", "found a folder"),
    ):
        assert words in reasons[f"mics/{name}.mrc"]
