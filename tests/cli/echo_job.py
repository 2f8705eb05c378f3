"""Repeat its options, or end in the way it is told to.

A job for the tests of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from spa.errors import InputError
from spa.job import Job
from spa.options import CommonOptions, UsageError, option


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """One option of every sort."""

    i: str = option(help="An input", role="input")
    o: str = option(help="Start of the outputs", role="rootname")
    count: int = option(3, help="A number", unit="px", bounds=(1, 10), group="Particles")
    angle: float | None = option(None, help="An angle", unit="deg", bounds=(-90, 90), group="Sampling")
    names: tuple[str, ...] = option((), help="Names", flag="--name", group="Particles")
    kind: str = option("plain", help="A choice", choices=("plain", "fancy"), group="Particles")
    norm: bool = option(True, help="On unless switched off", group="Corrections")
    ctf: bool = option(False, help="Off unless switched on", group="CTF")
    end: str = option("well", help="How to end", choices=("well", "input", "bug", "abort", "disk"), group="Compute")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "fancy" and not self.ctf:
            raise UsageError("--kind fancy: expected with --ctf")


def run(options: Options, job: Job) -> None:
    """Say the options and end."""
    job.say(f"{options.count} {options.angle} {options.names} {options.kind} {options.norm} {options.ctf}")
    if options.end == "input":
        raise InputError("particles.star: data_particles, row 3, column rlnDefocusU: expected a number")
    if options.end == "bug":
        raise ZeroDivisionError("nothing divides by zero")
    if options.end == "disk":
        raise OSError(28, "No space left on device", "out.mrc")
    if options.end == "abort":
        job.resume_from = job.path("_it003_optimiser.star")
        (job.control / "RELION_JOB_ABORT_NOW").touch()
    job.check_abort()
