"""The picture of a micrograph with its picks.

Drawn in pixels, without the axes of Matplotlib: with them, a picture takes longer than picking does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, IdentityTransform
from numpy.typing import NDArray
from scipy import ndimage

from spa.io.files import write_whole
from spa.io.pick_plots import SIGMA, merit
from spa.io.plots import DPI

Floats = NDArray[np.float64]

_COLOURS = ListedColormap(colormaps["plasma"](np.linspace(0.25, 1, 192)))
_MASKED, _OPACITY = np.array([20, 102, 191], dtype=np.float32), 0.38
_SMOOTH = 0.8  # pixels of the shrunken micrograph
_LONGEST = 620  # pixels of it that are drawn
_SIDE = 640  # pixels of the picture, along the longer side of the micrograph
_LEFT, _RIGHT, _ABOVE, _BELOW = 14, 112, 38, 44  # pixels around it
_BAR = (18, 20)  # pixels between the micrograph and the bar of colours, and its width
_TICKS = 6
_NARROWEST = 420  # pixels of the picture, which hold the title
_LENGTHS = np.array([1, 2, 5])
_COMPRESSION = 1  # of noise: more takes twice as long and saves a tenth


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


def write(path: Path, shown: Shown, name: str) -> None:
    """Write the picture of the micrograph called `name` as PNG, whole or not at all; InputError if it cannot be."""
    pixels, how = draw(shown, name).data, {"compress_level": _COMPRESSION}
    write_whole(path, lambda temporary: imsave(temporary, pixels, format="png", dpi=DPI, pil_kwargs=how))


def draw(shown: Shown, name: str) -> NDArray[np.uint8]:
    """A micrograph with a circle around each pick, coloured by its figure of merit; what is masked is blue.

    Returns the picture, uint8 (rows, columns, 4).
    """
    picture = _picture(shown)
    rows, columns = picture.shape[:2]
    zoom = max(rows, columns) / (max(shown.image.shape) * shown.step)  # of a pixel of the micrograph
    width, height = max(_LEFT + columns + _RIGHT, _NARROWEST), _BELOW + rows + _ABOVE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.patch.set_visible(False)
    _text(figure, _LEFT, _BELOW + rows + 0.5 * _ABOVE, _title(shown, name), fontsize=10)
    _scale_bar(figure, columns, zoom / shown.pixel_size)
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())
    pixels[:] = 255  # filled here, since Matplotlib would resample what it is given
    pixels[_ABOVE : _ABOVE + rows, _LEFT : _LEFT + columns] = picture
    if len(shown.centres):
        circles = _circles(shown, zoom, rows)
        circles.set_clip_box(Bbox.from_bounds(_LEFT, _BELOW, columns, rows))
        figure.add_artist(circles)
        _colour_bar(figure, pixels, circles, _LEFT + columns, rows, shown.unit)
    figure.draw(renderer)
    return pixels


def _picture(shown: Shown) -> NDArray[np.uint8]:
    """The micrograph as it is drawn, uint8 (rows, columns, 4), from the highest row down."""
    every = max(1, -(-max(shown.image.shape) // _LONGEST))
    image = ndimage.gaussian_filter(_binned(shown.image, every), _SMOOTH)
    usable = shown.usable[::every, ::every][: image.shape[0], : image.shape[1]]
    low, high = np.percentile(image[usable] if usable.any() else image, (0.5, 99.7))
    grey = np.clip((image - low) * (255 / max(high - low, 1e-6)), 0, 255)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    colour[~usable] += _OPACITY * (_MASKED - colour[~usable])
    rows, columns = (
        np.arange(max(1, round(_SIDE * n / max(image.shape)))) * max(image.shape) // _SIDE for n in image.shape
    )
    small = np.full((*image.shape, 4), 255, dtype=np.uint8)
    small[:, :, :3] = colour
    return np.asarray(small[np.minimum(rows, len(image) - 1)][:, np.minimum(columns, image.shape[1] - 1)])


def _circles(shown: Shown, zoom: float, rows: int) -> EllipseCollection:
    """Circles around the picks, in pixels of the figure; `rows` of the picture, `zoom` from the micrograph to it."""
    n = len(shown.centres)
    size = np.full(n, shown.diameter / shown.pixel_size * zoom)
    x, y = (shown.centres.T + 0.5 * shown.step) * zoom
    circles = EllipseCollection(
        size,
        size,
        np.zeros(n),
        units="dots",
        offsets=np.stack([_LEFT + x, _BELOW + rows - y], axis=1),
        offset_transform=IdentityTransform(),
        facecolors="none",
        linewidths=1.3,
        cmap=_COLOURS,
    )
    circles.set_array(shown.score)
    top = float(np.quantile(shown.score, 0.98))
    circles.set_clim(min(shown.threshold, float(shown.score.min())), max(top, shown.threshold + 1e-3))
    return circles


def _colour_bar(
    figure: Figure, pixels: NDArray[np.uint8], circles: EllipseCollection, edge: int, rows: int, unit: str
) -> None:
    """What the colours of circles mean, right of the micrograph, whose `edge` it is, in the pixels of the figure."""
    gap, width = _BAR
    height = round(0.86 * rows)
    left, bottom = edge + gap, _BELOW + (rows - height) // 2
    top = _ABOVE + _BELOW + rows - bottom - height
    pixels[top : top + height, left : left + width] = _COLOURS(np.linspace(1, 0, height), bytes=True)[:, None]
    low, high = circles.get_clim()
    ticks = [tick for tick in MaxNLocator(_TICKS).tick_values(low, high) if low <= tick <= high]
    digits = max(0, -int(np.floor(np.log10(max(np.diff(ticks).min(initial=1.0), 1e-9)) + 1e-6)))
    for tick in ticks:
        place = bottom + (tick - low) / (high - low) * height
        _line(figure, (left + width, left + width + 4), place)
        _text(figure, left + width + 8, place, f"{tick:.{digits}f}")
    middle = bottom + height / 2
    _text(figure, left + width + 54, middle, merit(unit), fontsize=9, rotation=90, ha="center")


def _scale_bar(figure: Figure, columns: int, per_angstrom: float) -> None:
    """A line below the micrograph as long as its words say; `per_angstrom`, pixels."""
    wanted = 0.2 * columns / per_angstrom / 10  # nm
    lengths = (_LENGTHS * 10.0 ** np.arange(-2, 6)[:, None]).ravel()
    length = float(lengths[lengths <= wanted].max(initial=lengths[0]))
    end = _LEFT + length * 10 * per_angstrom
    _line(figure, (_LEFT, end), 0.5 * _BELOW, linewidth=3.5)
    _text(figure, end + 8, 0.5 * _BELOW, f"{length:g} nm", fontsize=9)


def _line(figure: Figure, x: tuple[float, float], y: float, linewidth: float = 0.8) -> None:
    line = Line2D(x, (y, y), color="black", linewidth=linewidth, solid_capstyle="butt", transform=IdentityTransform())
    figure.add_artist(line)


def _text(figure: Figure, x: float, y: float, words: str, **how: Any) -> None:
    """Words at a place in pixels; a name is no formula, whatever it holds."""
    given: dict[str, Any] = {"fontsize": 8, "va": "center"} | how
    figure.text(x, y, words, transform=IdentityTransform(), parse_math=False, **given)


def _title(shown: Shown, name: str) -> str:
    masked = "" if shown.usable.all() else f", {1 - shown.usable.mean():.0%} masked (blue)"
    picks = "1 pick" if len(shown.centres) == 1 else f"{len(shown.centres)} picks"
    return f"{name}: {picks} {_above(shown.threshold, shown.unit)}{masked}"


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
