"""What faust drives, without a broker: its own offline test context, and its commits."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.transport.consumer import Consumer
from faust.types import TP

from stream_app.inbox import Inbox
from stream_app.join_thread import JoinThread
from stream_app.kafka_config import KafkaConfig
from stream_app.lease import Lease
from stream_app.live_join import LivePartition
from stream_app.topics import Record, TopicError
from stream_app.worker import Delivery, batch_message, delivered_topics, make_app, mend_commits, run_delivery
from stream_app.worker_metrics import WorkerMetrics
from stream_app.worker_options import WorkerOptions

PATIENCE_S = 300
"""Bounds what hangs."""


class OpenPartition:
    """Stands for a partition that is owned: it has an inbox, and never steps."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.inbox = Inbox(folder, ["actions", "impressions"], capacity)
        self.inputs = ()
        self.n_direct = 0
        self.closed = False

    def step(self, report: object) -> bool:
        return False

    def close(self, report: object, *, snapshot: bool) -> None:
        self.inbox.close()
        self.closed = True


class Worker:
    """A delivery to the partitions 0 and 1, whose joiners stand still."""

    def __init__(self, folder: Path, capacity: int = 10_000) -> None:
        self.metrics = WorkerMetrics()
        self.lease = Lease(10.0)
        self.opened = {p: OpenPartition(folder / str(p), capacity) for p in (0, 1)}
        self.errors: list[BaseException] = []
        self.joiners = JoinThread(
            lambda p, _: cast(LivePartition, self.opened[p]), self.metrics, self.errors.append, leased=lambda: True
        )
        self.delivery = Delivery(
            self.joiners, delivered_topics(["actions", "impressions", "items", "samples"], "x."), self.metrics, self.lease
        )
        self.app = make_app(
            WorkerOptions(worker_id="w", state_dir=folder), KafkaConfig(servers=("localhost:1",)), self.delivery
        )
        self.joiners.start()
        self.joiners.assign([0, 1], 1).result(PATIENCE_S)

    def assign(self, delivery: Delivery) -> None:
        app = SimpleNamespace(consumer_generation_id=1)
        run(delivery.assigned(app, [TP(f"x.{name}", p) for name in ("actions", "impressions") for p in (0, 1)]))
        self.joiners.assign([], 1).result(PATIENCE_S)

    def agent(self, topic: str) -> Any:
        return next(agent for name, agent in self.app.agents.items() if topic in name)

    def held(self, topic: str, partition: int) -> list[Record]:
        inbox = self.opened[partition].inbox.topic(topic)
        position = inbox.start(0)
        held: list[Record] = []
        while records := inbox.read(0, position):
            held += records
            position = records[-1].offset + 1
        return held


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.joiners.stop().result(PATIENCE_S)


