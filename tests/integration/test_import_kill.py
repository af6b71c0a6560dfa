"""An import into a cluster that is killed at random moments goes on with the same command: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from stream_app.events import ACTIONS, IMPRESSIONS
from stream_app.importers.books import IMPORTS, TopicBook
from stream_app.importers.registry import importer_kind
from stream_app.importers.run import run_import
from stream_app.kafka_config import KafkaConfig
from stream_app.topics import Log, Message
from stream_app.topics.kafka import open_kafka
from stream_app.topics.kafka_writer import FencedError
from stream_app.topics.memory import MemoryLog

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300
"""Bounds what hangs."""
ROWS = 20_000


def rows(path: Path) -> Path:
    """Write a log of pages, half of them clicked."""
    made = []
    for i in range(ROWS):
        ts = 1_700_000_000_000 + 50 * i
        user = f"u{i * 7 % 501}"
        made.append({"request_id": f"r{i}", "user_id": user, "ts": ts, "items": [{"item_id": f"i{i % 37}"}]})
        if i % 2:
            made.append({"user_id": user, "item_id": f"i{i % 37}", "ts": ts + 20, "kind": "click", "request_id": f"r{i}"})
    path.write_bytes(b"\n".join(map(msgspec.json.encode, made)))
    return path


def contents(log: Log, name: str) -> list[list[Message]]:
    found = []
    topic = log.topic(name)
    for p in range(topic.n_partitions):
        messages, position = [], 0
        while records := topic.read(p, position):
            messages += [Message(*record[1:]) for record in records]
            position = records[-1].offset + 1
        found.append(messages)
    return found


def test_what_an_earlier_run_has_under_way_is_settled_before_it_is_counted(kafka: str) -> None:
    """A run that is only thought dead, and one that died within an append; what they had appended counts, and no more comes."""
    config = KafkaConfig(servers=(kafka,), topic_prefix=f"claim-{secrets.token_hex(4)}-")
    book = TopicBook(lambda fence: open_kafka(config, fence=fence))
    message = Message(1, b"u", b"one")
    with open_kafka(config) as log, book.claim("i", log) as earlier:
        ours = log.create(IMPRESSIONS, 1)
        for _ in range(3):
            earlier.topic(IMPRESSIONS).append(0, [message])
        assert ours.end(0) > 3, "the markers of transactions have offsets, too"
        dead = KafkaProducer(bootstrap_servers=kafka, transactional_id=f"{config.topic_prefix}import-i")
        dead.init_transactions()
        dead.begin_transaction()
        dead.send(config.topic_prefix + IMPRESSIONS, value=b"two", partition=0).get(60)
        with book.claim("i", log) as later:
            theirs = later.topic(IMPRESSIONS)
            assert book.appended(theirs, 0, 0) == 3
            with pytest.raises(FencedError, match="another process has taken over"):
                earlier.topic(IMPRESSIONS).append(0, [message])
            theirs.append(0, [message])
            assert book.appended(theirs, 0, 0) == 4
            assert book.appended(theirs, 0, ours.end(0)) == 0
            assert book.appended(theirs, 0, ours.end(0) + 5) == -5
        dead.close(timeout=1)
    with open_kafka(config) as log:
        assert contents(log, IMPRESSIONS) == [[message] * 4]


@pytest.mark.slow
def test_kill_9_of_an_import_into_kafka(kafka: str, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    draw, prefix = random.Random(seed), f"import-{seed}-"
    events = rows(tmp_path / "events.jsonl")
    words = ["import", "rows", str(events), "--layout", "events", "--partitions", "2", "--rate", "3000"]
    command = [sys.executable, "-m", "stream_app.cli", *words, "--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as log:

        def n_written() -> int:
            topics = log.topics()
            return sum(log.topic(name).end(p) for name in (IMPRESSIONS, ACTIONS) if name in topics for p in range(2))

        seen: list[int] = []
        for _ in range(3):
            before, process, deadline = n_written(), start(), time.monotonic() + PATIENCE_S
            try:
                while n_written() == before:
                    assert process.poll() is None, (before, seen, process.returncode)
                    assert time.monotonic() < deadline, "nothing was written"
                time.sleep(draw.uniform(0.0, 0.4))
                process.send_signal(signal.SIGKILL)
            finally:
                process.kill()
                print(process.communicate()[0])
            assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"
            seen.append(n_written())
        assert 0 < seen[0] < seen[1] < seen[2], "killed too early to show anything"
        last = start()
        said, _ = last.communicate(timeout=PATIENCE_S)
        assert last.returncode == 0, said
        expected = MemoryLog()
        options = importer_kind("rows").read_options({"layout": "events", "partitions": 2})
        run_import("rows", [events], expected, None, options)
        for name in (IMPRESSIONS, ACTIONS):
            assert contents(log, name) == contents(expected, name)
        written = n_written()
        again = start()
        said, _ = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, said
        assert "this was complete before: nothing was written" in said
        assert n_written() == written
        assert log.topics()[IMPORTS] == 1
