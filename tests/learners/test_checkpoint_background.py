"""A checkpoint that is written while learning goes on is the one that a stop of the world would have given, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from learners.checkpoint import digest, latest, load, save
from learners.checkpoint.background import BackgroundJob, StateCopy
from learners.checkpoint.manifest import MANIFEST, encode_manifest, read_manifest
from learners.tables import EmbeddingTable, TableConfig
from learners.tables.counts import CountTable
from learners.tables.index import RowIndex

DAY = 86_400_000
START = 1_700_000_000_000
ROOT = Path(__file__).resolve().parents[2]


def first_seen(index: RowIndex) -> npt.NDArray[np.int64]:
    """Return when the rows were first seen, ms, ``[N]``, from what a checkpoint has of it."""
    codes = index.times.first[: index.n].astype(np.int64)
    return np.where(codes == 0, 0, codes + index.times.base)


class Learned:
    """Two tables and a vector that is replaced rather than written to: what a model's state is made of."""

    def __init__(self) -> None:
        self.table = EmbeddingTable("item", TableConfig(dim=3, max_rows=40, optimiser="adagrad", expire_after_ms=30 * DAY))
        self.counts = CountTable("count", 2, max_rows=30)
        self.dense = np.zeros(5)

    def learn(self, keys: list[int], ts: int) -> None:
        ids = np.array(keys, np.int64)
        gathered = self.table.gather(ids, learn=True, ts=ts)
        (gathered.of(0) * torch.arange(1.0, 4.0)).sum().backward()  # type: ignore[no-untyped-call]
        self.table.apply_gradients()
        self.counts.add(ids, np.ones((len(ids), 2)), ts)
        self.dense += len(ids)

    def states(self) -> dict[str, dict[str, Any]]:
        return {"item": self.table.state(), "rest": {**self.counts.state(), "dense": self.dense}}

    def load(self, states: dict[str, dict[str, Any]]) -> None:
        self.table.load_state(states["item"])
        self.counts.load_state(states["rest"])
        self.dense = np.array(states["rest"]["dense"])

    def digests(self) -> dict[str, str]:
        return {group: digest(state) for group, state in self.states().items()}


KEYS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


class Beside(RuleBasedStateMachine):
    """Learns, takes checkpoints beside it, dies and goes on; the writing is held back until learning has gone on."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.learned, self.copies, self.job = Learned(), StateCopy(), BackgroundJob[Path]()
        self.go = threading.Event()
        self.ts, self.step = START, 0
        self.expected: dict[str, str] | None = None
        self.counts_now: dict[str, str] | None = None

    @rule(keys=KEYS, ms=st.sampled_from([0, 1_000, DAY, 20 * DAY, 60 * DAY]))
    def learn(self, keys: list[int], ms: int) -> None:
        self.ts += ms
        self.learned.learn(keys, self.ts)

    @precondition(lambda self: self.expected is None)
    @rule()
    def begin(self) -> None:
        self.step += 1
        self.expected = self.learned.digests()  # The world stands still here.
        taken = self.copies.take(self.learned.states())
        step, go = self.step, threading.Event()
        self.go = go

        def write() -> Path:
            go.wait()
            return save(self.root, step, taken, marks={}, extra={}, arrays={})

        self.job.start(write)

    @precondition(lambda self: self.expected is not None)
    @rule()
    def end(self) -> None:
        self.go.set()
        path = self.job.wait()
        assert path is not None
        found = load(path)
        assert found.digests == self.expected
        self.counts_now, self.expected = self.expected, None

    @precondition(lambda self: self.counts_now is not None and self.expected is None)
    @rule(keys=KEYS)
    def die_and_go_on(self, keys: list[int]) -> None:
        path = latest(self.root)
        assert path is not None
        twins = [Learned(), Learned()]
        for twin in twins:
            twin.load(load(path).models)
            assert twin.digests() == self.counts_now
            twin.learn(keys, self.ts)
        assert twins[0].digests() == twins[1].digests()
        self.learned = twins[0]

    def teardown(self) -> None:
        self.go.set()
        self.job.wait()
        shutil.rmtree(self.root)


TestBeside = Beside.TestCase
TestBeside.settings = hypothesis.settings(max_examples=40, stateful_step_count=25, deadline=None)


# Learns and takes checkpoints beside it for ever; says which digest a stop of the world gives before it takes one.
LEARNER = """
import sys
from pathlib import Path
import numpy as np
from learners.checkpoint import digest, latest, load, save
from learners.checkpoint.background import BackgroundJob, StateCopy
from learners.tables.counts import CountTable
from learners.tables.index import RowIndex

