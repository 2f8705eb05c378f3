"""`spa subtract`: what is left is what the mask keeps."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.grids import centred_coordinates
from spa.io import mrc, star
from spa.io.particle_io import read_particles
from spa.io.star import Block, StarFile
from spa.simulation import Projector

BOX, PIXEL, N = 32, 4.0, 12
FLAGS = "--ctf --pad 3 --i seen.star --ref whole.mrc --mask keep.mrc --o Sub --j 2 --quiet"


def blob(x: float, y: float, z: float, width: float) -> np.ndarray:
    """A Gaussian ball cut off where it is small, so that two of them do not touch."""
    grid = centred_coordinates(BOX, 3)
    squared = (grid[0] - z) ** 2 + (grid[1] - y) ** 2 + (grid[2] - x) ** 2
    return np.where(squared < 6.25 * width**2, np.exp(-squared / (2 * width**2)), 0).astype(np.float32)


def body(m: float = 1.0) -> np.ndarray:
    """The part to keep, m times as large."""
    return blob(6 * m, 2 * m, -3 * m, 2 * m)


def other(m: float = 1.0) -> np.ndarray:
    """The part to subtract, m times as large."""
    return 1.5 * blob(-5 * m, -3 * m, 4 * m, 2.4 * m)


@pytest.fixture(scope="module")
def two_bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of a body to keep, of another and of both, and particles of them with poses and CTFs."""
    folder = tmp_path_factory.mktemp("bodies")
    rng = np.random.default_rng(2)
    angles = rng.uniform([-180, 0, -180], [180, 180, 180], (N, 3))
    optics = {
        "rlnOpticsGroupName": ["one"],
        "rlnOpticsGroup": [1],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [PIXEL],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    rows = {
        "rlnImageName": [f"{i + 1:06d}@none.mrcs" for i in range(N)],
        "rlnMicrographName": [f"m{i % 3}.mrc" for i in range(N)],
        "rlnGroupNumber": np.arange(N) % 3 + 1,
        "rlnOpticsGroup": [1] * N,
        "rlnDefocusU": rng.uniform(8e3, 2e4, N),
        "rlnDefocusV": rng.uniform(8e3, 2e4, N),
        "rlnDefocusAngle": rng.uniform(0, 180, N),
        "rlnOriginXAngst": rng.normal(0, 5, N),
        "rlnOriginYAngst": rng.normal(0, 5, N),
        "labNote": [f"note{i}" for i in range(N)],
        **dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), angles.T, strict=True)),
    }
    with chdir(folder):
        star.write("truth.star", StarFile([Block.table("optics", optics), Block.table("particles", rows)]))
        for name, volume in (("body", body()), ("whole", body() + other()), ("keep", body() > 0)):
            mrc.write_volume(f"{name}.mrc", volume, PIXEL)
    return folder


