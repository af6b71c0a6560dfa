"""exp of many numbers at once, in kernels: without a call, so that a compiler makes vectors of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

__all__ = ["exponentials"]

Floats = npt.NDArray[np.float32]

# exp(x) = 2^n exp(r) with r = x - n log 2, the second in two parts so that it is exact; a polynomial for exp(r) (Cephes, expf).
_LEAST = np.float32(-87.0)
_LOG2_E = np.float32(1.44269504)
_ROUND = np.float32(12582912.0)  # 1.5 2^23: what is added to it is rounded to an integer, which its lowest bits then hold
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE = np.float32(1)
_ONE_BITS = 0x3F800000


@kernel
def exponentials(x: Floats, powers: Floats) -> None:
    """Write ``exp(x)`` over ``x [n]``, none above 0, to within 1e-7 of it; what is below e^-87 becomes that, NaN stays NaN.

    Loops without a call, each over one kind of number: a compiler makes vectors of them. ``powers [n]`` is scratch.
    """
    bits = powers.view(np.int32)
    for i in range(len(x)):
        value = x[i]
        x[i] = _LEAST if value < _LEAST else value
    for i in range(len(x)):
        powers[i] = x[i] * _LOG2_E + _ROUND
    for i in range(len(x)):
        n = powers[i] - _ROUND
        r = x[i] - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
        x[i] = p * (r * r) + r + _ONE
    for i in range(len(x)):
        bits[i] = (bits[i] << 23) + _ONE_BITS
    for i in range(len(x)):
        x[i] *= powers[i]
