"""Workers as processes on a real broker, and what they should have made."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from learners.samples import SampleBlock
from stream_app.events import DEAD_LETTERS, IMPRESSIONS, MARKS, RAW_TOPICS, SAMPLES
from stream_app.join import stream_samples
from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Log, Message, Record
from stream_app.topics.kafka import KafkaLog, open_kafka
from stream_app.topics.memory import MemoryLog

ROOT = Path(__file__).resolve().parents[2]
JOIN = JoinConfig(label_window_ms=5_000, lateness_ms=200)
PATIENCE_S = 300.0
"""Bounds what hangs, nothing else: a worker has begun after five seconds, and after half a minute where the machine is busy."""
REFUSED = "Is a broker up there? Check kafka.servers"


class Cluster:
    """Topics of one test on a shared broker, and the workers that join them."""

    def __init__(self, server: str, folder: Path, reached: KafkaConfig | None = None) -> None:
        self.server = server
        self.folder = folder
        self.name = f"t{uuid4().hex[:8]}"
        self.config = msgspec.structs.replace(reached or KafkaConfig(), servers=(server,), topic_prefix=f"{self.name}.")
        self.log: KafkaLog = open_kafka(self.config)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.hurry = threading.Event()
        """Set: what is still to be produced comes at once, whatever its pace."""

    def worker(self, worker_id: str = "w0", *more: str) -> subprocess.Popen[bytes]:
        """Start a worker process."""
        words = ["join", "--kafka", self.server, "--app", self.name, "--worker-id", worker_id]
        words += ["--state", str(self.folder / worker_id), "--json"]
        words += self.sets()
        with (self.folder / f"{worker_id}.log").open("ab") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream_app.cli", *words, *more],
                cwd=ROOT,
                stdout=told,
                stderr=told,
                env={**os.environ, "FRESHET_DEBUG": "1"},
            )
        self.workers.append(process)
        return process

    def sets(self) -> list[str]:
        """Return the options that worker and trainer of these topics are given alike."""
        options = {
            "kafka.topic_prefix": self.config.topic_prefix,
            "join.label_window_ms": JOIN.label_window_ms,
            "join.lateness_ms": JOIN.lateness_ms,
            "join.max_foreign": 10_000,
        }
        return [word for key, value in options.items() for word in ("--set", f"{key}={value}")]

    def told(self, worker_id: str = "w0") -> str:
        """Return what a worker has printed; nothing before it was first started."""
        file = self.folder / f"{worker_id}.log"
        return file.read_text() if file.exists() else ""

    def refused(self, worker_id: str = "w0") -> bool:
        """Whether a worker has ended as it does where no broker is; its joiners may have had a last word."""
        return any(line.endswith(REFUSED) for line in self.told(worker_id).splitlines()[-5:])

    def produce(self, made: Sequence[tuple[str, int, Message]], per_second: float | None = None) -> None:
        """Append raw records in order, a few hundred at a time."""
        began = time.monotonic()
        for first in range(0, len(made), 200):
            by_place: dict[tuple[str, int], list[Message]] = {}
            for topic, partition, message in made[first : first + 200]:
                by_place.setdefault((topic, partition), []).append(message)
            for (topic, partition), messages in by_place.items():
                self.log.topic(topic).append(partition, messages)
            if per_second is not None:
                self.hurry.wait(max(0.0, began + first / per_second - time.monotonic()))

    def create(self, n_partitions: int) -> None:
        """Create the raw topics that the simulation fills."""
        for name in ("impressions", "actions", "items"):
            self.log.create(name, n_partitions)

    def wait_until_joined(self) -> None:
        """Wait until each impression is a row or a dead letter; fail with what the workers said."""
        self.wait_for(self.joined)

    def joined(self) -> bool:
        """Whether each impression is a row or a dead letter."""
        log = self.log
        if not {SAMPLES, DEAD_LETTERS} <= set(log.topics()):
            return False
        n = log.topic(SAMPLES).n_partitions
        made = sum(log.topic(IMPRESSIONS).end(p) for p in range(n))
        rows = sum(len(self.rows(p)) for p in range(n))
        return rows + len(self.letters(IMPRESSIONS)) >= made

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until something is so; fail with what the workers said."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            told = "\n".join(file.read_text()[-3_000:] for file in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"not done after {PATIENCE_S:.0f} s:\n{told}"
            time.sleep(0.3)

    def rows(self, partition: int) -> dict[int, dict[str, Any]]:
        """Return the samples of a partition by ``seq``; a row that is there twice must be the same."""
        found: dict[int, dict[str, Any]] = {}
        for record in read_all(self.log, SAMPLES, partition):
            for row in SampleBlock.from_ipc(record.value).batch.to_pylist():
                assert found.setdefault(row["seq"], row) == row
        return found

    def letters(self, topic: str | None = None) -> set[tuple[str, int, int]]:
        """Return the place of each record that became a dead letter."""
        n = self.log.topic(DEAD_LETTERS).n_partitions
        all_of = [msgspec.json.decode(r.value) for p in range(n) for r in read_all(self.log, DEAD_LETTERS, p)]
        return {(each["topic"], each["partition"], each["offset"]) for each in all_of if topic in (None, each["topic"])}

    def check_against_embedded(self) -> int:
        """Compare rows and ``seq`` with a join of the same events and marks in memory; return the number of rows."""
        copy = MemoryLog()
        for name, n_partitions in self.log.topics().items():
            if name in (*RAW_TOPICS, MARKS):
                topic = copy.create(name, n_partitions)
                for p in range(n_partitions):
                    records = read_all(self.log, name, p)
                    assert name == MARKS or [r.offset for r in records] == list(range(len(records)))
                    topic.append(p, [Message(r.ts, r.key, r.value) for r in records])
        n_rows = 0
        for p in range(self.log.topic(SAMPLES).n_partitions):
            join = msgspec.structs.replace(JOIN, max_foreign=10_000)
            expected = [row for block in stream_samples(copy, join, p) for row in block.batch.to_pylist()]
            rows = self.rows(p)
            assert sorted(rows) == list(range(len(expected)))
            assert [rows[seq] for seq in sorted(rows)] == expected
            n_rows += len(rows)
        return n_rows

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.workers:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.log.close()


def stop(process: subprocess.Popen[bytes]) -> int:
    """End a worker politely; return its exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE_S)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal by itself, as `freshet train` does SIGTERM once it has begun."""
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def read_all(log: Log, name: str, partition: int) -> list[Record]:
    """Return all records of a partition."""
    topic = log.topic(name)
    position, found = topic.start(partition), []
    while records := topic.read(partition, position, 10_000):
        found += records
        position = records[-1].offset + 1
    return found


def simulated(requests: int, n_partitions: int, seed: int = 0) -> list[tuple[str, int, Message]]:
    """Return (topic, partition, message) of a simulation, in the order of time."""
    log = MemoryLog()
    options = SimulateOptions(
        requests=requests, partitions=n_partitions, rate=50.0, label_window_ms=4_000, click_delay_ms=800, seed=seed
    )
    run_simulate(options, log, None)
    made = [
        (name, p, Message(r.ts, r.key, r.value))
        for name, n in log.topics().items()
        for p in range(n)
        for r in read_all(log, name, p)
    ]
    return sorted(made, key=lambda each: each[2].ts)
