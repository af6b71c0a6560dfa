"""Numbers in bfloat16, two neighbours of a sum in one 32-bit word, as :mod:`learners.products16` multiplies them; in kernels.

bfloat16 is the upper half of a float32: the same exponents, 8 bits of precision. Numbers are rounded to the nearest, ties to
even; what is below 2^-126 becomes 0, infinite stays infinite, NaN stays NaN (``VCVTNEPS2BF16``). A product sums over pairs of
neighbours, the first in the lower half of a word:

- by row, ``x [M, K]``: neighbours in a row, words ``[M, P']``, ``P'`` = :func:`row_words` of ``K``;
- by pairs of rows, ``x [K, N]``: one below the other, words ``[ceil(K / 2), N']``, ``N'`` = :func:`padded` ``N``.

What is behind the last column (but for :func:`turned`, which leaves it), and below the last of an odd number of rows, is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types

from learners.lanes import compiled
from learners.simd import flat
from negative_queues.kernels import kernel

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_types: Any = types
_ir: Any = _lower.ir  # llvmlite, in Numba's own version

__all__ = ["LANES", "Words", "by_pairs", "by_row", "by_row_and_pairs", "padded", "row_words", "turned"]

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]
LANES = 16
LEAST_NORMAL = np.float32(2.0**-126)
_FLOAT, _INT16, _INT32, _INT64 = _ir.FloatType(), _ir.IntType(16), _ir.IntType(32), _ir.IntType(64)
FLOATS, WORDS, HALVES = (_ir.VectorType(kind, LANES) for kind in (_FLOAT, _INT32, _INT16))


class _BFloat(_ir.Type):  # type: ignore[misc]  # a type of llvmlite, which has none of this number, is a subclass of one
    """LLVM's type of a bfloat16."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT: Any = _BFloat()


