"""Pictures of classes: a gallery of 2D averages, and a summary of 3D classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

_KEPT, _LEFT = "#2e7d32", "#c0392b"
_WIDTH, _TITLE = 11.0, 0.5  # inches
_LONGEST_SHARE = 0.0005  # below which a share is given as less than that


def gallery(
    averages: NDArray[Any],
    numbers: ArrayLike,
    shares: ArrayLike,
    resolutions: ArrayLike,
    pixel_size: float,
    scores: ArrayLike | None = None,
    kept: ArrayLike | None = None,
    title: str | None = None,
) -> Figure:
    """Class averages, the largest first, each with its number, share (%) and resolution (Å).

    Parameters
    ----------
    averages : float (n, y, x).
    numbers : class number of each, (n,).
    shares : fraction of the particles in each, (n,).
    resolutions : Å, (n,); values that are not finite and positive are shown as a dash.
    pixel_size : Å.
    scores : (n,), shown and sorted by instead of the shares.
    kept : bool (n,); what is kept is framed green, the rest red and paler.

    Notes: every image has its own grey scale, from the 0.5th to the 99.8th percentile inside the circle that fits it.
    """
    share, resolution = np.asarray(shares, np.float64), np.asarray(resolutions, np.float64)
    number = np.asarray(numbers, np.int64)
    keys = share if scores is None else np.asarray(scores, np.float64)
    order = np.lexsort((number, -share, -keys))
    columns, rows = _layout(len(order))
    cell = _WIDTH / columns
    text = min(9.0, 6.2 * cell)  # points
    below = (2 if scores is None else 3) * text * 1.35 / 72
    figure, axes = _sheet(_WIDTH, rows * (cell + below) + _TITLE)
    for place, i in enumerate(order):
        row, column = divmod(place, columns)
        left, top = column * cell, rows * (cell + below) - row * (cell + below)
        square = (left + 0.04 * cell, left + 0.96 * cell, top - 0.94 * cell, top - 0.02 * cell)
        _average(axes, averages[i], square, None if kept is None else bool(np.asarray(kept)[i]))
        lines = [f"{number[i]}", f"{_percent(share[i])}  {_angstrom(resolution[i])}"]
        if scores is not None:
            lines.append(f"score {keys[i]:.2f}")
        axes.text(left + cell / 2, top - 0.97 * cell, "\n".join(lines), ha="center", va="top", fontsize=text)
    wide = f"{averages.shape[-1] * pixel_size:.0f} Å wide"
    words = title or f"{len(order)} classes by size: number, share of the particles, resolution; {wide}"
    figure.text(0.5, 1 - 0.14 / figure.get_figheight(), words, ha="center", va="top", fontsize=11)
    return figure


def classes3d(
    maps: NDArray[Any],
    pixel_size: float,
    share_history: ArrayLike,
    resolutions: ArrayLike | None = None,
    notes: Sequence[str] = (),
    first_iteration: int = 1,
) -> Figure:
    """Maps of 3D classes side by side, three central slices each, above the shares of the classes over the iterations.

    Parameters
    ----------
    maps : float (n_classes, box, box, box), axes (z, y, x); one grey scale for all of them.
    pixel_size : Å.
    share_history : fraction of the particles, (n_iterations, n_classes), from `first_iteration` on.
    resolutions : Å, (n_classes,), of the last iteration.
    notes : lines below the plot, such as what was found about stability.
    """
    history = np.atleast_2d(np.asarray(share_history, np.float64))
    n = len(maps)
    low, high = np.percentile(maps, [0.5, 99.9])
    width = max(6.5, min(1.9 * n + 0.8, 16.0))
    cell = (width - 0.8) / n
    lower = 2.4 + 0.2 * len(notes)
    figure = Figure(figsize=(width, 3 * cell + 0.75 + lower), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[3 * cell + 0.75, lower])
    upper_part, lower_part = parts
    grid = upper_part.subplots(3, n, squeeze=False)
    box = maps.shape[-1]
    for k in range(n):
        for axis in range(3):
            axes = grid[axis, k]
            image = np.take(maps[k], box // 2, axis=axis)
            axes.imshow(image, cmap="gray", origin="lower", vmin=float(low), vmax=float(high))
            axes.set(xticks=[], yticks=[])
            if k == 0:
                axes.set_ylabel(f"{'zyx'[axis]} = 0", fontsize=9)
        size = "" if resolutions is None else f", {_angstrom(float(np.asarray(resolutions)[k]))}"
        grid[0, k].set_title(f"class {k + 1}\n{_percent(history[-1, k])}{size}", fontsize=9, color=_colour(k))
    _bar(grid[2, 0], box, pixel_size)
    axes = lower_part.subplots()
    for k in range(n):
        axes.plot(
            first_iteration + np.arange(len(history)), 100 * history[:, k], marker="o", markersize=3, color=_colour(k)
        )
    axes.set(xlabel="iteration", ylabel="particles (%)", ylim=(0, max(5.0, 108 * float(history.max()))))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    if notes:
        lower_part.supxlabel("\n".join(notes), fontsize=9, ha="center")
    return figure


def _layout(n: int) -> tuple[int, int]:
    """(columns, rows) of a gallery of n images."""
    columns = int(np.clip(np.ceil(np.sqrt(1.6 * max(n, 1))), 4, 15))
    return columns, -(-max(n, 1) // columns)


def _sheet(width: float, height: float) -> tuple[Figure, Any]:
    """A figure with one bare set of axes, in inches from its lower left corner: hundreds of axes would take long."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(0, height), autoscale_on=False)
    return figure, axes


