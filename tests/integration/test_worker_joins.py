"""The worker on a real broker: what it makes is what an embedded join makes of the same events and marks."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_app.events import ACTIONS, DEAD_LETTERS, IMPRESSIONS
from stream_app.topics import Message
from tests.integration.broker import Broker
from tests.integration.worker_process import Cluster, read_all, simulated, stop


@pytest.fixture
def cluster(kafka: str, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(kafka, tmp_path)
    yield made
    made.close()


def test_a_worker_makes_what_an_embedded_join_makes(cluster: Cluster) -> None:
    cluster.create(2)
    cluster.produce(simulated(1_500, 2))
    worker = cluster.worker()
    cluster.wait_until_joined()
    log = cluster.log
    ends = {(name, p): log.topic(name).end(p) for name in (ACTIONS, IMPRESSIONS) for p in range(2)}
    cluster.wait_for(lambda: log.committed(cluster.name) == ends)
    assert stop(worker) == 0
    assert cluster.check_against_embedded() > 1_000


@pytest.mark.slow
def test_a_worker_that_is_killed_under_load_loses_and_doubles_nothing(cluster: Cluster) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    cluster.create(2)
    load = threading.Thread(target=cluster.produce, args=(simulated(4_000, 2), 900.0))
    load.start()
    for _ in range(4):
        worker = cluster.worker()
        time.sleep(draw.uniform(1.0, 5.0))
        worker.kill()
        worker.wait()
    load.join()
    worker = cluster.worker()
    cluster.wait_until_joined()
    assert stop(worker) == 0
    assert cluster.check_against_embedded() > 1_000


@pytest.mark.slow
def test_workers_that_come_and_go_under_load_share_the_partitions(cluster: Cluster) -> None:
    cluster.create(3)
    load = threading.Thread(target=cluster.produce, args=(simulated(6_000, 3, seed=1), 700.0))
    load.start()
    shared = ("--snapshots", str(cluster.folder / "snapshots"), "--snapshot-seconds", "2")
    first = cluster.worker("w0", *shared)
    cluster.wait_for(lambda: "partitions assigned: [0, 1, 2]" in cluster.told("w0"))
    time.sleep(3)
    second = cluster.worker("w1", *shared)
    cluster.wait_for(lambda: "partitions assigned: [2]" in cluster.told("w1"))
    cluster.wait_for(lambda: "partitions assigned: [0, 1]" in cluster.told("w0"))
    time.sleep(3)
    assert stop(first) == 0
    # A worker that stops in good order gives its seat up; the others take over.
    cluster.wait_for(lambda: "partitions assigned: [0, 1, 2]" in cluster.told("w1"))
    cluster.hurry.set()
    load.join()
    cluster.wait_until_joined()
    assert stop(second) == 0
    assert "restoring snapshot" in cluster.told("w1")
    assert cluster.check_against_embedded() > 1_000


def bad_records(n: int) -> list[tuple[str, int, Message]]:
    """Return records that no joiner can use, of all kinds; three of 10 MB."""
    ts = 1_750_000_000_000
    values = [
        b"",
        b"{",
        b"null",
        b"\xff\xfe not text",
        b'{"user_id": "u1"}',
        b'{"user_id": 7, "item_id": [], "ts": "now", "kind": null}',
        b'{"user_id": "u1", "item_id": "i1", "ts": 5, "kind": "click"}',
        b'{"user_id": "u1", "item_id": "i1", "ts": 4102444800000, "kind": "click"}',
        b"[" * 2_000,
    ]
    made = [("actions" if i % 3 else "impressions", i % 2, Message(ts + i, b"", values[i % len(values)])) for i in range(n - 3)]
    huge = [("actions", i % 2, Message(ts + i * 1_000, b"", b'{"user_id": "' + b"x" * 10_000_000)) for i in range(3)]
    return sorted(made + huge, key=lambda each: each[2].ts)


@pytest.mark.slow
def test_bad_records_cost_a_dead_letter_each_and_no_restart(cluster: Cluster) -> None:
    cluster.create(2)
    worker = cluster.worker()
    cluster.produce(sorted(simulated(1_000, 2) + bad_records(10_000), key=lambda each: each[2].ts))
    cluster.wait_until_joined()
    cluster.wait_for(lambda: len(cluster.letters()) >= 10_000)
    assert stop(worker) == 0
    n_rows = cluster.check_against_embedded()
    n_late = 1_000 - n_rows
    assert len(cluster.letters()) == 10_000 + n_late
    n_letters = sum(len(read_all(cluster.log, DEAD_LETTERS, p)) for p in range(2))
    assert n_letters == 10_000 + n_late, "a bad record has more than one letter"
    assert cluster.told().count("partitions assigned") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # kafka-python's, when it cannot connect
def test_a_broker_that_is_killed_and_away_for_longer_than_a_session_is_waited_for(kafka_broker: Broker, tmp_path: Path) -> None:
    cluster = Cluster(kafka_broker.server, tmp_path)
    try:
        cluster.create(2)
        worker = cluster.worker()
        load = threading.Thread(target=cluster.produce, args=(simulated(3_000, 2), 900.0))
        load.start()
        time.sleep(4)
        kafka_broker.kill()
        time.sleep(15)
        kafka_broker.start()
        load.join()
        cluster.wait_until_joined()
        assert stop(worker) == 0
        assert cluster.check_against_embedded() > 1_000
    finally:
        cluster.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_worker_that_begins_when_the_broker_goes_joins_all_once_it_is_back(kafka_broker: Broker, tmp_path: Path) -> None:
    cluster = Cluster(kafka_broker.server, tmp_path)
    try:
        cluster.create(2)
        cluster.produce(simulated(500, 2))
        worker = cluster.worker()
        cluster.wait_for(lambda: "the joiners are process" in cluster.told())
        kafka_broker.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(15)
        kafka_broker.start()

        def joined() -> bool:
            # Before it has reached the cluster it ends with a message; once it has, it waits. The moment decides.
            nonlocal worker
            if worker.poll() is not None:
                assert worker.returncode != 0
                assert cluster.refused(), cluster.told()
                worker = cluster.worker()
            return cluster.joined()

        cluster.wait_for(joined)
        assert stop(worker) == 0
        assert cluster.check_against_embedded() > 300
    finally:
        cluster.close()
