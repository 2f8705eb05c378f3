"""All benchmarks of jobs and files: python -m benchmarks.jobs [--save]

The refinements need the folders sim_7cfn and models of the test data (SPA_DATA, else ../shared/data beside the
checkout); without the models only the built-in phantom is refined.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.report import ROOT

DATA = Path(os.environ.get("SPA_DATA", ROOT.parent / "shared" / "data"))


def run(name: str, *arguments: str) -> None:
    """One benchmark in a process of its own, so that its peak memory is its own."""
    print(f"\n{name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.jobs.{name}", *arguments], check=True)


def main() -> None:
    """Run every benchmark whose data are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    save = ["--save"] if parser.parse_args().save else []
    run("star_io", *save)
    folder = DATA / "sim_7cfn"
    if folder.is_dir():
        run("refine3d", str(folder), "--j", "1", *save)
        run("scaling", str(folder), "--quick", *save)
    else:
        print(f"\nrefine3d, scaling: left out, no {folder}; set SPA_DATA to the folder that holds sim_7cfn")
    run("micrographs", *save)
    run("motioncorr", *save)
    run("ctffind", *save)
    run("pick", *save)
    run("locres", *save)
    run("sizes", "--quick", "--models", str(DATA / "models"), *save)


if __name__ == "__main__":
    main()
