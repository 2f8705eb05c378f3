"""Convert particles between cryoSPARC's .cs tables and STAR files, both ways.

Poses, shifts, classes, half sets, CTF with aberrations and magnification, optics and exposure groups, image names and
places in micrographs go over; what cannot is said in a line. The .cs files of one cryoSPARC job often hold only a part
(the other is called passthrough): give them with --passthrough, and they are joined by uid. On the way back,
--passthrough with the .cs file that the particles came from keeps all that a STAR file has no column for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spa.errors import InputError
from spa.io import star
from spa.io.cryosparc import Table, join, read_table, write_table
from spa.io.cryosparc_to_star import to_star
from spa.io.extraction_checks import refuse_replacing
from spa.io.particle_io import read_particles
from spa.io.star_to_cryosparc import to_table
from spa.job import Job
from spa.options import CommonOptions, UsageError, option

_SUFFIXES = (".cs", ".star")


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa convert`."""

    i: str = option(help="Particles: .cs (cryoSPARC) or .star", role="input")
    o: str = option(help="File to write: .star where --i is .cs, .cs where it is .star", role="file")
    passthrough: tuple[str, ...] = option(
        (), help="Further .cs file of the same particles, joined by uid; fields of --i come first", role="input"
    )
    flip_y: bool = option(
        False,
        flag=("--flip_y", "--inverty"),
        help="Turn coordinates upside down, for micrographs that cryoSPARC did not write",
        group="Particles",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = tuple(Path(path).suffix.lower() for path in (self.i, self.o))
        if sorted(given) != list(_SUFFIXES):
            raise UsageError(f"--i {self.i} --o {self.o}: expected one file that ends in .cs and one in .star")


def run(options: Options, job: Job) -> None:
    """Write the file `--o`."""
    refuse_replacing("--o", options.o, [options.i, *options.passthrough])
    others = [read_table(path) for path in options.passthrough]
    if Path(options.i).suffix.lower() == ".cs":
        _to_star(options, job, read_table(options.i), others)
    else:
        _to_cs(options, job, others)


def _to_star(options: Options, job: Job, table: Table, others: list[Table]) -> None:
    found = to_star(join(table, others), options.flip_y, job.warn)
    star.write(options.o, found)
    particles, optics = found["particles"], found["optics"]
    stack = particles.text("rlnImageName")[0].partition("@")[2]
    job.say(f"{options.o}: {len(particles)} particles in {len(optics)} optics group{'s'[: len(optics) > 1]}")
    if not Path(stack).exists():
        job.say(f"images are not found from here, as {stack}: run programs in the folder of the cryoSPARC project")
    elif not stack.endswith(".mrcs"):
        job.say(f"RELION reads stacks that end in .mrcs only: link {stack} to {stack}s, and so on, and convert again")


def _to_cs(options: Options, job: Job, others: list[Table]) -> None:
    particles = read_particles(options.i)
    if not len(particles):
        raise InputError(f"{options.i}: expected particles, found none")
    rows = to_table(particles, others, options.flip_y, job.warn)
    write_table(options.o, rows)
    slots = dict.fromkeys(name.partition("/")[0] for name in rows.dtype.names or () if "/" in name)
    job.say(f"{options.o}: {len(rows)} particles with {', '.join(slots)}")
