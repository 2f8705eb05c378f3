"""What electrons do to the specimen: critical exposure, and the weights of the frames of a movie.

Notes: Grant & Grigorieff 2015, eLife 4:e06980: the critical exposure is 0.245 s^-1.665 + 2.81 e/Å^2 at 300 kV
(equation 3), after which the signal has fallen to 1/e in power; the best weight of a frame is its remaining
amplitude exp(-N / (2 Ne)) with N the exposure at its end (equation 5).
"""

from __future__ import annotations

from spa.errors import InputError
from spa.kernels.backend import Array, xp_of

RELATIVE_EXPOSURE = {300: 1.0, 200: 0.8, 100: 0.64}
"""Voltage in kV -> critical exposure relative to that at 300 kV, as RELION has it."""

_SAME_VOLTAGE = 2.0


def voltage_factor(voltage: float) -> float:
    """Critical exposure at `voltage` (kV) relative to 300 kV; InputError unless it is 100, 200 or 300 kV."""
    for known, factor in RELATIVE_EXPOSURE.items():
        if abs(voltage - known) <= _SAME_VOLTAGE:
            return factor
    raise InputError(f"dose weighting is known for 100, 200 and 300 kV, not for {voltage:g} kV")


def critical_exposure(frequency: Array, voltage: float) -> Array:
    """Critical exposure in e/Å^2 at spatial frequencies in 1/Å; infinite at 0."""
    xp = xp_of(frequency)
    safe = xp.maximum(frequency, 1e-8)
    exposure = voltage_factor(voltage) * (0.245 * safe**-1.665 + 2.81)
    return xp.where(frequency > 0, exposure, xp.inf)


def frame_weight(frame: int, frequency: Array, voltage: float, dose_per_frame: float, preexposure: float) -> Array:
    """Weight of frame `frame` (from 0) at spatial frequencies in 1/Å, float32, before they are normalised.

    `dose_per_frame` and `preexposure` in e/Å^2.
    """
    exposure = preexposure + dose_per_frame * (frame + 1)
    weight = xp_of(frequency).exp(-exposure / (2 * critical_exposure(frequency, voltage)))
    return weight.astype(frequency.dtype)


def weight_norm(n_frames: int, frequency: Array, voltage: float, dose_per_frame: float, preexposure: float) -> Array:
    """Root of the summed squares of the weights of all frames: dividing by it keeps noise white (equation 9)."""
    xp = xp_of(frequency)
    total = xp.zeros_like(frequency)
    for frame in range(n_frames):
        total += frame_weight(frame, frequency, voltage, dose_per_frame, preexposure) ** 2
    # where every weight is next to nothing, any common factor would do; this one keeps zero from dividing zero
    return xp.sqrt(xp.maximum(total, 1e-30))
