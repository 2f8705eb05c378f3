"""Pick particles by their shape (--LoG), or with templates made of a map or of images (--ref).

Writes a STAR file of coordinates and a picture for each micrograph, and a list of the files. A figure of merit is in
standard deviations of what noise alone scores, so that it means the same in every micrograph; its threshold is found
for each of them unless given. --consensus joins the picks of other runs instead; --evaluate compares with a truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import picking
from spa import picking_templates as templates
from spa.ctf import coefficients
from spa.errors import InputError
from spa.io import mrc, pick_plots, pick_tables, plots, star
from spa.io.coordinates import FOM, Picks
from spa.io.extraction_tables import COORDINATES
from spa.io.files import project_path
from spa.io.micrograph_image import read_micrograph
from spa.io.micrographs import MICROSCOPE, file_state
from spa.io.pick_references import read_reference, reference_diameter, turned
from spa.io.star import StarFile
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host
from spa.map_job import Item, MicrographOptions, Row, map_micrographs, worker_device
from spa.options import UsageError, option
from spa.picking_contamination import usable_area
from spa.picking_evaluation import consensus, curve
from spa.picking_image import Prepared, prepare, shrink, working_step
from spa.picking_peaks import Peaks
from spa.picking_scores import Field

OUTPUT = "micrographs_picked.star"
_COUNT, _THRESHOLD, _MASKED, _BEATEN = "spaNrPicks", "spaPickThreshold", "spaMaskedArea", "spaNrDecoys"
_OWNED = (COORDINATES, _COUNT, _THRESHOLD, _MASKED, _BEATEN)
_LOG, _PEAKS, _AGREE = "Laplacian of Gaussian", "Peaks", "Several sets of picks"
_DISC = 1.15  # diameter of the disc under which templates are compared, in particle diameters: holds some fringes
_SHORTEST = 0.65  # of the particle's diameter, between two particles
_SAMPLING = (20.0, 3.0)  # pixels across a particle, and across the shortest wavelength
_NO_AVERAGE = -999.0


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """Options of `spa pick`, named as in relion_autopick."""

    i: str = option(help="STAR file of the micrographs, with their CTF for --ref", role="input")
    o: str = option("AutoPick", help="Output folder", flag=("--odir", "--o"), role="folder")
    pickname: str = option("autopick", help="End of the names of coordinate files, and name of their list")
    particle_diameter: float = option(
        -1.0,
        help="Diameter of the particle (-1: of --LoG_diam_min and max, or found in the reference)",
        unit="Å",
        bounds=(-1, 10000),
        group="Particles",
    )
    LoG: bool = option(False, help="Pick blobs, then what looks as most of them do", group=_LOG)
    LoG_diam_min: float = option(-1.0, help="Smallest diameter", unit="Å", bounds=(-1, 10000), group=_LOG)
    LoG_diam_max: float = option(-1.0, help="Largest diameter", unit="Å", bounds=(-1, 10000), group=_LOG)
    LoG_adjust_threshold: float = option(
        0.0,
        help="Added to the threshold: more than 0 for fewer picks",
        unit="standard deviations",
        bounds=(-100, 100),
        group=_LOG,
    )
    LoG_upper_threshold: float = option(
        99999.0, help="Leave out picks above", unit="standard deviations", bounds=(0, None), group=_LOG
    )
    LoG_refine: bool = option(
        True, help="Learn the particles' rotational average from the blobs and pick with it", group=_LOG
    )
    Log_invert: bool = option(False, help="Particles are white in the micrographs", group=_LOG)
    ref: str | None = option(None, help="Map, or stack of 2D references (.mrcs)", role="input", group="Reference")
    decoys: str | None = option(
        None,
        help="Map or stack of what is no particle: peaks that match it better are left out",
        role="input",
        group="Reference",
    )
    angpix_ref: float = option(
        -1.0, help="Pixel size of --ref (-1: as its header says)", unit="Å", bounds=(-1, 100), group="Reference"
    )
    sym: str = option("C1", help="Point group of a map", group="Reference")
    healpix_order: int = option(
        1, help="Directions of a map: 0 for 60°, 1 for 30°, 2 for 15°, 3 for 7.5°", bounds=(0, 4), group="Reference"
    )
    ang: float = option(15.0, help="In-plane angular step", unit="degrees", bounds=(1, 360), group="Reference")
    lowpass: float = option(
        20.0, help="Low-pass filter of the references", unit="Å", bounds=(2, 500), group="Reference"
    )
    invert: bool = option(True, help="References are white, particles in the micrographs dark", group="Reference")
    ctf: bool = option(True, help="Multiply the references with the micrograph's CTF", group="CTF")
    shrink: float = option(
        0.0,
        help="Reduce micrographs to this fraction of their size (0: as the particle and --lowpass allow)",
        bounds=(0, 1),
        group=_PEAKS,
    )
    threshold: float | None = option(
        None,
        help="Lowest figure of merit",
        unit="standard deviations",
        group=_PEAKS,
        default_text="found for each micrograph",
    )
    min_distance: float = option(
        -1.0,
        help="Shortest distance between two particles (-1: 0.65 of the diameter)",
        unit="Å",
        bounds=(-1, 10000),
        group=_PEAKS,
    )
    max_stddev_noise: float = option(
        -1.0,
        help="Largest standard deviation around a pick, in those of the micrograph (-1: no limit)",
        bounds=(-1, 1000),
        group=_PEAKS,
    )
    min_avg_noise: float = option(
        _NO_AVERAGE,
        help="Smallest average around a pick, in standard deviations from the micrograph's median (-999: no limit)",
        bounds=(_NO_AVERAGE, 1000),
        group=_PEAKS,
    )
    mask_contamination: bool = option(
        True, help="Pick nothing on carbon, ice crystals and dirt, or next to them", group=_PEAKS
    )
    consensus: tuple[str, ...] = option(
        (), help="List of picks to join, as autopick.star; give it for each", group=_AGREE
    )
    consensus_min: int = option(
        0, help="Number of lists that must have a particle (0: more than half)", bounds=(0, 1000), group=_AGREE
    )
    evaluate: str | None = option(
        None, help="True coordinates: list of files, file, or pattern in quotes", group=_AGREE
    )
    match_distance: float = option(
        40.0, help="Distance within which centres are of one particle", unit="Å", bounds=(0.1, 10000), group=_AGREE
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [
            name for name, given in (("--LoG", self.LoG), ("--ref", self.ref), ("--consensus", self.consensus)) if given
        ]
        if len(chosen) != 1:
            raise UsageError(f"expected one of --LoG, --ref and --consensus, got {' and '.join(chosen) or 'none'}")
        if self.LoG and not 0 < self.LoG_diam_min <= self.LoG_diam_max:
            raise UsageError(
                f"--LoG_diam_min {self.LoG_diam_min:g}, --LoG_diam_max {self.LoG_diam_max:g}: expected more "
                "than 0, the smaller one first"
            )
        if self.decoys and not self.ref:
            raise UsageError("--decoys: expected with --ref")
        if self.consensus_min > len(self.consensus):
            raise UsageError(f"--consensus_min {self.consensus_min}: expected at most {len(self.consensus)}")
        if not self.pickname or "/" in self.pickname:
            raise UsageError(f"--pickname '{self.pickname}': expected the end of a file name")

    @property
    def list(self) -> Path:
        """The list of coordinate files."""
        return Path(self.o) / f"{self.pickname}.star"


def run(options: Options, job: Job) -> None:
    """Pick in every micrograph, write the lists, draw the set, and compare with the truth if there is one."""
    if options.ref is not None:
        _check_references(options, job)
    if options.threshold is not None and not 1 <= options.threshold <= 100 and not options.consensus:
        job.warn(f"--threshold {options.threshold:g}: it is in standard deviations of noise, such as 4")
    for source in options.consensus:
        pick_tables.read_set(source, options.i)
        job.add_input(source)
    truth = pick_tables.read_set(options.evaluate, options.i) if options.evaluate is not None else None
    table = map_micrographs(
        job,
        options,
        process,
        block="micrographs",
        column="rlnMicrographName",
        output=OUTPUT,
        needs=MICROSCOPE if options.ref is not None and options.ctf else (),
        memory=_memory,
        owns=_OWNED,
        reserved=(Path(OUTPUT).stem, options.pickname),
    )
    names, files = table.text("rlnMicrographName"), table.text(COORDINATES)
    pick_tables.write_list(options.list, names, files, options.i)
    counts = table.floats(_COUNT)
    score = [star.read(file)[""].floats(FOM) for file in files]
    picture = plots.save(options.list.with_suffix(".png"), pick_plots.overview(counts, table.floats(_THRESHOLD), score))
    job.say(
        f"{counts.sum():.0f} picks, {np.median(counts):.0f} in the median micrograph; wrote {options.list}, {picture}"
    )
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        job.warn(f"{len(empty)} of {len(names)} micrographs have no picks, as {empty[0]}")
    if truth is not None:
        _evaluate(options, job, truth)


def process(item: Item, options: Options) -> Row:
    """Pick in one micrograph and write its files; returns its columns."""
    image = read_micrograph(item.path)
    diameter = _diameter(options)
    step = working_step(item.pixel_size, _wanted_pixel_size(options, diameter, item.pixel_size))
    if min(image.shape) < 2 * diameter / item.pixel_size:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise InputError(f"{item.path}: {size} pixels are too small for a particle of {diameter:.0f} Å")
    try:
        plain = shrink(to_device(image, worker_device()), step)
        usable = _usable(plain, item.pixel_size * step, diameter, options)
        if options.consensus:
            found = _agreed(item, options, step)
            psi = np.zeros(len(found.peaks))
        elif not usable.any():
            found, psi = picking.given(np.zeros((0, 2)), np.zeros(0), options.threshold or 0.0), np.zeros(0)
        else:
            bright = options.Log_invert if options.LoG else not options.invert
            device = worker_device()
            prepared = prepare(plain, to_device(usable, device), step, item.pixel_size * step, diameter, bright)
            found, psi = _picked(item, options, prepared, diameter)
    except ValueError as error:
        raise InputError(f"{item.path}: {error}") from None
    return _write(item, options, found, psi, to_host(plain), usable, step, diameter)


def _picked(
    item: Item, options: Options, prepared: Prepared, diameter: float
) -> tuple[picking.Found, NDArray[np.float64]]:
    """What is picked by shape or templates, with the in-plane angles."""
    shortest = options.min_distance if options.min_distance > 0 else _SHORTEST * diameter
    limits = picking.Limits(
        min_distance=shortest / prepared.pixel_size,
        threshold=options.threshold,
        adjust=options.LoG_adjust_threshold if options.LoG else 0.0,
        upper=options.LoG_upper_threshold if options.LoG else np.inf,
        max_stddev=options.max_stddev_noise if options.max_stddev_noise > 0 else None,
        min_average=options.min_avg_noise if options.min_avg_noise > _NO_AVERAGE else None,
    )
    if options.LoG:
        sizes = (options.LoG_diam_min, options.LoG_diam_max)
        found = picking.by_shape(prepared, sizes, limits, item.random_seed, options.LoG_refine)
        return found, np.zeros(len(found.peaks))
    field = Field.of(prepared, _DISC * diameter / 2 / prepared.pixel_size)
    box = 2 * field.box
    shape = (options.angpix_ref, options.sym, options.healpix_order, options.ang, prepared.pixel_size, box)
    paths = [path for path in (options.ref, options.decoys) if path is not None]
    bank = [turned(path, file_state(path), *shape, worker_device()) for path in paths]
    ctf = _ctf(item, box * prepared.pixel_size, box) if options.ctf else None
    seen = [templates.seen(part, prepared, field.inside, options.lowpass, ctf) for part in bank]
    decoy = np.repeat([False, True][: len(bank)], [len(part) for part in bank])
    joined = field.xp.concatenate(seen)
    found = picking.by_templates(prepared, field, joined, decoy, limits, item.random_seed)
    label = found.peaks.label
    return found.relabelled(bank[0].reference[label] + 1), bank[0].psi[label]


def _ctf(item: Item, extent: float, box: int) -> NDArray[np.float32]:
    """CTF coefficients of a micrograph for templates of `extent` Angstrom and `box` pixels."""
    values = {}
    for name, text in (item.row | item.optics).items():
        if name.startswith("rlnDefocus") or name in (*MICROSCOPE, "rlnPhaseShift"):
            values[name] = text
    try:
        row = {name: float(text) for name, text in values.items()}
    except ValueError as error:
        raise InputError(f"{item.path}: its CTF: {error}") from None
    defocus = (row["rlnDefocusU"], row["rlnDefocusV"], row["rlnDefocusAngle"])
    voltage, cs, q0 = (row[name] for name in MICROSCOPE)
    phase = row.get("rlnPhaseShift", 0.0)
    return coefficients(*defocus, voltage, cs, q0, phase, 0.0, 1.0, extent / box, box)


def _usable(plain: Array, pixel_size: float, diameter: float, options: Options) -> NDArray[np.bool_]:
    if not options.mask_contamination or options.consensus:
        return np.ones(plain.shape, dtype=bool)
    return usable_area(to_host(plain), pixel_size, diameter)


def _agreed(item: Item, options: Options, step: float) -> picking.Found:
    """What the lists of picks agree on, in pixels of the shrunken micrograph."""
    sets = []
    for source in options.consensus:
        picks = _read_set(source, file_state(source), options.i).get(item.row["rlnMicrographName"])
        sets.append(pick_tables.numbers(picks) if picks is not None else (np.zeros((0, 2)), np.zeros(0)))
    needed = options.consensus_min or len(sets) // 2 + 1
    centres, score, _ = consensus(sets, options.match_distance / item.pixel_size, needed)
    above = score >= (options.threshold or 0.0)
    return picking.given(centres[above] / step, score[above], options.threshold or 0.0)


@lru_cache(maxsize=8)
def _read_set(source: str, state: tuple[int, int], micrographs: str) -> dict[str, Picks]:
    return pick_tables.read_set(source, micrographs)


def _diameter(options: Options) -> float:
    """The particle's diameter in Angstrom."""
    if options.particle_diameter > 0:
        return options.particle_diameter
    if options.LoG:
        return (options.LoG_diam_min + options.LoG_diam_max) / 2
    if options.ref is None:
        return 2 * options.match_distance
    return reference_diameter(options.ref, file_state(options.ref), options.angpix_ref)


