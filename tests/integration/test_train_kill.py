"""A trainer that is killed at random moments while samples come, on an embedded log and on a real broker, learns each once."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from learners.checkpoint import latest, load
from learners.samples import SampleBlock
from stream_app.events import ITEMS, RAW_TOPICS, SAMPLES
from stream_app.join import join_log
from stream_app.kafka_config import KafkaConfig
from stream_app.log_config import write_joined, write_log_config
from stream_app.order import read_order
from stream_app.runs import CHECKPOINTS, ORDER
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Log, Message
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.kafka import open_kafka
from tests.integration.broker import Broker
from tests.integration.runs import PATIENCE_S, newest, wait_for_checkpoint
from tests.item_vectors import append_vectors

ROOT = Path(__file__).resolve().parents[2]
# Small steps, so that there are many moments to be killed at; checkpoints all the time.
TRAIN = (
    "--model",
    "semi",
    "--model",
    "trend",
    "--threads",
    "1",
    "--checkpoint-seconds",
    "0.1",
    "--set",
    "replay.batch_requests=8",
    "--set",
    "models.semi.hidden=[16]",
    "--set",
    "vectors.dim=4",
    "--set",
    "vectors.capacity=60",
)
KILLS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joined log of 900 made-up requests, in blocks of a few, with vectors of its items that come all along."""
    path = tmp_path_factory.mktemp("kill") / "log"
    options = SimulateOptions(requests=900, rate=0.15, users=60, items=80, queries=20, categories=5, partitions=2)
    with EmbeddedLog(path) as log:
        report = run_simulate(options, log, path)
        assert report.first_ts is not None
        assert report.last_ts is not None
        append_vectors(log, report.first_ts, report.last_ts, dim=4, seed=1)
        write_log_config(path, report.join)
        join_log(log, path / "joiner", report.join, read_records=16)
    write_joined(path, report.join)
    return path


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def freshet(*words: object) -> subprocess.Popen[str]:
    """Start the program; it ends with the test at the latest."""
    command = [sys.executable, "-m", "stream_app.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


def kill_at_random_moments(run: Path, start: Callable[[], subprocess.Popen[str]], moments: random.Random, pace: Pace) -> None:
    """Start the trainer and kill it some time after it has written a checkpoint, several times."""
    for _ in range(KILLS):
        process, before = start(), newest(run)
        pace.more()
        wait_for_checkpoint(run, before, process)
        time.sleep(moments.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == -signal.SIGKILL, err


def finish(*words: object) -> dict[str, Any]:
    """Let the same command drain what is left; return what it says."""
    process = freshet(*words, "--drain", "--json")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "going on after" in err
    result: dict[str, Any] = json.loads(out)
    return result


def check_learned_once(log: Log, run: Path, result: dict[str, Any], source: Sequence[object]) -> None:
    """Hold the recorded order against the topic, and the weights against a repetition of it."""
    checkpoint = latest(run / CHECKPOINTS)
    assert checkpoint is not None
    steps = list(read_order(run / ORDER, load(checkpoint).extra["order_bytes"]))
    topic = log.topic(SAMPLES)
    n_rows = 0
    for p in range(topic.n_partitions):
        (last,) = topic.read(p, topic.end(p) - 1, 1)
        seqs = [seq for step in steps for t in step.taken if t.partition == p for seq in range(t.first, t.first + t.n)]
        assert seqs == list(range(SampleBlock.from_ipc(last.value).marks()[p] + 1))
        n_rows += len(seqs)
    assert result["requests"] == n_rows
    assert result["batches"] == len(steps)
    process = freshet("train", "--run", run, *source, "--repeat", "--json")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert json.loads(out)["digests"] == {name: model["digest"] for name, model in result["models"].items()}


class Pace:
    """How fast a thread appends, so that something is left for each life of the trainer, however long it takes to begin.

    Args:
        share: of all, that may be appended quickly in each life.
    """

    def __init__(self, share: float) -> None:
        self.hurry = threading.Event()
        """Set: all that is left, at once."""
        self._share = share
        self._allowed = share

    def more(self) -> None:
        """Another life has begun."""
        self._allowed += self._share

    def wait(self, done: float, *, stops: bool) -> None:
        """Wait a little; once so large a part is done as may be, until there is another life, or else ten times as long."""
        self.hurry.wait(0.05)
        slowly = 9
        while done >= self._allowed and (stops or slowly) and not self.hurry.wait(0.05):
            slowly -= 1


@contextlib.contextmanager
def appending(work: Callable[[Pace], None], share: float) -> Iterator[Pace]:
    """Run ``work`` on a thread, which is told to hurry at the end."""
    pace, errors = Pace(share), []

    def run() -> None:
        try:
            work(pace)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield pace
    finally:
        pace.hurry.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not errors, errors


def test_kill_9_while_a_join_appends(joined: Path, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    path, run = tmp_path / "log", tmp_path / "run"
    words = ("train", "--log", path, "--run", run, *TRAIN)

    def raw_events(pace: Pace) -> None:
        """Copy the raw events as if they came now, some every few ms; strictly in the order of time, and never stopping.

        A topic that is silent for a second is marked as idle up to the others' time: what is older and comes then is late.
        """
        with open_log(joined) as source, EmbeddedLog(path) as log:
            names = [name for name in source.topics() if name in RAW_TOPICS]
            events = [
                (record.ts, name, p, Message(record.ts, record.key, record.value))
                for name in names
                for p in range(source.topic(name).n_partitions)
                for record in source.topic(name).read(p, 0, 100_000)
            ]
            events.sort(key=lambda event: event[0])
            done = 0
            while done < len(events):
                some = events[done : done + (1_000 if pace.hurry.is_set() else 8)]
                for (name, p), part in itertools.groupby(some, key=lambda event: event[1:3]):
                    log.topic(name).append(p, [message for *_, message in part])
                done += len(some)
                pace.wait(done / len(events), stops=False)

    with open_log(joined) as source, EmbeddedLog(path) as log:
        for name, n_partitions in source.topics().items():
            if name in RAW_TOPICS:
                log.create(name, n_partitions)
    for name in ("freshet.toml", "joined.toml"):
        (path / name).write_bytes((joined / name).read_bytes())
    with appending(raw_events, 0.1) as pace:
        join = freshet("join", "--log", path, "--follow")
        kill_at_random_moments(run, lambda: freshet(*words), random.Random(seed), pace)
    join.send_signal(signal.SIGINT)
    assert join.wait(PATIENCE_S) == 0
    join.communicate()
    last = freshet("join", "--log", path)
    _, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    result = finish(*words)
    with open_log(path) as log:
        check_learned_once(log, run, result, ())
    assert result["requests"] == 900


def cluster(server: str, prefix: str) -> KafkaConfig:
    return KafkaConfig(servers=(server,), topic_prefix=prefix)


def samples_to(server: str, prefix: str, joined: Path) -> Callable[[Pace], None]:
    """Return what copies the items of a log to a broker, and then its samples, a block every few ms."""

    def work(pace: Pace) -> None:
        with open_log(joined) as source, open_kafka(cluster(server, prefix)) as log:
            items = source.topic(ITEMS)
            copies = log.create(ITEMS, items.n_partitions)
            for p in range(items.n_partitions):
                copies.append(p, [Message(each.ts, each.key, each.value) for each in items.read(p, 0, 10_000)])
            old = source.topic(SAMPLES)
            new = log.create(SAMPLES, old.n_partitions)
            end = max(old.end(p) for p in range(old.n_partitions))
            for position in range(end):
                for p in range(old.n_partitions):
                    if position < old.end(p):
                        (record,) = old.read(p, position, 1)
                        new.append(p, [Message(record.ts, b"", record.value)])
                pace.wait((position + 1) / end, stops=True)

    return work


def kafka_words(server: str, prefix: str, joined: Path, run: Path) -> tuple[object, ...]:
    options = ("--config", joined / "joined.toml", "--set", f"kafka.topic_prefix={prefix}", *TRAIN)
    return ("train", "--kafka", server, "--run", run, *options)


def test_kill_9_on_a_broker(kafka: str, joined: Path, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    prefix, run = f"kill-{seed}-", tmp_path / "run"
    words = kafka_words(kafka, prefix, joined, run)
    with appending(samples_to(kafka, prefix, joined), 0.18) as pace:
        kill_at_random_moments(run, lambda: freshet(*words), random.Random(seed), pace)
    result = finish(*words)
    with open_kafka(cluster(kafka, prefix)) as log:
        check_learned_once(log, run, result, ())
        deadline = time.monotonic() + PATIENCE_S
        assert result["requests"] == 900
        # Advisory, and after the checkpoint: for monitors of lag.
        while not log.committed("freshet-trainer"):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_broker_that_is_killed_and_stays_away_for_a_while(kafka_broker: Broker, joined: Path, tmp_path: Path) -> None:
    """The trainer goes on by itself; a first Ctrl-C ends it with a checkpoint and code 0."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments, run = random.Random(seed), tmp_path / "run"
    words = kafka_words(kafka_broker.server, "away-", joined, run)
    with appending(samples_to(kafka_broker.server, "away-", joined), 0.3) as pace:
        trainer = freshet(*words)
        for away in (0.0, 8.0):
            before = newest(run)
            pace.more()
            wait_for_checkpoint(run, before, trainer)
            time.sleep(moments.uniform(0.0, 0.5))
            kafka_broker.kill()
            time.sleep(away)
            kafka_broker.start()
    time.sleep(1.0)
    trainer.send_signal(signal.SIGINT)
    _, err = trainer.communicate(timeout=PATIENCE_S)
    assert trainer.returncode == 0, err
    assert "go on with the same command" in err
    result = finish(*words)
    with open_kafka(cluster(kafka_broker.server, "away-")) as log:
        check_learned_once(log, run, result, ())
    assert result["requests"] == 900
