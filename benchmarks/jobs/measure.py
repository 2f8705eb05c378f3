"""Time and memory of one program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SPA = (sys.executable, "-m", "spa.cli.main")


@dataclass(frozen=True)
class Cost:
    """What a program took: CPU seconds of all its threads and children, seconds by the clock, peak memory."""

    cpu_seconds: float
    wall_seconds: float
    peak_gib: float


class OutOfTime(Exception):
    """A program was stopped at its limit."""


def stop_jobs_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that the job it waits for is stopped with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def measured(command: list[str], cwd: Path | None = None, limit: float = 0.0) -> Cost:
    """Run a command and measure it alone: its resources are those the kernel reports when it ends.

    Parameters
    ----------
    limit : seconds after which it is told to stop; 0 for none.

    Raises
    ------
    OutOfTime
        If it was stopped at its limit.
    subprocess.CalledProcessError
        If it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd)
    alarm = threading.Timer(limit, process.terminate) if limit else None
    if alarm:
        alarm.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        if alarm:
            alarm.cancel()
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        if limit and wall >= limit:
            raise OutOfTime(f"stopped after {wall:.0f} s")
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 2**20)


def warm_up(threads: str) -> None:
    """One tiny simulation and refinement on so many threads, so that no case pays for compiling."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        job = ["--j", threads, "--random_seed", "1", "--quiet"]
        measured([*SPA, "simulate", "--o", str(data), "--nr_particles", "60", "--box", "32", "--angpix", "6", *job])
        refinement = ["--ref", str(data / "truth_map.mrc"), "--ini_high", "40", "--ctf", "--flatten_solvent"]
        refinement += ["--zero_mask", "--particle_diameter", "150", "--o", str(Path(folder) / "run")]
        measured([*SPA, "refine3d", "--i", str(data / "particles.star"), *refinement, *job])
