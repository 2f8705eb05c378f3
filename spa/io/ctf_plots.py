"""Pictures of CTF estimates: the rings of one micrograph, and what came of a whole set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from spa.ctf_estimation import CtfEstimate
from spa.ctf_estimation_rings import SEEN

_DATA, _FIT, _GOOD, _BAD, _GREY = "#1565c0", "#c0392b", "#2e7d32", "#c0392b", "0.45"
_NOISE_BINS = 41
_RESOLUTIONS = (30, 20, 15, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.75, 2.5, 2.25, 2, 1.8, 1.6, 1.4, 1.2, 1)


@dataclass(frozen=True)
class Overview:
    """Columns of a set of micrographs, each (n,): defoci, astigmatism and resolution in Angstrom, 1 if trusted."""

    defocus: NDArray[np.float64]
    astigmatism: NDArray[np.float64]
    resolution: NDArray[np.float64]
    trusted: NDArray[np.bool_]


def ring_plot(
    estimate: CtfEstimate, picture: NDArray[np.float32], highest: float, name: str, problems: list[str]
) -> Figure:
    """The spectrum beside the fit, the averages along the rings with the fit, and their correlation.

    Parameters
    ----------
    picture : (box, box), data in the right half, fit in the left one, 0 to 1.
    highest : last frequency of the fit, 1/Angstrom.
    problems : what speaks against the fit; none for one to be trusted.
    """
    figure = Figure(figsize=(11.6, 5.2))
    FigureCanvasAgg(figure)
    # places given, since a layout engine draws everything twice
    _picture(figure.add_axes((0.04, 0.095, 0.364, 0.812)), estimate, picture, highest)
    lower = figure.add_axes((0.49, 0.095, 0.495, 0.285))
    upper = figure.add_axes((0.49, 0.41, 0.495, 0.43), sharex=lower)
    upper.tick_params(labelbottom=False)
    _averages(upper, estimate, highest)
    _correlation(lower, estimate, highest)
    verdict = "trusted" if not problems else f"not to be trusted: {', '.join(problems).replace('_', ' ')}"
    figure.suptitle(f"{_values(estimate)}\n{name}: {verdict}", fontsize=10, color=_BAD if problems else "black")
    return figure


def overview(table: Overview) -> Figure:
    """Defocus, astigmatism and resolution over the set in its order, with their histograms; the flagged ones in red,
    triangles for those beyond the panel."""
    figure = Figure(figsize=(10.4, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 2, width_ratios=(3.2, 1), sharey="row")
    number = np.arange(1, len(table.trusted) + 1)
    rows = (
        ("defocus (µm)", table.defocus / 1e4),
        ("astigmatism (Å)", table.astigmatism),
        ("rings seen to (Å)", table.resolution),
    )
    size = float(np.clip(1500 / max(len(number), 1), 3, 22))
    for (axes, side), (label, values) in zip(panels, rows, strict=True):
        ceiling = _ceiling(values, table.trusted)
        shown = np.minimum(values, ceiling)
        inside = values <= ceiling
        for chosen, colour, marker, what in (
            (table.trusted & inside, _GOOD, "o", "trusted"),
            (~table.trusted & inside, _BAD, "x", "flagged"),
            (table.trusted & ~inside, _GOOD, "^", None),
            (~table.trusted & ~inside, _BAD, "^", None),
        ):
            axes.scatter(number[chosen], shown[chosen], s=size, c=colour, marker=marker, linewidths=1.0, label=what)
        bins = np.linspace(0, ceiling, 31)
        side.hist(
            [shown[table.trusted], shown[~table.trusted]],
            bins=bins,
            orientation="horizontal",
            stacked=True,
            color=[_GOOD, _BAD],
        )
        axes.set(ylabel=label, ylim=(0, 1.05 * ceiling))
        axes.grid(alpha=0.25, linewidth=0.5)
        for counted in (axes, side):
            counted.xaxis.get_major_locator().set_params(integer=True)
        if not inside.all():
            axes.axhline(ceiling, color=_GREY, linewidth=0.6, linestyle=":")
    panels[-1][0].set_xlabel("micrograph")
    panels[-1][1].set_xlabel("micrographs")
    above = {"loc": "lower right", "bbox_to_anchor": (1, 0.98)}  # where no point can be
    panels[0][0].legend(frameon=False, fontsize=8, ncols=2, **above)
    flagged = int((~table.trusted).sum())
    good = table.defocus[table.trusted]
    spread = f"; trusted: {good.min() / 1e4:.2f} to {good.max() / 1e4:.2f} µm" if len(good) else ""
    figure.suptitle(f"CTF of {len(number):,} micrographs, {flagged:,} flagged{spread}")
    return figure


def _ceiling(values: NDArray[np.float64], trusted: NDArray[np.bool_]) -> float:
    """Somewhat above the largest value, unless it is far beyond most of those to be trusted."""
    most = values[trusted] if trusted.any() else values
    return float(1.05 * min(values.max(), 2.5 * np.percentile(most, 90))) or 1.0


def _values(estimate: CtfEstimate) -> str:
    phase = f", phase shift {estimate.phase_shift:.1f}°" if estimate.with_phase else ""
    return (
        f"defocus {estimate.defocus_u:.0f} / {estimate.defocus_v:.0f} Å, U at {estimate.defocus_angle:.1f}°{phase}, "
        f"rings seen to {estimate.rings.max_resolution:.2f} Å"
    )


def _picture(axes: Any, estimate: CtfEstimate, picture: NDArray[np.float32], highest: float) -> None:
    spectrum = estimate.whole.spectrum
    edge = spectrum.box_size / (2 * spectrum.extent)
    axes.imshow(picture, cmap="gray", origin="lower", extent=(-edge, edge, -edge, edge), vmin=0, vmax=1)
    turn = np.linspace(0, 2 * np.pi, 200)
    for s, colour, style in ((1 / estimate.rings.max_resolution, _GOOD, "-"), (highest, _GREY, ":")):
        axes.plot(s * np.cos(turn), s * np.sin(turn), color=colour, linestyle=style, linewidth=1.0)
    angle = np.radians(estimate.defocus_angle)
    if estimate.astigmatism > 0:
        axes.plot(
            [-edge * np.cos(angle), edge * np.cos(angle)],
            [-edge * np.sin(angle), edge * np.sin(angle)],
            color="#f9a825",
            linewidth=0.7,
            linestyle="--",
        )
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xlabel="fit | spectrum     (1/Å)")
    axes.tick_params(labelsize=7)


def _averages(axes: Any, estimate: CtfEstimate, highest: float) -> None:
    rings = estimate.rings
    scale = _amplitude(estimate)
    axes.plot(rings.frequency, 0.5 + 0.5 * rings.along / scale, color=_DATA, linewidth=1.1, label="along the rings")
    axes.plot(rings.frequency, 0.5 + 0.5 * rings.fit / scale, color=_FIT, linewidth=1.1, label="fit")
    axes.plot(rings.frequency, rings.ctf2, color=_GREY, linewidth=0.5, alpha=0.6, label="CTF²", zorder=0)
    axes.axvline(highest, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set(ylim=(-0.35, 1.45), ylabel="relative power")
    axes.legend(edgecolor="none", framealpha=0.85, fontsize=8, ncols=3, loc="upper right")
    top = axes.secondary_xaxis("top")
    last = float(rings.frequency[-1])
    shown: list[float] = []
    for d in _RESOLUTIONS:
        if rings.frequency[0] <= 1 / d <= last and 1 / d - (shown[-1] if shown else -1.0) > 0.06 * last:
            shown.append(1 / d)
    top.set_xticks(shown, [f"{1 / s:.3g}" for s in shown])
    top.set_xlabel("resolution (Å)", fontsize=8)
    top.tick_params(labelsize=8)


def _amplitude(estimate: CtfEstimate) -> NDArray[np.float64]:
    """What the curves are divided by, so that rings fill the panel as long as they stand out, and noise does not."""
    rings, depth = estimate.rings, estimate.whole.depth
    first = round(float(rings.frequency[0]) * 2 * estimate.whole.spectrum.extent)
    own = depth[first : first + len(rings.frequency)]
    noise = np.sqrt(uniform_filter1d((rings.along - rings.fit) ** 2, _NOISE_BINS, mode="nearest"))
    return np.maximum(own, np.maximum(noise, 0.01))


def _correlation(axes: Any, estimate: CtfEstimate, highest: float) -> None:
    rings = estimate.rings
    axes.fill_between(rings.frequency, -rings.noise, rings.noise, color="0.9", linewidth=0, label="noise (2σ)")
    axes.plot(rings.frequency, rings.correlation, color="black", linewidth=1.2, label="ring correlation")
    axes.axhline(SEEN, color=_GREY, linewidth=0.8, linestyle="--")
    seen = 1 / rings.max_resolution
    axes.axvline(seen, color=_GOOD, linewidth=1.2, label=f"seen to {rings.max_resolution:.2f} Å")
    axes.axvline(highest, color=_GREY, linewidth=0.8, linestyle=":", label=f"fitted to {1 / highest:.2f} Å")
    axes.set(
        ylim=(-0.6, 1.05),
        xlim=(rings.frequency[0], rings.frequency[-1]),
        xlabel="spatial frequency (1/Å)",
        ylabel="correlation",
    )
    axes.legend(edgecolor="none", framealpha=0.85, fontsize=8, ncols=2, loc="lower left")
