"""The vectorised elementary functions keep the accuracy that their docstrings state."""

from __future__ import annotations

import numpy as np
from numba import njit

from spa.kernels.elementary import exponential, sincos_turns


@njit
def tabulate(x, sine, cosine, power):
    for i in range(x.size):
        sine[i], cosine[i] = sincos_turns(x[i])
        power[i] = exponential(np.float32(50) * x[i])


def test_accuracy():
    x = np.linspace(-2, 1.6, 100_001).astype(np.float32)
    sine, cosine, power = np.empty((3, x.size), np.float32)
    tabulate(x, sine, cosine, power)
    angle = 2 * np.pi * x.astype(np.float64)
    assert np.abs(sine - np.sin(angle)).max() < 3e-7
    assert np.abs(cosine - np.cos(angle)).max() < 3e-7
    argument = (np.float32(50) * x).astype(np.float64)
    seen = argument > -87
    assert np.abs(power[seen] / np.exp(argument[seen]) - 1).max() < 4e-7
    assert not power[~seen].any()


def test_exponential_of_minus_infinity_is_zero():
    out = np.empty((3, 1), np.float32)
    tabulate(np.array([-1e30], np.float32), out[0], out[0], out[2])
    assert out[2, 0] == 0
