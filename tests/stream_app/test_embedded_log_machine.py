"""The embedded log against a list in plain Python, through any order of writing, trimming, restarting and following."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_app.topics import Message, PositionLostError, Record
from stream_app.topics.embedded import EmbeddedLog, EmbeddedTopic, open_log

TS = st.integers(-1_000, 1_000)
# Small records in number, and a few that fill a chunk (64 KB) or are more than one.
SIZES = st.one_of(st.integers(0, 30), st.sampled_from([20_000, 65_536, 65_537, 200_000]))
BATCHES = st.lists(st.tuples(TS, SIZES), max_size=12)
FRACTION = st.floats(0, 1)


class EmbeddedLogMachine(RuleBasedStateMachine):
    """One partition with a writer that comes and goes and two followers; ``records`` is all that was ever appended."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="freshet-machine-"))
        self.records: list[Record] = []
        self.first_held = 0

    @initialize()
    def open(self) -> None:
        self.writer = EmbeddedLog(self.folder)
        self.topic: EmbeddedTopic = self.writer.create("raw", 1)
        self.follower = open_log(self.folder)
        self.position = 0

    def teardown(self) -> None:
        self.writer.close()
        self.follower.close()
        shutil.rmtree(self.folder)

    def grow(self, messages: list[Message]) -> None:
        self.records += [Record(len(self.records) + i, *message) for i, message in enumerate(messages)]

    def offset(self, fraction: float) -> int:
        return self.first_held + round(fraction * (len(self.records) - self.first_held))

    @rule(batch=BATCHES)
    def append(self, batch: list[tuple[int, int]]) -> None:
        messages = [Message(ts, b"%d" % i, bytes([i]) * size) for i, (ts, size) in enumerate(batch)]
        self.grow(messages)
        assert self.topic.append(0, messages) == len(self.records)

    @rule(ts=TS, step=st.integers(-2, 2), n=st.integers(200, 600))
    def append_many(self, ts: int, step: int, n: int) -> None:
        messages = [Message(ts + i * step, b"", b"%d" % i) for i in range(n)]
        self.grow(messages)
        assert self.topic.append(0, messages) == len(self.records)

    @rule(fraction=FRACTION, max_records=st.integers(1, 700), max_bytes=st.sampled_from([1, 100, 70_000, 1 << 24]))
    def read(self, fraction: float, max_records: int, max_bytes: int) -> None:
        position = self.offset(fraction)
        expected: list[Record] = []
        n_bytes = 0
        for record in self.records[position : position + max_records]:
            n_bytes += len(record.key) + len(record.value)
            if n_bytes > max_bytes and expected:
                break
            expected.append(record)
        assert self.topic.read(0, position, max_records, max_bytes) == expected

    @precondition(lambda self: self.first_held > 0)
    @rule(fraction=FRACTION)
    def read_what_is_lost(self, fraction: float) -> None:
        with pytest.raises(PositionLostError):
            self.topic.read(0, round(fraction * (self.first_held - 1)))

    @rule(ts=TS)
    def position_at(self, ts: int) -> None:
        expected = next((r.offset for r in self.records[self.first_held :] if r.ts >= ts), len(self.records))
        assert self.topic.position_at(0, ts) == expected
        assert self.follower.topic("raw").position_at(0, ts) == expected

    @rule(fraction=FRACTION)
    def trim(self, fraction: float) -> None:
        self.first_held = self.offset(fraction)
        assert self.topic.trim(0, self.first_held) == self.first_held

    @rule()
    def restart_the_writer(self) -> None:
        self.writer.close()
        self.writer = EmbeddedLog(self.folder)
        self.topic = self.writer.topic("raw")

    @rule()
    def restart_the_follower(self) -> None:
        self.follower.close()
        self.follower = open_log(self.folder)
        self.position = 0

    @rule(max_records=st.integers(1, 700))
    def follow(self, max_records: int) -> None:
        try:
            found = self.follower.topic("raw").read(0, self.position, max_records)
        except PositionLostError:
            assert self.position < self.first_held
            self.position = self.follower.topic("raw").start(0)
            assert self.position == self.first_held
        else:
            assert found == self.records[self.position : self.position + len(found)]
            assert found or self.position == len(self.records)
            self.position += len(found)

    @invariant()
    def start_and_end(self) -> None:
        if hasattr(self, "topic"):
            assert (self.topic.start(0), self.topic.end(0)) == (self.first_held, len(self.records))


EmbeddedLogMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestEmbeddedLogMachine = EmbeddedLogMachine.TestCase
