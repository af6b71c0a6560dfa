"""A worker is two processes, faust's and the joiners': what happens when either is killed or stands still."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.worker_process import PATIENCE_S, Cluster, simulated, stop

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(kafka: str, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(kafka, tmp_path)
    yield made
    made.close()


def joiners_of(cluster: Cluster, worker_id: str = "w0", n_started: int = 1) -> int:
    """Return the process of a worker's joiners once it has all partitions open."""

    def found() -> list[str]:
        return re.findall(r"the joiners are process (\d+)", cluster.told(worker_id))

    cluster.wait_for(lambda: len(found()) >= n_started and cluster.told(worker_id).count("partitions assigned") >= n_started)
    return int(found()[-1])


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_joiners_that_are_killed_end_the_worker_and_a_restart_loses_and_doubles_nothing(cluster: Cluster) -> None:
    cluster.create(2)
    load = threading.Thread(target=cluster.produce, args=(simulated(3_000, 2), 900.0))
    load.start()
    for n_started in (1, 2):
        worker = cluster.worker()
        joiners = joiners_of(cluster, n_started=n_started)
        time.sleep(3)
        os.kill(joiners, signal.SIGKILL)
        assert worker.wait(PATIENCE_S) != 0
        told = f"the joiners' process {joiners} was killed by signal 9; nothing is lost: the worker ends, start it again"
        assert told in cluster.told()
    load.join()
    worker = cluster.worker()
    cluster.wait_until_joined()
    assert stop(worker) == 0
    assert cluster.check_against_embedded() > 1_000


def test_joiners_end_when_their_worker_is_killed(cluster: Cluster) -> None:
    cluster.create(2)
    cluster.produce(simulated(500, 2))
    worker = cluster.worker()
    joiners = joiners_of(cluster)
    worker.kill()
    worker.wait()
    cluster.wait_for(lambda: not lives(joiners))
    worker = cluster.worker()  # The state is not locked.
    cluster.wait_until_joined()
    assert stop(worker) == 0
    assert cluster.check_against_embedded() > 300


def test_joiners_that_stand_still_end_the_worker(cluster: Cluster) -> None:
    cluster.create(2)
    cluster.produce(simulated(500, 2))
    worker = cluster.worker("w0", "--stall-seconds", "12")

    def joined() -> bool:
        # Where kernels are compiled first, or the machine is busy, beginning may take longer than that.
        nonlocal worker
        if worker.poll() is not None:
            worker = cluster.worker("w0", "--stall-seconds", "12")
        return cluster.joined()

    cluster.wait_for(joined)
    joiners = joiners_of(cluster)
    assert worker.poll() is None
    os.kill(joiners, signal.SIGSTOP)
    assert worker.wait(PATIENCE_S) != 0
    assert re.search(r"the joiner's thread has not come round, for \d+ s: the worker ends", cluster.told())
    assert not lives(joiners)
    assigned = cluster.told().count("partitions assigned")
    worker = cluster.worker()
    cluster.wait_for(lambda: cluster.told().count("partitions assigned") > assigned)
    assert stop(worker) == 0
    assert cluster.check_against_embedded() > 300


def test_a_worker_that_stood_still_while_another_took_over_writes_nothing(cluster: Cluster) -> None:
    cluster.create(2)
    made = simulated(3_000, 2)
    load = threading.Thread(target=cluster.produce, args=(made, 150.0))
    load.start()
    zombie = cluster.worker("w0")
    joiners = joiners_of(cluster)
    time.sleep(4)
    for pid in (zombie.pid, joiners):
        os.kill(pid, signal.SIGSTOP)
    heir = cluster.worker("w1")
    cluster.wait_for(lambda: "partitions assigned: [0, 1]" in cluster.told("w1"))
    time.sleep(3)
    for pid in (joiners, zombie.pid):
        os.kill(pid, signal.SIGCONT)
    cluster.wait_for(lambda: zombie.poll() is not None or cluster.told("w0").count("partitions assigned") > 1)
    cluster.hurry.set()
    load.join()
    cluster.wait_until_joined()
    assert cluster.check_against_embedded() > 1_000
    if zombie.poll() is None:
        assert stop(zombie) == 0
    else:
        assert re.search("no heartbeat was answered|another .* opened|fenced", cluster.told("w0"))
    assert stop(heir) == 0


def test_a_worker_that_is_told_to_stop_hands_its_partitions_over_at_once(cluster: Cluster) -> None:
    cluster.create(2)
    cluster.produce(simulated(500, 2))
    first = cluster.worker("w0")
    joiners_of(cluster, "w0")
    second = cluster.worker("w1")
    cluster.wait_for(lambda: "partitions assigned: [1]" in cluster.told("w1"))
    assert stop(first) == 0
    # Nobody waits for the end of a session: it has left the group, which keeps the seat of one that is only away.
    (group,) = cluster.log.admin.describe_groups([cluster.name]).values()
    assert [member["group_instance_id"].rpartition("-")[2] for member in group["members"]] == ["w1"]
    cluster.wait_for(lambda: "partitions assigned: [0, 1]" in cluster.told("w1"))
    cluster.wait_until_joined()
    assert stop(second) == 0
    assert cluster.check_against_embedded() > 300
