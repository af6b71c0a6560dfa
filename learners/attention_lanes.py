"""Request by request in vector lanes: what happens to all pairs of a request's candidates with its history entries.

Legend: ``C`` candidates and ``H`` entries of one request, ``P`` their pairs, an entry's beside each other's, ``T`` width of a
target and of an entry, ``W`` width of the hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from learners.lane_operations import LANES, Operand, check, chunks, first, halved, operation, spread, variable, zero, zero_like
from learners.lanes import compiled

__all__ = ["add", "add_pairs", "combine", "copy", "cross", "divide", "multiply", "multiply_pairs", "unweigh", "weighed"]

Floats = npt.NDArray[np.float32]


def _active(b: Any, hidden: Any, leak: Any) -> Any:
    return b.select(b.fcmp_ordered(">", hidden, zero_like(hidden)), hidden, b.fmul(hidden, leak))


def _copied(b: Any, out: Any, x: Any) -> Sequence[Any]:
    return (x,)


def _multiplied(b: Any, out: Any, x: Any, y: Any) -> Sequence[Any]:
    return (b.fmul(x, y),)


def _added(b: Any, out: Any, x: Any, y: Any) -> Sequence[Any]:
    return (b.fadd(x, y),)


def _combined(b: Any, out: Any, entry: Any, weight: Any) -> Sequence[Any]:
    return (b.fadd(out, b.fmul(weight, entry)),)


def _crossed(b: Any, of_interest: Any, of_target: Any, x: Any, of_product: Any, interest: Any, target: Any) -> Sequence[Any]:
    return b.fadd(x, b.fmul(of_product, target)), b.fmul(of_product, interest)


def _unweighed(
    b: Any, hidden: Any, of_query: Any, of_key: Any, of_out: Any, leaky: Any, out: Any, pull: Any, leak: Any
) -> Sequence[Any]:
    zero, drawn = zero_like(hidden), b.fmul(pull, out)
    positive = b.fcmp_ordered(">", hidden, zero)
    grad = b.select(positive, drawn, b.fmul(drawn, leak))
    return (
        grad,
        b.fadd(of_query, grad),
        b.fadd(of_key, grad),
        b.fadd(of_out, b.fmul(pull, _active(b, hidden, leak))),
        b.fadd(leaky, b.fmul(pull, b.select(positive, zero, hidden))),
    )


def _divided(
    b: Any, of_target: Any, of_entry: Any, of_both: Any, target: Any, entry: Any, grad: Any, weight: Any
) -> Sequence[Any]:
    passed = b.fadd(b.fmul(of_both, target), b.fmul(weight, grad))
    return b.fadd(of_target, b.fmul(of_both, entry)), b.fadd(of_entry, passed)


def _weighed(typing_context: Any, hidden: Any, out: Any, leak: Any) -> Any:
    for role, kind in (("row", hidden), ("row", out), ("factor", leak)):
        check(role, kind)

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = [
            Operand("row", context, builder, kind, value) for kind, value in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        sums = {lanes: variable(builder, zero(lanes)) for lanes in LANES}

        def chunk(index: Any, lanes: int) -> None:
            value, factor = (row.load(None, index, lanes) for row in rows)
            share = builder.fmul(_active(builder, value, spread(builder, arguments[2], lanes)), factor)
            builder.store(builder.fadd(builder.load(sums[lanes]), share), sums[lanes])

        chunks(builder, rows[0].shape[0], chunk)
        wide, four, rest = (builder.load(sums[lanes]) for lanes in LANES)
        for lanes in (8, 4):
            wide = halved(builder, wide, lanes)
        four = builder.fadd(wide, four)
        for lanes in (2, 1):
            four = halved(builder, four, lanes)
        return builder.fadd(first(builder, four), rest)

    return hidden.dtype(hidden, out, leak), lower


def _active_plain(hidden: Floats, leak: np.float32) -> Floats:
    return np.where(hidden > 0, hidden, hidden * leak)


def copy_plain(out: Floats, x: Floats) -> None:
    """Compute what :data:`copy` does."""
    out[:] = x


def add_plain(out: Floats, x: Floats, y: Floats) -> None:
    """Compute what :data:`add` does."""
    out[:] = x + y


def multiply_plain(out: Floats, x: Floats, y: Floats) -> None:
    """Compute what :data:`multiply` does."""
    out[:] = x * y


def multiply_pairs_plain(both: Floats, target: Floats, entry: Floats) -> None:
    """Compute what :data:`multiply_pairs` does."""
    both[:] = (target[:, None] * entry).reshape(both.shape)


def add_pairs_plain(both: Floats, target: Floats, entry: Floats) -> None:
    """Compute what :data:`add_pairs` does."""
    both[:] = (target[:, None] + entry).reshape(both.shape)


def combine_plain(interest: Floats, entry: Floats, weight: Floats) -> None:
    """Compute what :data:`combine` does."""
    interest[:] = 0
    for own, factors in zip(interest, weight.reshape(len(interest), len(entry)), strict=True):
        for row, factor in zip(entry, factors, strict=True):
            own += factor * row


def cross_plain(
    of_interest: Floats, of_target: Floats, x: Floats, of_product: Floats, interest: Floats, target: Floats
) -> None:
    """Compute what :data:`cross` does."""
    of_interest[:], of_target[:] = x + of_product * target, of_product * interest


def unweigh_plain(
    hidden: Floats,
    of_query: Floats,
    of_key: Floats,
    of_out: Floats,
    leaky: Floats,
    out: Floats,
    pull: Floats,
    leak: np.float32,
) -> None:
    """Compute what :data:`unweigh` does."""
    of_query[:] = 0
    for pair, (row, drawing) in enumerate(zip(hidden, pull, strict=True)):
        of_out += drawing * _active_plain(row, leak)
        leaky += drawing * np.where(row > 0, np.float32(0), row)
        drawn = drawing * out
        row[:] = np.where(row > 0, drawn, drawn * leak)
        of_query[pair // len(of_key)] += row
        of_key[pair % len(of_key)] += row


def divide_plain(
    of_target: Floats, of_entry: Floats, of_both: Floats, target: Floats, entry: Floats, grad: Floats, weight: Floats
) -> None:
    """Compute what :data:`divide` does."""
    for pair, (row, factor) in enumerate(zip(of_both, weight, strict=True)):
        c, h = divmod(pair, len(entry))
        of_target[c] += row * entry[h]
        of_entry[h] += row * target[c] + factor * grad[c]


def weighed_plain(hidden: Floats, out: Floats, leak: np.float32) -> np.float32:
    """Compute what :data:`weighed` does, in its order."""
    shares, first = _active_plain(hidden, leak) * out, 0
    sums: list[Floats] = []
    for lanes in LANES:
        end = len(shares) // lanes * lanes
        sums.append(np.zeros(lanes, np.float32))
        for start in range(first, end, lanes):
            sums[-1] += shares[start : start + lanes]
        first = end
    wide, four, rest = sums
    wide = wide[:8] + wide[8:]
    four = wide[:4] + wide[4:] + four
    four = four[:2] + four[2:]
    return cast(np.float32, four[0] + four[1] + rest[0])


_Two = Callable[[Floats, Floats], None]
_Three = Callable[[Floats, Floats, Floats], None]
copy: _Two = operation("out row", _copied, copy_plain)
"""``copy(out, x)``, of rows."""
add: _Three = operation("out row row", _added, add_plain)
"""``add(out, x, y)``: ``out = x + y``, of rows."""
multiply: _Three = operation("target_out target target", _multiplied, multiply_plain)
"""``multiply(out, x, y)``: ``out = x * y``, of rows ``[C, n]``."""
multiply_pairs: _Three = operation("pair_out target entry", _multiplied, multiply_pairs_plain)
"""``multiply_pairs(both, target, entry)``: ``both [P, T]`` is their product."""
add_pairs: _Three = operation("pair_out target entry", _added, add_pairs_plain)
"""``add_pairs(both, target, entry)``: ``both [P, W]`` is their sum."""
weighed: Callable[[Floats, Floats, np.float32], np.float32] = compiled(_weighed, weighed_plain)
"""``weighed(hidden, out, leak)``: the sum of ``PReLU(hidden) * out``, of rows ``[W]``: of lane ``i`` of 16 over every 16th
number, of those behind in 4 lanes, then of the last ones."""
combine: _Three = operation("target_out entry number", _combined, combine_plain)
"""``combine(interest, entry, weight)``: the sum over the entries of ``weight * entry``, ``[C, T]``, ``[H, T]`` and ``[P]``."""
cross: Callable[[Floats, Floats, Floats, Floats, Floats, Floats], None] = operation(
    "target_out target_out target target target target", _crossed, cross_plain
)
"""``cross(of_interest, of_target, x, of_product, interest, target)``: back from ``interest | interest * target``, whose
gradient is ``x | of_product``: ``of_interest = x + of_product * target``, ``of_target = of_product * interest``, ``[C, T]``."""
unweigh: Callable[[Floats, Floats, Floats, Floats, Floats, Floats, Floats, np.float32], None] = operation(
    "pair_out target_out entry_sum sum sum row number factor", _unweighed, unweigh_plain
)
"""``unweigh(hidden, of_query, of_key, of_out, leaky, out, pull, leak)``: back from the gradients ``pull [P]`` by
:data:`weighed`: ``of_out += pull * PReLU(hidden)``, ``leaky += pull * min(hidden, 0)``, rows ``[W]``; ``hidden [P, W]`` becomes
its gradient, whose sum by candidate is ``of_query [C, W]`` and by entry is added to ``of_key [H, W]``."""
divide: Callable[[Floats, Floats, Floats, Floats, Floats, Floats, Floats], None] = operation(
    "target_sum entry_sum pair target entry target number", _divided, divide_plain
)
"""``divide(of_target, of_entry, of_both, target, entry, grad, weight)``: back from ``both = target * entry`` and from
``weight * entry`` in the interest, whose gradient is ``grad [C, T]``: ``of_target += of_both * entry``,
``of_entry += of_both * target + weight * grad``."""
