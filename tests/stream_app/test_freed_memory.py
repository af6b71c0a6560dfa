"""What a long-lived process has freed goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from stream_app.freed_memory import GivesBack

ROOT = Path(__file__).resolve().parents[2]
# Takes 200 MB in small pieces, frees all but the last one, and prints the MB that stay with and without the thread.
SCRIPT = """
import time
from stream_app.freed_memory import GivesBack
def anonymous():
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("RssAnon")) / 1_024
before = anonymous()
pieces = [bytearray(4_000) for _ in range(50_000)]
del pieces[:-1]
kept = anonymous() - before
with GivesBack(every=0.05):
    deadline = time.monotonic() + 120
    while anonymous() - before > 20 and time.monotonic() < deadline:
        time.sleep(0.05)
print(kept, anonymous() - before)
"""


GLIBC = hasattr(ctypes.CDLL(None), "malloc_trim") and Path("/proc/self/status").exists()


@pytest.mark.skipif(not GLIBC, reason="no glibc on Linux: nothing gives back here (musl, macOS), and what stays is not bounded")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    kept, left = map(float, done.stdout.split())
    assert kept > 150, "the C library gives back by itself here: the thread is not needed"
    assert left <= 20


def test_where_the_c_library_cannot_give_back_nothing_fails() -> None:
    gives = GivesBack(every=0.001)
    gives._trim = None  # As on musl and macOS.
    with gives:
        pass
    assert not gives._thread.is_alive()
