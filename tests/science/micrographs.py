"""A recipe for small simulated micrographs, and its object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.fourier import low_pass
from spa.grids import radius_grid
from spa.micrograph_scene import Recipe
from spa.particles import OpticsGroup
from spa.simulation import Projector

BOX, PIXEL = 32, 3.0


def recipe(**changes: Any) -> Recipe:
    """Micrographs of 192 rows and 256 columns, 3 Å/px, with ice, an even field and no lumps."""
    group = OpticsGroup(1, "opticsGroup1", PIXEL, BOX, 300.0, 2.7, 0.1)
    values: dict[str, Any] = {
        "shape": (192, 256),
        "pixel_size": PIXEL,
        "diameter": 60.0,
        "optics": [group],
        "defocus": (12000.0, 12000.0),
        "astigmatism": 0.0,
        "defocus_spread": 0.0,
        "phase_shift": (0.0, 0.0),
        "bfactor": 0.0,
        "fractions": (1.0,),
        "electrons": 400.0,
        "ice": 0.5,
        "ice_peak": 0.0,
        "carbon": 0.0,
        "contamination": 0.0,
        "seed": 3,
    }
    return Recipe(**{**values, **changes})


def blob() -> NDArray[np.float32]:
    """An asymmetric object within the particle circle, smooth to 8 Å."""
    volume = np.random.default_rng(1).gamma(1.0, size=(BOX, BOX, BOX)).astype(np.float32)
    volume[radius_grid(BOX, 3) > 9] = 0
    return low_pass(volume, PIXEL, 8.0)


def projector(scale: float = 1.0) -> Projector:
    """Projects `blob` times a factor."""
    return Projector(scale * blob()[None])
