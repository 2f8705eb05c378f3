"""Simulated particles small enough to refine in seconds, and what the tests of refinement ask of the results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spa import euler, simulation
from spa.cli.main import run
from spa.em import schedule
from spa.fourier import low_pass
from spa.fsc import fsc
from spa.io import mrc, star
from spa.io.particle_io import read_particles
from spa.mask import soft_sphere

BOX, PIXEL_SIZE, DIAMETER, INI_HIGH = 32, 5.5, 150.0, 30.0
SWITCHES = "--ctf --flatten_solvent --zero_mask --quiet"
VALUES = (
    f"--ini_high {INI_HIGH:g} --particle_diameter {DIAMETER:g} --healpix_order 1 --offset_range 2 --offset_step 1 "
    "--random_seed 1 --j 2"
)
MAPS = ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")

Volume = NDArray[np.float32]


def simulate(folder: str | Path, flags: str = "") -> Path:
    """Particles of the phantom in `folder`, with a reference beside them on the scale of the images."""
    base = f"--o {folder} --nr_micrographs 4 --box {BOX} --angpix {PIXEL_SIZE} --seed 5 --j 2 --quiet"
    assert run(["simulate", *base.split(), *flags.split()]) == 0
    folder = Path(folder)
    truth, pixel_size = mrc.read_volume(folder / "truth_map.mrc")
    mrc.write_volume(folder / "reference.mrc", low_pass(truth, pixel_size, INI_HIGH), pixel_size)
    return folder


def command(data: str | Path, rootname: str | Path, flags: str = "", switches: str = SWITCHES) -> list[str]:
    """The refinement of simulated particles; `flags` come last and win."""
    files = ["--i", f"{data}/particles.star", "--ref", f"{data}/reference.mrc", "--o", str(rootname)]
    return ["refine3d", *files, *switches.split(), *VALUES.split(), *flags.split()]


@contextmanager
def two_iterations() -> Iterator[None]:
    """Refinements in this process end after a first iteration and the final one."""
    longest = schedule.MAX_ITERATIONS
    schedule.MAX_ITERATIONS = 1
    try:
        yield
    finally:
        schedule.MAX_ITERATIONS = longest


def sphere(box: int = BOX, pixel_size: float = PIXEL_SIZE) -> Volume:
    """The soft sphere of the particle, inside which half maps are compared."""
    radius = DIAMETER / pixel_size / 2
    return np.asarray(soft_sphere(box, radius, min(5.0, box / 2 - radius)))


def read(path: str | Path) -> Volume:
    """The map in a file."""
    return mrc.read_volume(path)[0]


def correlation(a: Volume, b: Volume) -> float:
    """Pearson correlation of two maps inside the sphere."""
    inside = sphere(len(a)) > 0.5
    return float(np.corrcoef(a[inside], b[inside])[0, 1])


def half_map_fsc(folder: str | Path) -> NDArray[np.float64]:
    """FSC of the unfiltered half maps in a folder, inside the sphere."""
    half1, half2 = (read(Path(folder) / name) for name in MAPS[1:])
    return np.asarray(fsc(half1, half2, sphere()))


def angular_errors(found: str | Path, truth: str | Path) -> NDArray[np.float64]:
    """Angles (degrees) between the poses of two particle tables, row by row."""
    matrices = [euler.matrix(p.rot, p.tilt, p.psi) for p in (read_particles(found), read_particles(truth))]
    return np.asarray(euler.angular_distance(*matrices))


def shift_errors(found: str | Path, truth: str | Path) -> NDArray[np.float64]:
    """Distances (Å) between the origins of two particle tables, row by row."""
    a, b = read_particles(found), read_particles(truth)
    return np.hypot(a.origin_x_angst - b.origin_x_angst, a.origin_y_angst - b.origin_y_angst)


def with_signal_levels(data: str | Path, folder: str | Path, levels: dict[str, float], snr: float) -> None:
    """The particles of `data` in another folder, their signal multiplied by the level of their micrograph.

    The noise is white with variance 1 and `snr` is that of level 1, inside the particle's circle.
    """
    truth = read_particles(f"{data}/truth_particles.star")
    projector = simulation.Projector(read(f"{data}/truth_map.mrc")[None])
    angles = np.stack([truth.rot, truth.tilt, truth.psi], axis=1)
    origins = np.stack([truth.origin_x_angst, truth.origin_y_angst], axis=1) / PIXEL_SIZE
    signal = projector(truth.class_number - 1, angles, -origins, truth.ctf_coefficients())
    deviation = np.sqrt(simulation.circle_variance(signal, DIAMETER / PIXEL_SIZE / 2).mean())
    stacks = np.array([Path(name).stem for name in truth.image_name])
    level = np.array([levels[stack] for stack in stacks])[:, None, None]
    noise = np.random.default_rng(7).normal(size=signal.shape)
    images = signal / deviation * np.sqrt(snr) * level + noise
    table = star.read(f"{data}/particles.star")
    for stack in levels:
        mrc.write_stack(Path(folder) / f"stacks/{stack}.mrcs", images[stacks == stack].astype(np.float32), PIXEL_SIZE)
    names = [name.replace(f"{data}/", f"{folder}/") for name in table["particles"].text("rlnImageName")]
    table["particles"].set("rlnImageName", names)
    star.write(f"{folder}/particles.star", table)
    reference = read(f"{data}/reference.mrc") / deviation * np.sqrt(snr)
    mrc.write_volume(f"{folder}/reference.mrc", reference, PIXEL_SIZE)


def said(folder: Path) -> str:
    """What a run said, in all."""
    return (folder / "run.out").read_text()


def changed(data: str, folder: str, change: Callable[[Volume], Volume]) -> None:
    """Simulated particles in another folder with their images changed, stack by stack."""
    shutil.copytree(data, folder)
    for path in sorted(Path(folder).glob("stacks/*.mrcs")):
        images, pixel_size = mrc.read(path)
        mrc.write_stack(path, change(images), pixel_size)
    table = star.read(f"{data}/particles.star")
    names = [name.replace(f"{data}/", f"{folder}/") for name in table["particles"].text("rlnImageName")]
    table["particles"].set("rlnImageName", names)
    star.write(f"{folder}/particles.star", table)


def check_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Nothing on the terminal but one line of error, which holds the parts."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
