"""2D classification of a known mixture: how pure the classes are, and what they cost.

    python -m benchmarks.jobs.class2d MODELS [--each N[,N...]] [--K K] [--snr S] [--gradient] [--j N] [--o DIR] [--save]
                                             [flags of class2d]

MODELS is a folder with atomic models; particles of those named in SPECIMENS and of the built-in phantom are mixed with
a fifth of junk: noise, and noise with the blobs, rings and edges that contaminate micrographs. Purity is the share of
particles whose specimen is the commonest of their class, without the junk and with it as one more specimen. Compared
are images with classes, as often as there are images in an iteration times K. --gradient: a row of --grad beside.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured, stop_jobs_on_sigterm
from spa.io import mrc, star
from spa.io.star import Block, StarFile

SPECIMENS = ("3c91.pdb.gz", "1oel.pdb.gz", "6vsb.pdb.gz", "7l2i.cif.gz", "")
JUNK = 0.2
PIXEL_SIZE, BOX, DIAMETER = 4.0, 64, 200.0
HEAD = ("", "particles", "K", "in use", "purity", "with junk", "compared", "CPU s", "wall s", "peak GiB", "CPU s/it")


def main() -> None:
    """Simulate, run, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--each", default="500", help="particles of each specimen, one number or several, as 200,1000")
    parser.add_argument("--gradient", action="store_true", help="run --grad, too")
    parser.add_argument("--K", type=int, default=40)
    parser.add_argument("--iter", type=int, default=25)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--j", default="2")
    parser.add_argument("--o", default="")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments, further = parser.parse_known_args()
    stop_jobs_on_sigterm()
    rows = [HEAD]
    with tempfile.TemporaryDirectory() as scratch:
        for each in map(int, arguments.each.split(",")):
            folder = Path(arguments.o or scratch).resolve() / str(each)
            if not (folder / "particles.star").exists():
                mixture(folder, arguments.models.resolve(), each, arguments.snr, arguments.seed)
            rows.append(classified(folder, arguments, further))
            if arguments.gradient:
                rows.append(classified(folder, arguments, [*further, "--grad"]))
    table = report.aligned(rows)
    print(f"{report.header()}\n{table}")
    if arguments.save:
        report.save("class2d_cpu.txt", "benchmarks.jobs.class2d", table)


def mixture(folder: Path, models: Path, each: int, snr: float, seed: int) -> None:
    """Write FOLDER/particles.star: `each` particles of every specimen, and junk; rlnClassNumber is the specimen."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: list[dict[str, list[str]]] = []
    optics: Block | None = None
    for number, name in enumerate(SPECIMENS):
        part = f"specimen{number + 1}"
        command = [*SPA, "simulate", "--o", part, "--nr_particles", str(each), "--box", str(BOX), "--quiet"]
        command += ["--angpix", str(PIXEL_SIZE), "--particle_diameter", str(DIAMETER), "--snr", str(snr)]
        command += ["--random_seed", str(seed + number), *(["--model", str(models / name)] if name else [])]
        subprocess.run(command, cwd=folder, check=True)
        read = star.read(folder / part / "particles.star")
        optics, table = read["optics"], read["particles"]
        columns.append({label: table.text(label) for label in table.columns} | {"specimen": [str(number + 1)] * each})
    junk = round(JUNK * each * len(SPECIMENS))
    write_junk(folder / "junk.mrcs", junk, seed)
    like = columns[0]
    columns.append(
        {label: [like[label][i % each] for i in range(junk)] for label in like}
        | {"rlnImageName": [f"{i + 1:06d}@junk.mrcs" for i in range(junk)], "specimen": ["0"] * junk}
    )
    order = np.random.default_rng(seed).permutation(sum(len(c["specimen"]) for c in columns))
    joined = {label: [v for c in columns for v in c[label]] for label in columns[0]}
    joined = {label: [values[i] for i in order] for label, values in joined.items()}
    specimen = joined.pop("specimen")
    assert optics is not None
    for name, table in (("particles", joined), ("truth", joined | {"rlnClassNumber": specimen})):
        star.write(folder / f"{name}.star", StarFile([optics, Block.table("particles", table)]))


def write_junk(path: Path, n: int, seed: int) -> None:
    """Images without a protein: noise alone, and noise with a blob, a ring or an edge."""
    rng = np.random.default_rng((seed, 6))
    images = rng.normal(size=(n, BOX, BOX)).astype(np.float32)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    for i in range(n):
        across, up = rng.uniform(-12, 12, 2)
        radius = np.hypot(x - across, y - up)
        kind = i % 4
        if kind == 1:
            images[i] += rng.uniform(1, 3) * np.exp(-((radius / rng.uniform(4, 12)) ** 2))
        elif kind == 2:
            images[i] += rng.uniform(0.8, 2) * np.exp(-(((radius - rng.uniform(6, 16)) / 2) ** 2))
        elif kind == 3:
            angle = rng.uniform(0, 2 * np.pi)
            images[i] += rng.uniform(0.8, 2) * (x * np.cos(angle) + y * np.sin(angle) > rng.uniform(-10, 10))
    outside = np.hypot(x, y) > DIAMETER / 2 / PIXEL_SIZE
    for image in images:
        image -= image[outside].mean()
        image /= image[outside].std()
    mrc.write_stack(path, images, PIXEL_SIZE)


def classified(folder: Path, arguments: argparse.Namespace, further: list[str]) -> tuple[str, ...]:
    """The row of one classification."""
    command = [*SPA, "class2d", "--i", "particles.star", "--o", "run/run", "--K", str(arguments.K), "--ctf", "--quiet"]
    command += ["--iter", str(arguments.iter), "--flatten_solvent", "--zero_mask", "--offset_range", "5"]
    command += ["--offset_step", "2", "--psi_step", "10", "--particle_diameter", str(DIAMETER), "--j", arguments.j]
    cost = measured([*command, "--random_seed", str(arguments.seed), *further], cwd=folder)
    found = star.read(folder / "run/run_data.star")["particles"].floats("rlnClassNumber").astype(int)
    truth = star.read(folder / "truth.star")["particles"].floats("rlnClassNumber").astype(int)
    shares = np.bincount(found, minlength=arguments.K + 1)[1:] / len(found)
    return (
        " ".join(further) or "class2d",
        f"{len(found)}",
        f"{arguments.K}",
        f"{int((shares > 0.1 / arguments.K).sum())}",
        f"{purity(found[truth > 0], truth[truth > 0]):.3f}",
        f"{purity(found, truth):.3f}",
        f"{compared(folder / 'run/run.out', len(found)) * arguments.K:,}",
        f"{cost.cpu_seconds:.0f}",
        f"{cost.wall_seconds:.0f}",
        f"{cost.peak_gib:.2f}",
        f"{cost.cpu_seconds / arguments.iter:.1f}",
    )


def compared(log: Path, n_particles: int) -> int:
    """Images that all iterations of a job together have seen, from the lines of its log."""
    lines = re.findall(r"^iteration \d+: .*$", log.read_text().rsplit(" spa class2d ", 1)[-1], flags=re.MULTILINE)
    parts = [re.search(r", (\d+) particles,", line) for line in lines]
    return sum(int(part[1]) if part else n_particles for part in parts)


def purity(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the particles whose truth is the commonest of their class."""
    table = np.zeros((found.max() + 1, truth.max() + 1))
    np.add.at(table, (found, truth), 1)
    return float(table.max(1).sum() / len(found))


if __name__ == "__main__":
    main()
