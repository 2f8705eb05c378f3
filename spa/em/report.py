"""What an iteration says of itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.em.expectation import Step
from spa.em.maximisation import Maps
from spa.em.state import State
from spa.fsc import shell_to_resolution


@dataclass
class Iteration:
    """What an iteration did, for its log line and files.

    Attributes
    ----------
    median_angle, median_offset : by which poses moved, degrees and Å (NaN where they were not known before).
    candidates : poses scored per particle.
    """

    step: Step
    maps: Maps
    median_angle: float
    median_offset: float
    seconds: float
    candidates: float


def iteration_line(state: State, done: Iteration, box: int, pixel_size: float) -> str:
    """The line of an iteration."""
    last = done.step.levels[-1]
    search = f"{last.angular_step:.2f}° {last.offset_step * pixel_size:.2f} Å"
    moved = "" if np.isnan(done.median_offset) else f", moved {done.median_angle:.2f}° {done.median_offset:.2f} Å"
    parts = [
        f"resolution {shell_to_resolution(state.resolution_shell, box, pixel_size):.2f} Å",
        _classes(state) if state.n_classes > 1 else "",
        "" if done.step.subset is None else f"{len(done.step.subset)} particles",
        "own poses" if done.step.own_poses else f"{'local' if done.step.local else 'global'} search to {search}",
        f"current size {2 * done.step.kmax}{moved}",
        f"accuracy {state.accuracy_rotations:.2f}° {state.accuracy_offsets * pixel_size:.2f} Å",
        f"Pmax {state.ave_pmax:.2f}",
        f"{done.candidates:.0f} poses/particle",
        f"{done.seconds:.1f} s",
    ]
    return f"iteration {state.iteration}: " + ", ".join(part for part in parts if part)


def _classes(state: State) -> str:
    """What the line says of the classes."""
    share = state.pdf_class[0]
    used = int((share >= 0.1 / state.n_classes).sum())
    changed = f", {100 * state.class_changes:.0f} % changed class" if state.iteration > 1 else ""
    return f"{used} of {state.n_classes} classes in use, largest {100 * share.max():.1f} %{changed}"
