"""A row's products with eight columns of a matrix at once, in kernels: each a sum over the row from its first number on.

The compiler makes no vectors of a loop over a few columns; these are LLVM's own, for any processor. How many columns there are
changes no bit: equal columns give equal products. Nothing here checks bounds.
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
_types: Any = types
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["products8"]

Floats = npt.NDArray[np.float32]
_INT32 = _ir.IntType(32)
_EIGHT = _ir.VectorType(_ir.FloatType(), 8)


def _products8(typing_context: Any, row: Any, columns: Any, at: Any, out: Any) -> Any:
    for array, n_dims in ((row, 1), (columns, 2), (out, 1)):
        if (array.ndim, array.layout, array.dtype) != (n_dims, "C", _types.float32):
            raise _numba.TypingError(f"float32 in one piece is wanted, not {array}")

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        row, columns, out = (_arrays.make_array(kinds[i])(context, builder, arguments[i]) for i in (0, 1, 3))
        at, n = arguments[2], _lower.unpack_tuple(builder, row.shape, 1)[0]
        width = _lower.unpack_tuple(builder, columns.shape, 2)[1]
        so_far = _lower.alloca_once_value(builder, _ir.Constant(_EIGHT, [0.0] * 8))
        with _lower.for_range(builder, n) as loop:
            one = builder.insert_element(
                _ir.Constant(_EIGHT, _ir.Undefined), builder.load(builder.gep(row.data, [loop.index])), _INT32(0)
            )
            eight_times = builder.shuffle_vector(one, one, _ir.Constant(_ir.VectorType(_INT32, 8), [0] * 8))
            place = builder.gep(columns.data, [builder.add(builder.mul(loop.index, width), at)])
            eight = builder.load(builder.bitcast(place, _EIGHT.as_pointer()), align=4)
            builder.store(builder.fadd(builder.load(so_far), builder.fmul(eight_times, eight)), so_far)
        place = builder.gep(out.data, [at])
        builder.store(builder.load(so_far), builder.bitcast(place, _EIGHT.as_pointer()), align=4)
        return context.get_dummy_value()

    return _types.void(row, columns, _types.int64, out), lower


def products8_plain(row: Floats, columns: Floats, at: int, out: Floats) -> None:
    """Compute what :data:`products8` does, for kernels that run with the compiler off."""
    sums = np.zeros(8, np.float32)
    for d in range(len(row)):
        sums += row[d] * columns[d, at : at + 8]
    out[at : at + 8] = sums


products8: Callable[[Floats, Floats, int, Floats], None] = compiled(_products8, products8_plain)
"""``products8(row [D], columns [D, L], at, out [L])``: write ``row`` times eight columns from ``at`` on to ``out``, there."""
