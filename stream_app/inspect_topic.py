"""What is in a topic, of whatever kind: for the folder's and the cluster's inspection."""

from __future__ import annotations

from typing import Any

import msgspec

from learners.samples import SampleBlock
from stream_app.topics import Topic

__all__ = ["first_and_last", "samples_of"]


def first_and_last(topic: Topic, partition: int, start: int, end: int) -> list[int]:
    """Return the times of the first and the last record of a partition."""
    ends = (start, end - 1) if end > start else ()
    return [record.ts for position in ends for record in topic.read(partition, position, max_records=1)]


def samples_of(topic: Topic) -> dict[str, Any]:
    """Return the generation and the last ``seq`` per partition."""
    marks: dict[int, int] = {}
    schema = None
    for partition in range(topic.n_partitions):
        end = topic.end(partition)
        if end > topic.start(partition):
            block = SampleBlock.from_ipc(topic.read(partition, end - 1, max_records=1)[0].value)
            marks |= block.marks()
            schema = block.schema
    return {"schema": None if schema is None else msgspec.to_builtins(schema), "marks": marks}
