"""Join a log: read its raw topics, write the topic of samples. The I/O around the pure :mod:`stream_app.joiner`.

One batch is four steps; what a kill after each of them costs:

1. read and apply: nothing was written; the same records are read again.
2. publish samples and dead letters: the rows are there, the state does not know. The same records give the same rows with the
   same ``seq`` again; those that the topic has are not written twice. Dead letters are.
3. commit the state, offsets among it, in one write batch: the batch is done.
4. acknowledge the input: the embedded log needs none, the offsets in the state count.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, DEAD_LETTERS, IMPRESSIONS, MARKS, RAW_TOPICS, SAMPLES, USERS
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.dead_letters import DeadLetter
from stream_app.joiner.joiner import Joiner, Output, inputs_of, new_header
from stream_app.joiner.merge import Input, Mark
from stream_app.joiner.store import Header, State
from stream_app.state import CACHE_ENTRIES, RocksState
from stream_app.topics import Log, Message, Record, Topic

READ_RECORDS: Final = 16_384
"""Records that are read from an input at once; results do not depend on it."""
IDLE_MS: Final = 1_000
"""How long an input has had nothing new before ``follow`` advances it by a mark."""
_POLL_SECONDS: Final = 0.05
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


def join_log(
    log: Log,
    state_dir: Path,
    config: JoinConfig,
    *,
    drain: bool = True,
    follow: bool = False,
    on_progress: Callable[[JoinReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    read_records: int = READ_RECORDS,
    cache_entries: int = CACHE_ENTRIES,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> JoinReport:
    """Join all partitions of a log to its present end; goes on where an earlier call ended.

    Args:
        log: has ``impressions`` and ``actions``, or one of them; ``samples``, ``marks`` and ``dead_letters`` are made.
        state_dir: a folder per partition is kept in it.
        config: options; with others than those of ``state_dir`` the join is refused.
        drain: the log is complete: marks at its end let every request leave. Else what may still get labels waits in the state.
        follow: go on with the log as it grows, until ``stop``; inputs that are idle at their end are advanced by marks.
        on_progress: called after each batch, with the same report that is returned at the end.
        stop: asked after each batch; true ends the join there.
        read_records: records that are read from an input at once; changes speed and memory, never the result.
        cache_entries: users, requests and so on of a partition that stay decoded in memory, each; likewise.
        clock, sleep: wall time in seconds, for ``follow``.

    Raises:
        JoinError: the log has no raw topic of users, or such topics of different partition counts, or other samples.
        StateError: the state is of other options or inputs, or another join has it open.
        ForeignRecordsError: a topic was written with another partitioner.
        PositionLostError: the log no longer holds the records after the state's position.
    """
    n_partitions = count_partitions(log)
    report = JoinReport(n_partitions=n_partitions)
    joins: list[_DurableJoin] = []
    try:
        for partition in range(n_partitions):
            folder = state_dir / str(partition)
            joins.append(_DurableJoin(log, folder, config, partition, n_partitions, read_records, cache_entries))
        waiting = list(joins)
        while waiting:
            # A complete log is joined partition by partition: so only one of them fills the caches.
            for join in waiting if follow else waiting[:1]:
                moved = join.step(report)
                if on_progress is not None:
                    on_progress(report)
                if stop is not None and stop():
                    return report
                if not moved and not follow and not (drain and join.mark_the_end()):
                    waiting.remove(join)
                if follow and not moved and not join.mark_idle(clock()):
                    sleep(_POLL_SECONDS / len(joins))
    finally:
        for join in joins:
            join.close()
    return report


def stream_samples(log: Log, config: JoinConfig, partition: int, *, read_records: int = READ_RECORDS) -> Iterator[SampleBlock]:
    """Join one partition of a complete log in memory, writing nothing: the rows and ``seq`` of :func:`join_log`.

    Raises:
        As :func:`join_log`.
    """
    n_partitions = count_partitions(log)
    header = _fresh_header(log, config, partition, n_partitions)
    reading = _Reading(log, config, partition, n_partitions, State(header, len(config.item_sequences)), read_records)
    while True:
        before = reading.position
        n_read, output = reading.advance()
        yield from output.blocks
        reading.joiner.state.commit()
        if not n_read and reading.position == before:
            marks = reading.marks_at_the_end()
            if not marks:
                return
            for mark in marks:
                reading.joiner.mark(mark)


def count_partitions(log: Log) -> int:
    """Return the partition count that the raw topics of users share.

    Raises:
        JoinError: there is none of them, or they differ.
    """
    topics = log.topics()
    counts = {name: topics[name] for name in (IMPRESSIONS, ACTIONS, USERS) if name in topics}
    if IMPRESSIONS not in counts and ACTIONS not in counts:
        raise JoinError(
            f"the log has neither {IMPRESSIONS!r} nor {ACTIONS!r}, only {sorted(topics)}: fill it with `freshet import` or "
            "`freshet simulate` first"
        )
    if len(set(counts.values())) > 1:
        raise JoinError(f"topics that are keyed by user must have the same number of partitions, the log has {counts}")
    return next(iter(counts.values()))


def _fresh_header(log: Log, config: JoinConfig, partition: int, n_partitions: int) -> Header:
    header = new_header(config, n_partitions, inputs_of(log.topics(), partition))
    for position in header.positions:
        position.offset = log.topic(position.topic).start(position.partition)
    return header


class _Reading:
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
        for mark in _stored_marks(log, partition) if MARKS in topics else ():
            self.joiner.mark(mark)

    @property
    def position(self) -> int:
        """Records applied, over all inputs."""
        return sum(source.position for source in self.joiner.inputs)

    def advance(self) -> tuple[int, Output]:
        """Read on and apply what can be; return how many records were read, and what came of it."""
        with _no_garbage_collection():
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


class _DurableJoin:
    """The join of one partition with state in a folder and samples in a topic."""

    def __init__(
        self,
        log: Log,
        folder: Path,
        config: JoinConfig,
        partition: int,
        n_partitions: int,
        read_records: int,
        cache_entries: int,
    ) -> None:
        self._partition = partition
        self._samples = log.create(SAMPLES, n_partitions)
        self._dead_letters = log.create(DEAD_LETTERS, n_partitions)
        self._marks = log.create(MARKS, n_partitions)
        header = _fresh_header(log, config, partition, n_partitions)
        self._state = RocksState(folder, header, len(config.item_sequences), cache_entries)
        try:
            self._reading = _Reading(log, config, partition, n_partitions, self._state, read_records)
            self._n_published = self._count_published()
        except BaseException:
            self._state.close()
            raise
        self._counted: dict[str, int] = {}
        self._n_pending = 0
        self._idle_since: dict[tuple[int, int], tuple[int, float]] = {}

    def step(self, report: JoinReport) -> bool:
        """Join one batch; return whether there was one."""
        reading, header = self._reading, self._state.header
        # 1. Read and apply.
        before = reading.position
        n_read, output = reading.advance()
        n_applied = reading.position - before
        if n_applied or output.blocks:
            # 2. Publish what left, and wait until it is durable.
            self._publish(output)
            # 3. Commit the state with the offsets of the inputs.
            self._state.commit()
            # 4. Nothing to acknowledge: the offsets in the state count.
            report.events += n_applied
            report.rows += sum(len(block) for block in output.blocks)
        self._count_into(report, header.counters)
        return bool(n_read or n_applied or output.blocks)

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

    def close(self) -> None:
        """Release the state."""
        self._state.close()

    def _append_marks(self, marks: Sequence[Mark]) -> bool:
        """Make marks durable, and then let them take effect."""
        if not marks:
            return False
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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spare a batch the search for cycles: joining makes none, and looking through thousands of live events costs a tenth."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _mark(source: Input, time_ms: int) -> Mark:
    """Return a mark at the input's end. To let records of time T through it must be T + 1: its own T may come before them."""
    return Mark(source.topic, source.partition, source.read, time_ms)


def _letter_message(letter: DeadLetter) -> Message:
    return Message(letter.ts, b"", msgspec.json.encode(letter))


def _stored_marks(log: Log, partition: int) -> Iterator[Mark]:
    topic = log.topic(MARKS)
    position, end = topic.start(partition), topic.end(partition)
    while position < end:
        records: list[Record] = topic.read(partition, position)
        for record in records:
            yield msgspec.json.decode(record.value, type=Mark)
        position = records[-1].offset + 1
