"""Tables of movies and micrographs: sane optics, found files, stems that do not collide."""

from __future__ import annotations

from pathlib import Path

import pytest

from spa.errors import InputError
from spa.io import star
from spa.io.finished import remove_leftovers
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
    names = ["MotionCorr/job002/Movies/a.mrc", "Movies/a.tiff", "/data/set/raw/b.eer", "../raw/b.eer", "c"]
    assert unique_stems(names) == ["Movies/a", "Movies/a_2", "raw/b", "raw/b_2", "c"]
    assert unique_stems(["a.mrc", "a.tif", "a_2.mrc"]) == ["a", "a_2", "a_2_2"]


def test_leftovers_of_dead_processes_only_are_removed() -> None:
    for name in (".a.mrc.999999999.0123abcd.tmp", ".a.mrc.1.0123abcd.tmp", ".mine.tmp", "a.mrc"):
        Path(name).touch()
    remove_leftovers([Path(), Path("none")])
    assert sorted(path.name for path in Path().iterdir()) == [".a.mrc.1.0123abcd.tmp", ".mine.tmp", "a.mrc"]
