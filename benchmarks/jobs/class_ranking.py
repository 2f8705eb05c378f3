"""Automatic class ranking of a known mixture: do the classes of protein score above those of junk?

    python -m benchmarks.jobs.class_ranking DATA TRUTH [--min_score S] [--save]

DATA is the data STAR file of a 2D classification, TRUTH one with a row for each of its particles, in the same order,
whose rlnClassNumber is 0 for junk, as benchmarks.jobs.class2d writes it; run in the folder where DATA was made. A class
is junk if half of its particles are. AUC is the chance that a class of protein scores above one of junk; junk may also
sit in classes of protein, from where no ranking of classes takes it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured, stop_jobs_on_sigterm
from spa.io import star

HEAD = ("", "protein", "junk", "AUC", "lowest protein", "highest junk", "protein kept %", "junk kept %", "CPU s")


def main() -> None:
    """Rank, compare with the truth and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--min_score", default="0.5")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments = parser.parse_args()
    stop_jobs_on_sigterm()
    table = report.aligned([HEAD, ranked(arguments.data, arguments.truth, arguments.min_score)])
    print(f"{report.header()}\n{table}")
    if arguments.save:
        report.save("class_ranking_cpu.txt", "benchmarks.jobs.class_ranking", table)


def ranked(data: Path, truth: Path, min_score: str) -> tuple[str, ...]:
    """The row of one classification."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [*SPA, "select", "--i", str(data), "--o", f"{scratch}/out.star", "--auto", "--min_score", min_score]
        cost = measured([*command, "--quiet"], cwd=Path.cwd())
        ranking = star.read(f"{scratch}/out_classes.star")["class_averages"]
    number = ranking.integers("rlnClassNumber")
    n = int(number.max())
    score, kept = np.zeros(n + 1), np.zeros(n + 1, dtype=bool)
    score[number] = ranking.floats("rlnPredictedClassScore")
    kept[number] = ranking.integers("rlnSelected") == 1
    classes = star.read(data)["particles"].integers("rlnClassNumber")
    junk = star.read(truth)["particles"].integers("rlnClassNumber") == 0
    count = np.bincount(classes, minlength=n + 1)
    of_junk = np.bincount(classes, junk, n + 1) >= count / 2
    good, bad = score[(count > 0) & ~of_junk], score[(count > 0) & of_junk]
    return (
        data.as_posix(),
        f"{len(good)}",
        f"{len(bad)}",
        f"{area(good, bad):.3f}",
        f"{good.min(initial=1):.3f}",
        f"{bad.max(initial=0):.3f}",
        percent(kept[classes][~junk]),
        percent(kept[classes][junk]),
        f"{cost.cpu_seconds:.0f}",
    )


def area(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that one of `good` is above one of `bad`, ties counted half; not a number without either."""
    if not (len(good) and len(bad)):
        return float("nan")
    difference = good[:, None] - bad
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def percent(chosen: np.ndarray) -> str:
    """A share in percent, empty where there is nothing to choose from."""
    return f"{100 * chosen.mean():.1f}" if len(chosen) else ""


if __name__ == "__main__":
    main()
