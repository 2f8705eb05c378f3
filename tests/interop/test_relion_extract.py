"""`spa extract` and `spa select` beside RELION's relion_preprocess and relion_star_handler on the same files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from spa.cli.main import run
from spa.io import mrc, star
from spa.io.star import Block, StarFile

PIXEL, SHAPE = 1.5, (300, 340)
CENTRES = [(150, 150), (150.7, 120.3), (3, 5), (335, 296), (-4, 20), (339.9, 10), (345, 20), (20, -0.5), (77.5, 200)]
OPTICS = {
    "rlnOpticsGroupName": ["first"],
    "rlnOpticsGroup": [1],
    "rlnMicrographOriginalPixelSize": [PIXEL],
    "rlnMicrographPixelSize": [PIXEL],
    "rlnVoltage": [300.0],
    "rlnSphericalAberration": [2.7],
    "rlnAmplitudeContrast": [0.1],
}
CTF = {
    "rlnDefocusU": [10000.0, 12000.0],
    "rlnDefocusV": [9900.0, 11800.0],
    "rlnDefocusAngle": [30.0, 40.0],
    "rlnPhaseShift": [3.0, 4.0],
    "rlnCtfMaxResolution": [4.0, 5.0],
    "rlnCtfFigureOfMerit": [0.1, 0.2],
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Two micrographs with a slope and a bright patch, and picks of which some reach beyond them."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    names = ["Micrographs/a.mrc", "Micrographs/b.mrc"]
    x, y = np.array(CENTRES, dtype=float).T
    for name in names:
        image = 3 * draw.standard_normal(SHAPE) + 50 + np.linspace(0, 20, SHAPE[1])
        image[100:110, 100:110] += 60
        mrc.write_stack(name, image.astype(np.float32), PIXEL)
        columns = {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnAutopickFigureOfMerit": np.arange(len(x)) / 10}
        file = f"picks/Micrographs/{Path(name).stem}_picks.star"
        star.write(file, StarFile([Block.table("", columns)]))
    rows = {"rlnMicrographName": names, "rlnOpticsGroup": [1, 1], **CTF}
    star.write("mics.star", StarFile([Block.table("optics", OPTICS), Block.table("micrographs", rows)]))


def both(relion: Path, *arguments: str, size: int = 64) -> tuple[StarFile, StarFile]:
    """The particles that RELION and this program extract with the same flags."""
    flags = ["--i", "mics.star", "--extract_size", str(size), *arguments]
    theirs = [str(relion / "relion_preprocess"), "--extract", "--part_dir", "theirs/", "--part_star", "theirs/p.star"]
    done = subprocess.run([*theirs, *flags], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(["extract", "--part_dir", "ours", *flags, "--j", "1", "--random_seed", "1", "--quiet"]) == 0
    return star.read("theirs/p.star"), star.read("ours/particles.star")


def largest_difference() -> float:
    """Between the images of both, in standard deviations of theirs."""
    worst = 0.0
    for name in ("a", "b"):
        expected, found = (mrc.read(f"{folder}/Micrographs/{name}.mrcs")[0] for folder in ("theirs", "ours"))
        assert expected.shape == found.shape
        worst = max(worst, float((np.abs(expected - found).max(axis=(1, 2)) / expected.std(axis=(1, 2))).max()))
    return worst


PICKS = ("--coord_dir", "picks/", "--coord_suffix", "_picks.star")


@pytest.mark.parametrize("scale", [(), ("--scale", "40"), ("--scale", "50")])
@pytest.mark.parametrize("invert", [(), ("--invert_contrast",)])
@pytest.mark.parametrize("norm", [(), ("--norm", "--bg_radius", "19"), ("--norm", "--bg_radius", "15.8", "--no_ramp")])
def test_images_are_those_of_relion(relion, scale, invert, norm):
    both(relion, *PICKS, *scale, *invert, *norm)
    assert largest_difference() < 1e-5


def test_tables_are_those_of_relion(relion):
    theirs, ours = both(relion, *PICKS, "--scale", "40")
    for column in theirs["particles"].columns:
        expected, found = (part["particles"].text(column) for part in (theirs, ours))
        if column == "rlnImageName":
            found = [name.replace("ours/", "theirs/") for name in found]
        if column in ("rlnImageName", "rlnMicrographName"):
            assert found == expected
        else:
            assert np.allclose(ours["particles"].floats(column), theirs["particles"].floats(column), rtol=1e-5), column
    for column in theirs["optics"].columns[1:]:
        assert ours["optics"].floats(column) == pytest.approx(theirs["optics"].floats(column)), column


def test_the_same_pixels_count_as_dust(relion):
    """What replaces dust is drawn at random; the other pixels agree but for its part in the plane and the deviation."""
    both(relion, *PICKS, "--norm", "--bg_radius", "19", "--white_dust", "3", "--black_dust", "3")
    y, x = np.mgrid[:64, :64] - 32
    replaced = 0
    for name in ("a", "b"):
        for expected, found in zip(
            *(mrc.read(f"{f}/Micrographs/{name}.mrcs")[0] for f in ("theirs", "ours")), strict=True
        ):
            design = np.stack([expected, x, y, np.ones_like(x)], axis=-1).reshape(-1, 4)
            same = np.ones(len(design), dtype=bool)
            for _ in range(6):  # leaves out what does not follow from the other image, once it stands out
                fit = np.linalg.lstsq(design[same], found.ravel()[same], rcond=None)[0]
                residual = np.abs(design @ fit - found.ravel())
                same = residual < max(1e-4, np.quantile(residual, 0.9))
            assert fit[0] == pytest.approx(1, abs=0.1)
            assert residual[same].max() < 1e-4
            replaced += int((~same).sum())
            assert (~same).mean() < 0.02
    assert replaced > 20


def write_refined() -> Block:
    """A refinement's particles: those of `both` with poses, shifts and a CTF of their own."""
    found = star.read("theirs/p.star")
    table, draw = found["particles"], np.random.default_rng(3)
    for column in ("rlnOriginXAngst", "rlnOriginYAngst"):
        table.set(column, np.round(draw.normal(0, 6, len(table)), 3))
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        table.set(column, np.round(draw.uniform(0, 170, len(table)), 2))
    table.set("rlnDefocusU", table.floats("rlnDefocusU") + 111)
    star.write("refined.star", found)
    return table


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--recenter",),
        ("--recenter", "--scale", "32"),
        ("--reset_offsets",),
        ("--keep_ctfs_micrographs",),
        ("--recenter", "--recenter_x", "5", "--recenter_z", "3"),
        ("--recenter", "--recenter_x", "5", "--recenter_y", "-2", "--ref_angpix", "3"),
    ],
)
def test_refined_particles_are_extracted_again_as_by_relion(relion, flags):
    both(relion, *PICKS, "--scale", "40")
    write_refined()
    theirs, ours = both(relion, "--reextract_data_star", "refined.star", *flags)
    assert ours["particles"].text("rlnMicrographName") == theirs["particles"].text("rlnMicrographName")
    numbers = ("rlnCoordinateX", "rlnCoordinateY", "rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU", "rlnAnglePsi")
    for column in numbers:
        expected, found = (part["particles"].floats(column) for part in (theirs, ours))
        assert np.allclose(found, expected, atol=1e-4), column
    assert largest_difference() < 1e-5