@pytest.fixture
def project(two_bodies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one test with the maps and the truth."""
    for path in two_bodies.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(ref: str, name: str, flags: str = "--ctf") -> np.ndarray:
    """Simulated images of a map, written to NAME.star and NAME.mrcs."""
    command = f"project --i {ref}.mrc --ang truth.star --o {name} --pad 3 --random_seed 4 --quiet {flags}"
    assert run(command.split()) == 0
    return mrc.read(f"{name}.mrcs")[0]


def subtract(*flags: str) -> np.ndarray:
    """Subtract and read what is left."""
    assert run(["subtract", *FLAGS.split(), *flags]) == 0
    return mrc.read("Sub/Particles/subtracted_001.mrcs")[0]


def column(path: str, name: str, values: np.ndarray) -> None:
    """Set a column of the particles in a file."""
    found = star.read(path)
    found["particles"].set(name, values)
    star.write(path, found)


def test_what_is_left_is_the_other_body_to_rounding(project):
    seen, alone = images("whole", "seen"), images("body", "alone")
    left = subtract()
    assert np.abs(left - alone).max() < 1e-5 * np.abs(seen).max()
    assert np.abs(seen - alone).max() > 0.3 * np.abs(seen).max()


def test_noise_stays_as_it_was(project):
    noisy = "--ctf --add_noise --white_noise 5"
    images("whole", "seen", noisy)
    np.testing.assert_allclose(subtract(), images("body", "alone", noisy), atol=2e-5)


def test_without_ctf(project, capsys):
    images("whole", "seen", "")
    assert run(["subtract", *FLAGS.replace("--ctf", "").replace("--quiet", "").split()]) == 0
    assert "has CTF parameters, but --ctf was not given" in capsys.readouterr().err
    np.testing.assert_allclose(mrc.read("Sub/Particles/subtracted_001.mrcs")[0], images("body", "a", ""), atol=1e-4)


def test_norm_and_group_scale_are_those_of_the_images(project):
    seen, alone = images("whole", "seen"), images("body", "alone")
    norm, scale = np.linspace(0.8, 1.2, N), np.array([0.9, 1.0, 1.2])
    factor = (norm * scale[np.arange(N) % 3])[:, None, None].astype(np.float32)
    mrc.write_stack("seen.mrcs", seen * factor, PIXEL)
    column("seen.star", "rlnNormCorrection", 7 * norm)
    groups = Block.table("model_groups", {"rlnGroupNumber": [3, 1, 2], "rlnGroupScaleCorrection": scale[[2, 0, 1]]})
    general = Block.pairs("model_general", {"rlnNormCorrectionAverage": 7.0})
    star.write("model.star", StarFile([general, groups]))
    np.testing.assert_allclose(subtract("--model", "model.star"), alone * factor, atol=1e-5 * np.abs(seen).max())
    mrc.write_stack("seen.mrcs", seen * norm[:, None, None], PIXEL)
    np.testing.assert_allclose(subtract(), alone * norm[:, None, None], atol=1e-5 * np.abs(seen).max())


def test_a_map_on_another_grey_scale_is_fitted_or_told(project, capsys):
    seen, alone = images("whole", "seen"), images("body", "alone")
    mrc.write_volume("whole.mrc", 40 * mrc.read("whole.mrc")[0], PIXEL)
    np.testing.assert_allclose(subtract("--fit_scale"), alone, atol=1e-4 * np.abs(seen).max())
    assert run(["subtract", *FLAGS.replace("--quiet", "").split()]) == 0
    assert "whole.mrc: the images' signal is 0.025 times that of the map: give --fit_scale" in capsys.readouterr().err


def test_beam_tilt_is_taken_off_with_the_density(project):
    images("whole", "seen")
    found = star.read("seen.star")
    found["optics"].set("rlnBeamTiltX", [60.0])  # strong, for coarse pixels
    star.write("seen.star", found)
    particles = read_particles("seen.star")
    volumes = np.concatenate([mrc.read(f"{name}.mrc")[0][None] for name in ("whole", "body")])
    projector = Projector(volumes, 3, None, particles.aberrations(), PIXEL)
    angles = np.stack([particles.rot, particles.tilt, particles.psi], axis=1)
    shifts = -np.stack([particles.origin_x_angst, particles.origin_y_angst], axis=1) / PIXEL
    rest = (angles, shifts, particles.ctf_coefficients(), particles.optics_index)
    seen, alone = (projector(np.full(N, i), *rest) for i in range(2))
    assert np.abs(seen - images("whole", "untilted")).max() > 0.05 * np.abs(seen).max()
    mrc.write_stack("seen.mrcs", seen, PIXEL)
    np.testing.assert_allclose(subtract(), alone, atol=1e-5 * np.abs(seen).max())


def test_a_magnification_is_that_of_the_images(project):
    """Slices at m k are those of the map V(x / m) / m^3; without the CTF, which would change as well."""
    m = 0.8
    mrc.write_volume("small.mrc", (body(m) + other(m)) / m**3, PIXEL)
    mrc.write_volume("small_body.mrc", body(m) / m**3, PIXEL)
    seen, alone = images("small", "seen", ""), images("small_body", "alone", "")
    found = star.read("seen.star")
    for name, value in zip(("00", "01", "10", "11"), (m, 0.0, 0.0, m), strict=True):
        found["optics"].set(f"rlnMagMat{name}", [value])
    star.write("seen.star", found)
    assert run(["subtract", *FLAGS.replace("--ctf", "").split()]) == 0
    left = mrc.read("Sub/Particles/subtracted_001.mrcs")[0]
    assert np.abs(left - alone).max() < 0.02 * np.abs(seen).max()


def test_the_table_names_the_images_before_and_keeps_the_rest(project):
    images("whole", "seen")
    subtract()
    found, source = star.read("Sub/particles_subtracted.star"), star.read("seen.star")
    table, before = found["particles"], source["particles"]
    assert table.text("rlnImageOriginalName") == before.text("rlnImageName")
    assert table.text("rlnImageName")[3] == "000004@Sub/Particles/subtracted_001.mrcs"
    for name in before.columns:
        if name != "rlnImageName":
            assert table.text(name) == before.text(name)
    assert found["optics"].columns == source["optics"].columns


@pytest.mark.parametrize("part", ["stack", "batch"])
def test_parts_do_not_matter(project, monkeypatch, part):
    images("whole", "seen")
    whole = subtract()
    monkeypatch.setattr("spa.jobs.subtract._BATCH_PIXELS", 5 * BOX**2)
    monkeypatch.setattr("spa.jobs.subtract._STACK", 7 if part == "stack" else N)
    subtract()
    names = star.read("Sub/particles_subtracted.star")["particles"].text("rlnImageName")
    paths = sorted({name.partition("@")[2] for name in names})
    assert len(paths) == (2 if part == "stack" else 1)
    np.testing.assert_allclose(np.concatenate([mrc.read(path)[0] for path in paths]), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mask small.mrc", "small.mrc: expected 32 voxels of 4 Å, as the images, found 16 of 4 Å"),
        ("--mask double.mrc", "double.mrc: expected mask values from 0 to 1, found 0 to 2"),
        ("--mask all.mrc", "all.mrc: expected a mask that leaves density out"),
        ("--ref flat.mrc", "flat.mrc: expected a map, found the same value everywhere"),
        ("--i nowhere.star", "no column rlnAngleRot, which a subtraction needs"),
        ("--model model.star", "row 3, column rlnGroupNumber: group 3 is not in model.star"),
    ],
)
def test_wrong_input_is_one_line(project, flags, message, capsys):
    images("whole", "seen")
    keep = mrc.read("keep.mrc")[0]
    maps = {"small": keep[:16, :16, :16], "double": 2 * keep, "all": np.ones_like(keep), "flat": np.ones_like(keep)}
    for name, volume in maps.items():
        mrc.write_volume(f"{name}.mrc", volume, PIXEL)
    found = star.read("seen.star")
    found["particles"].drop("rlnAngleRot")
    star.write("nowhere.star", found)
    groups = Block.table("model_groups", {"rlnGroupNumber": [1, 2], "rlnGroupScaleCorrection": [1.0, 1.0]})
    star.write("model.star", StarFile([Block.pairs("model_general", {"rlnNrClasses": 1}), groups]))
    capsys.readouterr()
    assert run(["subtract", *FLAGS.split(), *flags.split()]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("Sub/particles_subtracted.star").exists()
