"""Simulated movies: drift, doming, radiation damage and the detector, frame by frame. Arrays only.

Everything follows from (seed, micrograph number, frame); the detector's gain and its bad pixels from the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from spa import micrograph_scene
from spa.dose import critical_exposure
from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of
from spa.micrograph_scene import Scene
from spa.micrograph_simulation import Image, crop, frequencies

Floats = NDArray[np.float64]
Counts = NDArray[np.uint8] | NDArray[np.uint16]

_MOTION, _COUNTS, _DETECTOR = 21, 22, 23  # purposes of random numbers, beside those of `micrograph_scene`
_SETTLING = 4.0  # frames over which the first, fast motion dies down
_FAST = 2.0  # how much faster than later the motion starts
_TURNING = 0.25  # radians a frame, by which the direction of the drift wanders
_PIXEL_GAIN, _COLUMN_GAIN, _PANEL_GAIN = 0.04, 0.02, 0.02
_PANELS = (4, 4)
_HOT_RATE = 40.0  # counts a frame
_TAPS, _PHASES, _KAISER = 12, 2048, 6.0
_STRIP = 1 << 20  # pixels counted at once
_MOST_IN_A_BYTE = 100.0  # mean counts a frame up to which 8 bits hold them all


@dataclass(frozen=True)
class Recipe:
    """What the movies of one run share.

    n_frames : number. dose : total exposure, e/Å². drift : mean length of a step of the whole frame from one to the
    next, Å; the first steps are the longest. doming : largest local motion at the end, Å; it averages to nothing
    over the frame.
    """

    n_frames: int
    dose: float
    drift: float
    doming: float

    @property
    def reach(self) -> float:
        """The farthest that anything can move, Å."""
        return self.drift * (self.n_frames - 1) + self.doming


@dataclass(frozen=True)
class Motion:
    """How the specimen moves from frame to frame, in pixels (x, y).

    drift : float64 (n_frames, 2), of the whole frame, with none in the first.
    course : float64 (n_frames,), how much of the local motion has happened, from 0.
    coefficients : float64 (2, 6), of the local motion at the end: along x and y the factors of 1, x, x², y, y², xy,
        with x and y from -1/2 to 1/2 across the frame, as in RELION's model of local motion.
    """

    drift: Floats
    course: Floats
    coefficients: Floats

    def local(self, points: Floats, shape: tuple[int, int]) -> Floats:
        """Local motion, float64 (n_frames, n, 2), of what lies at points (n, 2), in pixels, of the first frame."""
        x, y = (points / np.array(shape[::-1]) - 0.5).T
        basis = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])
        return np.asarray(self.course[:, None, None] * (self.coefficients @ basis).T)


def draw_motion(recipe: Recipe, pixel_size: float, seed: int, number: int) -> Motion:
    """The motion of the movie `number`, drawn at random; pixel size in Å."""
    rng = np.random.default_rng([seed, number, _MOTION])
    frames = np.arange(recipe.n_frames)
    speed = 1 + _FAST * np.exp(-frames[1:] / _SETTLING)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(_TURNING * rng.standard_normal(len(speed)))
    steps = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    course = 1 - np.exp(-frames / _SETTLING)
    if len(speed):
        steps *= recipe.drift / speed.mean()
        course /= course[-1]
    track = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return Motion(track / pixel_size, course, _dome(rng) * recipe.doming / pixel_size)


def _dome(rng: np.random.Generator) -> Floats:
    """Coefficients (2, 6) of a field whose mean over the frame is zero and whose largest length is 1.

    A dome pushes outwards from a centre off the middle; shear and bending are mixed in.
    """
    centre = rng.uniform(-0.3, 0.3, 2)
    outward = rng.choice([-1.0, 1.0])
    field = 0.5 * rng.standard_normal((2, 6))
    field[0] += outward * np.array([-centre[0], 1, 0, 0, 0, 0])
    field[1] += outward * np.array([-centre[1], 0, 0, 1, 0, 0])
    field[:, 0] = -(field[:, 2] + field[:, 4]) / 12
    x, y = (a.ravel() for a in np.meshgrid(*(np.linspace(-0.5, 0.5, 41),) * 2))
    lengths = np.hypot(*(field @ np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])))
    return np.asarray(field / lengths.max())


@dataclass(frozen=True)
class Detector:
    """A detector whose counts times `gain` are electrons.

    gain : float32 (rows, columns), about 1, and 0 for dead pixels. hot, dead : bool (rows, columns).
    """

    gain: Image
    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]


def draw_detector(shape: tuple[int, int], n_hot: int, n_dead: int, seed: int) -> Detector:
    """A detector with a gain that varies by about 5 % among pixels, columns and panels, and with bad pixels."""
    rng = np.random.default_rng([seed, 0, _DETECTOR])
    rows, columns = shape
    gain = 1 + _PIXEL_GAIN * np.clip(rng.standard_normal(shape, dtype=np.float32), -4, 4)
    gain *= 1 + _COLUMN_GAIN * np.clip(rng.standard_normal(columns, dtype=np.float32), -4, 4)
    panels = 1 + _PANEL_GAIN * rng.uniform(-1, 1, _PANELS)
    down, across = (np.arange(n) * panel // n for n, panel in zip(shape, _PANELS, strict=True))
    gain *= panels[np.ix_(down, across)].astype(np.float32)
    gain /= gain.mean(dtype=np.float64)
    bad = rng.choice(rows * columns, min(n_hot + n_dead, rows * columns), replace=False)
    hot, dead = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    hot.flat[bad[:n_hot]] = True
    dead.flat[bad[n_hot:]] = True
    gain[dead] = 0
    return Detector(np.asarray(gain, dtype=np.float32), hot, dead)


def frames(
    micrograph: micrograph_scene.Recipe,
    movie: Recipe,
    scene: Scene,
    motion: Motion,
    detector: Detector,
    image: Array,
) -> Iterator[Counts]:
    """The frames of a movie as the detector writes them: counts (rows, columns), uint8 or uint16.

    `image` is what `expected_image` gave, on the device to work on. Amplitudes fall by exp(-N / 2 Nc), N the exposure
    up to the middle of a frame and Nc its critical value.

    Raises
    ------
    InputError
        If the critical exposure is not known at the voltage.
    """
    xp, pixel = xp_of(image), micrograph.pixel_size
    fy, fx = (xp.asarray(f) for f in frequencies(image.shape, pixel))
    decay = -0.5 / critical_exposure(xp.sqrt(fy**2 + fx**2), micrograph.optics[scene.optics_index].voltage)
    ft = fft_of(image).rfft2(image, **fft_workers(image))
    rate = np.float32(micrograph.electrons / movie.n_frames)
    for i, (x, y) in enumerate(motion.drift):
        moved = xp.exp(decay * np.float32(movie.dose * (i + 0.5) / movie.n_frames)) * ft
        for f, d in ((fx, x), (fy, y)):
            moved *= xp.exp(-2j * np.pi * pixel * d * f).astype(np.complex64)
        moved = fft_of(ft).irfft2(moved, s=image.shape, overwrite_x=True, **fft_workers(image))
        local = motion.course[i] * motion.coefficients
        expected = (
            _warped(micrograph, to_host(moved), local, np.array([x, y]))
            if local.any()
            else to_host(crop(micrograph, moved))
        )
        yield _counts(np.random.default_rng([micrograph.seed, scene.number, _COUNTS, i]), detector, expected * rate)


def _counts(rng: np.random.Generator, detector: Detector, expected: Image) -> Counts:
    """Counts, with Poisson noise, of the electrons `expected`, before the gain is corrected for."""
    dtype = np.uint8 if expected.mean() < _MOST_IN_A_BYTE else np.uint16
    counts = np.empty(expected.shape, dtype=dtype)
    step = max(1, _STRIP // expected.shape[1])
    for row in range(0, len(counts), step):
        strip = slice(row, row + step)
        rates = np.maximum(expected[strip], 0) / np.where(detector.dead[strip], 1, detector.gain[strip])
        rates[detector.hot[strip]], rates[detector.dead[strip]] = _HOT_RATE, 0
        counts[strip] = np.minimum(rng.poisson(rates), np.iinfo(dtype).max)
    return counts


def _warped(micrograph: micrograph_scene.Recipe, image: Image, coefficients: Floats, drift: Floats) -> Image:
    """The micrograph's part of an image whose content moves by a local field, float32 without margins.

    The field belongs to the specimen, which has moved by `drift` before.
    """
    shape, origin, kernel = micrograph.shape, np.array(micrograph.origin), _interpolation_kernel()
    across = np.empty((image.shape[0], shape[1]), dtype=np.float32)
    out = np.empty(shape, dtype=np.float32)
    _warp_rows(np.ascontiguousarray(image), coefficients, drift, kernel, origin, np.array(shape), across)
    _warp_columns(across, coefficients, drift, kernel, origin, out)
    return out


def _interpolation_kernel() -> Image:
    """Weights, float32 (_PHASES + 1, _TAPS), of a Kaiser-windowed sinc for positions between two pixels."""
    offset = np.arange(_TAPS) - (_TAPS // 2 - 1)
    distance = np.arange(_PHASES + 1)[:, None] / _PHASES - offset
    window = np.i0(_KAISER * np.sqrt(np.clip(1 - (distance / (_TAPS / 2)) ** 2, 0, 1))) / np.i0(_KAISER)
    weights = np.sinc(distance) * window
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


@njit(inline="always")
def _field(c, x, y):  # type: ignore[no-untyped-def]
    return c[0] + c[1] * x + c[2] * x * x + c[3] * y + c[4] * y * y + c[5] * x * y


@njit(cache=True, parallel=True)
def _warp_rows(image, c, drift, kernel, origin, shape, out):  # type: ignore[no-untyped-def]
    """Move along x; a point that ends at p came from p - d(p - d(p)), to the second order in the field's slope."""
    taps, phases = kernel.shape[1], kernel.shape[0] - 1
    height, width = shape[0], shape[1]
    for row in prange(out.shape[0]):
        v = (row - origin[0] - drift[1]) / height - 0.5
        for column in range(width):
            u = (column - drift[0]) / width - 0.5
            du, dv = _field(c[0], u, v) / width, _field(c[1], u, v) / height
            source = column + origin[1] - _field(c[0], u - du, v - dv)
            first = int(np.floor(source))
            phase = int((source - first) * phases + 0.5)
            first -= taps // 2 - 1
            total = np.float32(0)
            for k in range(taps):
                total += kernel[phase, k] * image[row, first + k]
            out[row, column] = total


@njit(cache=True, parallel=True)
def _warp_columns(image, c, drift, kernel, origin, out):  # type: ignore[no-untyped-def]
    """Move along y, after `_warp_rows`."""
    taps, phases = kernel.shape[1], kernel.shape[0] - 1
    height, width = out.shape
    for row in prange(height):
        v = (row - drift[1]) / height - 0.5
        for column in range(width):
            u = (column - drift[0]) / width - 0.5
            du, dv = _field(c[0], u, v) / width, _field(c[1], u, v) / height
            source = row + origin[0] - _field(c[1], u - du, v - dv)
            first = int(np.floor(source))
            phase = int((source - first) * phases + 0.5)
            first -= taps // 2 - 1
            total = np.float32(0)
            for k in range(taps):
                total += kernel[phase, k] * image[first + k, column]
            out[row, column] = total
