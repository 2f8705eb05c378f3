"""Simulate particles, micrographs or movies of the built-in phantom or of atomic models, with the truth beside them.

--kind particles writes particles.star (no poses), stacks/*.mrcs, truth_particles.star (poses, shifts, class = which
model) and truth_map.mrc (truth_mapN.mrc for several models). An image is the projection of the truth map through the
CTF plus noise of variance 1, brought to mean 0 and standard deviation 1 outside the particle circle.

--kind micrographs writes micrographs.star, micrographs/*.mrc (electrons per pixel, dark protein),
truth_coordinates/*.star (centres, poses, defoci, class), truth_ctf.star and the truth map, whose projections are in
standard deviations of the noise. --kind movies writes those for the specimen at rest, and movies.star, movies/*,
gain.mrc (counts times gain are electrons) and truth_motion/*.star (shifts that put each frame back onto the first).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import micrograph_scene, micrograph_simulation, movie_simulation, particle_simulation, simulation, symmetry
from spa.atoms import Atoms, density
from spa.errors import InputError
from spa.io import mrc, simulated
from spa.io.files import project_path
from spa.io.model import read_model, scattering_factors
from spa.job import Job
from spa.kernels.backend import to_device, to_like
from spa.options import CommonOptions, UsageError, draw_seed, option, specs
from spa.particles import OpticsGroup
from spa.phantom import assembly

_PARTICLES_ONLY = ("sigma_offset", "coloured", "ctf")
_MOST_COUNTS = 10000  # in a pixel of a frame, on average
_CLIPPED = 1e-3  # fraction of pixels that may expect less than no electrons


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
    kind: str = option("particles", help="What to simulate", choices=("particles", "micrographs", "movies"))
    nr_particles: int = option(1000, help="Number of particles in all", bounds=(1, None), group="Particles")
    nr_micrographs: int = option(
        20, help="Number of micrographs the particles come from", bounds=(1, None), group="Particles"
    )
    box: int | None = option(
        None,
        help="Box size of the particles and of the truth map, even",
        unit="px",
        bounds=(16, 4096),
        group="Particles",
        default_text="64, or 1.5 times the particle circle for micrographs",
    )
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
    micrograph_size: tuple[int, ...] = option(
        (2048,),
        help="Size of the micrographs: once for square ones, twice for width and height",
        unit="px",
        bounds=(64, 32768),
        group="Micrographs",
    )
    defocus_spread: float = option(
        100.0,
        help="Standard deviation of the particles' defoci within a micrograph",
        unit="Å",
        bounds=(0, 1e5),
        group="Micrographs",
    )
    phase_shift: tuple[float, ...] = option(
        (0.0,),
        help="Phase shift of a phase plate; given twice, drawn for each micrograph between the two",
        unit="degrees",
        bounds=(0, 180),
        group="Micrographs",
    )
    bfactor: float = option(
        50.0, help="B-factor of the envelope exp(-B s² / 4)", unit="Å²", bounds=(0, 5000), group="Micrographs"
    )
    dose: float = option(
        40.0, help="Exposure of a micrograph, all of its frames", unit="e/Å²", bounds=(0.01, 1e4), group="Micrographs"
    )
    ice: float = option(
        0.2,
        help="Fraction of the noise variance that is the ice's, seen through the CTF; the rest is counting noise",
        bounds=(0, 0.99),
        group="Micrographs",
    )
    ice_peak: float = option(
        0.0,
        help="Power of the peak of amorphous ice near 3.7 Å over that around it",
        bounds=(0, 1e4),
        group="Micrographs",
    )
    carbon: float = option(
        0.0, help="Fraction of the micrographs that show a carbon edge", bounds=(0, 1), group="Micrographs"
    )
    contamination: float = option(
        0.0, help="Mean number of contaminating grains in a micrograph", bounds=(0, 1000), group="Micrographs"
    )
    nr_frames: int = option(24, help="Number of frames", bounds=(1, 10000), group="Movies")
    drift: float = option(
        1.0,
        help="Mean motion of the whole frame from one to the next; the first steps are the longest",
        unit="Å/frame",
        bounds=(0, 1000),
        group="Movies",
    )
    doming: float = option(
        4.0,
        help="Largest local motion at the end, quadratic in space, beside that of the whole frame",
        unit="Å",
        bounds=(0, 1000),
        group="Movies",
    )
    movie_format: str = option("tiff", help="TIFF with LZW, or MRC", choices=("tiff", "mrcs"), group="Movies")
    hot_pixels: int = option(
        100, help="Number of pixels that count without electrons", bounds=(0, 1 << 20), group="Movies"
    )
    dead_pixels: int = option(
        50, help="Number of pixels that never count; their gain is 0", bounds=(0, 1 << 20), group="Movies"
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
        if self.box is not None and self.box % 2:
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
        for name in ("micrograph_size", "phase_shift"):
            if len(getattr(self, name)) > 2:
                raise UsageError(f"--{name}: expected it once or twice, got {len(getattr(self, name))} times")
        if self.phase_shift[0] > self.phase_shift[-1]:
            low, high = self.phase_shift
            raise UsageError(f"--phase_shift {low:g}, then {high:g}: expected the smaller one first")
        electrons = self.dose * self.angpix**2 / self.nr_frames
        if self.kind == "movies" and electrons > _MOST_COUNTS:
            raise UsageError(
                f"--dose {self.dose:g}: {electrons:.0f} electrons in a pixel of a frame do not fit 16 bits"
            )
        self._refuse_other_kinds()

    def _refuse_other_kinds(self) -> None:
        """Raise UsageError if an option was given that means nothing for this kind."""
        for spec in specs(type(self)):
            kinds = ["micrographs", "movies"] if spec.group == "Micrographs" else ["movies"]
            if spec.name in _PARTICLES_ONLY:
                kinds = ["particles"]
            elif spec.group not in ("Micrographs", "Movies"):
                continue
            if self.kind not in kinds and getattr(self, spec.name) != spec.default:
                flag = "--no_ctf" if spec.name == "ctf" else spec.flags[0]
                raise UsageError(f"{flag}: means something for --kind {' and '.join(kinds)} only")

    @property
    def tilted(self) -> bool:
        """Whether any optics group has a beam tilt."""
        return any(self.beam_tilt_x) or any(self.beam_tilt_y)


def run(options: Options, job: Job) -> None:
    """Write maps, images and STAR files into the folder `--o`."""
    models = _models(options)
    diameter = options.particle_diameter or 2.2 * max(model.radius() for model in models)
    particles = options.kind == "particles"
    box = options.box or (64 if particles else 2 * int(np.ceil(0.75 * diameter / options.angpix)))
    if diameter > (box - 2) * options.angpix:
        extent = box * options.angpix
        raise InputError(
            f"--box {box}: {extent:.0f} Å leaves no background around the particle circle of {diameter:.0f} Å"
        )
    job.resume_from = job.folder / "job.json"
    volumes = _densities(models, box, options.angpix)
    if particles:
        _particles(options, job, volumes, diameter)
    else:
        _micrographs(options, job, volumes, diameter)


def _models(options: Options) -> list[Atoms]:
    if not options.model:
        return [assembly(symmetry.operators(options.sym))]
    return [read_model(path).centred() for path in options.model]


def _densities(models: list[Atoms], box: int, angpix: float) -> NDArray[np.float32]:
    factors = scattering_factors(np.concatenate([np.unique(model.elements) for model in models]))
    return np.stack([density(model, factors, box, angpix) for model in models])


def _optics(options: Options, box: int) -> list[OpticsGroup]:
    return [
        OpticsGroup(
            number=i + 1,
            name=f"opticsGroup{i + 1}",
            pixel_size=options.angpix,
            box_size=box,
            voltage=_value(options.kV, i),
            cs=_value(options.Cs, i),
            q0=_value(options.Q0, i),
        )
        for i in range(options.nr_optics_groups)
    ]


def _value(given: tuple[float, ...], i: int) -> float:
    """The value of an option for optics group `i`, from 0."""
    return given[i if len(given) > 1 else 0]


def _tilts(options: Options) -> list[tuple[float, float]]:
    """Beam tilt of each optics group, mrad along x and y; empty where none has any."""
    groups = range(options.nr_optics_groups) if options.tilted else ()
    return [(_value(options.beam_tilt_x, i), _value(options.beam_tilt_y, i)) for i in groups]


def _projector(options: Options, job: Job, volumes: NDArray[np.float32]) -> simulation.Projector:
    aberrations = simulation.beam_tilts(_optics(options, volumes.shape[-1]), _tilts(options))
    volumes = to_device(volumes, job.devices[0] if job.devices else None)
    return simulation.Projector(volumes, aberrations=aberrations, pixel_size=options.angpix)


def _particles(options: Options, job: Job, volumes: NDArray[np.float32], diameter: float) -> None:
    box = volumes.shape[-1]
    recipe = particle_simulation.Recipe(
        n=options.nr_particles,
        n_micrographs=options.nr_micrographs,
        radius=diameter / 2 / options.angpix,
        optics=_optics(options, box),
        defocus=(options.defocus_min, options.defocus_max),
        astigmatism=options.astigmatism,
        sigma_offset=options.sigma_offset,
        fractions=options.fraction or (1.0,) * len(volumes),
        with_ctf=options.ctf,
        snr=options.snr,
        coloured=options.coloured,
        seed=options.random_seed,
    )
    folder = job.folder / "stacks"
    particles = particle_simulation.draw_particles(recipe, lambda name: project_path(folder / f"{name}.mrcs"))
    volumes = particle_simulation.grey_scale(recipe, particles, _projector(options, job, volumes)) * volumes
    simulated.write_maps(job.folder, volumes, options.angpix)
    projector = _projector(options, job, volumes)
    with job.progress(len(particles), "Simulating") as progress:

        def between(n: int) -> None:
            progress.update(n)
            job.check_abort()

        deviations = simulated.write_stacks(recipe, particles, projector, bool(options.continue_), between)
    simulated.write_particles(job.folder, particles, _tilts(options))
    job.say(
        f"{len(particles)} particles of {box} px, {options.angpix:g} Å/px, SNR {options.snr:g} inside a circle "
        f"of {diameter:.0f} Å; seed {options.random_seed}"
    )
    if deviations.size:
        job.say(f"images were divided by {deviations.mean():.3f} on average ({deviations.std():.3f} rms) to normalise")


def _micrographs(options: Options, job: Job, volumes: NDArray[np.float32], diameter: float) -> None:
    movie = None
    if options.kind == "movies":
        movie = movie_simulation.Recipe(options.nr_frames, options.dose, options.drift, options.doming)
    recipe = _recipe(options, volumes, diameter, movie)
    n = options.nr_micrographs
    counts = np.bincount(np.arange(options.nr_particles) * n // options.nr_particles, minlength=n).tolist()
    scale = micrograph_simulation.grey_scale(recipe, counts, _projector(options, job, volumes), options.snr)
    volumes = scale * volumes
    simulated.write_maps(job.folder, volumes, options.angpix)
    projector = _projector(options, job, volumes)
    detector = None
    if movie is not None:
        bad = options.hot_pixels, options.dead_pixels
        detector = movie_simulation.draw_detector(recipe.shape, *bad, options.random_seed)
        mrc.write_volume(job.folder / "gain.mrc", detector.gain, options.angpix)
    files = [simulated.Files(job.folder, f"mic{i + 1:05d}", options.movie_format if movie else "") for i in range(n)]
    scenes = []
    with job.progress(n, "Simulating", options.kind) as progress:
        for number, file in enumerate(files):
            job.check_abort()
            scene = micrograph_scene.draw_scene(recipe, number, counts[number])
            scenes.append(scene)
            if not (options.continue_ and file.complete()):
                image = micrograph_simulation.expected_image(recipe, scene, projector)
                if (clipped := float((image < 0).mean())) > _CLIPPED:
                    job.warn(
                        f"{file.name}: {clipped:.1%} of the pixels expect no electron; lower --snr or raise --dose"
                    )
                simulated.write_micrograph(file, recipe, scene, image)
                if movie is not None and detector is not None:
                    simulated.write_movie(file, recipe, movie, scene, detector, to_like(image, projector.like))
            progress.update(1)
    simulated.write_tables(files, recipe.optics, _tilts(options), scenes)
    job.say(
        f"{n} {options.kind} of {recipe.shape[1]} x {recipe.shape[0]} px, {options.angpix:g} Å/px, with "
        f"{options.nr_particles} particles of {diameter:.0f} Å, SNR {options.snr:g}; seed {options.random_seed}"
    )


def _recipe(
    options: Options, volumes: NDArray[np.float32], diameter: float, movie: movie_simulation.Recipe | None
) -> micrograph_scene.Recipe:
    size = options.micrograph_size
    return micrograph_scene.Recipe(
        shape=(size[-1], size[0]),
        pixel_size=options.angpix,
        diameter=diameter,
        optics=_optics(options, volumes.shape[-1]),
        defocus=(options.defocus_min, options.defocus_max),
        astigmatism=options.astigmatism,
        defocus_spread=options.defocus_spread,
        phase_shift=(options.phase_shift[0], options.phase_shift[-1]),
        bfactor=options.bfactor,
        fractions=options.fraction or (1.0,) * len(volumes),
        electrons=options.dose * options.angpix**2,
        ice=options.ice,
        ice_peak=options.ice_peak,
        carbon=options.carbon,
        contamination=options.contamination,
        seed=options.random_seed,
        motion=movie.reach if movie else 0.0,
    )
