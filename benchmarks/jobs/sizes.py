"""Accuracy and cost of refinements of data that the engine was not tuned on, over structures, boxes, noise and numbers.

    python -m benchmarks.jobs.sizes [--quick | --full] [--only PATTERN] [--models FOLDER] [--j N] [--o DIR] [--save]

Each case of benchmarks/jobs/cases.py is simulated, with the particle filling 60 % of the box, and refined from the
truth low-passed to 30 Å. Errors are those to the truth. The last columns hold the result against a nearly exhaustive
search of the same data (benchmarks/jobs/exhaustive.py): our median angular error over its, by how many shells our map
stays behind at FSC = 0.5 to the truth, and what it costs.

Results are kept in DIR/sizes.jsonl case by case; the same command goes on after them. --save also keeps the table in
benchmarks/results: sizes_quick_cpu.txt of --quick, else sizes_cpu.txt. A + behind a commit: the program had changes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.jobs.cases import CIRCLE, FILL, FULL, QUICK, STRUCTURES, Case, model_diameter
from benchmarks.jobs.measure import SPA, Cost, OutOfTime, measured, stop_jobs_on_sigterm, warm_up
from benchmarks.jobs.truth import compare
from spa.fourier import low_pass
from spa.io import mrc, star

EXHAUSTIVE = (sys.executable, "-m", "benchmarks.jobs.exhaustive")
MODELS = Path(os.environ.get("SPA_DATA", report.ROOT.parent / "shared" / "data")) / "models"
INI_HIGH = 30.0
OFFSET = 4.0
"""Standard deviation in Å by which particles lie off the centre; the search of shifts begins with three of them."""
COLUMNS = {
    "case": lambda row: row.case.name,
    "sym": lambda row: row.case.sym,
    "px Å": lambda row: f"{row.pixel_size:.2f}",
    "CPU s": lambda row: f"{row.cost.cpu_seconds:.0f}",
    "wall s": lambda row: f"{row.cost.wall_seconds:.0f}",
    "peak GiB": lambda row: f"{row.cost.peak_gib:.2f}",
    "iterations": lambda row: f"{row.quality.iterations}",
    "ms/particle/it": lambda row: f"{row.milliseconds:.2f}",
    "median °": lambda row: f"{row.quality.median_angle:.2f}",
    "% < 10°": lambda row: f"{100 * row.quality.within_10_degrees:.1f}",
    "shift Å": lambda row: f"{row.quality.median_shift:.2f}",
    "FSC 0.5 Å": lambda row: f"{row.quality.map_resolution:.2f}",
    "own Å": lambda row: f"{row.quality.own_resolution:.2f}",
    "angle ratio": lambda row: f"{row.angle_ratio:.2f}" if row.exhaustive else "",
    "shells behind": lambda row: f"{row.shells_behind:.1f}" if row.exhaustive else "",
    "exh. CPU s": lambda row: f"{row.exhaustive_cost.cpu_seconds:.0f}" if row.exhaustive_cost else "",
    "commit": lambda row: row.commit.removeprefix("commit ").replace(" with changes", "+"),
}


@dataclass(frozen=True)
class Quality:
    """Errors against the truth (degrees, Å), the resolution that the job itself states, and its iterations."""

    median_angle: float
    within_10_degrees: float
    median_shift: float
    map_resolution: float
    own_resolution: float
    iterations: int


@dataclass(frozen=True)
class Row:
    """The results of one case."""

    case: Case
    pixel_size: float
    cost: Cost
    quality: Quality
    commit: str
    exhaustive: Quality | None = None
    exhaustive_cost: Cost | None = None

    @property
    def milliseconds(self) -> float:
        """CPU time per particle and iteration, everything included."""
        return 1e3 * self.cost.cpu_seconds / (self.case.nr_particles * self.quality.iterations)

    @property
    def angle_ratio(self) -> float:
        """Median angular error over that of the exhaustive search: above 1 the engine's search loses."""
        return self.quality.median_angle / self.exhaustive.median_angle if self.exhaustive else math.nan

    @property
    def shells_behind(self) -> float:
        """Shells by which the exhaustive search's map is better at FSC = 0.5 to the truth."""
        extent = self.case.box * self.pixel_size
        best = self.exhaustive or self.quality
        return extent / best.map_resolution - extent / self.quality.map_resolution

    @classmethod
    def from_dict(cls, values: dict) -> Row:
        """The row that `asdict` turned into `values`."""
        kinds = {"case": Case, "cost": Cost, "quality": Quality, "exhaustive": Quality, "exhaustive_cost": Cost}
        return cls(**{name: kinds[name](**v) if name in kinds and v else v for name, v in values.items()})


def main() -> None:
    """Run the cases and print the table."""
    arguments = _arguments()
    stop_jobs_on_sigterm()
    cases = FULL if arguments.full else QUICK
    if arguments.only:
        cases = tuple(c for c in dict.fromkeys(QUICK + FULL) if fnmatch.fnmatch(c.name, arguments.only))
    missing = {n for n, s in STRUCTURES.items() if s.file and not (arguments.models / s.file).is_file()}
    for name in sorted(missing & {case.structure for case in cases}):
        print(f"{name}: left out, no {arguments.models / STRUCTURES[name].file}")
    cases = tuple(case for case in cases if case.structure not in missing)
    if not cases:
        raise SystemExit("no case to run")
    with tempfile.TemporaryDirectory() as scratch:
        run_cases(cases, arguments, arguments.o or Path(scratch))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about ten minutes on one core (the default)")
    size.add_argument("--full", action="store_true", help="everything; hours")
    parser.add_argument("--only", metavar="PATTERN", help="cases of this name, such as 3c91-64-*")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the model files (default %(default)s)")
    parser.add_argument("--j", default="1", help="threads (default 1)")
    parser.add_argument("--mem", default="8", help="memory budget of the refinement in GiB (default 8)")
    parser.add_argument("--limit", type=float, default=0, help="minutes that one refinement may take (default: any)")
    parser.add_argument("--o", type=Path, help="folder of the results, kept (default: a temporary one)")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.save and arguments.only and not arguments.o:
        parser.error("--save with --only needs the --o that holds the other cases of the table")
    return arguments


