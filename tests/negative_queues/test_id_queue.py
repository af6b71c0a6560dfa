"""IdQueue against a plain deque: contents, counts, ages, state."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negative_queues import IdQueue, QueueStateError, draw_key

INT64 = st.integers(-(2**63), 2**63 - 1)


class PlainQueue:
    """What an IdQueue is: the last ``capacity`` (id, number of its push)."""

    def __init__(self, capacity: int) -> None:
        self.slots: deque[tuple[int, int]] = deque(maxlen=capacity)
        self.pushes = 0

    def push(self, ids: list[int]) -> None:
        self.pushes += 1
        self.slots.extend((value, self.pushes) for value in ids)

    def same(self, queue: IdQueue) -> None:
        counts = Counter(value for value, _ in self.slots)
        asked = [*counts, 123456]
        ages = [self.pushes - push for _, push in self.slots]
        assert queue.fill == len(self.slots)
        assert queue.counts(asked).tolist() == [counts[value] for value in asked]
        assert queue.max_age() == max(ages, default=0)
        assert queue.mean_age() == pytest.approx(np.mean(ages) if ages else 0)
        assert Counter(queue.state()["ids"].tolist()) == counts


few_ids = st.lists(st.integers(-3, 6) | INT64, max_size=25)


@settings(max_examples=150)
@given(st.integers(1, 12), st.lists(few_ids, max_size=12))
def test_it_holds_the_last_ids_whatever_the_pushes(capacity: int, pushes: list[list[int]]) -> None:
    queue, plain = IdQueue(capacity), PlainQueue(capacity)
    for ids in pushes:
        queue.push(np.array(ids, np.int64))
        plain.push(ids)
        plain.same(queue)


def test_counts_hold_over_many_evictions() -> None:
    """A long run on a small ring: the hash closes its gaps, also in long probe runs and over its end."""
    rng = np.random.default_rng(0)
    queue, plain = IdQueue(500), PlainQueue(500)
    for _ in range(300):
        ids = rng.zipf(1.3, rng.integers(0, 90)).clip(max=10_000).tolist()
        queue.push(ids)
        plain.push(ids)
    plain.same(queue)


@given(st.integers(1, 12), st.lists(few_ids, max_size=8), st.lists(few_ids, max_size=8))
def test_a_loaded_queue_goes_on_as_the_saved_one(capacity: int, before: list[list[int]], after: list[list[int]]) -> None:
    queue, other = IdQueue(capacity), IdQueue(capacity)
    other.push([1, 2, 3])
    for ids in before:
        queue.push(np.array(ids, np.int64))
    other.load_state({name: array.copy() for name, array in queue.state().items()})
    for step, ids in enumerate(after):
        queue.push(np.array(ids, np.int64))
        other.push(np.array(ids, np.int64))
        key = draw_key(1, "egin", "negatives", step)
        np.testing.assert_array_equal(queue.draw(9, key), other.draw(9, key))
        assert (queue.mean_age(), queue.max_age(), queue.pushes) == (other.mean_age(), other.max_age(), other.pushes)
        np.testing.assert_array_equal(queue.counts(ids or [0]), other.counts(ids or [0]))
    for name, array in queue.state().items():
        np.testing.assert_array_equal(array, other.state()[name])


def test_draws_are_uniform_over_slots() -> None:
    queue = IdQueue(1_000)
    queue.push(np.repeat(np.arange(20), 5))  # a tenth full
    queue.push([100] * 100)
    drawn = Counter(queue.draw(100_000, draw_key(7, "egin", "negatives.item", 3)).tolist())
    assert set(drawn) == {*range(20), 100}
    expected = {value: 100_000 * n / 200 for value, n in [*((i, 5) for i in range(20)), (100, 100)]}
    chi2 = sum((drawn[value] - n) ** 2 / n for value, n in expected.items())
    assert chi2 < 20 + 5 * np.sqrt(40)


def test_draws_are_a_function_of_key_and_contents() -> None:
    queue = IdQueue(50)
    queue.push(np.arange(40))
    key = draw_key(7, "egin", "negatives.item", 3)
    first = queue.draw(30, key)
    np.testing.assert_array_equal(first, queue.draw(30, key))
    np.testing.assert_array_equal(first[:10], queue.draw(10, key))  # draw i does not depend on how many there are
    assert (first != queue.draw(30, draw_key(7, "egin", "negatives.item", 4))).any()


def test_an_empty_queue_gives_none() -> None:
    queue = IdQueue(4)
    assert queue.draw(100, draw_key(0, "egin", "negatives", 0)).shape == (0,)
    queue.push([])
    assert (queue.fill, queue.mean_age(), queue.max_age()) == (0, 0.0, 0)


def test_log_probability_is_the_share_of_slots() -> None:
    queue = IdQueue(10)
    queue.push([5, 5, 5, 7])
    np.testing.assert_allclose(np.exp(queue.log_probability([5, 7, 9])), [0.75, 0.25, 0.25], rtol=1e-6)
    assert IdQueue(3).log_probability([1]).tolist() == [0.0]


def test_empty_pushes_age_the_queue() -> None:
    queue = IdQueue(10)
    queue.push([1, 2])
    queue.push([])
    queue.push([3])
    assert queue.max_age() == 2
    assert queue.mean_age() == pytest.approx(4 / 3)


def test_read_only_and_narrow_ids_serve() -> None:
    ids = np.arange(5, dtype=np.int32)
    ids.flags.writeable = False
    queue = IdQueue(5)
    queue.push(ids)
    assert queue.counts(ids).tolist() == [1] * 5


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="capacity must be 1 to"):
        IdQueue(0)
    with pytest.raises(ValueError, match="ids must be integers of one dimension, got float64"):
        IdQueue(3).push([0.5])
    with pytest.raises(ValueError, match=r"of shape \(1, 2\)"):
        IdQueue(3).counts([[1, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("entered"), "a queue's state is ids, entered and cursor"),
        (lambda state: state.update(more=state["ids"]), "a queue's state is ids, entered and cursor"),
        (lambda state: state.update(ids=state["ids"][:1]), "cursor says 3 slots in use, but ids has 1"),
        (lambda state: state.update(ids=state["ids"].astype(np.int32)), "ids must be int64 of one dimension"),
        (lambda state: state.update(cursor=np.array([4, 3, 1])), "the saved queue holds 4 ids, this one 5"),
        (lambda state: state.update(cursor=np.array([5])), r"cursor must be \[capacity, seen, pushes\]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    saved, queue = IdQueue(5), IdQueue(5)
    saved.push([1, 2, 3])
    queue.push([8, 9])
    state = saved.state()
    change(state)
    with pytest.raises(QueueStateError, match=message):
        queue.load_state(state)
    assert queue.state()["ids"].tolist() == [8, 9]
    assert queue.counts([8, 1]).tolist() == [1, 0]
