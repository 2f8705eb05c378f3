"""How far a CTF estimate can be trusted: a probability calibrated on simulated micrographs, and what speaks against."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spa.ctf_estimation import CtfEstimate
from spa.kernels.backend import Array, to_host

TRUSTED = 0.8
"""A fit with at least this probability, and nothing else against it, is trusted."""

DOUBTFUL = 0.5
"""The most that a fit with something against it is given."""

_INTERCEPT, _PER_LOG_GAIN, _PER_ERROR, _PER_LEAD = -3.01, 1.53, -0.00606, 0.0491
_ERROR_LIMIT, _LEAD_LIMIT = 400.0, 30.0
_DEFOCUS_ERROR = 180.0
_SUPPORT, _OF_ONE_RING = 0.2, 0.1
_SEEN_DEPTH, _RINGS_IN_ROW = 1.8, 3
_CLEARLY_OFF = 2.5
_DRIFT = 0.35
_PHASE_ERROR = 1.5
_FAR_BETTER, _LEAST_PHASE, _LEAST_SPHERICAL, _MOST_SPHERICAL = 12.0, 8.0, 0.8, 20.0
_UNEVEN_SHARE, _UNEVEN_CONTRAST, _UNEVEN_PART = 0.82, 0.2, 0.15
_BLOCKS = 32


def confidence(found: CtfEstimate) -> float:
    """Probability that both defoci are within 300 Angstrom of the truth.

    Notes
    -----
    Logistic regression on micrographs made by `spa simulate` (see benchmarks/jobs/ctffind.py), from plain rings to
    none; the resolution of the fit is not used, since noise alone can give a good one. What rests on a single ring may
    be a bend of the background, which none of those micrographs has.
    """
    score = (
        _INTERCEPT
        + _PER_LOG_GAIN * math.log(max(found.gain, 1.0))
        + _PER_ERROR * min(found.defocus_error, _ERROR_LIMIT)
        + _PER_LEAD * min(max(found.lead, 0.0), _LEAD_LIMIT)
    )
    probability = 1 / (1 + math.exp(-max(min(score, 30.0), -30.0)))
    return min(probability, _OF_ONE_RING) if _one_ring(found) else probability


def _one_ring(found: CtfEstimate) -> bool:
    return found.support < _SUPPORT * found.gain


def _too_few_rings(found: CtfEstimate) -> bool:
    """Whether not even three rings in a row, the first or the second among them, are seen by themselves.

    All have to be seen where there are fewer.
    """
    seen = found.evidence.depth > _SEEN_DEPTH
    needed = max(1, min(_RINGS_IN_ROW, len(seen)))
    return not any(seen[first : first + needed].sum() == needed for first in (0, 1))


def _rings_off(found: CtfEstimate) -> bool:
    """Whether two neighbouring rings lie where the fit has none: a phase plate, or a wrong pixel size."""
    off = found.evidence.offset > _CLEARLY_OFF
    return bool((off[1:] & off[:-1]).any())


def _left_out(found: CtfEstimate) -> str:
    """What the rings fit far better with: "phase_shift", "spherical", or "" for neither.

    Notes: amplitude contrast and magnification are never exact, so that a few degrees and some tenths of a millimetre
    do not count; no voltage is so wrong that it looks like 20 mm.
    """
    left = found.left_out
    phase = left.phase_gain > _FAR_BETTER and abs(left.phase_shift) > _LEAST_PHASE
    spherical = left.spherical_gain > _FAR_BETTER and _LEAST_SPHERICAL < abs(left.spherical) < _MOST_SPHERICAL
    if phase and (left.phase_gain > left.spherical_gain or not spherical):
        return "phase_shift"
    return "spherical" if spherical else ""


def problems(found: CtfEstimate, uneven: float) -> list[str]:
    """What speaks against a fit, one word each; none for a fit to be trusted.

    `uneven` is that of `uneven_part`.
    """
    left = _left_out(found)
    checks = {
        "rings_too_weak": confidence(found) < TRUSTED and not _one_ring(found),
        "one_ring_only": _one_ring(found),
        "too_few_rings": _too_few_rings(found) and not _one_ring(found),
        "rings_do_not_fit": _rings_off(found) and not left,
        "phase_shift_left_out": left == "phase_shift",
        "wrong_voltage_or_cs": left == "spherical",
        "defocus_uncertain": found.defocus_error > _DEFOCUS_ERROR,
        "phase_shift_uncertain": found.phase_error > _PHASE_ERROR,
        "defocus_at_limit": found.at_limit,
        "drift": found.drift > _DRIFT,
        "uneven_field": uneven > 0,
    }
    return [word for word, spoken in checks.items() if spoken]


def uneven_part(micrograph: Array) -> float:
    """The part of a micrograph (rows, columns) that is covered by something of another brightness; 0 for none.

    Notes
    -----
    Means of blocks are parted in two so that the variance between the parts is largest (Otsu 1979, IEEE Trans Syst
    Man Cybern 9:62). Noise gives 0.64 of the variance between the parts and a slope 0.75; a step, as carbon or
    the edge of a hole makes it, gives nearly all. A share of less than 15 per cent does not count.
    """
    rows, columns = (n // _BLOCKS * _BLOCKS for n in micrograph.shape)
    if min(rows, columns) < 4 * _BLOCKS:
        return 0.0
    blocks = micrograph[:rows, :columns].reshape(rows // _BLOCKS, _BLOCKS, columns // _BLOCKS, _BLOCKS)
    means: NDArray[np.float64] = np.sort(to_host(blocks.mean(axis=(1, 3), dtype=np.float64)).ravel())
    n, total, below = len(means), means.sum(), np.arange(1, len(means))
    sums = np.cumsum(means)[:-1]
    between = below * (n - below) / n**2 * ((total - sums) / (n - below) - sums / below) ** 2
    best = int(between.argmax())
    part = min(best + 1, n - best - 1) / n
    contrast = float(means.std()) / max(float(micrograph.std(dtype=np.float64)), 1e-30)
    stepped = between[best] > _UNEVEN_SHARE * means.var() and contrast > _UNEVEN_CONTRAST
    return part if stepped and part >= _UNEVEN_PART else 0.0
