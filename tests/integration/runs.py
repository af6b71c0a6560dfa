"""Runs in processes of their own: waited for by their checkpoints, killed at random moments."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 300
"""Bounds what hangs."""
TRIES = 9
"""A run may end before it is disturbed, where the machine lets it run and not the test; then another one is begun."""


def newest(run: Path) -> str:
    """Return the name of a run's newest checkpoint, nothing where there is none."""
    latest = run / "checkpoints" / "LATEST"
    return latest.read_text().strip() if latest.exists() else ""


def wait_for_checkpoint(run: Path, newer_than: str, process: subprocess.Popen[str]) -> None:
    """Wait until the run has written a checkpoint that is newer, or has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while newest(run) == newer_than and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


def killed_at_random_moments(folder: Path, start: Callable[[Path], subprocess.Popen[str]], kills: int) -> Path:
    """Return a run that was killed, up to ``kills`` times and once at least, each time after it wrote another checkpoint."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for n in range(TRIES):
        run, died = folder / f"run{n}", 0
        for _ in range(kills):
            before, process = newest(run), start(run)
            wait_for_checkpoint(run, before, process)
            time.sleep(moments.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=PATIENCE_S)
            died += process.returncode == -signal.SIGKILL
        if died:
            return run
    raise AssertionError(f"{TRIES} runs ended before any kill")
