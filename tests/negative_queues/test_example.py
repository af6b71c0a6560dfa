"""The page's example runs as it stands, and what it trains learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_learns() -> None:
    command = [sys.executable, "examples/train_with_queue.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = re.match(r"recall@20 (\S+) -> (\S+); the queue: {'fill': 1.0,", done.stdout)
    assert found, done.stdout
    before, after = (float(figure) for figure in found.groups())
    assert before < 0.15
    assert after > before + 0.2
