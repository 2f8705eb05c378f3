"""Picks compared with true coordinates: which micrographs count, and the files that say how good the picks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa.io import pick_plots, plots
from spa.io.coordinates import Picks
from spa.io.name_matching import of_micrographs
from spa.io.pick_tables import numbers, write_evaluation
from spa.picking_evaluation import Curve, curve


@dataclass(frozen=True)
class Compared:
    """Picks and truth of all micrographs that have a truth.

    curve : None if there are no picks. offset : median, Angstrom. without_truth : micrographs with picks, but no
    truth, that are left out. missed : those with a truth and no picks, whose `n_missed` particles count as missed.
    """

    curve: Curve | None
    offset: float
    without_truth: list[str]
    missed: list[str]
    n_missed: int

    def warnings(self, truth: str, n_picked: int, n_true: int) -> list[str]:
        """Lines on the micrographs without a truth or without picks, of `n_picked` and `n_true`."""
        lines = []
        if self.without_truth:
            lines.append(f"{truth}: no truth for {of_micrographs(len(self.without_truth), n_picked)}")
        if self.missed:
            lines.append(
                f"{of_micrographs(len(self.missed), n_true)} with a truth failed or have no picks, as "
                f"{self.missed[0]}: their {self.n_missed} particles count as missed"
            )
        return lines

    def summary(self, truth: str, n_true: int, base: Path) -> str:
        """The result in a line."""
        found = self.curve
        if found is None:
            return f"nothing to evaluate: no picks in any of {n_true} micrograph{'' if n_true == 1 else 's'} of {truth}"
        return (
            f"precision {found.precision[0]:.3f}, recall {found.recall[0]:.3f}, F1 {found.f1[0]:.3f}, median offset "
            f"{self.offset:.1f} Å; best F1 {found.f1[found.best]:.3f} at {found.threshold[found.best]:.2f}; "
            f"wrote {base}.star and .png"
        )


def compare(
    base: Path, picks: Mapping[str, Picks], truth: Mapping[str, Picks], sizes: Mapping[str, float], distance: float
) -> Compared:
    """Compare picks with the truth, both by micrograph, and write tables and picture, named `base`.star and .png.

    sizes : pixel size of each micrograph, Angstrom. distance : Angstrom within which a pick matches.
    """
    centres = {name: numbers(truth[name])[0] for name in truth}
    nothing = (np.zeros((0, 2)), np.zeros(0))
    found = {name: numbers(picks[name]) if name in picks else nothing for name in truth}
    missed = [name for name in truth if len(centres[name]) and not len(found[name][1])]
    without = [name for name in picks if name not in truth]
    total, offset = None, 0.0
    if sum(len(score) for _, score in found.values()):
        total = curve([(*found[name], centres[name], sizes[name]) for name in truth], distance)
        offset = write_evaluation(base.with_name(base.name + ".star"), total, distance)
        plots.save(base.with_name(base.name + ".png"), pick_plots.evaluation(total, distance))
    return Compared(total, offset, without, missed, sum(len(centres[name]) for name in missed))
