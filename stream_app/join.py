"""Join a log: read its raw topics, write the topic of samples. The I/O around the pure :mod:`stream_app.joiner`.

A partition's batches are the steps of :mod:`stream_app.durable_join`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from learners.samples import SampleBlock
from stream_app.durable_join import IDLE_MS, READ_RECORDS, DurableJoin, JoinError, JoinReport, Reading, fresh_header
from stream_app.events import ACTIONS, IMPRESSIONS, USERS
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.store import State
from stream_app.state import CACHE_ENTRIES
from stream_app.topics import Log
from stream_app.topics.rocks_memory import RocksMemory

__all__ = ["IDLE_MS", "READ_RECORDS", "JoinError", "JoinReport", "count_partitions", "join_log", "stream_samples"]

_POLL_SECONDS: Final = 0.05


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
    memory: RocksMemory | None = None,
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
        memory: that RocksDB may use for the states of all partitions; a budget of their own if there is none.
        clock, sleep: wall time in seconds, for ``follow``.

    Raises:
        JoinError: the log has no raw topic of users, or such topics of different partition counts, or other samples.
        StateError: the state is of other options or inputs, or another join has it open.
        ForeignRecordsError: a topic was written with another partitioner.
        PositionLostError: the log no longer holds the records after the state's position.
    """
    n_partitions = count_partitions(log)
    report = JoinReport(n_partitions=n_partitions)
    joins: list[DurableJoin] = []
    memory = memory or RocksMemory()  # One for all partitions.
    try:
        for partition in range(n_partitions):
            folder = state_dir / str(partition)
            joins.append(DurableJoin(log, folder, config, partition, n_partitions, read_records, cache_entries, memory=memory))
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
    header = fresh_header(log, config, partition, n_partitions)
    reading = Reading(log, config, partition, n_partitions, State(header, len(config.item_sequences)), read_records)
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
