"""The picture of a refinement that grows with it: resolution, half-map FSC and slices of the map by iteration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spa.io import mrc, plots, star

_SLICES = 5
_COLOURS = colormaps["viridis_r"]
_RESOLUTION, _ACCURACY = "#1565c0", "#c0392b"


@dataclass(frozen=True)
class Shown:
    """One iteration: resolution (Å), expected angular accuracy (degrees), FSC against frequency (1/Å), the map."""

    iteration: int
    resolution: float
    accuracy: float
    frequency: NDArray[np.float64]
    fsc: NDArray[np.float64]
    path: Path


def write(rootname: str, iteration: int) -> Path:
    """Draw ROOTNAME_progress.png from the files of all iterations up to this one; those that are gone are left out."""
    found = [_read(f"{rootname}_it{k:03d}_half1", k) for k in range(1, iteration + 1)]
    return plots.save(f"{rootname}_progress.png", figure([shown for shown in found if shown is not None]))


def _read(stem: str, iteration: int) -> Shown | None:
    path = Path(f"{stem}_model.star")
    if not path.exists():
        return None
    model = star.read(path)
    curve = model["model_class_1"]
    return Shown(
        iteration,
        model["model_general"].get_float("rlnCurrentResolution"),
        float(model["model_classes"].floats("rlnAccuracyRotations")[0]),
        curve.floats("rlnResolution"),
        curve.floats("rlnGoldStandardFsc"),
        Path(f"{stem}_class001.mrc"),
    )


def figure(iterations: list[Shown]) -> Figure:
    """Resolution and accuracy by iteration, the FSC of each, and central slices of the first half's map of a few."""
    figure = Figure(figsize=(10.5, 7))  # without a layout engine, which takes longer than all drawing
    FigureCanvasAgg(figure)
    left, right = (figure.add_axes((x, 0.46, 0.38, 0.46)) for x in (0.06, 0.58))
    _draw_resolution(left, iterations)
    _draw_fsc(right, iterations)
    there = [shown for shown in iterations if shown.path.exists()]
    places = {round(place) for place in np.linspace(0, len(there) - 1, _SLICES)} if there else set()
    for column, place in enumerate(sorted(places)):
        _draw_slice(figure.add_axes((0.01 + 0.198 * column, 0.02, 0.188, 0.3)), there[place])
    return figure


def _draw_resolution(axes: Any, iterations: list[Shown]) -> None:
    numbers = [shown.iteration for shown in iterations]
    axes.plot(numbers, [shown.resolution for shown in iterations], marker="o", markersize=4, color=_RESOLUTION)
    axes.set_xlabel("iteration")
    axes.set_ylabel("resolution, FSC = 0.143 (Å)", color=_RESOLUTION)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(numbers, [shown.accuracy for shown in iterations], marker="s", markersize=3.5, color=_ACCURACY, lw=1.1)
    other.set_ylabel("expected angular accuracy (°)", color=_ACCURACY)
    other.set_ylim(bottom=0)


def _draw_fsc(axes: Any, iterations: list[Shown]) -> None:
    for place, shown in enumerate(iterations):
        latest = place == len(iterations) - 1
        colour = "black" if latest else _COLOURS(0.15 + 0.75 * place / len(iterations))
        label = f"iteration {shown.iteration}" if latest or place == 0 else None
        axes.plot(shown.frequency[1:], shown.fsc[1:], color=colour, lw=2 if latest else 1.1, label=label)
    axes.axhline(0.143, color="0.45", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="0.45", linewidth=0.6)
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="FSC of the half maps, in the particle's sphere")
    axes.set_ylim(-0.15, 1.03)
    axes.set_xlim(0, iterations[-1].frequency[-1])
    plots.resolution_axis(axes, float(iterations[-1].frequency[-1]))
    axes.legend(frameon=False, fontsize=8)


def _draw_slice(axes: Any, shown: Shown) -> None:
    volume, _ = mrc.read_volume(shown.path)
    section = volume[len(volume) // 2]
    low, high = np.percentile(section, (1, 99.7))
    axes.imshow(section, origin="lower", cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    axes.set_axis_off()
    axes.set_title(f"iteration {shown.iteration}: {shown.resolution:.1f} Å", fontsize=9)
