"""Refine a simulated set of particles and print accuracy and cost beside recorded figures of RELION 5.0.1.

    python -m benchmarks.jobs.refine3d FOLDER [--j N] [--o DIR] [-- further flags of spa refine3d]

FOLDER holds particles.star, truth_particles.star, truth_map.mrc and reference_30A.mrc.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.jobs.truth import compare

RECORDED = ("RELION 5.0.1", "1.95", "99.6", "0.55", "0.86", "8.0", "3222", "", "")


def main() -> None:
    """Run, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--j", default="2")
    parser.add_argument("--o", default="")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--diameter", default="160")
    parser.add_argument("--sym", default="C1")
    arguments, further = parser.parse_known_args()
    folder = arguments.folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        rootname = (Path(arguments.o or scratch) / "run").resolve()
        command = [sys.executable, "-m", "spa.cli.main", "refine3d", "--i", "particles.star", "--o", str(rootname)]
        command += ["--ref", "reference_30A.mrc", "--ini_high", "30", "--ctf", "--flatten_solvent", "--zero_mask"]
        command += ["--particle_diameter", arguments.diameter, "--sym", arguments.sym]
        command += ["--j", arguments.j, "--random_seed", arguments.seed, *further]
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        wall = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        errors = compare(
            f"{rootname}_data.star",
            folder / "truth_particles.star",
            f"{rootname}_class001.mrc",
            folder / "truth_map.mrc",
            arguments.sym,
            float(arguments.diameter),
        )
    cpu = usage.ru_utime + usage.ru_stime
    shell = min(28, len(errors.map_fsc) - 1)
    ours = (
        f"spa, {arguments.j} threads",
        f"{errors.median_angle:.2f}",
        f"{100 * errors.within_10_degrees:.1f}",
        f"{errors.median_shift:.2f}",
        f"{errors.map_fsc[shell]:.3f}",
        f"{errors.map_resolution:.1f}",
        f"{cpu:.0f}",
        f"{wall:.0f}",
        f"{usage.ru_maxrss / 2**20:.2f}",
    )
    head = ("", "median °", "% < 10°", "shift Å", f"FSC at {shell}", "FSC 0.5 Å", "CPU s", "wall s", "peak GiB")
    for row in (head, ours, RECORDED) if folder.name == "sim_7cfn" else (head, ours):
        print("  ".join(f"{cell:>14}" if i == 0 else f"{cell:>9}" for i, cell in enumerate(row)))


if __name__ == "__main__":
    main()
