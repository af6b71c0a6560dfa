"""kill -9 in the middle of saves: what is found afterwards is whole, and never older than what was acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from learners.checkpoint import checkpoints, latest, load, save

SAVER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from learners.checkpoint import latest, load, save

root, die_at = Path(sys.argv[1]), int(sys.argv[2])
found = latest(root)
step = load(found).step if found else 0

def on_step(number):
    if number == die_at and step > 2:
        os.kill(os.getpid(), signal.SIGKILL)

while True:
    step += 1
    arrays = {"a": np.full((400, 1000), step, np.int64), "b": np.full(7, step % 256, np.uint8)}
    save(root, step, {"m": arrays}, marks={"learn": {0: step}}, extra={"step": step}, arrays={"x": arrays}, on_step=on_step)
    print(step, flush=True)
"""


def start(root: Path, die_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SAVER, str(root), str(die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def acknowledged(process: subprocess.Popen[str]) -> int:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    whole = [line for line in out.split("\n")[:-1] if line]
    return int(whole[-1]) if whole else 0


def check(root: Path, at_least: int) -> int:
    path = latest(root)
    if path is None:
        assert at_least == 0
        return 0
    found = load(path)
    assert found.step >= at_least
    assert found.marks == {"learn": {0: found.step}}
    assert found.extra == {"step": found.step}
    for state in (found.models["m"], found.arrays["x"]):
        np.testing.assert_array_equal(state["a"], np.full((400, 1000), found.step))
        np.testing.assert_array_equal(state["b"], np.full(7, found.step % 256))
    for other in checkpoints(root):
        load(other)
    return found.step


def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng, step = random.Random(3), 0
    for number in range(8):
        process = start(tmp_path)
        assert process.stdout is not None
        first = [int(process.stdout.readline()) for _ in range(1 + number % 2)][-1]  # a slow disk saves once in the time below
        time.sleep(rng.random() * 0.12)
        os.kill(process.pid, signal.SIGKILL)
        step = check(tmp_path, max(step, first, acknowledged(process)))
    assert step >= 12


@pytest.mark.parametrize("die_at", range(1, 7))
def test_killed_before_each_step(tmp_path: Path, die_at: int) -> None:
    assert check(tmp_path, acknowledged(start(tmp_path, die_at))) == (3 if die_at == 6 else 2)
    save(tmp_path, 9, {}, marks={}, extra={}, arrays={}, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000009", "LATEST"]
