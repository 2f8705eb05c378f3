"""Fourier shell correlation of two maps: plain, masked, and corrected for the mask by phase randomisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spa.errors import InputError
from spa.grids import rfft_shells
from spa.kernels.backend import Array, fft_of, fft_workers, to_host, xp_of

FSC_THRESHOLD = 0.143
_SETTLED_SHELLS = 2  # the randomised curve shows the edge of the randomisation for this many shells
_HIGH_RANDOMISED = 0.1
_HIGH_TAIL = 0.1


@dataclass(frozen=True)
class CorrectedFsc:
    """The FSC curves of one pair of half maps; each float64 (box // 2 + 1), indexed by Fourier shell.

    `masked`, `randomised` and `randomise_from` are None without a mask; `randomised` and `randomise_from` are
    also None where the unmasked curve never falls low enough to randomise anything. `corrected` is always
    there.
    """

    unmasked: Array
    masked: Array | None
    randomised: Array | None
    corrected: Array
    randomise_from: int | None

    @property
    def final(self) -> Array:
        """The curve of the resolution: `corrected`, or `unmasked` where that reaches further (as RELION)."""
        return self.unmasked if self.mask_hurts else self.corrected

    @property
    def mask_hurts(self) -> bool:
        """True where the corrected curve ends before the unmasked one: a mask that is wrong or too tight."""
        return resolution_shell(self.unmasked) > resolution_shell(self.corrected)


def fsc(a: Array, b: Array, mask: Array | None = None) -> Array:
    """Fourier shell correlation of two maps (or images), multiplied by `mask` first when one is given.

    Parameters
    ----------
    a, b : float (box, box[, box]), axes ([z,] y, x), on the same device.
    mask : float, same shape, or None.

    Returns
    -------
    float64 NumPy array (box // 2 + 1): the correlation of each Fourier shell of integer radius; 0 where a
    shell has no power in one of the maps.

    Raises
    ------
    InputError for shapes that differ.

    Notes
    -----
    Harauz & van Heel (1986), Optik 73, 146. As in RELION a shell is the rounded radius, and every voxel of
    the stored half of the transform counts once, the plane x = 0 with both its Friedel mates: curves agree to
    rounding.
    """
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        raise InputError(f"FSC: maps{' and mask' if mask is not None else ''} have different boxes")
    if mask is not None:
        a, b = a * mask, b * mask
    ft_a, ft_b = _transform(a), _transform(b)
    cross = _shell_sums((ft_a * ft_b.conj()).real)
    power = _shell_sums(abs(ft_a) ** 2) * _shell_sums(abs(ft_b) ** 2)
    return np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)


def phase_randomise(volume: Array, from_shell: int, rng: np.random.Generator) -> Array:
    """Replace the phases of all Fourier components at radius `from_shell` and beyond by random ones.

    `volume` float (box, box[, box]); returns an array like it. Amplitudes are kept, and so is Hermitian
    symmetry: the phases are those of a transform of white noise, so the result is real with exactly the
    amplitudes of the input.
    """
    xp = xp_of(volume)
    transform = _transform(volume)
    noise = _transform(xp.asarray(rng.standard_normal(volume.shape, dtype=np.float32)))
    size = abs(noise)
    random = abs(transform) * xp.where(size > 0, noise / xp.where(size > 0, size, 1), 1)
    beyond = xp.asarray(rfft_shells(volume.shape[-1], volume.ndim)) >= from_shell
    mixed = xp.where(beyond, random, transform)
    result = fft_of(volume).irfftn(mixed, s=volume.shape, **fft_workers(volume))
    return result.astype(volume.dtype, copy=False)


def corrected_fsc(
    half1: Array,
    half2: Array,
    mask: Array | None,
    randomise_at_fsc: float = 0.8,
    rng: np.random.Generator | None = None,
) -> CorrectedFsc:
    """FSC of two half maps with the correlation that the mask itself makes taken out.

    Phases are randomised from the first shell (not the origin) where the unmasked curve falls below
    `randomise_at_fsc`. Arrays as in `fsc`; without `rng` the generator is seeded by 0, so that a curve can be
    repeated.

    Notes
    -----
    Chen et al. (2013), Ultramicroscopy 135, 24: corrected = (masked - randomised) / (1 - randomised), from
    two shells beyond the randomisation on, as RELION does; below that the masked curve stands.
    """
    unmasked = fsc(half1, half2)
    if mask is None:
        return CorrectedFsc(unmasked, None, None, unmasked, None)
    masked = fsc(half1, half2, mask)
    low = np.flatnonzero(unmasked[1:] < randomise_at_fsc) + 1
    if low.size == 0:
        return CorrectedFsc(unmasked, masked, None, masked, None)
    rng = rng or np.random.default_rng(0)
    start = int(low[0])
    randomised = fsc(phase_randomise(half1, start, rng), phase_randomise(half2, start, rng), mask)
    corrected = masked.copy()
    tail = slice(start + _SETTLED_SHELLS, None)
    corrected[tail] = (masked[tail] - randomised[tail]) / np.maximum(1 - randomised[tail], 1e-9)
    return CorrectedFsc(unmasked, masked, randomised, corrected, start)


def resolution_shell(curve: Array, threshold: float = FSC_THRESHOLD) -> int:
    """The last shell before the curve first falls below `threshold`; 0 if the first shell is below it.

    The origin is not looked at. Beyond the first crossing nothing counts, however high the curve rises again.
    """
    below = np.flatnonzero(~(np.asarray(curve)[1:] >= threshold))
    return int(below[0]) if below.size else len(curve) - 1


def shell_to_resolution(shell: float, box: int, pixel_size: float) -> float:
    """Resolution in Å of a Fourier shell, box · pixel_size / shell; infinite for shell 0."""
    return box * pixel_size / shell if shell > 0 else float("inf")


def doubts(curves: CorrectedFsc, pixel_size: float) -> list[str]:
    """What speaks against the resolution that the curves give, a sentence each; empty where nothing does."""
    final, shell = curves.final, resolution_shell(curves.final)
    last = len(final) - 1
    found = []
    if shell == 0:
        found.append(f"no resolution: the FSC is below {FSC_THRESHOLD} from the first shell on")
    if shell == last:
        found.append(
            f"the FSC is {final[last]:.2f} at the highest frequency, {2 * pixel_size:.2f} A: "
            "the pixel size limits the resolution"
        )
    tail = float(curves.unmasked[-max(3, last // 10) :].mean())
    if shell < last and tail > _HIGH_TAIL:
        found.append(
            f"the unmasked FSC stays at {tail:.2f} to the highest frequencies: the halves share something "
            "other than signal (duplicate particles, a mask, refinement against one reference)"
        )
    if curves.masked is not None and curves.randomised is None:
        found.append("the unmasked FSC never falls low enough to randomise phases: the masked FSC is not corrected")
    if curves.mask_hurts:
        found.append(
            "the unmasked FSC reaches further than the one corrected for the mask, which cuts into the "
            "particle or is too tight: the resolution is that of the unmasked maps"
        )
    elif curves.randomised is not None and shell > 0 and curves.randomised[shell] > _HIGH_RANDOMISED:
        found.append(
            f"the mask correlates the half maps (FSC {curves.randomised[shell]:.2f} with random phases at "
            "the resolution): use a softer, wider one"
        )
    return found


def _transform(a: Array) -> Array:
    return fft_of(a).rfftn(a.astype(np.float64, copy=False), **fft_workers(a))


def _shell_sums(values: Array) -> Array:
    xp = xp_of(values)
    box = values.shape[0]
    shells = xp.asarray(rfft_shells(box, values.ndim)).ravel()
    return to_host(xp.bincount(shells, weights=values.ravel()))[: box // 2 + 1]
