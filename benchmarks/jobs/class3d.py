"""3D classification of particles in two states that are known, and of one state, beside Debian's relion_refine.

    python -m benchmarks.jobs.class3d MODELS [--case spike channel one] [--snr S] [--particles N] [--iter N] [--j N]
                                             [--o DIR] [--relion] [--relion_global] [--save] [flags of class3d]

MODELS is a folder with atomic models. `spike` is 6VSB with and without the receptor-binding domain of chain A (30 to
70), `channel` TRPV1 in two states (7L2I and 7L2J, one half each), `one` 6VSB alone. Without the domain a spike's centre
of mass, where the simulation puts the middle of its box, lies 3.3 Å elsewhere: the true shifts give the state away, so
poses are searched or come from a consensus, never from the simulation.
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
from spa.io.star import Block

BINDING_DOMAIN = ("A", 330, 528)
PIXEL_SIZE, BOX = 4.0, 64
FOCUS_SHARE = 0.985
"""Share of the voxels that are not in a focused mask before it is extended: the true maps differ least there."""
DIAMETERS = {"spike": 200.0, "channel": 150.0, "one": 200.0}
SYMMETRY = {"spike": "C1", "channel": "C4", "one": "C1"}
HEAD = ("", "particles", "adjusted Rand", "shares", "CPU s", "wall s", "peak GiB", "says")


def main() -> None:
    """Simulate, run, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--case", nargs="+", choices=tuple(DIAMETERS), default=list(DIAMETERS))
    parser.add_argument("--snr", type=float, default=0.3)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--iter", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--j", default="2")
    parser.add_argument("--o", default="")
    parser.add_argument("--relion", action="store_true", help="run relion_refine at the consensus poses, too")
    parser.add_argument("--relion_global", action="store_true", help="and with its global search: hours")
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    arguments, further = parser.parse_known_args()
    stop_jobs_on_sigterm()
    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in arguments.case:
            folder = Path(arguments.o or scratch).resolve() / case
            arguments.now = case
            if not (folder / "reference.mrc").exists():
                simulate(folder, arguments)
            title = f"{case}, {BOX} px of {PIXEL_SIZE:g} Å, SNR {arguments.snr:g}"
            tables.append(f"{title}\n{report.aligned([HEAD, *rows(folder, arguments, further)])}")
            print(tables[-1], flush=True)
    if arguments.save:
        report.save("class3d_cpu.txt", "benchmarks.jobs.class3d", "\n\n".join(tables))


def rows(folder: Path, arguments: argparse.Namespace, further: list[str]) -> list[tuple[str, ...]]:
    """The rows of a case."""
    if arguments.now == "one":
        return [classified("spa --repeats 2", folder, arguments, ["--repeats", "2", *further])]
    found = [classified(f"spa {' '.join(further)}".strip(), folder, arguments, further)]
    consensus = ["--i", align(folder, arguments), "--skip_align"]
    found.append(classified("spa --skip_align", folder, arguments, [*consensus, *further]))
    if arguments.now == "channel":
        focused = [*consensus, "--solvent_mask", focus(folder), *further]
        found.append(classified("spa --skip_align, focused", folder, arguments, focused))
    if arguments.relion:
        found.append(by_relion("relion_refine --skip_align", folder, arguments, consensus))
    if arguments.relion_global:
        found.append(by_relion("relion_refine", folder, arguments, ["--firstiter_cc"]))
    return found


def align(folder: Path, arguments: argparse.Namespace) -> str:
    """The particles with the poses that one map of all gives."""
    if not (folder / "consensus/run_data.star").exists():
        words = flags(arguments)
        for name in ("--K", "--iter", "--tau2_fudge"):
            at = words.index(name)
            del words[at : at + 2]
        subprocess.run(
            [*SPA, "refine3d", "--o", "consensus/run", "--quiet", "--j", arguments.j, *words], cwd=folder, check=True
        )
    return "consensus/run_data.star"


