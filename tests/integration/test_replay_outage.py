"""A replay that joins raw topics of a cluster, in a process that has a connection of its own: what it says when that breaks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stream_app.cli import main
from tests.integration.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a replay joins beside where it has two cores")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that read for it."""
    found = []
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            if b"stream_app.read_child" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(int(each))
    return found


def test_a_broker_that_is_gone_is_told_of(kafka_broker: Broker) -> None:
    small = ("--users", "40", "--items", "80", "--queries", "20", "--categories", "5")
    assert main(["simulate", "--kafka", kafka_broker.server, "--requests", "300", "--partitions", "2", *small]) == 0
    patience = ("--set", "kafka.outage_ms=2000", "--set", "kafka.request_timeout_ms=2000")
    words = ("replay", "--kafka", kafka_broker.server, "--model", "trend", "--threads", "1", "--json", *patience)
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_app.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (joining := children(process.pid)):  # It needs half a second before it asks for the broker.
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kafka_broker.kill()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, ""), err
    assert f"freshet: error: Kafka at {kafka_broker.server}: " in err
    assert "Traceback" not in err
    assert not Path(f"/proc/{joining[0]}").exists()
