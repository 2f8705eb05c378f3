"""How well `spa pick` finds particles: real micrographs against hand picks, simulated ones against the truth.

python -m benchmarks.jobs.pick [--real FOLDER] [--models FOLDER] [--n 4] [--save]

Real: the eight micrographs of apoferritin in the test data (SPA_DATA, else ../shared/data beside the checkout), with
one setting for all, beside relion_autopick where it is installed, in turn, also for the time that one micrograph more
takes, which is without start-up. Simulated: 3C91, 6VSB and the built-in phantom at 1
to 2.5 micrometres, 2048 x 2048 pixels of 1.5 A, with the true map as the reference; one of 4096 x 4096 for time and
memory. A pick is right within 40 A.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.jobs.measure import SPA, Cost, measured, stop_jobs_on_sigterm
from spa import picking_templates as templates
from spa.fourier import inverse
from spa.io import mrc, star
from spa.io.coordinates import FOM, read_coordinates
from spa.io.star import StarFile
from spa.picking_evaluation import Curve, curve

DATA = Path(os.environ.get("SPA_DATA", report.ROOT.parent / "shared" / "data"))
DISTANCE = 40.0
DIAMETERS = ("110", "140")
TO_THE_EDGE = "-1000"
HEAD = ["picks by", "precision", "recall", "F1", "best F1", "offset (A)", "s a micrograph", "CPU s", "peak MiB"]
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Of the picks, the best, whose precision is listed."""

ROUNDS = 3
"""Times that both programs are timed in turn."""


def pick(source: Path, out: Path, truth: str, *flags: str) -> tuple[StarFile, Cost]:
    """The evaluation that the job writes, and what it took on one thread."""
    cost = measured([*ours(source, out), "--evaluate", truth, *flags])
    return star.read(out / "autopick_evaluation.star"), cost


def ours(source: Path, out: Path) -> list[str]:
    """`spa pick` on one thread, without its way of picking."""
    return [*SPA, "pick", "--i", str(source), "--odir", str(out), "--j", "1", "--random_seed", "1", "--quiet"]


def theirs(source: Path, out: Path, *flags: str) -> list[str]:
    """relion_autopick, which says much."""
    command = ["relion_autopick", "--i", str(source), "--odir", f"{out}/", "--pickname", "autopick", *flags]
    return ["sh", "-c", f"{shlex.join(command)} >/dev/null 2>&1"]


def row(name: str, found: StarFile, cost: Cost, n: int) -> list[str]:
    """One line of the table."""
    general = found["general"]
    values = [f"{general.get_float(f'spa{c}'):.3f}" for c in ("Precision", "Recall", "F1", "BestF1")]
    values.append(f"{general.get_float('spaMedianOffset'):.1f}")
    return [name, *values, f"{cost.wall_seconds / n:.2f}", f"{cost.cpu_seconds / n:.2f}", f"{1024 * cost.peak_gib:.0f}"]


def real(folder: Path, work: Path) -> str:
    """Our picks and RELION's of the real micrographs."""
    source = with_ctf(folder, work)
    truth = str(folder / "picks" / "*.star")
    log = ("--LoG", "--LoG_diam_min", DIAMETERS[0], "--LoG_diam_max", DIAMETERS[1])
    reference = ("--ref", str(folder / "reference_30A.mrc"), "--sym", "O")
    n = len(star.read(source)["micrographs"])
    rows = [HEAD]
    for name, flags in (
        ("spa, LoG", log),
        ("spa, LoG without refinement", (*log, "--no_LoG_refine", "--threshold", "1.5")),
        ("spa, map", reference),
        ("spa, LoG, to the edge", (*log, "--skip_side", TO_THE_EDGE)),
        ("spa, map, to the edge", (*reference, "--skip_side", TO_THE_EDGE)),
    ):
        rows.append(row(name, *pick(source, work / name.replace(" ", "_"), truth, *flags), n))
    further = ""
    if shutil.which("relion_autopick"):
        templates_of_relion = relion_templates(folder, work)
        rows.append(relion("RELION 3.1.3, LoG", folder, work, source, *log))
        rows.append(relion("RELION 3.1.3, map", folder, work, source, *templates_of_relion))
        further = "\n\n" + start_up_apart(work, source, {"LoG": (log, log), "map": (reference, templates_of_relion)})
    notes = "one thread, with start-up, CTF given; pictures included for spa\n"
    notes += "the hand picks reach to the edge; spa leaves 0.4 of the particle's diameter, RELION half of it\n"
    notes += "RELION, map: a projection as bright as a class average, best of several thresholds"
    return f"{report.aligned(rows)}\n\n{notes}{further}"


