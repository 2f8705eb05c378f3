"""cryoSPARC .cs tables: read whole, joined by uid, refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.errors import InputError
from spa.io.cryosparc import Table, join, read_table, structured, write_table
from tests.io.cryosparc_tables import N, cs_table, fields_of, write_cs


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_table_is_read_as_it_was_written():
    rows = cs_table()
    write_table("a.cs", rows)
    np.testing.assert_array_equal(read_table("a.cs").rows, rows)
    np.testing.assert_array_equal(np.load("a.cs", allow_pickle=False), rows)


def test_single_precision_becomes_the_shortest_decimal_that_rounds_to_it():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * np.float32(10) ** np.arange(
        -20, 30
    ).repeat(20)
    values = np.concatenate([[2.7, 0.1, 1.0273438, 1e-30], values]).astype(np.float32)
    found = Table("a.cs", structured({"x": values})).floats("x")
    assert found[:4].tolist() == [2.7, 0.1, 1.0273438, 1e-30]
    np.testing.assert_array_equal(found.astype(np.float32), values)


def test_paths_lose_the_mark_of_cryosparc():
    rows = structured({"blob/path": np.array([b">J1/a.mrc", "J1/\u00e4.mrc".encode()])})
    assert Table("a.cs", rows).text("blob/path") == ["J1/a.mrc", "J1/ä.mrc"]


def test_tables_are_joined_by_uid_whatever_their_order():
    rows = cs_table()
    order = np.random.default_rng(2).permutation(N)
    first = Table("a.cs", fields_of(rows, "uid", "blob/path", "blob/idx"))
    other = Table("b.cs", fields_of(rows, "uid", "blob/idx", "ctf/df1_A", "alignments3D/pose")[order])
    other.rows["blob/idx"] += 1
    joined = join(first, [other])
    assert joined.fields == ("uid", "blob/path", "blob/idx", "ctf/df1_A", "alignments3D/pose")
    for name in joined.fields:
        np.testing.assert_array_equal(joined.rows[name], rows[name])


def test_a_passthrough_of_more_particles_is_taken_and_one_of_fewer_refused():
    rows = cs_table()
    few, all_ = (
        Table("a.cs", fields_of(rows, "uid", "blob/idx")[2:5]),
        Table("b.cs", fields_of(rows, "uid", "ctf/df1_A")),
    )
    np.testing.assert_array_equal(join(few, [all_]).rows["ctf/df1_A"], rows["ctf/df1_A"][2:5])
    short = Table("c.cs", all_.rows[3:])
    uid = rows["uid"][2]
    with pytest.raises(InputError, match=rf"c.cs: no row for 1 of 3 particles, the first of them with uid {uid}"):
        join(few, [short])
    with pytest.raises(InputError, match=r"c\.cs: no row for 3 of 3"):
        join(few, [Table("c.cs", all_.rows[:0])])
    with pytest.raises(InputError, match=r"c\.cs: no uid"):
        join(few, [Table("c.cs", fields_of(rows, "ctf/df1_A"))])
    twice = all_.rows[[0, 1, 2, 3, 4, 4]]
    with pytest.raises(InputError, match=r"c\.cs: row 6, uid: .* appears twice"):
        join(few, [Table("c.cs", twice)])


@pytest.mark.parametrize(
    ("field", "value", "shape", "message"),
    [
        ("ctf/df1_A", np.nan, (), "row 3, ctf/df1_A: expected finite numbers, found nan"),
        ("ctf/tilt_A", np.inf, (2,), "row 3, ctf/tilt_A: expected finite numbers, found [inf inf]"),
        ("blob/path", b"x", (), "blob/path: expected 1 numbers in each row, found 1 of type |S40"),
        ("ctf/tilt_A", 1, (3,), "ctf/tilt_A: expected 3 numbers in each row, found 2 of type float32"),
        ("ctf/none", 1, (), "no ctf/none; give the .cs file of the same job"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(field, value, shape, message):
    rows = cs_table()
    if field in rows.dtype.names:
        rows[field][2] = value
    with pytest.raises(InputError) as error:
        Table("a.cs", rows).floats(field, *shape)
    assert message in str(error.value)


def test_files_that_are_no_tables_are_refused_in_a_line():
    rows = cs_table()
    whole = Path(write_cs("whole.cs", rows)).read_bytes()
    Path("cut.cs").write_bytes(whole[:-5])
    np.array([{"a": 1}, None], dtype=object).dump("pickle.cs")
    with Path("objects.cs").open("wb") as handle:
        np.save(handle, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with Path("array.cs").open("wb") as handle:
        np.save(handle, np.zeros(3))
    with Path("archive.cs").open("wb") as handle:
        np.savez(handle, a=np.zeros(3))
    Path("stream.cs").write_bytes(b"\x94CSDAT" + bytes(50))
    Path("text.cs").write_text("data_\n")
    Path("empty.cs").touch()
    for name, words in (
        ("cut.cs", "expected a cryoSPARC .cs table: "),
        ("pickle.cs", "expected a cryoSPARC .cs table: "),
        ("objects.cs", "Object arrays cannot be loaded"),
        ("array.cs", "found a plain array"),
        ("archive.cs", "found a plain array"),
        ("stream.cs", "cryoSPARC's stream form"),
        ("text.cs", "expected a cryoSPARC .cs table: "),
        ("empty.cs", "found an empty file"),
        ("none.cs", "found nothing there"),
    ):
        with pytest.raises(InputError) as error:
            read_table(name)
        assert str(error.value).startswith(f"{name}: ")
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_no_damage_to_a_file_is_more_than_an_input_error():
    whole = Path(write_cs("a.cs", cs_table())).read_bytes()
    header = whole.index(b"\n")
    rng = np.random.default_rng(5)
    damaged = [whole[:length] for length in rng.integers(0, len(whole), 40)]
    for _ in range(200):
        place = int(rng.integers(0, header))
        damaged.append(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
    refused = 0
    for data in damaged:
        Path("b.cs").write_bytes(data)
        try:
            read_table("b.cs")
        except InputError:
            refused += 1
    assert refused > 60
