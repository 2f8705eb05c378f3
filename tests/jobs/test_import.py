"""`spa import`: what it finds, what it checks, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from spa.cli import main
from spa.errors import InputError
from spa.io import mrc, star
from spa.io.coordinates import read_coordinates
from spa.io.headers import ImageHeader, image_header, odd_ones
from spa.io.patterns import found_files
from spa.io.star import Block, StarFile

RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_mrc(name: str, shape: tuple[int, ...] = (24, 32), pixel_size: float = 1.25) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(name, overwrite=True) as file:
        file.set_data(RNG.normal(size=shape).astype(np.float32))
        file.voxel_size = pixel_size
    return name


def write_tiff(name: str, shape: tuple[int, int] = (24, 32)) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    frames = RNG.integers(0, 9, (5, *shape)).astype(np.uint8)
    tifffile.imwrite(name, frames, photometric="minisblack", compression="lzw")
    return name


def run(*arguments: str) -> int:
    return main.run(["import", "--odir", "Import/job001/", *arguments])


def test_micrographs_get_an_optics_group_in_natural_order() -> None:
    for i in (1, 2, 10):
        write_mrc(f"Micrographs/m{i}.mrc")
    flags = ["--optics_group_name", "krios", "--kV", "200", "--Cs", "1.4", "--Q0", "0.07", "--beamtilt_y", "-0.5"]
    Path("mtf.star").write_text("data_\nloop_\n_rlnResolutionInversePixel\n_rlnMtfValue\n0 1\n0.5 0.3\n")
    assert run("--i", "Micrographs/*.mrc", "--mtf", "mtf.star", *flags) == 0
    found = star.read("Import/job001/micrographs.star")
    assert found.names == ["optics", "micrographs"]
    assert found["micrographs"].text("rlnMicrographName") == [f"Micrographs/m{i}.mrc" for i in (1, 2, 10)]
    assert found["micrographs"].integers("rlnOpticsGroup").tolist() == [1, 1, 1]
    optics = found["optics"]
    assert (optics.get_text("rlnOpticsGroupName"), optics.get_text("rlnMtfFileName")) == ("krios", "mtf.star")
    expected = {
        "rlnMicrographPixelSize": 1.25,
        "rlnMicrographOriginalPixelSize": 1.25,
        "rlnVoltage": 200,
        "rlnSphericalAberration": 1.4,
        "rlnAmplitudeContrast": 0.07,
        "rlnBeamTiltX": 0,
        "rlnBeamTiltY": -0.5,
    }
    assert {name: optics.get_float(name) for name in expected} == expected


@pytest.mark.parametrize("write", [write_tiff, lambda name: write_mrc(name.replace(".tiff", ".mrcs"), (5, 24, 32))])
def test_movies_of_tiff_and_mrc(write: Callable[[str], str]) -> None:
    names = [write(f"Movies/v{i}.tiff") for i in range(3)]
    assert run("--i", f"Movies/*{Path(names[0]).suffix}", "--angpix", "1.25") == 0
    found = star.read("Import/job001/movies.star")
    assert found["movies"].text("rlnMicrographMovieName") == names
    assert found["optics"].get_float("rlnMicrographOriginalPixelSize") == 1.25
    assert "rlnMicrographPixelSize" not in found["optics"]


def test_the_pixel_size_comes_from_the_headers_or_is_held_against_them(capsys: pytest.CaptureFixture[str]) -> None:
    write_mrc("a.mrc", pixel_size=1.5)
    assert run("--i", "a.mrc") == 0
    assert star.read("Import/job001/micrographs.star")["optics"].get_float("rlnMicrographPixelSize") == 1.5
    assert capsys.readouterr().err == ""
    assert run("--i", "a.mrc", "--angpix", "1.502") == 0
    assert capsys.readouterr().err == ""
    assert run("--i", "a.mrc", "--angpix", "3") == 0
    assert "--angpix 3: 1 headers say another pixel size, as a.mrc: 1.5 Å" in capsys.readouterr().err
    assert star.read("Import/job001/micrographs.star")["optics"].get_float("rlnMicrographPixelSize") == 3
    write_mrc("b.mrc", pixel_size=2)
    assert run("--i", "[ab].mrc") == 1
    assert "b.mrc: 2 Å/px in the header, 1.5 in others; give --angpix" in capsys.readouterr().err
    write_mrc("c.mrc", pixel_size=0)
    assert run("--i", "c.mrc") == 1
    assert "c.mrc: no pixel size in the header; give --angpix" in capsys.readouterr().err
    write_mrc("one.mrc", pixel_size=1)
    assert run("--i", "one.mrc") == 1
    assert "one.mrc: no pixel size in the header" in capsys.readouterr().err
    assert run("--i", "one.mrc", "--angpix", "2") == 0
    assert capsys.readouterr().err == ""
    write_mrc("d.mrc", pixel_size=1e-10)
    assert run("--i", "d.mrc") == 1
    assert "column rlnMicrographPixelSize: expected 0.1 to 50 Å" in capsys.readouterr().err


def test_what_cannot_be_used_is_named_left_out_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [write_mrc(f"m/m{i:02d}.mrc") for i in range(20)]
    Path(names[3]).write_bytes(Path(names[3]).read_bytes()[:-100])
    Path(names[7]).write_bytes(b"")
    Path(names[9]).write_text("no image")
    write_mrc(names[11], (24, 30))
    write_mrc(names[13], (4, 24, 32))
    assert run("--i", "m/*.mrc") == 0
    assert len(star.read("Import/job001/micrographs.star")["micrographs"]) == 15
    failed = star.read("Import/job001/micrographs_failed.star")["micrographs"]
    assert failed.text("rlnMicrographName") == [names[i] for i in (3, 7, 9, 11, 13)]
    reasons = failed.text("spaFailure")
    for reason, words in zip(
        reasons,
        ["truncated", "found an empty file", "expected an MRC file", "30 x 24 pixels, expected 32 x 24", "a movie"],
        strict=True,
    ):
        assert words in reason
    shown = capsys.readouterr().err.splitlines()
    assert sorted(shown) == sorted(f"warning: left out {reason}" for reason in reasons)


def test_among_movies_a_gain_and_truncated_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    names = [write_tiff(f"m/v{i}.tiff") for i in range(6)]
    tifffile.imwrite("m/gain.tiff", np.ones((24, 32), np.float32))
    for name, kept in ((names[1], 0.5), (names[4], 0.99)):
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: int(kept * len(data))])
    assert run("--i", "m/*.tiff", "--angpix", "1.2") == 0
    assert star.read("Import/job001/movies.star")["movies"].text("rlnMicrographMovieName") == [
        names[i] for i in (0, 2, 3, 5)
    ]
    failed = star.read("Import/job001/movies_failed.star")["movies"]
    assert failed.text("rlnMicrographMovieName") == ["m/gain.tiff", names[1], names[4]]
    reasons = failed.text("spaFailure")
    assert reasons[0].startswith("m/gain.tiff: expected frames, found one image: a gain reference, or a micrograph")
    assert all("truncated" in reason for reason in reasons[1:])
    assert capsys.readouterr().err.count("\n") == 3


def test_for_a_folder_the_pattern_of_its_files_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    write_tiff("m/v.tiff")
    assert run("--i", "m") == 1
    assert "found a folder; give a pattern, as 'm/*.tiff'" in capsys.readouterr().err


def test_images_of_two_sizes_are_refused() -> None:
    headers = {Path(f"{i}.mrc"): ImageHeader(24, 32 if i < 2 else 30, 1, 1.0) for i in range(4)}
    with pytest.raises(InputError, match=r"found 2 of 32 x 24 \(0.mrc\), 2 of 30 x 24 \(2.mrc\); import each size"):
        odd_ones(headers)
    del headers[Path("3.mrc")]
    assert odd_ones(headers) == {Path("2.mrc"): "2.mrc: 30 x 24 pixels, expected 32 x 24 as the other 2"}


def test_headers_of_tiff_are_rows_and_columns() -> None:
    header = image_header(write_tiff("v.tif", (24, 32)))
    assert header == ImageHeader(24, 32, 5, 0.0)
    assert header.size == "32 x 24"
    Path("no.tif").write_text("no tiff at all")
    with pytest.raises(InputError, match=r"no\.tif: expected a TIFF, found something else"):
        image_header("no.tif")
    tifffile.imwrite("rgb.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"rgb\.tif: expected frames of grey values, found pages of shape \(8, 8, 3\)"):
        image_header("rgb.tif")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--i", "none/*.mrc"], 1, "--i none/*.mrc: no file matches"),
        (["--i", "m"], 1, "--i m: expected files, found a folder; give a pattern, as 'm/*.mrc'"),
        (["--i", "m/*.mrc", "--kV", "3"], 2, "--kV 3: expected 30 to 1000 kV"),
        (["--i", "m/*.mrc", "--angpix", "0"], 2, "--angpix 0: expected 0.1 to 50 Å"),
        (["--i", "m/*.mrc", "--Cs", "2700"], 2, "--Cs 2700: expected 0 to 10 mm"),
        (["--i", "m/*.mrc", "--do_movies", "--do_particles"], 2, "--do_movies --do_particles: expected one of them"),
        (["--i", "m/*.mrc", "--ofile", "a/b.star"], 2, "--ofile a/b.star: expected a name that ends in .star"),
        (["--i", "m/*.mrc", "--do_movies"], 1, "none of the 1 movies can be read; the first: m/a.mrc: expected frames"),
        (["--i", "m/*"], 1, "--i: files of the sorts .mrc, .txt: say what they are, as --do_movies"),
        (["--i", "m/*.mrc", "--mtf", "m/a.txt"], 1, "m/a.txt: "),
        (["--i", "m/*.mrc", "--do_particles"], 1, "m/a.mrc: expected a STAR file, found binary data"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mrc("m/a.mrc")
    Path("m/a.txt").write_text("text")
    assert run(*arguments) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1
    assert message in lines[0]


def test_patterns_are_sorted_as_people_count_and_each_file_comes_once() -> None:
    for name in ("a10.mrc", "a9.mrc", "sub/a1.mrc", "sub/deep/a2.mrc", "b[1].mrc"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert [str(path) for path in found_files(["a*.mrc", "./a9.mrc"])] == ["a9.mrc", "a10.mrc"]
    assert [str(path) for path in found_files(["sub/**/*.mrc"])] == ["sub/a1.mrc", "sub/deep/a2.mrc"]
    assert [str(path) for path in found_files(["b[1].mrc"])] == ["b[1].mrc"]


def write_particles(name: str, box: int = 16, stack_box: int = 16, columns: tuple[str, ...] = ()) -> None:
    """Five particles in a stack beside their STAR file, in the form of RELION 3.0."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    mrc.write_stack(Path(name).parent / "s.mrcs", RNG.normal(size=(5, stack_box, stack_box)), 2.0)
    values = {"rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(5)], "rlnCoordinateX": np.arange(5.0)}
    physics = {"rlnMagnification": 1e4, "rlnDetectorPixelSize": 2.0, "rlnVoltage": 300.0, "rlnDefocusU": 1e4}
    given = {label: [value] * 5 for label, value in physics.items() if label not in columns}
    star.write(name, StarFile([Block.table("", {**values, **given, "mine": list("abcde")})]))


def test_particles_of_an_old_version_get_optics_groups(capsys: pytest.CaptureFixture[str]) -> None:
    write_particles("Old/particles.star")
    assert run("--i", "Old/particles.star", "--optics_group_name", "krios", "--Q0", "0.1") == 0
    found = star.read("Import/job001/particles.star")
    table, optics = found["particles"], found["optics"]
    assert table.text("rlnImageName")[4] == "000005@Old/s.mrcs"
    assert table.text("mine") == list("abcde")
    assert optics.get_text("rlnOpticsGroupName") == "krios"
    assert optics.get_float("rlnImagePixelSize") == 2
    assert optics.get_integer("rlnImageSize") == 16
    assert optics.get_float("rlnAmplitudeContrast") == 0.1
    assert "no column rlnSphericalAberration; give --Cs" in capsys.readouterr().err
    record = json.loads(Path("Import/job001/job.json").read_text())
    assert "Old/particles.star" in record["inputs"]


def test_particles_without_their_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_particles("p.star")
    Path("s.mrcs").rename("t.mrcs")
    assert run("--i", "p.star") == 1
    assert "s.mrcs" in capsys.readouterr().err
    mrc.write_stack("s.mrcs", RNG.normal(size=(3, 16, 16)), 2.0)
    assert run("--i", "p.star") == 1
    assert "row 5, column rlnImageName: image 5 of s.mrcs, which holds 3" in capsys.readouterr().err
    assert not Path("Import/job001/particles.star").exists()


def write_picks() -> None:
    for name in ("foo", "bar"):
        write_mrc(f"MotionCorr/job002/Movies/{name}.mrc")
    assert main.run(["import", "--odir", "M/", "--i", "MotionCorr/job002/Movies/*.mrc"]) == 0
    Path("picks").mkdir()
    Path("picks/foo.box").write_text("0 4 10 12\n10 8 4 4\n")
    Path("picks/bar.box").write_text("20 10 2 2\n")


def test_coordinates_are_written_for_the_micrographs_they_belong_to(capsys: pytest.CaptureFixture[str]) -> None:
    write_picks()
    Path("picks/other.box").write_text("1 1 2 2\n")
    Path("picks/torn.box").write_text("1 1 2\n")
    capsys.readouterr()
    assert run("--i", "picks/*.box", "--micrographs", "M/micrographs.star") == 0
    listed = star.read("Import/job001/coordinates.star")["coordinate_files"]
    assert listed.text("rlnMicrographName") == [f"MotionCorr/job002/Movies/{name}.mrc" for name in ("bar", "foo")]
    files = listed.text("rlnMicrographCoordinates")
    assert files == [f"Import/job001/Movies/{name}_coords.star" for name in ("bar", "foo")]
    (foo,) = read_coordinates(files[1])
    assert foo.table.floats("rlnCoordinateX").tolist() == [5, 12]
    assert foo.table.floats("rlnCoordinateY").tolist() == [10, 10]
    assert Path("Import/job001/coords_suffix_coords.star").read_text() == "M/micrographs.star\n"
    shown = capsys.readouterr()
    assert "3 coordinates in 2 micrographs" in shown.out
    assert "picks/other.box: 1 micrographs are not in M/micrographs.star, as other" in shown.err
    assert "picks/torn.box: line 1: expected" in shown.err


def test_coordinates_of_binned_micrographs_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    write_picks()
    known = ["--micrographs", "M/micrographs.star"]
    assert run("--i", "picks/foo.box", *known, "--coordinate_scale", "0.5") == 0
    (foo,) = read_coordinates("Import/job001/Movies/foo_coords.star")
    assert foo.table.floats("rlnCoordinateX").tolist() == [2.5, 6]
    assert run("--i", "picks/foo.box", *known, "--coordinate_scale", "4") == 1
    assert "2 of 2 coordinates lie outside its 32 x 24 pixels, as (20, 40)" in capsys.readouterr().err


def test_coordinates_without_micrographs_keep_the_names_of_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.txt").write_text("image_name\tx_coord\ty_coord\tscore\nfoo\t3\t4\t-1\nfoo\t5\t6\t2\nbar\t7\t8\t0.5\n")
    assert run("--i", "t.txt", "--minimum_pick_fom", "0") == 0
    listed = star.read("Import/job001/coordinates.star")["coordinate_files"]
    assert listed.text("rlnMicrographName") == ["foo.mrc", "bar.mrc"]
    (foo,) = read_coordinates("Import/job001/foo_coords.star")
    assert foo.table.floats("rlnCoordinateX").tolist() == [5]
    assert "without --micrographs" in capsys.readouterr().err


def test_half_maps_and_other_files_are_copied() -> None:
    for i in (1, 2):
        write_mrc(f"maps/run_half{i}_class001_unfil.mrc", (16, 16, 16))
    assert run("--i", "maps/run_half*.mrc", "--do_halfmaps") == 0
    copied = Path("Import/job001/run_half2_class001_unfil.mrc")
    assert copied.read_bytes() == Path("maps/run_half2_class001_unfil.mrc").read_bytes()
    Path("notes.txt").write_text("a note")
    assert run("--i", "notes.txt", "--do_other") == 0
    assert Path("Import/job001/notes.txt").read_text() == "a note"
    write_mrc("flat.mrc")
    assert run("--i", "flat.mrc", "--do_halfmaps") == 1


def test_real_micrographs(shared_data: Path) -> None:
    pattern = str(shared_data / "apoferritin/micrographs/*.mrc")
    assert run("--i", pattern, "--kV", "300", "--Cs", "0.001", "--Q0", "0.07", "--angpix", "1.5") == 0
    table = star.read("Import/job001/micrographs.star")["micrographs"]
    assert len(table) == 8
    assert Path(table.text("rlnMicrographName")[0]).is_file()
