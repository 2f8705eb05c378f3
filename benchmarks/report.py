"""What every table of a benchmark shares: aligned columns, and a first line with machine, versions, commit and date.

python -m benchmarks.report FILE puts that line on top of a table that another program wrote.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np

from spa.io.files import write_text
from spa.options import available_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def header() -> str:
    """Processor, cores, versions, commit and date in one line."""
    threads = os.environ.get("NUMBA_NUM_THREADS")
    cores = f"{available_cores()} cores" + (f" (NUMBA_NUM_THREADS={threads})" if threads else "")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    return f"{processor()}, {cores}, {versions}, {commit()}, {datetime.date.today().isoformat()}"


def processor() -> str:
    """The name of the processor, as far as the machine tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout, and whether the program differs from it."""
    found = _git("rev-parse", "--short", "HEAD")
    if not found:
        return "no commit"
    return f"commit {found}" + (" with changes" if _git("status", "--porcelain", "--", "spa", "kernels", "cli") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def save(name: str, module: str, text: str) -> None:
    """Write a table into benchmarks/results, below the header line and the command that made it."""
    arguments = [f"FOLDER/{Path(word).name}" if os.sep in word else word for word in sys.argv[1:]]
    write_text(RESULTS / name, f"{header()}\npython -m {' '.join([module, *arguments])}\n\n{text.rstrip()}\n")


def main() -> None:
    """Put the header line on top of a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    write_text(path, f"{header()}\n{path.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
