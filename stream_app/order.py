"""The order in which a live run took its rows, and batches that are cut by it once more.

``RUN/order.jsonl`` has one line per step: ``[[partition, first seq, n], ...]``, in the order of the rows in the step. Where the
run reads item vectors the line is ``{"rows": [...], "items": [...]}`` with the offsets up to which the partitions of ``items``
had been put when the step was learned. The file is as long as the newest checkpoint says; what a killed process wrote after it
is cut off when the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.follower import Follower, Taken
from stream_app.profile import Profile
from stream_app.samples_reader import Place
from stream_app.topics import Topic

__all__ = ["RecordedStep", "encode_step", "read_order", "recorded_blocks"]

_Rows = tuple[tuple[int, int, int], ...]


class _WithItems(msgspec.Struct, frozen=True):
    rows: _Rows
    items: tuple[int, ...]


class RecordedStep(NamedTuple):
    """What a step took."""

    taken: tuple[Taken, ...]
    items: tuple[int, ...] = ()
    """Offset of the next record of ``items``, by partition; nothing where the run reads no vectors."""


def encode_step(taken: Sequence[Taken], items: Sequence[int] = ()) -> bytes:
    """Return the line of a step.

    >>> encode_step([Taken(0, 120, 57), Taken(1, 80, 43)])
    b'[[0,120,57],[1,80,43]]\\n'
    """
    rows = tuple(taken)
    return msgspec.json.encode(_WithItems(rows, tuple(items)) if items else rows) + b"\n"


def read_order(path: Path, n_bytes: int) -> Iterator[RecordedStep]:
    """Yield what each step took.

    Args:
        path: of the order.
        n_bytes: how much of it counts.

    Raises:
        SampleError: the file is shorter, or damaged.
    """
    decoder: msgspec.json.Decoder[_Rows | _WithItems] = msgspec.json.Decoder(_Rows | _WithItems)
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if read >= n_bytes:
                return
            read += len(line)
            try:
                step = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise SampleError(f"{path}, line {number}: not the order of a step ({error}); the file is damaged") from error
            rows, items = (step.rows, step.items) if isinstance(step, _WithItems) else (step, ())
            yield RecordedStep(tuple(Taken(*each) for each in rows), items)
    if read < n_bytes:
        raise SampleError(f"{path} has {read} bytes, the run's checkpoint says {n_bytes}: it was truncated")


def recorded_blocks(
    topic: Topic, schema: SampleSchema, places: Sequence[Place], steps: Iterator[RecordedStep]
) -> Iterator[tuple[RecordedStep, SampleBlock]]:
    """Yield each recorded step and its rows.

    Args:
        topic: that the run learned from.
        schema: what every block has to be.
        places: where the run began, one per partition.
        steps: of :func:`read_order`.

    Raises:
        SampleError: the topic does not hold the recorded rows any more, or holds others.
    """
    profile = Profile()
    followers = [Follower(topic, p, place, schema, profile) for p, place in enumerate(places)]
    for step in steps:
        pieces: list[SampleBlock] = []
        for partition, first, n in step.taken:
            follower, left = followers[partition], n
            while left:
                while not follower.n_rows:
                    if follower.position >= topic.end(partition):
                        raise SampleError(
                            f"topic {topic.name!r}, partition {partition}: it ends before row {first + n - 1}, which the run "
                            "has learned. Give the log that the run learned from"
                        )
                    follower.fill()
                piece = follower.take(left)
                if piece.taken.first != first + n - left:
                    raise SampleError(
                        f"topic {topic.name!r}, partition {partition}: row {piece.taken.first} comes where the run learned row "
                        f"{first + n - left}. Give the log that the run learned from"
                    )
                pieces.append(piece.block)
                left -= len(piece.block)
        yield step, SampleBlock.concat(pieces)
