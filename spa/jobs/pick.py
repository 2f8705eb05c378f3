"""Pick particles by their shape (--LoG), or with templates made of a map or of images (--ref).

Writes a STAR file of coordinates and a picture for each micrograph, and a list of the files. A figure of merit is in
standard deviations of what noise alone scores, so that it means the same in every micrograph; its threshold is found
for each of them unless given. Particles that stick out of the micrograph are left out, but for --skip_side.
--consensus joins the picks of other runs instead; --evaluate compares with a truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import picking
from spa import picking_templates as templates
from spa.errors import InputError
from spa.io import mrc, pick_evaluation, pick_files, pick_micrograph, pick_plots, pick_references, pick_tables
from spa.io.coordinates import Picks
from spa.io.extraction_tables import COORDINATES
from spa.io.files import project_path
from spa.io.micrograph_image import check_size, read_micrograph
from spa.io.micrographs import MICROSCOPE, file_state
from spa.io.patterns import found_files
from spa.io.pick_references import check_references, ctf_of, reference_diameter, turned
from spa.job import Job
from spa.kernels.backend import to_device, to_host
from spa.map_job import Item, MicrographOptions, Row, map_micrographs, worker_device
from spa.options import UsageError, option, specs
from spa.picking_contamination import constant_area, filled, on_grid, usable_area, whole_area
from spa.picking_image import Prepared, prepare, shrink, working_step
from spa.picking_scores import Field

OUTPUT = "micrographs_picked.star"
_LOG, _PEAKS, _AGREE = "Laplacian of Gaussian", "Peaks", "Several sets of picks"
_LOOKING = ("min_distance", "skip_side", "max_stddev_noise", "min_avg_noise", "mask_contamination")
_DISC = 1.15  # diameter of the disc under which templates are compared, in particle diameters: holds some fringes
_SHORTEST = 0.65  # of the particle's diameter, between two particles
_SAMPLING = (20.0, 3.0)  # pixels across a particle, and across the shortest wavelength
_FROM_EDGE = 0.4  # of the particle's diameter, which leaves all but 5 % of its disc in the micrograph
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
    decoys_angpix: float = option(
        -1.0, help="Pixel size of --decoys (-1: as its header says)", unit="Å", bounds=(-1, 100), group="Reference"
    )
    sym: str = option("C1", help="Point group of --ref, where it is a map; a decoy has none", group="Reference")
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
        help="Lowest figure of merit, in standard deviations of noise; with --consensus, of the mean rank, 0 to 1",
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
    skip_side: float = option(
        0.0,
        help="Added to the distance that picks keep from the edge, 0.4 of the diameter (less than 0: nearer)",
        unit="px",
        bounds=(-10000, 10000),
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
        True,
        help="Pick nothing on carbon, ice crystals and dirt, or next to them, nor where the contrast is more than "
        "twice that of most picks",
        group=_PEAKS,
    )
    consensus: tuple[str, ...] = option(
        (), help="List of picks to join, as autopick.star, or a file or pattern; give it for each", group=_AGREE
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
        self._refuse_idle()
        if self.consensus and len(set(self.consensus)) < 2:
            raise UsageError("--consensus: expected two different lists or more")
        if self.consensus and self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold:g}: expected a mean rank, 0 to 1, with --consensus")
        if self.consensus_min > len(self.consensus):
            raise UsageError(f"--consensus_min {self.consensus_min}: expected at most {len(self.consensus)}")
        if not self.pickname or "/" in self.pickname:
            raise UsageError(f"--pickname '{self.pickname}': expected the end of a file name")
        if self.pickname.lower() in (Path(OUTPUT).stem, f"{Path(OUTPUT).stem}_failed"):
            raise UsageError(f"--pickname {self.pickname}: expected another name than that of the job's own table")

    def _refuse_idle(self) -> None:
        """Refuse options that would do nothing in this way of picking."""
        if self.LoG and self.LoG_adjust_threshold and self.threshold is not None:
            raise UsageError("--LoG_adjust_threshold: expected without --threshold, since it adjusts the one found")
        for spec in specs(type(self)):
            if spec.group == _LOG:
                wanted = "" if self.LoG else "--LoG"
            elif spec.group == "Reference" or spec.name == "ctf":
                wanted = "" if self.ref else "--ref"
            elif spec.name == "decoys_angpix":
                wanted = "" if self.decoys else "--decoys"
            elif spec.name in _LOOKING:
                wanted = "--LoG or --ref" if self.consensus else ""
            else:
                wanted = "" if self.consensus or spec.name != "consensus_min" else "--consensus"
            if wanted and getattr(self, spec.name) != spec.default:
                raise UsageError(f"{spec.flags[0]}: expected with {wanted} only")

    @property
    def list(self) -> Path:
        """The list of coordinate files."""
        return Path(self.o) / f"{self.pickname}.star"


def run(options: Options, job: Job) -> None:
    """Pick in every micrograph, write the lists, draw the set, and compare with the truth if there is one."""
    if options.ref is not None:
        for line in check_references(_references(options), options.i, options.ctf):
            job.say(line)
        job.say(f"particle diameter {_diameter(options):.0f} Å")
    if options.threshold is not None and not 1 <= options.threshold <= 100 and not options.consensus:
        job.warn(f"--threshold {options.threshold:g}: it is in standard deviations of noise, such as 4")
    sets = [pick_tables.read_set(source, options.i, "--consensus") for source in options.consensus]
    for source in options.consensus:
        for file in found_files([source]):
            job.add_input(file)
    state = pick_tables.state_of(sets) if sets else ""
    truth = pick_tables.read_set(options.evaluate, options.i, "--evaluate") if options.evaluate is not None else None
    for suffix in (".star", ".png"):  # of an earlier run
        options.list.with_name(f"{options.pickname}_evaluation{suffix}").unlink(missing_ok=True)
    table = map_micrographs(
        job,
        options,
        partial(process, state=state),
        block="micrographs",
        column="rlnMicrographName",
        output=OUTPUT,
        needs=MICROSCOPE if options.ref is not None and options.ctf else (),
        memory=partial(_memory, options=options),
        owns=pick_files.OWNED,
        reserved=(Path(OUTPUT).stem, options.pickname),
        state=state,
    )
    written = pick_files.write_set(options.list, table, options.i, _unit(options))
    for line in written.said:
        job.say(line)
    for line in written.warned:
        job.warn(line)
    if truth is not None:
        _evaluate(options, job, str(options.evaluate), truth)


def process(item: Item, options: Options, state: str = "") -> Row:
    """Pick in one micrograph and write its files; returns its columns. `state` is that of the sets of --consensus."""
    image = read_micrograph(item.path)
    diameter = _diameter(options)
    step = _step(options, diameter, item.pixel_size)
    check_size(item.path, image.shape, diameter, item.pixel_size, step)
    try:
        constant = constant_area(image, diameter / item.pixel_size)
        if constant.any():
            image = filled(image, constant, item.random_seed)
        plain = shrink(to_device(image, worker_device()), step)
        blank, shrunk = on_grid(constant, plain.shape, step), item.pixel_size * step
        trusting = bool(options.consensus) or not options.mask_contamination
        usable = usable_area(to_host(plain), shrunk, diameter, blank, only_constant=trusting)
        if options.consensus:
            lists = (options.consensus, state, options.i)
            distance = options.match_distance / item.pixel_size
            centres, score = pick_tables.agreed(*lists, item, distance, options.consensus_min)
            above = score >= (options.threshold or 0.0)
            found = picking.given(centres[above] / step, score[above], options.threshold or 0.0)
            psi = np.zeros(len(found.peaks))
        elif not usable.any():
            found, psi = picking.given(np.zeros((0, 2)), np.zeros(0), options.threshold or 0.0), np.zeros(0)
        else:
            bright = options.Log_invert if options.LoG else not options.invert
            prepared = prepare(plain, to_device(usable, worker_device()), shrunk, diameter, bright)
            whole = whole_area(blank, (_FROM_EDGE * diameter / item.pixel_size + options.skip_side) / step)
            found, psi = _picked(item, options, prepared, diameter, whole)
    except ValueError as error:
        raise InputError(f"{item.path}: {error}") from None
    return _write(item, options, found, psi, to_host(plain), usable, step, diameter)


def _picked(
    item: Item, options: Options, prepared: Prepared, diameter: float, whole: NDArray[np.bool_]
) -> tuple[picking.Found, NDArray[np.float64]]:
    """What is picked by shape or templates inside the area `whole`, with the in-plane angles."""
    shortest = options.min_distance if options.min_distance > 0 else _SHORTEST * diameter
    limits = picking.Limits(
        min_distance=shortest / prepared.pixel_size,
        threshold=options.threshold,
        adjust=options.LoG_adjust_threshold if options.LoG else 0.0,
        upper=options.LoG_upper_threshold if options.LoG else np.inf,
        max_stddev=options.max_stddev_noise if options.max_stddev_noise > 0 else None,
        min_average=options.min_avg_noise if options.min_avg_noise > _NO_AVERAGE else None,
        usual=options.mask_contamination,
    )
    if options.LoG:
        sizes = (options.LoG_diam_min, options.LoG_diam_max)
        found = picking.by_shape(prepared, sizes, limits, item.random_seed, options.LoG_refine).within(whole)
        return found, np.zeros(len(found.peaks))
    field = Field.of(prepared, _DISC * diameter / 2 / prepared.pixel_size)
    box = 2 * field.box
    grid = (options.healpix_order, options.ang, prepared.pixel_size, box, worker_device())
    bank = [turned(path, file_state(path), angpix, sym, *grid) for path, angpix, sym, _ in _references(options)]
    ctf = ctf_of(item, box * prepared.pixel_size, box) if options.ctf else None
    seen = [templates.seen(part, prepared, field.inside, options.lowpass, ctf) for part in bank]
    decoy = np.repeat([False, True][: len(bank)], [len(part) for part in bank])
    joined = field.xp.concatenate(seen) if len(seen) > 1 else seen[0]
    found = picking.by_templates(prepared, field, joined, decoy, limits, item.random_seed).within(whole)
    label = found.peaks.label
    return found.relabelled(bank[0].reference[label] + 1), bank[0].psi[label]


def _references(options: Options) -> list[tuple[str, float, str, str]]:
    """Of the reference and the decoys: path, pixel size to overrule the header, point group, flag of the size."""
    found = []
    if options.ref is not None:
        found.append((options.ref, options.angpix_ref, options.sym, "--angpix_ref"))
    if options.decoys is not None:
        found.append((options.decoys, options.decoys_angpix, "C1", "--decoys_angpix"))
    return found


def _diameter(options: Options) -> float:
    """The particle's diameter in Angstrom."""
    if options.particle_diameter > 0:
        return options.particle_diameter
    if options.LoG:
        return (options.LoG_diam_min + options.LoG_diam_max) / 2
    if options.ref is None:
        return 2 * options.match_distance
    return reference_diameter(options.ref, file_state(options.ref), options.angpix_ref)


