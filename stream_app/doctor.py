"""Looks at a Kafka cluster as Freshet would use it: what is there, what will bite, what to do about it. Changes nothing."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from stream_app.events import (
    ACTIONS,
    IMPRESSIONS,
    ITEMS,
    RAW_TOPICS,
    SAMPLES,
    USERS,
    Action,
    Impression,
    Item,
    User,
    partition_of,
)
from stream_app.joiner.config import JoinConfig
from stream_app.topics import Record, Topic, TopicError

if TYPE_CHECKING:
    from stream_app.topics.kafka import KafkaLog

__all__ = ["Finding", "examine"]

Status = Literal["ok", "warn", "fail"]
TAIL: Final = 200
"""Last records of a topic that are looked at, over all partitions."""
_KINDS: Final = {IMPRESSIONS: Impression, ACTIONS: Action, ITEMS: Item, USERS: User}
_KEYED_BY_USER: Final = (IMPRESSIONS, ACTIONS, USERS)
_CODECS: Final = {"crc32c": "crc32c", "lz4": "lz4", "zstd": "zstandard"}
_OUTAGE_MS: Final = 24 * 3_600_000
"""What a reader may be away for; retention is held against it."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found; ``todo`` is empty where all is well."""

    check: str
    status: Status
    found: str
    todo: str = ""


def examine(log: KafkaLog, join: JoinConfig, now: Callable[[], float] = time.time) -> list[Finding]:
    """Return what was found.

    Args:
        log: a connection.
        join: options of the join, for its window.
        now: UTC in seconds.

    Raises:
        TopicError: the cluster stopped answering.
    """
    topics = log.topics()
    found = [_broker(log), *_codecs(), *_topics_there(topics), *_co_partitioned(topics)]
    readable = []
    for name in (*RAW_TOPICS, SAMPLES):
        if name in topics:
            settings = log.settings(name)
            found += [_size(log, name, settings), _retention(name, settings, join), _stamps(name, settings)]
            found.append(_codec_of(log.topic(name), settings))
            readable += [name] if found[-1].status == "ok" else []
    for name in RAW_TOPICS:
        if name in readable:
            found += _tail_findings(log.topic(name), now)
    return found


def _broker(log: KafkaLog) -> Finding:
    cluster = log.cluster()
    version = tuple(int(part) for part in cluster["version"].split(".")[:2])
    text = f"{log.where}: {len(cluster['brokers'])} broker(s), Kafka {cluster['version']} or newer"
    if version < (3, 6):
        return Finding("broker", "fail", text, "Freshet needs brokers of Kafka 3.6 or newer: upgrade them")
    return Finding("broker", "ok", text)


def _codecs() -> Iterator[Finding]:
    if importlib.util.find_spec("cramjam") is None:
        todo = "pip install 'aiokafka[all]': the worker reads compressed records through it"
        yield Finding("codecs of the worker", "fail", "cramjam cannot be imported", todo)
    for codec, module in _CODECS.items():
        if importlib.util.find_spec(module) is None:
            todo = "pip install 'freshet[kafka]'" + ("; without it reading is 5 times slower" if codec == "crc32c" else "")
            yield Finding(f"codec {codec}", "warn" if codec == "crc32c" else "fail", f"{module} cannot be imported", todo)
        else:
            yield Finding(f"codec {codec}", "ok", f"{module} is there")


def _codec_of(topic: Topic, settings: dict[str, str]) -> Finding:
    """Decompress for real: the first and the last record of each partition."""
    check, text = f"codec of {topic.name}", f"compression.type = {settings['compression.type']}"
    for partition in range(topic.n_partitions):
        try:
            start, end = topic.start(partition), topic.end(partition)
            for position in {start, end - 1} if end > start else ():
                topic.read(partition, position, 1)
        except TopicError as error:
            todo = (
                "install the library of that codec where Freshet runs; or have producers use lz4 or zstd, and set the topic's "
                "compression.type = producer"
            )
            return Finding(check, "fail", f"{text}; partition {partition}: {error}", todo)
    return Finding(check, "ok", f"{text}; the first and the last records can be read")


def _topics_there(topics: dict[str, int]) -> Iterator[Finding]:
    for name in (IMPRESSIONS, ACTIONS):
        if name not in topics:
            there = ", ".join(topics) or "none"
            todo = f"create it with as many partitions as the others, or set kafka.topic_prefix; topics there: {there}"
            yield Finding(f"topic {name}", "fail", "there is no such topic", todo)
        else:
            yield Finding(f"topic {name}", "ok", f"{topics[name]} partition(s)")


def _co_partitioned(topics: dict[str, int]) -> Iterator[Finding]:
    counts = {name: topics[name] for name in (*_KEYED_BY_USER, SAMPLES) if name in topics}
    if len(set(counts.values())) > 1:
        todo = "topics that are joined need the same number of partitions: make new ones, and copy the records by key"
        yield Finding("co-partitioning", "fail", f"partitions differ: {counts}", todo)
    elif counts:
        yield Finding("co-partitioning", "ok", f"{next(iter(counts.values()))} partition(s) each: {', '.join(counts)}")


