"""Pictures of the picks of a set: how many there are along it, and how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spa.picking_evaluation import Curve

Floats = NDArray[np.float64]

SIGMA, RANK = "σ", "mean rank, 0 to 1"
"""Units of figures of merit: of picks, and of what several sets of picks agree on."""

_BLUE, _RED, _GREEN, _GREY = "#1565c0", "#c0392b", "#2e7d32", "0.45"
_PLACES = {"left": 0.08, "right": 0.985, "bottom": 0.095, "top": 0.92, "wspace": 0.04, "hspace": 0.25}


def overview(counts: Floats, threshold: Floats, score: list[Floats], unit: str = SIGMA) -> Figure:
    """Counts and figures of merit along the data set, each beside its histogram.

    counts, threshold : (n,), of each micrograph. score : of each micrograph those of its picks, in `unit`.
    """
    figure = Figure(figsize=(10.4, 5.6))  # placed by hand: a layout engine would draw everything twice
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, width_ratios=(3.2, 1), sharey="row", gridspec_kw=_PLACES)
    number = np.arange(1, len(counts) + 1)
    size = float(np.clip(1500 / max(len(number), 1), 3, 22))
    (axes, side), (lower, lower_side) = panels
    axes.scatter(number, counts, s=size, color=_BLUE)
    axes.axhline(float(np.median(counts)), color=_GREY, linewidth=0.8, linestyle="--")
    axes.set(ylabel="picks", ylim=(0, 1.08 * max(float(counts.max()), 1)))
    side.hist(counts, bins=np.linspace(0, max(float(counts.max()), 1), 31), orientation="horizontal", color=_BLUE)
    some = np.array([len(values) > 0 for values in score])
    if some.any():
        low, middle, high = (
            np.array([np.quantile(values, q) for values in score if len(values)]) for q in (0.1, 0.5, 0.9)
        )
        lower.vlines(number[some], low, high, color=_BLUE, alpha=0.4, linewidth=min(4, 0.2 * size + 0.4))
        lower.scatter(number[some], middle, s=size, color=_BLUE, label="median, and 10 to 90 %")
        lower_side.hist(np.concatenate(score), bins=40, orientation="horizontal", color=_BLUE)
    lower.scatter(number, threshold, s=size, color=_RED, marker="_", label="threshold")
    lower.set(ylabel=merit(unit), xlabel="micrograph")
    lower.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.97))
    side.set_xlabel("micrographs", fontsize=8)
    lower_side.set_xlabel("picks")
    for panel in (axes, lower):
        panel.set_xlim(0.3, len(number) + 0.7)
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{int(counts.sum()):,} picks in {len(counts):,} micrographs, {np.median(counts):.0f} in the median one"
    )
    return figure


def evaluation(curve: Curve, distance: float) -> Figure:
    """Precision, recall and F1 over the threshold, precision over recall, and how far the centres are off."""
    figure = Figure(figsize=(12.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    first, second, third = panels
    for values, colour, label in (
        (curve.precision, _BLUE, "precision"),
        (curve.recall, _GREEN, "recall"),
        (curve.f1, "black", "F1"),
    ):
        first.plot(curve.threshold, values, color=colour, linewidth=1.6, label=label)
    best = curve.best
    first.axvline(curve.threshold[best], color=_GREY, linewidth=0.9, linestyle="--")
    first.set(xlabel="threshold (figure of merit)", ylim=(0, 1.04), xlim=(curve.threshold[0], curve.threshold[-1]))
    first.legend(frameon=False, fontsize=9, loc="lower left")
    first.set_title(f"best F1 {curve.f1[best]:.3f} at {curve.threshold[best]:.3g}", fontsize=10)
    second.plot(curve.recall, curve.precision, color=_BLUE, linewidth=1.6)
    second.plot(curve.recall[0], curve.precision[0], "o", color=_RED, markersize=5, label="all picks")
    second.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.04))
    second.legend(frameon=False, fontsize=9, loc="lower left")
    second.set_title(f"{curve.n_picks:,} picks, {curve.n_truth:,} in the truth", fontsize=10)
    if len(curve.offset):
        third.hist(curve.offset, bins=np.linspace(0, distance, 41), color=_BLUE)
        third.axvline(float(np.median(curve.offset)), color=_RED, linewidth=1.2)
        third.set_title(f"median offset {np.median(curve.offset):.1f} Å", fontsize=10)
    third.set(xlabel="distance from the truth (Å)", ylabel="picks", xlim=(0, distance))
    for panel in panels:
        panel.grid(alpha=0.25, linewidth=0.5)
    return figure


def merit(unit: str) -> str:
    """How an axis of figures of merit is called."""
    return f"figure of merit ({unit})"
