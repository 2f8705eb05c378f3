"""Select rows of a STAR file: by a column's range, by class (--auto ranks 2D classes), without duplicates, in parts.

What is asked for happens in the order range, --classes, --auto, --stable, --remove_duplicates, --split; columns and
blocks pass through as they are. The score of --auto (`spa.class_ranking`) lies between 0 (junk) and 1 (protein).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import class_ranking, class_stability, selection
from spa.errors import InputError
from spa.io import class_plots, class_tables, plots, star, vintage
from spa.io.coordinates import FOM
from spa.io.extraction_checks import refuse_replacing
from spa.io.micrographs import groups_of
from spa.io.star import Block, StarFile
from spa.job import Job
from spa.options import CommonOptions, UsageError, option

_KINDS = ("particles", "micrographs", "movies")
_IMAGES = ("rlnImageName", "rlnMicrographName", "rlnMicrographMovieName", "rlnCoordinateX")
_RANGE, _CLASSES, _PARTS, _DUPLICATES = "Range", "Classes", "Parts", "Duplicates"


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa select`, named as in relion_star_handler."""

    i: str = option(
        help="STAR file of particles, micrographs or movies; of a classification, its data or its model file",
        role="input",
    )
    o: str = option("selected.star", help="STAR file to write; parts get _split1, _split2, ...", role="file")
    select: str | None = option(
        None, help="Column whose values decide, as rlnCtfMaxResolution", group=_RANGE, default_text="none"
    )
    minval: float | None = option(None, help="Smallest value to keep", group=_RANGE)
    maxval: float | None = option(None, help="Largest value to keep", group=_RANGE)
    classes: str | None = option(
        None, help="Classes to keep, as 1,4,7-9 (rlnClassNumber)", group=_CLASSES, default_text="all"
    )
    auto: bool = option(
        False,
        help="Keep the 2D classes that score --min_score or more; writes the ranking and a gallery beside --o",
        group=_CLASSES,
    )
    min_score: float = option(0.5, help="Lowest score that --auto keeps", bounds=(0, 1), group=_CLASSES)
    stable: tuple[str, ...] = option(
        (),
        help="Data STAR file of a repeated classification of the same particles: keep those that are in matching "
        "classes in --i and in all that are given (the stable core)",
        role="input",
        group=_CLASSES,
    )
    stable_fraction: float = option(
        1.0,
        help="Keep particles that are in matching classes in at least this fraction of the runs instead of all",
        bounds=(0.5, 1),
        group=_CLASSES,
    )
    stable_size: int = option(2, help="Smallest number of particles of a stable core", bounds=(2, None), group=_CLASSES)
    remove_duplicates: float = option(
        -1.0,
        help="Keep one of particles of a micrograph that are this close or closer: the one with the higher figure of "
        "merit, else the first (-1: keep all)",
        unit="Å",
        bounds=(-1, 1e4),
        group=_DUPLICATES,
    )
    image_angpix: float | None = option(
        None,
        help="Pixel size of the images, and of micrographs whose rlnMicrographPixelSize is not known",
        unit="Å",
        bounds=(0.01, 100),
        group=_DUPLICATES,
        default_text="rlnImagePixelSize",
    )
    split: bool = option(False, help="Write several files", group=_PARTS)
    nr_split: int | None = option(None, help="Number of parts", bounds=(1, 10000), group=_PARTS)
    size_split: int | None = option(None, help="Rows in a part", bounds=(1, None), group=_PARTS)
    random_order: bool = option(False, help="Draw the parts at random (--random_seed)", group=_PARTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.select is None) != (self.minval is None and self.maxval is None):
            raise UsageError("--select COLUMN: expected with --minval or --maxval")
        if self.minval is not None and self.maxval is not None and self.minval > self.maxval:
            raise UsageError(f"--minval {self.minval:g}: expected at most --maxval {self.maxval:g}")
        if self.split and self.nr_split is None and self.size_split is None:
            raise UsageError("--split: expected with --nr_split or --size_split")
        if not self.split and (self.nr_split or self.size_split or self.random_order):
            raise UsageError("--nr_split, --size_split and --random_order: expected with --split")
        by_class = self.classes is not None or self.auto or self.stable
        if self.select is None and not by_class and not self.split and self.remove_duplicates < 0:
            raise UsageError("expected --select, --classes, --auto, --stable, --remove_duplicates or --split")
        if self.classes is not None:
            try:
                class_tables.chosen(self.classes)
            except ValueError:
                raise UsageError(f"--classes {self.classes}: expected class numbers like 1,4,7-9") from None


