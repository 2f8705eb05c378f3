"""Coordinates of other programs: the same places from every format, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.errors import InputError
from spa.io import star
from spa.io.coordinate_tables import gather, known_micrographs, match, write_coordinates
from spa.io.coordinates import FOM, Picks, micrograph_stem, read_coordinates
from spa.io.star import Block, StarFile

X = np.array([30.5, 700.0, 12.0])
Y = np.array([20.0, 41.5, 380.0])
SCORE = np.array([0.75, -1.5, 3.25])
ROWS, COLUMNS = 400, 720
LOCATION = [
    ("uid", "<u8"),
    ("location/micrograph_path", "S125"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/center_x_frac", "<f4"),
    ("location/center_y_frac", "<f4"),
    ("pick_stats/ncc_score", "<f4"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_box(size: int = 25) -> str:
    lines = [f"{x - size / 2}\t{y - (size + 1) / 2}\t{size}\t{size + 1}" for x, y in zip(X, Y, strict=True)]
    Path("foo.box").write_text("\n".join(lines) + "\n")
    return "foo.box"


def write_cbox() -> str:
    header = ["CoordinateX", "CoordinateY", "CoordinateZ", "Width", "Height", "Depth", "EstWidth", "EstHeight"]
    header += ["Confidence", "NumBoxes", "Angle"]
    text = "\ndata_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n"
    text += "".join(f"__{name} #{i}\n" for i, name in enumerate(header, 1)).replace("__", "_")
    for x, y, score in zip(X, Y, SCORE, strict=True):
        text += f"{x - 15} {y - 15} <NA> 30 30 1 27.5 27.5 {score} <NA> <NA>\n"
    Path("foo.cbox").write_text(text + "\ndata_cryolo_include\n\nloop_\n_slice_index #1\n")
    return "foo.cbox"


def write_topaz(separator: str = "\t") -> str:
    rows = [("image_name", "x_coord", "y_coord", "score")]
    rows += [("foo", x, y, score) for x, y, score in zip(X, Y, SCORE, strict=True)]
    Path("foo.txt").write_text("\n".join(separator.join(map(str, row)) for row in rows) + "\n")
    return "foo.txt"


def cs_table(n: int = 3) -> np.ndarray:
    table = np.zeros(n, dtype=LOCATION)
    table["location/micrograph_path"] = b"J7/motioncorrected/001234567890123456789_foo_patch_aligned.mrc"
    table["location/micrograph_shape"] = (ROWS, COLUMNS)
    table["location/center_x_frac"] = X[:n] / COLUMNS
    table["location/center_y_frac"] = Y[:n] / ROWS
    table["pick_stats/ncc_score"] = SCORE[:n]
    return table


def write_cs(table: np.ndarray) -> str:
    with Path("foo.cs").open("wb") as handle:
        np.save(handle, table)
    return "foo.cs"


def write_star() -> str:
    columns = {"rlnCoordinateX": X, "rlnCoordinateY": Y, FOM: SCORE, "rlnAnglePsi": np.zeros(3)}
    star.write("foo_manual.star", StarFile([Block.table("", columns)]))
    return "foo_manual.star"


@pytest.mark.parametrize("kind", ["box", "cbox", "topaz", "cs", "star"])
def test_every_format_gives_the_same_centres_and_scores(kind: str) -> None:
    writers = {"box": write_box, "cbox": write_cbox, "topaz": write_topaz, "star": write_star}
    name = write_cs(cs_table()) if kind == "cs" else writers[kind]()
    (picks,) = read_coordinates(name)
    assert micrograph_stem(picks.micrograph) == ("foo_patch_aligned" if kind == "cs" else "foo")
    np.testing.assert_allclose(picks.table.floats("rlnCoordinateX"), X, atol=1e-4)
    np.testing.assert_allclose(picks.table.floats("rlnCoordinateY"), Y, atol=1e-4)
    if kind != "box":
        np.testing.assert_allclose(picks.table.floats(FOM), SCORE)


def test_topaz_may_be_separated_by_spaces_and_hold_several_micrographs() -> None:
    path = Path(write_topaz(" "))
    path.write_text(path.read_text() + "bar 1 2 0.5\nfoo 9 8 0.25\n")
    foo, bar = read_coordinates(path)
    assert (foo.micrograph, bar.micrograph) == ("foo", "bar")
    assert len(foo.table) == 4
    assert bar.table.floats("rlnCoordinateY").tolist() == [2.0]


def test_cryosparc_coordinates_of_mirrored_micrographs_are_turned() -> None:
    (picks,) = read_coordinates(write_cs(cs_table()), flip_y=True)
    np.testing.assert_allclose(picks.table.floats("rlnCoordinateX"), X, atol=1e-4)
    np.testing.assert_allclose(picks.table.floats("rlnCoordinateY"), ROWS - Y, atol=1e-4)


def test_a_star_file_of_several_micrographs_keeps_other_columns() -> None:
    columns = {"rlnMicrographName": ["a.mrc", "b.mrc", "a.mrc"], "rlnCoordinateX": X, "rlnCoordinateY": Y}
    star.write("particles.star", StarFile([Block.table("particles", {**columns, "rlnHelicalTubeID": [1, 1, 2]})]))
    a, b = read_coordinates("particles.star")
    assert a.micrograph == "a.mrc"
    assert a.table.columns == ["rlnCoordinateX", "rlnCoordinateY", "rlnHelicalTubeID"]
    assert a.table.text("rlnHelicalTubeID") == ["1", "2"]
    assert b.table.floats("rlnCoordinateX").tolist() == [700.0]


def test_scale_and_score_choose() -> None:
    (picks,) = read_coordinates(write_topaz())
    np.testing.assert_allclose(picks.scaled(4).table.floats("rlnCoordinateX"), 4 * X)
    assert picks.above(0.75).table.floats(FOM).tolist() == [0.75, 3.25]
    (boxes,) = read_coordinates(write_box())
    assert len(boxes.above(99).table) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.box", "10 20 30\n", "a.box: line 1: expected x, y, width and height of a box, found '10 20 30'"),
        ("a.box", "1 2 3 4\n1 nan 3 4\n", "a.box: line 2: expected x, y"),
        (
            "a.txt",
            "x y\n1 2\n",
            "a.txt: line 1: expected the columns image_name, x_coord, y_coord, found no image_name",
        ),
        ("a.txt", "image_name x_coord y_coord\nfoo 1\n", "a.txt: line 2: expected 3 values, found 2"),
        ("a.txt", "image_name x_coord y_coord\nfoo 1 zwei\n", "a.txt: line 2, column y_coord: expected a number"),
        ("a.cbox", "data_global\n_x 1\n", "a.cbox: no block data_cryolo"),
        ("a.star", "data_\nloop_\n_rlnImageName\n1@a.mrcs\n", "a.star: expected a table with rlnCoordinateX"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 x\n", "row 1, column rlnCoordinateY: expected"),
        ("a.cs", "not numpy", "a.cs: expected a cryoSPARC .cs table"),
        ("a.json", "{}", "a.json: expected coordinates in a file of the sort .star"),
        ("a.box", "", "a.box: expected a file of coordinates, found an empty file"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(name: str, text: str, message: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(InputError) as error:
        read_coordinates(name)
    assert message in str(error.value)


def test_cryosparc_tables_without_places_are_told() -> None:
    table = cs_table()
    without = np.zeros(3, dtype=[field for field in LOCATION if field[0] != "location/center_x_frac"])
    with pytest.raises(InputError, match=r"no location/center_x_frac; give the \.cs file of the same job"):
        read_coordinates(write_cs(without))
    table["location/center_y_frac"][1] = np.nan
    with pytest.raises(InputError, match="row 2"):
        read_coordinates(write_cs(table))
    with pytest.raises(InputError, match="expected particles, found none"):
        read_coordinates(write_cs(cs_table(0)))
    with pytest.raises(InputError, match="found a plain array"):
        read_coordinates(write_cs(np.zeros(3)))


def test_real_cryosparc_files_are_read_or_refused_with_a_reason(shared_data: Path) -> None:
    for path in sorted((shared_data / "star_vintages").rglob("*.cs")):
        with pytest.raises(InputError, match=r"no location/|expected particles, found none"):
            read_coordinates(path)


def test_the_field_names_are_those_of_real_cryosparc_files(shared_data: Path) -> None:
    table = np.load(shared_data / "star_vintages/cryosparc_tools/4k_dataset.cs")
    assert {name for name, *_ in LOCATION} <= set(table.dtype.names)


def test_curated_picks_are_inside_their_micrographs(shared_data: Path) -> None:
    for path in sorted((shared_data / "apoferritin/picks").glob("*.star")):
        (picks,) = read_coordinates(path)
        assert picks.table.floats("rlnCoordinateX").max() < 1240
        assert len(picks.table) > 50


def test_coordinates_find_their_micrograph() -> None:
    known = {stem: f"Micrographs/{stem}.mrc" for stem in ("foo", "foo_1", "foo_1_2", "bar_DW", "dup_a", "dup_b")}
    assert match("foo", known) == "Micrographs/foo.mrc"
    assert match("some/where/foo_1_manual.star", known) == "Micrographs/foo_1.mrc"
    assert match("J7/001234567890123456_foo_1_2_patch_aligned.mrc", known) == "Micrographs/foo_1_2.mrc"
    assert match("bar", known) == "Micrographs/bar_DW.mrc"
    assert match("dup", known) is None
    assert match("foo_DW_aligned", known) == "Micrographs/foo.mrc"
    assert match("foo_10", known) is None
    assert match("food", known) is None


def test_coordinates_of_a_micrograph_come_once() -> None:
    table = Block.table("", {"rlnCoordinateX": X, "rlnCoordinateY": Y})
    gathered: dict[str, Picks] = {}
    assert gather(gathered, [Picks("foo", table), Picks("bar", table)], {"foo": "m/foo.mrc"}) == ["bar"]
    assert list(gathered) == ["m/foo.mrc"]
    with pytest.raises(InputError, match=r"m/foo\.mrc: coordinates twice, as of foo and of foo_manual"):
        gather(gathered, [Picks("foo_manual", table)], {"foo": "m/foo.mrc"})


def test_micrographs_that_coordinates_cannot_tell_apart_are_refused() -> None:
    star.write("m.star", StarFile([Block.table("micrographs", {"rlnMicrographName": ["a/foo.mrc", "b/foo.mrc"]})]))
    with pytest.raises(InputError, match=r"row 2, column rlnMicrographName: .* found 'b/foo.mrc' after 'a/foo.mrc'"):
        known_micrographs("m.star")


def test_tables_name_every_micrograph_and_its_file() -> None:
    table = Block.table("", {"rlnCoordinateX": X, "rlnCoordinateY": Y})
    names = ["MotionCorr/job002/Movies/foo.mrc", "MotionCorr/job002/Movies/bar.mrc"]
    write_coordinates(Path("Import/job004/coordinates.star"), {name: Picks("x", table) for name in names}, None)
    listed = star.read("Import/job004/coordinates.star")["coordinate_files"]
    assert listed.text("rlnMicrographName") == names
    files = listed.text("rlnMicrographCoordinates")
    assert files == [f"Import/job004/Movies/{stem}_coords.star" for stem in ("foo", "bar")]
    (picks,) = read_coordinates(files[0])
    assert picks.table.floats("rlnCoordinateX").tolist() == X.tolist()
