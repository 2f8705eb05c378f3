"""Half maps with everything known: an irregular particle that decays by a B-factor, and independent coloured noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class HalfMaps:
    """Two noisy half maps, the noiseless particle (box, box, box) and the voxels (bool) it occupies."""

    half1: Volume
    half2: Volume
    particle: Volume
    support: NDArray[np.bool_]
    pixel_size: float


def frequencies(box: int, pixel_size: float) -> NDArray[np.float64]:
    """Spatial frequency in 1/Å of each voxel of the rfft layout."""
    k, half = np.fft.fftfreq(box, pixel_size), np.fft.rfftfreq(box, pixel_size)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + half**2)


def blurred(volume: NDArray[np.floating], pixel_size: float, bfactor: float) -> NDArray[np.float64]:
    """`volume` with its transform multiplied by exp(-bfactor s² / 4)."""
    decay = np.exp(-bfactor / 4 * frequencies(len(volume), pixel_size) ** 2)
    return np.fft.irfftn(np.fft.rfftn(volume) * decay, s=volume.shape, axes=(0, 1, 2))


def radius(box: int, centre: tuple[float, float, float] = (0, 0, 0)) -> NDArray[np.float64]:
    """Distance in pixels from a point given relative to the box centre, (z, y, x)."""
    z, y, x = np.indices((box,) * 3) - box // 2
    return np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)


def lumps(box: int) -> NDArray[np.bool_]:
    """An irregular, connected shape that fills about a tenth of the sphere in the box."""
    unit = box / 64
    balls = [((0, 0, 0), 11), ((9, 6, -4), 8), ((-8, 4, 9), 8), ((3, -11, 6), 7)]
    inside = [radius(box, tuple(c * unit for c in centre)) < size * unit for centre, size in balls]
    return np.any(inside, axis=0)


def half_maps(
    box: int = 64, pixel_size: float = 2.0, bfactor: float = 120.0, noise: float = 0.3, seed: int = 1
) -> HalfMaps:
    """Half maps whose particle is white within its shape before the B-factor; `noise` is the amplitude of the noise
    in the particle's units, with a B-factor of a third of the particle's."""
    rng = np.random.default_rng(seed)
    support = lumps(box)
    # the outline has no frequencies beyond 10 Å, where the detail is to have the spectrum of the B-factor alone
    detail = blurred(rng.normal(size=support.shape) * support, pixel_size, bfactor)
    particle = detail + blurred(support, pixel_size, max(bfactor, 1000))
    halves = [particle + noise * blurred(rng.normal(size=support.shape), pixel_size, bfactor / 3) for _ in range(2)]
    return HalfMaps(*(v.astype(np.float32) for v in (*halves, particle)), support, pixel_size)


def region_maps(
    box: int, pixel_size: float, noise: tuple[float, float], bfactor: float = 400.0, seed: int = 2
) -> HalfMaps:
    """Half maps that are white before the B-factor everywhere; the noise, with a B-factor of a third of that, has one
    amplitude where z < 0 (the support) and another where z > 0."""
    rng = np.random.default_rng(seed)
    particle = blurred(rng.normal(size=(box,) * 3), pixel_size, bfactor)
    z = np.indices((box,) * 3)[0] - box // 2
    level = noise[1] + (noise[0] - noise[1]) / (1 + np.exp(z))
    halves = [particle + level * blurred(rng.normal(size=(box,) * 3), pixel_size, bfactor / 3) for _ in range(2)]
    return HalfMaps(*(v.astype(np.float32) for v in (*halves, particle)), z < 0, pixel_size)


def planted_resolution(noise: float, bfactor: float = 400.0) -> float:
    """The resolution in Å of `region_maps`: a signal-to-noise ratio of 1/6 is an FSC of 1/7."""
    return float(np.sqrt(bfactor / (3 * np.log(6 / noise**2))))
