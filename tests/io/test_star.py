"""STAR files: text kept to the letter, numbers on demand, wrong files refused by block, row and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import starfile
from hypothesis import given
from hypothesis import strategies as st

from spa.errors import InputError
from spa.io import star
from spa.io.star import Block, StarFile
from spa.io.star_text import CHUNK

TABLE = "\n".join(
    [
        "",
        "# version 30001",
        "",
        "data_particles",
        "",
        "loop_ ",
        "_rlnImageName #1 ",
        "_rlnDefocusU #2 ",
        "_rlnClassNumber #3 ",
        "000001@a#1.mrcs 10000.500000 007",
        "000002@a#1.mrcs 1.2e4 2 ",
        "",
        "",
    ]
)


def write(folder: Path, text: str, name: str = "run_data.star") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> StarFile:
    return star.read(write(folder, text))


def test_values_are_kept_as_text_and_numbers_made_on_demand(tmp_path: Path) -> None:
    table = read(tmp_path, TABLE)["particles"]
    assert table.columns == ["rlnImageName", "rlnDefocusU", "rlnClassNumber"]
    assert table.text("rlnImageName") == ["000001@a#1.mrcs", "000002@a#1.mrcs"]
    assert table.text("rlnClassNumber") == ["007", "2"]
    np.testing.assert_array_equal(table.floats("rlnDefocusU"), [10000.5, 12000.0])
    np.testing.assert_array_equal(table.integers("rlnClassNumber"), [7, 2])


def test_reading_again_after_the_file_changed(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read(tmp_path, TABLE.replace(" 007", ""))
    assert len(read(tmp_path, TABLE)["particles"]) == 2


def test_pairs_quotes_comments_and_line_ends(tmp_path: Path) -> None:
    text = (
        "\ufeff# made by hand\r\ndata_general # the block\r\n\r\n_rlnA   1.50 # half\r\n_rlnB 'two words'\r\n"
        '_rlnC ""\r\n_rlnD "it\'s"\r\n\r\ndata_\r\nloop_ # a table\r\n_x\r\n_y #2\r\n'
        "\"a b\" 1 # note\r\n# between\r\n'' it's\r\n\"c\" 'd' \r\n"
    )
    found = read(tmp_path, text)
    general = found["general"]
    assert not general.loop
    assert [general.get_text(c) for c in general.columns] == ["1.50", "two words", "", "it's"]
    assert general.get_float("rlnA") == 1.5
    assert general.get_float("rlnZ", 4.0) == 4.0
    assert found[""].text("x") == ["a b", "", "c"]
    assert found[""].text("y") == ["1", "it's", "d"]


def test_values_that_look_like_keywords(tmp_path: Path) -> None:
    text = "data_a\nloop_\n_x\n_y\n_z\n_w #4\n_a.mrc [b] $c é\ndata_2020/m.mrc loop_ save_x data_y\n"
    table = read(tmp_path, text)["a"]
    assert table.text("x") == ["_a.mrc", "data_2020/m.mrc"]
    assert table.text("w") == ["é", "data_y"]


def test_empty_tables_and_single_rows(tmp_path: Path) -> None:
    found = read(tmp_path, "data_e\nloop_\n_x\n_y\n\ndata_none\ndata_one\nloop_\n_x\n_y\n1 2")
    assert (len(found["e"]), found["e"].columns) == (0, ["x", "y"])
    assert found["none"].columns == []
    assert found["one"].loop
    assert found["one"].integers("y").tolist() == [2]
    assert found["e"].floats("x").shape == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace(" 007", ""), "line 10: block data_particles, row 1: expected 3 values, found 2"),
        (TABLE.replace("1.2e4 2", "1.2e4 2 3"), "line 11: block data_particles, row 2: expected 3 values, found 4"),
        (TABLE.replace("2 \n", "# 2\n"), "line 11: block data_particles, row 2: expected 3 values, found 2"),
        (TABLE + "data_particles\n", "line 13: block data_particles appears a second time, first on line 4"),
        (TABLE.replace("rlnDefocusU", "rlnImageName"), "line 8: block data_particles: column rlnImageName appears tw"),
        (TABLE + "loop_\n_x\n1\n", "line 13: block data_particles holds a second table"),
        (TABLE + "_x 1\n", "line 13: block data_particles holds a table and pairs"),
        ("data_a\n_x\n_y 1\n", "line 2: block data_a: expected one value for x, found 0"),
        ("data_a\n_x 1 2\n", "line 2: block data_a: expected one value for x, found 2"),
        ("data_a\nloop_\n_x\n_y\n1 'two\n", "line 5: block data_a: quotes that do not close"),
        ("hello\n", "line 1: expected data_BLOCK, loop_, _NAME or a comment, found 'hello'"),
        ("_x 1\n", "line 1: expected data_BLOCK, found '_x'"),
        ("loop_\n_x\n1\n", "line 1: expected data_BLOCK, found 'loop_'"),
        ("# nothing\n", "expected a STAR file, found no data_ block"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'run_data.star'}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a STAR file, found an empty file"),
        (b"data_a\n_x \xff\xfe\n", "expected text in UTF-8"),
        (b"\x93NUMPY\x01\x00", "a cryoSPARC .cs table, not a STAR file; turn it into one with: spa convert --i"),
        (b"\0\0\0\0", "expected a STAR file, found binary data"),
    ],
)
def test_what_is_no_star_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.star"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        star.read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.star: expected a STAR file, found nothing there"):
        star.read(tmp_path / "none.star")


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "abc", '""', "1,5", "0x10"])
def test_a_value_that_is_no_number_is_named(tmp_path: Path, value: str) -> None:
    table = read(tmp_path, TABLE.replace("1.2e4", value))["particles"]
    with pytest.raises(InputError) as error:
        table.floats("rlnDefocusU")
    assert str(error.value) == (
        f"{tmp_path / 'run_data.star'}: data_particles, row 2, column rlnDefocusU: expected a finite number, "
        f"found '{value.strip(chr(34))}'"
    )


def test_wrong_columns_and_blocks_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, TABLE)
    with pytest.raises(InputError, match=r"data_particles: no column rlnAnglePsi$"):
        found["particles"].floats("rlnAnglePsi")
    with pytest.raises(InputError, match=r"no column rlnAnglePsi, which the job needs"):
        found["particles"].require("rlnAnglePsi", "the job needs")
    with pytest.raises(InputError, match=r"row 1, column rlnDefocusU: expected a whole number, found '10000.500000'"):
        found["particles"].integers("rlnDefocusU")
    with pytest.raises(InputError, match=r"run_data.star: no block data_optics; its blocks: data_particles"):
        found["optics"]
    with pytest.raises(InputError, match=r"column rlnClassNumber: expected one value, found 2"):
        found["particles"].get_integer("rlnClassNumber")


def test_what_is_not_touched_is_written_to_the_letter(tmp_path: Path) -> None:
    extra = "data_unknown\n\n_thing   1.10\n_other   'two words'\n\n"
    found = read(tmp_path, extra + TABLE)
    found["particles"].set("rlnAnglePsi", np.array([1.25, -1e-6]))
    star.write(tmp_path / "out.star", found)
    again = star.read(tmp_path / "out.star")
    assert again.names == ["unknown", "particles"]
    assert again["unknown"].get_text("thing") == "1.10"
    assert again["unknown"].get_text("other") == "two words"
    assert again["particles"].columns == ["rlnImageName", "rlnDefocusU", "rlnClassNumber", "rlnAnglePsi"]
    assert again["particles"].text("rlnDefocusU") == ["10000.500000", "1.2e4"]
    assert again["particles"].text("rlnClassNumber") == ["007", "2"]
    assert again["particles"].text("rlnAnglePsi") == ["1.250000", "-1.000000e-06"]


def test_layout_is_that_of_relion(tmp_path: Path) -> None:
    found = StarFile(
        [
            Block.pairs("general", {"rlnA": 1, "rlnB": 0.5, "rlnC": "x y", "rlnD": True}),
            Block.table("t", {"rlnX": [1, 2], "rlnY": [0.1, 1e12], "rlnZ": ["", "a"]}),
        ]
    )
    star.write(tmp_path / "out.star", found)
    lines = [line.split() for line in (tmp_path / "out.star").read_text().splitlines() if line.strip()]
    assert lines == [
        ["#", "version", "50001"], ["data_general"], ["_rlnA", "1"], ["_rlnB", "0.500000"], ["_rlnC", '"x', 'y"'],
        ["_rlnD", "1"], ["#", "version", "50001"], ["data_t"], ["loop_"], ["_rlnX", "#1"], ["_rlnY", "#2"],
        ["_rlnZ", "#3"], ["1", "0.100000", '""'], ["2", "1.000000e+12", "a"],
    ]  # fmt: skip


def test_rows_columns_and_copies_are_independent(tmp_path: Path) -> None:
    found = read(tmp_path, TABLE)
    table = found["particles"]
    copy = found.copy()
    copy["particles"].set("rlnClassNumber", [5, 6])
    copy["particles"].drop("rlnDefocusU", "rlnNotThere")
    assert table.text("rlnClassNumber") == ["007", "2"]
    assert "rlnDefocusU" in table
    assert table.rows(np.array([1, 0, 1])).integers("rlnClassNumber").tolist() == [2, 7, 2]
    assert table.rows(np.array([False, True])).integers("rlnClassNumber").tolist() == [2]
    with pytest.raises(ValueError, match="3 values for a block of 2 rows"):
        table.set("rlnNew", [1, 2, 3])


printable = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=12)


@given(
    st.lists(
        st.tuples(printable, st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-9999, 9999)),
        min_size=1,
        max_size=8,
    )
)
def test_any_table_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    path = tmp_path_factory.mktemp("star") / "x.star"
    text, number, whole = (list(column) for column in zip(*rows, strict=True))
    star.write(path, StarFile([Block.table("t", {"text": text, "number": number, "whole": whole})]))
    table = star.read(path)["t"]
    assert table.text("text") == text
    np.testing.assert_allclose(table.floats("number"), number, rtol=1e-6, atol=5e-7)
    assert table.integers("whole").tolist() == whole


def test_text_no_quote_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot hold this text"):
        star.write(tmp_path / "x.star", StarFile([Block.table("t", {"x": ["a\nb"]})]))
    assert not (tmp_path / "x.star").exists()


def test_longer_than_a_chunk(tmp_path: Path) -> None:
    n = 2 * CHUNK + 1
    values = np.arange(n) / 8
    names = [f"{i:06d}@Extract/job001/very_long_name_{i}.mrcs" for i in range(n)]
    star.write(tmp_path / "x.star", StarFile([Block.table("particles", {"name": names, "value": values})]))
    table = star.read(tmp_path / "x.star")["particles"]
    np.testing.assert_array_equal(table.floats("value"), values)
    assert table.text("name") == names


def test_starfile_reads_what_we_write(tmp_path: Path) -> None:
    found = StarFile(
        [
            Block.table("optics", {"rlnOpticsGroup": [1], "rlnVoltage": [300.0], "rlnOpticsGroupName": ["a b"]}),
            Block.table("particles", {"rlnImageName": ["1@x.mrcs", "2@x.mrcs"], "rlnAngleRot": [1.5, -1e-7]}),
        ]
    )
    star.write(tmp_path / "x.star", found)
    theirs = starfile.read(tmp_path / "x.star", always_dict=True)
    assert theirs["optics"]["rlnOpticsGroupName"].tolist() == ["a b"]
    assert theirs["particles"]["rlnImageName"].tolist() == ["1@x.mrcs", "2@x.mrcs"]
    np.testing.assert_allclose(theirs["particles"]["rlnAngleRot"], [1.5, -1e-7])


def test_relion_reads_what_we_write_and_we_read_it_back(tmp_path: Path, relion: Path) -> None:
    n = 20
    angles = np.linspace(-170, 170, n)
    optics = Block.table(
        "optics",
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["two words"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [1.5],
            "rlnImageSize": [64],
            "rlnImageDimensionality": [2],
        },
    )
    table = Block.table(
        "particles",
        {
            "rlnImageName": [f"{i + 1:06d}@x.mrcs" for i in range(n)],
            "rlnAngleRot": angles,
            "rlnLogLikeliContribution": np.linspace(1e-5, 2e5, n),
            "rlnOpticsGroup": np.ones(n, dtype=int),
        },
    )
    star.write(tmp_path / "x.star", StarFile([optics, table]))
    subprocess.run(
        [relion / "relion_star_handler", "--i", "x.star", "--o", "y.star",
         "--select", "rlnAngleRot", "--minval", "-200", "--maxval", "200"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    assert star.read(tmp_path / "y.star")["optics"].get_text("rlnOpticsGroupName") == "two words"
    theirs = star.read(tmp_path / "y.star")["particles"]
    assert theirs.text("rlnImageName") == table.text("rlnImageName")
    np.testing.assert_allclose(theirs.floats("rlnAngleRot"), angles, atol=1e-5)
    np.testing.assert_allclose(
        theirs.floats("rlnLogLikeliContribution"), table.floats("rlnLogLikeliContribution"), rtol=1e-5
    )


@pytest.mark.slow
def test_a_large_table_is_read_and_written_exactly_within_bounded_memory(tmp_path: Path) -> None:
    n, n_columns = 50_000, 28
    rng = np.random.default_rng(3)
    frame = pl.DataFrame({f"rln{i}": rng.normal(0, 1e3, n) for i in range(n_columns - 1)})
    block = Block("particles", frame)
    block.set("rlnImageName", [f"{i % 500:06d}@Extract/job012/Movies/stack_{i // 500:05d}.mrcs" for i in range(n)])
    path = tmp_path / "large.star"
    star.write(path, StarFile([block]))
    # A fresh process, as the peak that the system reports for a process never falls.
    program = (
        "import resource, sys; from spa.io import star; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "found = star.read(sys.argv[1]); star.write(sys.argv[2], found); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "again.star"], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) * 1024 < 250e6  # a tenth of 1.5 GB, and what polars and the allocator take once
    assert (tmp_path / "again.star").read_bytes() == path.read_bytes()
    np.testing.assert_allclose(star.read(path)["particles"].floats("rln7"), frame["rln7"].to_numpy(), atol=5e-7)
