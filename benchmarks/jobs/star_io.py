"""Time and memory to read and write a particle STAR file of 500,000 rows and 28 columns.

python -m benchmarks.jobs.star_io [--rows N] [--save]
"""

from __future__ import annotations

import argparse
import filecmp
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import report
from spa.io import star

NUMBERS, WHOLE = 22, 4
BATCH = 50_000


def write_table(path: Path, n: int) -> None:
    """A table such as a refinement writes, appended in pieces so that making it needs little memory."""
    rng = np.random.default_rng(1)
    names = [f"rlnNumber{i}" for i in range(NUMBERS)] + ["rlnImageName", "rlnMicrographName"]
    names += [f"rlnWhole{i}" for i in range(WHOLE)]
    with open(path, "wb") as handle:
        header = "".join(f"_{name} #{i} \n" for i, name in enumerate(names, 1))
        handle.write(f"\n# version 50001\n\ndata_particles\n\nloop_ \n{header}".encode())
        for start in range(0, n, BATCH):
            rows = range(start, min(start + BATCH, n))
            columns = [pl.Series(rng.normal(0, 1e3, len(rows))) for _ in range(NUMBERS)]
            columns.append(
                pl.Series([f"{k % 300 + 1:06d}@Extract/job012/Movies/movie_{k // 300:05d}.mrcs" for k in rows])
            )
            columns.append(pl.Series([f"MotionCorr/job002/Movies/movie_{k // 300:05d}.mrc" for k in rows]))
            columns += [pl.Series(rng.integers(0, 9, len(rows))) for _ in range(WHOLE)]
            part = pl.DataFrame([column.alias(name) for column, name in zip(columns, names, strict=True)])
            part.write_csv(handle, include_header=False, separator=" ", float_precision=6)
        handle.write(b"\n")


def main() -> None:
    """Run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments = parser.parse_args()
    rows = arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "particles.star"
        write_table(path, rows)
        start = time.perf_counter()
        found = star.read(path)
        read = time.perf_counter()
        table = found["particles"]
        numbers = {name: table.floats(name) for name in table.columns[:NUMBERS]}
        asked = time.perf_counter()
        star.write(Path(folder) / "text.star", found)
        text = time.perf_counter()
        for name, values in numbers.items():
            table.set(name, values)
        star.write(Path(folder) / "numbers.star", found)
        end = time.perf_counter()
        assert filecmp.cmp(path, Path(folder) / "text.star", shallow=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = (
        f"{rows:,} rows x {NUMBERS + WHOLE + 2} columns",
        f"read {read - start:.2f} s, {NUMBERS} columns as numbers {asked - read:.2f} s",
        f"write text {text - asked:.2f} s, write numbers {end - text:.2f} s",
        f"peak memory of the process {peak:.2f} GiB",
    )
    print("\n".join([report.header(), *lines]))
    if arguments.save:
        report.save("star_io_cpu.txt", "benchmarks.jobs.star_io", "\n".join(lines))


if __name__ == "__main__":
    main()
