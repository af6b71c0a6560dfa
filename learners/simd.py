"""Vectors of float32 in kernels: load some neighbouring numbers of an array, compute with all of them at once, store them.

The compiler finds no vectors by itself in a loop that writes to several arrays, as these might overlap, so that each of them
would take a loop of its own. These are LLVM's own vectors, for any processor: what it has no instruction for it splits up. A
function that takes one works for any number of lanes, a single float32 included: one per length is compiled, and what is left
at the end of a row takes the same way as its bulk. Nothing here checks bounds, and no order is left to the compiler: each lane
has the bits that a loop over the numbers would give it.

With the compiler off a vector is a NumPy array ``[lanes]``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.core.typing import templates
from numba.extending import lower_builtin, models, register_model
from numba.np import arrayobj

from learners.lanes import NARROW, WIDE, compiled, lanes_summed, lanes_summed_plain

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_arrays: Any = arrayobj
_types: Any = types
_templates: Any = templates
_models: Any = models
_lower_builtin: Any = lower_builtin
_register_model: Any = register_model
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["flat", "gated", "lanes", "load", "narrow", "rectified", "spread", "store", "summed", "wide"]

Floats = npt.NDArray[np.float32]
_FLOAT = _ir.FloatType()


class _Vector(_types.Type):  # type: ignore[misc]  # a type of Numba is a subclass of one
    """Numba's type of a vector of so many float32."""

    def __init__(self, n_lanes: int) -> None:
        self.n_lanes = n_lanes
        super().__init__(f"float32x{n_lanes}")


_register_model(_Vector)(lambda manager, kind: _models.PrimitiveModel(manager, kind, _ir.VectorType(_FLOAT, kind.n_lanes)))


_VECTORS = [_Vector(WIDE), _Vector(NARROW)]


def _operators() -> None:
    """Teach Numba ``+``, ``-`` and ``*`` of two vectors of the same length."""
    for operation, name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
        cases = [_templates.signature(vector, vector, vector) for vector in _VECTORS]
        template = type(f"_{name}", (_templates.ConcreteTemplate,), {"cases": cases})
        _templates.infer_global(operation)(template)
        for vector in _VECTORS:

            def lower(context: Any, builder: Any, signature: Any, arguments: Any, name: str = name) -> Any:
                return getattr(builder, name)(*arguments)

            _lower_builtin(operation, vector, vector)(lower)


_operators()


def _n_lanes(kind: Any) -> int:
    if isinstance(kind, _Vector):
        return kind.n_lanes
    if kind != _types.float32:
        raise _numba.TypingError(f"a vector or a float32 is wanted, not {kind}")
    return 1


def _constant(kind: Any, value: float) -> Any:
    n = _n_lanes(kind)
    return _ir.Constant(_FLOAT, value) if n == 1 else _ir.Constant(_ir.VectorType(_FLOAT, n), [value] * n)


def _place(context: Any, builder: Any, numbers: Any, at: Any, like: Any) -> Any:
    """Return the address of as many numbers as ``like`` has."""
    return builder.bitcast(builder.gep(numbers, [at]), context.get_value_type(like).as_pointer())


def _flat(typing_context: Any, array: Any) -> Any:
    if array.layout != "C":
        raise _numba.TypingError(f"an array in one piece is wanted, not {array}")

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _arrays.make_array(array)(context, builder, arguments[0]).data

    return _types.CPointer(array.dtype)(array), lower


def _check(numbers: Any, vector: Any) -> None:
    _n_lanes(vector)
    if numbers != _types.CPointer(_types.float32):
        raise _numba.TypingError(f"flat(an array of float32) is wanted, not {numbers}")


def _load(typing_context: Any, numbers: Any, at: Any, like: Any) -> Any:
    _check(numbers, like)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, arguments[0], arguments[1], like), align=4)

    return like(numbers, _types.int64, like), lower


def _store(typing_context: Any, numbers: Any, at: Any, value: Any) -> Any:
    _check(numbers, value)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, arguments[0], arguments[1], value), align=4)
        return context.get_dummy_value()

    return _types.void(numbers, _types.int64, value), lower


