"""What lies where in a simulated micrograph: the carbon around a hole, contamination, particles that do not overlap.

Positions and lengths are in pixels, x along the columns, pixel centres at whole numbers. Arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.errors import InputError

Floats = NDArray[np.float64]

_HOLE_RADIUS = 6000.0  # Å, of a foil with holes of 1.2 µm
_EDGE = 30.0  # Å, over which the carbon thins out
_CARBON_COVERS = 0.35  # of the width, farthest from the middle that the edge runs
_CARBON_GRAIN, _CARBON_LOSS = 2.5, 0.25
_BLOB_RADII = (120.0, 500.0)  # Å
_BLOB_GRAIN, _BLOB_LOSS = 2.0, (0.25, 0.55)
_WAVES, _ROUGHNESS = 5, 0.15  # harmonics of a blob's outline, and their size
_RIM = 0.2  # of a blob's radius, over which it reaches its full thickness
_TRIES = 400  # draws of all particles


@dataclass(frozen=True)
class Lump:
    """A thickness, 0 to 1, float32 (rows, columns), on the part [row:, column:] of an image.

    grain : amplitude of its structural noise where it is thickest, that of ice 1. loss : of intensity there.
    """

    row: int
    column: int
    thickness: NDArray[np.float32]
    grain: float
    loss: float

    def part(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of an image that the thickness is for, as a view."""
        rows, columns = self.thickness.shape
        return image[self.row : self.row + rows, self.column : self.column + columns]


@dataclass(frozen=True)
class Hole:
    """A round hole in a carbon film; the film lies outside it and is `edge` pixels from full thickness at its rim."""

    x: float
    y: float
    radius: float
    edge: float

    def clearance(self, points: Floats) -> Floats:
        """Distance (n,) of points (n, 2) from the carbon, negative on it."""
        return np.asarray(self.radius - np.hypot(*(points - [self.x, self.y]).T))

    def drawn(self, shape: tuple[int, int], origin: tuple[int, int]) -> Lump:
        """The film on an image of `shape` whose pixel `origin` (row, column) is at the position 0, 0."""
        y, x = np.ogrid[-origin[0] : shape[0] - origin[0], -origin[1] : shape[1] - origin[1]]
        thickness = _smooth_step((np.hypot(x - self.x, y - self.y) - self.radius) / self.edge)
        return Lump(0, 0, thickness.astype(np.float32), _CARBON_GRAIN, _CARBON_LOSS)


@dataclass(frozen=True)
class Blob:
    """A grain of ice or dirt with a wavy outline, radius (1 + sum of a cos(k angle + phase)) for k from 2.

    waves : float64 (n, 2), a and phase. loss : of intensity where it is thickest.
    """

    x: float
    y: float
    radius: float
    waves: Floats
    loss: float

    @property
    def reach(self) -> float:
        """The farthest that it can extend from its centre."""
        return float(self.radius * (1 + np.abs(self.waves[:, 0]).sum()))

    def clearance(self, points: Floats) -> Floats:
        """Distance (n,) of points (n, 2) from the circle around it, negative within."""
        return np.asarray(np.hypot(*(points - [self.x, self.y]).T) - self.reach)

    def drawn(self, shape: tuple[int, int], origin: tuple[int, int]) -> Lump:
        """The grain on an image of `shape` whose pixel `origin` (row, column) is at the position 0, 0."""
        centre = np.array([self.y + origin[0], self.x + origin[1]])
        first = np.clip(np.floor(centre - self.reach), 0, shape).astype(int)
        last = np.clip(np.ceil(centre + self.reach) + 1, 0, shape).astype(int)
        y, x = np.ogrid[first[0] : last[0], first[1] : last[1]]
        dy, dx = y - centre[0], x - centre[1]
        angle = np.arctan2(dy, dx)
        waves = [a * np.cos(k * angle + phase) for k, (a, phase) in enumerate(self.waves, start=2)]
        depth = 1 + np.asarray(sum(waves)) - np.hypot(dx, dy) / self.radius
        dome = 1 - (np.hypot(dx, dy) / self.reach) ** 2
        thickness = _smooth_step(depth / _RIM) * dome
        return Lump(int(first[0]), int(first[1]), thickness.astype(np.float32), _BLOB_GRAIN, self.loss)


@dataclass(frozen=True)
class Surroundings:
    """What a micrograph shows besides ice and particles: at most one carbon edge, any number of blobs."""

    hole: Hole | None
    blobs: tuple[Blob, ...]

    @property
    def all(self) -> list[Hole | Blob]:
        """The carbon first."""
        return [*([self.hole] if self.hole else []), *self.blobs]

    def clearance(self, points: Floats) -> Floats:
        """Distance (n,) of points (n, 2) from the nearest of them, negative inside, infinite where there is none."""
        distances = [np.full(len(points), np.inf), *(one.clearance(points) for one in self.all)]
        return np.asarray(np.min(distances, axis=0))


def draw_surroundings(
    shape: tuple[int, int], pixel_size: float, carbon: float, contamination: float, rng: np.random.Generator
) -> Surroundings:
    """Surroundings of a micrograph, drawn at random.

    Parameters
    ----------
    shape : rows and columns. pixel_size : Å.
    carbon : probability of a carbon edge, which then covers about a sixth to half of the micrograph.
    contamination : mean number of blobs.
    """
    rows, columns = shape
    direction, depth, chance = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, _CARBON_COVERS), rng.random()
    radius = _HOLE_RADIUS / pixel_size
    distance = radius - depth * min(shape)
    centre = (columns / 2 - distance * np.cos(direction), rows / 2 - distance * np.sin(direction))
    hole = Hole(*centre, radius, _EDGE / pixel_size) if chance < carbon else None
    (small, large), blobs = _BLOB_RADII, []
    for _ in range(rng.poisson(contamination)):
        x, y, size = rng.random(3) * [columns, rows, 1]
        amplitudes = _ROUGHNESS * rng.standard_normal(_WAVES) / np.arange(2, 2 + _WAVES)
        waves = np.stack([amplitudes, rng.uniform(0, 2 * np.pi, _WAVES)], axis=1)
        blobs.append(Blob(x, y, small * (large / small) ** size / pixel_size, waves, rng.uniform(*_BLOB_LOSS)))
    return Surroundings(hole, tuple(blobs))


def place(n: int, shape: tuple[int, int], diameter: float, rng: np.random.Generator) -> Floats:
    """Centres (x, y) of n particles, float64 (n, 2), at random but at least a diameter apart.

    They lie half a diameter or more from the border.

    Raises
    ------
    InputError
        If no place is found for them all.
    """
    rows, columns = shape
    low, high = np.full(2, diameter / 2), np.array([columns - 1, rows - 1]) - diameter / 2
    if n and (high <= low).any():
        raise InputError(
            f"a particle of {diameter:.0f} px does not fit a micrograph of {columns} x {rows} px with room around it"
        )
    found = np.empty((0, 2))
    for _ in range(_TRIES):
        if len(found) == n:
            break
        for point in rng.uniform(low, high, (n, 2)):
            if len(found) < n and (np.hypot(*(found - point).T) >= diameter).all():
                found = np.concatenate([found, point[None]])
    if len(found) < n:
        raise InputError(
            f"{n} particles of {diameter:.0f} px do not fit a micrograph of {columns} x {rows} px without overlap "
            f"({len(found)} found a place): expected fewer --nr_particles or more --nr_micrographs"
        )
    return found


def _smooth_step(t: Floats) -> Floats:
    """0 below 0, 1 above 1, with a continuous slope between."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
