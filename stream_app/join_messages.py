"""What a worker's process and the process of its joiners tell each other: MessagePack frames on a pair of sockets.

Raw records go over as they came, a batch of one topic partition in one frame; nothing in them is decoded on the way.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stream_app.durable_join import JoinReport
from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.topics import Record
from stream_app.worker_options import WorkerOptions

__all__ = [
    "TO_JOINERS",
    "TO_WORKER",
    "Assign",
    "Deliver",
    "Done",
    "Failed",
    "Renew",
    "Revoke",
    "Setup",
    "Stop",
    "Told",
    "encode",
]


class Setup(msgspec.Struct, frozen=True):
    """What the process of the joiners is started with; the first frame, pickled: it holds no secrets and is sent once."""

    options: WorkerOptions
    config: JoinConfig
    kafka: KafkaConfig
    n_partitions: int


class Deliver(msgspec.Struct, tag=0, array_like=True):
    """Raw records of one topic partition, in their order."""

    topic: str
    partition: int
    records: list[Record]


class Assign(msgspec.Struct, tag=1, array_like=True):
    """Open partitions; answered by :class:`Done`, like all that has a number."""

    number: int
    partitions: list[int]
    generation: int


class Revoke(msgspec.Struct, tag=2, array_like=True):
    """Finish the step and close partitions (None: all)."""

    number: int
    partitions: list[int] | None


class Stop(msgspec.Struct, tag=3, array_like=True):
    """Finish the step, close all partitions, end."""

    number: int


class Renew(msgspec.Struct, tag=4, array_like=True):
    """A heartbeat that was sent at ``sent`` was answered; by the clock that both processes share (``time.monotonic``)."""

    sent: float


class Done(msgspec.Struct, tag=0, array_like=True):
    """What had this number is done."""

    number: int


class Failed(msgspec.Struct, tag=1, array_like=True):
    """The joiners' last word."""

    text: str


class Told(msgspec.Struct, tag=2, array_like=True):
    """How the joiners stand, ten times a second; events, rows, steps and snapshots since the last time."""

    report: JoinReport
    turned: float
    """When their thread last came round (``time.monotonic``)."""
    taken: int
    """Bytes of all :class:`Deliver` frames whose records are in the inboxes, or were not wanted."""
    positions: list[tuple[int, str, int, int, int]]
    """(joiner's partition, topic, partition, position, running maximum of ``ts``)."""
    held: list[tuple[str, int, int]]
    """(topic, partition, records that wait in its inbox)."""
    n_direct: int
    events: int
    rows: int
    steps: list[tuple[float, float]]
    """Seconds that publishing and committing took."""
    snapshots: list[int]
    """Partitions of which one was stored."""


TO_JOINERS: Final = msgspec.msgpack.Decoder(Deliver | Assign | Revoke | Stop | Renew)
TO_WORKER: Final = msgspec.msgpack.Decoder(Done | Failed | Told)


def encode(message: Deliver | Assign | Revoke | Stop | Renew | Done | Failed | Told) -> bytes:
    """Return the frame of a message."""
    return msgspec.msgpack.encode(message)
