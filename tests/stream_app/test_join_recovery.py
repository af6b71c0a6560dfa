"""join_log: any polling, logs that grow, and kills between any two steps of a commit give the same rows and ``seq``."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import AccessType, Options, Rdict

from learners.samples import SampleBlock
from stream_app.events import DEAD_LETTERS, MARKS, SAMPLES, Action, Impression, ImpressionItem, Item, User, partition_of
from stream_app.join import JoinError, JoinReport, join_log, stream_samples
from stream_app.joiner.config import ItemSequence, JoinConfig
from stream_app.joiner.store import Header, StateError
from stream_app.state import RocksState, read_header
from stream_app.topics import Log, Message, Record
from stream_app.topics.memory import MemoryLog, MemoryTopic

CONFIG = JoinConfig(
    label_window_ms=2_000,
    correction_window_ms=2_000,
    lateness_ms=100,
    label_min_value={"click": 0.2},
    item_sequences={
        "click": ItemSequence(kinds=("click", "buy"), length=4),
        "video": ItemSequence(domains=("video",), length=4),
        "shop": ItemSequence(kinds=("click", "buy"), domains=("shop",), min_value={"buy": 0.5}, length=4),
    },
    query_length=3,
    block_requests=7,
    max_pending_per_user=5,
)
SHAPES = {"impressions": 2, "actions": 2, "items": 3, "users": 2}


class KilledError(Exception):
    """Stands for the end of the process."""


class MortalTopic:
    """A topic whose writer dies just before or just after an append."""

    def __init__(self, topic: MemoryTopic, fate: Iterator[str]) -> None:
        self._topic = topic
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topic, name)

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        fate = next(self._fate, "lives")
        if fate == "dies before":
            raise KilledError
        end = self._topic.append(partition, messages)
        if fate == "dies after":
            raise KilledError
        return end


class MortalLog(MemoryLog):
    """A log whose topics of results are mortal."""

    def __init__(self, log: MemoryLog, fate: Iterator[str]) -> None:
        super().__init__()
        self._log = log
        self._fate = fate

    def topics(self) -> dict[str, int]:
        return self._log.topics()

    def topic(self, name: str) -> Any:
        topic = self._log.topic(name)
        return MortalTopic(topic, self._fate) if name in (SAMPLES, DEAD_LETTERS, MARKS) else topic

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Any:
        self._log.create(name, n_partitions, retention_ms)
        return self.topic(name)


def events(seed: int, n: int) -> list[tuple[str, int, Message]]:
    """Return (topic, partition, message) of some busy users; a little disorder, doubles, late and unusable records."""
    draw = random.Random(seed)
    made: list[tuple[str, int, Message]] = []

    def add(topic: str, event: Any, key: str) -> None:
        value = msgspec.json.encode(event) if draw.random() > 0.02 else b"{"
        message = Message(event.ts, key.encode(), value)
        deliveries = 2 if draw.random() < 0.05 else 1
        made.extend([(topic, partition_of(key.encode(), SHAPES[topic]), message)] * deliveries)

    for i in range(n):
        ts = 10_000 + 40 * i - draw.randrange(150)
        user, item = f"u{draw.randrange(4)}", f"i{draw.randrange(9)}"
        what = draw.random()
        if what < 0.45:
            shown = [ImpressionItem(f"i{draw.randrange(9)}", position=at) for at in range(draw.randrange(1, 5))]
            add("impressions", Impression(f"r{i}", user, ts, shown, query=f"q{i % 3}" if i % 2 else None), user)
        elif what < 0.9:
            request = f"r{i - draw.randrange(1, 20)}" if draw.random() < 0.7 else None
            late = 5_000 if draw.random() < 0.05 else 0
            kind, value = draw.choice(["click", "buy", "scroll"]), draw.choice([None, 0.1, 0.2, draw.random()])
            domain = draw.choice([None, None, "video", "shop"])
            add("actions", Action(user, item, ts - late, kind, request, value=value, domain=domain), user)
        elif what < 0.97:
            add("items", Item(item, ts, f"c{draw.randrange(3)}", draw.choice(["video", "shop", None])), item)
        else:
            add("users", User(user, ts), user)
    return made


def filled(made: Sequence[tuple[str, int, Message]], log: MemoryLog | None = None) -> MemoryLog:
    log = log or MemoryLog()
    for topic, n_partitions in SHAPES.items():
        log.create(topic, n_partitions)
    for name, partition, message in made:
        log.topic(name).append(partition, [message])
    return log


def read_all(log: Log, name: str, partition: int) -> list[Record]:
    topic = log.topic(name)
    return topic.read(partition, 0, max_records=1 << 20) if topic.end(partition) else []


def rows_of(blocks: Sequence[SampleBlock]) -> list[dict[str, Any]]:
    return [row for block in blocks for row in block.batch.to_pylist()]


def published(log: Log, partition: int) -> list[dict[str, Any]]:
    return rows_of([SampleBlock.from_ipc(record.value) for record in read_all(log, SAMPLES, partition)])


def streamed(log: Log, partition: int, config: JoinConfig = CONFIG) -> list[dict[str, Any]]:
    return rows_of(list(stream_samples(log, config, partition)))


def survive(live: Callable[[], JoinReport]) -> None:
    while True:
        try:
            live()
            return
        except KilledError:
            continue


@given(
    seed=st.integers(0, 1 << 20),
    policy=st.sampled_from(["wait", "correct"]),
    fates=st.lists(st.sampled_from(["lives", "lives", "dies before", "dies after"]), max_size=12),
    deaths=st.lists(st.booleans(), max_size=8),
    read_records=st.sampled_from([1, 5, 40, 1_000]),
    cache_entries=st.sampled_from([1, 3, 1_000]),
)
@settings(max_examples=25)
def test_kills_and_pollings_change_nothing(
    seed: int, policy: Any, fates: list[str], deaths: list[bool], read_records: int, cache_entries: int
) -> None:
    config = msgspec.structs.replace(CONFIG, policy=policy)
    log = filled(events(seed, 120))
    expected = [streamed(log, partition, config) for partition in (0, 1)]
    fate, death = iter(fates), iter(deaths)

    def die_after_the_commit(report: JoinReport) -> None:
        if next(death, False):
            raise KilledError

    with tempfile.TemporaryDirectory() as folder:
        survive(
            lambda: join_log(
                MortalLog(log, fate),
                Path(folder),
                config,
                on_progress=die_after_the_commit,
                read_records=read_records,
                cache_entries=cache_entries,
            )
        )
    for partition in (0, 1):
        rows = published(log, partition)
        assert rows == expected[partition]
        assert [row["seq"] for row in rows] == list(range(len(rows)))
        # The marks that the join has left make a replay of the log what the join was.
        assert streamed(log, partition, config) == rows
        letters = {(r["topic"], r["partition"], r["offset"]) for r in letters_of(log, partition)}
        assert letters == {
            (topic, at, record.offset)
            for topic, n_partitions in SHAPES.items()
            for at in range(n_partitions)
            for record in read_all(log, topic, at)
            if at % 2 == partition and (record.value == b"{" or (topic == "impressions" and is_late(log, at, record)))
        }


def letters_of(log: Log, partition: int) -> list[dict[str, Any]]:
    return [msgspec.json.decode(record.value) for record in read_all(log, DEAD_LETTERS, partition)]


def is_late(log: Log, partition: int, record: Record) -> bool:
    before = [r for r in read_all(log, "impressions", partition) if r.offset <= record.offset and r.value != b"{"]
    return record.ts < max(r.ts for r in before) - CONFIG.lateness_ms


@pytest.mark.parametrize("policy", ["wait", "correct"])
def test_a_log_that_grows_between_calls_gives_the_rows_of_the_whole_log(tmp_path: Path, policy: Any) -> None:
    config = msgspec.structs.replace(CONFIG, policy=policy)
    made = events(seed=3, n=300)
    log = filled([])
    n_rows = []
    for start in range(0, len(made), 60):
        filled(made[start : start + 60], log)
        report = join_log(log, tmp_path, config, drain=False, read_records=17)
        n_rows.append(report.counters["rows"])
    assert sorted(n_rows) == n_rows
    assert n_rows[0] < n_rows[-1]
    assert report.pending > 0
    assert not read_all(log, MARKS, 0)
    report = join_log(log, tmp_path, config)
    assert report.pending == 0
    for partition in (0, 1):
        assert published(log, partition) == streamed(filled(made), partition, config)


def test_nothing_is_lost_and_a_second_join_does_nothing(tmp_path: Path) -> None:
    made = events(seed=4, n=400)
    log = filled(made)
    report = join_log(log, tmp_path, CONFIG)
    counters = report.counters
    assert counters["requests"] + counters["duplicate_impressions"] + sum(
        1 for partition in (0, 1) for letter in letters_of(log, partition) if letter["topic"] == "impressions"
    ) == sum(topic == "impressions" for topic, _, _ in made)
    assert counters["rows"] == counters["requests"] == report.rows > 100
    assert counters["labels"] > 5
    assert counters["duplicate_actions"] > 0
    assert counters["late_actions"] > 0
    assert counters["early_requests"] > 0
    assert counters["orphan_actions"] > 0
    assert counters["ignored_actions"] > 0
    assert min(counters[f"{name}_actions"] for name in ("low_value", "no_value", "no_domain")) > 0
    assert report.dead_letters["json"] > 0
    assert report.events == len(made) + sum(topic == "items" for topic, _, _ in made)  # Both partitions read all items.
    ends = {name: [log.topic(name).end(p) for p in (0, 1)] for name in (SAMPLES, DEAD_LETTERS, MARKS)}
    again = join_log(log, tmp_path, CONFIG)
    assert (again.events, again.rows, again.counters) == (0, 0, counters)
    assert ends == {name: [log.topic(name).end(p) for p in (0, 1)] for name in (SAMPLES, DEAD_LETTERS, MARKS)}


def test_stop_ends_after_a_batch_and_the_next_call_goes_on(tmp_path: Path) -> None:
    log = filled(events(seed=5, n=200))
    for _ in range(3):
        join_log(log, tmp_path, CONFIG, stop=lambda: True, read_records=20)
    assert len(published(log, 0)) < len(streamed(log, 0))
    join_log(log, tmp_path, CONFIG)
    assert published(log, 0) == streamed(log, 0)


def stored_requests(folder: Path) -> int:
    db = Rdict(str(folder), Options(raw_mode=True), access_type=AccessType.read_only())
    n = sum(isinstance(key, bytes) and key.startswith(b"r") for key in db.keys())  # noqa: SIM118 - a database is no dict
    db.close()
    return n


def test_requests_that_leave_by_the_hundred_leave_alone_those_that_stay(tmp_path: Path) -> None:
    """Neighbours are deleted by one range; those that leave later, or were shown out of order, are there after a restart."""
    draw, log, topic = random.Random(8), MemoryLog(), "impressions"
    log.create(topic, 1)
    for i in range(1_500):
        page = Impression(f"r{i}", f"u{draw.randrange(300)}", 10_000 + 10 * i - draw.randrange(80), [ImpressionItem("i")])
        log.topic(topic).append(0, [Message(page.ts, page.user_id.encode(), msgspec.json.encode(page))])
    for _ in range(4):
        report = join_log(log, tmp_path, CONFIG, stop=lambda: True, read_records=350)
        assert stored_requests(tmp_path / "0") == report.pending > 100
    assert report.counters["rows"] > 1_000
    assert join_log(log, tmp_path, CONFIG).pending == stored_requests(tmp_path / "0") == 0
    assert published(log, 0) == streamed(log, 0)
    assert len(published(log, 0)) == 1_500


def test_another_config_is_refused_with_the_way_out(tmp_path: Path) -> None:
    log = filled(events(seed=6, n=50))
    join_log(log, tmp_path / "state", CONFIG)
    other = msgspec.structs.replace(CONFIG, label_window_ms=1)
    with pytest.raises(StateError, match="options or the partition count have changed"):
        join_log(log, tmp_path / "state", other)
    with pytest.raises(JoinError, match="Delete the topic and the joiner's state"):
        join_log(log, tmp_path / "fresh", other)


def test_samples_that_were_deleted_without_the_state_are_missed(tmp_path: Path) -> None:
    made = events(seed=7, n=50)
    join_log(filled(made), tmp_path, CONFIG)
    with pytest.raises(JoinError, match="samples were deleted without the state"):
        join_log(filled(made), tmp_path, CONFIG)


def test_a_raw_topic_that_appears_later_is_refused(tmp_path: Path) -> None:
    log = MemoryLog()
    page = Impression("r", "u", 1_000, [ImpressionItem("a")])
    log.create("impressions", 1).append(0, [Message(1_000, b"u", msgspec.json.encode(page))])
    join_log(log, tmp_path, CONFIG)
    log.create("actions", 1)
    with pytest.raises(StateError, match="a raw topic appeared or went"):
        join_log(log, tmp_path, CONFIG)


def test_state_that_was_deleted_is_made_again_without_doubles(tmp_path: Path) -> None:
    log = filled(events(seed=8, n=100))
    join_log(log, tmp_path / "state", CONFIG)
    rows = published(log, 0)
    join_log(log, tmp_path / "again", CONFIG)
    assert published(log, 0) == rows


def test_two_joins_of_one_log_at_once_are_refused(tmp_path: Path) -> None:
    log = filled(events(seed=9, n=20))

    def join_again(report: JoinReport) -> None:
        with pytest.raises(StateError, match="is another join of this log running"):
            join_log(log, tmp_path, CONFIG)

    join_log(log, tmp_path, CONFIG, on_progress=join_again)


def test_logs_without_events_or_of_two_shapes_are_refused(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create("clicks", 1)
    with pytest.raises(JoinError, match="neither 'impressions' nor 'actions'"):
        join_log(log, tmp_path, CONFIG)
    log.create("impressions", 2)
    log.create("actions", 3)
    with pytest.raises(JoinError, match="same number of partitions"):
        join_log(log, tmp_path, CONFIG)


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    with RocksState(tmp_path / "state", Header("generation", []), n_sequences=1) as state:
        state.commit()
    db = Rdict(str(tmp_path / "state"), Options(raw_mode=True))
    stored = db.get(b"h")
    assert isinstance(stored, bytes)
    header = msgspec.msgpack.decode(stored)
    db[b"h"] = msgspec.msgpack.encode(header[:-1])  # As it was before there were formats.
    db.close()
    with pytest.raises(StateError, match=r"records are of format 0.*delete it and join the log again"):
        RocksState(tmp_path / "state", Header("generation", []), n_sequences=1)
    with pytest.raises(StateError, match=r"records are of format 0.*delete it and join the log again"):
        read_header(tmp_path / "state")
