"""Import movies, micrographs, particles or coordinates by their file names into STAR files with optics groups.

What is imported follows from the files, or is said with one of the --do flags. Movies and micrographs that cannot be
read, or are of another size than the rest, are left out and listed with the reason in a STAR file beside the output.
"""

from __future__ import annotations

import functools
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa.errors import InputError
from spa.io import coordinate_tables as tables
from spa.io import mrc, star
from spa.io.coordinates import Picks, read_coordinates
from spa.io.files import existing_file, project_path
from spa.io.headers import ImageHeader, image_header, odd_ones
from spa.io.micrograph_tables import failed_path, write_failed
from spa.io.micrographs import check_group
from spa.io.particle_io import ParticleImages, read_particles, to_star
from spa.io.patterns import found_files, kind_of
from spa.io.star import Block, StarFile
from spa.job import Job
from spa.options import CommonOptions, UsageError, option

KINDS = ("movies", "micrographs", "coordinates", "particles", "halfmaps", "other")
_VOLTAGE, _CS, _Q0 = 300.0, 2.7, 0.1


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa import`, named as in relion_import."""

    i: tuple[str, ...] = option(help='Files to import; quote a pattern, as "Movies/*.tiff"')
    odir: str = option(help="Output folder", flag=("--odir", "--o"), role="folder")
    ofile: str | None = option(
        None, help="Name of the STAR file in it", default_text="movies.star, micrographs.star and so on"
    )
    do_movies: bool = option(False, help="Import movies", group="Kind")
    do_micrographs: bool = option(False, help="Import micrographs", group="Kind")
    do_coordinates: bool = option(
        False, help="Import coordinates: Topaz .txt, EMAN .box, crYOLO .cbox, cryoSPARC .cs, RELION .star", group="Kind"
    )
    do_particles: bool = option(False, help="Import a STAR file of particles", group="Kind")
    do_halfmaps: bool = option(False, help="Import half maps: checked and copied", group="Kind")
    do_other: bool = option(False, help="Import other files: copied", group="Kind")
    optics_group_name: str = option(
        "opticsGroup1",
        help="Name of the optics group",
        flag=("--optics_group_name", "--particles_optics_group_name"),
        group="Optics",
    )
    angpix: float | None = option(
        None, help="Pixel size", unit="Å", bounds=(0.1, 50), group="Optics", default_text="the MRC headers'"
    )
    kV: float | None = option(None, help="Voltage", unit="kV", bounds=(30, 1000), group="Optics", default_text="300")
    Cs: float | None = option(
        None, help="Spherical aberration", unit="mm", bounds=(0, 10), group="Optics", default_text="2.7"
    )
    Q0: float | None = option(None, help="Amplitude contrast", bounds=(0, 1), group="Optics", default_text="0.1")
    beamtilt_x: float = option(0.0, help="Beam tilt along x", unit="mrad", bounds=(-100, 100), group="Optics")
    beamtilt_y: float = option(0.0, help="Beam tilt along y", unit="mrad", bounds=(-100, 100), group="Optics")
    mtf: str | None = option(
        None,
        help="STAR file with the MTF of the detector",
        flag=("--mtf", "--optics_group_mtf"),
        role="input",
        group="Optics",
    )
    micrographs: str | None = option(
        None, help="STAR file of the micrographs that the coordinates belong to", role="input", group="Coordinates"
    )
    coordinate_scale: float = option(
        1.0,
        help="Multiply coordinates with this, as picks in micrographs binned by it need",
        bounds=(1e-3, 1e3),
        group="Coordinates",
    )
    minimum_pick_fom: float | None = option(
        None, help="Leave out coordinates with a lower score", group="Coordinates", default_text="all stay"
    )
    flip_y: bool = option(
        False,
        help="Turn cryoSPARC coordinates upside down, for micrographs that cryoSPARC did not write",
        group="Coordinates",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--do_{kind}" for kind in KINDS if getattr(self, f"do_{kind}")]
        if len(given) > 1:
            raise UsageError(f"{' '.join(given)}: expected one of them")
        if self.ofile is not None and (Path(self.ofile).name != self.ofile or not self.ofile.endswith(".star")):
            raise UsageError(f"--ofile {self.ofile}: expected a name that ends in .star, without folders")


def run(options: Options, job: Job) -> None:
    """Find the files, see what they are, check them and write their STAR file."""
    paths = found_files(options.i)
    kind = next((kind for kind in KINDS if getattr(options, f"do_{kind}")), None) or kind_of(paths)
    if kind in ("movies", "micrographs"):
        _import_images(options, job, paths, kind)
    elif kind == "coordinates":
        _import_coordinates(options, job, paths)
    elif kind == "particles":
        _import_particles(options, job, paths)
    else:
        _copy(options, job, paths, kind)


# Movies and micrographs


def _import_images(options: Options, job: Job, paths: list[Path], kind: str) -> None:
    headers, reasons = _headers(job, paths, kind)
    if headers:
        reasons |= odd_ones(headers)
    headers = {path: header for path, header in headers.items() if path not in reasons}
    output = Path(options.odir) / (options.ofile or f"{kind}.star")
    for path in reasons:
        job.warn(f"left out {reasons[path]}")
    if not headers:
        raise InputError(f"none of the {len(paths)} {kind} can be read; the first: {reasons[paths[0]]}")
    pixel_size = _pixel_size(options, job, headers)
    column = "rlnMicrographMovieName" if kind == "movies" else "rlnMicrographName"
    names = [project_path(path) for path in paths]
    table = Block.table(kind, {column: names, "rlnOpticsGroup": [1] * len(paths)})
    everything = StarFile([_optics(options, kind, pixel_size), table])
    write_failed(output, everything, kind, {i: reasons[path] for i, path in enumerate(paths) if path in reasons})
    good = table.rows(np.array([path in headers for path in paths]))
    star.write(output, StarFile([everything["optics"], good]))
    size = next(iter(headers.values())).size
    left_out = f"; {len(reasons)} left out and listed in {failed_path(output)}" if reasons else ""
    job.say(f"{len(good)} {kind} of {size} pixels, {pixel_size:g} Å/px, in {output}{left_out}")


def _headers(job: Job, paths: list[Path], kind: str) -> tuple[dict[Path, ImageHeader], dict[Path, str]]:
    """The headers of the images that can be read, and what is wrong with the others."""

    def look(path: Path) -> ImageHeader | str:
        try:
            header = image_header(path)
        except InputError as error:
            return str(error)
        if kind == "micrographs" and header.n_frames != 1:
            return f"{path}: expected one image, found {header.n_frames}: a movie (--do_movies)?"
        if kind == "movies" and header.n_frames == 1:
            return f"{path}: expected frames, found one image: a gain reference, or a micrograph (--do_micrographs)?"
        return header

    headers: dict[Path, ImageHeader] = {}
    reasons: dict[Path, str] = {}
    with ThreadPoolExecutor(job.options.j) as pool, job.progress(len(paths), "Looking at headers", kind) as bar:
        for path, found in zip(paths, pool.map(look, paths), strict=True):
            if isinstance(found, str):
                reasons[path] = found
            else:
                headers[path] = found
            bar.update()
            job.check_abort()
    return headers, reasons


def _pixel_size(options: Options, job: Job, headers: dict[Path, ImageHeader]) -> float:
    """The pixel size given, or the one that all headers agree on."""
    told = {path: header.pixel_size for path, header in headers.items() if header.pixel_size > 0}
    if options.angpix is None:
        if len(told) < len(headers):
            path = next(path for path in headers if path not in told)
            raise InputError(f"{path}: no pixel size in the header; give --angpix")
        expected = next(iter(told.values()))
    else:
        expected = options.angpix
    others = {path: size for path, size in told.items() if abs(size - expected) > 0.01 * expected}
    if others:
        path, size = next(iter(others.items()))
        if options.angpix is None:
            raise InputError(f"{path}: {size:g} Å/px in the header, {expected:g} in others; give --angpix")
        job.warn(f"--angpix {expected:g}: {len(others)} headers say another pixel size, as {path}: {size:g} Å")
    return expected


def _optics(options: Options, kind: str, pixel_size: float) -> Block:
    columns: dict[str, list[str] | list[int] | list[float]] = {
        "rlnOpticsGroupName": [options.optics_group_name],
        "rlnOpticsGroup": [1],
    }
    if options.mtf is not None:
        curve = star.read(options.mtf)
        if not any("rlnMtfValue" in block and "rlnResolutionInversePixel" in block for block in curve):
            raise InputError(f"{options.mtf}: expected a table with rlnResolutionInversePixel and rlnMtfValue")
        columns["rlnMtfFileName"] = [project_path(options.mtf)]
    if kind == "micrographs":
        columns["rlnMicrographPixelSize"] = [pixel_size]
    columns["rlnMicrographOriginalPixelSize"] = [pixel_size]
    columns["rlnVoltage"] = [_VOLTAGE if options.kV is None else options.kV]
    columns["rlnSphericalAberration"] = [_CS if options.Cs is None else options.Cs]
    columns["rlnAmplitudeContrast"] = [_Q0 if options.Q0 is None else options.Q0]
    if options.beamtilt_x or options.beamtilt_y:
        columns |= {"rlnBeamTiltX": [options.beamtilt_x], "rlnBeamTiltY": [options.beamtilt_y]}
    optics = Block.table("optics", columns)
    optics.path = "headers"
    check_group(optics, 0, kind)
    return optics


# Particles


def _import_particles(options: Options, job: Job, paths: list[Path]) -> None:
    if len(paths) > 1:
        raise InputError(f"--i: expected one STAR file of particles, found {len(paths)}, as {paths[0]} and {paths[1]}")
    job.add_input(paths[0])
    particles = read_particles(paths[0])
    one_size = len({(group.box_size, group.pixel_size) for group in particles.optics}) == 1
    indices = range(1 if one_size else len(particles.optics))
    for members in (np.flatnonzero(one_size | (particles.optics_index == i)) for i in indices):
        if len(members):
            ParticleImages(particles.subset(members))
    found = to_star(particles)
    optics = found["optics"]
    for flag, column in (("kV", "rlnVoltage"), ("Cs", "rlnSphericalAberration"), ("Q0", "rlnAmplitudeContrast")):
        if getattr(options, flag) is not None:
            optics.set(column, [getattr(options, flag)] * len(optics))
        elif column not in optics:
            job.warn(f"{paths[0]}: data_optics: no column {column}; give --{flag}")
    if len(optics) == 1 and options.optics_group_name != Options.optics_group_name:
        optics.set("rlnOpticsGroupName", [options.optics_group_name])
    output = Path(options.odir) / (options.ofile or "particles.star")
    star.write(output, found)
    job.say(f"{len(particles)} particles in {len(optics)} optics groups in {output}")


# Coordinates


def _import_coordinates(options: Options, job: Job, paths: list[Path]) -> None:
    known = None if options.micrographs is None else tables.known_micrographs(options.micrographs)
    gathered: dict[str, Picks] = {}
    wrong: list[str] = []
    for path in paths:
        job.check_abort()
        try:
            picks = read_coordinates(path, options.flip_y)
        except InputError as error:
            wrong.append(str(error))
            continue
        unknown = tables.gather(gathered, picks, known)
        if unknown:
            wrong.append(f"{path}: {len(unknown)} micrographs are not in {options.micrographs}, as {unknown[0]}")
    for reason in wrong:
        job.warn(f"left out {reason}")
    if not gathered:
        raise InputError(f"no coordinates could be imported; the first: {wrong[0]}")
    if known is None:
        job.warn("without --micrographs the micrographs are named as in the files of coordinates")
    minimum = -math.inf if options.minimum_pick_fom is None else options.minimum_pick_fom
    wanted = {name: picks.scaled(options.coordinate_scale).above(minimum) for name, picks in gathered.items()}
    output = Path(options.odir) / (options.ofile or "coordinates.star")
    tables.write_coordinates(output, wanted, options.micrographs)
    total = sum(len(picks.table) for picks in wanted.values())
    job.say(f"{total} coordinates in {len(wanted)} micrographs in {output}")


# Other files


def _copy(options: Options, job: Job, paths: list[Path], kind: str) -> None:
    """Copy files into the output folder, half maps after a look at them."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise InputError("--i: expected files of different names, as they are copied into one folder")
    for path in paths:
        existing_file(path)
        if kind == "halfmaps":
            mrc.read_volume(path, options.angpix or 0.0)
        job.check_abort()
        job.write_whole(Path(options.odir) / path.name, functools.partial(shutil.copyfile, path))
        job.say(f"copied {path} to {Path(options.odir) / path.name}")
