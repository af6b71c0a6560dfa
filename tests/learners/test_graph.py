"""Edges against brute force: every pair of every request, one condition at a time."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.graph import Edges, GraphError, TimedNodes, i2i_edges, keep_probability, q2i_edges, q2q_edges, seed_mix, subsample
from learners.graph.eight import CHOSEN, N_CHOSEN, equal8, equal8_plain, put8, put8_plain, within8, within8_plain
from learners.samples import Ragged, ragged_rows
from negative_queues import draw_key

KEY = draw_key(1, "egin", "edges", 0)
Rows = list[list[Any]]


def pairs_of(edges: Edges) -> Counter[tuple[int, int]]:
    return Counter(zip(edges.anchor.tolist(), edges.positive.tolist(), strict=True))


def both(pairs: list[tuple[int, int]]) -> Counter[tuple[int, int]]:
    return Counter(pairs) + Counter((b, a) for a, b in pairs)


def alike(a: list[int], b: list[int]) -> bool:
    known_a, known_b = {c for c in a if c}, {c for c in b if c}
    return not known_a or not known_b or bool(known_a & known_b)


def start_of(rows: Rows) -> list[int]:
    return [sum(len(row) for row in rows[:r]) for r in range(len(rows) + 1)]


def nodes(rows: Rows, fresh: list[int] | None = None, known: bool = True) -> TimedNodes:
    """Rows of (id, ts, categories [2])."""
    ids = ragged_rows([[entry[0] for entry in row] for row in rows], np.int64)
    flat = [entry for row in rows for entry in row]
    categories = np.array([entry[2] for entry in flat], np.int64).reshape(-1, 2) if known else None
    return TimedNodes(
        ids, np.array([e[1] for e in flat], np.int64), categories, None if fresh is None else np.array(fresh, np.int32)
    )


@st.composite
def timed_rows(draw: st.DrawFn, n_rows: int) -> Rows:
    entry = st.tuples(st.integers(0, 5), st.integers(0, 12), st.lists(st.integers(0, 3), min_size=2, max_size=2))
    return [sorted(draw(st.lists(entry, max_size=9)), key=lambda e: e[1]) for _ in range(n_rows)]


item_rows = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=5)


def brute_i2i(
    rows: Rows, window: int, fresh: list[int] | None, keep: list[list[bool]] | None = None
) -> Counter[tuple[int, int]]:
    found = []
    for r, (row, start) in enumerate(zip(rows, start_of(rows), strict=False)):
        kept = [p for p in range(len(row)) if keep is None or keep[r][p]]
        for (rank_j, j), (rank_k, k) in combinations(enumerate(kept), 2):
            is_new = fresh is None or k >= len(row) - fresh[r]
            if rank_k - rank_j <= window and row[j] != row[k] and row[j] and row[k] and is_new:
                found.append((start + j, start + k))
    return both(found)


@given(item_rows, st.integers(1, 4), st.data())
def test_i2i_is_every_pair_within_the_window(rows: Rows, window: int, data: st.DataObject) -> None:
    item = ragged_rows(rows, np.int64)
    assert pairs_of(i2i_edges(item, window)) == brute_i2i(rows, window, None)
    fresh = [data.draw(st.integers(0, 14)) for _ in rows]
    assert pairs_of(i2i_edges(item, window, np.array(fresh, np.int32), "fresh")) == brute_i2i(rows, window, fresh)
    keep = [[data.draw(st.booleans()) for _ in row] for row in rows]
    flat = np.array([k for row in keep for k in row], bool)
    fresh_kept = i2i_edges(item, window, np.array(fresh, np.int32), "fresh", keep=flat)
    assert pairs_of(fresh_kept) == brute_i2i(rows, window, fresh, keep)
    assert pairs_of(i2i_edges(item, window, keep=flat)) == brute_i2i(rows, window, None, keep)


def test_i2i_known_answer() -> None:
    edges = i2i_edges(ragged_rows([[7, 8, 9], [], [5], [7, 7, 8]], np.int64), window=1)
    assert pairs_of(edges) == both([(0, 1), (1, 2), (5, 6)])  # 4 and 5 are one id, 3 is alone
    assert edges.n_edges == 6


@given(st.lists(st.integers(1, 6), min_size=1, max_size=15), st.lists(st.integers(0, 15), max_size=4), st.integers(1, 3))
def test_fresh_trains_each_pair_once_over_the_requests_of_a_user(clicks: list[int], cuts: list[int], window: int) -> None:
    """A user's history grows from request to request; fresh is what came since the last one."""
    ends = sorted({min(cut, len(clicks)) for cut in cuts} | {len(clicks)})
    seen: Counter[tuple[int, int]] = Counter()
    before = 0
    for end in ends:
        item = ragged_rows([clicks[:end]], np.int64)
        seen += pairs_of(i2i_edges(item, window, np.array([end - before], np.int32), "fresh"))
        before = end
    assert seen == brute_i2i([clicks], window, None)


