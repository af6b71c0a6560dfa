"""Items with vectors, for logs that a generator made without."""

from __future__ import annotations

import random

import msgspec

from stream_app.events import ITEMS, Item
from stream_app.topics import Log, Message

__all__ = ["append_vectors"]


def append_vectors(log: Log, begin: int, end: int, dim: int, seed: int) -> None:
    """Append a version of each item of a log, with a vector, at some time from ``begin`` to ``end`` (UTC ms)."""
    topic, rng = log.topic(ITEMS), random.Random(seed)
    for partition in range(topic.n_partitions):
        names = {record.key.decode() for record in topic.read(partition, topic.start(partition), 10_000)}
        times = sorted((rng.randint(begin, end), name) for name in names)
        items = [Item(name, ts, vector=[rng.gauss(0, 1) for _ in range(dim)]) for ts, name in times]
        topic.append(partition, [Message(item.ts, item.item_id.encode(), msgspec.json.encode(item)) for item in items])
