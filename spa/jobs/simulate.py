"""Simulate particles of the built-in phantom or of atomic models, with the truth beside them.

Writes DIR/particles.star (no poses), DIR/stacks/*.mrcs, DIR/truth_particles.star (poses, shifts, class = which model)
and DIR/truth_map.mrc (truth_mapN.mrc for several models). An image is the projection of the truth map through the CTF
plus noise of variance 1, brought to mean 0 and standard deviation 1 outside the particle circle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import simulation, symmetry
from spa.aberrations import Aberrations, with_beam_tilt
from spa.atoms import Atoms, density
from spa.ctf import wavelength
from spa.errors import InputError
from spa.io import mrc, star
from spa.io.files import project_path
from spa.io.model import read_model, scattering_factors
from spa.io.particle_io import to_star
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host
from spa.options import CommonOptions, UsageError, draw_seed, option
from spa.particles import OpticsGroup, Particles
from spa.phantom import assembly

_BATCH_PIXELS = 1 << 22
_CALIBRATED_ON = 256  # particles whose signal and noise set the grey scale


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa simulate`."""

    o: str = option(help="Output folder", role="folder")
    model: tuple[str, ...] = option(
        (), help="Atomic model, PDB or mmCIF", role="input", group="Reference", default_text="built-in phantom"
    )
    fraction: tuple[float, ...] = option(
        (),
        help="Fraction of the particles that shows each --model, in order",
        bounds=(1e-6, 1e6),
        group="Reference",
        default_text="equal",
    )
    sym: str = option("C1", help="Symmetry of the built-in phantom: C1, D2 or another group", group="Reference")
    kind: str = option("particles", help="What to simulate", choices=("particles",))
    nr_particles: int = option(1000, help="Number of particles", bounds=(1, None), group="Particles")
    nr_micrographs: int = option(
        20, help="Number of micrographs the particles come from", bounds=(1, None), group="Particles"
    )
    box: int = option(64, help="Box size, even", unit="px", bounds=(16, 4096), group="Particles")
    angpix: float = option(3.5, help="Pixel size", unit="Å", bounds=(0.1, 50), group="Particles")
    particle_diameter: float | None = option(
        None,
        help="Diameter of the particle circle",
        unit="Å",
        bounds=(1, None),
        group="Particles",
        default_text="1.1 times the model's",
    )
    sigma_offset: float = option(
        4.0,
        help="Standard deviation of the particles' offsets from the box centre, x and y each",
        unit="Å",
        bounds=(0, None),
        group="Particles",
    )
    ctf: bool = option(True, help="Apply the CTF", group="CTF")
    nr_optics_groups: int = option(
        1, help="Number of optics groups; micrographs take turns", bounds=(1, None), group="CTF"
    )
    kV: tuple[float, ...] = option(
        (300.0,), help="Voltage of each optics group", unit="kV", bounds=(10, 3000), group="CTF"
    )
    Cs: tuple[float, ...] = option(
        (2.7,), help="Spherical aberration of each optics group", unit="mm", bounds=(0, 100), group="CTF"
    )
    Q0: tuple[float, ...] = option(
        (0.1,), help="Amplitude contrast of each optics group", bounds=(0, 0.999), group="CTF"
    )
    beam_tilt_x: tuple[float, ...] = option(
        (0.0,), help="Beam tilt along x of each optics group", unit="mrad", bounds=(-100, 100), group="CTF"
    )
    beam_tilt_y: tuple[float, ...] = option(
        (0.0,), help="Beam tilt along y of each optics group", unit="mrad", bounds=(-100, 100), group="CTF"
    )
    defocus_min: float = option(8000.0, help="Smallest underfocus", unit="Å", bounds=(0, 1e6), group="CTF")
    defocus_max: float = option(20000.0, help="Largest underfocus", unit="Å", bounds=(0, 1e6), group="CTF")
    astigmatism: float = option(
        300.0, help="Largest astigmatism, defocus U minus V", unit="Å", bounds=(0, 1e5), group="CTF"
    )
    snr: float = option(
        0.1,
        help="Variance of the signal, seen through the CTF, over that of the noise inside the particle circle",
        bounds=(1e-6, 1e6),
        group="Noise",
    )
    coloured: float = option(
        0.5,
        help="Fraction of the noise variance that falls with 1 / frequency; the rest is white",
        bounds=(0, 1),
        group="Noise",
    )
    random_seed: int = option(
        draw_seed,
        help="Seed of the random numbers",
        bounds=(0, None),
        flag=("--seed", "--random_seed"),
        group="Compute",
        default_text="drawn, and written to job.json",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box % 2:
            raise UsageError(f"--box {self.box}: expected an even number")
        if self.defocus_min > self.defocus_max:
            raise UsageError(f"--defocus_min {self.defocus_min:g}: expected at most --defocus_max {self.defocus_max:g}")
        if self.fraction and len(self.fraction) != len(self.model):
            raise UsageError(f"--fraction: expected one for each --model ({len(self.model)}), got {len(self.fraction)}")
        for name in ("kV", "Cs", "Q0", "beam_tilt_x", "beam_tilt_y"):
            if len(getattr(self, name)) not in (1, self.nr_optics_groups):
                raise UsageError(f"--{name}: expected one value, or one for each of --nr_optics_groups")
        if self.tilted and not self.ctf:
            raise UsageError("--no_ctf: a beam tilt is seen through the CTF only")

    @property
    def tilted(self) -> bool:
        """Whether any optics group has a beam tilt."""
        return any(self.beam_tilt_x) or any(self.beam_tilt_y)


def run(options: Options, job: Job) -> None:
    """Write maps, stacks and STAR files into the folder `--o`."""
    models = _models(options)
    diameter = options.particle_diameter or 2.2 * max(model.radius() for model in models)
    if diameter > (options.box - 2) * options.angpix:
        extent = options.box * options.angpix
        raise InputError(
            f"--box {options.box}: {extent:.0f} Å leaves no background around the particle circle of {diameter:.0f} Å"
        )
    radius = diameter / 2 / options.angpix
    factors = scattering_factors(np.concatenate([np.unique(model.elements) for model in models]))
    volumes = np.stack([density(model, factors, options.box, options.angpix) for model in models])
    particles = _truth(options, job.folder)
    spectrum = simulation.noise_spectrum(options.box, options.angpix, options.coloured)
    volumes *= _grey_scale(options, particles, volumes, spectrum, radius)
    for i, volume in enumerate(volumes):
        name = "truth_map.mrc" if len(volumes) == 1 else f"truth_map{i + 1}.mrc"
        mrc.write_volume(job.folder / name, volume, options.angpix)
    device = job.devices[0] if job.devices else None
    projector = _projector(options, to_device(volumes, device))
    deviations = _write_stacks(options, job, particles, projector, spectrum, radius)
    _write_star(options, job.folder / "truth_particles.star", particles)
    _write_star(options, job.folder / "particles.star", _without_truth(particles))
    job.say(
        f"{len(particles)} particles of {options.box} px, {options.angpix:g} Å/px, SNR {options.snr:g} inside a circle "
        f"of {diameter:.0f} Å; seed {options.random_seed}"
    )
    if deviations.size:
        job.say(f"images were divided by {deviations.mean():.3f} on average ({deviations.std():.3f} rms) to normalise")


def _models(options: Options) -> list[Atoms]:
    if not options.model:
        return [assembly(symmetry.operators(options.sym))]
    return [read_model(path).centred() for path in options.model]


def _truth(options: Options, folder: Path) -> Particles:
    """All particles with their poses, micrographs and CTFs; image names are those of the stacks to come."""
    n, n_micrographs = options.nr_particles, min(options.nr_micrographs, options.nr_particles)
    fractions = options.fraction or (1.0,) * max(1, len(options.model))
    poses = simulation.random_poses(n, options.sigma_offset, fractions, options.random_seed)
    micrograph = np.arange(n) * n_micrographs // n
    first = np.searchsorted(micrograph, np.arange(n_micrographs))
    names = [f"mic{m + 1:05d}" for m in range(n_micrographs)]
    stacks = [project_path(folder / "stacks" / f"{name}.mrcs") for name in names]
    defocus, astigmatism, angle = np.random.default_rng([options.random_seed, 0]).random((n_micrographs, 3)).T
    mean = options.defocus_min + (options.defocus_max - options.defocus_min) * defocus
    half = options.astigmatism * astigmatism / 2
    ctf = {"defocus_u": mean + half, "defocus_v": mean - half, "defocus_angle": 180.0 * angle}
    particles = Particles.create(
        _optics(options),
        micrograph % options.nr_optics_groups,
        path=str(folder / "truth_particles.star"),
        image_name=[f"{i - first[m] + 1:06d}@{stacks[m]}" for i, m in enumerate(micrograph)],
        micrograph_name=[f"micrographs/{names[m]}.mrc" for m in micrograph],
        **{name: values[micrograph] for name, values in ctf.items()},
    )
    particles.update(half_set=1 + np.arange(n) % 2, **vars(poses))
    return particles


def _value(given: tuple[float, ...], i: int) -> float:
    """The value of an option for optics group `i`, from 0."""
    return given[i if len(given) > 1 else 0]


def _optics(options: Options) -> list[OpticsGroup]:
    return [
        OpticsGroup(
            number=i + 1,
            name=f"opticsGroup{i + 1}",
            pixel_size=options.angpix,
            box_size=options.box,
            voltage=_value(options.kV, i),
            cs=_value(options.Cs, i),
            q0=_value(options.Q0, i),
        )
        for i in range(options.nr_optics_groups)
    ]


def _tilts(options: Options) -> tuple[list[float], list[float]]:
    """Beam tilt of each optics group, mrad along x and y."""
    groups = range(options.nr_optics_groups)
    return [_value(options.beam_tilt_x, i) for i in groups], [_value(options.beam_tilt_y, i) for i in groups]


def _projector(options: Options, volumes: Array) -> simulation.Projector:
    aberrations = [
        Aberrations(odd=tuple(with_beam_tilt((), x, y, group.cs, float(wavelength(group.voltage))).tolist()))
        for group, x, y in zip(_optics(options), *_tilts(options), strict=True)
    ]
    return simulation.Projector(volumes, aberrations=aberrations, pixel_size=options.angpix)


def _write_star(options: Options, path: Path, particles: Particles) -> None:
    found = to_star(particles)
    if options.tilted:
        for column, tilts in zip(("rlnBeamTiltX", "rlnBeamTiltY"), _tilts(options), strict=True):
            found["optics"].set(column, tilts)
    star.write(path, found)


def _without_truth(particles: Particles) -> Particles:
    """The same particles as a user would get them: no poses, classes or half sets."""
    kept = ("image_name", "micrograph_name", "defocus_u", "defocus_v", "defocus_angle")
    columns = {name: getattr(particles, name) for name in kept}
    return Particles.create(particles.optics, particles.optics_index, **columns)


def _project(
    options: Options, particles: Particles, projector: simulation.Projector, chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    some = particles.subset(chosen)
    origins = np.stack([some.origin_x_angst, some.origin_y_angst], axis=1)
    coefficients = some.ctf_coefficients() if options.ctf else None
    angles = np.stack([some.rot, some.tilt, some.psi], axis=1)
    images = projector(some.class_number - 1, angles, -origins / options.angpix, coefficients, some.optics_index)
    return np.asarray(to_host(images))


def _grey_scale(
    options: Options, particles: Particles, volumes: NDArray[np.float32], spectrum: NDArray[np.float64], radius: float
) -> np.float32:
    """The factor that gives the maps the signal-to-noise ratio asked for against noise of variance 1."""
    chosen = np.unique(np.linspace(0, len(particles) - 1, _CALIBRATED_ON).astype(np.int64))
    projector = _projector(options, volumes)
    signal = noise = 0.0
    for part in np.array_split(chosen, -(-len(chosen) // _batch_size(options.box))):
        signal += float(simulation.circle_variance(_project(options, particles, projector, part), radius).sum())
        images = simulation.particle_noise(part, spectrum, options.random_seed)
        noise += float(simulation.circle_variance(images, radius).sum())
    return np.float32(np.sqrt(options.snr * noise / signal))


def _write_stacks(
    options: Options,
    job: Job,
    particles: Particles,
    projector: simulation.Projector,
    spectrum: NDArray[np.float64],
    radius: float,
) -> NDArray[np.float64]:
    """Write one stack per micrograph, but for those `--continue` finds; returns what the images were divided by."""
    job.resume_from = job.folder / "job.json"
    deviations = []
    with job.progress(len(particles), "Simulating") as progress:
        for stack, members in _stacks(particles):
            if not (options.continue_ and stack.is_file()):
                with mrc.stack_writer(stack, len(members), options.box, options.angpix) as writer:
                    for start in range(0, len(members), _batch_size(options.box)):
                        job.check_abort()
                        part = members[start : start + _batch_size(options.box)]
                        images = _project(options, particles, projector, part)
                        images += simulation.particle_noise(part, spectrum, options.random_seed)
                        images, _, deviation = simulation.normalise(images, radius)
                        writer.append(images)
                        deviations.append(deviation)
            progress.update(len(members))
    return np.concatenate(deviations) if deviations else np.zeros(0)


def _stacks(particles: Particles) -> Iterator[tuple[Path, NDArray[np.int64]]]:
    """Each stack with the particles in it, in order."""
    names = np.array([name.rpartition("@")[2] for name in particles.image_name])
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        yield Path(names[start]), np.arange(start, stop)


def _batch_size(box: int) -> int:
    return max(1, _BATCH_PIXELS // box**2)