def _step(options: Options, diameter: float, pixel_size: float) -> float:
    """Pixels of the micrograph in one that is worked on."""
    if options.shrink > 0:
        return working_step(pixel_size, pixel_size / options.shrink)
    shortest = options.lowpass / _SAMPLING[1] if options.ref is not None else np.inf
    return working_step(pixel_size, float(min(diameter / _SAMPLING[0], shortest)))


def _memory(item: Item, options: Options) -> int:
    """Bytes that picking in a micrograph takes."""
    found = mrc.info(item.path)
    n_pixels = int(np.prod(found.shape))
    total = n_pixels * (found.dtype.itemsize + 20) + (1 << 29)
    if options.ref is None:
        return total
    diameter = _diameter(options)
    step = _step(options, diameter, item.pixel_size)
    box = 2 * round(2 * _DISC * diameter / 2 / (item.pixel_size * step) + 2)
    parts = [(path, options.healpix_order, sym, options.ang) for path, _, sym, _ in _references(options)]
    return total + pick_references.memory_of(parts, box, round(n_pixels / step**2))


def _unit(options: Options) -> str:
    """Of the figures of merit."""
    return pick_plots.RANK if options.consensus else pick_plots.SIGMA


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
    peaks = found.peaks
    path = Path(options.o) / f"{item.stem}_{options.pickname}.star"
    extra = {"spaPickDiameter": peaks.size} if options.LoG else {}
    what = (peaks.centres * step, peaks.score, found.threshold, diameter, item.pixel_size, _unit(options))
    shown = pick_micrograph.Shown(plain, usable, step, *what)
    pick_files.write_micrograph(path, item.path.name, shown, peaks.label, psi, extra)
    row: Row = {
        COORDINATES: project_path(path),
        pick_files.COUNT: len(peaks),
        pick_files.THRESHOLD: found.threshold,
        pick_files.MASKED: 1 - float(usable.mean()),
        pick_files.ODD: found.odd,
    }
    return row | ({pick_files.BEATEN: found.beaten} if options.decoys else {})


def _evaluate(options: Options, job: Job, source: str, truth: dict[str, Picks]) -> None:
    """Compare the picks with the truth, over the micrographs that have one."""
    base = options.list.with_name(f"{options.pickname}_evaluation")
    picks, sizes = pick_tables.read_set(options.list, options.i), pick_tables.pixel_sizes(options.i)
    compared = pick_evaluation.compare(base, picks, truth, sizes, options.match_distance)
    for line in compared.warnings(source, len(picks), len(truth)):
        job.warn(line)
    job.say(compared.summary(source, len(truth), base))
