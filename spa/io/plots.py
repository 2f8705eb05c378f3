"""Figures of a refinement: FSC, Guinier plot, slices, orientations; `save` writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spa.io.files import write_whole

DPI = 120
_GREY, _ACCENT = "0.45", "#c0392b"
_CURVE_STYLES = {
    "unmasked": ("#2e7d32", 1.3),
    "masked": ("#1565c0", 1.3),
    "phase-randomised, masked": (_ACCENT, 1.3),
    "corrected": ("black", 2.2),
}


def save(path: str | os.PathLike[str], figure: Figure) -> Path:
    """Write a figure as PNG (or what the suffix says), whole or not at all; InputError if it cannot be."""
    kind = Path(path).suffix.lstrip(".") or "png"
    write_whole(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=DPI))
    return Path(path)


def fsc(
    curves: Mapping[str, NDArray[Any]],
    box: int,
    pixel_size: float,
    shell: int | None = None,
    threshold: float = 0.143,
    randomise_from: int | None = None,
    title: str = "Fourier shell correlation",
) -> Figure:
    """FSC curves against spatial frequency, with the resolution marked.

    Parameters
    ----------
    curves : label -> FSC per shell, (box // 2 + 1,).
    box, pixel_size : pixels, Å.
    shell : the last shell above `threshold`, drawn with its resolution in Å; None or 0 for none.
    randomise_from : first shell with randomised phases, drawn as a dotted line.
    """
    figure, axes = _figure(7.2, 4.6)
    frequency = np.arange(box // 2 + 1) / (box * pixel_size)
    for label, curve in curves.items():
        colour, width = _CURVE_STYLES.get(label, (None, 1.6))
        axes.plot(frequency[1:], curve[1:], color=colour, linewidth=width, label=label, zorder=3 - width / 3)
    axes.axhline(0, color=_GREY, linewidth=0.6)
    axes.axhline(threshold, color=_GREY, linewidth=0.8, linestyle="--")
    axes.text(frequency[-1], threshold + 0.012, f"{threshold:g}", ha="right", color=_GREY, fontsize=8)
    if randomise_from:
        axes.axvline(
            frequency[randomise_from],
            color=_ACCENT,
            linewidth=0.9,
            linestyle=":",
            label=f"phases random beyond {1 / frequency[randomise_from]:.1f} Å",
        )
    if shell:
        axes.axvline(
            frequency[shell],
            color="black",
            linewidth=0.9,
            linestyle="--",
            label=f"FSC = {threshold:g} at {1 / frequency[shell]:.2f} Å",
        )
    axes.set(
        xlabel="spatial frequency (1/Å)",
        ylabel="Fourier shell correlation",
        xlim=(0, frequency[-1]),
        ylim=(min(-0.1, *(float(curve[1:].min()) for curve in curves.values())), 1.05),
    )
    resolution_axis(axes, float(frequency[-1]))
    axes.set_title(title)
    axes.legend(frameon=False, fontsize=8, loc="upper right" if _high_left(curves) else "best")
    return figure


def guinier(
    inverse_d2: NDArray[Any],
    curves: Mapping[str, NDArray[Any]],
    fit: tuple[float, float] | None = None,
    fit_range: tuple[float, float] = (10.0, 0.0),
    bfactor: float | None = None,
    no_amplitude: float = -99.0,
) -> Figure:
    """Guinier plot: ln of the shell amplitudes against 1/d².

    Parameters
    ----------
    inverse_d2 : 1/Å², one per shell.
    curves : label -> ln(amplitude) per shell; values of `no_amplitude` are left out.
    fit : (slope, intercept) of the straight line, drawn over `fit_range` (low, high resolution in Å, 0 for
    the end).
    bfactor : Å², written beside the line.
    """
    figure, axes = _figure(7.2, 4.6)
    colours = {
        "original": "black",
        "MTF corrected": "#2e7d32",
        "FSC weighted": "#1565c0",
        "sharpened": _ACCENT,
    }
    shown = inverse_d2 > 0
    for label, curve in curves.items():
        used = shown & (curve > no_amplitude)
        axes.plot(inverse_d2[used], curve[used], color=colours.get(label), linewidth=1.6, label=label)
    if fit is not None:
        stop = fit_range[1] ** -2 if fit_range[1] > 0 else float(inverse_d2[-1])
        ends = np.array([fit_range[0] ** -2, stop])
        note = "fit" if bfactor is None else f"fit, B = {bfactor:.0f} Å²"
        axes.plot(ends, fit[0] * ends + fit[1], color=_GREY, linestyle="--", linewidth=1.4, label=note)
    axes.set(xlabel="1 / d² (1/Å²)", ylabel="ln (mean amplitude of the shell)", xlim=(0, inverse_d2[-1]))
    resolution_axis(axes, float(inverse_d2[-1]), power=2)
    axes.set_title("Guinier plot")
    axes.legend(frameon=False, fontsize=9)
    return figure


def slices(
    maps: Mapping[str, NDArray[Any]],
    pixel_size: float,
    contour: NDArray[Any] | None = None,
    same_scale: bool = False,
) -> Figure:
    """Central slices of maps, a row per map, a column per axis, with the 0.5 contour of a mask.

    Parameters
    ----------
    maps : label -> float (box, box, box), axes (z, y, x), one box.
    contour : mask (box, box, box) drawn in red, or None.
    same_scale : one grey scale for all maps, else one for each.
    """
    n = len(maps)
    figure = Figure(figsize=(8.4, 2.75 * n + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n, 3, squeeze=False)
    everything = np.concatenate([volume.ravel() for volume in maps.values()]) if same_scale else None
    for row, (label, volume) in zip(grid, maps.items(), strict=True):
        low, high = np.percentile(volume if everything is None else everything, [0.5, 99.9])
        for axis, axes in enumerate(row):
            _slice(axes, volume, axis, pixel_size, (float(low), float(high)), contour)
        row[0].set_ylabel(f"{label}\n{row[0].get_ylabel()}")
    return figure


def orientations(rot: NDArray[Any], tilt: NDArray[Any], title: str = "Orientation distribution") -> Figure:
    """Viewing directions on the sphere in Mollweide projection: particles per equal solid angle.

    `rot`, `tilt` (n,) in degrees; the colour is relative to an even distribution (1 everywhere).
    """
    bins = max(6, min(36, round(np.sqrt(len(rot) / 8))))
    longitude = (np.asarray(rot, dtype=np.float64) + 180) % 360 - 180
    height = np.cos(np.radians(np.asarray(tilt, dtype=np.float64)))
    counts, across, up = np.histogram2d(longitude, height, bins=(2 * bins, bins), range=((-180, 180), (-1, 1)))
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection="mollweide")
    # cells are drawn in pieces of 1 degree: the projection would draw the edges of a large one straight
    meridians, parallels = np.radians(np.arange(-180, 181)), np.radians(np.arange(-90, 91))
    column = np.digitize((meridians[1:] + meridians[:-1]) / 2, np.radians(across)) - 1
    row = np.digitize(np.sin((parallels[1:] + parallels[:-1]) / 2), up) - 1
    relative = (counts / max(counts.mean(), 1e-9)).T[np.ix_(row, column)]
    mesh = axes.pcolormesh(meridians, parallels, relative, cmap="viridis", vmin=0, rasterized=True)
    figure.colorbar(mesh, ax=axes, shrink=0.75, label="particles relative to an even distribution")
    axes.set_yticks(np.radians([60, 30, 0, -30, -60]), ["30°", "60°", "tilt 90°", "120°", "150°"], fontsize=8)
    axes.set_xticks(
        np.radians([-120, -60, 0, 60, 120]),
        ["-120°", "-60°", "rot 0°", "60°", "120°"],
        fontsize=8,
        color="white",
    )
    axes.grid(color="white", alpha=0.25, linewidth=0.5)
    axes.set_title(f"{title} ({len(rot):,} particles)", fontsize=11)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def resolution_axis(axes: Any, last: float, power: int = 1) -> None:
    """A second axis on top that gives round resolutions in Å, where the lower one is 1/d**power."""
    candidates = (
        100,
        50,
        30,
        20,
        15,
        12,
        10,
        9,
        8,
        7,
        6,
        5,
        4.5,
        4,
        3.5,
        3,
        2.75,
        2.5,
        2.25,
        2,
        1.8,
        1.6,
        1.5,
        1.4,
        1.3,
        1.2,
        1.1,
        1,
    )
    ticks: list[float] = []
    for resolution in candidates:
        place = float(resolution) ** -power
        if place <= last and place - (ticks[-1] if ticks else 0) > 0.07 * last:
            ticks.append(place)
    top = axes.secondary_xaxis("top")
    top.set_xticks(ticks, [f"{place ** (-1 / power):.3g}" for place in ticks])
    top.set_xlabel("resolution (Å)")


def _high_left(curves: Mapping[str, NDArray[Any]]) -> bool:
    """True when the upper right corner is free: no curve is high in the last third."""
    return all(float(curve[2 * len(curve) // 3 :].max()) < 0.5 for curve in curves.values())


def _slice(
    axes: Any,
    volume: NDArray[Any],
    axis: int,
    pixel_size: float,
    limits: tuple[float, float],
    contour: NDArray[Any] | None,
) -> None:
    """One central slice across `axis` (0 z, 1 y, 2 x), in Å from the centre."""
    half = volume.shape[0] // 2
    first, last = (-half - 0.5) * pixel_size, (half - 0.5) * pixel_size
    names = [name for i, name in enumerate("zyx") if i != axis]
    extent = (first, last, first, last)
    image = np.take(volume, half, axis=axis)
    axes.imshow(image, cmap="gray", origin="lower", extent=extent, vmin=limits[0], vmax=limits[1])
    if contour is not None:
        ticks = (np.arange(2 * half) - half) * pixel_size
        outline = np.take(contour, half, axis=axis)
        if outline.min() < 0.5 <= outline.max():
            axes.contour(ticks, ticks, outline, levels=[0.5], colors=[_ACCENT], linewidths=1.0)
    axes.set_xlabel(f"{names[1]} (Å)")
    axes.set_ylabel(f"{names[0]} (Å)")
    axes.set_title(f"{'zyx'[axis]} = 0", fontsize=9)
    axes.tick_params(labelsize=7)