def focus(folder: Path) -> str:
    """A mask of where the true maps, low-passed, differ most."""
    first, second = (mrc.read_volume(path)[0] for path in sorted((folder / "data").glob("truth_map?.mrc")))
    difference = abs(low_pass(first - second, PIXEL_SIZE, 15.0))
    mrc.write_volume(folder / "difference.mrc", difference, PIXEL_SIZE)
    level = str(float(np.quantile(difference, FOCUS_SHARE)))
    words = ["--i", "difference.mrc", "--o", "focus.mrc", "--ini_threshold", level]
    words += ["--extend_inimask", "1", "--width_soft_edge", "3"]
    subprocess.run([*SPA, "mask", *words, "--quiet"], cwd=folder, check=True)
    return "focus.mrc"


def simulate(folder: Path, arguments: argparse.Namespace) -> None:
    """Particles in FOLDER/data and the mean of their states, to 40 Å, in FOLDER/reference.mrc."""
    folder.mkdir(parents=True, exist_ok=True)
    models, shares = states(folder, arguments.models.resolve(), arguments.now)
    command = [*SPA, "simulate", "--o", "data", "--nr_particles", str(arguments.particles), "--box", str(BOX)]
    command += [
        "--angpix",
        str(PIXEL_SIZE),
        "--particle_diameter",
        str(DIAMETERS[arguments.now]),
        "--snr",
        str(arguments.snr),
    ]
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


def classified(name: str, folder: Path, arguments: argparse.Namespace, further: list[str]) -> tuple[str, ...]:
    """The row of a run of ours."""
    command = [*SPA, "class3d", "--quiet", *told(name, arguments, further)]
    cost = measured(command, cwd=folder)
    rootname = f"{folder_of(name)}/run"
    said = "one state" if "one state" in (folder / f"{rootname}.err").read_text() else ""
    return (name, *result(folder, star.read(folder / f"{rootname}_data.star")["particles"]), *costs(cost), said)


def by_relion(name: str, folder: Path, arguments: argparse.Namespace, further: list[str]) -> tuple[str, ...]:
    """The row of relion_refine on the same particles."""
    (folder / folder_of(name)).mkdir(exist_ok=True)
    command = ["relion_refine", *told(name, arguments, further), "--oversampling", "1", "--dont_check_norm"]
    cost = measured(command, cwd=folder)
    path = folder / f"{folder_of(name)}/run_it{arguments.iter:03d}_data.star"
    return (name, *result(folder, star.read(path)["particles"]), *costs(cost), "")


def told(name: str, arguments: argparse.Namespace, further: list[str]) -> list[str]:
    """The flags of a run; what `further` gives replaces what all are told."""
    common = flags(arguments)
    for word in further:
        if word.startswith("--") and word in common:
            at = common.index(word)
            del common[at : at + 2]
    rest = ["--random_seed", str(arguments.seed), "--j", arguments.j, "--o", f"{folder_of(name)}/run"]
    return [*common, *rest, *further]


def folder_of(name: str) -> str:
    """The folder of a row's run."""
    return name.replace(" ", "_").replace(",", "")


def flags(arguments: argparse.Namespace) -> list[str]:
    """What both programs are told."""
    words = ["--i", "data/particles.star", "--ref", "reference.mrc", "--ini_high", "40", "--K", "2", "--ctf"]
    words += ["--iter", str(arguments.iter), "--tau2_fudge", "4", "--flatten_solvent", "--zero_mask"]
    words += ["--particle_diameter", str(DIAMETERS[arguments.now]), "--sym", SYMMETRY[arguments.now]]
    return [*words, "--healpix_order", "2", "--offset_range", "5", "--offset_step", "2"]


def result(folder: Path, found: Block) -> tuple[str, str, str]:
    """Number of particles, agreement with the truth and shares of the classes."""
    truth = star.read(folder / "data/truth_particles.star")["particles"]
    place = {name: i for i, name in enumerate(found.text("rlnImageName"))}
    order = [place[name] for name in truth.text("rlnImageName")]
    classes = found.floats("rlnClassNumber").astype(int)[order]
    shares = np.bincount(classes, minlength=3)[1:] / len(classes)
    true = truth.floats("rlnClassNumber").astype(int)
    agreement = f"{adjusted_rand(classes, true):.3f}" if len(np.unique(true)) > 1 else ""
    return f"{len(classes)}", agreement, " ".join(f"{s:.2f}" for s in shares)


def costs(cost: object) -> tuple[str, str, str]:
    """CPU seconds, seconds and memory."""
    return f"{cost.cpu_seconds:.0f}", f"{cost.wall_seconds:.0f}", f"{cost.peak_gib:.2f}"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
