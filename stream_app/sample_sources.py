"""Where blocks of samples come from: the topic of a log that was joined, or a join on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from learners.block_decoding import decode_blocks
from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.events import SAMPLES
from stream_app.join import count_partitions, stream_samples
from stream_app.joiner.blocks import sample_schema
from stream_app.joiner.config import JoinConfig
from stream_app.profile import Profile
from stream_app.samples_reader import Place
from stream_app.topics import Log, Record, Topic
from stream_app.topics.address import Address, address_of

READ_RECORDS = 64
READ_BYTES = 4 << 20
DECODE_RECORDS = 8
"""Records that are decoded at once."""
JOIN_RECORDS = 2_048
"""Records of an input that are joined at once: as fast as more, and a learner waits for the first batch, and for each later
burst, an eighth of the time that a join into a topic would take."""
NO_END = 2**62

__all__ = ["JoinedSource", "Source", "TopicSource", "open_source"]


class Source(Protocol):
    """Blocks of samples per partition, numbered."""

    @property
    def name(self) -> str:
        """What to call it in an error."""

    @property
    def n_partitions(self) -> int:
        """Partitions of the samples."""

    def last_ts(self) -> int | None:
        """Return the last ``due`` (UTC ms), None where nobody knows yet: a measure of how much is left."""

    def schema(self) -> SampleSchema:
        """Return what the blocks are.

        Raises:
            SampleError: there are none.
        """

    def places(self, start: int | None = None) -> tuple[Place, ...]:
        """Return, per partition, a place before the first request with ``ts >= start`` (UTC ms; None is the beginning)."""

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        """Yield (number, block) from ``position`` on and before ``end``.

        Raises:
            SampleError: a block is unreadable or of a newer version.
        """


class TopicSource:
    """The topic of samples.

    Args:
        topic: of a joined log.
        profile: where the time goes.
    """

    def __init__(self, topic: Topic, profile: Profile | None = None) -> None:
        self._topic = topic
        self._profile = profile or Profile()

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"topic {self._topic.name!r}"

    @property
    def n_partitions(self) -> int:
        """Partitions of the topic."""
        return self._topic.n_partitions

    def last_ts(self) -> int | None:
        """Return the time of the last record of any partition."""
        ends = [(p, self._topic.end(p)) for p in range(self.n_partitions)]
        times = [self._topic.read(p, end - 1, max_records=1)[0].ts for p, end in ends if end > self._topic.start(p)]
        return max(times, default=None)

    def schema(self) -> SampleSchema:
        """Return the schema of the first block that the topic holds.

        Raises:
            SampleError: it holds none.
        """
        for partition in range(self.n_partitions):
            for record in self._topic.read(partition, self._topic.start(partition), max_records=1):
                return SampleBlock.from_ipc(record.value).schema
        raise SampleError(f"{self.name} is empty: no request has left the join yet; run `freshet join` to its end")

    def places(self, start: int | None = None) -> tuple[Place, ...]:
        """Return the places before the first request with ``ts >= start``.

        The time of a record is the ``due`` of its last row, and no row is due before its ``ts``; one record more is read, so
        that the mark is known.
        """
        places = []
        for partition in range(self.n_partitions):
            position = first = self._topic.start(partition)
            if start is not None:
                position = max(first, self._topic.position_at(partition, start) - 1)
            places.append(Place(position=position, end=self._topic.end(partition)))
        return tuple(places)

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        """Yield (offset, block); memory holds at most 4 MB of encoded records."""
        while position < end:
            with self._profile.stage("read"):
                records = self._topic.read(partition, position, min(READ_RECORDS, end - position), READ_BYTES)
            if not records:
                raise SampleError(
                    f"{self.name}, partition {partition}: it ends at block {position}, and had {end} when the run began: "
                    "these are other samples. Give the log that the run began with, or start a new run"
                )
            for first in range(0, len(records), DECODE_RECORDS):
                yield from self._decoded(partition, records[first : first + DECODE_RECORDS])
            position = records[-1].offset + 1

    def _decoded(self, partition: int, records: Sequence[Record]) -> Iterator[tuple[int, SampleBlock]]:
        try:
            with self._profile.stage("decode"):
                blocks = decode_blocks([record.value for record in records])
        except SampleError:  # Blocks before the one that it is about count.
            blocks = []
        for record, block in zip(records, blocks, strict=False):
            yield record.offset, block
        for record in records[len(blocks) :]:
            try:
                yield record.offset, SampleBlock.from_ipc(record.value)
            except SampleError as error:
                raise SampleError(f"{self.name}, partition {partition}, block {record.offset}: {error}") from error


class JoinedSource:
    """A log that is joined while it is read; nothing is written, and going on begins at its beginning.

    Args:
        log: with raw topics.
        config: of the join.
        profile: where the time goes.

    Raises:
        JoinError: there are no raw topics.
    """

    def __init__(self, log: Log, config: JoinConfig, profile: Profile | None = None) -> None:
        self.config = config
        self.address: Address | None = address_of(log)
        """By what another process can open the log."""
        self._log = log
        self._profile = profile or Profile()
        self._n_partitions = count_partitions(log)

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return "samples joined on the fly"

    @property
    def n_partitions(self) -> int:
        """Partitions of the raw topics."""
        return self._n_partitions

    def last_ts(self) -> int | None:
        """Return nothing: nobody knows before the join is done."""
        return None

    def schema(self) -> SampleSchema:
        """Return the schema that the config makes."""
        return sample_schema(self.config, self._n_partitions)

    def places(self, start: int | None = None) -> tuple[Place, ...]:
        """Return the beginning: histories need all that came before."""
        return (Place(position=0, end=NO_END),) * self._n_partitions

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        """Yield (count, block) from the beginning on, whatever ``position`` is: in a log that has grown, or to another version,
        the same number is another block. Who goes on knows by ``seq`` what it has had."""
        joined = enumerate(stream_samples(self._log, self.config, partition, read_records=JOIN_RECORDS))
        while True:
            with self._profile.stage("join"):
                numbered = next(joined, None)
            if numbered is None:
                return
            yield numbered


def open_source(log: Log, config: JoinConfig, profile: Profile | None = None) -> Source:
    """Return the log's samples, or, where it has none, a join on the fly.

    Raises:
        SampleError: the samples were joined with other options than ``config``.
        JoinError: the log has neither samples nor raw topics.
    """
    topics = log.topics()
    if SAMPLES not in topics:
        return JoinedSource(log, config, profile)
    source = TopicSource(log.topic(SAMPLES), profile)
    generation = sample_schema(config, source.n_partitions).generation
    if source.schema().generation != generation:
        raise SampleError(
            f"the log was joined with other options than [join] of this config, or by another version of Freshet (generation "
            f"{source.schema().generation}, now {generation}): leave [join] as the log has it, or join into a new folder"
        )
    return source
