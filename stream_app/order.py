"""The order in which a live run took its rows, and batches that are cut by it once more.

``RUN/order.jsonl`` has one line per step: ``[[partition, first seq, n], ...]``, in the order of the rows in the step. It is as
long as the newest checkpoint says; what a killed process wrote after it is cut off when the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.follower import Follower, Taken
from stream_app.profile import Profile
from stream_app.samples_reader import Place
from stream_app.topics import Topic

__all__ = ["encode_step", "read_order", "recorded_blocks"]

_Line = tuple[tuple[int, int, int], ...]


def encode_step(taken: Sequence[Taken]) -> bytes:
    """Return the line of a step.

    >>> encode_step([Taken(0, 120, 57), Taken(1, 80, 43)])
    b'[[0,120,57],[1,80,43]]\\n'
    """
    return msgspec.json.encode(tuple(taken)) + b"\n"


def read_order(path: Path, n_bytes: int) -> Iterator[tuple[Taken, ...]]:
    """Yield what each step took.

    Args:
        path: of the order.
        n_bytes: how much of it counts.

    Raises:
        SampleError: the file is shorter, or damaged.
    """
    decoder = msgspec.json.Decoder(_Line)
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if read >= n_bytes:
                return
            read += len(line)
            try:
                yield tuple(Taken(*each) for each in decoder.decode(line))
            except msgspec.MsgspecError as error:
                raise SampleError(f"{path}, line {number}: not the order of a step ({error}); the file is damaged") from error
    if read < n_bytes:
        raise SampleError(f"{path} has {read} bytes, the run's checkpoint says {n_bytes}: it was truncated")


def recorded_blocks(
    topic: Topic, schema: SampleSchema, places: Sequence[Place], steps: Iterator[tuple[Taken, ...]]
) -> Iterator[SampleBlock]:
    """Yield the rows of each recorded step.

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
        for partition, first, n in step:
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
        yield SampleBlock.concat(pieces)
