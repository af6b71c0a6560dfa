"""Loops over short rows in vector lanes, lowered by hand: all pairs of some targets with some entries in one operation.

Rows are as short as 16 numbers, and a compiler that does not know whether two of them overlap, nor how long they are, spends
more on finding out than on the row. These are LLVM's own vectors, for any processor: 16 numbers at a time, then 4, then one by
one, and with each of these through all targets and all entries of each, so that what is the target's, or everybody's, stays in
a register. Each number depends on its own place alone and takes pairs in their order, so the cut changes no bits.

An operation says of each of its arguments what it is to a pair:

==============  ==========================================  ==============
role            what it is                                  shape
==============  ==========================================  ==============
``row``         read                                        ``[n]``
``sum``         added to                                    ``[n]``
``out``         written, from 0 on                          ``[n]``
``target``      the target's, read                          ``[C, n]``
``target_sum``  the target's, added to                      ``[C, n]``
``target_out``  the target's, written, from 0 on            ``[C, n]``
``entry``       the entry's, read                           ``[H, n]``
``entry_sum``   the entry's, added to                       ``[H, n]``
``pair``        the pair's own, read                        ``[C H, n]``
``pair_out``    the pair's own, written                     ``[C H, n]``
``number``      the pair's, the same for the whole row      ``[C H]``
``factor``      the same for all                            a number
==============  ==========================================  ==============

Without a target's argument there is one, likewise an entry's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import numba
from numba.core import cgutils, types
from numba.np import arrayobj

from learners.lanes import compiled

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_arrays: Any = arrayobj
_types: Any = types
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = [
    "LANES",
    "Operand",
    "check",
    "chunks",
    "first",
    "halved",
    "operation",
    "spread",
    "variable",
    "zero",
    "zero_like",
]

LANES = 16, 4, 1
_FLOAT, _INT32 = _ir.FloatType(), _ir.IntType(32)
_HELD = ("sum", "out", "target_sum", "target_out")
"""Roles whose values stay in a register over several pairs, and are stored behind them."""
_WRITTEN = (*_HELD, "entry_sum", "pair_out")
_Body = Callable[..., Sequence[Any]]


def _kind(lanes: int) -> Any:
    return _ir.VectorType(_FLOAT, lanes) if lanes > 1 else _FLOAT


def zero(lanes: int) -> Any:
    """Return 0 in each lane."""
    return _ir.Constant(_kind(lanes), [0.0] * lanes if lanes > 1 else 0.0)


def spread(builder: Any, number: Any, lanes: int) -> Any:
    """Return a number in each lane."""
    if lanes == 1:
        return number
    one = builder.insert_element(_ir.Constant(_kind(lanes), _ir.Undefined), number, _INT32(0))
    return builder.shuffle_vector(one, one, _ir.Constant(_ir.VectorType(_INT32, lanes), [0] * lanes))


def zero_like(value: Any) -> Any:
    """Return 0 in each of its lanes."""
    return zero(getattr(value.type, "count", 1))


def first(builder: Any, vector: Any) -> Any:
    """Return what is in the first lane."""
    return builder.extract_element(vector, _INT32(0))


def variable(builder: Any, value: Any) -> Any:
    """Return a place that holds the value."""
    return _lower.alloca_once_value(builder, value)


def halved(builder: Any, vector: Any, lanes: int) -> Any:
    """Return the sums of the first and of the second half of a vector, so many."""
    kind = _ir.VectorType(_INT32, lanes)
    low, high = (
        builder.shuffle_vector(vector, vector, _ir.Constant(kind, list(range(start, start + lanes)))) for start in (0, lanes)
    )
    return builder.fadd(low, high)


def chunks(builder: Any, n: Any, body: Callable[[Any, int], None]) -> None:
    """Emit loops that call ``body`` with every index at which numbers begin that are taken at a time, and how many."""
    begin = n.type(0)
    for lanes in LANES:
        end = builder.sub(n, builder.urem(n, n.type(lanes)))
        with _lower.for_range_slice(builder, begin, end, n.type(lanes), n.type) as (index, _):
            body(index, lanes)
        begin = end


class Operand:
    """An argument of an operation.

    Args:
        role: see the table above.
        context: of the lowering.
        builder: likewise.
        kind: type of the argument.
        value: the argument.
    """

    def __init__(self, role: str, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self.role, self.of = role, role.partition("_")[0]
        self._builder, self._value = builder, value
        if role != "factor":
            array = _arrays.make_array(kind)(context, builder, value)
            self._data = array.data
            self.shape = _lower.unpack_tuple(builder, array.shape, kind.ndim)
            self._stride = _lower.unpack_tuple(builder, array.strides, kind.ndim)[0]

    def at(self, row: Any, index: Any, lanes: int) -> Any:
        """Return where a row's numbers are; ``row`` is None where there is one row."""
        builder, data = self._builder, self._data
        if row is not None:
            whole = builder.bitcast(data, _ir.IntType(8).as_pointer())
            data = builder.bitcast(builder.gep(whole, [builder.mul(row, self._stride)]), _FLOAT.as_pointer())
        return builder.bitcast(builder.gep(data, [index]), _kind(lanes).as_pointer())

    def begun(self, row: Any, index: Any, lanes: int) -> Any:
        """Return the value before the first pair that it is for; a variable for what is held."""
        if self.role == "factor":
            return spread(self._builder, self._value, lanes)
        value = zero(lanes) if self.role.endswith("out") else self.load(row, index, lanes)
        return variable(self._builder, value) if self.role in _HELD else value

    def load(self, row: Any, index: Any, lanes: int) -> Any:
        """Return a row's numbers, or the row's number."""
        if self.role == "number":
            return spread(self._builder, self._builder.load(self._builder.gep(self._data, [row]), align=4), lanes)
        return self._builder.load(self.at(row, index, lanes), align=4)


