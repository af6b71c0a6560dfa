"""KeyQueue against a plain deque: contents, slots, ages, state, undone steps."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from negative_queues import KeyQueue, QueueStateError, cosine, telemetry

DIM = 3


class Row(NamedTuple):
    number: int
    key: list[float]
    item: int
    push: int
    ts: int


class RingMachine(RuleBasedStateMachine):
    """Any sequence of enqueues, failures and restarts, beside a deque that forgets from the left."""

    @initialize(capacity=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def build(self, capacity: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.queue = self.fresh(capacity)
        self.plain: deque[Row] = deque(maxlen=capacity)
        self.pushes = self.number = 0

    def fresh(self, capacity: int) -> KeyQueue:
        return KeyQueue(capacity, DIM, ("item",), dtype=self.dtype)

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.arange(self.number, self.number + n)
        return (first[:, None] * DIM + torch.arange(DIM)).to(self.dtype), first + 100

    @rule(n=st.integers(0, 25), ts=st.integers(0, 10**13))
    def enqueue(self, n: int, ts: int) -> None:
        keys, items = self.batch(n)
        slots = self.queue.enqueue(keys.requires_grad_(), {"item": items}, ts)
        self.pushes += 1
        rows = zip(keys.tolist(), items.tolist(), strict=True)
        new = [Row(self.number + i, key, item, self.pushes, ts) for i, (key, item) in enumerate(rows)]
        self.plain.extend(new)
        kept = {row.number for row in self.plain}
        capacity = self.queue.capacity
        assert slots.tolist() == [row.number % capacity if row.number in kept else -1 for row in new]
        self.number += n

    @rule(sizes=st.lists(st.integers(0, 25), min_size=1, max_size=3))
    def fail(self, sizes: list[int]) -> None:
        before = {name: array.copy() for name, array in self.queue.state().items()}

        def step() -> None:
            with self.queue.attempt():
                for n in sizes:
                    keys, items = self.batch(n)
                    with self.queue.attempt():
                        self.queue.enqueue(-keys - 1, {"item": items}, 5)
                raise RuntimeError("the optimiser is gone")

        with pytest.raises(RuntimeError, match="gone"):
            step()
        same_state(before, self.queue.state())

    @rule()
    def restart(self) -> None:
        saved = {name: array.copy() for name, array in self.queue.state().items()}
        self.queue = self.fresh(self.queue.capacity)
        self.queue.enqueue(torch.ones(4, DIM), {"item": [1, 2, 3, 4]})
        self.queue.load_state(saved)
        same_state(saved, self.queue.state())

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "plain"):
            return
        rows = sorted(self.plain, key=lambda row: row.number % self.queue.capacity)
        assert (self.queue.fill, self.queue.seen, self.queue.pushes) == (len(rows), self.number, self.pushes)
        assert self.queue.keys().tolist() == [row.key for row in rows]
        assert self.queue.column("item").tolist() == [row.item for row in rows]
        assert self.queue.ages().tolist() == [self.pushes - row.push for row in rows]
        assert self.queue.ages_ms(10**13).tolist() == [10**13 - row.ts for row in rows]
        assert not self.queue.keys().requires_grad


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=20)


def same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_entries_stay_when_the_queue_goes_on() -> None:
    queue = KeyQueue(4, 2)
    queue.enqueue(torch.arange(8.0).reshape(4, 2), {"item": np.arange(4)})
    every, some = queue.entries(), queue.entries(np.array([2, 2, 0]))
    queue.enqueue(torch.full((4, 2), -1.0), {"item": [9, 9, 9, 9]})
    assert every.keys[:, 0].tolist() == [0, 2, 4, 6]
    assert every.ids["item"].tolist() == [0, 1, 2, 3]
    assert (some.keys[:, 1].tolist(), some.ids["item"].tolist(), some.slots.tolist()) == ([5, 5, 1], [2, 2, 0], [2, 2, 0])


@pytest.mark.parametrize(
    ("keys", "ids", "match"),
    [
        (torch.ones(2, 3), {"item": [1, 2]}, r"keys must be \[n, 2\]"),
        (torch.ones(2, 2), {"item": [1]}, "item has 1 ids for 2 keys"),
        (torch.ones(2, 2), {}, r"comes with the ids \['item'\]"),
        (torch.ones(2, 2), {"item": [1, 2], "user": [1, 2]}, "comes with the ids"),
        (torch.ones(2, 2), {"item": [1.5, 2.0]}, "item must be integers"),
        (torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), {"item": [1, 2]}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_changes_nothing(keys: torch.Tensor, ids: dict[str, list[float]], match: str) -> None:
    queue = KeyQueue(3, 2)
    queue.enqueue(torch.ones(2, 2), {"item": [5, 6]})
    before = {name: array.copy() for name, array in queue.state().items()}
    with pytest.raises(ValueError, match=match):
        queue.enqueue(keys, ids)
    same_state(before, queue.state())


@pytest.mark.parametrize(
    "arguments", [(0, 2, ()), (2, 0, ()), (2, 2, ("item", "item"))], ids=["capacity", "dim", "a column twice"]
)
def test_what_cannot_be_a_queue(arguments: tuple[int, int, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="must"):
        KeyQueue(*arguments)


def test_a_foreign_state_is_refused() -> None:
    queue, saved = KeyQueue(4, 2), KeyQueue(4, 2)
    saved.enqueue(torch.ones(3, 2), {"item": [1, 2, 3]})
    state = saved.state()
    before = {name: array.copy() for name, array in queue.state().items()}
    with pytest.raises(QueueStateError, match="holds 4 keys, this one 5"):
        KeyQueue(5, 2).load_state(state)
    with pytest.raises(QueueStateError, match="use the dim and dtype"):
        KeyQueue(4, 3).load_state(state)
    with pytest.raises(QueueStateError, match="use the dim and dtype"):
        KeyQueue(4, 2, dtype=torch.bfloat16).load_state(state)
    with pytest.raises(QueueStateError, match="state is"):
        KeyQueue(4, 2, ("item", "user")).load_state(state)
    with pytest.raises(QueueStateError, match="keys was saved"):
        queue.load_state({**state, "keys": state["keys"][:2]})
    with pytest.raises(QueueStateError, match="cursor must be"):
        queue.load_state({**state, "cursor": state["cursor"][:2]})
    same_state(before, queue.state())


def test_telemetry_of_an_empty_and_of_a_wrapped_queue() -> None:
    queue = KeyQueue(4, 1, ())
    assert telemetry(queue, 5) == {"fill": 0, "age.mean": 0, "age.max": 0, "age_ms.mean": 0, "age_ms.max": 0}
    for step, n in enumerate([2, 3, 0]):
        queue.enqueue(torch.ones(n, 1), ts_ms=1_000 * step)
    assert telemetry(queue, 3_000) == {"fill": 1, "age.mean": 1.25, "age.max": 2, "age_ms.mean": 2_250, "age_ms.max": 3_000}


def test_cosine_is_the_mean_over_entries() -> None:
    stored = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert cosine(stored, torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0]])) == pytest.approx(0.0, abs=1e-7)
    assert cosine(stored, stored * 7) == pytest.approx(1.0)
    assert cosine(stored[:0], stored[:0]) == 1.0
    with pytest.raises(ValueError, match="encoded ones"):
        cosine(stored, stored[:2])


@pytest.mark.cuda
def test_a_queue_on_the_gpu_is_the_queue_on_the_cpu() -> None:
    here, there = KeyQueue(7, 2), KeyQueue(7, 2, device="cuda")
    for n in (3, 6, 20, 0, 2):
        keys, items = torch.randn(n, 2), torch.arange(n)
        assert here.enqueue(keys, {"item": items}, n).tolist() == there.enqueue(keys.cuda(), {"item": items}, n).tolist()
    same_state(here.state(), there.state())
    other = KeyQueue(7, 2, device="cuda")
    other.load_state(here.state())
    same_state(here.state(), other.state())