def _wanted_pixel_size(options: Options, diameter: float, pixel_size: float) -> float:
    if options.shrink > 0:
        return pixel_size / options.shrink
    shortest = options.lowpass / _SAMPLING[1] if options.ref is not None else np.inf
    return float(min(diameter / _SAMPLING[0], shortest))


def _check_references(options: Options, job: Job) -> None:
    """Refuse references and micrographs that cannot be used together; say what is done to them."""
    found = star.read(options.i)
    table = found["micrographs"]
    if options.ctf:
        for column in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"):
            table.require(column, "--ctf needs; run spa ctffind first, or give --no_ctf")
    sizes = [
        column for column in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize") if column in found["optics"]
    ]
    own = float(found["optics"].floats(sizes[0])[0]) if sizes else 0.0
    for path in (options.ref, options.decoys):
        if path is None:
            continue
        reference, pixel_size, is_map = read_reference(path, options.angpix_ref)
        what = "map" if is_map else f"{len(reference)} images"
        also = f", resampled from {pixel_size:g} Å pixels, those of the micrographs being {own:g} Å"
        job.say(f"{path}: {what} of {reference.shape[-1]} px{also if abs(pixel_size - own) > 1e-3 else ''}")
    job.say(f"particle diameter {_diameter(options):.0f} Å")


