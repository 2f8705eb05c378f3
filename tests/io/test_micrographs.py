"""Tables of movies and micrographs: sane optics, found files, stems that do not collide; memory that is free."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spa.errors import InputError
from spa.io import star
from spa.io.finished import Finished, remove_leftovers
from spa.io.memory import available_memory
from spa.io.micrograph_tables import Row, write_rows
from spa.io.micrographs import read_items, unique_stems
from spa.io.star import Block, StarFile

OPTICS = {
    "rlnOpticsGroupName": "krios",
    "rlnOpticsGroup": 7,
    "rlnMicrographOriginalPixelSize": 0.5,
    "rlnMicrographPixelSize": 1.0,
    "rlnVoltage": 300,
    "rlnSphericalAberration": 2.7,
    "rlnAmplitudeContrast": 0.1,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, names: list[str], kind: str = "micrographs", **optics: object) -> str:
    """A table of images in one optics group, some of whose values are changed (None: left out)."""
    column = "rlnMicrographName" if kind == "micrographs" else "rlnMicrographMovieName"
    values = {name: [value] for name, value in {**OPTICS, **optics}.items() if value is not None}
    table = Block.table(kind, {column: names, "rlnOpticsGroup": [7] * len(names)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    star.write(path, StarFile([Block.table("optics", values), table]))
    return path


def read(path: str, kind: str = "micrographs") -> list:
    column = "rlnMicrographName" if kind == "micrographs" else "rlnMicrographMovieName"
    return read_items(path, kind, column, 1)[1]


@pytest.mark.parametrize(
    ("optics", "message"),
    [
        ({"rlnVoltage": 3}, "data_optics, row 1, column rlnVoltage: expected 30 to 1000 kV, found '3'"),
        ({"rlnVoltage": "nan"}, "column rlnVoltage: expected 30 to 1000 kV, found 'nan'"),
        ({"rlnVoltage": "high"}, "column rlnVoltage: expected 30 to 1000 kV, found 'high'"),
        ({"rlnVoltage": None}, "data_optics: no column rlnVoltage"),
        ({"rlnSphericalAberration": 2700}, "column rlnSphericalAberration: expected 0 to 10 mm"),
        ({"rlnAmplitudeContrast": 10}, "column rlnAmplitudeContrast: expected 0 to 1, found '10'"),
        ({"rlnMicrographPixelSize": 0}, "column rlnMicrographPixelSize: expected 0.1 to 50 Å"),
        (
            {"rlnMicrographPixelSize": None, "rlnMicrographOriginalPixelSize": None},
            "no pixel size, expected a column rlnMicrographPixelSize or rlnMicrographOriginalPixelSize",
        ),
        ({"rlnOpticsGroup": 8}, "data_micrographs, row 1, column rlnOpticsGroup: expected a group of data_optics"),
    ],
)
def test_optics_that_cannot_be_right_are_named(optics: dict[str, object], message: str) -> None:
    write("m.star", ["a.mrc"], **optics)
    with pytest.raises(InputError) as error:
        read("m.star")
    assert "m.star: " in str(error.value)
    assert message in str(error.value)


def test_groups_without_images_may_be_wrong() -> None:
    write("m.star", ["a.mrc"])
    found = star.read("m.star")
    wrong = {**OPTICS, "rlnOpticsGroup": 9, "rlnVoltage": 3}
    found.put(Block.table("optics", {name: [value, wrong[name]] for name, value in OPTICS.items()}))
    star.write("m.star", found)
    assert len(read("m.star")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (StarFile([Block.table("particles", {"rlnImageName": ["1@a.mrcs"]})]), "no block data_micrographs"),
        (StarFile([]), "expected a STAR file, found"),
    ],
)
def test_another_table_is_refused(content: StarFile, message: str) -> None:
    star.write("m.star", StarFile([Block.table("optics", {k: [v] for k, v in OPTICS.items()}), *content]))
    if not len(content):
        Path("m.star").write_text("nothing\n")
        message = "expected data_BLOCK"
    with pytest.raises(InputError, match=message):
        read("m.star")
    write("m.star", [])
    with pytest.raises(InputError, match="expected at least one row, found none"):
        read("m.star")
    with pytest.raises(InputError, match="expected a STAR file, found a folder"):
        read(".")


def test_pixel_sizes_are_those_of_the_image() -> None:
    (micrograph,) = read(write("m.star", ["a.mrc"]))
    (movie,) = read(write("v.star", ["a.tiff"], "movies"), "movies")
    assert (micrograph.pixel_size, movie.pixel_size) == (1.0, 0.5)
    (old,) = read(write("o.star", ["a.mrc"], rlnMicrographPixelSize=None))
    assert old.pixel_size == 0.5


def test_files_beside_the_star_file_are_found_from_the_working_folder() -> None:
    write("SIM/m.star", ["mics/a.mrc", "mics/b.mrc"], rlnMtfFileName="mtf.star")
    Path("SIM/mics").mkdir()
    for name in ("SIM/mics/a.mrc", "SIM/mtf.star", "SIM/a.ctf"):
        Path(name).touch()
    found = star.read("SIM/m.star")
    found["micrographs"].set("rlnCtfImage", ["a.ctf:mrc", "b.ctf:mrc"])
    star.write("SIM/m.star", found)
    here, missing = read("SIM/m.star")
    assert (here.path, here.stem) == (Path("SIM/mics/a.mrc"), "SIM/mics/a")
    assert here.row["rlnCtfImage"] == "SIM/a.ctf:mrc"
    assert here.optics["rlnMtfFileName"] == "SIM/mtf.star"
    assert missing.row == {"rlnMicrographName": "mics/b.mrc", "rlnOpticsGroup": "7", "rlnCtfImage": "b.ctf:mrc"}


def test_outputs_may_be_named_after_another_column() -> None:
    write("m.star", ["MotionCorr/job002/Movies/a.mrc"])
    found = star.read("m.star")
    found["micrographs"].set("rlnCtfPowerSpectrum", ["MotionCorr/job002/Movies/a_PS.mrc"])
    star.write("m.star", found)
    for named_after, stem in ((None, "Movies/a_PS"), ("rlnMicrographName", "Movies/a")):
        _, (item,) = read_items("m.star", "micrographs", "rlnCtfPowerSpectrum", 1, named_after=named_after)
        assert (item.path, item.stem) == (Path("MotionCorr/job002/Movies/a_PS.mrc"), stem)
    with pytest.raises(InputError, match="no column rlnMicrographMovieName"):
        read_items("m.star", "micrographs", "rlnCtfPowerSpectrum", 1, named_after="rlnMicrographMovieName")


def test_tables_of_relion_3_get_optics_groups(shared_data: Path) -> None:
    items = read(str(shared_data / "star_vintages/localrec/micrographs.star"))
    assert len(items) > 1
    assert items[0].pixel_size > 0.5
    assert float(items[0].optics["rlnVoltage"]) in (200, 300)


def test_seeds_do_not_depend_on_the_other_rows() -> None:
    first = read(write("m.star", ["a.mrc", "b.mrc", "c.mrc"]))
    again = read(write("m.star", ["c.mrc", "b.mrc"]))
    assert {item.path.name: item.random_seed for item in again}.items() <= {
        item.path.name: item.random_seed for item in first
    }.items()
    assert len({item.random_seed for item in first}) == 3


def test_stems_drop_the_job_folder_and_never_collide() -> None:
    names = ["MotionCorr/job002/Movies/a.mrc", "Movies/A.tiff", "/data/set/raw/b.eer", "../raw/b.eer", "c", "c"]
    stems = unique_stems(names)
    assert len({stem.lower() for stem in stems}) == len(names)
    hashed = r"_[0-9a-f]{8}"
    expected = (f"Movies/a{hashed}", f"Movies/A{hashed}", f"raw/b{hashed}", f"raw/b{hashed}", "c", f"c{hashed}")
    for stem, pattern in zip(stems, expected, strict=True):
        assert re.fullmatch(pattern, stem)
    assert unique_stems(["MotionCorr/job002/Movies/a.mrc"]) == ["Movies/a"]
    assert unique_stems([str(Path("Movies/a.mrc").absolute())]) == ["Movies/a"]


def test_stems_of_some_are_never_those_of_others() -> None:
    names = ["Movies/a.mrc", "Movies/a.tiff", "/one/raw/b.eer", "/two/raw/b.eer", "c.mrc"]
    stems = dict(zip(names, unique_stems(names), strict=True))
    assert unique_stems(names[::-1]) == list(stems.values())[::-1]
    for name in names:
        (alone,) = unique_stems([name])
        assert alone not in [stem for other, stem in stems.items() if other != name]
    assert unique_stems(names[2:]) == list(stems.values())[2:]


def test_a_reserved_stem_is_given_to_no_row() -> None:
    assert unique_stems(["gain.tiff", "m/gain.tiff"], ["gain"])[1] == "m/gain"
    assert re.fullmatch(r"gain_[0-9a-f]{8}", unique_stems(["gain.tiff"], ["gain"])[0])


def test_two_optics_groups_of_the_same_number_are_named() -> None:
    write("m.star", ["a.mrc"])
    found = star.read("m.star")
    found.put(Block.table("optics", {name: [value] * 2 for name, value in OPTICS.items()}))
    star.write("m.star", found)
    with pytest.raises(InputError, match=r"m.star: data_optics, rows 1 and 2, column rlnOpticsGroup: .* found 7"):
        read("m.star")


def test_the_reason_of_an_earlier_failure_is_left_out() -> None:
    write("m.star", ["a.mrc"])
    found = star.read("m.star")
    found["micrographs"].set("spaFailure", ["truncated"])
    star.write("m.star", found)
    found, (item,) = read_items("m.star", "micrographs", "rlnMicrographName", 1)
    assert "spaFailure" not in item.row
    assert "spaFailure" not in found["micrographs"]


def test_a_table_without_optics_or_pixel_size_says_what_makes_one() -> None:
    star.write("m.star", StarFile([Block.table("micrographs", {"rlnMicrographName": ["a.mrc"]})]))
    with pytest.raises(InputError, match=r"data_optics table with rlnMicrographPixelSize \(spa import makes one\)$"):
        read("m.star")


def test_columns_that_the_job_owns_are_only_those_of_this_run() -> None:
    write("m.star", ["a.mrc", "b.mrc"])
    found = star.read("m.star")
    for column in ("rlnPhaseShift", "rlnDefocusU", "mine"):
        found["micrographs"].set(column, [1, 2])
    rows: dict[int, Row] = {1: {"rlnDefocusU": 9.0}}
    table = write_rows("out.star", found, "micrographs", rows, None, ("rlnPhaseShift", "rlnDefocusU", "rlnOther"))
    assert table.columns == ["rlnMicrographName", "rlnOpticsGroup", "mine", "rlnDefocusU"]
    assert star.read("out.star")["micrographs"].floats("rlnDefocusU").tolist() == [9]
    kept = write_rows("out.star", found, "micrographs", rows, None)
    assert kept.floats("rlnPhaseShift").tolist() == [2]


def test_a_file_belongs_to_the_longest_stem_that_it_begins_with() -> None:
    items = read(write("m.star", ["mics/x.mrc", "mics/x_1.mrc"]))
    finished = Finished("out", {}, [item.stem for item in items])
    Path("out/mics").mkdir(parents=True)
    for name in ("x.mrc", "x_PS.mrc", "x_1.mrc", "x_1_PS.mrc", "x_10.mrc", "y.mrc"):
        Path("out/mics", name).touch()
    for item, expected in zip(items, (["x.mrc", "x_10.mrc", "x_PS.mrc"], ["x_1.mrc", "x_1_PS.mrc"]), strict=True):
        finished.keep(item, {})
        kept = json.loads(Path(f"out/{item.stem}_done.json").read_text())
        assert list(kept["files"]) == [f"out/mics/{name}" for name in expected]
    Path("out/mics/x_1.mrc").write_text("changed")
    assert finished.load(items[0]) == {}
    assert finished.load(items[1]) is None


def test_leftovers_of_dead_processes_only_are_removed() -> None:
    for name in (".a.mrc.999999999.0123abcd.tmp", ".a.mrc.1.0123abcd.tmp", ".mine.tmp", "a.mrc"):
        Path(name).touch()
    remove_leftovers([Path(), Path("none")])
    assert sorted(path.name for path in Path().iterdir()) == [".a.mrc.1.0123abcd.tmp", ".mine.tmp", "a.mrc"]


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable:    500 kB\n")
    assert available_memory(meminfo, tmp_path / "none") == 512000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_memory(meminfo, tmp_path) == 512000
    (tmp_path / "memory.max").write_text("4000\n")
    assert available_memory(meminfo, tmp_path) == 3000
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 300\n")
    assert available_memory(meminfo, tmp_path) == 3300
    assert available_memory(tmp_path / "none", tmp_path / "none") > 0
