"""The data sets of benchmarks.jobs.sizes: structures, boxes, noise and numbers of particles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spa.io.model import read_model
from spa.phantom import assembly
from spa.symmetry import operators

FILL = 0.6
"""Diameter of the model in boxes."""
CIRCLE = 1.1
"""Diameter of the particle circle in diameters of the model, as `spa simulate` has it."""


@dataclass(frozen=True)
class Structure:
    """What is simulated: a model file (none: the built-in phantom) and the symmetry it is refined with.

    The deposited models stand as the symmetry wants them: the main axis along z, a two-fold axis along x.
    """

    file: str
    sym: str


STRUCTURES = {
    "phantom": Structure("", "C1"),
    "3c91": Structure("3c91.pdb.gz", "D7"),
    "6vsb": Structure("6vsb.pdb.gz", "C1"),
    "7l2i": Structure("7l2i.cif.gz", "C4"),
}


@dataclass(frozen=True)
class Case:
    """One data set.

    Attributes
    ----------
    snr : variance of the signal over that of the noise inside the particle circle, at every box size.
    exhaustive : refine it by the nearly exhaustive search as well.
    """

    structure: str
    box: int
    snr: float
    nr_particles: int
    exhaustive: bool = False

    @property
    def name(self) -> str:
        """For --only and the table."""
        return f"{self.structure}-{self.box}-{self.snr:g}-{self.nr_particles}"

    @property
    def sym(self) -> str:
        """Point group it is refined with."""
        return STRUCTURES[self.structure].sym


QUICK = (
    Case("phantom", 64, 0.2, 150, exhaustive=True),
    Case("phantom", 64, 0.2, 500),
    Case("phantom", 128, 0.2, 500),
    Case("3c91", 64, 0.2, 500),
    Case("6vsb", 64, 0.2, 500),
    Case("7l2i", 64, 0.2, 500),
)
"""About ten minutes on one core."""

FULL = (
    *(Case(name, 64, 0.2, 500, exhaustive=True) for name in STRUCTURES),
    *(Case(name, 128, 0.2, 200, exhaustive=True) for name in STRUCTURES),
    *(Case(name, 64, 0.02, 2000, exhaustive=True) for name in ("phantom", "6vsb")),
    *(Case(name, 64, 0.02, 2000) for name in ("3c91", "7l2i")),
    *(Case(name, 64, snr, 2000) for name in STRUCTURES for snr in (0.05, 0.1, 0.2)),
    *(Case(name, 128, 0.1, 2000) for name in STRUCTURES),
    *(Case(name, 256, 0.1, 2000) for name in STRUCTURES),
    *(Case(name, box, 0.02, 2000) for name in ("phantom", "3c91") for box in (128, 256)),
    *(Case(name, 64, 0.1, 10000) for name in STRUCTURES),
    *(Case(name, 128, 0.02, 10000) for name in ("phantom", "3c91")),
    Case("phantom", 256, 0.02, 10000),
)
"""Small ones first; hours on one core."""


def model_diameter(case: Case, models: Path) -> float:
    """Largest extent of the structure in Å, from its centre both ways."""
    structure = STRUCTURES[case.structure]
    atoms = read_model(models / structure.file).centred() if structure.file else assembly(operators("C1"))
    return 2 * atoms.radius()
