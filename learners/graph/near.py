"""Pairs that are near in time and of like category: the search behind q2q and q2i (EGIN, Algorithm 2).

A request has a few entries, an entry a few candidates: finding where they begin and end and going through them one by one
costs two wrongly guessed branches per entry. Here an entry is compared with eight candidates at once, by time, id and category,
and those that count are written in order without asking which; only an entry with more in reach needs a second eight.
"""

from __future__ import annotations

import numpy as np

from learners.graph.edges import Pairs, Positions, Side, check_cap, thinned
from learners.graph.eight import CHOSEN, N_CHOSEN, equal8, put8, within8
from negative_queues.draws import DrawKey
from negative_queues.kernels import kernel

__all__ = ["near_pairs"]

_LONGEST = 1 << 61  # ms: no two times are so far apart, and sums of it do not overflow


def near_pairs(
    a: Side, a_ts: Positions, b: Side, b_ts: Positions, back: int, ahead: int, cap: int | None, key: DrawKey | None
) -> Pairs:
    """Return the pairs ``(x, y)`` with ``-back < b_ts[y] - a_ts[x] < ahead`` that are new, known, different and alike.

    A pair is new if one end is among the fresh entries of its sequence. Ids differ, and neither is 0. Categories
    are alike if the sets intersect or one of them is empty. Pairs are in the order of ``x``, then of ``y``.

    Args:
        a: side of ``x``.
        a_ts: its times, ms ``[N_a]``, not decreasing within a request.
        b: side of ``y``, of the same requests.
        b_ts: its times, likewise.
        back: ms; at least 0.
        ahead: ms; at least 0, and ``back + ahead`` at least 1.
        cap: as of :func:`~learners.graph.edges.find_pairs`.
        key: likewise.

    Raises:
        GraphError: a cap below 2 or without a key.
    """
    check_cap(cap, key)
    ids, slots, times = b.ids, b.categories, b_ts
    if (missing := 8 - len(ids)) > 0:
        ids, times = np.pad(ids, (0, missing)), np.pad(times, (0, missing))
        slots = np.pad(slots, ((0, missing), (0, 0)))
    by_slot = np.ascontiguousarray(slots.T).reshape(-1)  # [K * N_b]
    counts, done, n = np.empty(len(a.offsets) - 1, np.int64), 0, 0
    pairs = np.empty((2, 4 * len(a.ids) + 64), np.int64)
    while True:
        done, n = _near(
            a.ids, a.offsets, a.categories, a.fresh, a_ts, ids, b.offsets, by_slot, slots.shape[1], b.fresh, times,
            a is b, min(back, _LONGEST), min(ahead, _LONGEST), done, n, counts, pairs[0], pairs[1],
        )  # fmt: skip
        if done == len(counts):
            break
        share = max(1, int(b.offsets[done])) / max(1, len(b.ids))  # the rest is taken to have as many
        larger = np.empty((2, 2 * pairs.shape[1] + int(1.2 * n / share)), np.int64)
        larger[:, :n] = pairs[:, :n]
        pairs = larger
    return thinned(pairs, n, counts, cap, key)


@kernel
def _near(
    a_ids: Positions,
    a_offsets: Positions,
    a_categories: Positions,
    a_fresh: Positions,
    a_ts: Positions,
    b_ids: Positions,
    b_offsets: Positions,
    b_categories: Positions,
    n_slots: int,
    b_fresh: Positions,
    b_ts: Positions,
    one: bool,
    back: int,
    ahead: int,
    row: int,
    n: int,
    counts: Positions,
    pairs_a: Positions,
    pairs_b: Positions,
) -> tuple[int, int]:
    """Write the pairs of requests from ``row`` on behind the ``n`` there are, and how many each has to ``counts [R]``.

    Return the request that there was no room for, or ``R``, and how many pairs those before it have. ``one``: the two sides are
    one sequence and ``y`` is before ``x``.
    """
    # One piece: with the search for the first candidate in a function of its own it takes 1.15 of the time, the eights 1.9.
    last_base = len(b_ids) - 8
    while row < len(a_offsets) - 1:
        before = n
        first, end = b_offsets[row], b_offsets[row + 1]
        fresh_x, fresh_y = a_offsets[row + 1] - a_fresh[row], end - b_fresh[row]
        for x in range(fresh_x if one else a_offsets[row], a_offsets[row + 1]):
            earliest = a_ts[x] - back
            if one and (x == first or b_ts[x - 1] <= earliest):
                continue
            # ``first`` is no candidate's end but a bound: it moves to the first one only where eight from it are too few.
            y = max(first, x - 8) if one else first
            more = (y > first and b_ts[y - 1] > earliest) if one else (y + 8 < end and b_ts[y + 8] < a_ts[x] + ahead)
            if more:
                while first < end and b_ts[first] <= earliest:
                    first += 1
                y = first
            if x < fresh_x:
                y = max(y, fresh_y)
            if y >= end or b_ts[y] >= a_ts[x] + ahead:
                continue
            if n + (end - y) + 8 > len(pairs_a):
                return row, before
            while True:
                base = min(y, last_base)
                mask = (255 << (y - base)) & ((1 << min(end - base, 8)) - 1)
                mask &= within8(b_ts, base, earliest + 1, back + ahead - 1)
                mask &= ~(equal8(b_ids, base, a_ids[x]) | equal8(b_ids, base, 0))
                mask &= _alike8(a_categories, x, b_categories, n_slots, len(b_ids), base)
                mask = mask if a_ids[x] != 0 else 0
                put8(pairs_a, n, x, CHOSEN, 0)
                put8(pairs_b, n, base, CHOSEN, mask)
                n += int(N_CHOSEN[mask])
                y = base + 8
                if y >= end or b_ts[y] >= a_ts[x] + ahead:
                    break
        counts[row] = n - before
        row += 1
    return row, n


@kernel(inline="always")
def _alike8(a: Positions, x: int, b: Positions, n_slots: int, n_b: int, base: int) -> int:
    """Return which of eight entries have a category set that intersects that of ``x``, where neither is empty (0 pads)."""
    if a.shape[1] == 1 and n_slots == 1:
        return equal8(b, base, a[x, 0]) | equal8(b, base, 0) | (0 if a[x, 0] != 0 else 255)
    found, known_x, unknown = 0, False, 255
    for j in range(n_slots):
        unknown &= equal8(b, j * n_b + base, 0)
    for i in range(a.shape[1]):
        known_x |= a[x, i] != 0
        for j in range(n_slots):
            found |= equal8(b, j * n_b + base, a[x, i]) if a[x, i] != 0 else 0
    return (found | unknown) if known_x else 255
