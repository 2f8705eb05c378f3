"""`spa select`: rows by range, without duplicates and in parts; everything else passes through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import star
from spa.io.star import Block, StarFile

N = 12


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_particles(**columns: list) -> None:
    """Twelve particles of two micrographs, 10 pixels apart, in a file with a block and a column nobody knows."""
    rows = {
        "rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(N)],
        "rlnMicrographName": ["a.mrc"] * 6 + ["b.mrc"] * 6,
        "rlnCoordinateX": [10.0 * (i % 6) for i in range(N)],
        "rlnCoordinateY": [5.0] * N,
        "rlnOpticsGroup": [1] * N,
        "rlnDefocusU": [10000.0 + 100 * i for i in range(N)],
        "labNote": [f"note{i}" for i in range(N)],
        **columns,
    }
    optics = {
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [4.0],
        "rlnMicrographPixelSize": [2.0],
        "rlnVoltage": [300.0],
    }
    extra = Block.pairs("lab", {"labKey": "value"})
    star.write("in.star", StarFile([Block.table("optics", optics), Block.table("particles", rows), extra]))


def select(*arguments: object) -> int:
    return run(["select", "--i", "in.star", "--o", "out.star", "--random_seed", "1", *map(str, arguments)])


def kept(path: str = "out.star") -> list[int]:
    """Numbers of the particles in a file, from 0."""
    return [int(name[:6]) - 1 for name in star.read(path)["particles"].text("rlnImageName")]


def test_a_range_keeps_its_ends_and_everything_else_of_the_file(capsys):
    write_particles()
    assert select("--select", "rlnDefocusU", "--minval", 10300, "--maxval", 10500) == 0
    assert kept() == [3, 4, 5]
    found, source = star.read("out.star"), star.read("in.star")
    assert found.names == source.names
    assert found["particles"].columns == source["particles"].columns
    assert found["particles"].text("labNote") == ["note3", "note4", "note5"]
    assert found["lab"].get_text("labKey") == "value"
    told = capsys.readouterr().out
    assert "3 of 12 particles with rlnDefocusU from 10300 to 10500 (all: 10000 to 11100, median 10550)" in told
    assert "3 of 12 particles in out.star" in told
    assert select("--select", "_rlnDefocusU", "--minval", 11000) == 0
    assert kept() == [10, 11]


def test_nothing_selected_is_a_table_without_rows_and_a_sentence(capsys):
    write_particles()
    assert select("--select", "rlnDefocusU", "--minval", 1e6) == 0
    assert kept() == []
    assert "out.star, a table without rows: nothing was selected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "column"), [("micrographs", "rlnMicrographName"), ("movies", "rlnMicrographMovieName")]
)
def test_micrographs_and_movies(block, column):
    table = Block.table(block, {column: ["a", "b", "c"], "rlnCtfMaxResolution": [3.0, 8.0, 4.0]})
    star.write("in.star", StarFile([Block.table("optics", {"rlnOpticsGroup": [1]}), table]))
    assert select("--select", "rlnCtfMaxResolution", "--maxval", 5) == 0
    assert star.read("out.star")[block].text(column) == ["a", "c"]


def test_files_of_older_versions():
    rows = {"rlnImageName": ["1@a", "2@a", "3@a"], "rlnDefocusU": [1.0, 2.0, 3.0]}
    star.write("in.star", StarFile([Block.table("images", rows)]))
    assert select("--select", "rlnDefocusU", "--minval", 2) == 0
    assert star.read("out.star")["images"].text("rlnImageName") == ["2@a", "3@a"]


def test_duplicates_go_by_distance_in_angstrom_and_figure_of_merit(capsys):
    write_particles()
    assert select("--remove_duplicates", 19.9) == 0
    assert len(kept()) == N
    assert select("--remove_duplicates", 20) == 0
    assert kept() == [0, 2, 4, 6, 8, 10]
    assert "6 of 12 particles are more than 20 Å apart" in capsys.readouterr().out
    write_particles(rlnAutopickFigureOfMerit=[0.1, 0.9] * 6)
    assert select("--remove_duplicates", 20) == 0
    assert kept() == [1, 3, 5, 7, 9, 11]
    assert select("--remove_duplicates", 20, "--image_angpix", 1) == 0
    assert kept() == [1, 3, 5, 7, 9, 11]


def test_refined_shifts_count_when_duplicates_are_looked_for():
    origins = [0.0] * N
    origins[1] = 18.0  # the particle lies 9 px to the left of its coordinate
    write_particles(rlnOriginXAngst=origins, rlnOriginYAngst=[0.0] * N)
    assert select("--remove_duplicates", 5) == 0
    assert kept() == [0, *range(2, N)]


def test_parts_in_order_and_at_random(capsys):
    write_particles()
    assert select("--split", "--nr_split", 2) == 0
    assert kept("out_split1.star") == list(range(6))
    assert kept("out_split2.star") == list(range(6, 12))
    assert select("--split", "--size_split", 5, "--nr_split", 2, "--random_order") == 0
    first, second = kept("out_split1.star"), kept("out_split2.star")
    assert len(set(first) | set(second)) == 10
    assert first != [0, 1, 2, 3, 4]
    told = capsys.readouterr().out
    assert "5 of 12 particles in out_split2.star" in told
    assert "2 particles are in none of the parts" in told
    assert select("--split", "--size_split", 5, "--nr_split", 2, "--random_order") == 0
    assert kept("out_split1.star") == first
    assert not Path("out.star").exists()


def test_steps_follow_each_other():
    write_particles()
    options = ("--select", "rlnDefocusU", "--maxval", 10500, "--remove_duplicates", 20, "--split", "--nr_split", 3)
    assert select(*options) == 0
    assert [kept(f"out_split{i}.star") for i in (1, 2, 3)] == [[0], [2], [4]]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "expected --select, --classes, --auto, --stable, --remove_duplicates or --split"),
        (("--select", "rlnDefocusU"), 2, "expected with --minval or --maxval"),
        (("--minval", 3), 2, "expected with --minval or --maxval"),
        (("--select", "rlnDefocusU", "--minval", 3, "--maxval", 2), 2, "--minval 3: expected at most --maxval 2"),
        (("--split",), 2, "--split: expected with --nr_split or --size_split"),
        (("--nr_split", 2), 2, "expected with --split"),
        (("--split", "--nr_split", 0), 2, "--nr_split 0: expected 1 to 10000"),
        (("--select", "rlnDefocusX", "--minval", 3), 1, "no column rlnDefocusX; did you mean rlnDefocusU?"),
        (
            ("--select", "labNote", "--minval", 3),
            1,
            "in.star: data_particles, row 1, column labNote: expected a finite number, found 'note0'",
        ),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments, status, words, capsys):
    write_particles()
    assert select(*arguments) == status
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_duplicates_need_coordinates_and_a_pixel_size(capsys):
    write_particles()
    found = star.read("in.star")
    found["optics"].drop("rlnMicrographPixelSize")
    star.write("in.star", found)
    assert select("--remove_duplicates", 40) == 0
    assert kept() == [0, 2, 4, 6, 8, 10]
    assert "coordinates taken in pixels of rlnImagePixelSize; give --image_angpix" in capsys.readouterr().out
    found["optics"].drop("rlnImagePixelSize")
    star.write("in.star", found)
    assert select("--remove_duplicates", 40) == 1
    assert "no column rlnImagePixelSize, which --remove_duplicates needs, or --image_angpix" in capsys.readouterr().err
    found["particles"].drop("rlnCoordinateX")
    star.write("in.star", found)
    assert select("--remove_duplicates", 40) == 1
    assert "no column rlnCoordinateX, which --remove_duplicates needs" in capsys.readouterr().err
    star.write("in.star", StarFile([Block.pairs("general", {"rlnResolution": 3.0})]))
    assert select("--remove_duplicates", 40) == 1
    told = capsys.readouterr().err
    assert "expected a table of particles, micrographs or movies, found data_general" in told


def test_random_numbers_follow_the_seed_and_parts_are_fair():
    write_particles()
    counts = np.zeros(N)
    for seed in range(30):
        assert run(
            ["select", "--i", "in.star", "--o", "r.star", "--split", "--nr_split", "2", "--random_order", "--quiet",
             "--random_seed", str(seed)]
        ) == 0  # fmt: skip
        counts[kept("r_split1.star")] += 1
    assert counts.min() >= 5
    assert counts.max() <= 25


def test_parts_carry_the_full_name_and_old_ones_go(capsys):
    write_particles()
    for n in (3, 2):
        assert run(["select", "--i", "in.star", "--o", "sel.v1.star", "--split", "--nr_split", str(n)]) == 0
    assert sorted(path.name for path in Path.cwd().glob("sel*")) == ["sel.v1_split1.star", "sel.v1_split2.star"]
    assert "removed sel.v1_split3.star" in capsys.readouterr().out
    assert run(["select", "--i", "in.star", "--o", "in.star", "--select", "rlnDefocusU", "--minval", "3"]) == 1
    assert "--o in.star: would replace" in capsys.readouterr().err
    assert select("--select", "rlnVoltage", "--minval", 3) == 1
    assert "column rlnVoltage is in data_optics" in capsys.readouterr().err
