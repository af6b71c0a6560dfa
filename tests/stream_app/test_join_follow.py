"""join_log(follow=True): idle inputs are advanced by durable marks, which a replay obeys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from learners.samples import SampleBlock
from stream_app.events import MARKS, SAMPLES, Action, Impression, ImpressionItem
from stream_app.join import IDLE_MS, join_log, stream_samples
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.merge import Mark
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

CONFIG = JoinConfig(label_window_ms=10_000, lateness_ms=500)


class Wall:
    """A clock that only sleeping moves; what is planned happens when its time has come."""

    def __init__(self) -> None:
        self.now = 0.0
        self.plan: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.plan and self.plan[0][0] <= self.now:
            self.plan.pop(0)[1]()


def page(log: MemoryLog, request: str, ts: int) -> None:
    event = Impression(request, "u", ts, [ImpressionItem("a"), ImpressionItem("b")])
    log.topic("impressions").append(0, [Message(ts, b"u", msgspec.json.encode(event))])


def click(log: MemoryLog, request: str, ts: int) -> None:
    log.topic("actions").append(0, [Message(ts, b"u", msgspec.json.encode(Action("u", "a", ts, "click", request)))])


def followed(log: MemoryLog, folder: Path, wall: Wall, seconds: float) -> list[dict[str, Any]]:
    join_log(log, folder, CONFIG, follow=True, stop=lambda: wall.now > seconds, clock=wall.clock, sleep=wall.sleep)
    records = log.topic(SAMPLES).read(0, 0)
    return [row for record in records for row in SampleBlock.from_ipc(record.value).batch.to_pylist()]


def two_topics() -> MemoryLog:
    log = MemoryLog()
    log.create("impressions", 1)
    log.create("actions", 1)
    return log


def test_a_topic_that_never_speaks_does_not_hold_up_the_others(tmp_path: Path) -> None:
    log, wall = two_topics(), Wall()
    for second in range(20):
        wall.plan.append((second, partial(page, log, f"r{second}", 1_000_000 + 1_000 * second)))
    rows = followed(log, tmp_path, wall, 20)
    assert [row["ts"] for row in rows] == [1_000_000 + 1_000 * second for second in range(len(rows))]
    assert 7 <= len(rows) <= 10  # 10 s of window, up to 1 s of idleness, half a second of lateness.
    marks = [msgspec.json.decode(record.value, type=Mark) for record in log.topic(MARKS).read(0, 0)]
    assert {mark.topic for mark in marks} == {"actions"}
    assert len(marks) <= 1 + 20 * 1_000 // IDLE_MS


def test_when_nothing_comes_any_more_what_waits_leaves_as_the_wall_goes_on(tmp_path: Path) -> None:
    log, wall = two_topics(), Wall()
    page(log, "r", 1_000_000)
    click(log, "r", 1_003_000)
    assert followed(log, tmp_path, wall, 7) == []
    (row,) = followed(log, tmp_path, wall, 30)
    assert row["candidate.label"] == [1.0, 0.0]
    n_marks = log.topic(MARKS).end(0)
    followed(log, tmp_path, wall, 60)
    assert log.topic(MARKS).end(0) == n_marks, "once nothing waits, nobody marks"


def test_a_replay_obeys_the_marks_and_gives_the_same_rows(tmp_path: Path) -> None:
    """A click that comes after its topic was marked as idle is late, live and in every replay."""
    log, wall = two_topics(), Wall()
    wall.plan = [
        (0.0, lambda: page(log, "r0", 1_000_000)),
        (1.0, lambda: page(log, "r1", 1_005_000)),
        (4.0, lambda: click(log, "r0", 1_001_000)),
        (4.5, lambda: click(log, "r1", 1_006_000)),
        (5.0, lambda: page(log, "r2", 1_009_000)),
    ]
    rows = followed(log, tmp_path, wall, 40)
    assert [row["candidate.label"] for row in rows] == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    replayed = [row for block in stream_samples(log, CONFIG, 0, read_records=1) for row in block.batch.to_pylist()]
    assert replayed == rows
    unmarked = two_topics()
    for topic in ("impressions", "actions"):
        unmarked.topic(topic).append(0, [Message(r.ts, r.key, r.value) for r in log.topic(topic).read(0, 0)])
    plain = [row for block in stream_samples(unmarked, CONFIG, 0) for row in block.batch.to_pylist()]
    assert plain[0]["candidate.label"] == [1.0, 0.0], "without the mark the click would have been in time"
