"""Print a table of kernel speeds: `python -m benchmarks.kernels [--threads N] [--device cpu|gpu] [--output FILE]`."""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernels.cases import cases
from benchmarks.kernels.steerable import steerable_cases
from spa.kernels import backend

_HEADER = ("kernel", "size", "time", "GFLOP/s", "of sgemm", "GB/s", "of copy", "NumPy peer")
_SECONDS = 0.3


def best_time(run: Callable[[], Any], synchronise: Callable[[], Any], seconds: float = _SECONDS) -> float:
    """Shortest time of repeated runs (s), after one to warm up."""
    run()
    synchronise()
    best, spent = float("inf"), 0.0
    while spent < seconds:
        start = time.perf_counter()
        run()
        synchronise()
        taken = time.perf_counter() - start
        best, spent = min(best, taken), spent + taken
    return best


def ceilings(xp: Any, synchronise: Callable[[], Any]) -> tuple[float, float]:
    """This device's sgemm in GFLOP/s and its copy of 256 MB in GB/s (bytes read plus written)."""
    n = 2048 if xp is np else 8192
    a, b = xp.ones((n, n), np.float32), xp.ones((n, n), np.float32)
    source = xp.ones(2**26, np.float32)
    target = xp.empty_like(source)
    gemm = best_time(lambda: xp.matmul(a, b), synchronise)
    copy = best_time(lambda: xp.copyto(target, source), synchronise)
    return 2e-9 * n**3 / gemm, 2e-9 * source.nbytes / copy


def table(device: str) -> str:
    """Every case on `device` as aligned text."""
    xp = np if device == "cpu" else backend.cupy
    put = np.asarray if device == "cpu" else backend.cupy.asarray
    synchronise = (lambda: None) if device == "cpu" else backend.cupy.cuda.Device().synchronize
    flops, bandwidth = ceilings(xp, synchronise)
    rows = [_HEADER]
    for case in itertools.chain(cases(put), steerable_cases(put)):
        seconds = best_time(case.run, synchronise)
        peer = best_time(case.peer, lambda: None, 0.1) / case.peer_share
        gflops, gbytes = 1e-9 * case.flops / seconds, 1e-9 * case.traffic / seconds
        shares = f"{gflops:.1f}", f"{gflops / flops:.0%}", f"{gbytes:.1f}", f"{gbytes / bandwidth:.0%}"
        rows.append((case.kernel, case.size, f"{1e3 * seconds:.2f} ms", *shares, f"{peer / seconds:.1f} x"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    where = f"{platform.machine()}, {backend.threads()} threads" if device == "cpu" else gpu_name()
    note = "GB/s counts operands as if none stayed in cache; the peer is single-threaded NumPy."
    return "\n".join([f"{device}: {where}; sgemm {flops:.0f} GFLOP/s, copy {bandwidth:.1f} GB/s", note, *lines])


def gpu_name() -> str:
    """The name of the current GPU."""
    return str(backend.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the CPU, and the GPU where there is one")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    backend.set_threads(options.threads)
    if options.device == "gpu" and not backend.gpu_available():
        parser.error(f"no GPU: {backend.gpu_problem()}")
    devices = [options.device] if options.device else ["cpu", "gpu"] if backend.gpu_available() else ["cpu"]
    text = "\n\n".join(table(device) for device in devices) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
