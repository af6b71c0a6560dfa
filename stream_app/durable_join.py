"""The join of one partition, step by step: the same code under ``freshet join``, a replay on the fly and the Kafka worker.

One step is four steps; what a kill after each of them costs:

1. read and apply: nothing was written; the same records are read again.
2. publish samples and dead letters: the rows are there, the state does not know. The same records give the same rows with the
   same ``seq`` again; those that the topic has are not written twice. Dead letters are.
3. commit the state, offsets among it, in one write batch: the step is done.
4. acknowledge the input: the embedded log needs none, the offsets in the state count; the worker trims its inbox.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from learners.samples import SampleBlock
from stream_app.events import DEAD_LETTERS, MARKS, RAW_TOPICS, SAMPLES
from stream_app.garbage import no_garbage_collection
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.dead_letters import DeadLetter
from stream_app.joiner.joiner import Joiner, Output, inputs_of, new_header
from stream_app.joiner.merge import Input, Mark
from stream_app.joiner.store import Header, State
from stream_app.state import CACHE_ENTRIES, RocksState
from stream_app.topics import Log, Message, Topic
from stream_app.topics.rocks_memory import RocksMemory

__all__ = ["IDLE_MS", "READ_RECORDS", "DurableJoin", "JoinError", "JoinReport", "Reading", "StepObserver", "fresh_header"]

READ_RECORDS: Final = 16_384
"""Records that are read from an input at once; results do not depend on it."""
IDLE_MS: Final = 1_000
"""How long an input has had nothing new before it is advanced by a mark."""
_TAIL: Final = 256


class JoinError(ValueError):
    """A log that cannot be joined as it is."""


class JoinReport(msgspec.Struct, kw_only=True):
    """What a join has done: in this call, unless said otherwise."""

    n_partitions: int
    events: int = 0
    """Raw records applied."""
    rows: int = 0
    """Rows that left the joiner."""
    pending: int = 0
    """Steps that wait in the state for the log to go on."""
    counters: dict[str, int] = {}
    """Since the beginning of the state, over all partitions: requests, rows, labels, corrections, actions, late_actions,
    orphan_actions, duplicate_actions, duplicate_impressions, ignored_actions, early_requests, truncated, items, users, and
    dead_letters.REASON."""

    @property
    def dead_letters(self) -> dict[str, int]:
        """Dead letters since the beginning of the state, by reason."""
        return {name.partition(".")[2]: n for name, n in self.counters.items() if name.startswith("dead_letters.")}


def fresh_header(log: Log, config: JoinConfig, partition: int, n_partitions: int) -> Header:
    """Return the header of a state that begins at the start of a log's raw topics."""
    header = new_header(config, n_partitions, inputs_of(log.topics(), partition))
    for position in header.positions:
        position.offset = log.topic(position.topic).start(position.partition)
    return header


class Reading:
    """A joiner and the topics that it reads."""

    def __init__(
        self, log: Log, config: JoinConfig, partition: int, n_partitions: int, state: State, read_records: int
    ) -> None:
        topics = log.topics()
        self.config = config
        self.partition = partition
        self.joiner = Joiner(config, partition, n_partitions, inputs_of(topics, partition), state)
        self._topics: dict[str, Topic] = {name: log.topic(name) for name in RAW_TOPICS if name in topics}
        self._read_records = read_records
        self._horizon: int | None = None
        high = min(source.high for source in self.joiner.inputs)
        for mark in _stored_marks(log, partition, high) if MARKS in topics else ():
            self.joiner.mark(mark)

    @property
    def position(self) -> int:
        """Records applied, over all inputs."""
        return sum(source.position for source in self.joiner.inputs)

    def advance(self) -> tuple[int, Output]:
        """Read on and apply what can be; return how many records were read, and what came of it."""
        with no_garbage_collection():
            return self._fill(), self.joiner.advance()

    def _fill(self) -> int:
        """Read on where an input has nothing left; return how many records came."""
        n_read = 0
        for source in self.joiner.inputs:
            if not source.events:
                records = self._topics[source.topic].read(source.partition, source.read, self._read_records)
                if records:
                    self.joiner.feed(source, records)
                    n_read += len(records)
        return n_read

    def marks_at_the_end(self) -> list[Mark]:
        """Return marks that let a complete log go on, none if it is all joined. To be asked when nothing can be applied."""
        inputs = self.joiner.inputs
        ended = [source for source in inputs if not source.events]
        high = max(source.read_high for source in inputs)
        if len(ended) < len(inputs):
            # Some inputs have ended before others: they need not be waited for up to the end of the log.
            if self._horizon is None:
                self._horizon = max(self._newest(source) for source in inputs)
            return [_mark(source, max(high, self._horizon) + 1) for source in ended]
        if not self.joiner.n_pending:
            return []
        window = max(self.config.label_window_ms, self.config.correction_window_ms)
        return [_mark(source, high + window + self.config.lateness_ms + 1) for source in inputs]

    def _newest(self, source: Input) -> int:
        """Return the highest ``ts`` among the last records of an input: a guess of where it ends that spares marks."""
        topic = self._topics[source.topic]
        end = topic.end(source.partition)
        first = max(topic.start(source.partition), end - _TAIL)
        return self.joiner.newest(source.topic, topic.read(source.partition, first, _TAIL))


