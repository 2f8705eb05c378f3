"""Loading and launching: compiled once, refused when the arguments are not what a kernel takes."""

from __future__ import annotations

import numpy as np
import pytest

from spa.kernels.loader import launch, raw_module, require
from tests.emulation import emulated_cupy


@pytest.fixture
def cupy():
    with emulated_cupy() as module:
        yield module


def test_a_module_is_compiled_once_for_each_set_of_defines(cupy):
    flat, solid = (("DIM", "2"),), (("DIM", "3"),)
    assert raw_module("slices", solid) is raw_module("slices", solid)
    assert raw_module("slices", solid) is not raw_module("slices", flat)


def test_launch_refuses_host_arrays_and_impossible_grids(cupy):
    kernel = raw_module("slices", (("DIM", "3"),)).get_function("extract_slices")
    with pytest.raises(TypeError, match="host memory"):
        launch(kernel, (1,), (np.zeros(3, np.float32),))
    with pytest.raises(ValueError, match="exceeds"):
        launch(kernel, (1, 70000), (cupy.zeros(3),))


def test_an_empty_grid_launches_nothing():
    launch(None, (0, 4), ())


@pytest.mark.parametrize(
    ("array", "error"),
    [
        ([1.0, 2.0], TypeError),
        (np.zeros(2), TypeError),
        (np.zeros((1, 2), np.float32), ValueError),
        (np.zeros(3, np.float32), ValueError),
        (np.zeros(4, np.float32)[::2], ValueError),
    ],
)
def test_require_names_the_wrong_argument(array, error):
    with pytest.raises(error, match="kx"):
        require("kx", array, np.float32, (2,), np.zeros(1))


def test_require_wants_one_device(cupy):
    on_device = cupy.zeros(2, np.float32)
    require("kx", on_device, np.float32, (2,), on_device)
    with pytest.raises(TypeError, match="same device"):
        require("kx", on_device, np.float32, (2,), np.zeros(2, np.float32))
