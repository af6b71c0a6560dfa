"""What is on a cluster under a prefix of topics, as one object; reads only, also while others write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stream_app.events import SAMPLES
from stream_app.importers.books import imports_in
from stream_app.inspect_topic import first_and_last, samples_of
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
        "samples": samples_of(log.topic(SAMPLES)) if SAMPLES in names else None,
        "joiner": [],
        "imports": [msgspec.to_builtins(state) for state in imports_in(log).values()],
    }


def _topic(topic: Topic) -> dict[str, Any]:
    offsets = [(topic.start(partition), topic.end(partition)) for partition in range(topic.n_partitions)]
    times = [ts for partition, (start, end) in enumerate(offsets) for ts in first_and_last(topic, partition, start, end)]
    return {
        "partitions": topic.n_partitions,
        "records": sum(end - start for start, end in offsets),
        "first_ts": min(times, default=None),
        "last_ts": max(times, default=None),
        "offsets": offsets,
    }
