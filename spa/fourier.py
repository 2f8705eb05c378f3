"""Fourier transforms with the origin at the box centre, and what is done with them: crop, shift, filter,
resample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa.grids import FourierPixels, centred_coordinates, check_even, rfft_frequencies
from spa.kernels.backend import Array, fft_of, fft_workers, xp_of
from spa.kernels.slices import half_radius

_PLANES = 16


def forward(a: Array, ndim: int = 2) -> Array:
    """Unnormalised real transform over the last `ndim` axes with the origin at index box // 2.

    float32 (..., box, box) to complex64 (..., box, box // 2 + 1), or the same with three axes.
    """
    axes = tuple(range(-ndim, 0))
    return fft_of(a).rfftn(xp_of(a).fft.ifftshift(a, axes=axes), axes=axes, **fft_workers(a))


def inverse(ft: Array, box_size: int, ndim: int = 2) -> Array:
    """The inverse of `forward`: rfft layout (..., box // 2 + 1) to real (..., box) with the centre at box
    // 2."""
    axes = tuple(range(-ndim, 0))
    real = fft_of(ft).irfftn(ft, s=(box_size,) * ndim, axes=axes, **fft_workers(ft))
    return xp_of(ft).fft.fftshift(real, axes=axes)


def gather(ft: Array, pixels: FourierPixels) -> Array:
    """The half-plane pixels, (..., n_pixels), of transforms (..., box, box // 2 + 1)."""
    xp = xp_of(ft)
    return ft[..., xp.asarray(pixels.ky % pixels.box_size), xp.asarray(pixels.kx)]


def scatter(values: Array, pixels: FourierPixels) -> Array:
    """Transforms (..., box, box // 2 + 1) that hold half-plane pixels (..., n_pixels) and zero elsewhere.

    The Friedel mates on the column kx = 0 are set, so that `inverse` gives a real image.
    """
    xp, box = xp_of(values), pixels.box_size
    ft = xp.zeros((*values.shape[:-1], box, box // 2 + 1), dtype=values.dtype)
    ky = xp.asarray(pixels.ky)
    ft[..., ky % box, xp.asarray(pixels.kx)] = values
    axis = xp.asarray(pixels.kx == 0)
    ft[..., -ky[axis] % box, 0] = xp.conj(values[..., axis])
    return ft


def pad_or_crop(a: Array, new_box: int, ndim: int, fill: float = 0.0) -> Array:
    """Give the last `ndim` axes the length `new_box`, centre on centre; new pixels get the value `fill`."""
    xp, box = xp_of(a), a.shape[-1]
    start = abs(new_box // 2 - box // 2)
    inner = (..., *(slice(start, start + min(box, new_box)),) * ndim)
    if new_box <= box:
        return xp.ascontiguousarray(a[inner])
    out = xp.full((*a.shape[:-ndim], *(new_box,) * ndim), fill, dtype=a.dtype)
    out[inner] = a
    return out


def fourier_crop(a: Array, new_box: int, ndim: int) -> Array:
    """Resample real arrays (..., box, ...) to `new_box` pixels along each of the last `ndim` axes by
    cropping or zero-padding their transform; grey values and the centre stay.

    Notes: trigonometric interpolation; a Nyquist term is shared between both signs when padding and summed
    when cropping, so that padding and then cropping is the identity.
    """
    check_even(a.shape[-1])
    check_even(new_box)
    fft, ft, box = fft_of(a), a, a.shape[-1]
    for axis in range(-ndim, 0):
        ft = fft.fft(xp_of(a).fft.ifftshift(ft, axes=axis), axis=axis, **fft_workers(a))
        ft = _crop_axis(ft, new_box, axis)
        ft = xp_of(a).fft.fftshift(fft.ifft(ft, axis=axis, **fft_workers(a)), axes=axis)
        ft = ft.real * (new_box / box)
    return ft.astype(a.dtype)


def _crop_axis(ft: Array, new_box: int, axis: int) -> Array:
    """Crop or zero-pad the full (two-sided) transform along one axis."""
    xp, box = xp_of(ft), ft.shape[axis]
    ft = xp.moveaxis(ft, axis, -1)
    if new_box == box:
        return xp.moveaxis(ft, -1, axis)
    half = min(box, new_box) // 2
    out = xp.zeros((*ft.shape[:-1], new_box), dtype=ft.dtype)
    out[..., :half] = ft[..., :half]
    out[..., -half + 1 :] = ft[..., -half + 1 :] if half > 1 else 0
    if new_box > box:
        out[..., half] = out[..., -half] = ft[..., half] / 2
    else:
        out[..., half] = ft[..., half] + ft[..., -half]
    return xp.moveaxis(out, -1, axis)


def shift(images: Array, shifts: Array) -> Array:
    """Move the content of real images (n, box, box) by +shifts (n, 2), in pixels (x, y), periodically.

    A particle is centred by shifting its image by its origin (rlnOriginX, rlnOriginY).
    """
    xp, box = xp_of(images), images.shape[-1]
    phases = []
    for axis, k in ((1, np.fft.fftfreq(box) * box), (0, np.arange(box // 2 + 1))):
        angle = -2 * np.pi / box * xp.asarray(shifts, dtype=np.float64)[:, axis, None] * xp.asarray(k)
        phase = xp.exp(1j * angle).astype(np.complex64)
        # the Nyquist term of a real image stays real
        phase[:, box // 2] = phase[:, box // 2].real
        phases.append(phase)
    return inverse(forward(images) * phases[0][:, :, None] * phases[1][:, None, :], box).astype(images.dtype)


def phase_factors(shifts: Array, kx: Array, ky: Array, box_size: int) -> Array:
    """Factors exp(-2 pi i k.shift / box), complex64 (n, n_pixels), that move content by +shifts (n, 2)
    pixels."""
    xp = xp_of(shifts)
    angle = (-2 * np.pi / box_size) * (shifts[:, 0, None] * xp.asarray(kx) + shifts[:, 1, None] * xp.asarray(ky))
    return xp.exp(1j * angle).astype(np.complex64)


def low_pass(a: Array, pixel_size: float, resolution: float, edge_shells: int = 2, ndim: int = 3) -> Array:
    """Low-pass filter real arrays over their last `ndim` axes at `resolution` (Angstrom) with a
    raised-cosine edge.

    Notes: the edge of RELION's lowPassFilterMap, `edge_shells` wide and centred on the shell of the
    resolution.
    """
    xp, box = xp_of(a), a.shape[-1]
    cutoff = round(box * pixel_size / resolution)
    low, high = max(0, cutoff - edge_shells // 2), cutoff + edge_shells // 2
    radius = xp.sqrt(sum(xp.asarray(k) ** 2 for k in rfft_frequencies(box, ndim)))
    ramp = xp.clip((radius - low) / max(high - low, 1e-6), 0, 1)
    window = (0.5 + 0.5 * xp.cos(np.pi * ramp)).astype(np.float32)
    return inverse(forward(a, ndim) * window, box, ndim).astype(a.dtype)


def resample(a: Array, pixel_size: float, new_pixel_size: float, new_box: int, ndim: int = 3) -> Array:
    """Resample a real map (box,) * ndim to another pixel size and box, centre on centre, keeping grey values.

    Band-limited to the coarser of the two Nyquist frequencies; zero outside the old box. For the same pixel
    size this is `pad_or_crop`, for the same extent `fourier_crop`.

    Notes: separable trigonometric interpolation, exact for any ratio of pixel sizes.
    """
    xp, box = xp_of(a), a.shape[-1]
    ratio = new_pixel_size / pixel_size
    if abs(ratio - 1) < 1e-6:
        return pad_or_crop(a, new_box, ndim)
    kernel = xp.asarray(_interpolation_matrix(box, new_box, ratio))
    for _ in range(ndim):  # the resampled axis goes last, so that each axis is first once
        a = xp.tensordot(a, kernel, axes=([0], [1]))
    return xp.ascontiguousarray(a.astype(np.float32))


def _interpolation_matrix(box: int, new_box: int, ratio: float) -> NDArray[np.float32]:
    """Weights (new_box, box) of band-limited interpolation at steps of `ratio` old pixels from the centre."""
    position = (np.arange(new_box) - new_box // 2) * ratio
    top = min(box // 2, int(np.floor(box / (2 * ratio) + 1e-6)))
    k = np.arange(1, top + 1)
    weight = np.where(k == box // 2, 1.0, 2.0)
    offsets = position[:, None] - (np.arange(box) - box // 2)[None, :]
    kernel = np.ones_like(offsets)
    for frequency, w in zip(k, weight, strict=True):
        kernel += w * np.cos(2 * np.pi * frequency / box * offsets)
    outside = (position < -box / 2) | (position >= box / 2)
    kernel[outside] = 0
    return (kernel / box).astype(np.float32)


def reference_transform(reference: Array, padding: int, kmax: int) -> Array:
    """Transform a volume (box,) * 3 or an image (box,) * 2 for slicing up to shell `kmax`.

    Returns the half transform that `spa.kernels.slices.extract_slices` interpolates, complex64 (m, m, R +
    2) or (m, R + 2) with R = half_radius(padding, kmax), m = 2 R + 3: index i of z and y is the padded
    frequency i - (R + 1), index of x the padded frequency. Divided by sinc^2 of the radius first, which
    undoes the fall-off that linear interpolation in Fourier space brings.
    """
    xp, box = xp_of(reference), reference.shape[-1]
    check_even(box)
    r, padded = half_radius(padding, kmax), padding * box
    corrected = (reference / gridding_correction(box, padding, reference)).astype(np.float32)
    frequency = np.arange(-(r + 1), r + 2)
    if reference.ndim == 2:
        return _padded_transform(_half_lines(corrected, padded, r), padded, frequency, 0)
    volume = xp.empty((box, len(frequency), r + 2), dtype=np.complex64)
    for z in range(0, box, _PLANES):
        lines = _half_lines(corrected[z : z + _PLANES], padded, r)
        volume[z : z + _PLANES] = _padded_transform(lines, padded, frequency, 1)
    out = xp.empty((len(frequency), len(frequency), r + 2), dtype=np.complex64)
    for y in range(0, len(frequency), _PLANES):
        out[:, y : y + _PLANES] = _padded_transform(volume[:, y : y + _PLANES], padded, frequency, 0)
    return out


def gridding_correction(box: int, padding: int, like: Array) -> Array:
    """sinc^2 of the distance from the centre over the padded box, float32 (box,) * like.ndim: the real-space
    fall-off of linear interpolation between padded Fourier voxels, on the device of `like`.

    Beyond the sphere inscribed in the box it keeps its value at the sphere: without padding it nears zero in the
    corners, and dividing by that would raise them without bound.
    """
    xp = xp_of(like)
    radius = xp.sqrt(sum(xp.asarray(c) ** 2 for c in centred_coordinates(box, like.ndim)))
    radius = xp.minimum(radius, box / 2)
    return (xp.sinc(radius / (padding * box)) ** 2).astype(np.float32)


def _half_lines(a: Array, padded: int, r: int) -> Array:
    """Zero-padded transform of real lines along the last axis at the frequencies 0 .. r + 1."""
    xp, box = xp_of(a), a.shape[-1]
    lines = xp.zeros((*a.shape[:-1], padded), dtype=np.float32)
    lines[..., : box // 2], lines[..., padded - box // 2 :] = a[..., box // 2 :], a[..., : box // 2]
    ft = fft_of(a).rfft(lines, axis=-1, **fft_workers(a))
    # past Nyquist the transform of a real line repeats as its mirrored conjugate
    beyond = padded - np.arange(padded // 2 + 1, r + 2)
    return xp.concatenate([ft[..., : r + 2], xp.conj(ft[..., xp.asarray(beyond)])], axis=-1)


def _padded_transform(a: Array, padded: int, frequency: NDArray[np.int64], axis: int) -> Array:
    """Zero-padded transform along one axis, centre to the origin, at the given frequencies."""
    xp, box = xp_of(a), a.shape[axis]
    lines = xp.zeros((*a.shape[:axis], padded, *a.shape[axis + 1 :]), dtype=np.complex64)
    before = (slice(None),) * axis
    lines[(*before, slice(0, box // 2))] = a[(*before, slice(box // 2, None))]
    lines[(*before, slice(padded - box // 2, None))] = a[(*before, slice(0, box // 2))]
    ft = fft_of(a).fft(lines, axis=axis, overwrite_x=True, **fft_workers(a))
    return xp.take(ft, xp.asarray(frequency % padded), axis=axis)


def from_half_transform(half: Array, padding: int, box: int) -> Array:
    """Real volume (box,) * 3 or image (box,) * 2 of a half transform (2 c + 1, 2 c + 1, c + 1) or (2 c + 1,
    c + 1).

    Axes as in `reference_transform`, with the zero frequency at index c of z and y; the plane x = 0 must be
    its own Friedel mate. Cut from the padded box; raises ValueError if c reaches the padded Nyquist
    frequency.
    """
    xp, padded, c = xp_of(half), padding * box, half.shape[-1] - 1
    if c >= padded // 2:
        raise ValueError(f"half transform of radius {c}: expected less than {padded // 2}")
    if half.ndim == 2:
        return _real_lines(_padded_inverse(half, padded, box, 0), padded, box)
    columns = xp.empty((box, *half.shape[1:]), dtype=np.complex64)
    for y in range(0, half.shape[1], _PLANES):
        columns[:, y : y + _PLANES] = _padded_inverse(half[:, y : y + _PLANES], padded, box, 0)
    volume = xp.empty((box, box, box), dtype=np.float32)
    for z in range(0, box, _PLANES):
        lines = _padded_inverse(columns[z : z + _PLANES], padded, box, 1)
        volume[z : z + _PLANES] = _real_lines(lines, padded, box)
    return volume


def _padded_inverse(a: Array, padded: int, box: int, axis: int) -> Array:
    """Inverse transform along one axis of frequencies -c .. c, cut to the central `box` samples."""
    xp, c = xp_of(a), a.shape[axis] // 2
    lines = xp.zeros((*a.shape[:axis], padded, *a.shape[axis + 1 :]), dtype=np.complex64)
    before = (slice(None),) * axis
    lines[(*before, slice(0, c + 1))] = a[(*before, slice(c, None))]
    lines[(*before, slice(padded - c, None))] = a[(*before, slice(0, c))]
    real = fft_of(a).ifft(lines, axis=axis, overwrite_x=True, **fft_workers(a))
    return xp.take(real, xp.asarray(np.arange(-(box // 2), box // 2) % padded), axis=axis)


def _real_lines(a: Array, padded: int, box: int) -> Array:
    """Inverse real transform along the last axis of frequencies 0 .. c, cut to the central `box` samples."""
    lines = fft_of(a).irfft(a, n=padded, axis=-1, **fft_workers(a))
    return xp_of(a).concatenate([lines[..., padded - box // 2 :], lines[..., : box // 2]], axis=-1)