def run_cases(cases: tuple[Case, ...], arguments: argparse.Namespace, folder: Path) -> None:
    """Run what is not in the folder's results yet, and print and save the table after every case."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "sizes.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    rows = [Row.from_dict(json.loads(line)) for line in lines]
    left = [case for case in cases if case not in [row.case for row in rows]]
    if left:
        warm_up(arguments.j)
    for case in left:
        print(f"\n{case.name}", flush=True)
        try:
            rows.append(run_case(case, arguments, folder / case.name))
        except OutOfTime as stopped:
            print(f"{case.name}: {stopped}")
            continue
        finally:
            shutil.rmtree(folder / case.name, ignore_errors=True)
        with kept.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(asdict(rows[-1])) + "\n")
        print(text(rows[-1:]), flush=True)
        if arguments.save:
            name = "sizes_cpu.txt" if arguments.full or arguments.only else "sizes_quick_cpu.txt"
            report.save(name, "benchmarks.jobs.sizes", text(rows))
    print(f"\n{report.header()}\n{text(rows)}")


def run_case(case: Case, arguments: argparse.Namespace, folder: Path) -> Row:
    """Simulate, refine and compare one case."""
    diameter = model_diameter(case, arguments.models)
    pixel_size = round(diameter / (FILL * case.box), 3)
    file = STRUCTURES[case.structure].file
    model = ["--model", str(arguments.models / file)] if file else []
    common = ["--j", arguments.j, "--random_seed", "1", "--quiet"]
    data = folder / "Simulate"
    simulation = ["--nr_particles", str(case.nr_particles), "--box", str(case.box), "--angpix", str(pixel_size)]
    simulation += ["--snr", str(case.snr), "--sigma_offset", str(OFFSET), *model, *common]
    measured([*SPA, "simulate", "--o", str(data), *simulation])
    truth_map, _ = mrc.read_volume(data / "truth_map.mrc")
    mrc.write_volume(data / "reference.mrc", low_pass(truth_map, pixel_size, INI_HIGH), pixel_size)
    flags = ["--i", str(data / "particles.star"), "--ref", str(data / "reference.mrc"), "--ini_high", str(INI_HIGH)]
    flags += ["--ctf", "--flatten_solvent", "--zero_mask", "--sym", case.sym, "--mem", arguments.mem]
    flags += ["--particle_diameter", f"{CIRCLE * diameter:.0f}"]
    flags += ["--offset_range", str(max(3, math.ceil(3 * OFFSET / pixel_size))), *common]

    def refine(program: tuple[str, ...], name: str) -> tuple[Cost, Quality]:
        rootname = folder / name / "run"
        cost = measured([*program, *flags, "--o", str(rootname)], limit=60 * arguments.limit)
        return cost, quality(case, rootname, data, CIRCLE * diameter)

    row = Row(case, pixel_size, *refine((*SPA, "refine3d"), "Refine3D"), report.commit())
    if case.exhaustive:
        try:
            cost, best = refine(EXHAUSTIVE, "Exhaustive")
        except OutOfTime as stopped:
            print(f"{case.name}, exhaustive: {stopped}")
        else:
            row = replace(row, exhaustive=best, exhaustive_cost=cost)
    return row


def quality(case: Case, rootname: Path, data: Path, diameter: float) -> Quality:
    """What came out of a refinement."""
    errors = compare(
        f"{rootname}_data.star",
        data / "truth_particles.star",
        f"{rootname}_class001.mrc",
        data / "truth_map.mrc",
        case.sym,
        diameter,
    )
    general = star.read(f"{rootname}_model.star")["model_general"]
    optimiser = star.read(f"{rootname}_optimiser.star")["optimiser_general"]
    return Quality(
        errors.median_angle,
        errors.within_10_degrees,
        errors.median_shift,
        errors.map_resolution,
        general.get_float("rlnCurrentResolution"),
        optimiser.get_integer("rlnCurrentIteration"),
    )


def text(rows: list[Row]) -> str:
    """The table, and below it how the cost grows with the box."""
    table = [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    return "\n".join([report.aligned(table), *growth(rows)])


def growth(rows: list[Row]) -> list[str]:
    """A line for each set of cases that differ in the box alone: the exponent of its cost."""

    def alike(row: Row) -> tuple[str, float, int]:
        return row.case.structure, row.case.snr, row.case.nr_particles

    lines = []
    for (structure, snr, n), group in groupby(sorted(rows, key=alike), alike):
        cost = {row.case.box: row.milliseconds for row in group}
        if len(cost) > 1:
            boxes = ", ".join(str(box) for box in sorted(cost))
            lines.append(
                f"{structure}, SNR {snr:g}, {n} particles: CPU time per particle and iteration grows as "
                f"box^{exponent(list(cost), list(cost.values())):.2f} (boxes {boxes})"
            )
    return lines


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of log cost against log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


if __name__ == "__main__":
    main()
