"""Events that are written at a pace: when each is there, over all topics."""

from __future__ import annotations

import pytest

from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression, ImpressionItem
from stream_app.importers.pace import Pace
from stream_app.importers.source import Event, SourceError
from stream_app.importers.writer import EventWriter
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import PACED_CHUNK, run_simulate
from stream_app.topics import Message, Record
from stream_app.topics.memory import MemoryLog

BEGAN_S = 1_800_000_000.0
AHEAD_MS = 20
"""What is due so soon is written with what is due now."""
OPTIONS = SimulateOptions(requests=700, users=30, items=60, partitions=2, rate=50.0, click_delay_ms=300, label_window_ms=2_000)


def records(log: MemoryLog, name: str) -> list[Record]:
    topic = log.topic(name)
    return [record for p in range(topic.n_partitions) for record in topic.read(p, 0, 10_000)]


class Watched:
    """A clock that goes on when somebody sleeps, and notes how many records there were then."""

    def __init__(self, log: MemoryLog) -> None:
        self.now, self._log = BEGAN_S, log
        self.seen: list[tuple[float, dict[str, int]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.seen.append((self.now, {name: len(records(self._log, name)) for name in (IMPRESSIONS, ACTIONS)}))
        self.now += seconds


def test_a_live_click_is_written_when_it_happens_not_when_a_chunk_of_pages_is_over() -> None:
    assert OPTIONS.requests > 5 * PACED_CHUNK
    log = MemoryLog()
    watched = Watched(log)
    run_simulate(OPTIONS, log, None, pace=Pace(live=True, clock=watched.clock, sleep=watched.sleep))
    assert len(watched.seen) > 500
    assert len(records(log, ACTIONS)) > 100
    for name in (IMPRESSIONS, ACTIONS):
        times = sorted(record.ts for record in records(log, name))
        for now, counts in watched.seen:
            due = sum(ts <= now * 1_000 for ts in times)
            assert due <= counts[name] <= sum(ts <= now * 1_000 + AHEAD_MS for ts in times), f"{name} at {now - BEGAN_S:.3f} s"


def test_a_pace_changes_no_event_but_its_time() -> None:
    log, plain = MemoryLog(), MemoryLog()
    watched = Watched(log)
    run_simulate(OPTIONS, log, None, pace=Pace(rate=100.0, clock=watched.clock, sleep=watched.sleep))
    run_simulate(OPTIONS, plain, None)
    for name in (IMPRESSIONS, ACTIONS):
        assert records(log, name) == records(plain, name)
    n_events = sum(len(records(plain, name)) for name in plain.topics())
    assert watched.now - BEGAN_S == pytest.approx(n_events / 100.0, abs=0.1)


@pytest.mark.parametrize("first_is_paced", [False, True])
def test_an_import_that_was_killed_goes_on_at_another_pace(first_is_paced: bool) -> None:
    late = [100, 300, 200, 400, 350, 500]  # within a topic time may run backwards a little
    events: list[Event] = [Action("u", f"i{n}", ts, "click") for n, ts in enumerate(late)]
    events += [Impression(str(ts), "u", ts, [ImpressionItem("i0")]) for ts in (150, 320, 310)]

    def write(log: MemoryLog, skip: dict[str, list[int]], paced: bool) -> None:
        watched = Watched(log)
        pace = Pace(rate=10.0, clock=watched.clock, sleep=watched.sleep) if paced else None
        writer = EventWriter(log, 1, skip, bool(skip), pace)
        writer.write(events)
        writer.flush()

    whole = MemoryLog()
    write(whole, {}, first_is_paced)
    for n_written in range(1, len(late)):
        log = MemoryLog()
        written = records(whole, ACTIONS)[:n_written]
        log.create(ACTIONS, 1).append(0, [Message(each.ts, each.key, each.value) for each in written])
        write(log, {ACTIONS: [n_written]}, not first_is_paced)
        for name in (IMPRESSIONS, ACTIONS):
            assert [each.value for each in records(log, name)] == [each.value for each in records(whole, name)]


@pytest.mark.parametrize(("rate", "live"), [(0.0, False), (5.0, True)])
def test_a_pace_that_is_none_is_refused(rate: float, live: bool) -> None:
    with pytest.raises(SourceError, match="rate"):
        Pace(rate=rate, live=live)
