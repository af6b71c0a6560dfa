"""Edges as positions, and the kernel that makes them: find all, then draw where there are too many.

An edge's ends are positions in the flat values of the sequences it came from, so a gathered embedding matrix is indexed
without another look-up. There are two searches. Where the other ends of an entry are the entries before it down to some place,
by number or by session, all of them that are known and differ are taken (:func:`find_pairs`); what is near in time and of like
category is :mod:`learners.graph.near`'s.

Letters: ``R`` requests, ``N`` entries over all requests, ``K`` category slots of an entry, ``P`` pairs, ``E`` edges.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from learners.samples import Ragged
from negative_queues.draws import DrawKey, fold64, uniform_below
from negative_queues.kernels import kernel

__all__ = ["Edges", "GraphError", "Mode", "Pairs", "Side", "TimedNodes", "find_pairs"]

Positions = npt.NDArray[np.int64]
Mode = Literal["all", "fresh"]
"""``all``: every pair of the histories; ``fresh``: each pair in the one request where its newer end is new."""


class GraphError(ValueError):
    """Sequences or options from which no edges can be built."""


class Edges(NamedTuple):
    """Directed edges: ``anchor`` and ``positive`` are int64 ``[E]`` positions in the flat values of their sequences."""

    anchor: Positions
    positive: Positions

    @property
    def n_edges(self) -> int:
        """How many (``E``)."""
        return len(self.anchor)


class Pairs(NamedTuple):
    """Undirected pairs: int64 ``[P]`` positions on side ``a`` and side ``b``, in the order of the requests."""

    a: Positions
    b: Positions

    def both_ways(self) -> Edges:
        """Return the ``2 P`` edges of pairs within one sequence: first all (a, b), then all (b, a)."""
        return Edges(np.concatenate(self), np.concatenate(self[::-1]))


class TimedNodes(NamedTuple):
    """A batch of sequences whose entries have times and, maybe, categories.

    - ``ids``: :class:`~learners.samples.Ragged` of int64 ``[N]``, oldest first; 0 is missing and has no edges.
    - ``ts``: UTC ms ``[N]``, not decreasing within a sequence.
    - ``categories``: ``[N]`` or ``[N, K]``, 0 pads; None where the log has none.
    - ``fresh``: so many last entries of each sequence are new, ``[R]``; only for mode ``fresh``.
    - ``keep``: bool ``[N]``: entries that are False get no edges (subsampling); None keeps all.
    """

    ids: Ragged
    ts: npt.NDArray[Any]
    categories: npt.NDArray[Any] | None = None
    fresh: npt.NDArray[Any] | None = None
    keep: npt.NDArray[np.bool_] | None = None

    def side(self, mode: Mode, name: str) -> Side:
        """Return the entries as the kernels want them.

        Raises:
            GraphError: shapes that do not fit.
        """
        values, offsets = self.ids
        if len(self.ts) != len(values):
            raise GraphError(f"{name}: ts has {len(self.ts)} entries for {len(values)} ids")
        if self.keep is not None:
            if len(self.keep) != len(values):
                raise GraphError(f"{name}: keep has {len(self.keep)} entries for {len(values)} ids")
            values = np.where(self.keep, values, 0)  # a missing id has no edges
        return side(values, offsets, self.categories, self.fresh, mode, name)


def check_timespan(timespan_ms: int) -> None:
    """Raise GraphError unless the timespan is positive."""
    if timespan_ms <= 0:
        raise GraphError(f"timespan_ms must be above 0, got {timespan_ms}; an hour is 3_600_000")


class Side(NamedTuple):
    """The entries of one side of the pairs, as the kernels want them (:func:`side` makes it).

    ``ids`` int64 ``[N]``, ``offsets`` int64 ``[R + 1]``, ``categories`` int64 ``[N, K]`` (0 pads; ``K = 0``: all unknown),
    ``fresh`` int64 ``[R]``: so many last entries are new.
    """

    ids: Positions
    offsets: Positions
    categories: Positions
    fresh: Positions


def side(
    ids: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    categories: npt.NDArray[Any] | None,
    fresh: npt.NDArray[Any] | None,
    mode: Mode,
    name: str,
) -> Side:
    """Check one side and bring it into the form of the kernels.

    Raises:
        GraphError: shapes that do not fit, or mode ``fresh`` without ``fresh``.
    """
    check_rows(ids, offsets, fresh, mode, name)
    n = len(ids)
    if categories is not None and len(categories) != n:
        raise GraphError(f"{name}: categories has {len(categories)} rows for {n} entries")
    lengths = np.diff(offsets)
    new = lengths if mode == "all" or fresh is None else np.clip(fresh, 0, lengths)
    if categories is None:
        categories = np.zeros((n, 0), np.int64)
    slots = categories[:, None] if categories.ndim == 1 else categories
    return Side(frozen(ids), frozen(offsets), frozen(slots), frozen(new))


def check_rows(ids: npt.NDArray[Any], offsets: npt.NDArray[Any], fresh: npt.NDArray[Any] | None, mode: Mode, name: str) -> None:
    """Check ids ``[N]``, offsets ``[R + 1]`` and how many entries of each request are new, ``[R]``.

    Raises:
        GraphError: shapes that do not fit, or mode ``fresh`` without ``fresh``.
    """
    n, rows = len(ids), len(offsets) - 1
    if rows < 0 or offsets[0] != 0 or offsets[-1] != n:
        raise GraphError(f"{name}: offsets must run from 0 to the {n} values, got {offsets[[0, -1]] if rows >= 0 else offsets}")
    if mode not in ("all", "fresh"):
        raise GraphError(f"mode must be 'all' or 'fresh', got {mode!r}")
    if mode == "fresh" and fresh is None:
        raise GraphError(
            f"{name}: mode 'fresh' needs fresh [R], the number of new entries per request; give it or use mode 'all'"
        )
    if fresh is not None and len(fresh) != rows:
        raise GraphError(f"{name}: fresh has {len(fresh)} entries for {rows} requests")


def frozen(array: npt.NDArray[Any]) -> Positions:
    """Return int64, contiguous and read-only: one compiled kernel for a block's read-only views and for own arrays."""
    view = np.ascontiguousarray(array, dtype=np.int64).view()
    view.flags.writeable = False
    return view


