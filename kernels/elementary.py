"""Float32 sine, cosine, exponential and dot products that LLVM vectorises inside Numba loops (libm calls would not)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

f32 = np.float32

# Infinities stay meaningful (log weights may be -inf); every other relaxation is harmless here.
RELAXED = {"nnan", "nsz", "arcp", "contract", "reassoc"}

# Taylor coefficients: |x| <= pi/2 for sine and cosine, |x| <= ln(2)/2 for exp keep the rest below 1e-7.
_S3, _S5, _S7, _S9, _S11 = (f32((-1) ** i / math.factorial(2 * i + 1)) for i in range(1, 6))
_C2, _C4, _C6, _C8, _C10, _C12 = (f32((-1) ** i / math.factorial(2 * i)) for i in range(1, 7))
_E3, _E4, _E5, _E6, _E7 = (f32(1 / math.factorial(i)) for i in range(3, 8))
_ONE, _HALF, _TWO, _PI = f32(1), f32(0.5), f32(2), f32(math.pi)
_LOG2E, _LN2_HIGH, _LN2_LOW = f32(math.log2(math.e)), f32(0.693359375), f32(math.log(2) - 0.693359375)
_LOWEST_EXPONENT, _EXPONENT_BIAS, _MANTISSA_BITS = f32(-87), np.int32(127), np.int32(23)


@njit(inline="always")
def sincos_turns(turns):  # type: ignore[no-untyped-def]
    """Sine and cosine of 2 pi `turns`, float32, absolute error below 3e-7 for |turns| < 2."""
    doubled = turns + turns
    n = np.int32(doubled + (_HALF if doubled >= 0 else -_HALF))
    x = (doubled - f32(n)) * _PI
    y = x * x
    sign = _ONE - _TWO * f32(n & np.int32(1))
    sine = x * (_ONE + y * (_S3 + y * (_S5 + y * (_S7 + y * (_S9 + y * _S11)))))
    cosine = _ONE + y * (_C2 + y * (_C4 + y * (_C6 + y * (_C8 + y * (_C10 + y * _C12)))))
    return sign * sine, sign * cosine


@njit(inline="always")
def exponential(x):  # type: ignore[no-untyped-def]
    """exp(x) for float32 x <= 80, relative error below 2e-7; 0 below -87."""
    bounded = x if x > _LOWEST_EXPONENT else _LOWEST_EXPONENT
    scaled = bounded * _LOG2E
    n = np.int32(scaled + (_HALF if scaled >= 0 else -_HALF))
    r = (bounded - f32(n) * _LN2_HIGH) - f32(n) * _LN2_LOW
    series = _ONE + r * (_ONE + r * (_HALF + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7))))))
    power = np.int32((n + _EXPONENT_BIAS) << _MANTISSA_BITS).view(np.float32)
    return series * power if x > _LOWEST_EXPONENT else f32(0)


@njit(nogil=True, fastmath=RELAXED)
def dot(a, b):  # type: ignore[no-untyped-def]
    """Sum of a * b."""
    total = np.float32(0)
    for k in range(a.size):
        total += a[k] * b[k]
    return total


@njit(nogil=True, fastmath=RELAXED)
def dots4(a, row0, row1, row2, row3, out):  # type: ignore[no-untyped-def]
    """Four sums that share their first factor."""
    s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for k in range(a.size):
        p = a[k]
        s0 += p * row0[k]
        s1 += p * row1[k]
        s2 += p * row2[k]
        s3 += p * row3[k]
    out[0], out[1], out[2], out[3] = s0, s1, s2, s3
