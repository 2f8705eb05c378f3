"""Small movies whose motion is known: a random specimen in ice, bent and shifted, counted electron by electron."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter

from spa.io import mrc, star

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MadeMovie:
    """Frames (n, size, size) of counts, the specimen (size, size) at the first frame, and how it moves.

    `drift` (n, 2) in pixels, x and y; `bend` (n, 2, 6): coefficients of 1, x, x^2, y, y^2, xy of what adds to it.
    """

    frames: NDArray[np.uint8]
    specimen: NDArray[np.float32]
    drift: Floats
    bend: Floats

    def at(self, places: Floats) -> Floats:
        """Positions (n_frames, n_places, 2) of places (n_places, 2), from -0.5 to 0.5, relative to the first frame."""
        moved = self.drift[:, None, :] + np.einsum("fap,np->fna", self.bend, terms(places))
        return np.asarray(moved - moved[:1])


def terms(places: Floats) -> Floats:
    """1, x, x^2, y, y^2, xy of places (n, 2)."""
    x, y = places[..., 0], places[..., 1]
    return np.stack([np.ones_like(x), x, x * x, y, y * y, x * y], axis=-1)


def grid(n: int = 9) -> Floats:
    """Places (n * n, 2) over the whole field."""
    axis = (np.arange(n) + 0.5) / n - 0.5
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def specimen(size: int, pixel_size: float, seed: int) -> NDArray[np.float32]:
    """A random image with the spectrum of particles seen out of focus, mean 0, standard deviation 1."""
    rng = np.random.default_rng(seed)
    s2 = (np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2) / pixel_size**2
    envelope = np.sin(np.pi * 0.0197 * 12000 * s2 + 0.1) * np.exp(-25 * s2) / np.sqrt(1 + 1600 * s2)
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * envelope, s=(size, size))
    return np.asarray(image / image.std(), dtype=np.float32)


def make_movie(
    size: int = 512,
    n_frames: int = 24,
    pixel_size: float = 1.5,
    drift: float = 1.0,
    doming: float = 0.0,
    contrast: float = 0.1,
    counts: float = 2.0,
    damage: float = 0.0,
    seed: int = 1,
) -> MadeMovie:
    """A movie of `counts` electrons a pixel and frame.

    `drift` in Å a frame, faster at first; `doming` in Å, how far the terms of the bend come to; `contrast` the
    standard deviation of the specimen; `damage` in Å^2 a frame: the specimen loses exp(-damage s^2).
    """
    rng = np.random.default_rng([seed, 1])
    image, time = specimen(size, pixel_size, seed), np.arange(n_frames)
    direction = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(size=n_frames)) * 0.15
    speed = drift / pixel_size * (0.5 + np.exp(-time / 4))
    path = np.cumsum(speed[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1), axis=0)
    shape = rng.normal(size=(2, 6)) * np.array([0, 1, 1.5, 1, 1.5, 1]) * doming / pixel_size
    bend = (1 - np.exp(-time / 6))[:, None, None] * shape
    movie = MadeMovie(np.empty((n_frames, size, size), np.uint8), image, path - path[0], bend)
    row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    field = terms(np.stack([column, row], axis=-1) / size - 0.5)
    s2 = (np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size) ** 2) / pixel_size**2
    for i in range(n_frames):
        faded = np.fft.irfft2(np.fft.rfft2(image) * np.exp(-damage * i * s2), s=(size, size))
        u = field @ bend[i].T + movie.drift[i]
        seen = map_coordinates(
            spline_filter(faded, mode="grid-wrap"),
            [row - u[..., 1], column - u[..., 0]],
            prefilter=False,
            mode="grid-wrap",
        )
        movie.frames[i] = np.minimum(rng.poisson(np.maximum(counts * (1 + contrast * seen), 0)), 255)
    return movie


def write_tiff(path: str | Path, frames: NDArray[Any], compression: str | None = "lzw") -> None:
    """Write frames whose first row is the lowest as TIFF, which begins at the top."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for frame in frames:
            file.write(frame[::-1], compression=compression, photometric="minisblack", contiguous=False)


def write_movies_star(path: str | Path, names: list[str], pixel_size: float = 1.5, voltage: float = 300.0) -> None:
    """A movies.star as relion_import writes it."""
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [pixel_size],
        "rlnVoltage": [voltage],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    movies = {"rlnMicrographMovieName": names, "rlnOpticsGroup": [1] * len(names)}
    star.write(path, star.StarFile([star.Block.table("optics", optics), star.Block.table("movies", movies)]))


def write_mrc(path: str | Path, images: NDArray[Any]) -> None:
    """Write a gain reference or a map of defects."""
    mrc.write_stack(path, images, 1.0)
