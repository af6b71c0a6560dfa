"""Raw events -> records of a log, in batches per partition.

A log's records are a function of the events alone, so an import that was killed goes on by making the same events again
and leaving out, per partition, as many records as it had appended (:mod:`.progress`); the last of those is compared, or all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS, Action, Impression, Item, User, partition_of
from stream_app.topics import Log, Message, Record, Topic

from .pace import Pace
from .source import Event, SourceError

__all__ = ["BATCH", "EventWriter", "OlderThanLogError"]

BATCH: Final = 1_000
"""Records that go to a partition together, where nothing else is said."""
_SHORTEST_WAIT_S: Final = 0.02
"""Events that are due sooner than this are written now, so that they go in batches."""
_CACHED_KEYS: Final = 1 << 18
_TOPICS: Final = {Impression: IMPRESSIONS, Action: ACTIONS, Item: ITEMS, User: USERS}


class OlderThanLogError(SourceError):
    """An import begins before the newest event that the log held already."""


def _by_effective_time(events: Iterable[Event]) -> list[Event]:
    """Sort events by the running maximum of ``ts`` in their own topic, as a joiner merges them; each topic keeps its order."""
    times: dict[type[Event], int] = {}
    ordered: list[tuple[int, int, Event]] = []
    for place, event in enumerate(events):
        kind = type(event)
        times[kind] = ts = max(event.ts, times.get(kind, event.ts))
        ordered.append((ts, place, event))
    ordered.sort(key=lambda each: each[:2])
    return [event for _, _, event in ordered]


class _Partitions(dict[str, tuple[bytes, int]]):
    """Key and partition of a user or an item, behind a bounded cache."""

    def __init__(self, n_partitions: int) -> None:
        super().__init__()
        self.n_partitions = n_partitions

    def __missing__(self, identifier: str) -> tuple[bytes, int]:
        if len(self) >= _CACHED_KEYS:
            self.clear()
        key = identifier.encode()
        value = self[identifier] = (key, partition_of(key, self.n_partitions))
        return value


def _records(topic: Topic, partition: int, position: int) -> Iterator[Record]:
    """Yield the records of a partition from an offset on that are there now."""
    end = topic.end(partition)
    while position < end:
        for record in topic.read(partition, position, BATCH):
            yield record
            position = record.offset + 1


class _Lane:
    """One topic: buffers per partition, and records still to leave out because an earlier run appended them."""

    def __init__(self, topic: Topic, skip: Sequence[int], resumed: bool, before_append: Callable[[], None]) -> None:
        self.topic = topic
        self.before_append = before_append
        self.skip = list(skip)
        self.left_to_skip = sum(skip)
        self.earlier: list[Iterator[Record]] = []
        """Per partition the records that an earlier run left, where all of them are compared."""
        self.buffers: list[list[Message]] = [[] for _ in range(topic.n_partitions)]
        self.fresh = [not resumed] * topic.n_partitions
        self.n_events = 0

    def skips(self, partition: int) -> bool:
        if not self.skip[partition]:
            return False
        self.skip[partition] -= 1
        self.left_to_skip -= 1
        return True

    def compare_all(self, base: Sequence[int]) -> None:
        """Have every record compared that an earlier run left: those from the offsets ``base`` on, one per partition."""
        self.earlier = [_records(self.topic, partition, at) for partition, at in enumerate(base)]

    def check_skipped(self, partition: int, key: bytes, value: bytes) -> None:
        """Refuse to go on where a record that an earlier run left is not of the event that takes its place: the last record of
        each partition, or all of them.

        Another version of an importer may make other events of the same files and options. Times aside, which a pace sets.
        """
        if self.earlier:
            found, told = next(self.earlier[partition]), "has"
        else:
            found, told = self.topic.read(partition, self.topic.end(partition) - 1, max_records=1)[0], "ended with"
        one, other = (msgspec.json.decode(each, type=dict[str, Any]) | {"ts": 0} for each in (found.value, value))
        if (found.key, one) != (key, other):
            raise SourceError(
                f"topic {self.topic.name!r}, partition {partition}: an earlier run of this import {told} "
                f"{found.value[:200].decode(errors='replace')}, where this version of Freshet makes "
                f"{value[:200].decode(errors='replace')}. Another version began it, whose events are others: import into a new "
                "log folder"
            )

    def flush(self, partition: int) -> None:
        messages = self.buffers[partition]
        if not messages:
            return
        if self.fresh[partition]:
            self.check_follows(partition, messages[0].ts)
            self.fresh[partition] = False
        self.before_append()
        self.topic.append(partition, messages)
        self.buffers[partition] = []

    def check_follows(self, partition: int, ts: int) -> None:
        """Refuse to put old events behind newer ones: the joiner would take nearly all of them for late."""
        end = self.topic.end(partition)
        if end == self.topic.start(partition):
            return
        newest = self.topic.read(partition, end - 1, max_records=1)[0].ts
        if ts < newest:
            raise OlderThanLogError(
                f"topic {self.topic.name!r} already holds events up to ts {newest}, and this import begins at {ts}: "
                "import files in the order of time, or into a new log folder"
            )


class EventWriter:
    """Writes events to the raw topics of a log.

    Args:
        log: where to.
        n_partitions: of the topics, all alike.
        skip: topic -> records per partition that an earlier run of the same import appended.
        resumed: whether there was such a run.
        pace: when events are due; None writes them as they come.
        batch: records that go to a partition together, unless events that are due have to be waited for.
        before_append: called before each append.
        compared_from: topic -> offset per partition from which on all records of the earlier run are compared; None compares
            the last of each partition.
    """

    def __init__(
        self,
        log: Log,
        n_partitions: int,
        skip: Mapping[str, Sequence[int]],
        resumed: bool,
        pace: Pace | None = None,
        batch: int = BATCH,
        before_append: Callable[[], None] = lambda: None,
        compared_from: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._log = log
        self._compared_from = compared_from
        self._n_partitions = n_partitions
        self._skip = skip
        self._resumed = resumed
        self._pace = pace
        self._batch = batch
        self._before_append = before_append
        self._partitions = _Partitions(n_partitions)
        self._item_partitions = _Partitions(n_partitions)
        self._encoder = msgspec.json.Encoder()
        self._lanes: dict[type[Event], _Lane] = {}
        self.first_ts: int | None = None
        self.last_ts: int | None = None
        for kind in (Impression, Action):
            self._open(kind)

    def _open(self, kind: type[Event]) -> _Lane:
        name = _TOPICS[kind]
        topic = self._log.create(name, self._n_partitions)
        skip = self._skip.get(name, [0] * self._n_partitions)
        lane = self._lanes[kind] = _Lane(topic, skip, self._resumed, self._before_append)
        if self._compared_from is not None:
            lane.compare_all(self._compared_from.get(name, [0] * self._n_partitions))
        return lane

    def write(self, events: Iterable[Event]) -> None:
        """Append events, in their order per topic; a batch reaches the log when it is full.

        With a pace they go in the order of effective time over all topics: sources give the actions of a while after its pages,
        and a joiner that has waited for the actions long enough takes them for late. The order within a topic stays, so a run
        that was killed may go on at another pace.
        """
        lanes, users, items = self._lanes, self._partitions, self._item_partitions
        encode, new = self._encoder.encode, tuple.__new__
        for event in events if self._pace is None else _by_effective_time(events):
            kind = type(event)
            lane = lanes.get(kind) or self._open(kind)
            key, partition = items[event.item_id] if isinstance(event, Item) else users[event.user_id]
            skipped = lane.left_to_skip and lane.skips(partition)
            if self._pace is not None and not skipped:  # What an earlier run wrote is not waited for.
                event = self._when_due(event, self._pace)
            ts = event.ts
            if self.first_ts is None or ts < self.first_ts:
                self.first_ts = ts
            if self.last_ts is None or ts > self.last_ts:
                self.last_ts = ts
            lane.n_events += 1
            if skipped:
                if lane.earlier or not lane.skip[partition]:
                    lane.check_skipped(partition, key, encode(event))
                continue
            buffer = lane.buffers[partition]
            buffer.append(new(Message, (ts, key, encode(event))))  # in 0.4 of the time of Message(...)
            if len(buffer) >= self._batch:
                lane.flush(partition)

    def _when_due(self, event: Event, pace: Pace) -> Event:
        due, wait_s = pace.admit(event)
        if wait_s >= _SHORTEST_WAIT_S:
            self.flush()
            pace.sleep(wait_s)
        return due

    def flush(self) -> None:
        """Append what is still held back."""
        for lane in self._lanes.values():
            for partition in range(self._n_partitions):
                lane.flush(partition)

    def counts(self) -> dict[str, int]:
        """Return the events per topic, those of an earlier run with them."""
        return {lane.topic.name: lane.n_events for lane in self._lanes.values() if lane.n_events}

    def unexplained(self) -> dict[str, int]:
        """Return, per topic, records that the log gained since the import began and that the import did not make."""
        return {lane.topic.name: lane.left_to_skip for lane in self._lanes.values() if lane.left_to_skip}
