"""`spa select` by class: numbers, automatic ranking, and the stable core of repeated runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import class_tables, mrc, star
from spa.io.star import Block, StarFile
from tests.science.test_class_ranking import BOX, DIAMETER, PIXEL, carbon, ice, noise, protein

N = 24
KINDS = [protein, noise, protein, ice, carbon, protein]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_data(name: str, classes: np.ndarray) -> None:
    """A data STAR file of particles in the given classes."""
    n = len(classes)
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [PIXEL]}
    rows = {
        "rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(n)],
        "rlnOpticsGroup": [1] * n,
        "rlnClassNumber": classes,
        "rlnDefocusU": 10000.0 + np.arange(n),
    }
    star.write(name, StarFile([Block.table("optics", optics), Block.table("particles", rows)]))


def write_classes(resolution: str = "20.0", folder: str = "Class2D", **general: int) -> np.ndarray:
    """The files of a classification with three classes of protein among six; returns the class of each particle."""
    classes = np.arange(N) % len(KINDS) + 1
    stem = f"{folder}/run_it025"
    Path(folder).mkdir(exist_ok=True)
    write_data(f"{stem}_data.star", classes)
    images = np.stack([kind(seed) for seed, kind in enumerate(KINDS)])
    mrc.write_stack(f"{stem}_classes.mrcs", images, PIXEL)
    k = len(KINDS)
    model = {
        "rlnReferenceImage": [f"{i + 1:06d}@{stem}_classes.mrcs" for i in range(k)],
        "rlnClassDistribution": np.full(k, 1 / k),
        "rlnAccuracyRotations": [3.0] * k,
        "rlnAccuracyTranslationsAngst": [2.0] * k,
        "rlnEstimatedResolution": [resolution] * k,
        "rlnOverallFourierCompleteness": [1.0] * k,
    }
    first = Block.pairs("model_general", {"rlnReferenceDimensionality": 2, "rlnPixelSize": PIXEL, **general})
    star.write(f"{stem}_model.star", StarFile([first, Block.table("model_classes", model)]))
    diameter = Block.pairs("optimiser_general", {"rlnParticleDiameter": DIAMETER})
    star.write(f"{stem}_optimiser.star", StarFile([diameter]))
    return classes


def select(*arguments: object, source: str = "Class2D/run_it025_data.star") -> int:
    return run(["select", "--i", source, "--o", "out.star", "--random_seed", "1", *map(str, arguments)])


def kept(path: str = "out.star") -> list[int]:
    """Numbers of the particles in a file, from 0."""
    return [int(name[:6]) - 1 for name in star.read(path)["particles"].text("rlnImageName")]


@pytest.mark.parametrize(("text", "numbers"), [("1,4", [1, 4]), ("2-4", [2, 3, 4]), ("6, 1-2", [1, 2, 6])])
def test_classes_by_number(text, numbers, capsys):
    classes = write_classes()
    assert select("--classes", text) == 0
    assert kept() == np.flatnonzero(np.isin(classes, numbers)).tolist()
    assert f"particles in class {', '.join(map(str, numbers))}".replace("2, 3, 4", "2-4") in capsys.readouterr().out


def test_classes_and_a_range_and_parts_combine():
    classes = write_classes()
    assert select("--classes", "1,2", "--select", "rlnDefocusU", "--minval", 10010, "--split", "--nr_split", 2) == 0
    expected = np.flatnonzero(np.isin(classes, [1, 2]) & (np.arange(N) >= 10)).tolist()
    assert kept("out_split1.star") + kept("out_split2.star") == expected


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ("--classes 2,9,12", 1, "no particles of Class2D/run_it025_data.star are in class 9, 12; there are 1-6"),
        ("--classes two", 2, "--classes two: expected class numbers like 1,4,7-9"),
        ("--classes 3-1", 2, "--classes 3-1: expected class numbers"),
        ("--classes 0", 2, "--classes 0: expected class numbers"),
        ("--auto --min_score 2", 2, "--min_score 2: expected 0 to 1"),
        ("--stable other.star", 1, "row 3: 000003@s.mrcs is not in other.star"),
    ],
)
def test_wrong_input_is_one_line(flags, status, message, capsys):
    write_classes()
    write_data("other.star", np.ones(2, int))
    assert select(*flags.split()) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("out.star").exists()


@pytest.mark.parametrize("source", ["data", "model"])
def test_auto_keeps_the_classes_of_protein(source, capsys):
    classes = write_classes()
    assert select("--auto", source=f"Class2D/run_it025_{source}.star") == 0
    assert kept() == np.flatnonzero(np.isin(classes, [1, 3, 6])).tolist()
    assert "3 of 6 classes score 0.5 or more: 1, 3, 6" in capsys.readouterr().out
    scores = star.read("out.star")["particles"].floats("rlnPredictedClassScore")
    assert scores.min() >= 0.5
    ranking = star.read("out_classes.star")["class_averages"]
    assert sorted(ranking.integers("rlnClassNumber")[:3].tolist()) == [1, 3, 6]
    assert (np.diff(ranking.floats("rlnPredictedClassScore")) <= 0).all()
    assert ranking.integers("rlnSelected").tolist() == [1, 1, 1, 0, 0, 0]
    assert Path("out_classes.png").stat().st_size > 10000


def test_the_lowest_score_can_be_set():
    classes = write_classes()
    assert select("--auto", "--min_score", 0) == 0
    assert len(kept()) == len(classes)
    assert select("--auto", "--min_score", 1) == 0
    assert kept() == []


def test_a_moved_job_folder_and_no_resolution():
    write_classes("inf")
    assert select("--auto") == 0
    assert kept() == []
    write_classes()
    Path("Class2D").rename("Moved")
    assert select("--auto", source="Moved/run_it025_data.star") == 0
    assert kept()


def test_one_shell_without_signal_does_not_end_a_resolution():
    write_classes("300.0")
    found = star.read("Class2D/run_it025_model.star")
    shells = np.arange(BOX // 2 + 1)
    angstrom = np.append(999.0, BOX * PIXEL / shells[1:])
    for k, ratios in enumerate([[9, 9, 0, 9, 9], [9, 0, 0, 9, 9], [9, 9, 9, 9, 9], [0, 0, 0, 0, 0]], 1):
        ssnr = np.zeros(len(shells))
        ssnr[1:6] = ratios
        found.put(Block.table(f"model_class_{k}", {"rlnAngstromResolution": angstrom, "rlnSsnrMap": ssnr}))
    star.write("Class2D/run_it025_model.star", found)
    resolutions = class_tables.read_averages("Class2D/run_it025_model.star").resolutions
    np.testing.assert_allclose(resolutions, [angstrom[5], angstrom[1], angstrom[5], 300, 300, 300], rtol=1e-5)


@pytest.mark.parametrize("case", ["no_model", "3d", "no_stack", "other_classes", "no_classes", "name"])
def test_auto_refuses_what_is_no_2d_classification(case, capsys):
    source = "Class2D/run_it025_data.star"
    write_classes(**({"rlnReferenceDimensionality": 3} if case == "3d" else {}))
    if case == "no_model":
        Path("Class2D/run_it025_model.star").unlink()
    if case == "no_stack":
        Path("Class2D/run_it025_classes.mrcs").unlink()
    if case == "other_classes":
        write_data(source, np.full(N, 7))
    if case == "no_classes":
        found = star.read(source)
        found["particles"].drop("rlnClassNumber")
        star.write(source, found)
    if case == "name":
        Path(source).rename("some.star")
        source = "some.star"
    message = {
        "no_model": "Class2D/run_it025_model.star",
        "3d": "expected 2D classes, found maps",
        "no_stack": "Class2D/run_it025_classes.mrcs",
        "other_classes": "row 1, column rlnClassNumber: expected 1 to 6",
        "no_classes": "no column rlnClassNumber, which a classification writes",
        "name": "expected the name of a classification's files",
    }[case]
    assert select("--auto", source=source) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("out.star").exists()


def test_the_stable_core_is_what_stays_together(capsys):
    classes = write_classes()
    write_data("two_data.star", 7 - classes)
    third = classes.copy()
    third[[0, 6]] = 2  # two particles of class 1 move to class 2
    write_data("three_data.star", third)
    assert select("--stable", "two_data.star", "--stable", "three_data.star", "--stable_size", 3) == 0
    assert kept() == np.flatnonzero(classes != 1).tolist()
    out = capsys.readouterr().out
    assert "two_data.star: adjusted Rand index 1.000, 100.0% of the particles in matching classes" in out
    assert "20 of 24 particles in 5 stable cores" in out
    assert select("--stable", "two_data.star", "--stable", "three_data.star", "--stable_fraction", 0.6) == 0
    assert len(kept()) == N