def intrinsic_of(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return one of LLVM's own functions."""
    return _lower.get_or_insert_function(builder.module, _ir.FunctionType(result, arguments), f"llvm.{name}")


def splat(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector of one number."""
    one = builder.insert_element(_ir.Constant(kind, _ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, _ir.Constant(WORDS, [0] * LANES))


def first_lanes(builder: Any, n: Any) -> Any:
    """Return a mask: the first ``n`` lanes, all of them where there are more."""
    return builder.icmp_signed("<", _ir.Constant(WORDS, list(range(LANES))), splat(builder, builder.trunc(n, _INT32), WORDS))


def masked_load(builder: Any, place: Any, mask: Any) -> Any:
    """Return the numbers at a place where the mask is set, 0 elsewhere, where nothing is read."""
    kinds = [FLOATS.as_pointer(), _INT32, mask.type, FLOATS]
    given = [builder.bitcast(place, FLOATS.as_pointer()), _INT32(4), mask, _ir.Constant(FLOATS, [0.0] * LANES)]
    return builder.call(intrinsic_of(builder, "masked.load.v16f32.p0", FLOATS, kinds), given)


def _rounded(builder: Any, x: Any) -> Any:
    """Return numbers in bfloat16, in the lower half of words."""
    halves = _ir.VectorType(BFLOAT, LANES)
    round_them = intrinsic_of(builder, "x86.avx512bf16.cvtneps2bf16.512", halves, [FLOATS])
    return builder.zext(builder.bitcast(builder.call(round_them, [x]), HALVES), WORDS)


def _halving(by_row: bool, by_pairs: bool) -> Callable[..., Any]:
    """Return the typing of ``halve(x, at, n, two, rows, row, row_words, pairs, pair)``.

    From ``x`` on ``at`` it takes ``n`` numbers of one row, and of the one behind it where ``two`` is not 0, otherwise zeros;
    by row it writes them to ``rows`` from ``row`` on and ``row_words`` behind it, by pairs to ``pairs`` from ``pair`` on.
    """

    def typed(
        typing: Any, x: Any, at: Any, n: Any, two: Any, rows: Any, row: Any, row_words: Any, pairs: Any, pair: Any
    ) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, at, n, two, rows, row, row_words, pairs, pair = arguments
            second_too = builder.icmp_signed("!=", two, _INT64(0))
            with _lower.for_range_slice(builder, _INT64(0), n, _INT64(LANES), _INT64) as (column, _):
                left = builder.sub(n, column)
                first_mask = first_lanes(builder, left)
                second_mask = first_lanes(builder, builder.select(second_too, left, _INT64(0)))
                place = builder.add(at, column)
                first = _rounded(builder, masked_load(builder, builder.gep(x, [place]), first_mask))
                below = builder.gep(x, [builder.add(place, n)])
                second = _rounded(builder, masked_load(builder, below, second_mask))
                if by_row:
                    words = builder.add(row, builder.lshr(column, _INT64(1)))
                    _store(builder, builder.trunc(first, HALVES), builder.gep(rows, [words]))
                    with builder.if_then(second_too):
                        _store(builder, builder.trunc(second, HALVES), builder.gep(rows, [builder.add(words, row_words)]))
                if by_pairs:
                    both = builder.or_(first, builder.shl(second, _ir.Constant(WORDS, [16] * LANES)))
                    _store(builder, both, builder.gep(pairs, [builder.add(pair, column)]))
            return context.get_dummy_value()

        number = _types.int64
        return _types.void(x, number, number, number, rows, number, number, pairs, number), lower

    return typed


def _store(builder: Any, value: Any, place: Any) -> None:
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=4)


def rounded_plain(x: Floats) -> npt.NDArray[np.uint16]:
    """Return numbers in bfloat16, as their bits."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    nearest = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    quiet = (bits >> 16 | 0x40).astype(np.uint16)
    return np.where(np.isnan(x), quiet, np.where(np.abs(x) < LEAST_NORMAL, nearest & 0x8000, nearest)).astype(np.uint16)


def _halving_plain(by_row: bool, by_pairs: bool) -> Callable[..., None]:
    def halve(x: Floats, at: int, n: int, two: int, rows: Words, row: int, row_words: int, pairs: Words, pair: int) -> None:
        both = np.zeros((2, padded(n)), np.uint16)
        both[0, :n] = rounded_plain(x[at : at + n])
        if two:
            both[1, :n] = rounded_plain(x[at + n : at + 2 * n])
        if by_row:
            for i in range(1 + (two != 0)):
                rows[row + i * row_words : row + (i + 1) * row_words] = both[i].view(np.int32)
        if by_pairs:
            pairs[pair : pair + padded(n)] = both.T.copy().view(np.int32)[:, 0]

    return halve


_rows_alone, _pairs_alone, _rows_and_pairs = (
    compiled(_halving(*of), _halving_plain(*of)) for of in ((True, False), (False, True), (True, True))
)


@kernel(inline="always")
def padded(n: int) -> int:
    """Return ``n``, up to the next multiple of 16."""
    return (n + LANES - 1) // LANES * LANES


@kernel(inline="always")
def row_words(n: int) -> int:
    """Return how many words a row of ``n`` numbers takes."""
    return padded(n) // 2


@kernel
def by_row(x: Floats, words: Words) -> None:
    """Write ``x [M, K]`` by row to ``words``, flat."""
    (m, k), step, source, to = x.shape, row_words(x.shape[1]), flat(x), flat(words)
    for i in range(0, m, 2):
        _rows_alone(source, i * k, k, int(i + 1 < m), to, i * step, step, to, 0)


@kernel
def by_pairs(x: Floats, words: Words) -> None:
    """Write ``x [K, N]`` by pairs of rows to ``words``, flat."""
    (k, n), step, source, to = x.shape, padded(x.shape[1]), flat(x), flat(words)
    for i in range(0, k, 2):
        _pairs_alone(source, i * n, n, int(i + 1 < k), to, 0, 0, to, i // 2 * step)


@kernel
def by_row_and_pairs(x: Floats, rows: Words, pairs: Words) -> None:
    """Do both."""
    (m, n), step, source = x.shape, row_words(x.shape[1]), flat(x)
    to_rows, to_pairs = flat(rows), flat(pairs)
    for i in range(0, m, 2):
        _rows_and_pairs(source, i * n, n, int(i + 1 < m), to_rows, i * step, step, to_pairs, i * step)


@kernel
def turned(x: Floats, rows: Words, words: Words) -> None:
    """Write the transpose of ``x [N, K]`` by pairs of its rows to ``words``, flat; ``rows`` is scratch for ``x`` by row."""
    (n, k), step, to_step = x.shape, row_words(x.shape[1]), padded(x.shape[0])
    by_row(x, rows)
    for i in range(n):
        for pair in range((k + 1) // 2):
            words[pair * to_step + i] = rows[i * step + pair]
