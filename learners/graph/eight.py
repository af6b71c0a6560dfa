"""Eight int64 of an array at once, in kernels: compare them, or write those that were chosen, without a branch.

What a loop over a few candidates costs is not its comparisons but the end of the loop, which a processor guesses wrong:
about 20 cycles, in which it can compare eight. The compiler does not find these vectors by itself in loops so short; they are
LLVM's own, for any processor. A mask is an int64 whose bit ``i`` stands for ``array[at + i]``. Nothing here checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.np import arrayobj

from learners.lanes import compiled

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_arrays: Any = arrayobj
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["CHOSEN", "N_CHOSEN", "equal8", "put8", "within8"]

_BITS: npt.NDArray[np.bool_] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(bool)
N_CHOSEN: npt.NDArray[np.uint8] = _BITS.sum(1, dtype=np.uint8)
"""How many bits of each mask are set, ``[256]``."""
CHOSEN: npt.NDArray[np.uint8] = np.where(np.sort(~_BITS, axis=1), 0, np.argsort(~_BITS, axis=1, kind="stable")).astype(np.uint8)
"""The places of the set bits of each mask in order, zeros behind them, ``[256, 8]``; so row 0 is all zeros."""

_INT32, _INT64 = _ir.IntType(32), _ir.IntType(64)
_NUMBERS, _BYTES = _ir.VectorType(_INT64, 8), _ir.VectorType(_ir.IntType(8), 8)


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    """Return the address of a contiguous array's row, as one of eight numbers."""
    start = builder.ptrtoint(_arrays.make_array(kind)(context, builder, array).data, _INT64)
    row_bytes = _INT64(8)  # of one int64, and of the eight bytes that are a row of CHOSEN
    return builder.inttoptr(builder.add(start, builder.mul(index, row_bytes)), vector.as_pointer())


def _eight_times(builder: Any, value: Any) -> Any:
    one = builder.insert_element(_ir.Constant(_NUMBERS, _ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, _ir.Constant(_ir.VectorType(_INT32, 8), [0] * 8))


def _mask(builder: Any, found: Any) -> Any:
    return builder.zext(builder.bitcast(found, _ir.IntType(8)), _INT64)


def _equal8(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        eight = builder.load(_at(context, builder, array, arguments[0], arguments[1], _NUMBERS), align=8)
        return _mask(builder, builder.icmp_signed("==", eight, _eight_times(builder, arguments[2])))

    return types.int64(array, types.int64, types.int64), lower


def _within8(typing_context: Any, array: Any, at: Any, start: Any, span: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        eight = builder.load(_at(context, builder, array, arguments[0], arguments[1], _NUMBERS), align=8)
        past = builder.sub(eight, _eight_times(builder, arguments[2]))
        return _mask(builder, builder.icmp_unsigned("<", past, _eight_times(builder, arguments[3])))

    return types.int64(array, types.int64, types.int64, types.int64), lower


def _put8(typing_context: Any, array: Any, at: Any, start: Any, chosen: Any, mask: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = builder.load(_at(context, builder, chosen, arguments[3], arguments[4], _BYTES), align=1)
        numbers = builder.add(builder.zext(places, _NUMBERS), _eight_times(builder, arguments[2]))
        builder.store(numbers, _at(context, builder, array, arguments[0], arguments[1], _NUMBERS), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, chosen, types.int64), lower


def equal8_plain(array: Any, at: Any, value: Any) -> int:
    """Compute what :data:`equal8` does, one by one: for kernels that run with the compiler off."""
    return sum(1 << i for i in range(8) if array[at + i] == value)


def within8_plain(array: Any, at: Any, start: Any, span: Any) -> int:
    """Compute what :data:`within8` does, one by one."""
    return sum(1 << i for i in range(8) if 0 <= int(array[at + i]) - int(start) < span)


def put8_plain(array: Any, at: Any, start: Any, chosen: Any, mask: Any) -> None:
    """Do what :data:`put8` does, one by one."""
    for i in range(8):
        array[at + i] = start + int(chosen[mask, i])


equal8: Callable[[Any, Any, Any], int] = compiled(_equal8, equal8_plain)
"""``equal8(array, at, value)``: mask of which are ``value``."""
within8: Callable[[Any, Any, Any, Any], int] = compiled(_within8, within8_plain)
"""``within8(array, at, start, span)``: mask of which are in ``[start, start + span)``."""
put8: Callable[[Any, Any, Any, Any, Any], None] = compiled(_put8, put8_plain)
"""``put8(array, at, start, CHOSEN, mask)``: write ``start`` + each place of the mask; all eight are overwritten."""
