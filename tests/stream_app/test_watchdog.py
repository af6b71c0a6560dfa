"""The watchdog: who stands still with work to do is ended; who has none, or is kept from seeing, is not."""

from __future__ import annotations

import pytest

from stream_app.watchdog import COUNTED_SECONDS, Look, Watchdog, WorkerStalledError

TP = ("actions", 0)


class Scene:
    """A worker as the watchdog sees it; looks are 2 s apart."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.dog = Watchdog(60.0, lambda: self.now)
        self.end = 100
        self.position = 0
        self.received = 0
        self.waits_for_room = False

    def watch(self, seconds: float, *, joins: int = 0, delivers: int = 0, turns: bool = True, step: float = 2.0) -> None:
        turned = self.now
        until = self.now + seconds
        while self.now < until:
            self.now += step
            self.position = min(self.end, self.position + joins)
            self.received = min(self.end, self.received + delivers)
            turned = self.now if turns else turned
            received = {} if self.waits_for_room else {TP: self.received}
            self.dog.check(Look({TP: self.end}, {TP: self.position}, received, turned))


def test_a_worker_that_works_or_has_nothing_to_do_is_left_alone() -> None:
    scene = Scene()
    scene.watch(100, joins=1, delivers=2)
    scene.position = scene.received = scene.end
    scene.watch(1_000)


def test_joiners_that_stand_still_end_the_worker() -> None:
    scene = Scene()
    scene.received = 100
    with pytest.raises(WorkerStalledError, match=r"joiners stand still, 100 records behind.*start it again"):
        scene.watch(100)
    assert 1_060 < scene.now <= 1_066


def test_a_consumer_that_died_ends_the_worker_though_the_joiner_helps_itself() -> None:
    scene = Scene()
    scene.end = 10_000
    with pytest.raises(WorkerStalledError, match=r"faust delivers nothing, 10000 records behind"):
        scene.watch(100, joins=10)


def test_an_agent_that_waits_for_room_is_no_dead_consumer() -> None:
    scene = Scene()
    scene.end, scene.waits_for_room = 10_000, True
    scene.watch(1_000, joins=1)


def test_a_thread_that_hangs_ends_the_worker() -> None:
    scene = Scene()
    scene.position = scene.received = scene.end
    with pytest.raises(WorkerStalledError, match="has not come round"):
        scene.watch(100, turns=False)


def test_time_in_which_the_cluster_could_not_be_seen_does_not_count() -> None:
    scene = Scene()
    scene.received = scene.end
    scene.watch(40)
    scene.now += 300
    scene.watch(40)
    with pytest.raises(WorkerStalledError):
        scene.watch(40)


def test_a_short_outage_counts_for_little_and_slow_looks_still_count() -> None:
    scene = Scene()
    scene.watch(40)
    scene.now += 25
    with pytest.raises(WorkerStalledError, match=r"for 6[0-9] s"):
        scene.watch(60)
    assert scene.now > 1_000 + 60 + 25 - COUNTED_SECONDS
    slow = Scene()
    with pytest.raises(WorkerStalledError):
        slow.watch(200, step=2 * COUNTED_SECONDS)