def _average(axes: Any, image: NDArray[Any], square: tuple[float, float, float, float], kept: bool | None) -> None:
    """One class average on its own grey scale in a square (left, right, bottom, top), framed by whether it is kept."""
    left, right, bottom, top = square
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    half = image.shape[0] / 2
    inside = (y - half) ** 2 + (x - half) ** 2 <= half**2
    low, high = np.percentile(image[inside], [0.5, 99.8])
    flat = not high > low  # an empty class
    limits = (0.0, 1.0) if flat else (float(low), float(high))
    shown = np.full_like(image, 0.35) if flat else image
    extent = (left, right, bottom, top)
    axes.imshow(shown, cmap="gray", origin="lower", extent=extent, vmin=limits[0], vmax=limits[1], aspect="auto")
    colour = "0.5" if kept is None else _KEPT if kept else _LEFT
    frame = Rectangle((left, bottom), right - left, top - bottom, edgecolor=colour, linewidth=0.5)
    frame.set_facecolor((1.0, 1.0, 1.0, 0.4 if kept is False else 0.0))
    if kept is not None:
        frame.set_linewidth(2.2)
    axes.add_patch(frame)
    if flat:
        axes.text((left + right) / 2, (bottom + top) / 2, "empty", ha="center", va="center", color="white", fontsize=8)


def _percent(share: float) -> str:
    if 0 < share < _LONGEST_SHARE:
        return "<0.05 %"
    return f"{100 * share:.1f} %"


def _angstrom(resolution: float) -> str:
    return f"{resolution:.1f} Å" if np.isfinite(resolution) and 0 < resolution < 900 else "–"


def _colour(k: int) -> str:
    return f"C{k % 10}"


def _bar(axes: Any, box: int, pixel_size: float) -> None:
    """A scale bar of a round length."""
    choices = [10, 20, 50, 100, 200, 500]
    length = max((c for c in choices if c <= 0.4 * box * pixel_size), default=choices[0])
    left, up = 0.06 * box, 0.07 * box
    axes.plot([left, left + length / pixel_size], [up, up], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.text(left, up + 0.03 * box, f"{length} Å", color="white", fontsize=8, va="bottom")
