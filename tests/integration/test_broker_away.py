"""A broker that is away for a whole minute under load: worker and trainer go on by themselves, with their default patience."""

from __future__ import annotations

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
from tests.integration.worker_process import PATIENCE_S, Cluster, simulated, stop

AWAY_S = 60.0
REQUESTS = 6_000

# The client leaves sockets behind where it cannot connect.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_both_wait_for_a_minute_and_go_on(how: str, kafka_broker: Broker, tmp_path: Path) -> None:
    """A killed broker refuses connections; a paused one keeps those that are open, and nothing answers."""
    cluster, run = Cluster(kafka_broker.server, tmp_path), tmp_path / "run"
    words = ("train", "--kafka", kafka_broker.server, *cluster.sets(), "--run", run, "--model", "dnn")
    words += ("--checkpoint-seconds", "1.0")
    try:
        cluster.create(2)
        worker = cluster.worker()
        made = simulated(REQUESTS, 2)
        cluster.produce(made[: len(made) // 3])
        cluster.wait_for(lambda: SAMPLES in cluster.log.topics())
        trainer = freshet(*words)
        cluster.wait_for(lambda: bool(newest(run)) or trainer.poll() is not None)
        assert trainer.poll() is None, trainer.communicate()[1]
        load = threading.Thread(target=cluster.produce, args=(made[len(made) // 3 :], 500.0))
        load.start()
        time.sleep(3)
        assert load.is_alive(), "the load had ended before the broker went"
        if how == "killed":
            kafka_broker.kill()
        else:
            kafka_broker.pause()
        time.sleep(AWAY_S)
        if how == "killed":
            kafka_broker.start()
        else:
            kafka_broker.resume()
        load.join(PATIENCE_S)
        assert not load.is_alive()
        cluster.wait_until_joined()
        assert worker.poll() is None
        assert trainer.poll() is None, trainer.communicate()[1]
        assert stop(worker) == 0
        n_rows = cluster.check_against_embedded()
        assert n_rows + len(cluster.letters(IMPRESSIONS)) == REQUESTS
        time.sleep(2)
        trainer.send_signal(signal.SIGINT)
        _, err = trainer.communicate(timeout=PATIENCE_S)
        assert trainer.returncode == 0, err
        result = finish(*words)
        assert result["requests"] == n_rows
        check_learned_once(cluster.log, run, result, ())
    finally:
        cluster.close()