def start_up_apart(work: Path, source: Path, ways: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> str:
    """Seconds that each micrograph but the first takes: of all, less those of the first alone.

    ways : flags of both programs. They run in turn, so that what else the machine does falls on both.
    """
    found = star.read(source)
    n = len(found["micrographs"])
    found.put(found["micrographs"].rows(np.zeros(1, dtype=np.int64)))
    alone = source.with_name("first.star")
    star.write(alone, found)
    rows = [["CPU seconds of one micrograph more", "median", "least", "most"]]
    for name, (own, other) in ways.items():
        seconds: dict[str, list[float]] = {"spa": [], "RELION 3.1.3": []}
        for _ in range(ROUNDS):
            for program, values in seconds.items():
                spent = []
                for given in (source, alone):
                    out = work / "timed"
                    shutil.rmtree(out, ignore_errors=True)
                    out.mkdir()
                    command = [*ours(given, out), *own] if program == "spa" else theirs(given, out, *other)
                    spent.append(measured(command, cwd=work).cpu_seconds)
                values.append((spent[0] - spent[1]) / (n - 1))
        for program, values in seconds.items():
            rows.append([f"{program}, {name}", *(f"{v:.2f}" for v in (np.median(values), min(values), max(values)))])
    return f"start-up apart: {n} micrographs less the first alone, {ROUNDS} rounds, the programs in turn\n" + (
        report.aligned(rows)
    )


def with_ctf(folder: Path, work: Path) -> Path:
    """The micrographs in single precision, which RELION 3.1 needs, with their CTF by `spa ctffind`."""
    for path in sorted((folder / "micrographs").glob("*.mrc")):
        mrc.write_volume(work / "micrographs" / path.name, mrc.read(path)[0][0], 1.5)
    shutil.copy(folder / "micrographs.star", work)
    out = work / "ctf"
    measured([*SPA, "ctffind", "--i", str(work / "micrographs.star"), "--o", str(out), "--j", "2", "--quiet"])
    found = star.read(out / "micrographs_ctf.star")
    table = found["micrographs"]
    table.drop(*(column for column in table.columns if column.startswith("spa")), "rlnCtfImage")
    star.write(work / "micrographs_ctf.star", found)
    return work / "micrographs_ctf.star"


def relion_templates(folder: Path, work: Path) -> list[str]:
    """Flags for relion_autopick with the same reference and sampling as `spa pick`.

    Its figure of merit depends on the grey scale of the reference: with a map as it is, it finds nothing (and aborts
    while it writes its report). A projection with a standard deviation of 1 is as bright as a class average.
    """
    volume, pixel_size = mrc.read_volume(folder / "reference_30A.mrc", -1)
    box = round(len(volume) * pixel_size / 1.5)
    turned = templates.of_map(volume, pixel_size, 1.5, box, 1, "O", 360)
    images = inverse(turned.transforms, box)
    mrc.write_stack(work / "references.mrcs", (images / images.std()).astype(np.float32), 1.5)
    flags = ["--ref", str(work / "references.mrcs"), "--angpix", "1.5", "--invert", "--ctf", "--ang", "15"]
    flags += ["--lowpass", "20", "--particle_diameter", "130", "--min_distance", "80", "--shrink", "0.5"]
    return [*flags, "--threshold", "0.01"]


def relion(name: str, folder: Path, work: Path, source: Path, *flags: str) -> list[str]:
    """The picks of relion_autopick."""
    out = work / name.replace(" ", "_")
    out.mkdir()
    cost = measured(theirs(source, out, *flags), cwd=work)
    parts = []
    for path in sorted((folder / "picks").glob("*.star")):
        true = read_coordinates(path)[0].table
        stem = path.stem.removesuffix("_manual")
        table = read_coordinates(next(out.rglob(f"{stem}_autopick.star")))[0].table
        picks, centres = (
            np.stack([block.floats(f"rlnCoordinate{axis}") for axis in "XY"], axis=1) for block in (table, true)
        )
        parts.append((picks, table.floats(FOM), centres, 1.5))
    found: Curve = curve(parts, DISTANCE)
    values = [f"{float(v):.3f}" for v in (found.precision[0], found.recall[0], found.f1[0], found.f1[found.best])]
    offset = f"{np.median(found.offset):.1f}"
    n = len(parts)
    seconds = (f"{cost.wall_seconds / n:.2f}", f"{cost.cpu_seconds / n:.2f}", f"{1024 * cost.peak_gib:.0f}")
    return [name, *values, offset, *seconds]


def simulate(work: Path, name: str, models: Path, n: int, *flags: str) -> Path:
    """Simulated micrographs of a structure; returns their folder."""
    folder = work / name.replace(" ", "_")
    command = [*SPA, "simulate", "--kind", "micrographs", "--o", str(folder), "--angpix", "1.5", "--quiet"]
    command += ["--nr_micrographs", str(n), "--defocus_min", "10000", "--defocus_max", "25000", "--seed", "11"]
    structure = name.split(",")[0]
    if structure != "phantom":
        command += ["--model", str(models / f"{structure}.pdb.gz")]
    measured([*command, *flags])
    return folder


def simulated(n: int, models: Path, work: Path) -> str:
    """Precision and recall on simulated micrographs, and the precision of the best of all peaks."""
    rows, ranking = [HEAD], [["precision of the best", *(f"{share:.0%}" for share in SHARES)]]
    size = ("--nr_particles", str(100 * n), "--micrograph_size", "2048")
    structures = ["3c91", "6vsb"] if models.is_dir() else []
    for structure in (*structures, "phantom"):
        for snr in ("0.1", "0.03"):
            name = f"{structure}, SNR {snr}"
            folder = simulate(work, name, models, n, *size, "--snr", snr)
            flags = ["--ref", str(folder / "truth_map.mrc"), "--sym", "D7" if structure == "3c91" else "C1"]
            truth = str(folder / "truth_coordinates" / "*.star")
            rows.append(row(name, *pick(folder / "truth_ctf.star", folder / "pick", truth, *flags), n))
            found, _ = pick(folder / "truth_ctf.star", folder / "all", truth, *flags, "--threshold", "3")
            ranking.append([name, *(f"{p:.3f}" for p in precision_of_best(found))])
            shutil.rmtree(folder / "micrographs")
    return f"{report.aligned(rows)}\n\nall peaks above 3 standard deviations\n{report.aligned(ranking)}"


def precision_of_best(found: StarFile) -> NDArray[np.float64]:
    """Precision of shares of the picks, the highest, from the curve of an evaluation."""
    n_true = found["general"].get_float("spaNrTrue")
    precision, recall = found["curve"].floats("spaPrecision"), found["curve"].floats("spaRecall")
    picks = recall * n_true / np.maximum(precision, 1e-9)
    return np.array([precision[int(np.argmin(np.abs(picks - share * picks.max())))] for share in SHARES])


def large(models: Path, work: Path) -> str:
    """Time and memory on a micrograph of 4096 x 4096 pixels."""
    structure = "3c91" if models.is_dir() else "phantom"
    folder = simulate(work, f"{structure}, large", models, 1, "--nr_particles", "300", "--micrograph_size", "4096")
    truth = str(folder / "truth_coordinates" / "*.star")
    rows = [HEAD]
    reference = ("--ref", str(folder / "truth_map.mrc"))
    for name, flags in (
        ("LoG", ("--LoG", "--LoG_diam_min", "150", "--LoG_diam_max", "190")),
        ("map, D7", (*reference, "--sym", "D7")),
        ("map, C1", reference),
    ):
        rows.append(row(name, *pick(folder / "truth_ctf.star", folder / name.replace(" ", "_"), truth, *flags), 1))
    return f"4096 x 4096 pixels, one thread, with start-up\n{report.aligned(rows)}"


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, default=DATA / "apoferritin")
    parser.add_argument("--models", type=Path, default=DATA / "models")
    parser.add_argument("--n", type=int, default=4, help="simulated micrographs of each kind, 0 for none")
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    arguments = parser.parse_args()
    stop_jobs_on_sigterm()
    tables = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.real.is_dir():
            tables.append(real(arguments.real, work))
            print(tables[-1], flush=True)
        else:
            print(f"no {arguments.real}: real micrographs left out; set SPA_DATA to the folder that holds apoferritin")
        if arguments.n:
            for part in (large(arguments.models, work), simulated(arguments.n, arguments.models, work)):
                tables.append(part)
                print(f"\n{part}", flush=True)
    if arguments.save:
        report.save("pick_cpu.txt", "benchmarks.jobs.pick", "\n\n".join(tables))


if __name__ == "__main__":
    main()