def run(options: Options, job: Job) -> None:
    """Read, select, write, and say how many rows each step kept."""
    source = str(class_tables.paths(options.i)[0]) if options.i.endswith("_model.star") else options.i
    refuse_replacing("--o", options.o, [options.i, source, *options.stable])
    found = star.read(source)
    table = _main_table(found)
    total, kept = len(table), np.arange(len(table))
    if options.select is not None:
        values = _values(found, table, options.select)
        mask = selection.in_range(values, options.minval, options.maxval)
        kept = kept[mask]
        job.say(f"{len(kept)} of {total} {_noun(table)} with {_told(options)}{_span(values)}")
    kept = _by_class(found, table, kept, options, job)
    if options.remove_duplicates >= 0:
        before = len(kept)
        kept = kept[_distinct(found, table, kept, options, job)]
        job.say(f"{len(kept)} of {before} {_noun(table)} are more than {options.remove_duplicates:g} Å apart")
    if not options.split:
        _write(options.o, found, table, kept)
        job.say(f"{len(kept)} of {total} {_noun(table)} in {options.o}{_if_empty(kept)}")
        return
    rng = np.random.default_rng(options.random_seed) if options.random_order else None
    parts = selection.split(len(kept), options.nr_split, options.size_split, rng)
    stem = Path(options.o).name.removesuffix(".star")
    paths = [Path(options.o).with_name(f"{stem}_split{number}.star") for number in range(1, len(parts) + 1)]
    old = [path for path in _parts_of(Path(options.o).parent, stem) if path not in paths]
    for path in (*paths, *old):
        refuse_replacing("--o", path, [options.i])
    for path in old:
        path.unlink()
        job.say(f"removed {path}, a part of an earlier run with more parts")
    for path, part in zip(paths, parts, strict=True):
        _write(path, found, table, kept[part])
        job.say(f"{len(part)} of {total} {_noun(table)} in {path}{_if_empty(part)}")
    rest = len(kept) - sum(map(len, parts))
    if rest:
        job.say(f"{rest} {_noun(table)} are in none of the parts")


def _by_class(found: StarFile, table: Block, kept: NDArray[np.int64], options: Options, job: Job) -> NDArray[np.int64]:
    """Those of the rows `kept` that --classes, --auto and --stable leave; --auto adds a column with the score."""
    if options.classes is not None:
        numbers = class_tables.class_numbers(table)
        wanted = class_tables.chosen(options.classes)
        missing = sorted(set(wanted) - set(numbers.tolist()))
        if missing:
            raise InputError(
                f"--classes {options.classes}: no {_noun(table)} of {table.path} are in class "
                f"{selection.ranges(missing)}; there are {selection.ranges(np.unique(numbers).tolist())}"
            )
        kept = kept[np.isin(numbers[kept], wanted)]
        job.say(f"{len(kept)} {_noun(table)} in class {selection.ranges(wanted)}")
    if options.auto:
        kept = kept[_ranked(found, table, options, job)[kept]]
    if options.stable:
        kept = kept[_stable(table, options, job)[kept]]
    return kept


def _ranked(found: StarFile, table: Block, options: Options, job: Job) -> NDArray[np.bool_]:
    """Which rows are in a class that scores enough; writes the ranking and its gallery."""
    numbers = class_tables.class_numbers(table)
    model = class_tables.paths(found.path)[1]
    job.add_input(model)
    averages = class_tables.read_averages(model)
    n = len(averages.images)
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= n:
        row = int(np.flatnonzero((numbers < 1) | (numbers > n))[0]) + 1
        raise InputError(
            f"{table.path}: data_{table.name}, row {row}, column rlnClassNumber: expected 1 to {n}, the classes of "
            f"{model}, found {numbers[row - 1]}"
        )
    features = class_ranking.features(
        averages.images, averages.shares, averages.resolutions, averages.pixel_size, averages.diameter or None
    )
    scores = class_ranking.score(features)
    good = scores >= options.min_score
    stem = Path(options.o).with_name(Path(options.o).name.removesuffix(".star") + "_classes.star")
    columns = Block.table("", {f"spa{name}": values for name, values in features.items()})
    star.write(stem, class_tables.ranking(averages, scores, good, columns))
    title = f"{int(good.sum())} of {n} classes score {options.min_score:g} or more (green)"
    picture = class_plots.gallery(
        averages.images,
        averages.numbers,
        averages.shares,
        averages.resolutions,
        averages.pixel_size,
        scores,
        good,
        title,
    )
    plots.save(stem.with_suffix(".png"), picture)
    table.set(class_tables.SCORE, scores[numbers - 1])
    rows = good[numbers - 1]
    job.say(f"{title.removesuffix(' (green)')}: {selection.ranges(averages.numbers[good].tolist()) or 'none'}")
    job.say(f"{int(rows.sum())} of {len(rows)} {_noun(table)} are in them; {stem}, {stem.with_suffix('.png')}")
    return np.asarray(rows)


