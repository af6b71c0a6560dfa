"""The table beside a dict: any order of learning, admission, expiry, eviction, saving whole and in parts, and restoring."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from learners.tables import EmbeddingTable, TableConfig

State = dict[str, np.ndarray]
KEYS = st.lists(st.integers(-40, 40), max_size=14)
LEAST, EXPIRE_MS, MAX_ROWS = 2, 80, 30


class TableMachine(RuleBasedStateMachine):
    """Plain descent of rate 1 from zero, so that the vector of a key is minus the sum of its gradients since admission."""

    def __init__(self) -> None:
        super().__init__()
        self.table = self.fresh()
        self.vectors: dict[int, float] = {}
        self.counts: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.waiting: dict[int, int] = {}
        self.reported: list[int] = []
        self.watch()
        self.now, self.swept = 1_000, 0
        self.saved: list[State] = [self.copied(self.table.state())]
        self.mark = self.table.mark()

    def fresh(self) -> EmbeddingTable:
        config = TableConfig(
            dim=1,
            optimiser="sgd",
            rate=1.0,
            initial_scale=0.0,
            max_rows=MAX_ROWS,
            admit_after=LEAST,
            expire_after_ms=EXPIRE_MS,
            sketch_cells=1 << 14,
        )
        return EmbeddingTable("t", config)

    def watch(self) -> None:
        self.table.index.on_evict.append(lambda gone: self.reported.extend(gone.tolist()))

    def copied(self, state: State) -> State:
        return {name: np.array(array) for name, array in state.items()}

    @rule(ids=KEYS, passed=st.integers(0, 60), how=st.sampled_from(["update", "autograd", "saved in the middle"]))
    def learn(self, ids: list[int], passed: int, how: str) -> None:
        self.now += passed
        self.expire(set(ids))
        for key in ids:
            if key and key not in self.vectors:
                self.waiting[key] = self.waiting.get(key, 0) + 1
        new = sorted({key for key in ids if key and key not in self.vectors and self.waiting[key] >= LEAST})
        grads = [float(place % 5 - 2) for place in range(len(ids))]
        self.reported.clear()
        if how == "update":
            self.table.update(np.array(ids, np.int64), torch.tensor(grads).view(-1, 1), ts=self.now)
        else:
            vectors = self.table.gather(np.array(ids, np.int64), learn=True, ts=self.now).of(0)
            if how == "saved in the middle":  # the rows change after the mark that was set when they were looked up
                self.save_what_has_changed()
            torch.autograd.backward(vectors, torch.tensor(grads).view(-1, 1))
            self.table.apply_gradients()
        self.make_room(len(new), set(ids))
        for key in new:
            self.vectors[key], self.counts[key] = 0.0, 0
        for key, grad in zip(ids, grads, strict=True):
            if key in self.vectors:
                self.vectors[key] -= grad
        for key in {key for key in ids if key in self.vectors}:
            self.counts[key] += 1
            self.seen[key] = self.now

    def expire(self, batch: set[int]) -> None:
        """What the table is about to remove for its age; none of the batch."""
        if self.now >= self.swept + EXPIRE_MS // 8:
            self.swept = self.now
            for key in [key for key, ts in self.seen.items() if ts < self.now - EXPIRE_MS and key not in batch]:
                self.forget(key)

    def make_room(self, n_new: int, batch: set[int]) -> None:
        """The bound: only as many as it must or an eighth go, the longest unseen first, none of the batch."""
        held = {key for key in self.vectors if self.table.index.find(np.array([key]))[0] > 0}
        gone = set(self.vectors) - held
        room = MAX_ROWS - 1 - len(self.vectors)
        assert gone <= set(self.reported)
        assert not gone & batch
        if n_new > room:
            others = [ts for key, ts in self.seen.items() if key not in batch]
            assert len(gone) == min(max(n_new - room, MAX_ROWS // 8), len(others))
            assert sorted(self.seen[key] for key in gone) == sorted(others)[: len(gone)]
        else:
            assert not gone
        for key in gone:
            self.forget(key)

    def forget(self, key: int) -> None:
        del self.vectors[key], self.counts[key], self.seen[key]

    @rule()
    def save_what_has_changed(self) -> None:
        self.saved.append(self.copied(self.table.delta_state(self.mark)))
        self.mark = self.table.mark()

    @rule()
    def save_whole(self) -> None:
        self.saved = [self.copied(self.table.state())]
        self.mark = self.table.mark()

    @rule()
    def restore_and_go_on(self) -> None:
        """A base and its deltas are the table, slot for slot; it goes on from there."""
        self.save_what_has_changed()
        restored = self.fresh()
        restored.load_state(self.saved[0])
        for delta in self.saved[1:]:
            restored.apply_delta(delta)
        own, other = self.table.state(), restored.state()
        assert own.keys() == other.keys()
        for name in own:
            assert np.array_equal(own[name], other[name]), name
        self.table = restored
        self.watch()
        self.save_whole()

    @invariant()
    def the_table_is_the_dict(self) -> None:
        ids = np.arange(-40, 41)
        vectors = self.table.gather(ids).of(0).flatten().tolist()
        assert vectors == [self.vectors.get(key, 0.0) for key in ids.tolist()]
        assert self.table.statistics(ids)[0].tolist() == [self.counts.get(key, 0) for key in ids.tolist()]
        assert len(self.table) == len(self.vectors) < MAX_ROWS


TableMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestTable = TableMachine.TestCase
