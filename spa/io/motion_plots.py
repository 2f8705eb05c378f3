"""The picture of a movie's motion: tracks over the field, shifts and steps over the frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_COLOURS = "viridis"
_GREY, _X, _Y, _BAD = "0.55", "#1565c0", "#c0392b", "#c0392b"
_MEAN_OF = 5  # frames
_FIELD_SHARE = 0.6  # of a patch's width that the longest track may take


@dataclass(frozen=True)
class MotionPicture:
    """What is drawn. Positions are those of the specimen, minus the corrections, in Å.

    title : first line.
    field : (width, height) of the frame.
    dose : e/Å^2 at the end of each frame, or None for frame numbers.
    track : (n_frames, 2) whole frames; errors, the same shape, infinite for frames that show nothing.
    centres : (n_patches, 2), or None without patches.
    measured, fitted : (n_patches, n_frames, 2) local positions around the track.
    found : whether the frames correlate.
    """

    title: str
    field: tuple[float, float]
    dose: Floats | None
    track: Floats
    errors: Floats
    centres: Floats | None
    measured: Floats | None
    fitted: Floats | None
    found: bool


def motion(picture: MotionPicture) -> Figure:
    """Draw the motion of one movie: two panels, with a third for the tracks of patches where there are any."""
    local = picture.centres is not None
    figure = Figure(figsize=(10.6 if local else 7.6, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
    over_field = figure.add_subplot(grid[:, 0])
    if local:
        _patch_tracks(over_field, picture)
    else:
        _whole_track(over_field, picture)
    shifts, steps = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    _shifts(shifts, picture)
    _steps(steps, picture)
    colour = "black" if picture.found else _BAD
    note = "" if picture.found else "\nno motion found: the frames do not correlate and were summed as they are"
    figure.suptitle(picture.title + note, fontsize=10, color=colour)
    return figure


def _coloured(axes: Any, points: Floats, width: float) -> Any:
    """A line through points (n, 2), coloured from the first frame to the last, its start marked."""
    segments = np.stack([points[:-1], points[1:]], axis=1)
    line = LineCollection(list(segments), cmap=_COLOURS, linewidths=width, zorder=3)
    line.set_array(np.arange(len(segments)) + 1.5)
    axes.add_collection(line)
    axes.plot(*points[0], "o", color="black", markersize=2.5, zorder=4)
    return line


def _patch_tracks(axes: Any, picture: MotionPicture) -> None:
    centres, fitted, measured = picture.centres, picture.fitted, picture.measured
    assert centres is not None
    assert fitted is not None
    assert measured is not None
    fitted = fitted - fitted[:, :1]
    # a patch is measured up to a constant
    measured = _running_mean(measured + (fitted - measured).mean(axis=1, keepdims=True))
    spacing = max(picture.field) / max(2.0, np.sqrt(len(centres)))
    longest = max(float(np.percentile(np.hypot(*np.moveaxis(fitted, -1, 0)).max(axis=1), 95)), 0.5)
    factor = _round_down(_FIELD_SHARE * spacing / longest)
    line = None
    for centre, seen, model in zip(centres, measured, fitted, strict=True):
        axes.plot(*(centre + factor * seen).T, color="0.75", linewidth=0.7, zorder=1)
        line = _coloured(axes, centre + factor * model, 1.8)
    axes.set(xlim=(0, picture.field[0]), ylim=(0, picture.field[1]), xlabel="x (Å)", ylabel="y (Å)", aspect="equal")
    axes.xaxis.set_label_coords(0.6, -0.075)
    axes.set_title(f"local motion, {factor:g} times enlarged; grey: measured, mean of {_MEAN_OF} frames", fontsize=9)
    _scale_bar(axes, factor, longest)
    _frame_colours(axes, line)


def _frame_colours(axes: Any, line: Any) -> None:
    axes.figure.colorbar(line, ax=axes, shrink=0.7, label="frame", pad=0.02, ticks=MaxNLocator(integer=True))


def _running_mean(tracks: Floats) -> Floats:
    """Tracks (n, n_frames, 2) averaged over neighbouring frames, fewer at the ends."""
    n_frames = tracks.shape[1]
    half = _MEAN_OF // 2
    means = [tracks[:, max(0, i - half) : i + half + 1].mean(axis=1) for i in range(n_frames)]
    return np.stack(means, axis=1)


def _scale_bar(axes: Any, factor: float, longest: float) -> None:
    """A bar below the axis, where no track runs."""
    length = _round_down(longest)
    place = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.plot([0, factor * length], [-0.1, -0.1], color="black", linewidth=2.5, solid_capstyle="butt", **place)
    axes.text(factor * length, -0.1, f" {length:g} Å of motion", fontsize=8, va="center", **place)


def _whole_track(axes: Any, picture: MotionPicture) -> None:
    line = _coloured(axes, picture.track, 2.0)
    axes.plot(*picture.track.T, "o", color=_GREY, markersize=2, zorder=2)
    middle = (picture.track.max(axis=0) + picture.track.min(axis=0)) / 2
    half = max(1.0, float(np.ptp(picture.track, axis=0).max()) * 0.6)
    limits = {"xlim": (middle[0] - half, middle[0] + half), "ylim": (middle[1] - half, middle[1] + half)}
    axes.set(xlabel="x (Å)", ylabel="y (Å)", aspect="equal", **limits)
    axes.set_title("motion of the whole field", fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.5)
    _frame_colours(axes, line)


def _abscissa(axes: Any, picture: MotionPicture) -> Floats:
    n_frames = len(picture.track)
    axes.grid(alpha=0.25, linewidth=0.5)
    if picture.dose is None:
        axes.set_xlabel("frame")
        return np.arange(1, n_frames + 1, dtype=np.float64)
    axes.set_xlabel("exposure (e/Å²)")
    return picture.dose


def _shifts(axes: Any, picture: MotionPicture) -> None:
    across = _abscissa(axes, picture)
    errors = np.where(np.isfinite(picture.errors), picture.errors, np.nan)
    for axis, (label, colour) in enumerate((("x", _X), ("y", _Y))):
        values = picture.track[:, axis]
        axes.fill_between(across, values - errors[:, axis], values + errors[:, axis], color=colour, alpha=0.2, lw=0)
        axes.plot(across, values, color=colour, linewidth=1.4, marker="o", markersize=2.5, label=label)
    axes.set_ylabel("position (Å)")
    axes.set_title("whole field", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _steps(axes: Any, picture: MotionPicture) -> None:
    across = _abscissa(axes, picture)
    steps = np.hypot(*np.diff(picture.track, axis=0).T)
    axes.bar(across[1:], steps, width=0.7 * float(np.diff(across).mean()), color=_GREY)
    axes.set(ylabel="step between frames (Å)", ylim=(0, max(1.15 * float(steps.max(initial=0)), 0.1)))


def _round_down(value: float) -> float:
    """A round number not above `value`."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (8, 6, 5, 4, 3, 2, 1.5, 1) if m * power <= value * (1 + 1e-9)))
