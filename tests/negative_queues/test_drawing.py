"""Drawing strategies and the reservoir against brute force on the same counter draws."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negative_queues import IdQueue, KeyQueue, QueueStateError, Reservoir, draw_key, draw_uniform, fold
from negative_queues.drawing import (
    category_slots,
    mixed_draw,
    mixed_log_probability,
    recent_log_probability,
    recent_slots,
    uniform_slots,
)

KEY = draw_key(3, "test", "negatives", 8)


def filled(capacity: int, n: int) -> tuple[IdQueue, KeyQueue]:
    """An id queue and a key queue after the same ``n`` entries, numbered from 1."""
    ids, keys = IdQueue(capacity), KeyQueue(capacity, 1)
    for number in range(1, n + 1):
        ids.push([number])
        keys.enqueue(torch.full((1, 1), float(number)), {"item": [number]})
    return ids, keys


@given(st.integers(1, 9), st.integers(0, 25))
def test_uniform_is_the_draw_of_the_id_queue(capacity: int, n: int) -> None:
    ids, keys = filled(capacity, n)
    slots = uniform_slots(keys, 12, KEY)
    np.testing.assert_array_equal(ids.at(slots), ids.draw(12, KEY))
    assert keys.entries(slots).ids["item"].tolist() == ids.draw(12, KEY).tolist()


@given(st.integers(1, 40), st.integers(0, 90), st.floats(0.2, 500.0))
def test_recent_draws_are_the_inverse_of_the_summed_probabilities(capacity: int, n: int, half_life: float) -> None:
    ids, keys = filled(capacity, n)
    slots = recent_slots(keys, 50, KEY, half_life)
    np.testing.assert_array_equal(slots, recent_slots(ids, 50, KEY, half_life))
    if not n:
        assert slots.shape == (0,)
        return
    weights = 0.5 ** (np.arange(keys.fill) / half_life)
    edges = np.cumsum(weights / weights.sum())
    uniform = draw_uniform(KEY, 50)
    ranks = np.searchsorted(edges, uniform, "right").clip(max=keys.fill - 1)
    clear = np.abs(edges[:, None] - uniform).min(0) > 1e-9  # at an edge the two roundings may differ
    assert (ids.at(slots) == n - ranks)[clear].all()
    every = np.arange(keys.fill)
    p = np.exp(recent_log_probability(keys, every, half_life).astype(float))
    np.testing.assert_allclose(p[np.argsort(-ids.at(every))], weights / weights.sum(), rtol=1e-4)


def test_a_long_half_life_is_uniform() -> None:
    _, keys = filled(20, 30)
    np.testing.assert_allclose(recent_log_probability(keys, np.arange(20), 1e7), -np.log(20), rtol=1e-5)


@pytest.mark.parametrize("half_life", [0.0, -1.0, np.inf, np.nan])
def test_a_half_life_is_above_0(half_life: float) -> None:
    with pytest.raises(ValueError, match="half_life"):
        recent_slots(filled(3, 3)[0], 5, KEY, half_life)


some_categories = st.lists(st.integers(0, 4), max_size=30)


@given(some_categories, some_categories, st.integers(0, 8), st.floats(0, 1))
def test_hard_and_easy_by_category(categories: list[int], wanted: list[int], n: int, share: float) -> None:
    """Draw ``i`` of positive ``b`` takes entry ``floor(u x size)`` of the plain list of what it may take."""
    kinds = np.array(categories, np.int64)
    drawn = category_slots(kinds, np.array(wanted, np.int64), n, KEY, share)
    if not categories:
        assert drawn.slots.shape == (len(wanted), 0)
        return
    order = np.argsort(kinds, kind="stable")
    uniform = draw_uniform(KEY, len(wanted) * n).reshape(len(wanted), n)
    for row, category in enumerate(wanted):
        for i in range(n):
            hard = i < round(n * share)
            pool = [slot for slot in order if (category != 0 and kinds[slot] == category) == hard]
            assert drawn.found[row, i] == bool(pool)
            pool = pool or list(order)
            assert drawn.slots[row, i] == pool[int(uniform[row, i] * len(pool))]


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="hard_share"):
        category_slots(np.zeros(1, np.int64), np.zeros(1, np.int64), 1, KEY, 1.5)
    with pytest.raises(ValueError, match="share must be"):
        mixed_draw(IdQueue(1), Reservoir(1), 1, KEY, -0.1)


many_ids = st.lists(st.integers(-5, 30) | st.integers(-(2**63), 2**63 - 1), max_size=40)


@given(st.integers(1, 12), st.lists(many_ids, max_size=6), st.randoms(use_true_random=False))
def test_a_reservoir_is_a_function_of_the_set(capacity: int, offers: list[list[int]], random: Random) -> None:
    """Whatever the order, the parts and the counts; and a smaller one is the beginning of a larger one."""
    one, other, large = Reservoir(capacity, 7), Reservoir(capacity, 7), Reservoir(1_000, 7)
    for ids in offers:
        one.offer(np.array(ids, np.int64))
    every = [value for ids in offers for value in ids]
    random.shuffle(every)
    other.offer(np.array(every * 2, np.int64))
    large.offer(np.array(every, np.int64))
    distinct = set(every) - {0}
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.ids, large.ids[:capacity])
    assert set(large.ids.tolist()) == distinct
    assert large.n_distinct() == len(distinct)
    asked = np.array([*distinct, 0, 77], np.int64)
    assert one.holds(asked).tolist() == [value in set(one.ids.tolist()) for value in asked.tolist()]
    loaded = Reservoir(capacity, 7)
    loaded.load_state(one.state())
    for ids in offers:
        loaded.offer(np.array(ids, np.int64))
    np.testing.assert_array_equal(loaded.ids, one.ids)


def test_a_reservoir_is_uniform_over_distinct_ids_and_counts_them() -> None:
    """Over seeds each of 50 ids is kept a fifth of the time, though one of them makes half of the stream."""
    stream = np.r_[np.arange(1, 51), np.full(50, 1)]
    kept: Counter[int] = Counter()
    for seed in range(400):
        reservoir = Reservoir(10, seed)
        reservoir.offer(stream)
        kept.update(reservoir.ids.tolist())
    counts = np.array([kept[value] for value in range(1, 51)])
    assert counts.sum() == 4_000
    assert np.abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)
    large = Reservoir(1_024)
    large.offer(np.arange(1, 200_001))
    assert large.n_distinct() == pytest.approx(200_000, rel=5 / np.sqrt(1_024))


def test_a_foreign_reservoir_is_refused() -> None:
    saved = Reservoir(4, 1)
    saved.offer([1, 2, 3])
    with pytest.raises(QueueStateError, match="capacity, seed"):
        Reservoir(4, 2).load_state(saved.state())
    with pytest.raises(QueueStateError, match="cut or mixed up"):
        Reservoir(4, 1).load_state({**saved.state(), "ids": saved.ids[::-1]})
    with pytest.raises(QueueStateError, match="ids and shape"):
        Reservoir(4, 1).load_state({"ids": saved.ids})
    with pytest.raises(ValueError, match="capacity"):
        Reservoir(0)
    with pytest.raises(ValueError, match="integers of one dimension"):
        saved.offer([[1.5]])


def test_a_mixture_has_its_parts_and_probabilities() -> None:
    queue, reservoir = IdQueue(10), Reservoir(4)
    queue.push([5] * 6 + [6, 7, 8, 9])
    reservoir.offer([5, 100, 101])
    drawn = mixed_draw(queue, reservoir, 40, KEY, 0.25)
    assert (len(drawn.slots), len(drawn.places)) == (30, 10)
    np.testing.assert_array_equal(drawn.slots, uniform_slots(queue, 30, fold(KEY, 0)))
    assert set(drawn.places.tolist()) <= {0, 1, 2}
    p = np.exp(mixed_log_probability(queue, reservoir, [5, 6, 100, 12345], 40, 0.25))
    np.testing.assert_allclose(p, [0.75 * 0.6 + 0.25 / 3, 0.075, 0.25 / 3, 0.1], rtol=1e-6)


def test_a_mixture_with_an_empty_part_is_the_other() -> None:
    queue, reservoir, empty = IdQueue(4), Reservoir(4), Reservoir(4)
    reservoir.offer([1, 2])
    assert [len(part) for part in mixed_draw(queue, reservoir, 8, KEY, 0.5)] == [0, 8]
    queue.push([1])
    assert [len(part) for part in mixed_draw(queue, empty, 8, KEY, 0.5)] == [8, 0]
    assert [len(part) for part in mixed_draw(IdQueue(4), empty, 8, KEY, 0.5)] == [0, 0]