def _memory(item: Item) -> int:
    """Bytes that picking in a micrograph takes."""
    found = mrc.info(item.path)
    return int(np.prod(found.shape)) * (found.dtype.itemsize + 20) + (1 << 29)


def _write(
    item: Item,
    options: Options,
    found: picking.Found,
    psi: NDArray[np.float64],
    plain: NDArray[np.float32],
    usable: NDArray[np.bool_],
    step: float,
    diameter: float,
) -> Row:
    """Write coordinates and picture of one micrograph."""
    peaks: Peaks = found.peaks
    centres = peaks.centres * step
    path = Path(options.o) / f"{item.stem}_{options.pickname}.star"
    extra = {"spaPickDiameter": peaks.size} if options.LoG else {}
    block = pick_tables.coordinates(centres, peaks.score, peaks.label, psi, extra)
    star.write(path, StarFile([block]))
    shown = pick_plots.Shown(plain, usable, step, centres, peaks.score, found.threshold, diameter, item.pixel_size)
    plots.save(path.with_suffix(".png"), pick_plots.micrograph(shown, item.path.name))
    row: Row = {
        COORDINATES: project_path(path),
        _COUNT: len(peaks),
        _THRESHOLD: found.threshold,
        _MASKED: 1 - float(usable.mean()),
    }
    return row | ({_BEATEN: found.beaten} if options.decoys else {})


