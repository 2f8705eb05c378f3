"""Project a map in given, random or single directions.

Writes ROOTNAME.mrcs and ROOTNAME.star, whose images and poses belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc, star
from spa.io.files import project_path
from spa.io.particle_io import read_particles, to_star
from spa.job import Job
from spa.kernels.backend import to_device, to_host
from spa.options import CommonOptions, UsageError, option
from spa.particles import OpticsGroup, Particles
from spa.simulation import Projector, random_poses

_BATCH_PIXELS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa project`."""

    i: str = option(help="Map to project", role="input")
    o: str = option("proj", help="Start of the output names: ROOTNAME.mrcs, ROOTNAME.star", role="rootname")
    ang: str | None = option(
        None, help="Particle STAR file with poses, and CTFs for --ctf", role="input", group="Particles"
    )
    nr_uniform: int = option(
        -1,
        help="Project in this many random directions instead",
        bounds=(-1, None),
        group="Particles",
        default_text="off",
    )
    sigma_offset: float = option(
        0.0,
        help="Standard deviation of random offsets added to the poses, x and y each",
        unit="px",
        bounds=(0, None),
        group="Particles",
    )
    rot: float = option(0.0, help="First Euler angle of a single projection", unit="deg", group="Particles")
    tilt: float = option(0.0, help="Second Euler angle of a single projection", unit="deg", group="Particles")
    psi: float = option(0.0, help="Third Euler angle of a single projection", unit="deg", group="Particles")
    xoff: float = option(0.0, help="Origin along x of a single projection", unit="px", group="Particles")
    yoff: float = option(0.0, help="Origin along y of a single projection", unit="px", group="Particles")
    ctf: bool = option(False, help="Apply the CTFs of --ang", group="CTF")
    add_noise: bool = option(False, help="Add white Gaussian noise", group="Noise")
    white_noise: float = option(
        1.0, help="Standard deviation of the noise of --add_noise, per pixel", bounds=(0, None), group="Noise"
    )
    angpix: float | None = option(
        None,
        help="Pixel size of the map",
        unit="Å",
        bounds=(0.01, 1000),
        group="Reference",
        default_text="from its header",
    )
    maxres: float | None = option(
        None, help="Resolution to project to", unit="Å", bounds=(0.01, None), group="Reference", default_text="Nyquist"
    )
    pad: int = option(2, help="Padding factor of the map's transform", bounds=(1, 4), group="Reference")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ang and self.nr_uniform > 0:
            raise UsageError("--nr_uniform: expected without --ang")
        if self.ctf and not self.ang:
            raise UsageError("--ctf: expected with --ang, which gives the CTFs")


def run(options: Options, job: Job) -> None:
    """Write ROOTNAME.mrcs and ROOTNAME.star."""
    volume, header_pixel_size = mrc.read_volume(options.i)
    pixel_size = options.angpix or header_pixel_size
    box = len(volume)
    particles = _particles(options, box, pixel_size)
    n = len(particles)
    if options.sigma_offset > 0:
        rng = np.random.default_rng([options.random_seed, 0])
        x, y = rng.normal(0, options.sigma_offset * pixel_size, (2, n))
        particles.update(origin_x_angst=particles.origin_x_angst + x, origin_y_angst=particles.origin_y_angst + y)
    coefficients = _coefficients(particles, box, pixel_size) if options.ctf else None
    device = job.devices[0] if job.devices else None
    shell = None if options.maxres is None else max(1, int(box * pixel_size / options.maxres + 1e-6))
    projector = Projector(to_device(volume[None], device), options.pad, shell)
    angles = np.stack([particles.rot, particles.tilt, particles.psi], axis=1)
    shifts = -np.stack([particles.origin_x_angst, particles.origin_y_angst], axis=1) / pixel_size
    stack = job.path(".mrcs")
    size = max(1, _BATCH_PIXELS // box**2)
    with mrc.stack_writer(stack, n, box, pixel_size) as writer, job.progress(n, "Projecting", "images") as progress:
        for start in range(0, n, size):
            job.check_abort()
            part = slice(start, min(start + size, n))
            classes = np.zeros(part.stop - start, dtype=np.int32)
            ctf = None if coefficients is None else coefficients[part]
            images = to_host(projector(classes, angles[part], shifts[part], ctf))
            if options.add_noise:
                images = images + _noise(options, np.arange(part.start, part.stop), box)
            writer.append(images)
            progress.update(len(images))
    table = to_star(particles)
    table["particles"].set("rlnImageName", [f"{i + 1:06d}@{project_path(stack)}" for i in range(n)])
    table["optics"].set("rlnImagePixelSize", [pixel_size] * len(table["optics"]))
    table["optics"].set("rlnImageSize", [box] * len(table["optics"]))
    star.write(job.path(".star"), table)
    job.say(f"{stack}: {n} projections of {box} px, {pixel_size:g} Å/px")


def _particles(options: Options, box: int, pixel_size: float) -> Particles:
    """The particles to make images of, with their poses."""
    if options.ang:
        particles = read_particles(options.ang)
        for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
            particles.source["particles"].require(column, "a projection needs")
        return particles
    optics = OpticsGroup(1, "opticsGroup1", pixel_size, box, voltage=300.0, cs=2.7, q0=0.1)
    if options.nr_uniform > 0:
        poses = random_poses(options.nr_uniform, 0.0, [1.0], options.random_seed)
        angles = {"rot": poses.rot, "tilt": poses.tilt, "psi": poses.psi}
    else:
        angles = {name: np.array([getattr(options, name)]) for name in ("rot", "tilt", "psi")}
    particles = Particles.create([optics], np.zeros(len(angles["rot"]), dtype=np.int32))
    particles.update(**angles)
    if options.nr_uniform <= 0:
        particles.update(origin_x_angst=options.xoff * pixel_size, origin_y_angst=options.yoff * pixel_size)
    return particles


def _coefficients(particles: Particles, box: int, pixel_size: float) -> NDArray[np.float32]:
    """CTF coefficients in the frame of the map, whatever the pixel size of the particles."""
    for group in particles.optics:
        if group.box_size and abs(group.pixel_size / pixel_size - 1) > 0.01:
            raise InputError(
                f"{particles.path}: data_optics, group {group.number}: expected the map's pixel size, "
                f"{pixel_size:g} Å, found {group.pixel_size:g}"
            )
    return particles.ctf_coefficients(box)


def _noise(options: Options, numbers: NDArray[np.int64], box: int) -> NDArray[np.float32]:
    """White noise images that follow from the seed and the particle number."""
    images = [
        np.random.default_rng([options.random_seed, int(number), 3]).standard_normal((box, box), dtype=np.float32)
        for number in numbers
    ]
    return np.asarray(np.float32(options.white_noise) * np.stack(images))
