"""The picture of an extraction: some particles as they are and without noise, and the average of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from spa.fourier import low_pass
from spa.io import mrc
from spa.io.particle_io import split_image_name
from spa.io.star import Block

RESOLUTION = 20.0  # Å, at which a particle shows through the noise
_ACCENT = "#e8b004"
_SHOWN, _EACH = 4, 8  # micrographs, particles of each
_SAMPLE = 400


@dataclass(frozen=True)
class Sample:
    """Some of the particles of an extraction.

    shown : name of a micrograph -> some of its particles (n, box, box) and their pixel size in Å.
    images : particles (n, box, box) from all over, of one pixel size, the commonest; pixel_size : theirs, in Å.
    sizes : of all pixels, in Å. total : number of all particles.
    """

    shown: Mapping[str, tuple[NDArray[np.float32], float]]
    images: NDArray[np.float32]
    pixel_size: float
    sizes: tuple[float, ...]
    total: int


def read_sample(particles: Block, optics: Block) -> Sample:
    """Particles from all over some micrographs, and images from all over the table; `optics` has their pixel sizes."""
    by_group = dict(
        zip(optics.integers("rlnOpticsGroup").tolist(), optics.floats("rlnImagePixelSize").tolist(), strict=True)
    )
    size = np.array([by_group[number] for number in particles.integers("rlnOpticsGroup").tolist()])
    sizes, members = np.unique(size, return_counts=True)
    common = float(sizes[np.argmax(members)])
    reader = mrc.StackReader()
    images = particles.text("rlnImageName")
    micrographs = np.array(particles.text("rlnMicrographName"))
    _, first, count = np.unique(micrographs, return_index=True, return_counts=True)
    order = np.argsort(first)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, _SHOWN).astype(int))]

    def read(rows: NDArray[np.float64]) -> NDArray[np.float32]:
        places = [split_image_name(images[row]) for row in np.unique(rows.astype(int)).tolist()]
        return np.stack([reader.read(path, number) for number, path in places])

    shown = {
        micrographs[first[i]]: (
            read(np.linspace(first[i], first[i] + count[i] - 1, _EACH + 2)[1:-1]),
            float(size[first[i]]),
        )
        for i in chosen
    }
    alike = np.flatnonzero(size == common)
    averaged = read(alike[np.linspace(0, len(alike) - 1, _SAMPLE).astype(int)])
    return Sample(shown, averaged, common, tuple(sizes.tolist()), len(images))


def gallery(sample: Sample, radius: float) -> Figure:
    """Particles of some micrographs, two rows each (as written, low-passed), beside the average of many.

    radius : of the circle outside which the background lies, in pixels.
    """
    shown, several = sample.shown, len(sample.sizes) > 1
    n_columns = max(len(images) for images, _ in shown.values())
    width = 1.05 * n_columns
    figure = Figure(figsize=(width + 4.2, max(2.35 * len(shown) + 0.5, 4.6)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2, width_ratios=(width + 0.4, 3.8))
    left, right = parts
    panels = left.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (name, (images, pixel_size)) in zip(panels, shown.items(), strict=True):
        _montage(axes, images, _smooth(images, pixel_size), radius)
        of = f", pixels of {pixel_size:.4g} Å" if several else ""
        axes.set_title(f"{Path(name).name}{of}", fontsize=7.5, loc="left")
    left.suptitle(f"Particles of {len(shown)} of the micrographs: as written, and to {RESOLUTION:g} Å", fontsize=10)
    _average(right, sample.images, sample.pixel_size, radius)
    sizes = f"{min(sample.sizes):.4g} to {max(sample.sizes):.4g}" if several else f"{sample.pixel_size:.4g}"
    title = f"{sample.total:,} particles, box {sample.images.shape[-1]} px of {sizes} Å"
    below = f"\nbelow: those of {sample.pixel_size:.4g} Å" if several else ""
    right.suptitle(title + below, fontsize=10)
    return figure


def _montage(axes: Any, images: NDArray[np.float32], smooth: NDArray[np.float32], radius: float) -> None:
    """Images side by side, each within 3 of its standard deviations; below them, on one scale, without noise."""
    n, box = len(images), images.shape[-1]
    step = box + max(2, box // 16)
    canvas = np.ones((2 * step, n * step))
    low, high = np.percentile(smooth, (0.5, 99.5))
    for index in range(n):
        columns = slice(index * step, index * step + box)
        image = images[index] - images[index].mean()
        canvas[step : step + box, columns] = image / max(6 * float(image.std()), 1e-12) + 0.5
        canvas[:box, columns] = (smooth[index] - low) / max(high - low, 1e-12)
        centre = (index * step + box // 2, box // 2)
        axes.add_patch(Circle(centre, radius, fill=False, color=_ACCENT, linewidth=0.6))
    axes.imshow(canvas, cmap="gray", origin="lower", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _average(figure: Figure, sample: NDArray[np.float32], pixel_size: float, radius: float) -> None:
    """The average image with the circle, and its rotational average below."""
    picture, profile = figure.subplots(2, 1, height_ratios=(3, 1.5))
    box = sample.shape[-1]
    mean = sample.mean(axis=0)
    half = box // 2 * pixel_size
    extent = (-half - pixel_size / 2, half - pixel_size / 2) * 2
    low, high = np.percentile(mean, (0.5, 99.5))
    picture.imshow(mean, cmap="gray", origin="lower", extent=extent, vmin=low, vmax=high)
    picture.add_patch(Circle((0, 0), radius * pixel_size, fill=False, color=_ACCENT, linewidth=1.2))
    picture.axhline(0, color=_ACCENT, linewidth=0.4)
    picture.axvline(0, color=_ACCENT, linewidth=0.4)
    picture.set_title(f"Average of {len(sample):,}: bright, and in the middle?", fontsize=9)
    picture.set_anchor("S")
    picture.set_xlabel("Å", fontsize=8)
    picture.tick_params(labelsize=7)
    y, x = np.mgrid[:box, :box] - box // 2
    ring = np.rint(np.hypot(x, y)).astype(int).ravel()
    inside = ring <= box // 2
    values = np.bincount(ring[inside], mean.ravel()[inside]) / np.bincount(ring[inside])
    profile.plot(np.arange(len(values)) * pixel_size, values, color="black", linewidth=1.4)
    profile.axvline(radius * pixel_size, color=_ACCENT, linewidth=1.2, label="background circle")
    profile.axhline(0, color="0.45", linewidth=0.6)
    profile.set_xlabel("distance from the centre (Å)", fontsize=8)
    profile.set_ylabel("mean", fontsize=8)
    profile.tick_params(labelsize=7)
    profile.legend(frameon=False, fontsize=7)


def _smooth(images: NDArray[np.float32], pixel_size: float) -> NDArray[np.float32]:
    resolution = max(RESOLUTION, 2 * pixel_size)
    return np.asarray(low_pass(images, pixel_size, resolution, ndim=2), dtype=np.float32)