@pytest.mark.parametrize("pixels", [20, 60])
def test_no_duplicates_are_left_by_either_and_none_is_lost_in_vain(relion, pixels):
    """RELION takes out every particle that a later one is close to; here the first stays, and what it leaves free."""
    draw = np.random.default_rng(5)
    places = draw.uniform(0, 600, (200, 2))
    origins = draw.normal(0, 5, (200, 2))
    rows = {
        "rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(200)],
        "rlnMicrographName": ["a.mrc"] * 200,
        "rlnCoordinateX": places[:, 0],
        "rlnCoordinateY": places[:, 1],
        "rlnOriginXAngst": origins[:, 0],
        "rlnOriginYAngst": origins[:, 1],
        "rlnOpticsGroup": [1] * 200,
    }
    optics = {**OPTICS, "rlnImagePixelSize": [PIXEL], "rlnImageSize": [64], "rlnImageDimensionality": [2]}
    star.write("in.star", StarFile([Block.table("optics", optics), Block.table("particles", rows)]))
    flags = ["--i", "in.star", "--remove_duplicates", str(PIXEL * pixels)]
    program = [str(relion / "relion_star_handler"), *flags, "--o", "theirs.star"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(["select", *flags, "--o", "ours.star", "--quiet"]) == 0
    true = places - origins / PIXEL
    counts = {}
    for name in ("theirs", "ours"):
        numbers = [int(text[:6]) - 1 for text in star.read(f"{name}.star")["particles"].text("rlnImageName")]
        assert pdist(true[numbers]).min() > pixels, name
        counts[name] = len(numbers)
    assert counts["theirs"] <= counts["ours"] < 200
