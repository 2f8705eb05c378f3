"""Time, memory and accuracy of `spa postprocess --locres` beside relion_postprocess on the same half maps.

    python -m benchmarks.jobs.locres [--boxes 96,128] [--j N] [--save]

The maps are white before a B-factor; the noise is five times stronger where z < 0, so that the resolution of both sides
is known. "error" is the median of the local resolution of a side, in shells of the box, less the planted one; "off %"
is the share of voxels more than three shells from it. Both programs sample every 25 Å with their own windows. RELION
runs its one thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured, stop_jobs_on_sigterm
from spa.grids import radius_grid
from spa.io import mrc
from spa.noise import coloured_noise

PIXEL_SIZE, BFACTOR, NOISE = 1.5, 250.0, (0.5, 0.1)
HEAD = ("", "box", "wall s", "CPU s", "peak GiB", "error z<0", "error z>0", "off % z<0", "off % z>0")


def main() -> None:
    """Make the maps, run both programs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", default="96,128")
    parser.add_argument("--j", default="1", help="threads of spa")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments = parser.parse_args()
    stop_jobs_on_sigterm()
    rows = [HEAD]
    for box in map(int, arguments.boxes.split(",")):
        rows += compared(box, arguments.j)
    table = report.aligned(rows)
    print(f"{report.header()}\n{table}")
    if arguments.save:
        report.save("locres_cpu.txt", "benchmarks.jobs.locres", table)


def compared(box: int, threads: str) -> list[tuple[str, ...]]:
    """The rows of one box: ours, and RELION's where it is installed."""
    programs = {"spa": [*SPA, "postprocess", "--j", threads, "--quiet"]}
    if shutil.which("relion_postprocess"):
        programs["relion_postprocess"] = ["relion_postprocess", "--verb", "0"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, half in enumerate(half_maps(box), 1):
            mrc.write_volume(folder / f"half{i}.mrc", half, PIXEL_SIZE)
        for program, command in programs.items():
            cost = measured([*command, "--i", "half1.mrc", "--o", program, "--locres"], folder)
            found = quality(mrc.read_volume(folder / f"{program}_locres.mrc")[0])
            costs = (f"{cost.wall_seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_gib:.2f}")
            rows.append((program, f"{box}", *costs, *found))
    return rows


def half_maps(box: int) -> list[np.ndarray]:
    """Two half maps, float32 (box, box, box)."""
    rng, shape = np.random.default_rng(1), (1, box, box, box)
    decay = np.exp(-BFACTOR / 2 * (np.arange(box // 2 + 1) / (box * PIXEL_SIZE)) ** 2) * box**3
    signal = coloured_noise(shape, decay, rng)[0]
    level = np.where(np.arange(box) < box // 2, *NOISE).astype(np.float32)[:, None, None]
    return [signal + level * coloured_noise(shape, (decay / box**3) ** (1 / 3) * box**3, rng)[0] for _ in range(2)]


def quality(local: np.ndarray) -> tuple[str, ...]:
    """Medians and outliers of both sides, away from the border between them and from the edges of the box."""
    box = len(local)
    z, margin = np.arange(box) - box // 2, 25 / PIXEL_SIZE
    inner = radius_grid(box, 3) < box / 2 - margin
    errors, off = [], []
    for level, side in zip(NOISE, (z < -margin, z > margin), strict=True):
        # a signal-to-noise ratio of 1 / 6 is an FSC of 1 / 7
        planted = box * PIXEL_SIZE * np.sqrt(3 * np.log(6 / level**2) / BFACTOR)
        difference = box * PIXEL_SIZE / local[inner & side[:, None, None]] - planted
        errors.append(f"{np.median(difference):+.1f}")
        off.append(f"{100 * (abs(difference) > 3).mean():.0f}")
    return (*errors, *off)


if __name__ == "__main__":
    main()
