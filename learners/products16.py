"""Matrix products in bfloat16 with float32 sums, in kernels, for processors that have instructions for it (``AVX512_BF16``):
there they take half as long as float32's.

Every number of a product is one sum over its pairs in their order, from what is there or from 0 on; of a pair the second
product is added first, and each addition is rounded to float32 once (``VDPBF16PS``):

    sum = (sum + a_1 b_1) + a_0 b_0

So its bits depend on the two rows alone, not on what is computed beside them. What is below 2^-126 is taken for 0 and becomes
0. Factors are words of :mod:`learners.halves`. Nothing here checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.core.registry import cpu_target

from learners.halves import (
    BFLOAT,
    FLOATS,
    LANES,
    LEAST_NORMAL,
    WORDS,
    Floats,
    Words,
    first_lanes,
    intrinsic_of,
    masked_load,
    splat,
)
from learners.lanes import compiled
from learners.simd import flat
from negative_queues.kernels import callback, kernel

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_types: Any = types
_target: Any = cpu_target
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["address", "check", "product16"]

_INT32, _INT64 = _ir.IntType(32), _ir.IntType(64)
MOST = 5
"""Vectors of a panel of columns. A tile of five rows of them is 25 sums: with the panel's row they fill the 32 registers."""
HEIGHT = {1: 8, 2: 8, 3: 8, 4: 6, 5: 5}
"""Rows of a tile by the vectors of its panel: six sums or more are under way at once, else each addition waits for the last."""


def _pair_added(builder: Any, total: Any, a: Any, b: Any) -> Any:
    halves = _ir.VectorType(BFLOAT, 2 * LANES)
    add = intrinsic_of(builder, "x86.avx512bf16.dpbf16ps.512", FLOATS, [FLOATS, halves, halves])
    return builder.call(add, [total, builder.bitcast(a, halves), builder.bitcast(b, halves)])


def _tile(builder: Any, a: Any, b: Any, n_pairs: Any, out: Any, mask: Any, add: Any, size: tuple[int, int]) -> None:
    """Lower the sums of some rows by some vectors of columns; ``mask`` are the lanes of the last one that are there.

    ``a`` is a place, how far its next row is and how far its next pair, ``b`` a place and how far its next pair, ``out`` a
    place and how far its next row.
    """
    (a, a_row, a_pair), (b, b_pair), (out, out_row), (height, width) = a, b, out, size
    places, sums = {}, {}
    for row in range(height):
        for vector in range(width):
            at = builder.gep(out, [builder.add(builder.mul(out_row, _INT64(row)), _INT64(LANES * vector))])
            places[row, vector] = builder.bitcast(at, FLOATS.as_pointer())
            sums[row, vector] = _lower.alloca_once_value(builder, _ir.Constant(FLOATS, [0.0] * LANES))
    with builder.if_then(add):
        for (row, vector), place in places.items():
            last = vector == width - 1
            builder.store(masked_load(builder, place, mask) if last else builder.load(place, align=4), sums[row, vector])
    with _lower.for_range(builder, n_pairs) as loop:
        from_b = builder.mul(loop.index, b_pair)
        columns = []
        for vector in range(width):
            at = builder.gep(b, [builder.add(from_b, _INT64(LANES * vector))])
            columns.append(builder.load(builder.bitcast(at, WORDS.as_pointer()), align=4))
        for row in range(height):
            at = builder.add(builder.mul(a_row, _INT64(row)), builder.mul(loop.index, a_pair))
            pair = splat(builder, builder.load(builder.gep(a, [at])), WORDS)
            for vector in range(width):
                total = sums[row, vector]
                builder.store(_pair_added(builder, builder.load(total), pair, columns[vector]), total)
    kinds = [FLOATS, FLOATS.as_pointer(), _INT32, mask.type]
    masked_store = intrinsic_of(builder, "masked.store.v16f32.p0", _ir.VoidType(), kinds)
    for (row, vector), place in places.items():
        value = builder.load(sums[row, vector])
        if vector == width - 1:
            builder.call(masked_store, [value, place, _INT32(4), mask])
        else:
            builder.store(value, place, align=4)