def _spread(typing_context: Any, x: Any, like: Any) -> Any:
    n = _n_lanes(like)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if n == 1:
            return arguments[0]
        first, numbers = _ir.IntType(32)(0), _ir.VectorType(_ir.IntType(32), n)
        one = builder.insert_element(_ir.Constant(context.get_value_type(like), _ir.Undefined), arguments[0], first)
        return builder.shuffle_vector(one, one, _ir.Constant(numbers, [0] * n))

    return like(_types.float32, like), lower


def _lanes(typing_context: Any, like: Any) -> Any:
    n = _n_lanes(like)
    return _types.int64(like), lambda context, builder, signature, arguments: _ir.IntType(64)(n)


def _zeros(n: int) -> Callable[[Any], Any]:
    def typed(typing_context: Any) -> Any:
        vector = next(vector for vector in _VECTORS if vector.n_lanes == n)
        return vector(), lambda context, builder, signature, arguments: _constant(vector, 0.0)

    return typed


def _gated(typing_context: Any, x: Any, gate: Any) -> Any:
    _n_lanes(x)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = _constant(x, 0.0)
        return builder.select(builder.fcmp_ordered(">", arguments[1], zero), arguments[0], zero)

    return x(x, x), lower


def _rectified(typing_context: Any, x: Any) -> Any:
    _n_lanes(x)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = _constant(x, 0.0)
        return builder.select(builder.fcmp_ordered("<", arguments[0], zero), zero, arguments[0])

    return x(x), lower


def _summed(typing_context: Any, bulk: Any, eights: Any, rest: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return lanes_summed(builder, *arguments)

    return _types.float32(*_VECTORS, _types.float32), lower


def lanes_plain(like: Any) -> int:
    """Return how many numbers a vector has."""
    return int(np.size(like))


def flat_plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what :data:`flat` does."""
    return array.reshape(-1)


def load_plain(numbers: Floats, at: int, like: Any) -> Any:
    """Compute what :data:`load` does."""
    return numbers[at : at + len(like)].copy() if np.ndim(like) else numbers[at]


def store_plain(numbers: Floats, at: int, value: Any) -> None:
    """Do what :data:`store` does."""
    numbers[at : at + np.size(value)] = value


def spread_plain(x: Any, like: Any) -> Any:
    """Compute what :data:`spread` does."""
    return np.full(np.shape(like), x, np.float32) if np.ndim(like) else np.float32(x)


def gated_plain(x: Any, gate: Any) -> Any:
    """Compute what :data:`gated` does."""
    return np.where(gate > 0, x, np.float32(0))[()]


def rectified_plain(x: Any) -> Any:
    """Compute what :data:`rectified` does."""
    return np.where(x < 0, np.float32(0), x)[()]


wide: Callable[[], Any] = compiled(_zeros(WIDE), lambda: np.zeros(WIDE, np.float32))
"""``wide()``: a vector of 32 zeros."""
narrow: Callable[[], Any] = compiled(_zeros(NARROW), lambda: np.zeros(NARROW, np.float32))
"""``narrow()``: a vector of 8 zeros."""
lanes: Callable[[Any], int] = compiled(_lanes, lanes_plain)
"""``lanes(like)``: how many numbers it has."""
flat: Callable[[npt.NDArray[Any]], Any] = compiled(_flat, flat_plain)
"""``flat(array)``: where the numbers of an array in one piece lie. It does not hold the array: of a kernel's arguments only."""
load: Callable[[Any, int, Any], Any] = compiled(_load, load_plain)
"""``load(numbers, at, like)``: as many of the flat numbers as ``like`` has, from place ``at`` on."""
store: Callable[[Any, int, Any], None] = compiled(_store, store_plain)
"""``store(numbers, at, value)``: write them there."""
spread: Callable[[Any, Any], Any] = compiled(_spread, spread_plain)
"""``spread(x, like)``: ``x`` in as many lanes as ``like`` has."""
gated: Callable[[Any, Any], Any] = compiled(_gated, gated_plain)
"""``gated(x, gate)``: ``x`` where ``gate > 0``, 0 elsewhere, where it is no number, too."""
rectified: Callable[[Any], Any] = compiled(_rectified, rectified_plain)
"""``rectified(x)``: ``max(x, 0)``; NaN stays NaN."""
summed: Callable[[Any, Any, Any], np.float32] = compiled(_summed, lanes_summed_plain)
"""``summed(wide, narrow, rest)``: the sum of all their lanes in the order of :mod:`learners.lanes`."""
