"""What faust drives, without a broker: its own offline test context, and its commits."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.transport.consumer import Consumer

from stream_app.inbox import Inbox
from stream_app.kafka_config import KafkaConfig
from stream_app.live_join import JoinThread, Lease, LivePartition, WorkerOptions
from stream_app.worker import Delivery, delivered_topics, make_app, mend_commits
from stream_app.worker_metrics import WorkerMetrics


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
        self.joiners = JoinThread(lambda p, _: cast(LivePartition, self.opened[p]), self.metrics, self.errors.append)
        self.delivery = Delivery(
            self.joiners, delivered_topics(["actions", "impressions", "items", "samples"], "x."), self.metrics, self.lease
        )
        self.app = make_app(
            WorkerOptions(worker_id="w", state_dir=folder), KafkaConfig(servers=("localhost:1",)), self.delivery
        )
        self.joiners.start()
        self.joiners.assign([0, 1], 1).result(5)

    def agent(self, topic: str) -> Any:
        return next(agent for name, agent in self.app.agents.items() if topic in name)

    def held(self, topic: str, partition: int) -> list[tuple[int, int, bytes, bytes]]:
        inbox = self.opened[partition].inbox.topic(topic)
        position = inbox.start(0)
        held: list[tuple[int, int, bytes, bytes]] = []
        while records := inbox.read(0, position):
            held += [(record.offset, record.ts, record.key, record.value) for record in records]
            position = records[-1].offset + 1
        return held


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.joiners.stop().result(5)


def run(coroutine: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(coroutine)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def event(topic: str, partition: int, offset: int, ts_ms: int = 1_750_000_000_123, value: bytes | None = b"v") -> Any:
    message = SimpleNamespace(topic=f"x.{topic}", partition=partition, offset=offset, timestamp=ts_ms / 1_000, key=b"k")
    message.value = value
    return SimpleNamespace(message=message)


def test_there_is_an_agent_for_each_topic_that_is_keyed_by_user(worker: Worker) -> None:
    assert sorted(worker.app.agents) == ["inbox of x.actions", "inbox of x.impressions"]
    assert all(agent.concurrency == 1 for agent in worker.app.agents.values())


def test_an_agent_puts_what_comes_into_the_inbox_of_its_partition(worker: Worker) -> None:
    async def deliver() -> None:
        async with worker.agent("actions").test_context() as agent:
            for offset in range(5):
                await agent.put(key=b"u", value=b"raw %d" % offset, partition=offset % 2, wait=False)
            while worker.delivery.received.get(("actions", 0), 0) < 5:
                await asyncio.sleep(0.01)

    run(deliver())
    assert [(offset, value) for offset, _, _, value in worker.held("actions", 0)] == [(i, b"raw %d" % i) for i in (0, 2, 4)]
    assert [(offset, value) for offset, _, _, value in worker.held("actions", 1)] == [(i, b"raw %d" % i) for i in (1, 3)]
    assert worker.held("impressions", 0) == []


def test_time_stamps_keep_their_milliseconds(worker: Worker) -> None:
    stamps = [0, 1, 999, 1_750_000_000_123, 4_102_444_800_001]
    run(worker.delivery.take([event("actions", 0, i, ts) for i, ts in enumerate(stamps)]))
    assert [ts for _, ts, _, _ in worker.held("actions", 0)] == stamps


def test_what_is_delivered_twice_is_there_once_and_a_tombstone_is_an_empty_value(worker: Worker) -> None:
    run(worker.delivery.take([event("actions", 0, i) for i in (3, 4, 5)]))
    run(worker.delivery.take([event("actions", 0, i, value=None) for i in (4, 5, 6, 6, 9)]))
    inbox = worker.opened[0].inbox.topic("actions")
    assert [r.offset for r in inbox.read(0, 3)] == [3, 4, 5, 6]
    assert [(r.offset, r.value) for r in inbox.read(0, 7)] == [(9, b"")]


def test_an_agent_waits_while_the_inbox_is_full_until_the_joiner_has_gone_on(tmp_path: Path) -> None:
    worker = Worker(tmp_path, capacity=10)

    async def deliver() -> None:
        await worker.delivery.take([event("actions", 0, i) for i in range(10)])
        more = asyncio.ensure_future(worker.delivery.take([event("actions", 0, 10)]))
        await asyncio.sleep(0.2)
        assert not more.done()
        assert worker.delivery.waiting == {("actions", 0)}
        await worker.delivery.take([event("actions", 1, 0)])
        source = SimpleNamespace(topic="actions", position=6)
        worker.opened[0].inbox.acknowledge([cast(Any, source)])
        await asyncio.wait_for(more, 5)

    run(deliver())
    assert worker.delivery.waiting == set()
    assert worker.held("actions", 0)[-1][0] == 10
    worker.joiners.stop().result(5)


def test_a_revoked_partition_is_closed_before_the_group_goes_on_and_takes_no_more(worker: Worker) -> None:
    run(worker.delivery.revoked(worker.app, [SimpleNamespace(topic="x.actions", partition=1)]))
    assert worker.opened[1].closed
    assert not worker.opened[0].closed
    run(worker.delivery.take([event("actions", 1, 7), event("actions", 0, 7)]))
    assert [offset for offset, *_ in worker.held("actions", 0)] == [7]
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
