"""STAR files by RELION 1 to 5 and by others: each is read right, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import starfile

from spa.errors import InputError
from spa.io import star
from spa.io.particle_io import read_particles
from spa.io.star import Block, StarFile
from spa.io.vintage import upgrade

REFUSED = {
    "sfftk_star/test_data3.star": "line 9: block data_7YW1 holds a second table",
    "sfftk_star/test_data6.star": "line 28: block data_refined_volume holds a second table",
    "sfftk_star/test_data7.star": "line 28: block data_refined_volume holds a second table",
}

OLD = """
data_images

loop_
_rlnVoltage #1
_rlnDefocusU #2
_rlnSphericalAberration #3
_rlnDetectorPixelSize #4
_rlnMagnification #5
_rlnAmplitudeContrast #6
_rlnImageName #7
_rlnOriginX #8
_rlnOriginY #9
_rlnMine #10
300.0 10000.0 2.7 14.0 40000.0 0.1 000001@s.mrcs 1.0 -2.0 keep
200.0 11000.0 2.7 14.0 40000.0 0.1 000002@s.mrcs 3.0 0.5 me
300.0 12000.0 2.7 14.0 40000.0 0.1 000003@s.mrcs 0.0 0.0 007
300.0 12000.0 2.7 14.0 20000.0 0.1 000004@s.mrcs 1.0 1.0 x
"""


def vintage_files(shared_data: Path) -> list[Path]:
    return sorted(path for path in (shared_data / "star_vintages").rglob("*") if path.is_file())


def test_every_vintage_is_read_right_or_refused_with_a_reason(shared_data: Path, tmp_path: Path) -> None:
    files = vintage_files(shared_data)
    assert len(files) >= 50
    for path in files:
        name = path.relative_to(shared_data / "star_vintages").as_posix()
        if path.suffix == ".cs" or name in REFUSED:
            reason = REFUSED.get(name, "a cryoSPARC .cs table, not a STAR file; turn it into one with: spa convert")
            with pytest.raises(InputError) as error:
                star.read(path)
            assert str(error.value).startswith(f"{path}: {reason}")
            continue
        ours = star.read(path)
        agree_with_starfile(path, ours)
        star.write(tmp_path / "again.star", ours)
        again = star.read(tmp_path / "again.star")
        assert again.names == ours.names
        for block in ours:
            assert again[block.name].loop == block.loop
            assert again[block.name].frame.equals(block.frame)


def agree_with_starfile(path: Path, ours: StarFile) -> None:
    """The values are those that another reader finds."""
    text = sorted({column for block in ours for column in block.columns})
    theirs = starfile.read(path, always_dict=True, parse_as_string=text)
    assert list(theirs) == ours.names
    for block in ours:
        found = theirs[block.name]
        if not block.loop:
            assert {key: str(value) for key, value in found.items()} == {c: block.get_text(c) for c in block.columns}
            continue
        assert list(found.columns) == block.columns
        for column in block.columns:
            assert block.text(column) == [str(value) for value in found[column]]


@pytest.mark.parametrize(
    ("name", "n", "pixel_size", "box_size", "first_origin_x"),
    [
        ("compspi/test.star", 452, 1.911, 128, -6.4048),
        ("simplecryoem/pyem.star", 24, 3.54, 64, -11.6962),
        ("localrec/particles.star", 99, 3.540002, 0, 0.0),
    ],
)
def test_particles_of_every_vintage(
    shared_data: Path, name: str, n: int, pixel_size: float, box_size: int, first_origin_x: float
) -> None:
    particles = read_particles(shared_data / "star_vintages" / name)
    assert len(particles) == n
    assert particles.pixel_size == pytest.approx(pixel_size, abs=1e-6)
    assert particles.box_size == box_size
    assert particles.origin_x_angst[0] == pytest.approx(first_origin_x)
    assert particles.has_ctf


def test_micrographs_without_optics_are_upgraded(shared_data: Path) -> None:
    found = upgrade(star.read(shared_data / "star_vintages" / "localrec" / "micrographs.star"))
    assert found.names == ["optics", "micrographs"]
    assert found["optics"].get_float("rlnMicrographPixelSize") == pytest.approx(3.540002)
    assert found["micrographs"].integers("rlnOpticsGroup").tolist() == [1] * 15
    assert "rlnVoltage" not in found["micrographs"]


def test_subtomograms_are_refused(shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"rlnImageDimensionality: expected 2 \(images\), found 3 \(sub-tomograms\)"):
        read_particles(shared_data / "star_vintages" / "pycrest" / "test_2018.star")


def old(tmp_path: Path, text: str = OLD) -> StarFile:
    path = tmp_path / "old.star"
    path.write_text(text)
    return star.read(path)


def test_an_old_file_gets_optics_groups_by_distinct_values(tmp_path: Path) -> None:
    found = upgrade(old(tmp_path, OLD + "\ndata_extra\n_x 1\n"))
    assert found.names == ["optics", "particles", "extra"]
    optics, table = found["optics"], found["particles"]
    assert optics.integers("rlnOpticsGroup").tolist() == [1, 2, 3]
    assert optics.floats("rlnVoltage").tolist() == [300.0, 200.0, 300.0]
    assert optics.floats("rlnImagePixelSize").tolist() == [3.5, 3.5, 7.0]
    assert table.integers("rlnOpticsGroup").tolist() == [1, 2, 1, 3]
    assert table.columns == [
        "rlnDefocusU", "rlnImageName", "rlnMine", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroup"
    ]  # fmt: skip
    np.testing.assert_allclose(table.floats("rlnOriginXAngst"), [3.5, 10.5, 0.0, 7.0])
    np.testing.assert_allclose(table.floats("rlnOriginYAngst"), [-7.0, 1.75, 0.0, 7.0])
    assert table.text("rlnMine") == ["keep", "me", "007", "x"]


def test_upgrading_leaves_the_original_and_is_done_once(tmp_path: Path) -> None:
    before = old(tmp_path)
    once = upgrade(before)
    assert before.names == ["images"]
    assert "rlnOriginX" in before["images"]
    twice = upgrade(once)
    assert all(twice[block.name].frame.equals(block.frame) for block in once)


def test_pixel_size_from_elsewhere(tmp_path: Path) -> None:
    text = OLD.replace("_rlnMagnification", "_rlnOther").replace("_rlnDetectorPixelSize", "_rlnAnother")
    with pytest.raises(InputError, match=r"data_images: no rlnMagnification and rlnDetectorPixelSize"):
        upgrade(old(tmp_path, text))
    assert upgrade(old(tmp_path, text), pixel_size=2.0)["optics"].floats("rlnImagePixelSize").tolist() == [2.0, 2.0]
    named = upgrade(old(tmp_path, text.replace("_rlnAnother", "_rlnPixelSize")))
    assert named["optics"].floats("rlnImagePixelSize").tolist() == [14.0, 14.0]


def test_what_cannot_be_upgraded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2, column rlnMagnification: expected a number above 0"):
        upgrade(old(tmp_path, OLD.replace("11000.0 2.7 14.0 40000.0", "11000.0 2.7 14.0 0")))
    with pytest.raises(InputError, match=r"row 3, column rlnOriginX: expected a finite number, found 'nan'"):
        upgrade(old(tmp_path, OLD.replace("000003@s.mrcs 0.0", "000003@s.mrcs nan")))
    with pytest.raises(InputError, match=r"no data_optics and no table with rlnImageName or .*; blocks: data_mtf"):
        upgrade(StarFile([Block.table("mtf", {"rlnMtfValue": [1.0]})], "mtf.star"))


def test_shifts_in_pixels_beside_optics_groups(tmp_path: Path) -> None:
    optics = Block.table("optics", {"rlnOpticsGroup": [2, 1], "rlnImagePixelSize": [2.0, 3.0]})
    table = Block.table("particles", {"rlnOpticsGroup": [1, 2], "rlnOriginX": [1.0, 1.0], "rlnImageName": ["a", "b"]})
    found = upgrade(StarFile([optics, table]))["particles"]
    assert found.floats("rlnOriginXAngst").tolist() == [3.0, 2.0]
    assert "rlnOriginX" not in found
