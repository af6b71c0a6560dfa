"""What is on a cluster under a prefix of topics, as one object; reads only, also while others write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from learners.samples import SampleBlock
from stream_app.events import SAMPLES
from stream_app.importers.books import IMPORTS, TopicBook
from stream_app.topics import Topic

if TYPE_CHECKING:
    from stream_app.topics.kafka import KafkaLog

__all__ = ["inspect_kafka"]


def inspect_kafka(log: KafkaLog) -> dict[str, Any]:
    """Return topics, samples and imports as :func:`stream_app.inspect.inspect_log` does for a folder.

    ``records`` of topics that a join writes are offsets, the markers of its transactions among them. ``bytes`` is what one copy
    takes on the brokers' disks, None where the cluster does not say.

    Raises:
        TopicError: the cluster does not answer.
    """
    names = log.topics()
    sizes = log.sizes()
    topics = {name: _topic(log.topic(name)) | {"bytes": sizes.get(name)} for name in names}
    return {
        "kind": "cluster",
        "path": log.where,
        "topics": topics,
        "samples": _samples(log.topic(SAMPLES)) if SAMPLES in names else None,
        "joiner": [],
        "imports": [msgspec.to_builtins(state) for state in TopicBook(log).all().values()] if IMPORTS in names else [],
    }


def _topic(topic: Topic) -> dict[str, Any]:
    offsets = [(topic.start(partition), topic.end(partition)) for partition in range(topic.n_partitions)]
    times = [
        record.ts
        for partition, (start, end) in enumerate(offsets)
        for position in ((start, end - 1) if end > start else ())
        for record in topic.read(partition, position, max_records=1)
    ]
    return {
        "partitions": topic.n_partitions,
        "records": sum(end - start for start, end in offsets),
        "first_ts": min(times, default=None),
        "last_ts": max(times, default=None),
        "offsets": offsets,
    }


def _samples(topic: Topic) -> dict[str, Any]:
    marks: dict[int, int] = {}
    schema = None
    for partition in range(topic.n_partitions):
        end = topic.end(partition)
        if end > topic.start(partition):
            block = SampleBlock.from_ipc(topic.read(partition, end - 1, max_records=1)[0].value)
            marks |= block.marks()
            schema = block.schema
    return {"schema": None if schema is None else msgspec.to_builtins(schema), "marks": marks}