class _Loops:
    """The loops of one operation over its operands."""

    def __init__(self, builder: Any, operands: Sequence[Operand], body: _Body) -> None:
        self._builder, self._operands, self._body = builder, operands, body

    def _length(self, role: str) -> Any:
        return next((operand.shape[0] for operand in self._operands if operand.of == role), None)

    def emit(self) -> None:
        """Emit all."""
        chunks(self._builder, self._operands[0].shape[-1], self._chunk)

    def _chunk(self, index: Any, lanes: int) -> None:
        held: dict[int, Any] = {}
        self._begin(("row", "sum", "out", "factor"), held, None, index, lanes)
        n_targets, n_entries = self._length("target"), self._length("entry")

        def pairs(target: Any) -> None:
            self._begin(("target",), held, target, index, lanes)
            if n_entries is None:
                self._pair(held, None, None, index, lanes)
            else:
                before = self._builder.mul(target, n_entries)
                with _lower.for_range(self._builder, n_entries) as loop:
                    self._pair(held, loop.index, self._builder.add(before, loop.index), index, lanes)
            self._end(("target",), held, target, index, lanes)

        if n_targets is None:
            pairs(None)
        else:
            with _lower.for_range(self._builder, n_targets) as loop:
                pairs(loop.index)
        self._end(("sum", "out"), held, None, index, lanes)

    def _begin(self, of: Sequence[str], held: dict[int, Any], row: Any, index: Any, lanes: int) -> None:
        for at, operand in enumerate(self._operands):
            if operand.of in of:
                held[at] = operand.begun(row, index, lanes)

    def _end(self, of: Sequence[str], held: dict[int, Any], row: Any, index: Any, lanes: int) -> None:
        for at, operand in enumerate(self._operands):
            if operand.of in of and operand.role in _HELD:
                self._builder.store(self._builder.load(held[at]), operand.at(row, index, lanes), align=4)

    def _pair(self, held: dict[int, Any], entry: Any, pair: Any, index: Any, lanes: int) -> None:
        builder, values = self._builder, []
        rows = {"entry": entry, "pair": pair, "number": pair}
        for at, operand in enumerate(self._operands):
            if operand.of in rows:
                values.append(operand.load(rows[operand.of], index, lanes))
            else:
                values.append(builder.load(held[at]) if operand.role in _HELD else held[at])
        written = [(at, operand) for at, operand in enumerate(self._operands) if operand.role in _WRITTEN]
        for (at, operand), value in zip(written, self._body(builder, *values), strict=True):
            place = held[at] if operand.role in _HELD else operand.at(rows[operand.of], index, lanes)
            builder.store(value, place, **({} if operand.role in _HELD else {"align": 4}))


def check(role: str, kind: Any) -> None:
    """Refuse an argument that is not what its role says.

    Raises:
        numba.TypingError: when a kernel is compiled.
    """
    if role == "factor":
        if kind != _types.float32:
            raise _numba.TypingError(f"a float32 is wanted, not {kind}")
        return
    n_dims = 1 if role in ("row", "sum", "out", "number") else 2
    layouts = "C" if n_dims == 1 else "CA"  # rows lie in one piece, and may be parts of longer ones
    if kind.ndim != n_dims or kind.layout not in layouts or kind.dtype != _types.float32:
        raise _numba.TypingError(f"{n_dims} dimensions of float32 in one piece are wanted, not {kind}")


def operation(roles: str, body: _Body, plain: Callable[..., None]) -> Callable[..., None]:
    """Return an operation for kernels, of rows that lie in one piece; nothing but types is checked.

    Args:
        roles: of its arguments, see the table above.
        body: takes a builder and the arguments' values, returns what those become that are added to or written, in their order.
        plain: its twin in NumPy.
    """
    names = roles.split()

    def typed(typing_context: Any, *kinds: Any) -> Any:
        for role, kind in zip(names, kinds, strict=True):
            check(role, kind)

        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = zip(names, signature.args, arguments, strict=True)
            _Loops(builder, [Operand(role, context, builder, *each) for role, *each in given], body).emit()
            return context.get_dummy_value()

        return _types.void(*kinds), lower

    # Numba counts a function's parameters: as many as the plain twin has, behind the context.
    parameters = list(inspect.signature(plain).parameters.values())
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    cast(Any, typed).__signature__ = inspect.Signature([context, *parameters])
    return compiled(typed, plain)