def _stable(table: Block, options: Options, job: Job) -> NDArray[np.bool_]:
    """Which rows are in a stable core over --i and all --stable."""
    names = table.text("rlnImageName")
    runs = [class_tables.class_numbers(table)]
    for path in options.stable:
        other = _main_table(star.read(path))
        classes = dict(zip(other.text("rlnImageName"), class_tables.class_numbers(other).tolist(), strict=True))
        absent = next((row for row, name in enumerate(names, 1) if name not in classes), None)
        if absent is not None:
            raise InputError(f"{table.path}: data_{table.name}, row {absent}: {names[absent - 1]} is not in {path}")
        runs.append(np.array([classes[name] for name in names]))
        index, share = class_stability.adjusted_rand(runs[0], runs[-1]), class_stability.agreement(runs[0], runs[-1])
        job.say(f"{path}: adjusted Rand index {index:.3f}, {share:.1%} of the {_noun(table)} in matching classes")
        if index < class_stability.ALIKE:
            job.warn(f"{path}: its classes agree with those of {table.path} no better than by chance")
    core = class_stability.stable_core(runs, options.stable_fraction, options.stable_size)
    job.say(f"{int((core > 0).sum())} of {len(core)} {_noun(table)} in {core.max(initial=0)} stable cores")
    return np.asarray(core > 0)


def _parts_of(folder: Path, stem: str) -> list[Path]:
    """The files of parts that are there already."""
    named = re.compile(re.escape(stem) + r"_split[1-9]\d*\.star")
    return sorted(path for path in folder.glob("*.star") if named.fullmatch(path.name))


def _main_table(found: StarFile) -> Block:
    """The table of particles, micrographs or movies; one of coordinates or of an older RELION does as well."""
    named = [found[kind] for kind in _KINDS if kind in found]
    others = [block for block in found if block.loop and any(column in block for column in _IMAGES)]
    tables = named or others
    if not tables:
        names = ", ".join(f"data_{name}" for name in found.names)
        raise InputError(f"{found.path}: expected a table of particles, micrographs or movies, found {names}")
    return tables[0]


def _values(found: StarFile, table: Block, column: str) -> NDArray[np.float64]:
    """A column of numbers, InputError naming the nearest column where it is not there."""
    name = column.removeprefix("_")
    if name not in table and "optics" in found and name in found["optics"]:
        raise InputError(f"{table.path}: column {name} is in data_optics, expected one of data_{table.name}")
    if name not in table:
        near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.0)[0] if table.columns else "none"
        raise InputError(f"{table.path}: data_{table.name}: no column {name}; did you mean {near}?")
    return table.floats(name)


def _distinct(found: StarFile, table: Block, kept: NDArray[np.int64], options: Options, job: Job) -> NDArray[np.bool_]:
    """Which of the rows `kept` stay when close ones are removed."""
    for column in ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"):
        table.require(column, "--remove_duplicates needs")
    upgraded = vintage.upgrade(found, options.image_angpix)
    particles, optics = _main_table(upgraded), upgraded["optics"]
    size = _pixel_sizes(particles, optics, options, job)
    places = np.stack([particles.floats(f"rlnCoordinate{axis}") for axis in "XY"], axis=1) * size[:, None]
    for axis in range(2):
        column = f"rlnOrigin{'XY'[axis]}Angst"
        if column in particles:
            places[:, axis] -= particles.floats(column)
    _, micrograph = np.unique(np.array(particles.text("rlnMicrographName")), return_inverse=True)
    score = particles.floats(FOM)[kept] if FOM in particles else None
    return selection.distinct(places[kept], micrograph[kept], options.remove_duplicates, score)


def _pixel_sizes(particles: Block, optics: Block, options: Options, job: Job) -> NDArray[np.float64]:
    """Pixel size (n,) in Å of the micrographs that the coordinates of each particle belong to."""
    column = "rlnMicrographPixelSize"
    if options.image_angpix is not None and column not in optics:
        return np.full(len(particles), options.image_angpix)
    if column not in optics:
        column = "rlnImagePixelSize"
        optics.require(column, "--remove_duplicates needs, or --image_angpix")
        job.say(f"{optics.path}: coordinates taken in pixels of {column}; give --image_angpix if particles are binned")
    return optics.floats(column)[groups_of(particles, optics)]


def _write(path: str | Path, found: StarFile, table: Block, rows: NDArray[np.int64]) -> None:
    result = found.copy()
    result.put(table.rows(rows))
    star.write(path, result)


def _noun(table: Block) -> str:
    return table.name if table.name in _KINDS else "rows"


def _told(options: Options) -> str:
    column = (options.select or "").removeprefix("_")
    if options.minval is None:
        return f"{column} up to {options.maxval:g}"
    if options.maxval is None:
        return f"{column} from {options.minval:g}"
    return f"{column} from {options.minval:g} to {options.maxval:g}"


def _span(values: NDArray[np.float64]) -> str:
    return f" (all: {values.min():g} to {values.max():g}, median {np.median(values):g})" if len(values) else ""


def _if_empty(rows: NDArray[np.int64]) -> str:
    return "" if len(rows) else ", a table without rows: nothing was selected"
