"""Where in a micrograph nothing should be picked: ice crystals, dirt, carbon. Arrays only, on the CPU.

Grains stand out of their surroundings by their level. Carbon is a second level on a large part of the image, beyond
a sharp edge, with more texture, a grid bar one with far less; a slow change of the ice's thickness is neither. What
is constant, or repeats its neighbour up to the edge of the image, was never measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spa.picking_image import coverage, local_mean, median

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_FINE, _COARSE, _WIDE = 0.125, 0.25, 2.0  # diameters, of the Gaussians that give details, steps and surroundings
_BRIGHT, _DARK = 5.5, 8.0  # standard deviations of the details
_ROUNDS = 4
_STEP = 4.0  # standard deviations of the details between ice and carbon
_BETWEEN = 0.12  # fraction of the pixels in the middle half of the step, at most, where it is an edge
_TEXTURE = 1.05  # of carbon, over that of ice
_OPAQUE = 0.6  # of a grid bar, over that of ice, at most
_MOSTLY = 0.7  # of the image: if more is dirty, too little is left to tell levels apart
_SMALLEST = 0.02  # of the image: less than that is no second level
_LEVELS = 128
_NARROW, _FEWEST = 0.125, 8  # diameters and pixels: what is narrower is not told from equal pixels by chance
_CHANCE = 0.01  # squares of equal pixels in the image by chance, at most
_EQUAL = 0.1  # of the usual difference between neighbours: less is none
_SAMPLED = 1 << 18  # pixels whose values and changes are looked at, about


def constant_area(image: Image, size: float) -> Mask:
    """Pixels of regions without any noise, such as a part filled with one value, bool like the image.

    Rows and columns at the edge that repeat the next one, as a shifted frame leaves them, are such regions, too.
    size : the particle's diameter in pixels.
    """
    border = _repeated(image) | _repeated(image.T).T
    every = max(1, image.size // _SAMPLED)
    width = max(_FEWEST, round(_NARROW * size), _beyond_chance(image[::every], image.size))
    change = np.abs(np.diff(image[::every], axis=1))
    change = change[change > 0]
    if not change.size:
        return np.ones(image.shape, dtype=bool)
    equal = _EQUAL * median(change)
    lowest, highest = (_in_blocks(image, width // 2, extreme) for extreme in (np.minimum, np.maximum))
    if not (highest - lowest <= equal).any():  # a constant square of `width` would hold such a block
        return border
    span = ndimage.maximum_filter(image, width, mode="nearest") - ndimage.minimum_filter(image, width, mode="nearest")
    origin = 0 if width % 2 else -1  # of the dilation by the same window, mirrored
    return border | ndimage.maximum_filter(span <= equal, width, mode="constant", origin=origin)


def _in_blocks(image: Image, size: int, extreme: np.ufunc) -> Image:
    """The lowest or highest values of square blocks; what is left over at the end is left out."""
    rows, columns = (n // size for n in image.shape)
    lines: Image = extreme.reduce(image[: rows * size].reshape(rows, size, -1), axis=1)
    return np.asarray(extreme.reduce(lines[:, : columns * size].reshape(rows, columns, size), axis=2))


def _repeated(image: Image) -> Mask:
    """Pixels of the first and last rows that are the same as the next row, bool like the image."""
    out = np.zeros(image.shape, dtype=bool)
    last = len(image) - 1
    above, below = 0, 0
    while above < last and (image[above] == image[above + 1]).all():
        above += 1
    while below < last and (image[last - below] == image[last - below - 1]).all():
        below += 1
    out[:above] = True
    out[len(image) - below :] = True
    return out


def _beyond_chance(sample: Image, n_pixels: int) -> int:
    """Side of a square, in pixels, of which hardly one has the commonest value throughout by chance."""
    share = float(np.unique(sample, return_counts=True)[1].max()) / sample.size
    if share == 1:
        return 1
    return int(np.ceil(np.sqrt(np.log(n_pixels / _CHANCE) / -np.log(share))))


def filled(image: Image, constant: Mask, seed: int) -> Image:
    """An image whose constant pixels have values drawn from the others, so that no level and no edge is left of them.

    Raises
    ------
    ValueError
        If all is constant.
    """
    values = image[~constant]
    if not values.size:
        raise ValueError("the micrograph has no contrast")
    out = image.copy()
    out[constant] = np.random.default_rng(seed).choice(values, int(constant.sum()))
    return out


def on_grid(mask: Mask, shape: Sequence[int], step: float) -> Mask:
    """A mask of a micrograph on the grid of the shrunken one, (rows, columns)."""
    rows, columns = (
        np.minimum(np.rint(np.arange(n) * step).astype(np.int64), size - 1)
        for n, size in zip(shape, mask.shape, strict=True)
    )
    return np.asarray(mask[rows[:, None], columns])


def _away_from(dirty: Mask, distance: float) -> Mask:
    """Pixels further than `distance` pixels from all of `dirty`."""
    if not dirty.any():
        return ~dirty
    found: NDArray[np.float64] = ndimage.distance_transform_edt(~dirty)
    return np.asarray(found > distance)


def usable_area(
    plain: Image,
    pixel_size: float,
    diameter: float,
    constant: Mask | None = None,
    reach: float = 0.5,
    only_constant: bool = False,
) -> Mask:
    """Pixels that show specimen: not contaminated, not next to contamination, not constant; bool like the image.

    Parameters
    ----------
    plain : float32 (rows, columns), a shrunken micrograph.
    pixel_size, diameter : Angstrom; the diameter is the particle's.
    constant : bool, like it, pixels that have no say and are not usable; those beside them are.
    reach : diameters to keep away from contamination. only_constant : look for no other contamination.
    """
    size = diameter / pixel_size
    blank = np.zeros(plain.shape, dtype=bool) if constant is None else constant
    if blank.all() or only_constant:
        return ~blank
    film = carbon(plain, blank, size)
    dirty = film | grains(plain, film | blank, size)
    if dirty.any() and not film.any():
        dirty |= carbon(plain, dirty | blank, size)
    return _away_from(dirty, reach * size) & ~blank


def whole_area(constant: Mask, distance: float) -> Mask:
    """Pixels around which all within `distance` pixels lies in the image and is not constant, bool like `constant`."""
    if not constant.any():
        gaps = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) >= distance + 0.5 for n in constant.shape]
        return np.asarray(gaps[0][:, None] & gaps[1])
    found: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(~constant, 1))
    return np.asarray(found[1:-1, 1:-1] >= distance + 0.5)


def grains(plain: Image, film: Mask, size: float) -> Mask:
    """Pixels of what is much darker or brighter than its surroundings.

    film : pixels of carbon and of what is constant, which have no say. size : the particle's diameter in pixels.

    Notes
    -----
    Dark is judged more mildly than bright, and on average over a quarter of the diameter, since particles are dark:
    those of high contrast reach 6 standard deviations, those that overlap, too.
    """
    everywhere = np.ones(plain.shape, dtype=bool)
    fine, coarse = (local_mean(plain, everywhere, scale * size) for scale in (_FINE, _COARSE))
    out = film
    for _ in range(_ROUNDS):
        found = film.copy()
        covered = coverage(~out, _WIDE * size)
        for smooth, bright, dark in ((fine, _BRIGHT, np.inf), (coarse, _BRIGHT, _DARK)):
            details = smooth - local_mean(smooth, ~out, _WIDE * size, covered)
            deviation = _deviation(details[~out])
            found |= (details > bright * deviation) | (details < -dark * deviation)
        if (found == out).all() or found.all():
            break
        out = found
    return np.asarray(out & ~film)


def carbon(plain: Image, dirty: Mask, size: float) -> Mask:
    """Pixels of a film that covers a part of the image, none where there is no sharp edge.

    dirty : pixels that are contamination, which have no say. size : the particle's diameter in pixels.
    """
    none = np.zeros(plain.shape, dtype=bool)
    if dirty.mean() > _MOSTLY:
        return none
    clean = _away_from(dirty, _COARSE * size)
    fine = local_mean(plain, ~none, _FINE * size)
    step = local_mean(plain, ~dirty, _COARSE * size)
    values = step[clean]
    if not values.size:
        return none
    low, high, threshold = _two_levels(values)
    deviation = _deviation((fine - local_mean(fine, ~dirty, 0.5 * size))[clean])
    middle = np.abs(values - (low + high) / 2) < (high - low) / 4
    dark = (step < threshold) & clean
    if (
        high - low < _STEP * deviation
        or middle.mean() > _BETWEEN
        or min(dark.sum(), values.size - dark.sum()) < _SMALLEST * plain.size
    ):
        return none
    texture = np.abs(plain - fine)
    rough = float(texture[dark].mean() / texture[clean & ~dark].mean())
    return np.asarray((step < threshold) & ~dirty) if rough > _TEXTURE or rough < _OPAQUE else none


def _deviation(values: NDArray[np.float32]) -> float:
    return 1.4826 * median(np.abs(values - np.float32(median(values)))) or 1.0


def _two_levels(values: NDArray[np.float32]) -> tuple[float, float, float]:
    """Means of the lower and the upper class and the value between them (Otsu 1979, IEEE Trans. SMC 9, 62)."""
    counts, edges = np.histogram(values, _LEVELS)
    centres = (edges[1:] + edges[:-1]) / 2
    weight, moment = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    total, mean = counts.sum(), (counts * centres).sum() / counts.sum()
    between = (mean * weight - moment) ** 2 / np.maximum(weight * (total - weight), 1)
    at = int(np.argmax(between))
    low = moment[at] / max(weight[at], 1)
    high = (mean * total - moment[at]) / max(total - weight[at], 1)
    return float(low), float(high), float(edges[at + 1])
