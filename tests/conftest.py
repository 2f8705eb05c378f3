"""Fixtures shared by all tests: test data, an installed RELION, and the devices that kernels run on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.devices import device_named


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real and independently simulated data: SPA_DATA, else ../shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPA_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set SPA_DATA to the folder that holds sim_7cfn and the others")
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
    with device_named(request.param) as put:
        yield put