def brute_q2q(rows: Rows, timespan: int, rule: str, fresh: list[int] | None) -> Counter[tuple[int, int]]:
    found = []
    for r, (row, start) in enumerate(zip(rows, start_of(rows), strict=False)):
        session = np.cumsum(
            [k > 0 and (row[k][1] - row[k - 1][1] >= timespan or not alike(row[k][2], row[k - 1][2])) for k in range(len(row))]
        )
        for j, k in combinations(range(len(row)), 2):
            if rule == "session":
                joined = session[j] == session[k]
            else:
                joined = 0 < row[k][1] - row[j][1] < timespan and alike(row[j][2], row[k][2])
            is_new = fresh is None or k >= len(row) - fresh[r]
            if joined and is_new and row[j][0] != row[k][0] and row[j][0] and row[k][0]:
                found.append((start + j, start + k))
    return both(found)


@given(timed_rows(3), st.integers(1, 8), st.sampled_from(["algorithm2", "session"]), st.booleans(), st.data())
def test_q2q_is_every_pair_of_the_rule(rows: Rows, timespan: int, rule: Any, known: bool, data: st.DataObject) -> None:
    told = rows if known else [[(i, t, [0, 0]) for i, t, _ in row] for row in rows]
    assert pairs_of(q2q_edges(nodes(rows, known=known), timespan, rule)) == brute_q2q(told, timespan, rule, None)
    fresh = [data.draw(st.integers(0, 10)) for _ in rows]
    assert pairs_of(q2q_edges(nodes(rows, fresh, known), timespan, rule, "fresh")) == brute_q2q(told, timespan, rule, fresh)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 60), st.integers(0, 3))
