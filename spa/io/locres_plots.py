"""Picture of a local resolution map: slices of the map in its colours, and how much of the volume has which."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator
from numpy.typing import NDArray

_COLOURS = ListedColormap(colormaps["turbo"](np.linspace(0.08, 0.93, 256)))  # without its dark ends
_BINS = 40
_OUTSIDE = 0.6  # grey of what does not count
_TINT = 0.3  # strength of the colour where the particle has no density
_MARGIN = 0.15  # around the particle, of its extent
_NARROWEST = 0.04  # range of colours, of the median


def summary(
    volume: NDArray[Any],
    resolution: NDArray[Any],
    counted: NDArray[np.bool_],
    lowest: float,
    pixel_size: float,
    global_resolution: float | None = None,
) -> Figure:
    """Central slices of a map coloured by local resolution, and the histogram of the voxels that count.

    Parameters
    ----------
    volume, resolution : float (box, box, box), axes (z, y, x); the resolution in Å.
    counted : bool (box, box, box), the particle; everything else is grey.
    lowest : Å, the value of voxels without resolution: named in the histogram, not drawn.
    pixel_size : Å.
    global_resolution : Å, of the whole map, or None.

    Notes: colours run from the 2nd to the 98th percentile, blue for the best.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1))
    known = resolution[counted & (resolution < lowest * 0.999)]
    norm = _limits(known if known.size else np.array([lowest]))
    low, high = np.percentile(volume, 50), np.percentile(volume[counted] if counted.any() else volume, 99.5)
    strength = (float(low), max(float(high), float(low) + 1e-12))
    view = _view(counted) * pixel_size
    panels = [figure.add_subplot(grid[0, axis]) for axis in range(3)]
    for axis, axes in enumerate(panels):
        _slice(axes, volume, resolution, counted, axis, pixel_size, view, strength, norm)
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=panels, shrink=0.85, pad=0.01, extend="both")
    bar.set_label("local resolution (Å)")
    _histogram(figure.add_subplot(grid[1, :]), known, int(counted.sum()), norm, global_resolution)
    return figure


def _limits(known: NDArray[Any]) -> Normalize:
    low, middle, high = (float(v) for v in np.percentile(known, [2, 50, 98]))
    half = max(high - low, _NARROWEST * middle) / 2
    return Normalize((low + high) / 2 - half, (low + high) / 2 + half)


def _view(counted: NDArray[np.bool_]) -> float:
    """Pixels from the centre to show: all that counts, and a margin."""
    half = counted.shape[0] // 2
    reach = 0
    for axis in range(3):
        places = np.flatnonzero(counted.any(axis=tuple(i for i in range(3) if i != axis)))
        reach = max(reach, int(abs(places - half).max(initial=0)))
    return float(min(half, (1 + _MARGIN) * reach) if reach else half)


def _slice(
    axes: Any,
    volume: NDArray[Any],
    resolution: NDArray[Any],
    counted: NDArray[np.bool_],
    axis: int,
    pixel_size: float,
    view: float,
    limits: tuple[float, float],
    norm: Normalize,
) -> None:
    """One central slice across `axis` (0 z, 1 y, 2 x): density is strength, resolution is colour."""
    half = volume.shape[0] // 2
    density, colour, inside = (np.take(a, half, axis=axis) for a in (volume, resolution, counted))
    ink = np.clip((density - limits[0]) / (limits[1] - limits[0]), 0, 1)[..., None] ** 0.7
    ink = np.where(inside[..., None], _TINT + (1 - _TINT) * ink, ink)
    image = 1 - ink * (1 - np.where(inside[..., None], _COLOURS(norm(colour))[..., :3], _OUTSIDE))
    first, last = (-half - 0.5) * pixel_size, (half - 0.5) * pixel_size
    axes.imshow(image, origin="lower", extent=(first, last, first, last), interpolation="bicubic")
    axes.set(xlim=(-view, view), ylim=(-view, view))
    names = [name for i, name in enumerate("zyx") if i != axis]
    axes.set_xlabel(f"{names[1]} (Å)", fontsize=9)
    axes.set_ylabel(f"{names[0]} (Å)", fontsize=9)
    axes.set_title(f"{'zyx'[axis]} = 0", fontsize=9)
    axes.tick_params(labelsize=7)


def _histogram(axes: Any, known: NDArray[Any], total: int, norm: Normalize, global_resolution: float | None) -> None:
    if known.size:
        first, last = (float(v) for v in np.percentile(known, [0.5, 99.5]))
        pad = max(0.02 * (last - first), 0.01 * first)
        share, edges = np.histogram(np.clip(known, first, last), _BINS, range=(first - pad, last + pad))
        centres = (edges[1:] + edges[:-1]) / 2
        axes.bar(centres, 100 * share / total, width=np.diff(edges), color=_COLOURS(norm(centres)))
        median = float(np.median(known))
        axes.axvline(median, color="black", linewidth=1.2, label=f"median {median:.2f} Å")
        if global_resolution is not None:
            label = f"whole map {global_resolution:.2f} Å"
            axes.axvline(global_resolution, color="0.35", linewidth=1.2, linestyle="--", label=label)
        axes.legend(frameon=False, fontsize=9, loc="best")
    axes.xaxis.set_major_locator(MaxNLocator(10))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xlabel("local resolution (Å)")
    axes.set_ylabel("voxels of the particle (%)")
    none = 100 * (1 - known.size / total) if total else 100.0
    axes.set_title(f"{none:.1f} % of the particle without local resolution" if none >= 0.05 else "", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