def _evaluate(options: Options, job: Job, truth: dict[str, Picks]) -> None:
    """Compare the picks with the truth, over the micrographs that have one."""
    picks = pick_tables.read_set(options.list, options.i)
    sizes = pick_tables.pixel_sizes(options.i)
    known = [name for name in picks if name in truth]
    if len(known) < len(picks):
        job.warn(f"{options.evaluate}: no truth for {len(picks) - len(known)} of {len(picks)} micrographs")
    parts = [(*pick_tables.numbers(picks[n]), pick_tables.numbers(truth[n])[0], sizes[n]) for n in known]
    if not sum(len(part[0]) for part in parts):
        job.say(f"nothing to evaluate: no picks in the {len(known)} micrographs of {options.evaluate}")
        return
    found = curve(parts, options.match_distance)
    base = Path(options.o) / f"{options.pickname}_evaluation"
    offset = pick_tables.write_evaluation(base.with_suffix(".star"), found, options.match_distance)
    plots.save(base.with_suffix(".png"), pick_plots.evaluation(found, options.match_distance))
    job.say(
        f"precision {found.precision[0]:.3f}, recall {found.recall[0]:.3f}, F1 {found.f1[0]:.3f}, median offset "
        f"{offset:.1f} Å; best F1 {found.f1[found.best]:.3f} at {found.threshold[found.best]:.2f}; "
        f"wrote {base}.star and .png"
    )
