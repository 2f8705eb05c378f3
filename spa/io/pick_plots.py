"""Pictures of picks: where they are in a micrograph, how many there are along the set, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import ndimage

from spa.picking_evaluation import Curve

Floats = NDArray[np.float64]

SIGMA, RANK = "σ", "mean rank, 0 to 1"
"""Units of figures of merit: of picks, and of what several sets of picks agree on."""

_COLOURS = ListedColormap(colormaps["plasma"](np.linspace(0.25, 1, 192)))
_BLUE, _RED, _GREEN, _GREY = "#1565c0", "#c0392b", "#2e7d32", "0.45"
_SMOOTH = 0.8  # pixels of the picture
_LONGEST = 620  # pixels of the micrograph as it is drawn
_SIDE = 7.2  # inches
_TICKS = 6  # each takes time to draw, and there is a picture for each micrograph


@dataclass(frozen=True)
class Shown:
    """A micrograph with its picks.

    image : float32 (rows, columns), shrunken. usable : bool, like it. step : micrograph pixels per pixel of it.
    centres : (n, 2), micrograph pixels. score : (n,). threshold : lowest score of a pick. diameter, pixel_size :
    Angstrom, of the particle and of a pixel of the micrograph. unit : of the scores.
    """

    image: NDArray[np.float32]
    usable: NDArray[np.bool_]
    step: float
    centres: Floats
    score: Floats
    threshold: float
    diameter: float
    pixel_size: float
    unit: str = SIGMA


def micrograph(shown: Shown, name: str) -> Figure:
    """A micrograph with a circle around each pick, coloured by its figure of merit; what is masked is hatched."""
    every = max(1, -(-max(shown.image.shape) // _LONGEST))
    image = ndimage.gaussian_filter(_binned(shown.image, every), _SMOOTH)
    usable = shown.usable[::every, ::every][: image.shape[0], : image.shape[1]]
    scale = shown.step * shown.pixel_size / 10  # nm per pixel of the image
    rows, columns = (every * n for n in image.shape)
    extent = (-0.5 * scale, (columns - 0.5) * scale, (rows - 0.5) * scale, -0.5 * scale)
    height = 0.95 + (_SIDE - 1.55) * rows / columns
    figure = Figure(figsize=(_SIDE, height))  # placed by hand: a layout engine would draw everything twice
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.55 / _SIDE, 0.5 / height, 1 - 1.55 / _SIDE, 1 - 0.95 / height))
    low, high = np.percentile(image[usable] if usable.any() else image, (0.5, 99.7))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    if not usable.all():
        tint = np.zeros((*usable.shape, 4), dtype=np.float32)
        tint[~usable] = (0.08, 0.40, 0.75, 0.38)
        axes.imshow(tint, extent=extent, interpolation="nearest")
    if len(shown.centres):
        size = np.full(len(shown.centres), shown.diameter / 10)
        circles = EllipseCollection(
            size,
            size,
            np.zeros(len(size)),
            units="xy",
            offsets=shown.centres * shown.pixel_size / 10,
            offset_transform=axes.transData,
            facecolors="none",
            linewidths=1.3,
            cmap=_COLOURS,
        )
        circles.set_array(shown.score)
        top = float(np.quantile(shown.score, 0.98))
        circles.set_clim(min(shown.threshold, float(shown.score.min())), max(top, shown.threshold + 1e-3))
        axes.add_collection(circles)
        bar = figure.add_axes((1 - 0.9 / _SIDE, 0.8 / height, 0.2 / _SIDE, 1 - 1.6 / height))
        figure.colorbar(circles, cax=bar, label=_merit(shown.unit), ticks=MaxNLocator(_TICKS))
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="nm")
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=_TICKS)
    masked = "" if usable.all() else f", {1 - shown.usable.mean():.0%} masked (blue)"
    picks = "1 pick" if len(shown.centres) == 1 else f"{len(shown.centres)} picks"
    axes.set_title(f"{name}: {picks} {_above(shown.threshold, shown.unit)}{masked}", fontsize=10)
    return figure


def overview(counts: Floats, threshold: Floats, score: list[Floats], unit: str = SIGMA) -> Figure:
    """Counts and figures of merit along the data set, each beside its histogram.

    counts, threshold : (n,), of each micrograph. score : of each micrograph those of its picks, in `unit`.
    """
    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, width_ratios=(3.2, 1), sharey="row")
    number = np.arange(1, len(counts) + 1)
    size = float(np.clip(1500 / max(len(number), 1), 3, 22))
    (axes, side), (lower, lower_side) = panels
    axes.scatter(number, counts, s=size, color=_BLUE)
    axes.axhline(float(np.median(counts)), color=_GREY, linewidth=0.8, linestyle="--")
    axes.set(ylabel="picks", ylim=(0, 1.08 * max(float(counts.max()), 1)), xlim=(0.3, len(number) + 0.7))
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
    lower.set(ylabel=_merit(unit), xlabel="micrograph")
    lower.legend(frameon=False, fontsize=8, ncols=2)
    side.set_xlabel("micrographs", fontsize=8)
    lower_side.set_xlabel("picks")
    for panel in (axes, lower):
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


def _merit(unit: str) -> str:
    return f"figure of merit ({unit})"


def _above(threshold: float, unit: str) -> str:
    """What a title says of the threshold."""
    if unit == SIGMA:
        return f"above {threshold:.2f} σ"
    return f"of a mean rank above {threshold:.2f}" if threshold > 0 else "in agreement"


def _binned(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means of blocks of pixels; what is left over at the end is left out."""
    if factor == 1:
        return image
    rows, columns = (n // factor * factor for n in image.shape)
    blocks = image[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)
