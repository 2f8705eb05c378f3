"""All benchmarks of jobs and files: python -m benchmarks.jobs

The refinement needs the folder sim_7cfn of the test data (SPA_DATA, else ../shared/data beside the checkout).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DATA = Path(os.environ.get("SPA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def run(name: str, *arguments: str) -> None:
    """One benchmark in a process of its own, so that its peak memory is its own."""
    print(f"\n{name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.jobs.{name}", *arguments], check=True)


def main() -> None:
    """Run every benchmark whose data are there."""
    run("star_io")
    folder = DATA / "sim_7cfn"
    if folder.is_dir():
        run("refine3d", str(folder))
    else:
        print(f"\nrefine3d: left out, no {folder}; set SPA_DATA to the folder that holds sim_7cfn")


if __name__ == "__main__":
    main()
