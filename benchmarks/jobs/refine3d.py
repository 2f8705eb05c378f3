"""Refine a simulated set of particles and print accuracy and cost beside recorded figures of RELION 5.0.1.

    python -m benchmarks.jobs.refine3d FOLDER [--j N] [--o DIR] [--save] [further flags of spa refine3d]

FOLDER holds particles.star, truth_particles.star, truth_map.mrc and reference_30A.mrc. Map-to-truth FSC is given in two
spheres: that of --diameter, and the tighter one of RECORDED_DIAMETER, for the recorded 0.86 says nothing of its mask: a
map whose record says 0.871 has 0.828 in a sphere of 160 Å, and 0.870 in one of 138 Å.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured, stop_jobs_on_sigterm
from benchmarks.jobs.truth import Errors, compare

RECORDED = ("RELION 5.0.1", "1.95", "99.6", "0.55", "", "0.86", "8.0", "3222", "", "")
RECORDED_DIAMETER = 138.0
SHELL = 28
HEAD = ("", "median °", "% < 10°", "shift Å", "FSC at 28", "in 138 Å", "FSC 0.5 Å", "CPU s", "wall s", "peak GiB")


def main() -> None:
    """Run, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--j", default="2")
    parser.add_argument("--o", default="")
    parser.add_argument("--seed", default="1", help="one or several, as 1,2,3")
    parser.add_argument("--diameter", default="160")
    parser.add_argument("--sym", default="C1")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments, further = parser.parse_known_args()
    stop_jobs_on_sigterm()
    folder = arguments.folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(arguments.o or scratch).resolve()
        rows = [HEAD, true_poses(folder, output, arguments)]
        for seed in arguments.seed.split(","):
            rows.append(refined(folder, output / f"seed{seed}/run", seed, arguments, further))
    table = report.aligned([*rows, RECORDED] if folder.name == "sim_7cfn" else rows)
    print(f"{report.header()}\n{table}")
    if arguments.save:
        report.save("refine3d_cpu.txt", "benchmarks.jobs.refine3d", table)


def refined(
    folder: Path, rootname: Path, seed: str, arguments: argparse.Namespace, further: list[str]
) -> tuple[str, ...]:
    """The row of one refinement."""
    command = [*SPA, "refine3d", "--i", "particles.star", "--o", str(rootname)]
    command += ["--ref", "reference_30A.mrc", "--ini_high", "30", "--ctf", "--flatten_solvent", "--zero_mask"]
    command += ["--particle_diameter", arguments.diameter, "--sym", arguments.sym]
    command += ["--j", arguments.j, "--random_seed", seed, *further]
    cost = measured(command, cwd=folder)
    errors, *at_shell = found_errors(folder, f"{rootname}_data.star", f"{rootname}_class001.mrc", arguments)
    return (
        f"spa, seed {seed}, {arguments.j} thread{'s' * (arguments.j != '1')}",
        f"{errors.median_angle:.2f}",
        f"{100 * errors.within_10_degrees:.1f}",
        f"{errors.median_shift:.2f}",
        *at_shell,
        f"{errors.map_resolution:.1f}",
        f"{cost.cpu_seconds:.0f}",
        f"{cost.wall_seconds:.0f}",
        f"{cost.peak_gib:.2f}",
    )


def true_poses(folder: Path, output: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    """The row of a reconstruction from the true poses: what no refinement of these images should exceed by much."""
    path = output / "true_poses.mrc"
    command = [*SPA, "reconstruct", "--i", "truth_particles.star", "--o", str(path), "--ctf"]
    measured([*command, "--sym", arguments.sym, "--j", arguments.j], cwd=folder)
    errors, *at_shell = found_errors(folder, str(folder / "truth_particles.star"), str(path), arguments)
    return ("true poses", "", "", "", *at_shell, f"{errors.map_resolution:.1f}", "", "", "")


def found_errors(folder: Path, data: str, volume: str, arguments: argparse.Namespace) -> tuple[Errors, str, str]:
    """Errors against the folder's truth, and the map's FSC at SHELL in both spheres."""
    truth = folder / "truth_particles.star", folder / "truth_map.mrc"
    in_both = [
        compare(data, truth[0], volume, truth[1], arguments.sym, diameter)
        for diameter in (float(arguments.diameter), RECORDED_DIAMETER)
    ]
    at_shell = [f"{errors.map_fsc[min(SHELL, len(errors.map_fsc) - 1)]:.3f}" for errors in in_both]
    return in_both[0], at_shell[0], at_shell[1]


if __name__ == "__main__":
    main()
