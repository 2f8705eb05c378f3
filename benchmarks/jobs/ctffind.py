"""How well `spa ctffind` finds the CTF: real spectra against published values, simulated micrographs against the truth.

python -m benchmarks.jobs.ctffind [--per_level 25] [--real FOLDER] [--save]

Real: the spectra of bgal_power_spectra in the test data (SPA_DATA, else ../shared/data beside the checkout).
Simulated: micrographs of 2048 x 2048 pixels, 1.5 A/px, 0.5 to 3 micrometres, astigmatism to 1000 A, in levels of signal
from plain rings to none, and two levels with a phase plate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.jobs.measure import SPA, Cost, measured, stop_jobs_on_sigterm
from spa.io import star
from spa.io.star import Block, StarFile

DATA = Path(os.environ.get("SPA_DATA", report.ROOT.parent / "shared" / "data"))
LEVELS = (
    ("0.3", "0.2"),
    ("0.1", "0.05"),
    ("0.05", "0.02"),
    ("0.03", "0.01"),
    ("0.02", "0.005"),
    ("0.01", "0.003"),
    ("0.005", "0.001"),
    ("0.001", "0.0003"),
)
"""--snr and --ice of `spa simulate`."""

PHASE_LEVELS = LEVELS[:3]
SEED = 4711
WRONG, GOOD = 300.0, 100.0
"""Angstrom: a fit is wrong beyond the first, good within the second, by the worse of its two defoci."""

PHASE = 3.0
"""Degrees within which a phase shift is right; a fit with a phase plate is good only then."""


def ctffind(folder: Path, star_file: Path, *flags: str) -> tuple[Block, Cost]:
    """The table that the job writes, and what it took on one thread."""
    out = folder / "ctf"
    command = [*SPA, "ctffind", "--i", str(star_file), "--o", str(out), "--j", "1", "--random_seed", "1", "--quiet"]
    cost = measured([*command, *flags])
    return star.read(out / "micrographs_ctf.star")["micrographs"], cost


def vectors(table: Block) -> NDArray[np.complex128]:
    """Astigmatism as a vector of length U - V at twice the angle."""
    length = table.floats("rlnDefocusU") - table.floats("rlnDefocusV")
    return np.asarray(length * np.exp(2j * np.radians(table.floats("rlnDefocusAngle"))))


def mean_defocus(table: Block) -> NDArray[np.float64]:
    """Mean of the two defoci."""
    return (table.floats("rlnDefocusU") + table.floats("rlnDefocusV")) / 2


def real(folder: Path, work: Path) -> str:
    """Differences from the published values of the real spectra."""
    tables = star.read(folder / "reference_ctf.star")
    reference = tables["micrographs"]
    names = [str(folder / name) for name in reference.text("spectrum")]
    columns = {"rlnMicrographName": names, "rlnCtfPowerSpectrum": names, "rlnOpticsGroup": [1] * len(names)}
    star.write(work / "spectra.star", StarFile([tables["optics"], Block.table("micrographs", columns)]))
    found, cost = ctffind(work, work / "spectra.star", "--use_given_ps")
    defocus = mean_defocus(found) - mean_defocus(reference)
    vector = np.abs(vectors(found) - vectors(reference))
    rows = [["spectrum", "U", "V", "angle", "defocus - reference", "astigmatism vector", "rings to", "trusted"]]
    for i, name in enumerate(names):
        values = [found.floats(f"rln{column}")[i] for column in ("DefocusU", "DefocusV", "DefocusAngle")]
        cells = [f"{value:.1f}" for value in (*values, defocus[i], vector[i])]
        last = [f"{found.floats('rlnCtfMaxResolution')[i]:.2f}", found.text("spaCtfTrusted")[i]]
        rows.append([Path(name).stem, *cells, *last])
    return (
        f"{report.aligned(rows)}\n\n"
        f"|defocus - reference| {np.median(np.abs(defocus)):.1f} A median, {np.abs(defocus).max():.1f} A worst; "
        f"astigmatism vector {np.median(vector):.1f} A median; "
        f"{cost.cpu_seconds / len(names):.2f} CPU seconds each with start and pictures"
    )


def simulated(n: int, work: Path) -> str:
    """Errors by level of signal, and over all that are trusted."""
    head = ["level", "trusted", "defocus", "worst of U, V", "vector", "phase", "phase off"]
    head += ["wrong", "good distrusted", "CPU s"]
    rows, parts = [head], []
    for number, (snr, ice) in enumerate((*LEVELS, *PHASE_LEVELS)):
        plate = number >= len(LEVELS)
        part, cost = level(work / f"level{number}", n, snr, ice, SEED + number, plate)
        rows.append(
            summary(f"snr {snr}, ice {ice}{', phase plate' if plate else ''}", part, cost.cpu_seconds / n, plate)
        )
        if not plate:
            parts.append(part)
    rows.append(summary("all without phase plate", np.concatenate(parts, axis=1), float("nan"), False))
    return (
        f"{n} micrographs a level; median defocus error, median worse error of U and V, mean error of the astigmatism\n"
        f"vector (A), median error of the phase shift (degrees) and those off by more than {PHASE:g}, among the\n"
        f"trusted; of these wrong by more than {WRONG:g} A; of those right within {GOOD:g} A distrusted; CPU seconds\n"
        f"each with start and pictures\n\n"
        f"{report.aligned(rows)}"
    )


def level(folder: Path, n: int, snr: str, ice: str, seed: int, plate: bool) -> tuple[NDArray[np.float64], Cost]:
    """Errors of one level, (5, n): trusted, mean defocus, worse of U and V, vector, phase; the images are removed."""
    command = [*SPA, "simulate", "--kind", "micrographs", "--o", str(folder), "--nr_micrographs", str(n)]
    command += ["--nr_particles", str(100 * n), "--angpix", "1.5", "--micrograph_size", "2048", "--seed", str(seed)]
    command += ["--defocus_min", "5000", "--defocus_max", "30000", "--astigmatism", "1000", "--quiet"]
    command += ["--snr", snr, "--ice", ice, *(["--phase_shift", "10", "--phase_shift", "140"] if plate else [])]
    measured(command)
    found, cost = ctffind(folder, folder / "micrographs.star", *(["--do_phaseshift"] if plate else []))
    truth = star.read(folder / "truth_ctf.star")["micrographs"]
    for image in (folder / "micrographs").glob("*.mrc"):
        image.unlink()
    worse = np.maximum(*(np.abs(found.floats(c) - truth.floats(c)) for c in ("rlnDefocusU", "rlnDefocusV")))
    phase = np.zeros(n)
    if plate:
        phase = np.abs((found.floats("rlnPhaseShift") - truth.floats("rlnPhaseShift") + 90) % 180 - 90)
    defocus = np.abs(mean_defocus(found) - mean_defocus(truth))
    errors = (found.floats("spaCtfTrusted"), defocus, worse, np.abs(vectors(found) - vectors(truth)), phase)
    return np.stack(errors), cost


def summary(name: str, part: NDArray[np.float64], seconds: float, plate: bool) -> list[str]:
    """One row of the table."""
    trusted = part[0] > 0
    good = (part[2] < GOOD) & (part[4] < PHASE)
    row = [name, f"{trusted.sum()} of {len(trusted)}"]
    if trusted.any():
        defocus, worse, vector, phase = part[1:, trusted]
        row += [f"{np.median(defocus):.1f}", f"{np.median(worse):.1f}", f"{vector.mean():.1f}"]
        row += [f"{np.median(phase):.2f}", f"{(phase > PHASE).mean():.1%}"] if plate else ["-", "-"]
        row.append(f"{(worse > WRONG).mean():.1%}")
    else:
        row += ["-"] * 6
    row.append(f"{(good & ~trusted).sum() / good.sum():.1%}" if good.any() else "-")
    return [*row, "-" if np.isnan(seconds) else f"{seconds:.2f}"]


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per_level", type=int, default=25, help="simulated micrographs a level, 0 for none")
    parser.add_argument("--real", type=Path, default=DATA / "bgal_power_spectra")
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    arguments = parser.parse_args()
    stop_jobs_on_sigterm()
    tables = []
    with tempfile.TemporaryDirectory() as work:
        if arguments.real.is_dir():
            tables.append(real(arguments.real, Path(work)))
            print(tables[-1], flush=True)
        else:
            print(f"no {arguments.real}: real spectra left out; set SPA_DATA to the folder that holds them")
        if arguments.per_level:
            tables.append(simulated(arguments.per_level, Path(work)))
            print(f"\n{tables[-1]}")
    if arguments.save:
        report.save("ctffind_cpu.txt", "benchmarks.jobs.ctffind", "\n\n".join(tables))


if __name__ == "__main__":
    main()
