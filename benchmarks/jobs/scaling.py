"""Time and memory of one refinement over threads, and its peak memory over the number of particles.

    python -m benchmarks.jobs.scaling FOLDER [--quick] [--mem GIB] [--save]

FOLDER is that of benchmarks.jobs.refine3d: particles.star and reference_30A.mrc are read. Efficiency is the time of one
thread over threads times theirs. Memory should follow --mem, not the number of particles.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.jobs.measure import SPA, Cost, measured, stop_jobs_on_sigterm, warm_up
from spa.io.particle_io import read_particles, write_particles
from spa.options import available_cores

THREADS = (1, 2, 4)
NUMBERS, QUICK_NUMBERS = (500, 1000, 2000), (250, 500, 1000)


def main() -> None:
    """Run, measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK_NUMBERS[-1]} particles")
    parser.add_argument("--diameter", default="160", help="particle diameter in Å (default 160)")
    parser.add_argument("--sym", default="C1")
    parser.add_argument("--mem", default="4", help="memory budget in GiB (default 4)")
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    arguments = parser.parse_args()
    stop_jobs_on_sigterm()
    folder = arguments.folder.resolve()
    flags = ["--ref", str(folder / "reference_30A.mrc"), "--ini_high", "30", "--ctf", "--flatten_solvent"]
    flags += ["--zero_mask", "--particle_diameter", arguments.diameter, "--sym", arguments.sym]
    flags += ["--mem", arguments.mem, "--random_seed", "1", "--quiet"]
    load = os.getloadavg()[0]  # of others: nothing of ours runs yet
    for threads in ("1", "2"):  # code for many threads may be compiled apart
        warm_up(threads)
    with tempfile.TemporaryDirectory() as scratch:
        tables = scaling(folder / "particles.star", flags, Path(scratch), arguments.quick, load)
    print(f"{report.header()}\n{tables}")
    if arguments.save:
        report.save("scaling_cpu.txt", "benchmarks.jobs.scaling", tables)


def scaling(star: Path, flags: list[str], scratch: Path, quick: bool, load: float) -> str:
    """Both tables; the refinement of one thread and most particles is in both."""
    particles = read_particles(star)
    numbers = [n for n in (QUICK_NUMBERS if quick else NUMBERS) if n <= len(particles)] or [len(particles)]

    def refine(n: int, threads: int) -> Cost:
        part = scratch / f"particles_{n}.star"
        write_particles(part, particles.subset(np.arange(n)))
        rootname = scratch / f"{n}_{threads}" / "run"
        command = [*SPA, "refine3d", "--i", str(part), "--o", str(rootname), "--j", str(threads), *flags]
        cost = measured(command)
        print(f"{n} particles, {threads} threads: {cost.wall_seconds:.0f} s", flush=True)
        return cost

    by_number = {n: refine(n, 1) for n in numbers}
    alone = by_number[numbers[-1]]
    by_threads = {1: alone} | {j: refine(numbers[-1], j) for j in THREADS[1:] if j <= available_cores()}
    threads = [("threads", "wall s", "CPU s", "peak GiB", "efficiency")]
    for j, cost in by_threads.items():
        threads.append((str(j), *cells(cost), f"{alone.wall_seconds / (j * cost.wall_seconds):.0%}"))
    memory = [("particles", "wall s", "CPU s", "peak GiB")]
    memory += [(str(n), *cells(cost)) for n, cost in by_number.items()]
    head = f"{numbers[-1]} particles; load of the machine before: {load:.1f}", "one thread"
    return f"{head[0]}\n{report.aligned(threads)}\n\n{head[1]}\n{report.aligned(memory)}"


def cells(cost: Cost) -> tuple[str, str, str]:
    """Wall and CPU seconds and peak memory as text."""
    return f"{cost.wall_seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_gib:.2f}"


if __name__ == "__main__":
    main()
