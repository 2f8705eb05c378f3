"""`spa simulate`: what it writes, that it is the truth, that every option matters, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa import simulation
from spa.cli.main import run
from spa.grids import radius_grid
from spa.io import mrc, star
from spa.io.particle_io import ParticleImages, read_particles
from spa.noise import power_spectrum
from spa.particles import Particles
from tests.jobs.model import write_model

BOX, PIXEL = 32, 3.5
BASE = "--model model.pdb --nr_particles 40 --nr_micrographs 4 --box 32 --angpix 3.5 --seed 5 --quiet --j 2"

Simulate = Callable[..., Path]


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Run the job with the base flags and some more; returns its folder."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.pdb")

    def ran(extra: str = "", folder: str = "Sim", status: int = 0) -> Path:
        assert run(["simulate", "--o", f"{folder}/", *BASE.split(), *extra.split()]) == status
        return Path(folder)

    return ran


def _images(folder: Path) -> tuple[Particles, NDArray[np.float32]]:
    particles = read_particles(folder / "truth_particles.star")
    return particles, ParticleImages(particles).read(np.arange(len(particles)))


def _signal(particles: Particles, volume: NDArray[np.float32], ctf: bool = True) -> NDArray[np.float32]:
    """The images without noise, as the STAR file and the map say."""
    origins = np.stack([particles.origin_x_angst, particles.origin_y_angst], axis=1)
    angles = np.stack([particles.rot, particles.tilt, particles.psi], axis=1)
    coefficients = particles.ctf_coefficients() if ctf else None
    projector = simulation.Projector(volume[None])
    return np.asarray(projector(np.zeros(len(particles)), angles, -origins / particles.pixel_size, coefficients))


def test_files_and_columns_are_those_named(simulate: Simulate) -> None:
    folder = simulate()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "particles.star", "truth_particles.star", "truth_map.mrc", "run.out", "run.err", "job.json",
        "RELION_JOB_EXIT_SUCCESS", *(f"stacks/mic{i:05d}.mrcs" for i in range(1, 5)),
    }  # fmt: skip
    public, truth = star.read(folder / "particles.star"), star.read(folder / "truth_particles.star")
    hidden = {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnClassNumber"}
    assert hidden <= set(truth["particles"].columns)
    assert set(public["particles"].columns) == set(truth["particles"].columns) - hidden - {"rlnRandomSubset"}
    for column in public["particles"].columns:
        assert public["particles"].text(column) == truth["particles"].text(column)
    assert truth["particles"].text("rlnImageName")[10] == "000001@Sim/stacks/mic00002.mrcs"
    volume, pixel_size = mrc.read_volume(folder / "truth_map.mrc")
    assert volume.shape == (BOX, BOX, BOX)
    assert pixel_size == pytest.approx(PIXEL)
    recorded = json.loads((folder / "job.json").read_text())
    assert recorded["seed"] == 5
    assert "model.pdb" in recorded["inputs"]


def test_images_without_noise_are_the_projections_of_the_truth_map(simulate: Simulate) -> None:
    folder = simulate("--snr 1e5")
    particles, images = _images(folder)
    signal = _signal(particles, mrc.read_volume(folder / "truth_map.mrc")[0])
    expected, _, _ = simulation.normalise(signal, _radius(folder))
    for image, wanted in zip(images, expected, strict=True):
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.999


def _radius(folder: Path) -> float:
    """The particle circle in pixels, from what the job said."""
    line = next(line for line in (folder / "run.out").read_text().splitlines() if "inside a circle of" in line)
    return float(line.split("circle of ")[1].split()[0]) / 2 / PIXEL


@pytest.mark.parametrize("snr", [0.05, 0.5])
def test_signal_to_noise_is_as_asked_on_the_scale_of_the_truth_map(simulate: Simulate, snr: float) -> None:
    folder = simulate(f"--snr {snr} --nr_particles 300")
    particles, images = _images(folder)
    signal = _signal(particles, mrc.read_volume(folder / "truth_map.mrc")[0])
    radius = _radius(folder)
    noise = images - signal
    ratio = simulation.circle_variance(signal, radius).mean() / simulation.circle_variance(noise, radius).mean()
    assert ratio == pytest.approx(snr, rel=0.05)
    assert noise.var() == pytest.approx(1.0, rel=0.05)


def test_images_are_normalised_outside_the_circle(simulate: Simulate) -> None:
    _, images = _images(simulate("--snr 0.5 --particle_diameter 75"))
    outside = images[:, radius_grid(BOX, 2) > 37.5 / PIXEL]
    assert outside.mean(axis=1) == pytest.approx(np.zeros(40), abs=1e-5)
    assert outside.std(axis=1) == pytest.approx(np.ones(40), abs=1e-5)


def test_the_seed_decides_everything_and_the_threads_nothing(simulate: Simulate) -> None:
    first, again, other = simulate(), simulate("--j 1", folder="Again"), simulate("--seed 6", folder="Other")
    assert np.array_equal(_images(first)[1], _images(again)[1])
    assert not np.array_equal(_images(first)[1], _images(other)[1])
    fewer = simulate("--nr_particles 20 --nr_micrographs 2 --no_ctf --snr 1e5", folder="Fewer")
    assert read_particles(fewer / "truth_particles.star").psi == pytest.approx(_images(first)[0].psi[:20])


def test_continuing_keeps_the_stacks_that_are_there_and_the_seed(simulate: Simulate) -> None:
    folder = simulate()
    before = _images(folder)[1]
    untouched = (folder / "stacks/mic00001.mrcs").stat().st_mtime_ns
    (folder / "stacks/mic00003.mrcs").unlink()
    assert run(["simulate", "--continue", f"{folder}/job.json"]) == 0
    assert np.array_equal(_images(folder)[1], before)
    assert (folder / "stacks/mic00001.mrcs").stat().st_mtime_ns == untouched


def test_microscope_options_reach_the_optics_and_the_ctf(simulate: Simulate) -> None:
    flags = "--nr_optics_groups 2 --kV 300 --kV 200 --Cs 2.7 --Cs 0.01 --Q0 0.07"
    particles, images = _images(simulate(f"{flags} --defocus_min 5000 --defocus_max 9000 --astigmatism 800"))
    assert [(g.voltage, g.cs, g.q0) for g in particles.optics] == [(300, 2.7, 0.07), (200, 0.01, 0.07)]
    assert set(particles.optics_index) == {0, 1}
    mean = (particles.defocus_u + particles.defocus_v) / 2
    assert mean.min() >= 5000
    assert mean.max() <= 9000
    split = particles.defocus_u - particles.defocus_v
    assert split.min() >= 0
    assert 300 < split.max() <= 800
    assert len(np.unique(mean)) == 4
    assert not np.array_equal(images, _images(simulate(folder="Plain"))[1])


def test_without_ctf_the_images_are_plain_projections(simulate: Simulate) -> None:
    folder = simulate("--no_ctf --snr 1e5")
    particles, images = _images(folder)
    plain = _signal(particles, mrc.read_volume(folder / "truth_map.mrc")[0], ctf=False)
    assert np.corrcoef(images[0].ravel(), plain[0].ravel())[0, 1] > 0.999


def test_offsets_noise_colour_and_circle_matter(simulate: Simulate) -> None:
    particles, _ = _images(simulate("--sigma_offset 0"))
    assert np.abs(particles.origin_x_angst).max() == 0
    white = power_spectrum(_images(simulate("--coloured 0 --snr 1e-4", folder="White"))[1]).mean(axis=0)
    pink = power_spectrum(_images(simulate("--coloured 1 --snr 1e-4", folder="Pink"))[1]).mean(axis=0)
    assert white[2] == pytest.approx(white[14], rel=0.2)
    assert pink[2] > 2 * pink[14]
    narrow = simulate("--particle_diameter 60", folder="Narrow")
    assert _radius(narrow) == pytest.approx(30 / PIXEL)


def test_several_models_in_the_fractions_asked_for(simulate: Simulate) -> None:
    write_model(Path("other.pdb"), seed=9)
    flags = "--model other.pdb --fraction 0.2 --fraction 0.8 --nr_particles 300 --snr 1e5"
    folder = simulate(flags)
    particles, images = _images(folder)
    assert (particles.class_number == 2).mean() == pytest.approx(0.8, abs=0.08)
    maps = [mrc.read_volume(folder / f"truth_map{i}.mrc")[0] for i in (1, 2)]
    signals = [_signal(particles, volume) for volume in maps]
    for i in range(40):
        closeness = [np.corrcoef(images[i].ravel(), signal[i].ravel())[0, 1] for signal in signals]
        assert int(np.argmax(closeness)) + 1 == particles.class_number[i]


def test_the_phantom_has_the_symmetry_asked_for(simulate: Simulate, tmp_path: Path) -> None:
    flags = "--nr_particles 4 --box 36 --angpix 6 --quiet --sym D2 --o Phantom --seed 1"
    assert run(["simulate", *flags.split()]) == 0
    volume, _ = mrc.read_volume("Phantom/truth_map.mrc")
    inner = volume[1:, 1:, 1:]
    for turned in (inner[:, ::-1, ::-1], inner[::-1, ::-1], inner[::-1, :, ::-1]):
        assert np.corrcoef(inner.ravel(), turned.ravel())[0, 1] > 0.9999
    assert np.corrcoef(inner.ravel(), inner[::-1].ravel())[0, 1] < 0.9


def test_abort_between_batches_leaves_no_half_stack(simulate: Simulate, capsys: pytest.CaptureFixture[str]) -> None:
    folder = simulate()
    (folder / "stacks/mic00002.mrcs").unlink()
    calls = []
    original = simulation.normalise

    def normalise(*arguments: object) -> object:
        calls.append(0)
        (folder / "RELION_JOB_ABORT_NOW").touch()
        return original(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "normalise", normalise)
        simulate(status=3)
    assert f"continue with: spa simulate --continue {folder}/job.json" in capsys.readouterr().err
    assert len(calls) == 1
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "RELION_JOB_EXIT_ABORTED").exists()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ("--box 33", 2, "--box 33: expected an even number"),
        ("--box 16", 1, "leaves no background around the particle circle"),
        ("--particle_diameter 110", 1, "leaves no background around the particle circle"),
        ("--defocus_min 30000", 2, "--defocus_min 30000: expected at most --defocus_max 20000"),
        ("--fraction 1 --fraction 2", 2, "--fraction: expected one for each --model (1), got 2"),
        ("--kV 300 --kV 200", 2, "--kV: expected one value, or one for each of --nr_optics_groups"),
        ("--nr_particles 0", 2, "--nr_particles 0: expected >= 1"),
        ("--snr 0", 2, "--snr 0: expected 1e-06 to 1e+06"),
        ("--kind maps", 2, "--kind maps: expected one of particles, micrographs, movies"),
        ("--model gone.pdb", 1, "gone.pdb: cannot be read: No such file or directory"),
    ],
)
def test_wrong_input_is_one_line(
    simulate: Simulate, flags: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(flags, status=status)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_an_unknown_symmetry_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--o", str(tmp_path / "Sim"), "--sym", "Q3"]) == 1
    assert "symmetry group 'Q3'" in capsys.readouterr().err
