"""`spa project`: images and STAR file belong together, every option matters, wrong input is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.atoms import density
from spa.cli.main import run
from spa.ctf import ctf_image
from spa.fourier import forward, low_pass
from spa.io import mrc, star
from spa.io.model import read_model, scattering_factors
from spa.io.particle_io import ParticleImages, read_particles, write_particles
from spa.noise import power_spectrum
from spa.particles import OpticsGroup, Particles
from tests.jobs.model import write_model

BOX, PIXEL = 32, 3.5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a map."""
    monkeypatch.chdir(tmp_path)
    atoms = read_model(write_model(tmp_path / "model.pdb")).centred()
    mrc.write_volume("map.mrc", 10 * density(atoms, scattering_factors(["C"]), BOX, PIXEL), PIXEL)
    return tmp_path


@pytest.fixture
def angles(folder: Path) -> Particles:
    """Twelve particles with poses and CTFs, written to angles.star."""
    rng = np.random.default_rng(4)
    group = OpticsGroup(1, "opticsGroup1", PIXEL, BOX, 300.0, 2.7, 0.1)
    particles = Particles.create(
        [group],
        np.zeros(12),
        image_name=[f"{i + 1}@none.mrcs" for i in range(12)],
        rot=rng.uniform(-180, 180, 12),
        tilt=rng.uniform(0, 180, 12),
        psi=rng.uniform(-180, 180, 12),
        origin_x_angst=rng.normal(0, 6, 12),
        origin_y_angst=rng.normal(0, 6, 12),
        defocus_u=rng.uniform(9000, 20000, 12),
        defocus_v=rng.uniform(9000, 20000, 12),
        defocus_angle=rng.uniform(0, 180, 12),
    )
    write_particles("angles.star", particles)
    return particles


def _project(flags: str) -> tuple[Particles, NDArray[np.float32]]:
    assert run(["project", "--i", "map.mrc", "--o", "out/proj", "--quiet", "--j", "2", *flags.split()]) == 0
    particles = read_particles("out/proj.star")
    return particles, ParticleImages(particles).read(np.arange(len(particles)))


def test_poses_of_a_star_file_are_kept_with_the_images(angles: Particles) -> None:
    particles, images = _project("--ang angles.star")
    assert particles.image_name[2] == "000003@out/proj.mrcs"
    for name in ("rot", "tilt", "psi", "origin_x_angst", "defocus_u"):
        assert getattr(particles, name) == pytest.approx(getattr(angles, name), abs=1e-5)
    assert (particles.pixel_size, particles.box_size) == (PIXEL, BOX)
    single = f"--rot {angles.rot[2]} --tilt {angles.tilt[2]} --psi {angles.psi[2]}"
    offsets = f"--xoff {angles.origin_x_angst[2] / PIXEL} --yoff {angles.origin_y_angst[2] / PIXEL}"
    alone = _project(f"{single} {offsets}")[1]
    assert alone[0] == pytest.approx(images[2], abs=1e-4 * float(np.abs(images).max()))


def test_a_single_view_along_z_is_the_sum_of_the_sections() -> None:
    line_sum = low_pass(mrc.read_volume("map.mrc")[0], PIXEL, 9.0).sum(axis=0)
    _, images = _project("--pad 4")
    assert images.shape == (1, BOX, BOX)
    seen = low_pass(images, PIXEL, 9.0, ndim=2)[0]
    assert np.abs(seen - line_sum).max() < 0.02 * line_sum.max()
    moved = _project("--xoff 3 --yoff -2")[1][0]
    assert moved == pytest.approx(np.roll(_project("")[1][0], (2, -3), axis=(0, 1)), abs=1e-2)


def test_ctf_multiplies_the_transform(angles: Particles) -> None:
    plain, seen = (forward(_project(f"--ang angles.star {ctf}")[1]) for ctf in ("", "--ctf"))
    expected = plain * ctf_image(angles.ctf_coefficients(BOX), BOX)
    assert np.abs(seen - expected).max() < 1e-3 * np.abs(plain).max()


