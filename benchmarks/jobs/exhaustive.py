"""`spa refine3d` with tempering and pruning nearly off: what the search of the engine may lose against.

    python -m benchmarks.jobs.exhaustive FLAGS OF spa refine3d

The job takes no constants of the search, so its `make_engine` is replaced, for this process, by one that has them.
The dense level is as fine as --healpix_order, at most 7.5°; --auto_local_healpix_order stays what it is, and a local
search looks at a wide neighbourhood.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from unittest import mock

from spa.cli.main import run
from spa.em.settings import Search
from spa.jobs import refine3d

CONSTANTS: dict[str, float] = {
    "dense_order": 3,
    "temperature": 0.1,
    "mass": 0.9999,
    "dense_cap": 20_000,
    "level_cap": 20_000,
    "insertion_mass": 0.999,
    "insertion_cap": 20_000,
    "local_directions": 49,
    "local_psi": 3,
    "local_offset_radius": 4,
}


def exhaustive_search() -> Search:
    """The constants above; one that the engine does not have is a mistake in this file, and an error."""
    unknown = CONSTANTS.keys() - {field.name for field in fields(Search)}
    if unknown:
        raise SystemExit(f"benchmarks/jobs/exhaustive.py: spa.em.settings.Search has no {', '.join(sorted(unknown))}")
    return Search(**CONSTANTS)


def main() -> None:
    """Run the job."""
    with mock.patch.object(refine3d, "make_engine", partial(refine3d.make_engine, search=exhaustive_search())):
        sys.exit(run(["refine3d", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
