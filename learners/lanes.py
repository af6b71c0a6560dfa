"""Sums over short rows in vector lanes, in an order that is written down here.

A compiler that may choose the order (``fastmath``) is fast, too, but what it chooses depends on the code around: a kernel is
copied into each of its callers, and which copy runs depends on what was compiled in this process and what came from the cache.
The first run of an installation then learns other bits than the runs after it. These are LLVM's own vectors, for any processor:
lane ``i`` of 32 adds up every 32nd number, those behind the last whole 32 go to 8 lanes and then one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np import arrayobj

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_arrays: Any = arrayobj
_types: Any = types
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["NARROW", "WIDE", "compiled", "dot", "lanes_summed", "lanes_summed_plain", "total"]

Floats = npt.NDArray[np.float32]
WIDE, NARROW = 32, 8
"""Lanes of the bulk of a row, and of what is left but for less than eight."""
_FLOAT, _INT32 = _ir.FloatType(), _ir.IntType(32)


def _lowered(n_arrays: int) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the lowering of a sum over one array, or over the products of two."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            _arrays.make_array(kind)(context, builder, value) for kind, value in zip(signature.args, arguments, strict=True)
        ]
        n = _lower.unpack_tuple(builder, arrays[0].shape, 1)[0]
        number = n.type

        def at(index: Any, kind: Any) -> Any:
            found = []
            for array in arrays:
                place = builder.gep(array.data, [index])
                found.append(builder.load(builder.bitcast(place, kind.as_pointer()), align=4))
            return found[0] if n_arrays == 1 else builder.fmul(*found)

        def summed(first: Any, end: Any, lanes: int) -> Any:
            kind = _ir.VectorType(_FLOAT, lanes) if lanes > 1 else _FLOAT
            so_far = _lower.alloca_once_value(builder, _ir.Constant(kind, [0.0] * lanes if lanes > 1 else 0.0))
            with _lower.for_range_slice(builder, first, end, number(lanes), number) as (index, _):
                builder.store(builder.fadd(builder.load(so_far), at(index, kind)), so_far)
            return builder.load(so_far)

        whole, eights = (builder.sub(n, builder.urem(n, number(lanes))) for lanes in (WIDE, NARROW))
        wide, narrow, rest = summed(number(0), whole, WIDE), summed(whole, eights, NARROW), summed(eights, n, 1)
        return lanes_summed(builder, wide, narrow, rest)

    return lower


def lanes_summed(builder: Any, wide: Any, narrow: Any, rest: Any) -> Any:
    """Lower the sum of 32 lanes, 8 lanes and a number."""
    lanes = WIDE
    while lanes > NARROW:
        wide, lanes = _halved(builder, wide, lanes), lanes // 2
    both = builder.fadd(wide, narrow)
    while lanes > 1:
        both, lanes = _halved(builder, both, lanes), lanes // 2
    return builder.fadd(builder.extract_element(both, _INT32(0)), rest)


def _halved(builder: Any, vector: Any, lanes: int) -> Any:
    """Return the sums of the first and of the second half of the lanes."""
    kind = _ir.VectorType(_INT32, lanes // 2)
    low, high = (
        builder.shuffle_vector(vector, vector, _ir.Constant(kind, list(range(start, start + lanes // 2))))
        for start in (0, lanes // 2)
    )
    return builder.fadd(low, high)


def _check(*arrays: Any) -> None:
    for array in arrays:
        if (array.ndim, array.layout, array.dtype) != (1, "C", _types.float32):
            raise _numba.TypingError(f"a row of float32 in one piece is wanted, not {array}")


def _total(typing_context: Any, x: Any) -> Any:
    _check(x)
    return _types.float32(x), _lowered(1)


def _dot(typing_context: Any, x: Any, y: Any) -> Any:
    _check(x, y)
    return _types.float32(x, y), _lowered(2)


def dot_plain(x: Floats, y: Floats) -> np.float32:
    """Compute what :data:`dot` does, in its order."""
    return total_plain(x * y)


def total_plain(x: Floats) -> np.float32:
    """Compute what :data:`total` does, in its order."""
    whole, eights = len(x) // WIDE * WIDE, len(x) // NARROW * NARROW
    wide, narrow, rest = np.zeros(WIDE, np.float32), np.zeros(NARROW, np.float32), np.float32(0)
    for start in range(0, whole, WIDE):
        wide += x[start : start + WIDE]
    for start in range(whole, eights, NARROW):
        narrow += x[start : start + NARROW]
    for value in x[eights:]:
        rest += value
    return lanes_summed_plain(wide, narrow, rest)


def lanes_summed_plain(wide: Floats, narrow: Floats, rest: np.float32) -> np.float32:
    """Compute the sum of 32 lanes, 8 lanes and a number."""
    while len(wide) > NARROW:
        wide = wide[: len(wide) // 2] + wide[len(wide) // 2 :]
    both = wide + narrow
    while len(both) > 1:
        both = both[: len(both) // 2] + both[len(both) // 2 :]
    return cast(np.float32, both[0] + rest)


def compiled(lowered: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operation of kernels that is lowered so; its plain twin with the compiler off."""
    return plain if _numba.config.DISABLE_JIT else cast(Any, intrinsic(lowered))


total: Callable[[Floats], np.float32] = compiled(_total, total_plain)
"""``total(x)``: the sum of a row ``x [n]`` that lies in one piece. For kernels; nothing is checked."""
dot: Callable[[Floats, Floats], np.float32] = compiled(_dot, dot_plain)
"""``dot(x, y)``: the sum of the products of two such rows of the same length."""