def _panel(typing: Any, a: Any, steps: Any, b: Any, at: Any, n_pairs: Any, out: Any, m: Any, n: Any, add: Any) -> Any:
    """Type ``panel(a, (a_row, a_pair, b_pair, out_row), b, at, n_pairs, out, m, n, add)``: ``n <= 80`` columns from ``at`` on,
    of ``m`` rows."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, steps, b, at, n_pairs, out, m, n, add = arguments
        a_row, a_pair, b_pair, out_row = _lower.unpack_tuple(builder, steps)
        b, out, add = builder.gep(b, [at]), builder.gep(out, [at]), builder.icmp_signed("!=", add, _INT64(0))
        wide = builder.sdiv(builder.add(n, _INT64(LANES - 1)), _INT64(LANES))
        mask = first_lanes(builder, builder.sub(n, builder.mul(builder.sub(wide, _INT64(1)), _INT64(LANES))))

        def rows(first: Any, end: Any, height: int, width: int) -> None:
            with _lower.for_range_slice(builder, first, end, _INT64(height), _INT64) as (row, _):
                from_a = builder.gep(a, [builder.mul(row, a_row)]), a_row, a_pair
                to = builder.gep(out, [builder.mul(row, out_row)]), out_row
                _tile(builder, from_a, (b, b_pair), n_pairs, to, mask, add, (height, width))

        for width, height in HEIGHT.items():
            with builder.if_then(builder.icmp_signed("==", wide, _INT64(width))):
                whole = builder.sub(m, builder.srem(m, _INT64(height)))
                rows(_INT64(0), whole, height, width)
                rows(whole, m, 1, width)
        return context.get_dummy_value()

    number = _types.int64
    words, floats = _types.CPointer(_types.int32), _types.CPointer(_types.float32)
    return _types.void(words, _types.UniTuple(number, 4), words, number, number, floats, number, number, number), lower


def _without_denormals(x: npt.NDArray[Any]) -> Floats:
    x = x.astype(np.float32)
    return np.where(np.abs(x) < LEAST_NORMAL, np.copysign(np.float32(0), x), x)


def _both(words: Any) -> list[npt.NDArray[np.float64]]:
    """Return the first and the second of each pair."""
    bits = words.view(np.uint32)
    return [_without_denormals(half.view(np.float32)).astype(np.float64) for half in (bits << 16, bits & 0xFFFF0000)]


def panel_plain(
    a: Words, steps: tuple[int, int, int, int], b: Words, at: int, n_pairs: int, out: Floats, m: int, n: int, add: int
) -> None:
    """Compute what ``panel`` does: in float64 a product is exact, and rounding its sum once more rounds as if it were once."""
    a_row, a_pair, b_pair, out_row = steps
    rows, columns = np.arange(m), at + np.arange(n)
    places = rows[:, None] * out_row + columns
    sums = _without_denormals(out[places] if add else np.zeros((m, n), np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        for pair in range(n_pairs):
            first, second = zip(_both(a[rows * a_row + pair * a_pair]), _both(b[pair * b_pair + columns]), strict=True)
            for of_a, of_b in (second, first):
                sums = _without_denormals(sums + of_a[:, None] * of_b)
    out[places] = sums


_panel_of: Callable[..., None] = compiled(_panel, panel_plain)


def _panels(a: Any, a_row: int, a_pair: int, b: Any, b_pair: int, n_pairs: int, out: Any, m: int, n: int, add: int) -> None:
    """Do what :func:`product16` does."""
    steps = a_row, a_pair, b_pair, n
    left, at = (n + LANES - 1) // LANES, 0
    panels = (left + MOST - 1) // MOST
    while panels > 0:  # of nearly equal widths: a narrow one keeps fewer sums under way
        width = (left + panels - 1) // panels
        here = min(width * LANES, n - at)
        _panel_of(a, steps, b, at, n_pairs, out, m, here, add)
        at, left, panels = at + here, left - width, panels - 1


def address() -> int:
    """Return what :func:`product16` calls: compiled when first asked for, and once, not with each of its callers.

    Raises:
        ValueError: as :func:`check` does.
    """
    check()
    return 1 if _numba.config.DISABLE_JIT else int(_compiled_panels().address)


@cache
def check(who: str = "") -> None:
    """See that kernels are compiled for a processor that has the instructions.

    Args:
        who: asks; what is said begins with it.

    Raises:
        ValueError: they are not: products would have to do without, slower than in float32.
    """
    if _numba.config.DISABLE_JIT or "+avx512bf16" in _target.target_context.codegen().magic_tuple()[2].split(","):
        return
    raise ValueError(
        f'{who}products = "bfloat16" needs AVX512_BF16 (AMD since Zen 4, Intel servers since Sapphire Rapids), which this '
        'processor lacks; use products = "float32", or a GPU: weights and checkpoints are the same with both'
    )


@cache
def _compiled_panels() -> Any:
    number, words, floats = _types.int64, _types.CPointer(_types.int32), _types.CPointer(_types.float32)
    kinds = words, number, number, words, number, number, floats, number, number, number
    return callback(_panels, _types.void(*kinds))


def _call(typing: Any, address: Any, a: Any, steps: Any, b: Any, n_pairs: Any, out: Any, sizes: Any, add: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, a, steps, b, n_pairs, out, sizes, add = arguments
        a_row, a_pair, b_pair = _lower.unpack_tuple(builder, steps)
        given = [a, a_row, a_pair, b, b_pair, n_pairs, out, *_lower.unpack_tuple(builder, sizes), add]
        kind = _ir.FunctionType(_ir.VoidType(), [value.type for value in given])
        builder.call(builder.inttoptr(address, kind.as_pointer()), given)
        return context.get_dummy_value()

    number, words = _types.int64, _types.CPointer(_types.int32)
    tuples = _types.UniTuple(number, 3), _types.UniTuple(number, 2)
    kinds = number, words, tuples[0], words, number, _types.CPointer(_types.float32), tuples[1], number
    return _types.void(*kinds), lower


def _call_plain(
    address: int, a: Words, steps: tuple[int, int, int], b: Words, n_pairs: int, out: Floats, sizes: tuple[int, int], add: int
) -> None:
    _panels(a, steps[0], steps[1], b, steps[2], n_pairs, out, *sizes, add)


_called: Callable[..., None] = compiled(_call, _call_plain)


@kernel
def product16(
    address: int, a: Words, a_row: int, a_pair: int, b: Words, b_pair: int, n_pairs: int, out: Floats, add: bool
) -> None:
    """Write ``A B`` to ``out [M, N]``, which lies in one piece.

    Args:
        address: of :func:`address`.
        a: words of the first factor, flat.
        a_row: how far one of its rows is from the next: of one by row the words of a row, of one by pairs, whose transpose is
            taken, 1.
        a_pair: how far one pair is from the next: 1, or the words of two rows.
        b: the second factor by pairs of rows, flat.
        b_pair: the words of two rows.
        n_pairs: of the sum.
        out: see above.
        add: to what is there, rather than in its place.
    """
    steps = np.int64(a_row), np.int64(a_pair), np.int64(b_pair)
    sizes = np.int64(out.shape[0]), np.int64(out.shape[1])
    _called(np.int64(address), flat(a), steps, flat(b), np.int64(n_pairs), flat(out), sizes, np.int64(add))
