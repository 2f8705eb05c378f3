"""3D classification of particles in two states that are known, and of one state, beside Debian's relion_refine.

    python -m benchmarks.jobs.class3d MODELS [--case spike|channel|one] [--particles N] [--j N] [--o DIR] [--relion]
                                             [--save] [flags of class3d]

MODELS is a folder with atomic models. `spike` is 6VSB with and without the receptor-binding domain of chain A (30 to
70), `channel` TRPV1 in two states (7L2I and 7L2J, one half each), `one` 6VSB alone.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import gemmi
import numpy as np

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured, stop_jobs_on_sigterm
from spa.class_stability import adjusted_rand
from spa.fourier import low_pass
from spa.io import mrc, star

BINDING_DOMAIN = ("A", 330, 528)
PIXEL_SIZE, BOX, SNR = 4.0, 64, 0.05
DIAMETERS = {"spike": 200.0, "channel": 150.0, "one": 200.0}
SYMMETRY = {"spike": "C1", "channel": "C4", "one": "C1"}
HEAD = ("", "particles", "adjusted Rand", "shares", "CPU s", "wall s", "peak GiB")


def main() -> None:
    """Simulate, run, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--case", choices=tuple(DIAMETERS), default="spike")
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--iter", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--j", default="2")
    parser.add_argument("--o", default="")
    parser.add_argument("--relion", action="store_true", help="run relion_refine, too")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments, further = parser.parse_known_args()
    stop_jobs_on_sigterm()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.o or scratch).resolve() / arguments.case
        if not (folder / "reference.mrc").exists():
            simulate(folder, arguments)
        rows = [HEAD, classified(folder, arguments, further)]
        if arguments.relion:
            rows.append(by_relion(folder, arguments))
    table = report.aligned(rows)
    print(f"{report.header()}\n{table}")
    if arguments.save:
        report.save("class3d_cpu.txt", "benchmarks.jobs.class3d", table)


def simulate(folder: Path, arguments: argparse.Namespace) -> None:
    """Particles in FOLDER/data and the mean of their states, to 40 Å, in FOLDER/reference.mrc."""
    folder.mkdir(parents=True, exist_ok=True)
    models, shares = states(folder, arguments.models.resolve(), arguments.case)
    command = [*SPA, "simulate", "--o", "data", "--nr_particles", str(arguments.particles), "--box", str(BOX)]
    command += ["--angpix", str(PIXEL_SIZE), "--particle_diameter", str(DIAMETERS[arguments.case]), "--snr", str(SNR)]
    for model, share in zip(models, shares, strict=True):
        command += ["--model", str(model), "--fraction", str(share)]
    subprocess.run([*command, "--random_seed", str(arguments.seed), "--quiet"], cwd=folder, check=True)
    names = [f"truth_map{i + 1}.mrc" for i in range(len(models))] if len(models) > 1 else ["truth_map.mrc"]
    maps = [mrc.read_volume(folder / "data" / name)[0] for name in names]
    mean = sum(share * volume for share, volume in zip(shares, maps, strict=True)) / sum(shares)
    mrc.write_volume(folder / "reference.mrc", low_pass(mean, PIXEL_SIZE, 40.0), PIXEL_SIZE)


def states(folder: Path, models: Path, case: str) -> tuple[list[Path], list[float]]:
    """The atomic models of a case and the shares of the particles that show them."""
    if case == "channel":
        return [models / "7l2i.cif.gz", models / "7l2j.cif.gz"], [0.5, 0.5]
    spike = models / "6vsb.pdb.gz"
    if case == "one":
        return [spike], [1.0]
    chain, first, last = BINDING_DOMAIN
    structure = gemmi.read_structure(str(spike))
    residues = structure[0][chain]
    for i in reversed(range(len(residues))):
        if first <= residues[i].seqid.num <= last:
            del residues[i]
    structure.write_pdb(str(folder / "without.pdb"))
    return [spike, folder / "without.pdb"], [0.3, 0.7]


def classified(folder: Path, arguments: argparse.Namespace, further: list[str]) -> tuple[str, ...]:
    """The row of our run."""
    command = [*SPA, "class3d", "--o", "run/run", "--quiet", "--j", arguments.j, *flags(arguments)]
    cost = measured([*command, "--random_seed", str(arguments.seed), *further], cwd=folder)
    found = star.read(folder / "run/run_data.star")["particles"].floats("rlnClassNumber").astype(int)
    return (f"spa {' '.join(further)}", *result(folder, found), *costs(cost))


def by_relion(folder: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    """The row of relion_refine on the same particles."""
    (folder / "relion").mkdir(exist_ok=True)
    command = ["relion_refine", "--o", "relion/run", "--j", arguments.j, *flags(arguments), "--dont_check_norm"]
    cost = measured([*command, "--random_seed", str(arguments.seed), "--oversampling", "1"], cwd=folder)
    path = folder / f"relion/run_it{arguments.iter:03d}_data.star"
    found = star.read(path)["particles"]
    order = np.argsort(found.text("rlnImageName"))
    truth = np.argsort(np.argsort(star.read(folder / "data/truth_particles.star")["particles"].text("rlnImageName")))
    classes = found.floats("rlnClassNumber").astype(int)[order][truth]
    return ("relion_refine", *result(folder, classes), *costs(cost))


def flags(arguments: argparse.Namespace) -> list[str]:
    """What both programs are told."""
    words = ["--i", "data/particles.star", "--ref", "reference.mrc", "--ini_high", "40", "--K", "2", "--ctf"]
    words += ["--iter", str(arguments.iter), "--tau2_fudge", "4", "--flatten_solvent", "--zero_mask"]
    words += ["--particle_diameter", str(DIAMETERS[arguments.case]), "--sym", SYMMETRY[arguments.case]]
    return [*words, "--healpix_order", "2", "--offset_range", "5", "--offset_step", "2"]


def result(folder: Path, found: np.ndarray) -> tuple[str, str, str]:
    """Number of particles, agreement with the truth and shares of the classes."""
    truth = star.read(folder / "data/truth_particles.star")["particles"].floats("rlnClassNumber").astype(int)
    shares = np.bincount(found, minlength=3)[1:] / len(found)
    return f"{len(found)}", f"{adjusted_rand(found, truth):.3f}", " ".join(f"{s:.2f}" for s in shares)


def costs(cost: object) -> tuple[str, str, str]:
    """CPU seconds, seconds and memory."""
    return f"{cost.cpu_seconds:.0f}", f"{cost.wall_seconds:.0f}", f"{cost.peak_gib:.2f}"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
