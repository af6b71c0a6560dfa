"""RocksDBs of one process share a budget: what they hold does not grow with their number or with what is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream_app.topics.rocks_memory import RocksMemory

ROOT = Path(__file__).resolve().parents[2]
N_PARTITIONS = 10
WRITTEN_MB = 7
"""A partition: less than a buffer of its own holds."""
BUDGET_MB = 16
# Prints how much anonymous memory writing 70 MB to ten partitions has taken, and what the budget counts.
WRITE = """
import os, sys, time
from stream_app.topics import Message
from stream_app.topics.embedded import EmbeddedLog
from stream_app.topics.rocks_memory import RocksMemory
folder, n_partitions, written_mb, budget_mb = sys.argv[1], *map(int, sys.argv[2:])
def anonymous():
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("RssAnon")) / 1_024
memory = RocksMemory(budget_mb)
with EmbeddedLog(folder, memory=memory) as log:
    topic = log.create("t", n_partitions)
    for p in range(n_partitions):
        topic.append(p, [Message(0, b"", b"")])
    before = anonymous()
    deadline = time.monotonic() + 60
    for i in range(written_mb * 16):
        for p in range(n_partitions):
            topic.append(p, [Message(i, b"", os.urandom(1 << 16))])
        # The budget is a soft one: who writes faster than files are made goes over it.
        while memory.used() > budget_mb << 21 and time.monotonic() < deadline:
            time.sleep(0.005)
    print(anonymous() - before, memory.used() / (1 << 20))
"""


def taken(folder: Path, budget_mb: int) -> tuple[float, float]:
    """Return the MB that a process has taken, by the system and by the budget."""
    words = [sys.executable, "-c", WRITE, str(folder), *map(str, (N_PARTITIONS, WRITTEN_MB, budget_mb))]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(512 << 10)}  # As the worker starts its joiners.
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=600)
    anonymous, counted = map(float, done.stdout.split())
    return anonymous, counted


def test_what_is_in_no_file_yet_stays_within_the_budget(tmp_path: Path) -> None:
    anonymous, counted = taken(tmp_path / "small", BUDGET_MB)
    # A buffer that is being made a file of, and a piece of 1 MB that each partition has begun, come on top.
    assert anonymous < 3 * BUDGET_MB
    assert counted < 3 * BUDGET_MB
    without, _ = taken(tmp_path / "large", 400)
    assert without > 0.8 * N_PARTITIONS * WRITTEN_MB


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="rocksdb_mb = 1: RocksDB needs 8 MB at least"):
        RocksMemory(1)