def find_pairs(of: Side, low: Positions, high: Positions, cap: int | None, key: DrawKey | None) -> Pairs:
    """Return the pairs ``(x, y)`` of a sequence with ``low[x] <= y < high[x]`` that are new, known and different.

    A pair is new if ``x`` is among the fresh entries of its sequence. Ids differ, and neither is 0. Categories do not matter.

    Args:
        of: the entries.
        low: first candidate ``y`` per ``x``, int64 ``[N]``.
        high: end of the candidates, int64 ``[N]``: ``x`` or before, in the same request.
        cap: at most so many *edges* per request (a pair is two), or None. ``cap // 2`` pairs are drawn from a request that has
            more, each subset equally likely (Knuth 3.4.2, Algorithm S), in the order they had.
        key: of the draw; needed where ``cap`` is.

    Raises:
        GraphError: a cap below 2 or without a key.
    """
    check_cap(cap, key)
    most = int(np.maximum(high - low, 0).sum())
    pairs, counts = np.empty((2, most), np.int64), np.empty(len(of.offsets) - 1, np.int64)
    n = _find(of.ids, of.offsets, of.fresh, low, high, counts, pairs)
    return thinned(pairs, n, counts, cap, key)


def check_cap(cap: int | None, key: DrawKey | None) -> None:
    """Raise GraphError unless the cap leaves room for a pair and has the key of its draw."""
    if cap is not None and (cap < 2 or key is None):
        raise GraphError(f"cap must be at least 2 edges (one pair, both ways) and needs a key; got cap {cap}, key {key}")


def thinned(pairs: Positions, n: int, counts: Positions, cap: int | None, key: DrawKey | None) -> Pairs:
    """Return the first ``n`` of ``pairs [2, most]``, of which request ``r`` has ``counts[r]``; no more than the cap of each."""
    if cap is not None and key is not None:
        n = _thin(counts, cap // 2, key, pairs)
    return Pairs(*pairs[:, :n])


@kernel(inline="always")
def alike(a: Positions, x: int, b: Positions, y: int) -> bool:
    """Whether the category sets of two entries intersect, or one is empty (0 pads)."""
    known_x = False
    known_y = a.shape[1] == 0
    for i in range(a.shape[1]):
        if a[x, i] != 0:
            known_x = True
        for j in range(b.shape[1]):
            if b[y, j] != 0:
                known_y = True
                if a[x, i] == b[y, j]:
                    return True
    return not (known_x and known_y)


@kernel
def _find(
    ids: Positions, offsets: Positions, fresh: Positions, low: Positions, high: Positions, counts: Positions, pairs: Positions
) -> int:
    """Write the pairs to ``pairs [2, most]`` and how many each request has to ``counts [R]``; return how many there are."""
    n = 0
    for row in range(len(offsets) - 1):
        before = n
        for x in range(offsets[row + 1] - fresh[row], offsets[row + 1]):
            if ids[x] == 0:
                continue
            # Each pair is written and the place moves on if it counts: which do is hard to guess for a processor's branches.
            for y in range(low[x], high[x]):
                pairs[0, n], pairs[1, n] = x, y
                n += (ids[y] != 0) & (ids[y] != ids[x])
        counts[row] = n - before
    return n


@kernel
def _thin(counts: Positions, limit: int, key: np.uint64, pairs: Positions) -> int:
    """Keep at most ``limit`` pairs of each request, moved to the front in their order; return how many are left."""
    at = kept = 0
    for row in range(len(counts)):
        left, need = counts[row], min(counts[row], limit)
        row_key = fold64(key, np.uint64(row))
        for pair in range(at, at + counts[row]):
            # Take this one with probability need / left: every subset of the right size is equally likely.
            if need and (need == left or uniform_below(row_key, left, left) < need):
                pairs[0, kept], pairs[1, kept] = pairs[0, pair], pairs[1, pair]
                kept += 1
                need -= 1
            left -= 1
        at += counts[row]
    return kept
