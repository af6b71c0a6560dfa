"""Worker, trainer and broker together under load, each killed at random moments, again and again, while a second worker comes
and goes: every impression is learned once, and the samples are those of an embedded join of the same events.

What is started while the broker is away ends with a message; here, as where it runs for real, somebody starts it again.
"""

from __future__ import annotations

import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_app.events import IMPRESSIONS, SAMPLES
from tests.integration.broker import Broker
from tests.integration.runs import newest
from tests.integration.test_train_kill import STARTED, check_learned_once, finish, freshet
from tests.integration.worker_process import PATIENCE_S, REFUSED, Cluster, catches, simulated, stop

ROUNDS = 3
"""Of each kind."""
PER_SECOND = 150.0
REQUESTS = 30_000
"""More than are produced before the last kill: their events last for eleven minutes."""

# The client leaves sockets behind where it cannot connect.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


class Live:
    """A worker and a trainer on a cluster that is produced to."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.cluster = Cluster(broker.server, folder)
        self.run = folder / "run"
        self.words = ("train", "--kafka", broker.server, *self.cluster.sets(), "--run", self.run, "--model", "dnn")
        self.words += ("--checkpoint-seconds", "1.0", "--threads", "1")
        self.enough = threading.Event()
        self.cluster.create(2)
        self.load = threading.Thread(target=self._produce)
        self.load.start()
        self.worker = self.cluster.worker()
        self.cluster.wait_for(lambda: SAMPLES in self.cluster.log.topics())
        self.trainer = freshet(*self.words)
        self.cluster.wait_for(lambda: bool(newest(self.run)) or self.trainer.poll() is not None)

    def _produce(self) -> None:
        """Append records at a pace until it is enough."""
        made, began = simulated(REQUESTS, 2), time.monotonic()
        for first in range(0, len(made), 50):
            if self.enough.is_set():
                return
            self.cluster.produce(made[first : first + 50])
            self.enough.wait(max(0.0, began + first / PER_SECOND - time.monotonic()))

    def kill_worker(self, draw: random.Random) -> None:
        """Kill it; the same command goes on."""
        self.worker.kill()
        self.worker.wait()
        self.worker = self.cluster.worker()

    def kill_trainer(self, draw: random.Random) -> None:
        """Kill it; the same command goes on."""
        self.trainer.kill()
        self.trainer.communicate()
        self.trainer = freshet(*self.words)

    def kill_broker(self, draw: random.Random) -> None:
        """Kill it; it is back after a while, and worker and trainer have stayed."""
        self.broker.kill()
        time.sleep(draw.uniform(0.0, 4.0))
        self.broker.start()
        time.sleep(1.0)
        self.start_again()

    def start_again(self) -> None:
        """Start what had just been started when the broker went."""
        if self.worker.poll() is not None:
            assert self.cluster.refused(), self.cluster.told()
            self.worker = self.cluster.worker()
        self.start_trainer_again()

    def start_trainer_again(self) -> None:
        """Start it where it ended for the broker that went."""
        if self.trainer.poll() is not None:
            assert self.trainer.communicate()[1].rstrip().endswith(REFUSED)
            self.trainer = freshet(*self.words)

    def joined(self) -> bool:
        """Whether all is joined; what ended because the broker was away, and was slow to, is started again meanwhile."""
        self.start_again()
        return self.cluster.joined()

    def hears(self) -> bool:
        """Whether the trainer hears Ctrl-C: one that was just started is to import first."""
        self.start_trainer_again()
        return catches(self.trainer.pid, signal.SIGTERM)

    def second_worker(self, draw: random.Random) -> None:
        """Let another worker come, and leave in good order or be killed."""
        assigned = self.cluster.told("w1").count("partitions assigned")
        guest = self.cluster.worker("w1")
        self.cluster.wait_for(lambda: self.cluster.told("w1").count("partitions assigned") > assigned)
        time.sleep(draw.uniform(0.0, 4.0))
        if draw.random() < 0.5:
            assert stop(guest) == 0
        else:
            guest.kill()
            guest.wait()

    def close(self) -> None:
        """End what still runs."""
        self.enough.set()
        while STARTED:
            process = STARTED.pop()
            process.kill()
            process.communicate()
        self.cluster.close()


@pytest.fixture
def live(kafka_broker: Broker, tmp_path: Path) -> Iterator[Live]:
    made = Live(kafka_broker, tmp_path)
    yield made
    made.close()


def test_each_is_killed_at_random_moments_under_load(live: Live) -> None:
    seed = secrets.randbits(32)
    draw = random.Random(seed)
    kinds = [live.kill_worker, live.kill_trainer, live.kill_broker, live.second_worker] * ROUNDS
    draw.shuffle(kinds)
    print(f"seed {seed}: {', '.join(kind.__name__ for kind in kinds)}")
    for kind in kinds:
        time.sleep(draw.uniform(0.5, 5.0))
        assert live.load.is_alive(), "the load had ended before the last kill"
        kind(draw)
    live.enough.set()
    live.load.join(PATIENCE_S)
    assert not live.load.is_alive()
    cluster = live.cluster
    cluster.wait_for(live.joined)
    assert stop(live.worker) == 0
    n_rows = cluster.check_against_embedded()
    shown = sum(cluster.log.topic(IMPRESSIONS).end(p) for p in range(2))
    assert n_rows + len(cluster.letters(IMPRESSIONS)) == shown > 500
    cluster.wait_for(live.hears)
    live.trainer.send_signal(signal.SIGINT)
    _, err = live.trainer.communicate(timeout=PATIENCE_S)
    assert live.trainer.returncode == 0, err
    result = finish(*live.words)
    assert result["requests"] == n_rows
    check_learned_once(cluster.log, live.run, result, ())
