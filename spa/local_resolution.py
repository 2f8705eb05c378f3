"""Local resolution: FSC of two half maps in soft windows on a grid, and a map filtered with what the windows say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import isotonic_regression

from spa.errors import InputError
from spa.fourier import inverse
from spa.fsc import FSC_THRESHOLD
from spa.grids import rfft_frequencies, rfft_multiplicity, rfft_shells
from spa.kernels.backend import Array, fft_of, fft_workers, to_like, xp_of
from spa.mask import soft_sphere
from spa.noise import shell_average

_SIGNIFICANT = 3.0  # standard deviations of noise
_SETTLED_SHELLS = 2.0  # of the box, as for the FSC of the whole map
_SMALLEST_WINDOW = 8
_BATCH_VOXELS = 1 << 21


@dataclass(frozen=True)
class Sampling:
    """Where and through what window a pair of maps is compared.

    ticks : int (g,), voxel indices of the grid's points along each axis, evenly spaced around box // 2.
    points : int (n, 3), places (z, y, x) in the grid, 0 .. g - 1, of the points that are sampled.
    window : float32 (m, m, m), a soft sphere, m even.
    taper : float32 (box,), the fall of a window that reaches to a face of the box.
    """

    ticks: NDArray[np.int64]
    points: NDArray[np.int64]
    window: NDArray[np.float32]
    taper: NDArray[np.float32]

    def __len__(self) -> int:
        """The number of sampled points."""
        return len(self.points)

    @property
    def box(self) -> int:
        """Voxels along an edge of the maps."""
        return len(self.taper)

    @property
    def shell_width(self) -> float:
        """Width of a shell of the window's transform, in shells of the whole box."""
        return self.box / len(self.window)

    @property
    def batch(self) -> int:
        """How many windows to take at a time, so that memory does not depend on how many there are."""
        return max(1, _BATCH_VOXELS // self.window.size)

    def independent(self) -> NDArray[np.float64]:
        """Number of independent Fourier components per shell of the window, float64 (m // 2 + 1,)."""
        size = len(self.window)
        shells = rfft_shells(size, 3)
        pairs = np.broadcast_to(rfft_multiplicity(size) / 2, shells.shape)
        squared = self.window.astype(np.float64) ** 2
        share = squared.sum() ** 2 / (squared**2).sum() / size**3
        count: NDArray[np.float64] = np.bincount(shells.ravel(), pairs.ravel())[: size // 2 + 1] * share
        return count


def sampling(box: int, step: float, radius: float, edge: float) -> Sampling:
    """A grid of points, `step` apart, inside the sphere of the box, and the window around each; all in voxels.

    The window is 1 to `radius` and falls to 0 over `edge`; points lie closer than box / 2 - radius to the centre, as
    in relion_postprocess.

    Raises
    ------
    InputError if the window is wider than the box.
    """
    support = 2 * int(np.ceil(radius + edge))
    if support > box:
        raise InputError(f"the window is {support} voxels across, the box {box}")
    size = max(_SMALLEST_WINDOW, support)
    size = min(box, next(n for n in range(size, 2 * size) if n % 2 == 0 and scipy.fft.next_fast_len(n, True) == n))
    spacing = max(1, round(step))
    reach = (box // 2 - 1) // spacing
    offsets = np.arange(-reach, reach + 1) * spacing
    squared = offsets[:, None, None] ** 2 + offsets[:, None] ** 2 + offsets**2
    points = np.argwhere(squared < (box / 2 - radius) ** 2)
    depth = (np.minimum(np.arange(box), np.arange(box)[::-1]) + 0.5) / max(edge, 1e-6)
    taper = np.sin(np.pi / 2 * np.minimum(depth, 1)) ** 2
    return Sampling(offsets + box // 2, points, soft_sphere(size, radius, edge), taper.astype(np.float32))


def window_curves(half1: Array, half2: Array, where: Sampling, chosen: slice) -> NDArray[np.float64]:
    """FSC of two maps (box, box, box) in the windows around where.points[chosen], float64 (n, m // 2 + 1).

    A shell is one of the window's transform, where.shell_width shells of the box wide. A window falls to 0 at the
    faces of the box: cut off there, the maps would correlate at all frequencies.
    """
    xp, centres = xp_of(half1), where.ticks[where.points[chosen]]
    window, taper = to_like(where.window, half1), to_like(where.taper, half1)
    transforms = []
    for volume in (half1, half2):
        cut = xp.zeros((len(centres), *window.shape), dtype=np.float32)
        for target, centre in zip(cut, centres, strict=True):
            inner, outer = _overlap(centre, len(window), where.box)
            z, y, x = (taper[along] for along in outer)
            target[inner] = volume[outer] * (z[:, None, None] * y[:, None]) * x
        cut *= window
        transforms.append(fft_of(cut).rfftn(cut, axes=(1, 2, 3), **fft_workers(cut)))
    a, b = transforms
    cross = shell_average(a.real * b.real + a.imag * b.imag, 3)
    power = shell_average(_power(a), 3) * shell_average(_power(b), 3)
    return np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)


def corrected_curves(
    curves: NDArray[np.float64], randomised: NDArray[np.float64], from_shell: float, where: Sampling
) -> NDArray[np.float64]:
    """Curves (n, m // 2 + 1) less the correlation that the windows make.

    `randomised` are the curves of the maps with random phases from shell `from_shell` of the box on.

    Notes
    -----
    Chen et al. (2013), Ultramicroscopy 135, 24, from two shells of the box beyond the randomisation on, as RELION.
    What a soft window makes falls from shell to shell and is not negative, but a window holds few components and
    its curve is noisy: the falling curve nearest to it (isotonic regression) is taken out.
    """
    corrected = curves.copy()
    start = int(np.ceil((from_shell + _SETTLED_SHELLS) / where.shell_width))
    weights = where.independent()[start:]
    for curve, random in zip(corrected[:, start:], randomised[:, start:], strict=True):
        if len(weights):
            falling = isotonic_regression(random, weights=weights, increasing=False).x
            falling = np.clip(falling, 0, 1 - 1e-6)
            curve[:] = (curve - falling) / (1 - falling)
    return corrected


def local_shells(curves: NDArray[np.float64], where: Sampling) -> NDArray[np.float64]:
    """Shell of the window, with its fraction, where each curve (n, m // 2 + 1) first falls below 0.143; 0 for none.

    Notes
    -----
    The fraction is that of a straight line between the shells on both sides. A window holds few components at low
    resolution, so that chance makes a shell fall below, or noise pass: a shell ends the curve only if it is below
    together with the next one, and a curve counts only if the correlation up to its end, pooled over all its n
    components, exceeds three of the standard deviations 1 / sqrt(2 n) of noise.
    """
    count, n_shells = where.independent(), curves.shape[1]
    sums = np.cumsum(count * curves, axis=1) - count[0] * curves[:, :1]
    total = np.cumsum(count) - count[0]
    pooled = count * curves
    pooled[:, :-1] += pooled[:, 1:]
    both = count + np.append(count[1:], 0)
    below = ((curves < FSC_THRESHOLD) & (pooled / both < FSC_THRESHOLD))[:, 1:]
    last = np.where(below.any(axis=1), below.argmax(axis=1), n_shells - 1)
    row = np.arange(len(curves))
    here, beyond = curves[row, last], curves[row, np.minimum(last + 1, n_shells - 1)]
    step = np.where(here > beyond, here - beyond, 1)
    fraction = np.where(last < n_shells - 1, np.clip((here - FSC_THRESHOLD) / step, 0, 1), 0)
    real = (last > 0) & (sums[row, last] >= _SIGNIFICANT * np.sqrt(total[last] / 2))
    return np.where(real, last + fraction, 0.0)


def on_grid(values: NDArray[Any], where: Sampling) -> NDArray[np.float32]:
    """Values (n, ...) of the sampled points on the whole grid, float32 (g, g, g, ...); the others get the nearest's."""
    g = len(where.ticks)
    unknown = np.ones((g, g, g), dtype=bool)
    grid = np.zeros((g, g, g, *values.shape[1:]), dtype=np.float32)
    place = tuple(where.points.T)
    unknown[place], grid[place] = False, values
    nearest = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return np.ascontiguousarray(grid[tuple(nearest)])


def interpolated(grid: Array, where: Sampling) -> Array:
    """Values between the points of a grid (g, g, g), float32 (box, box, box): linear along each axis, constant
    outside the outermost points."""
    xp, voxel = xp_of(grid), np.arange(where.box)
    weights = np.stack([np.interp(voxel, where.ticks, row) for row in np.eye(len(where.ticks))])
    kernel = xp.asarray(weights.astype(np.float32))
    for _ in range(3):  # the axis that grew goes last, so that each is first once
        grid = xp.tensordot(grid, kernel, axes=([0], [0]))
    return grid


def resolution_map(shells: NDArray[np.float64], where: Sampling, lowest: float) -> NDArray[np.float32]:
    """Resolution of every voxel in shells of the box, float32 (box, box, box), from `local_shells`.

    Interpolated between those points that have one; `lowest`, in shells of the box, where most of the weight is on
    points that have none, and as the least of the others: no step is taken for a resolution in between.
    """
    known = interpolated(on_grid(shells > 0, where), where)
    total = interpolated(on_grid(shells * where.shell_width, where), where)
    mean = total / np.maximum(known, 0.5)
    return np.where(known >= 0.5, np.maximum(mean, lowest), lowest).astype(np.float32)


def filter_gains(
    curves: NDArray[np.float64], shells: NDArray[np.float64], lowest: float, weighted: bool = True
) -> NDArray[np.float64]:
    """Amplitude factors per shell of the window, float64 (n, m // 2 + 1), for `local_filter`.

    Parameters
    ----------
    curves : corrected FSC, (n, m // 2 + 1).
    shells : resolution of each as from `local_shells`; factors fall from full to 0 over the shell beyond.
    lowest : shell of the lowest resolution, taken where `shells` is lower.
    weighted : multiply by sqrt(2 FSC / (1 + FSC)) (Rosenthal & Henderson 2003) where there is a resolution.
    """
    k = np.arange(curves.shape[1])
    gains: NDArray[np.float64] = np.clip(np.maximum(shells, lowest)[:, None] + 1.0 - k, 0, 1)
    if weighted:
        curve = np.clip(curves, 0, 1)
        used = (shells[:, None] > 0) & (k > 0)
        gains *= np.where(used, np.sqrt(2 * curve / (1 + curve)), 1)
    return gains


def local_filter(volume: Array, gains: NDArray[np.float64], where: Sampling, shell: int, total: Array) -> None:
    """Add one band of the locally filtered map to `total`, float32 (box, box, box).

    Parameters
    ----------
    volume : transform of the map as `spa.fourier.forward` gives it.
    gains : (n, m // 2 + 1), from `filter_gains`.
    shell : the band is a triangle around this shell of the window that ends at its neighbours.

    Notes
    -----
    The bands add up to 1, so that each voxel gets the filter whose factors are interpolated between shells along
    frequency and between the sampled points in space: one transform per shell instead of one per point.
    """
    if not gains[:, shell].any():
        return
    xp = xp_of(volume)
    radius = xp.sqrt(sum(xp.asarray(k) ** 2 for k in rfft_frequencies(where.box, 3)))
    radius *= np.float32(1 / where.shell_width)
    band = inverse(volume * xp.maximum(1 - abs(radius - np.float32(shell)), 0), where.box, 3)
    total += band * interpolated(to_like(on_grid(gains[:, shell], where), volume), where)


def _overlap(centre: NDArray[np.int64], size: int, box: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window around a voxel lies within the box: in the window's voxels, and in the box's."""
    start = centre - size // 2
    low, high = np.maximum(start, 0), np.minimum(start + size, box)
    inner = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    return inner, tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _power(ft: Array) -> Array:
    return ft.real**2 + ft.imag**2