def run(coroutine: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(coroutine)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def batch(*offsets: int) -> list[Record]:
    return [Record(offset, 1_750_000_000_123, b"k", b"raw %d" % offset) for offset in offsets]


def test_there_is_an_agent_for_each_topic_that_is_keyed_by_user(worker: Worker) -> None:
    assert sorted(worker.app.agents) == ["inbox of x.actions", "inbox of x.impressions"]
    assert all(agent.concurrency == 1 for agent in worker.app.agents.values())


def test_a_cluster_that_cannot_be_reached_when_faust_begins_ends_the_worker_with_a_message(worker: Worker) -> None:
    with pytest.raises(TopicError, match=r"the cluster has gone\. Is a broker up there\? Check kafka\.servers"):
        run_delivery(worker.app, threading.Event())


def test_an_agent_puts_what_comes_into_the_inbox_of_its_partition(worker: Worker) -> None:
    async def deliver() -> None:
        async with worker.agent("actions").test_context() as agent:
            for partition, offsets in ((0, (0, 2)), (1, (1, 3)), (0, (4,))):
                await agent.put(key=None, value=batch(*offsets), partition=partition, wait=False)
            while worker.delivery.received.get(("actions", 0), 0) < 5:
                await asyncio.sleep(0.01)

    run(deliver())
    assert worker.held("actions", 0) == batch(0, 2, 4)
    assert worker.held("actions", 1) == batch(1, 3)
    assert worker.held("impressions", 0) == []


def test_what_was_fetched_of_a_partition_is_one_message_at_its_last_offset() -> None:
    stamps = [0, 1, 999, 1_750_000_000_123, 4_102_444_800_001]
    fetched = [
        SimpleNamespace(offset=7 + 2 * i, timestamp=ts, timestamp_type=0, key=None, value=None) for i, ts in enumerate(stamps)
    ]
    fetched[0].key, fetched[0].value = b"k", b"v"
    message = batch_message(TP("x.actions", 3), fetched, 5)
    assert (message.topic, message.partition, message.offset, message.generation_id) == ("x.actions", 3, 15, 5)
    value = cast(list[Record], message.value)
    assert [record.offset for record in value] == [7, 9, 11, 13, 15]
    assert [record.ts for record in value] == stamps
    assert [(record.key, record.value) for record in value] == [(b"k", b"v")] + [(b"", b"")] * 4


def test_what_is_delivered_twice_is_there_once(worker: Worker) -> None:
    worker.delivery.take("x.actions", 0, batch(3, 4, 5))
    worker.delivery.take("x.actions", 0, batch(4, 5, 6, 6, 9))
    assert worker.held("actions", 0) == batch(3, 4, 5, 6, 9)
    assert worker.delivery.received == {("actions", 0): 10}


def test_partitions_are_taken_from_while_they_are_open_and_have_room(tmp_path: Path) -> None:
    worker = Worker(tmp_path, capacity=10)
    delivery, wanted = worker.delivery, {TP(f"x.{name}", p) for name in ("actions", "impressions") for p in (0, 1)}
    assert delivery.with_room(wanted) == set(), "taken before it is open"
    worker.assign(delivery)
    assert delivery.with_room(wanted) == wanted
    delivery.take("x.actions", 0, batch(*range(10)))
    assert delivery.with_room(wanted) == wanted - {TP("x.actions", 0)}
    assert delivery.waiting == {("actions", 0)}
    worker.opened[0].inbox.acknowledge([cast(Any, SimpleNamespace(topic="actions", position=6))])
    assert delivery.with_room(wanted) == wanted
    assert delivery.waiting == set()
    worker.joiners.stop().result(PATIENCE_S)


def test_a_revoked_partition_is_closed_before_the_group_goes_on_and_takes_no_more(worker: Worker) -> None:
    worker.assign(worker.delivery)
    run(worker.delivery.revoked(worker.app, [TP("x.actions", 1)]))
    assert worker.opened[1].closed
    assert not worker.opened[0].closed
    assert worker.delivery.with_room({TP("x.actions", 0), TP("x.actions", 1)}) == {TP("x.actions", 0)}
    worker.delivery.take("x.actions", 1, batch(7))
    worker.delivery.take("x.actions", 0, batch(7))
    assert worker.held("actions", 0) == batch(7)
    assert worker.errors == []


def test_a_heartbeat_renews_the_lease_from_when_it_was_sent() -> None:
    now = [100.0]
    lease = Lease(10.0, lambda: now[0])
    assert not lease.held()
    lease.renew(95.0)
    assert lease.held()
    now[0] = 105.0
    assert not lease.held()
    lease.renew(104.0)
    lease.renew(101.0)
    now[0] = 113.9
    assert lease.held()
    lease.give_up()
    assert not lease.held()


ORIGINAL = cast(Any, Consumer)._new_offset


def committed(acked: list[int], gaps: list[tuple[int, int]], new_offset: Any) -> int | None:
    consumer = SimpleNamespace(
        _acked={"tp": list(acked)},
        _gap={"tp": importlib.import_module("intervaltree").IntervalTree.from_tuples(gaps)},
        _committed_offset={"tp": 3_501},
        _acked_index={"tp": set(acked)},
    )
    result: int | None = new_offset(consumer, "tp")
    return result


def test_faust_itself_stops_its_commits_at_an_offset_that_is_acknowledged_twice() -> None:
    """What :func:`mend_commits` is for: once this fails, faust has mended it, and ours may go."""
    assert committed([3_502, 3_503, 3_503, 3_504, 3_505], [], ORIGINAL) == 3_504
    assert committed([3_502, 3_503, 3_504, 3_505], [(3_503, 3_505)], ORIGINAL) == 3_504


def test_mended_commits_go_on() -> None:
    mend_commits()
    mend_commits()
    mended = cast(Any, Consumer)._new_offset
    assert mended is not ORIGINAL
    assert committed([3_502, 3_503, 3_503, 3_504, 3_505], [], mended) == 3_506
    assert committed([3_502, 3_503, 3_504, 3_505], [(3_503, 3_505)], mended) == 3_506
    assert committed([3_502, 3_504], [], mended) == 3_503
    assert committed([3_510], [], mended) is None