def test_pairs_of_long_sequences_are_all_there_in_order(seed: int, length: int, timespan: int, n_slots: int) -> None:
    """More in reach than eight, more pairs than there is room for at first, rows of none; the order is that of the ends."""
    rng = np.random.default_rng(seed)
    lengths = [0, length, 3, 0, length // 2]
    rows: Rows = [
        [(int(rng.integers(0, 9)), t, rng.integers(0, 3, n_slots).tolist()) for t in sorted(rng.integers(0, 100, n).tolist())]
        for n in lengths
    ]
    flat = [entry for row in rows for entry in row]
    slots = np.array([entry[2] for entry in flat], np.int64).reshape(len(flat), n_slots)
    timed = nodes(rows, known=False)._replace(categories=slots)
    edges = q2q_edges(timed, timespan)
    assert pairs_of(edges) == brute_q2q(rows, timespan, "algorithm2", None)
    ends = list(zip(edges.anchor.tolist(), edges.positive.tolist(), strict=True))
    half = len(ends) // 2
    assert ends[:half] == sorted(ends[:half])
    assert ends[half:] == [(b, a) for a, b in ends[:half]]
    forth, _ = q2i_edges(timed, timed, timespan, "around")
    assert pairs_of(forth) == brute_q2i(rows, rows, timespan, "around", None)
    ends = list(zip(forth.anchor.tolist(), forth.positive.tolist(), strict=True))
    assert ends == sorted(ends)
    fresh = rng.integers(0, length + 1, len(rows))
    new = timed._replace(fresh=fresh)
    forth, _ = q2i_edges(new, new, timespan, "algorithm2", "fresh")
    assert pairs_of(forth) == brute_q2i(rows, rows, timespan, "algorithm2", (fresh.tolist(), fresh.tolist()))


def test_the_longest_timespan_joins_all_that_differ_in_time() -> None:
    rows: Rows = [[(1, 0, [0, 0]), (2, 5, [0, 0]), (3, 2**40, [0, 0])]]
    assert pairs_of(q2q_edges(nodes(rows), 2**63 - 1)) == both([(0, 1), (0, 2), (1, 2)])


@numba.njit(nogil=True)
def masks_of_eight(array: Any, at: int, value: int, span: int, out: Any) -> tuple[int, int]:
    equal, within = equal8(array, at, value), within8(array, at, value, span)
    put8(out, 0, value, CHOSEN, within)
    return equal, within


@given(st.lists(st.integers(-3, 6), min_size=8, max_size=12), st.integers(-3, 6), st.integers(0, 9), st.data())
def test_eight_at_once_do_what_one_by_one_does(values: list[int], value: int, span: int, data: st.DataObject) -> None:
    array, at = np.array(values, np.int64), data.draw(st.integers(0, len(values) - 8))
    compiled, plain = np.full(8, -1, np.int64), np.full(8, -1, np.int64)
    equal, within = masks_of_eight(array, at, value, span, compiled)
    assert equal == equal8_plain(array, at, value)
    assert within == within8_plain(array, at, value, span)
    put8_plain(plain, 0, value, CHOSEN, within)
    np.testing.assert_array_equal(compiled, plain)
    chosen = [i for i in range(8) if within >> i & 1]
    assert N_CHOSEN[within] == len(chosen)
    assert CHOSEN[within].tolist() == chosen + [0] * (8 - len(chosen))


def test_q2q_rules_differ_as_the_paper_does() -> None:
    """Shoes, boots, boots again: one session by its neighbours, but the first and the last share nothing."""
    rows = [[(1, 0, [1, 0]), (2, 5, [1, 2]), (3, 9, [2, 0])]]
    assert pairs_of(q2q_edges(nodes(rows), 10, "algorithm2")) == both([(0, 1), (1, 2)])
    assert pairs_of(q2q_edges(nodes(rows), 10, "session")) == both([(0, 1), (1, 2), (0, 2)])
    apart = [[(1, 0, [1, 0]), (2, 10, [1, 0]), (3, 10, [1, 0])]]
    assert pairs_of(q2q_edges(nodes(apart), 10, "algorithm2")) == both([])  # 10 is not < 10, 0 is not > 0
    assert pairs_of(q2q_edges(nodes(apart), 10, "session")) == both([(1, 2)])


def brute_q2i(queries: Rows, items: Rows, timespan: int, rule: str, fresh: tuple[list[int], list[int]] | None) -> Any:
    found = []
    for r, (q_start, i_start) in enumerate(zip(start_of(queries)[:-1], start_of(items), strict=False)):
        for x, (q_id, q_ts, q_cat) in enumerate(queries[r]):
            for y, (i_id, i_ts, i_cat) in enumerate(items[r]):
                dt = i_ts - q_ts
                near = 0 < dt < timespan if rule == "algorithm2" else abs(dt) < timespan
                new = fresh is None or x >= len(queries[r]) - fresh[0][r] or y >= len(items[r]) - fresh[1][r]
                if near and new and q_id and i_id and q_id != i_id and alike(q_cat, i_cat):
                    found.append((q_start + x, i_start + y))
    return Counter(found)


@given(timed_rows(3), timed_rows(3), st.integers(1, 8), st.sampled_from(["algorithm2", "around"]), st.data())
def test_q2i_is_every_pair_of_the_rule(queries: Rows, items: Rows, timespan: int, rule: Any, data: st.DataObject) -> None:
    forth, back = q2i_edges(nodes(queries), nodes(items), timespan, rule)
    assert pairs_of(forth) == brute_q2i(queries, items, timespan, rule, None)
    assert pairs_of(back) == Counter({(b, a): n for (a, b), n in pairs_of(forth).items()})
    fresh = tuple([data.draw(st.integers(0, 10)) for _ in range(3)] for _ in range(2))
    forth, _ = q2i_edges(nodes(queries, fresh[0]), nodes(items, fresh[1]), timespan, rule, "fresh")
    assert pairs_of(forth) == brute_q2i(queries, items, timespan, rule, (fresh[0], fresh[1]))


def test_q2i_rules_differ_as_the_paper_does() -> None:
    query, item = nodes([[(1, 10, [0, 0])]]), nodes([[(2, 5, [0, 0]), (3, 10, [0, 0]), (4, 15, [0, 0]), (5, 20, [0, 0])]])
    assert pairs_of(q2i_edges(query, item, 10)[0]) == Counter([(0, 2)])
    assert pairs_of(q2i_edges(query, item, 10, "around")[0]) == Counter([(0, 0), (0, 1), (0, 2)])


def test_an_item_has_one_category_slot() -> None:
    query = nodes([[(1, 0, [4, 6])]])
    item = TimedNodes(ragged_rows([[2, 3, 5]], np.int64), np.array([1, 1, 1]), np.array([6, 7, 0]))
    assert pairs_of(q2i_edges(query, item, 10)[0]) == Counter([(0, 0), (0, 2)])


@given(item_rows, st.integers(1, 3), st.integers(2, 9))
def test_a_cap_keeps_a_subset_of_the_right_size(rows: Rows, window: int, cap: int) -> None:
    item = ragged_rows(rows, np.int64)
    full, capped = pairs_of(i2i_edges(item, window)), pairs_of(i2i_edges(item, window, cap=cap, key=KEY))
    assert capped <= full
    row_of = np.repeat(np.arange(len(rows)), item.lengths)
    kept = Counter(int(row_of[a]) for a, _ in capped.elements())
    for row, n in Counter(int(row_of[a]) for a, _ in full.elements()).items():
        assert kept[row] == (n if n <= cap // 2 * 2 else cap // 2 * 2)
    assert all(capped[b, a] == n for (a, b), n in capped.items())


def test_a_cap_draws_every_edge_alike_and_by_its_key() -> None:
    """A hub: 30 distinct clicks, all within the window, 435 pairs of which 20 are kept."""
    item = ragged_rows([list(range(1, 31)), [1, 2]], np.int64)
    drawn: Counter[tuple[int, int]] = Counter()
    for step in range(4_000):
        edges = i2i_edges(item, 30, cap=40, key=draw_key(3, "egin", "edges.i2i", step))
        assert edges.n_edges == 42
        drawn += pairs_of(edges)
    hub = np.array([n for (a, _), n in drawn.items() if a < 30])
    expected = 4_000 * 20 / 435
    assert len(hub) == 870
    chi2 = ((hub - expected) ** 2 / expected).sum() / 2  # both directions of a pair are drawn as one
    assert chi2 < 435 + 5 * np.sqrt(2 * 435)
    again = [i2i_edges(item, 30, cap=40, key=draw_key(3, "egin", "edges.i2i", 7)) for _ in range(2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert pairs_of(again[0]) != pairs_of(i2i_edges(item, 30, cap=40, key=draw_key(3, "egin", "edges.i2i", 8)))


def test_two_equal_rows_draw_their_own() -> None:
    row = list(range(1, 31))
    edges = i2i_edges(ragged_rows([row, row], np.int64), 30, cap=40, key=KEY)
    first = {(a, b) for a, b in pairs_of(edges) if a < 30}
    assert first != {(a - 30, b - 30) for a, b in pairs_of(edges) if a >= 30}


@given(timed_rows(2), timed_rows(2), st.data())
def test_entries_that_are_not_kept_have_no_edges(queries: Rows, items: Rows, data: st.DataObject) -> None:
    full_q, full_i = nodes(queries), nodes(items)
    keep_q, keep_i = (np.array([data.draw(st.booleans()) for _ in range(len(side.ts))], bool) for side in (full_q, full_i))
    some_q, some_i = full_q._replace(keep=keep_q), full_i._replace(keep=keep_i)
    expected = {(a, b): n for (a, b), n in pairs_of(q2q_edges(full_q, 5, "session")).items() if keep_q[a] and keep_q[b]}
    assert pairs_of(q2q_edges(some_q, 5, "session")) == expected
    expected = {(a, b): n for (a, b), n in pairs_of(q2i_edges(full_q, full_i, 5)[0]).items() if keep_q[a] and keep_i[b]}
    assert pairs_of(q2i_edges(some_q, some_i, 5)[0]) == expected


def test_the_seed_mix_keeps_the_clicks_of_the_querys_categories() -> None:
    category = ragged_rows([[1, 2, 0, 3], [1, 2], [], [2, 5]], np.int64)
    query_category = np.array([[1, 3], [0, 0], [1, 0], [5, 0]])
    assert seed_mix(category, query_category, 1.0).tolist() == [True, False, False, True, True, True, False, True]
    assert seed_mix(category, query_category, 0.0).all()
    item = ragged_rows([[10, 11, 12, 13], [14, 15], [], [16, 17]], np.int64)
    edges = i2i_edges(item, 1, keep=seed_mix(category, query_category, 1.0))
    assert pairs_of(edges) == both([(0, 3), (4, 5)])  # 0 and 3 are neighbours among the seeds


def test_the_seed_mix_draws_whole_requests_by_share_and_key() -> None:
    category = ragged_rows([[1, 2]] * 20_000, np.int64)
    query_category = np.ones((20_000, 1), np.int64)
    keep = seed_mix(category, query_category, 0.2, KEY).reshape(-1, 2)
    assert keep[:, 0].all()
    assert abs((~keep[:, 1]).mean() - 0.2) < 5 * np.sqrt(0.16 / 20_000)
    np.testing.assert_array_equal(keep.reshape(-1), seed_mix(category, query_category, 0.2, KEY))


def test_subsampling_keeps_what_word2vec_keeps() -> None:
    np.testing.assert_allclose(keep_probability(np.array([0.0, 1e-3, 4e-3, 0.1]), 1e-3), [1, 1, 0.5, 0.1])
    kept = subsample(np.repeat([1e-3, 4e-3, 0.1], 20_000), 1e-3, KEY).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(kept, [1, 0.5, 0.1], atol=0.02)


def test_nothing_in_nothing_out() -> None:
    empty = ragged_rows([], np.int64)
    assert i2i_edges(empty, 2).n_edges == 0
    rows: Rows = [[], []]
    assert q2q_edges(nodes(rows), 5).n_edges == 0
    assert [edges.n_edges for edges in q2i_edges(nodes(rows), nodes([[(1, 1, [0, 0])], []]), 5, cap=2, key=KEY)] == [0, 0]


@settings(max_examples=20)
@given(item_rows)
def test_read_only_views_of_a_block_serve(rows: Rows) -> None:
    item = ragged_rows(rows, np.int64)
    item.values.flags.writeable = item.offsets.flags.writeable = False
    assert pairs_of(i2i_edges(item, 2)) == brute_i2i(rows, 2, None)


def test_what_does_not_fit_is_refused_by_name() -> None:
    item, timed = ragged_rows([[1, 2, 3]], np.int64), nodes([[(1, 0, [0, 0])]])
    with pytest.raises(GraphError, match="window must be at least 1, got 0"):
        i2i_edges(item, 0)
    with pytest.raises(GraphError, match="mode 'fresh' needs fresh"):
        i2i_edges(item, 2, mode="fresh")
    with pytest.raises(GraphError, match="cap must be at least 2"):
        i2i_edges(item, 2, cap=1, key=KEY)
    with pytest.raises(GraphError, match="needs a key"):
        i2i_edges(item, 2, cap=4)
    with pytest.raises(GraphError, match="keep has 1 entries for 3"):
        i2i_edges(item, 2, keep=np.ones(1, bool))
    with pytest.raises(GraphError, match="offsets must run from 0 to the 3 values"):
        i2i_edges(Ragged(item.values, np.array([0, 2])), 2)
    with pytest.raises(GraphError, match="fresh has 2 entries for 1 requests"):
        i2i_edges(item, 2, np.zeros(2, np.int32), "fresh")
    with pytest.raises(GraphError, match="timespan_ms must be above 0"):
        q2q_edges(timed, 0)
    with pytest.raises(GraphError, match="ts has 2 entries for 1 ids"):
        q2q_edges(timed._replace(ts=np.zeros(2)), 5)
    with pytest.raises(GraphError, match="categories has 3 rows for 1"):
        q2q_edges(timed._replace(categories=np.zeros((3, 2))), 5)
    with pytest.raises(GraphError, match="query has 1 requests, item 2"):
        q2i_edges(timed, nodes([[], []]), 5)
    with pytest.raises(GraphError, match="share_seed must be 0 to 1"):
        seed_mix(item, np.zeros((1, 2)), 1.5)
    with pytest.raises(GraphError, match="needs the key"):
        seed_mix(item, np.zeros((1, 2)), 0.5)
    with pytest.raises(GraphError, match="threshold must be above 0"):
        keep_probability(np.ones(1), 0.0)