root = Path(sys.argv[1])
counts, copies, job = CountTable("counts", 2), StateCopy(), BackgroundJob()
path, step = latest(root), 0
if path is not None:
    found = load(path)
    step = found.step
    counts.load_state(found.models["m"])
    print(step, digest(counts.state()), flush=True)
while True:
    step += 1
    counts.add(np.random.default_rng(step).integers(1, 200_000, 20_000), np.ones((20_000, 2)), 1_700_000_000_000 + step)
    if not job.busy:
        job.wait()
        print(step, digest(counts.state()), flush=True)
        taken = copies.take({"m": counts.state()})
        job.start(lambda step=step, taken=taken: save(root, step, taken, marks={}, extra={}, arrays={}))
"""


def test_killed_while_it_learns_and_writes(tmp_path: Path) -> None:
    rng, digests = random.Random(5), dict[int, str]()
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", LEARNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        time.sleep(rng.random() * 0.3)
        os.kill(process.pid, signal.SIGKILL)
        said += process.communicate(timeout=600)[0].splitlines(keepends=True)
        for step, found in (line.split() for line in said if line.endswith("\n")):
            assert digests.setdefault(int(step), found) == found, "what was learned again after the kill is not the same"
        path = latest(tmp_path)
        assert path is not None
        checkpoint = load(path)
        assert checkpoint.digests["m"] == digests[checkpoint.step]
    assert len(digests) > 6


@pytest.mark.parametrize("days", [0, 20, 48, 200], ids=lambda days: f"{days} days")
def test_a_checkpoint_of_format_1_is_read(tmp_path: Path, days: int) -> None:
    learned, upgraded = Learned(), Learned()
    for at, keys in enumerate(([1, 2, 3], [3, 4, 5], [5, 6])):
        learned.learn(keys, START + at * days * DAY // 2)
    states = {}
    for group, state in learned.states().items():
        index = learned.table.index if group == "item" else learned.counts.index
        part = slice(0, index.n)
        old = {name: array for name, array in state.items() if name not in ("first", "last", "ts_base")}
        old |= {"first_ts": first_seen(index), "last_ts": index.times.last_of(part)}
        states[group] = old | {"count": old["count"].astype(np.int64)}
    path = save(tmp_path, 1, states, marks={}, extra={}, arrays={})
    whole = read_manifest(path)
    fields = {name: getattr(whole, name) for name in whole.__struct_fields__} | {"format": 1}
    (path / MANIFEST).write_bytes(encode_manifest(type(whole)(**fields)))
    upgraded.load(load(path).models)
    for mine, its in ((learned.table.index, upgraded.table.index), (learned.counts.index, upgraded.counts.index)):
        part = slice(0, mine.n)
        np.testing.assert_array_equal(first_seen(mine), first_seen(its))
        np.testing.assert_array_equal(mine.times.last_of(part), its.times.last_of(part))
    assert upgraded.digests() == learned.digests()
    for each in (learned, upgraded):
        each.learn([2, 7], START + 300 * DAY)
    assert upgraded.digests() == learned.digests()


def test_columns_side_by_side_are_copied_as_they_lie() -> None:
    table = CountTable("counts", 1)
    table.add(np.arange(1, 5_000), np.ones((4_999, 1)), START)
    copies = StateCopy()
    taken = copies.take({"m": table.state()})["m"]
    names = ["key", "count", "first", "last"]
    assert {taken[name].strides for name in names} == {(24,)}
    memory = {name for _, name in copies._memory}
    assert memory.isdisjoint(names[1:])
    assert {"key", "values"} <= memory
    before = {name: array.copy() for name, array in table.state().items()}
    table.add(np.arange(1, 5_000), np.ones((4_999, 1)), START + 1)
    for name, array in taken.items():
        np.testing.assert_array_equal(array, before[name])
        assert not np.shares_memory(array, table.state()[name])
