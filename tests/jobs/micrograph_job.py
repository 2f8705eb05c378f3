"""Count the bytes of each micrograph.

A per-micrograph job for the tests of what such jobs share: what a file holds says how its processing ends.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from spa.errors import InputError
from spa.io.files import project_path, write_text
from spa.job import Job
from spa.map_job import Item, MicrographOptions, Row, map_micrographs
from spa.options import option


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """One option that matters to the result, and one file."""

    factor: int = option(1, help="What the count is multiplied with", group="Micrographs")
    gain: str | None = option(None, help="A file", role="input", group="Micrographs")


def process(item: Item, options: Options) -> Row:
    """Write the size of a file into another, or end as the file says."""
    text = item.path.read_text()
    with (Path(options.o) / "calls").open("a") as calls:
        calls.write(f"{item.path} {os.getpid()}\n")
    end(text, Path(options.o) / f"{item.stem}_tried")
    output = Path(options.o) / f"{item.stem}.txt"
    write_text(output, str(len(text)))
    write_text(output.with_name(f"{output.stem}_picture.png"), "a picture")
    return {"rlnCtfImage": project_path(output), "bytes": options.factor * len(text), "processed": 1.0}


def end(text: str, tried: Path) -> None:
    """What a file that holds one of these words does to its processing."""
    if text.startswith("slow"):
        time.sleep(float(text.split()[1]))
    if text == "damaged":
        raise InputError("truncated: 3 of 7 frames")
    if text == "bug":
        raise ZeroDivisionError("nothing divides by zero")
    if text == "exit":
        os._exit(7)
    if text == "kill" or (text == "kill once" and not tried.exists()):
        tried.parent.mkdir(parents=True, exist_ok=True)
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def run(options: Options, job: Job) -> None:
    """Process every micrograph."""
    map_micrographs(
        job,
        options,
        process,
        block="micrographs",
        column="rlnMicrographName",
        output="counted.star",
        optics=lambda group: {"rlnMicrographBinning": 2 * float(group["rlnVoltage"])},
    )