class StepObserver(Protocol):
    """Who else has a say in the steps of a join, or wants to know of them."""

    def may_write(self) -> None:
        """Raise if somebody else may have become the partition's owner."""

    def committed(self, inputs: Sequence[Input], publish_seconds: float, commit_seconds: float) -> None:
        """Acknowledge the inputs: what lies before their positions is not needed any more."""


class _SoleOwner:
    """Nobody else writes the log; its offsets in the state are all the acknowledgement that there is."""

    def may_write(self) -> None:
        """Nothing to check."""

    def committed(self, inputs: Sequence[Input], publish_seconds: float, commit_seconds: float) -> None:
        """Nothing to acknowledge."""


class DurableJoin:
    """The join of one partition with state in a folder and samples in a topic.

    Args:
        log: raw topics, samples, marks and dead letters; the latter three are made if need be.
        folder: of the state.
        config: options.
        partition, n_partitions: of the topics that are keyed by user.
        read_records: records that are read from an input at once.
        cache_entries: as :class:`~stream_app.state.RocksState`.
        observer: asked before each write, told after each commit.
        memory: as :class:`~stream_app.state.RocksState`.

    Raises:
        As :func:`stream_app.join.join_log`.
    """

    def __init__(
        self,
        log: Log,
        folder: Path,
        config: JoinConfig,
        partition: int,
        n_partitions: int,
        read_records: int = READ_RECORDS,
        cache_entries: int = CACHE_ENTRIES,
        observer: StepObserver | None = None,
        memory: RocksMemory | None = None,
    ) -> None:
        self._partition = partition
        self._observer = observer or _SoleOwner()
        header = fresh_header(log, config, partition, n_partitions)
        starts = [position.offset for position in header.positions]
        self._state = RocksState(folder, header, len(config.item_sequences), cache_entries, memory=memory)
        try:
            self._samples = log.create(SAMPLES, n_partitions)
            self._dead_letters = log.create(DEAD_LETTERS, n_partitions)
            self._marks = log.create(MARKS, n_partitions)
            self._n_published = self._count_published()
            if self._state.header is header and self._n_published and any(starts):
                raise JoinError(
                    f"partition {partition} has samples up to seq {self._n_published - 1} but no state in {folder}, and its "
                    "raw topics no longer begin at 0, so that the state cannot be made again: restore a snapshot "
                    "(--snapshots), or delete the topics of samples and marks"
                )
            self._reading = Reading(log, config, partition, n_partitions, self._state, read_records)
        except BaseException:
            self._state.close()
            raise
        self._counted: dict[str, int] = {}
        self._n_pending = 0
        self._idle_since: dict[tuple[int, int], tuple[int, float]] = {}

    @property
    def inputs(self) -> Sequence[Input]:
        """What is read, and how far it is applied."""
        return self._reading.joiner.inputs

    @no_garbage_collection()
    def step(self, report: JoinReport) -> bool:
        """Join one batch; return whether there was one."""
        reading, header = self._reading, self._state.header
        # 1. Read and apply.
        before = reading.position
        n_read, output = reading.advance()
        n_applied = reading.position - before
        if n_applied or output.blocks:
            # 2. Publish what left, and wait until it is durable.
            self._observer.may_write()
            began = time.perf_counter()
            self._publish(output)
            published = time.perf_counter()
            # 3. Commit the state with the offsets of the inputs.
            self._observer.may_write()
            self._state.commit()
            # 4. Acknowledge the inputs.
            self._observer.committed(self.inputs, published - began, time.perf_counter() - published)
            report.events += n_applied
            report.rows += sum(len(block) for block in output.blocks)
        self._count_into(report, header.counters)
        return bool(n_read or n_applied or output.blocks)

    def checkpoint(self, folder: Path) -> None:
        """Copy the committed state to a new folder, mostly by links: milliseconds."""
        self._state.checkpoint(folder)

    def mark_the_end(self) -> bool:
        """Treat the log as complete: let what waits for its end go on; false if nothing waits."""
        return self._append_marks(self._reading.marks_at_the_end())

    def mark_idle(self, now: float) -> bool:
        """Advance the inputs that have been idle at their end for :data:`IDLE_MS`; ``now`` in seconds."""
        inputs = self._reading.joiner.inputs
        idle: list[Input] = []
        for source in inputs:
            read, since = self._idle_since.get(source.rank, (-1, now))
            if source.read != read or source.events:
                self._idle_since[source.rank] = (source.read, now)
            elif (now - since) * 1_000 >= IDLE_MS:
                idle.append(source)
        high = max(source.read_high for source in inputs)
        if len(idle) == len(inputs):
            # Nothing comes at all: event time goes on as the wall does, so that what waits for labels leaves.
            if not self._reading.joiner.n_pending:
                return False
            high += int((now - max(since for _, since in self._idle_since.values())) * 1_000)
        behind = [source for source in idle if source.read_high <= high]
        for source in behind:
            self._idle_since[source.rank] = (source.read, now)
        return self._append_marks([_mark(source, high + 1) for source in behind])

    def withdraw(self, report: JoinReport) -> None:
        """Take what is counted since the state's beginning out of a report that outlives this join."""
        for name, n in self._counted.items():
            report.counters[name] -= n
        report.pending -= self._n_pending
        self._counted, self._n_pending = {}, 0

    def close(self) -> None:
        """Release the state."""
        self._state.close()

    def _append_marks(self, marks: Sequence[Mark]) -> bool:
        """Make marks durable, and then let them take effect."""
        if not marks:
            return False
        self._observer.may_write()
        self._marks.append(self._partition, [Message(mark.time, b"", msgspec.json.encode(mark)) for mark in marks])
        for mark in marks:
            self._reading.joiner.mark(mark)
        return True

    def _publish(self, output: Output) -> None:
        blocks = [block for block in map(self._unpublished, output.blocks) if len(block)]
        if blocks:
            messages = [Message(int(block.column("due")[-1]), b"", block.to_ipc()) for block in blocks]
            self._samples.append(self._partition, messages)
        if output.dead_letters:
            self._dead_letters.append(self._partition, [_letter_message(letter) for letter in output.dead_letters])

    def _unpublished(self, block: SampleBlock) -> SampleBlock:
        """Return the rows of a block that an earlier run has not published before it was killed."""
        first = int(block.column("seq")[0])
        return block if first >= self._n_published else block.slice(self._n_published - first, len(block))

    def _count_published(self) -> int:
        """Return the ``seq`` after the last row in the topic.

        Raises:
            JoinError: the topic's rows are not those of this state.
        """
        partition, header = self._partition, self._state.header
        end = self._samples.end(partition)
        last = self._samples.read(partition, end - 1, 1) if end > self._samples.start(partition) else []
        published = 0
        if last:
            block = SampleBlock.from_ipc(last[0].value)
            if block.schema.generation != header.generation:
                raise JoinError(
                    f"topic {SAMPLES!r} holds samples of generation {block.schema.generation}, this config makes "
                    f"{header.generation}: its options or the partition count have changed. Delete the topic and the joiner's "
                    "state, or join into a new log"
                )
            published = block.marks()[partition] + 1
        if published < header.seq:
            raise JoinError(
                f"topic {SAMPLES!r} ends at seq {published} in partition {partition}, the joiner's state at {header.seq}: "
                "samples were deleted without the state. Delete the state, too, and join again"
            )
        return published

    def _count_into(self, report: JoinReport, counters: dict[str, int]) -> None:
        for name, n in counters.items():
            report.counters[name] = report.counters.get(name, 0) + n - self._counted.get(name, 0)
        self._counted = dict(counters)
        report.pending += self._reading.joiner.n_pending - self._n_pending
        self._n_pending = self._reading.joiner.n_pending


def _mark(source: Input, time_ms: int) -> Mark:
    """Return a mark at the input's end. To let records of time T through it must be T + 1: its own T may come before them."""
    return Mark(source.topic, source.partition, source.read, time_ms)


def _letter_message(letter: DeadLetter) -> Message:
    return Message(letter.ts, b"", msgspec.json.encode(letter))


def _stored_marks(log: Log, partition: int, high: int) -> Iterator[Mark]:
    """Yield the marks that may still raise an input whose running maximum is ``high`` or more."""
    topic = log.topic(MARKS)
    position = topic.position_at(partition, high) if high >= 0 else topic.start(partition)
    while records := topic.read(partition, position):
        for record in records:
            yield msgspec.json.decode(record.value, type=Mark)
        position = records[-1].offset + 1