def _size(log: KafkaLog, name: str, settings: dict[str, str]) -> Finding:
    limit, block = int(settings["max.message.bytes"]), log.config.max_block_bytes
    text = f"max.message.bytes = {limit:,}"
    if name == SAMPLES and limit < block:
        todo = f"set max.message.bytes of {name!r} to {block + (64 << 10)} or more, or kafka.max_block_bytes below it"
        return Finding(f"size of {name}", "fail", text, todo)
    return Finding(f"size of {name}", "ok", text)


def _retention(name: str, settings: dict[str, str], join: JoinConfig) -> Finding:
    kept = int(settings["retention.ms"])
    needed = max(join.label_window_ms, join.correction_window_ms) + join.lateness_ms + _OUTAGE_MS
    if "compact" in settings["cleanup.policy"]:
        return Finding(f"retention of {name}", "fail", "cleanup.policy = compact drops events", "set cleanup.policy = delete")
    if int(settings["retention.bytes"]) >= 0:
        todo = "set retention.bytes = -1, or a reader that was away may find its records gone"
        return Finding(f"retention of {name}", "warn", f"retention.bytes = {settings['retention.bytes']} per partition", todo)
    if 0 <= kept < needed:
        todo = f"set retention.ms to at least {needed} (label window + lateness + a day of outage)"
        return Finding(f"retention of {name}", "warn", f"retention.ms = {kept}", todo)
    return Finding(f"retention of {name}", "ok", "for ever" if kept < 0 else f"retention.ms = {kept}")


def _stamps(name: str, settings: dict[str, str]) -> Finding:
    kind = settings["message.timestamp.type"]
    if kind != "CreateTime":
        todo = "set message.timestamp.type = CreateTime, so that a range of time can be found again after a copy or an import"
        return Finding(f"time stamps of {name}", "warn", kind, todo)
    return Finding(f"time stamps of {name}", "ok", kind)


def _tail_findings(topic: Topic, now: Callable[[], float]) -> Iterator[Finding]:
    """Look at the last records of a raw topic."""
    tails = {partition: _tail(topic, partition) for partition in range(topic.n_partitions)}
    records = [record for tail in tails.values() for record in tail]
    if not records:
        yield Finding(f"records of {topic.name}", "warn", "none yet", "start the producer, or freshet simulate --kafka")
        return
    events = [(record, event) for record in records if (event := _decoded(topic.name, record)) is not None]
    yield _decodable(topic.name, len(events), len(records))
    if topic.name in _KEYED_BY_USER:
        yield _partitioner(topic, tails)
    if events:
        yield _skew(topic.name, [record.ts - event.ts for record, event in events])
        yield _age(topic.name, now() * 1_000 - max(event.ts for _, event in events))


def _tail(topic: Topic, partition: int) -> list[Record]:
    n_records = max(1, TAIL // topic.n_partitions)
    start, end = topic.start(partition), topic.end(partition)
    return topic.read(partition, max(start, end - n_records), n_records)


def _decoded(name: str, record: Record) -> Impression | Action | Item | User | None:
    try:
        event: Impression | Action | Item | User = msgspec.json.decode(record.value, type=_KINDS[name])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return event


def _decodable(name: str, n_events: int, n_records: int) -> Finding:
    text = f"{n_events} of the last {n_records} records can be read"
    if n_events == n_records:
        return Finding(f"records of {name}", "ok", text)
    todo = "what cannot be read becomes a dead letter: compare a record with the fields in the README"
    return Finding(f"records of {name}", "warn" if 2 * n_events > n_records else "fail", text, todo)


def _partitioner(topic: Topic, tails: dict[int, list[Record]]) -> Finding:
    placed = [(partition_of(r.key, topic.n_partitions) == partition, r) for partition, tail in tails.items() for r in tail]
    n_right = sum(right for right, _ in placed)
    check, text = f"partitioner of {topic.name}", f"{n_right} of {len(placed)} records are where murmur2 of their key puts them"
    if n_right == len(placed):
        return Finding(check, "ok", text)
    todo = "key records by the user's id and partition by murmur2 (librdkafka: partitioner=murmur2_random), in all topics alike"
    return Finding(check, "fail", text, todo)


def _skew(name: str, skews: Sequence[int]) -> Finding:
    """Hold the records' own times against the events'."""
    worst = max(skews, key=abs)
    text = f"record time - event time: {min(skews):,} to {max(skews):,} ms"
    if abs(worst) > 3_600_000:
        todo = "let the producer set the record's time to the event's (ms since 1970 in UTC), or check its clock"
        return Finding(f"clock of {name}", "warn", text, todo)
    return Finding(f"clock of {name}", "ok", text)


def _age(name: str, age_ms: float) -> Finding:
    text = f"the newest event is {age_ms / 1_000:,.0f} s old"
    if age_ms < -60_000:
        todo = "events come from the future: check the producer's clock, and that ts is in milliseconds"
        return Finding(f"age of {name}", "warn", text, todo)
    return Finding(f"age of {name}", "ok", text)
