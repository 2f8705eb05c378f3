"""Fixtures shared by all tests: real test data, an installed RELION, and the devices a kernel test runs on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spa.kernels import backend


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real and independently simulated data (SPA_DATA, else ../shared/data beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPA_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set SPA_DATA to the folder that holds sim_7cfn, bgal_particles, ...")
    return folder


@pytest.fixture(scope="session")
def relion() -> Path:
    """Folder of the installed RELION programs."""
    program = shutil.which("relion_refine")
    if program is None:
        pytest.skip("relion_refine is not on PATH (Debian: apt-get install relion)")
    return Path(program).parent


@pytest.fixture(params=["cpu", "emulated", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """A function that places an array where the kernels of this run work: CPU, emulated GPU, real GPU.

    `spa.kernels.backend.to_host` brings results back from all three.
    """
    if request.param == "cpu":
        yield np.asarray
    elif request.param == "emulated":
        from tests.emulation import emulated_cupy

        with emulated_cupy() as cupy:
            yield cupy.asarray
    else:
        if not backend.gpu_available():
            if os.environ.get("SPA_REQUIRE_GPU") == "1":
                pytest.fail("SPA_REQUIRE_GPU=1, but CuPy finds no GPU")
            pytest.skip("no GPU (SPA_REQUIRE_GPU=1 makes this a failure)")
        yield backend.cupy.asarray
