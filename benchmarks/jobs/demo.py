"""Particles to map on simulated data with known truth: simulate, refine3d, mask, postprocess, and a table of errors.

python -m benchmarks.jobs.demo --o demo_output [--nr_particles 1500] [--j N]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.jobs.truth import compare
from spa.fourier import low_pass
from spa.fsc import shell_to_resolution
from spa.io import mrc, plots, star

BOX, PIXEL_SIZE, DIAMETER = 64, 3.5, 150.0


def main() -> None:
    """Run the four jobs, then print resolution, errors against the truth and the time of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--o", type=Path, default=Path("demo_output"))
    parser.add_argument("--nr_particles", type=int, default=1500)
    parser.add_argument("--j", default="")
    arguments = parser.parse_args()
    folder: Path = arguments.o
    shutil.rmtree(folder, ignore_errors=True)
    threads = ["--j", arguments.j] if arguments.j else []
    clock = Clock()
    clock.spa(
        "simulate",
        *("--o", f"{folder}/Simulate", "--nr_particles", str(arguments.nr_particles), "--box", str(BOX)),
        *("--angpix", str(PIXEL_SIZE), "--snr", "0.15", "--random_seed", "1", *threads),
    )
    truth_map, _ = mrc.read_volume(f"{folder}/Simulate/truth_map.mrc")
    reference = folder / "reference_40A.mrc"
    mrc.write_volume(reference, low_pass(truth_map, PIXEL_SIZE, 40.0), PIXEL_SIZE)
    rootname = f"{folder}/Refine3D/run"
    clock.spa(
        "refine3d",
        *("--i", f"{folder}/Simulate/particles.star", "--ref", str(reference), "--o", rootname, "--ini_high", "40"),
        *("--particle_diameter", f"{DIAMETER:g}", "--ctf", "--flatten_solvent", "--zero_mask"),
        *("--random_seed", "1", *threads),
    )
    mask = f"{folder}/MaskCreate/mask.mrc"
    clock.spa("mask", "--i", f"{rootname}_class001.mrc", "--o", mask, *threads)
    postprocess = f"{folder}/PostProcess/postprocess"
    clock.spa(
        "postprocess",
        *("--i", f"{rootname}_half1_class001_unfil.mrc", "--mask", mask, "--adhoc_bfac", "-80"),
        *("--o", postprocess, *threads),
    )
    report(folder, rootname, postprocess, truth_map, clock)


class Clock:
    """Runs jobs of spa and keeps their wall times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def spa(self, job: str, *flags: str) -> None:
        """Run one job; the demo ends where it fails."""
        print(f"$ spa {job} {' '.join(flags)}", flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "spa.cli.main", job, *flags], check=True)
        self.seconds[job] = time.perf_counter() - start


def report(folder: Path, rootname: str, postprocess: str, truth_map: np.ndarray, clock: Clock) -> None:
    """Print the table and draw map beside truth and the FSC between them."""
    final = f"{postprocess}.mrc"
    truth = folder / "Simulate" / "truth_particles.star"
    errors = compare(
        f"{rootname}_data.star",
        truth,
        f"{rootname}_class001.mrc",
        folder / "Simulate" / "truth_map.mrc",
        "C1",
        DIAMETER,
    )
    resolution = star.read(f"{postprocess}.star")["general"].get_float("rlnFinalResolution")
    sharpened, _ = mrc.read_volume(final)
    refined, _ = mrc.read_volume(f"{rootname}_class001.mrc")
    maps = {"truth": truth_map, "refined": refined, "postprocessed": sharpened}
    plots.save(folder / "map_beside_truth.png", plots.slices(maps, PIXEL_SIZE))
    shell = int(np.nonzero(errors.map_fsc < 0.5)[0][0]) - 1 if (errors.map_fsc < 0.5).any() else BOX // 2
    figure = plots.fsc(
        {"map to truth": errors.map_fsc}, BOX, PIXEL_SIZE, shell, 0.5, title="Refined map against the truth"
    )
    plots.save(folder / "fsc_to_truth.png", figure)
    lines = (
        ("resolution (FSC = 0.143, masked, corrected)", f"{resolution:.2f} Å"),
        ("Nyquist", f"{shell_to_resolution(BOX // 2, BOX, PIXEL_SIZE):.2f} Å"),
        ("map to truth: FSC = 0.5 at", f"{errors.map_resolution:.2f} Å"),
        ("median angular error", f"{errors.median_angle:.2f}°"),
        ("particles within 10°", f"{100 * errors.within_10_degrees:.1f} %"),
        ("median shift error", f"{errors.median_shift:.2f} Å"),
        *((f"time of {job}", f"{seconds:.1f} s") for job, seconds in clock.seconds.items()),
    )
    print()
    for name, value in lines:
        print(f"{name:<45}{value:>12}")
    pictures = ["map_beside_truth.png", "fsc_to_truth.png"]
    pictures += [str(Path(p).relative_to(folder)) for p in sorted(folder.glob("*/*.png"))]
    print(f"\npictures in {folder}: {', '.join(pictures)}")


if __name__ == "__main__":
    main()
