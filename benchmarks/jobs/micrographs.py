"""Time and memory of the machinery of per-micrograph jobs over many small micrographs.

python -m benchmarks.jobs.micrographs [--n N] [--j J] [--save]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft

from benchmarks import report
from spa.io import mrc, star
from spa.io.star import Block, StarFile
from spa.job import Job
from spa.map_job import Item, MicrographOptions, Row, map_micrographs

SIZE = 512
OPTICS = {"rlnVoltage": 300, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1, "rlnMicrographPixelSize": 1.5}


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """Nothing but what every such job has."""


def process(item: Item, options: Options) -> Row:
    """Halve an image by cropping its transform, as a stand-in for a job; the row says how large this process is."""
    image = mrc.read(item.path)[0][0]
    transform = scipy.fft.rfft2(image)
    kept = np.concatenate([transform[: SIZE // 4], transform[-SIZE // 4 :]])[:, : SIZE // 4 + 1]
    mrc.write_stack(Path(options.o) / f"{item.stem}.mrc", scipy.fft.irfft2(kept), 2 * item.pixel_size)
    return {"process": os.getpid(), "MiB": resident(os.getpid())}


def resident(process_id: int) -> float:
    """Memory of a process in MiB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_input(folder: Path, n: int) -> Path:
    """`n` names of one image, and their STAR file."""
    image = folder / "image.mrc"
    mrc.write_stack(image, np.random.default_rng(1).normal(size=(SIZE, SIZE)), 1.5)
    names = [str(folder / f"in/m{i:06d}.mrc") for i in range(n)]
    (folder / "in").mkdir()
    for name in names:
        os.link(image, name)
    optics = {"rlnOpticsGroup": [1], **{name: [value] for name, value in OPTICS.items()}}
    table = {"rlnMicrographName": names, "rlnOpticsGroup": [1] * n}
    star.write(
        folder / "micrographs.star", StarFile([Block.table("optics", optics), Block.table("micrographs", table)])
    )
    return folder / "micrographs.star"


def main() -> None:
    """Run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--j", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    arguments = parser.parse_args()
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append((time.perf_counter(), resident(os.getpid())))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = Options(i=str(write_input(folder, arguments.n)), o=f"{folder}/out/", j=arguments.j, quiet=True)
        watch = threading.Thread(target=sample)
        watch.start()
        start = time.perf_counter()
        with Job("micrographs", options) as job:
            table = map_micrographs(
                job, options, process, block="micrographs", column="rlnMicrographName", output="out.star"
            )
        seconds = time.perf_counter() - start
        over.set()
        watch.join()
    workers = table.floats("MiB")
    rows = []
    for low, high in ((0.0, 0.1), (0.45, 0.55), (0.9, 1.0)):
        part = workers[int(low * len(workers)) : int(high * len(workers))]
        own = [memory for when, memory in samples if low <= (when - start) / seconds <= high]
        rows.append([f"{low:.0%} to {high:.0%}", f"{max(own):.0f}", f"{part.max():.0f}"])
    n_workers = len(set(table.text("process")))
    text = (
        f"{arguments.n} micrographs of {SIZE} x {SIZE}, {n_workers} processes: {seconds:.1f} s, "
        f"{arguments.n / seconds:.0f} a second\n\n"
        + report.aligned([["part of the run", "job MiB", "largest worker MiB"], *rows])
    )
    print(f"{report.header()}\n{text}")
    if arguments.save:
        report.save("micrographs_cpu.txt", "benchmarks.jobs.micrographs", text)


if __name__ == "__main__":
    main()