def test_uniform_directions_follow_the_seed() -> None:
    first, images = _project("--nr_uniform 300 --random_seed 3")
    assert len(first) == len(images) == 300
    assert np.cos(np.radians(first.tilt)).mean() == pytest.approx(0, abs=0.15)
    assert np.cos(np.radians(first.tilt)).std() == pytest.approx(1 / np.sqrt(3), rel=0.1)
    assert _project("--nr_uniform 300 --random_seed 3")[0].psi == pytest.approx(first.psi)
    assert _project("--nr_uniform 300 --random_seed 4")[0].psi != pytest.approx(first.psi)
    assert np.abs(first.origin_x_angst).max() == 0
    shifted = _project("--nr_uniform 300 --random_seed 3 --sigma_offset 2")[0]
    assert shifted.origin_x_angst.std() == pytest.approx(2 * PIXEL, rel=0.15)


def test_noise_has_the_deviation_asked_for(angles: Particles) -> None:
    clean = _project("--ang angles.star --white_noise 3")[1]
    for flags, deviation in (("--add_noise", 1.0), ("--add_noise --white_noise 3", 3.0)):
        noise = _project(f"--ang angles.star --random_seed 1 {flags}")[1] - clean
        assert noise.std() == pytest.approx(deviation, rel=0.03)
        assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] == pytest.approx(0, abs=0.15)


def test_resolution_limit_pixel_size_and_padding_matter(angles: Particles) -> None:
    limited = power_spectrum(_project("--ang angles.star --maxres 20")[1]).mean(axis=0)
    shell = int(BOX * PIXEL / 20)
    assert limited[shell] > 1e4 * limited[shell + 1 :].max()
    particles, images = _project("--nr_uniform 2 --angpix 5 --random_seed 1")
    assert particles.pixel_size == 5
    assert not np.array_equal(images, _project("--nr_uniform 2 --pad 1 --random_seed 1")[1])


def test_columns_that_mean_nothing_here_pass_through(angles: Particles) -> None:
    table = star.read("angles.star")
    table["particles"].set("rlnMyOwn", [f"v{i}" for i in range(12)])
    star.write("angles.star", table)
    _project("--ang angles.star")
    assert star.read("out/proj.star")["particles"].text("rlnMyOwn") == [f"v{i}" for i in range(12)]


def test_relion_projects_the_same_images(angles: Particles, relion: Path) -> None:
    _, ours = _project("--ang angles.star --ctf")
    flags = "--i map.mrc --ang angles.star --ctf --o theirs --angpix 3.5"
    command = [str(relion / "relion_project"), *flags.split()]
    subprocess.run(command, check=True, capture_output=True)
    theirs = mrc.read("theirs.mrcs")[0]
    a, b = forward(ours)[:, :, : BOX // 2], forward(theirs)[:, :, : BOX // 2]
    k = np.fft.fftfreq(BOX, 1 / BOX)
    low = np.hypot(k[:, None], np.arange(BOX // 2)) < BOX // 2 - 1
    assert np.abs(a - b)[:, low].max() < 1e-3 * np.abs(b).max()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ("--i none.mrc", 1, "none.mrc: cannot be read: No such file or directory"),
        ("--i model.pdb", 1, "model.pdb: expected an MRC file"),
        ("--ctf", 2, "--ctf: expected with --ang, which gives the CTFs"),
        ("--ang angles.star --nr_uniform 3", 2, "--nr_uniform: expected without --ang"),
        ("--ang angles.star --ctf --angpix 7", 1, "group 1: expected the map's pixel size, 7 Å, found 3.5"),
        ("--ang bare.star", 1, "no column rlnAngleRot, which a projection needs"),
        ("--pad 9", 2, "--pad 9: expected 1 to 4"),
    ],
)
def test_wrong_input_is_one_line(
    angles: Particles, flags: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = star.read("angles.star")
    table["particles"].drop("rlnAngleRot")
    star.write("bare.star", table)
    base = [] if "--i" in flags.split() else ["--i", "map.mrc"]
    assert run(["project", *base, "--o", "out/proj", *flags.split()]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("out/proj.mrcs").exists()
