"""Extract particles from micrographs: one stack for each, and a STAR file of all particles.

Coordinates come from a list of files (--coord_list, as spa pick and spa import write it), from files named as the
micrographs (--coord_dir, --coord_suffix), or from refined particles (--reextract_data_star). Windows that reach
beyond a micrograph repeat its last pixels there. A picture shows some particles and the average of many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import extraction
from spa.errors import InputError
from spa.extraction import Background
from spa.io import extraction_checks as checks
from spa.io import extraction_plots, mrc, plots, star
from spa.io import extraction_tables as tables
from spa.io.extraction_particles import extracted_optics, reextracted_optics, with_micrograph, without_particles
from spa.io.files import project_path
from spa.io.micrograph_image import read_micrograph
from spa.io.name_matching import of_micrographs
from spa.io.star import Block, StarFile
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host
from spa.map_job import Item, MicrographOptions, Row, map_micrographs, worker_device
from spa.options import UsageError, option

WORKLIST = "micrographs_with_coordinates.star"
OUTPUT = "extracted_micrographs.star"
PICTURE = "particles.png"
_TABLE, _COUNT = "spaParticles", "spaNrParticles"
_OUTSIDE, _FLAT, _CONSTANT = "spaNrOutside", "spaNrFlat", "spaNrConstant"
_OWNED = (_TABLE, _COUNT, _OUTSIDE, _FLAT, _CONSTANT, tables.STATE)
_BATCH = 32 << 20  # bytes of windows that are worked on at once
_COPIES = 8  # of a batch, at most, while it is normalised
_LARGEST_HALF = 65504.0
_DARK = -5.0  # standard errors
_CENTRES = ("rlnCoordinateX", "rlnCoordinateY")
_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_SHAPE, _NORM, _AGAIN = "Extraction", "Normalisation", "Re-extraction"


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """Options of `spa extract`, named as in relion_preprocess."""

    i: str = option(help="STAR file of the micrographs, with their CTF", role="input")
    o: str = option(
        "Particles",
        help="Folder of the stacks and of what else is written",
        flag=("--part_dir", "--odir", "--o"),
        role="folder",
    )
    part_star: str | None = option(
        None, help="STAR file of the particles to write", default_text="particles.star in --part_dir"
    )
    coord_list: str | None = option(None, help="STAR file that lists a file of coordinates by micrograph", role="input")
    coord_dir: str = option(
        "ASINPUT", help="Folder of the coordinate files for --coord_suffix; ASINPUT: that of each micrograph"
    )
    coord_suffix: str | None = option(None, help='End of the names of coordinate files, as "_autopick.star" or ".box"')
    extract_size: int = option(help="Box in the micrograph, even", unit="px", bounds=(8, 8192), group=_SHAPE)
    scale: int | None = option(
        None,
        help="Crop the transforms to a box of this size, even",
        unit="px",
        bounds=(8, 8192),
        group=_SHAPE,
        default_text="--extract_size",
    )
    invert_contrast: bool = option(False, help="Turn dark particles bright, as refinement needs them", group=_SHAPE)
    float16: bool = option(False, help="Write half-precision stacks (MRC mode 12), of half the size", group=_SHAPE)
    minimum_pick_fom: float | None = option(
        None, help="Leave out coordinates with a lower figure of merit", group=_SHAPE, default_text="all stay"
    )
    norm: bool = option(
        False, help="Bring the background to mean 0 and standard deviation 1, as refinement needs it", group=_NORM
    )
    no_ramp: bool = option(False, help="Subtract a constant from the background, not a plane", group=_NORM)
    bg_radius: float = option(
        -1.0,
        help="Radius of the circle, after --scale, outside which the background lies (-1: 3/8 of the box)",
        unit="px",
        bounds=(-1, 4096),
        group=_NORM,
    )
    white_dust: float = option(
        -1.0,
        help="Replace pixels further above the background by noise (-1: none)",
        unit="standard deviations",
        bounds=(-1, 1000),
        group=_NORM,
    )
    black_dust: float = option(
        -1.0,
        help="Replace pixels further below the background by noise (-1: none)",
        unit="standard deviations",
        bounds=(-1, 1000),
        group=_NORM,
    )
    reextract_data_star: str | None = option(
        None, help="Particles of a refinement to extract again; what is known of them stays", role="input", group=_AGAIN
    )
    recenter: bool = option(
        False, help="Move the boxes by the refined shifts, whole pixels; the rest stays a shift", group=_AGAIN
    )
    recenter_x: float = option(
        0.0, help="Point of the reference to centre on, from its centre", unit="px", bounds=(-4096, 4096), group=_AGAIN
    )
    recenter_y: float = option(0.0, help="As --recenter_x", unit="px", bounds=(-4096, 4096), group=_AGAIN)
    recenter_z: float = option(0.0, help="As --recenter_x", unit="px", bounds=(-4096, 4096), group=_AGAIN)
    ref_angpix: float = option(
        -1.0,
        help="Pixel size of the reference for --recenter_x, y and z (-1: that of the particles)",
        unit="Å",
        bounds=(-1, 100),
        group=_AGAIN,
    )
    reset_offsets: bool = option(False, help="Set the refined shifts to zero", group=_AGAIN)
    keep_ctfs_micrographs: bool = option(
        False, help="Take the CTF of the micrographs, not the particles' own", group=_AGAIN
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, box in (("--extract_size", self.extract_size), ("--scale", self.box_size)):
            if box % 2:
                raise UsageError(f"{flag} {box}: expected an even number")
        if self.box_size > self.extract_size:
            raise UsageError(f"--scale {self.box_size}: expected at most --extract_size {self.extract_size}")
        if 2 * int(self.background.radius) > self.box_size:
            raise UsageError(
                f"--bg_radius {self.bg_radius:g}: expected at most {self.box_size // 2}, half the box after --scale"
            )
        sources = [self.coord_list, self.coord_suffix, self.reextract_data_star]
        if sum(source is not None for source in sources) != 1:
            raise UsageError("expected one of --coord_list, --coord_suffix and --reextract_data_star")
        if not self.norm and max(self.white_dust, self.black_dust) > 0:
            raise UsageError("--white_dust and --black_dust: expected with --norm")
        if self.recenter and self.reset_offsets:
            raise UsageError("--recenter and --reset_offsets: expected one of the two")
        if any(self.point) and not self.recenter:
            raise UsageError("--recenter_x, --recenter_y and --recenter_z: expected with --recenter")
        if self.reextract_data_star is None and (self.recenter or self.reset_offsets or self.keep_ctfs_micrographs):
            raise UsageError("--recenter and the like: expected with --reextract_data_star")

    @property
    def box_size(self) -> int:
        """The box of the particles as they are written."""
        return self.extract_size if self.scale is None else self.scale

    @property
    def binning(self) -> float:
        """Pixels of the micrograph for each of a particle."""
        return self.extract_size / self.box_size

    @property
    def point(self) -> tuple[float, float, float]:
        """The point of the reference to centre on, in its pixels."""
        return self.recenter_x, self.recenter_y, self.recenter_z

    @property
    def background(self) -> Background:
        """How to normalise."""
        radius = self.bg_radius if self.bg_radius >= 0 else 3 * self.box_size // 8
        return Background(radius, not self.no_ramp, self.white_dust, self.black_dust)


def run(options: Options, job: Job) -> None:
    """Find the coordinates, extract, join the tables, and say what a user should look at."""
    names = tables.micrograph_names(options.i)
    optics: Block | None = None
    path = Path(options.part_star or Path(options.o) / "particles.star")
    inputs = (options.i, options.coord_list, options.reextract_data_star, *names)
    made = checks.own_files(Path(options.o), names, (WORKLIST, OUTPUT, "extracted_micrographs_failed.star", PICTURE))
    checks.refuse_replacing("--part_star", path, (*inputs, *made))
    if options.keep_ctfs_micrographs:
        checks.require_ctf(options.i)
    if options.reextract_data_star is not None:
        moved = (*_ORIGINS, *_ANGLES) if options.recenter else ()
        found, optics = tables.refined(options.reextract_data_star, Path(options.o), options.i, moved)
    elif options.coord_list is not None:
        found = tables.listed(options.coord_list, names)
    else:
        folder = None if options.coord_dir == "ASINPUT" else options.coord_dir
        found = tables.in_folder(folder, options.coord_suffix or "", names)
    checks.refuse_replacing("--part_star", path, found.files.values())
    if optics is not None and any(options.point) and options.ref_angpix <= 0:
        checks.require_one_pixel_size(optics)
    (Path(options.o) / PICTURE).unlink(missing_ok=True)
    if options.coord_list is not None and not found.files and not found.strangers:
        star.write(path, without_particles(options.i, options.box_size, options.binning))
        job.warn(f"no particles: {options.coord_list} lists no files; {path} is a table without rows")
        return
    _check_found(found, options, job, names)
    worklist = Path(options.o) / WORKLIST
    tables.write_worklist(worklist, options.i, found)
    micrographs = map_micrographs(
        job,
        replace(options, i=str(worklist)),
        process,
        block="micrographs",
        column="rlnMicrographName",
        output=OUTPUT,
        memory=_memory,
        owns=_OWNED,
    )
    groups = star.read(Path(options.o) / OUTPUT)["optics"]
    particles = _joined(micrographs, job)
    if optics is None:
        optics = extracted_optics(groups, options.box_size, options.binning)
    else:
        optics = reextracted_optics(optics, groups, micrographs, particles, options.box_size, options.binning)
    star.write(path, StarFile([optics, particles]))
    _report(options, job, micrographs, particles, path)
    if len(particles):
        _warn_of_size(options, job, micrographs, groups)
        _picture(options, job, particles, optics)


def process(item: Item, options: Options) -> Row:
    """Extract the particles of one micrograph into its stack and table; returns how many there are."""
    micrograph = read_micrograph(item.path)
    rows, columns = micrograph.shape
    if options.extract_size > min(rows, columns):
        size = f"{columns} x {rows}"
        raise InputError(f"{item.path}: --extract_size {options.extract_size}: larger than its {size} pixels")
    source = Path(item.row[tables.COORDINATES])
    table = _coordinates(item, options, source)
    centres = np.stack([table.floats(column) for column in _CENTRES], axis=1)
    inside = extraction.reaches(centres, options.extract_size, (rows, columns))
    checks.refuse_outside(inside, centres, table, item)
    wanted = inside & tables.above(table, options.minimum_pick_fom, source)
    varied = extraction.varied(micrograph, centres, options.extract_size)
    constant = int((wanted & ~varied).sum())
    wanted &= varied
    stack = Path(options.o) / f"{item.stem}.mrcs"
    flat = _write_stack(stack, item, options, to_device(micrograph, worker_device()), centres[wanted])
    picked = options.reextract_data_star is None
    particles = with_micrograph(table.rows(wanted), item.row, stack, picked, options.keep_ctfs_micrographs)
    path = stack.with_name(f"{stack.stem}_extract.star")
    star.write(path, StarFile([particles]))
    return {
        _TABLE: project_path(path),
        _COUNT: len(particles),
        _OUTSIDE: int((~inside).sum()),
        _FLAT: flat,
        _CONSTANT: constant,
    }


def _coordinates(item: Item, options: Options, source: Path) -> Block:
    """The particles of a micrograph, those of a refinement moved as asked."""
    if options.reextract_data_star is None:
        return tables.read_picks(source, item.row["rlnMicrographName"])
    table, optics = tables.read_refined(source)
    if options.reset_offsets:
        for column in _ORIGINS:
            table.set(column, np.zeros(len(table)))
    if not options.recenter:
        return table
    size = options.ref_angpix if options.ref_angpix > 0 else float(optics.floats("rlnImagePixelSize").mean())
    point = (size * options.recenter_x, size * options.recenter_y, size * options.recenter_z)
    centres, origins, angles = (
        np.stack([table.floats(column) for column in columns], axis=1) for columns in (_CENTRES, _ORIGINS, _ANGLES)
    )
    centres, origins = extraction.recentre(centres, origins, angles, item.pixel_size, point)
    for columns, moved in ((_CENTRES, centres), (_ORIGINS, origins)):
        for column, numbers in zip(columns, moved.T, strict=True):
            table.set(column, numbers)
    return table


def _write_stack(path: Path, item: Item, options: Options, micrograph: Array, centres: NDArray[np.float64]) -> int:
    """Write the particles at `centres`, batch by batch; returns how many have a background without contrast."""
    if not len(centres):
        path.unlink(missing_ok=True)
        return 0
    rng = np.random.default_rng(item.random_seed)
    size = max(1, _BATCH // (4 * options.extract_size**2))
    flat = 0
    with mrc.stack_writer(
        path, len(centres), options.box_size, options.binning * item.pixel_size, options.float16
    ) as writer:
        for start in range(0, len(centres), size):
            images = extraction.windows(micrograph, centres[start : start + size], options.extract_size)
            images = extraction.rescale(images, options.box_size)
            if options.norm:
                images, without = extraction.normalise(images, options.background, rng)
                flat += int(without.sum())
            batch = to_host(-images if options.invert_contrast else images)
            if not np.isfinite(batch).all():
                raise InputError(f"{item.path}: images of it come out with values that are not finite")
            if options.float16 and float(np.abs(batch).max()) > _LARGEST_HALF:
                raise InputError(f"{item.path}: pixels beyond {_LARGEST_HALF:g}; --float16 needs --norm")
            writer.append(batch)
    return flat


def _memory(item: Item) -> int:
    """Bytes that extraction from a micrograph takes."""
    found = mrc.info(item.path)
    return int(np.prod(found.shape)) * (found.dtype.itemsize + 4) + _COPIES * _BATCH


def _check_found(found: tables.Found, options: Options, job: Job, names: list[str]) -> None:
    """Name coordinates of unknown micrographs and count micrographs without; refuse if nothing is left."""
    for note in found.notes:
        job.say(note)
    source = options.coord_list or options.reextract_data_star or f"{options.coord_dir}, {options.coord_suffix}"
    if not found.files:
        first = f"; the first: {found.strangers[0]}" if found.strangers else ""
        raise InputError(f"{source}: no coordinates of any of the {len(names)} micrographs in {options.i}{first}")
    if found.strangers:
        more = f", and {len(found.strangers) - 1} more" if len(found.strangers) > 1 else ""
        job.warn(f"left out {found.strangers[0]} in {options.i}{more}")
    without = [name for number, name in enumerate(names) if number not in found.files]
    if without:
        job.warn(f"no coordinates of {of_micrographs(len(without), len(names))} in {source}, as of {without[0]}")


def _joined(micrographs: Block, job: Job) -> Block:
    """The particles of all micrographs in one table."""
    parts = (star.read(path)["particles"] for path in micrographs.text(_TABLE))
    particles, left_out = tables.joined(parts, "particles")
    if left_out:
        job.warn(f"left out columns that only some files of coordinates have: {', '.join(left_out)}")
    return particles


def _report(options: Options, job: Job, micrographs: Block, particles: Block, path: Path) -> None:
    """Say how many particles there are, and what is odd about them."""
    counts = micrographs.integers(_COUNT)
    flat = int(micrographs.integers(_FLAT).sum())
    names = micrographs.text("rlnMicrographName")
    for column, what in ((_OUTSIDE, "whose box lies outside their micrograph"), (_CONSTANT, "whose box is constant")):
        number = micrographs.integers(column)
        if number.any():
            noun = "coordinate" if number.sum() == 1 else "coordinates"
            job.warn(f"left out {number.sum()} {noun} {what}, the first in {names[int(np.flatnonzero(number)[0])]}")
    if flat:
        job.warn(f"{flat} particles have a background without any contrast and were not divided by it")
    if not counts.sum():
        job.warn(f"no particles: the files of coordinates hold none that are wanted; {path} is a table without rows")
        return
    empty = f", {int((counts == 0).sum())} without any" if (counts == 0).any() else ""
    noun = "micrograph" if len(counts) == 1 else "micrographs"
    job.say(f"{counts.sum()} particles of {len(counts)} {noun}{empty} ({np.median(counts):.0f} each, median) in {path}")
    if "rlnDefocusU" not in particles:
        job.warn(f"{options.i}: no column rlnDefocusU: the particles have no CTF; run spa ctffind before")
    if not options.norm:
        job.warn("without --norm the particles are not normalised, as refinement needs them")


def _warn_of_size(options: Options, job: Job, micrographs: Block, groups: Block) -> None:
    """Tell the box that would hold all signal, where this one does not."""
    if "rlnDefocusU" not in micrographs or "rlnDefocusV" not in micrographs:
        return
    optics = extracted_optics(groups, options.box_size, options.binning)
    numbers = optics.integers("rlnOpticsGroup").tolist()
    group = np.array([numbers.index(number) for number in micrographs.integers("rlnOpticsGroup").tolist()])
    pixel_size, voltage = optics.floats("rlnImagePixelSize")[group], optics.floats("rlnVoltage")[group]
    defocus = np.abs(micrographs.floats("rlnDefocusU") + micrographs.floats("rlnDefocusV")) / 2
    radius = options.background.radius * pixel_size
    spread = extraction.delocalisation(defocus, voltage, 2 * pixel_size)
    room = options.box_size / 2 * pixel_size - radius
    worst = int(np.argmax(spread - room))
    if spread[worst] <= room[worst]:
        return
    if room[worst] <= 0:
        job.warn(f"the circle of {radius[worst]:.0f} Å fills the box: no room for the signal that the CTF spreads")
        return
    held = extraction.delocalisation(defocus, voltage, 1.0)[worst] / room[worst]
    needed = 2 * int(np.ceil((spread + radius)[worst] / pixel_size[worst] * options.binning))
    job.warn(
        f"the box of {options.box_size * pixel_size[worst]:.0f} Å does not hold all signal: at "
        f"{defocus[worst] / 1e4:.2f} µm of defocus the CTF carries {2 * pixel_size[worst]:.2f} Å (Nyquist) "
        f"{spread[worst]:.0f} Å beyond the circle of {radius[worst]:.0f} Å; this box holds what is coarser than "
        f"{held:.1f} Å, --extract_size {needed} would hold all"
    )


def _picture(options: Options, job: Job, particles: Block, optics: Block) -> None:
    """Draw some particles and the average of many, and warn where they are dark."""
    radius = options.background.radius
    sample = extraction_plots.read_sample(particles, optics)
    job.say(f"wrote {plots.save(Path(options.o) / PICTURE, extraction_plots.gallery(sample, radius))}")
    brightness = extraction.contrast(sample.images, radius)
    if brightness < _DARK:
        what = "leave out" if options.invert_contrast else "give"
        job.warn(
            f"the particles are darker than what surrounds them ({-brightness:.0f} standard errors): {what} "
            "--invert_contrast, since refinement needs them bright"
        )
