"""The joiner of one partition: impressions x actions -> labelled requests. No I/O, no clock: a function of logs and marks.

The one sequence (:mod:`.merge`) is applied event by event; what happens then and later is in :mod:`.core.run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS
from stream_app.topics import Record

from .blocks import Rows, generation_of
from .config import JoinConfig
from .core.layout import COUNTERS, TS_OF_EVENT
from .dead_letters import DeadLetter, dead_letter
from .decode import Decoder
from .merge import NEVER, Input, Mark, Merged, merge
from .pending import Unusable
from .steps import Steps
from .store import Header, Position, State, StateError


class ForeignRecordsError(ValueError):
    """Too many records lie in a partition that is not their key's: another partitioner wrote the topic."""


class Output(NamedTuple):
    """What one :meth:`Joiner.advance` gave."""

    blocks: list[SampleBlock]
    dead_letters: list[DeadLetter]


def inputs_of(topics: dict[str, int], partition: int) -> list[tuple[str, int]]:
    """Return the topic partitions that the joiner of ``partition`` reads, in the order of the merge.

    Args:
        topics: the log's topics and their partition counts; a raw topic that is not there is no input.
        partition: of the user-keyed topics.
    """
    keyed = [(topic, partition) for topic in (ACTIONS, IMPRESSIONS) if topic in topics]
    items = [(ITEMS, p) for p in range(topics.get(ITEMS, 0))]
    return keyed + items + ([(USERS, partition)] if USERS in topics else [])


def new_header(config: JoinConfig, n_partitions: int, inputs: Iterable[tuple[str, int]]) -> Header:
    """Return the header of a state that has seen nothing."""
    return Header(generation_of(config, n_partitions), [Position(topic, partition) for topic, partition in inputs])


class Joiner:
    """Joins one partition. Fed by whoever reads the inputs; see :func:`stream_app.join.join_log`.

    Args:
        config: options.
        partition: of the user-keyed topics.
        n_partitions: of the user-keyed topics.
        inputs: of :func:`inputs_of`.
        state: where to go on.

    Raises:
        StateError: the state is of another generation or of other inputs.
    """

    def __init__(
        self, config: JoinConfig, partition: int, n_partitions: int, inputs: Sequence[tuple[str, int]], state: State
    ) -> None:
        _check_header(state.header, new_header(config, n_partitions, inputs))
        self.config = config
        self.partition = partition
        self.state = state
        self.inputs = [Input(p.topic, p.partition, p.offset, p.high) for p in state.header.positions]
        self._n_partitions = n_partitions
        self._decoder = Decoder(config, partition, n_partitions)
        self._lateness = config.lateness_ms
        self._counters = state.header.counters
        for name in COUNTERS:
            self._counters.setdefault(name, 0)
        self._rows = Rows(config, partition, n_partitions, state.header.seq, state.slab)
        self._steps = Steps(config, state, self._rows)
        self._dead_letters: list[DeadLetter] = []

    # -- what the owner calls

    def feed(self, source: Input, records: Sequence[Record]) -> None:
        """Give the next records of an input that has none left, from ``source.read`` on."""
        source.feed(records, *self._decoder.decode(source.topic, records))

    def newest(self, topic: str, records: Sequence[Record]) -> int:
        """Return the highest ``ts`` of the usable records of a topic, or :data:`~.merge.NEVER`."""
        return max(self._decoder.decode(topic, records)[1].tolist(), default=NEVER)

    def mark(self, mark: Mark) -> None:
        """Give a mark, which must be durable by now."""
        for source in self.inputs:
            if (source.topic, source.partition) == (mark.topic, mark.partition):
                source.add_mark(mark)

    @property
    def n_pending(self) -> int:
        """Steps that wait for the sequence to pass."""
        return len(self._steps)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the state's beginning."""
        return self._counters

    def advance(self) -> Output:
        """Apply all that can be applied; return the rows that left and the records that could not be used.

        Raises:
            ForeignRecordsError: more than ``max_foreign`` records belong to other partitions.
        """
        merged = merge(self.inputs)
        for index in self._steps.apply(merged):
            self._refuse(merged, index)
        for source, n in merged.sources:
            source.take(n)
        blocks = self._rows.take_blocks()
        header = self.state.header
        self._counters["rows"] += self._rows.seq - header.seq
        header.positions = [Position(s.topic, s.partition, s.position, s.high) for s in self.inputs]
        header.seq = self._rows.seq
        output = Output(blocks, self._dead_letters)
        self._dead_letters = []
        return output

    # -- records

    def _refuse(self, merged: Merged, index: int) -> None:
        """Make a dead letter; records of shared inputs become one only in one partition."""
        source, record = merged.source(index)
        if source.topic == ITEMS and source.partition % self._n_partitions != self.partition:
            return
        unusable = source.events.unusable.get(record.offset)
        if unusable is None:
            ts, effective = merged.words[merged.starts[index] + TS_OF_EVENT], merged.effective[index]
            reason = f"ts {ts} is more than {self._lateness} ms before effective time {effective}"
            unusable = Unusable("late", reason)
        name = f"dead_letters.{unusable.code}"
        self._counters[name] = self._counters.get(name, 0) + 1
        self._dead_letters.append(dead_letter(source.topic, source.partition, record, unusable))
        if unusable.code == "foreign" and self._counters[name] > self.config.max_foreign:
            raise ForeignRecordsError(
                f"partition {source.partition} of topic {source.topic!r} has more than max_foreign = {self.config.max_foreign} "
                f"records whose key belongs to another of the {self._n_partitions} partitions (last: offset {record.offset}). "
                "Raw topics of users must be partitioned by murmur2 of the user id: write the topic with that partitioner"
            )


def _check_header(header: Header, expected: Header) -> None:
    if header.generation != expected.generation:
        raise StateError(
            f"the joiner's state is of generation {header.generation}, this config makes {expected.generation}: its options or "
            "the partition count have changed. Join into a new folder, or delete the state and the topic of samples"
        )
    known = [(position.topic, position.partition) for position in header.positions]
    wanted = [(position.topic, position.partition) for position in expected.positions]
    if known != wanted:
        raise StateError(
            f"the joiner's state has the inputs {known}, the log has {wanted}: a raw topic appeared or went since samples were "
            "joined, so that their order would not be the log's. Delete the state and the topic of samples, and join again"
        )
