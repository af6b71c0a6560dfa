"""A replay that is killed at random moments and gone on with ends like one that was left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import PATIENCE_S, TRIES, killed_at_random_moments, wait_for_checkpoint
from tests.logs import made_up_log

ROOT = Path(__file__).resolve().parents[2]
# Small steps, so that there are many moments to be killed at; checkpoints as often as they can be written.
SETTINGS = ("batch_requests=3", "checkpoint_seconds=0.2", "window_ms=300000")
OPTIONS = ("--threads", "1", *(word for setting in SETTINGS for word in ("--set", f"replay.{setting}")))
MODELS = ("--model", "dnn", "--model", "trend")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["joined", "raw"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 450 made-up requests: one that was joined before, and one that each replay joins on the fly."""
    return made_up_log(tmp_path_factory.mktemp("kill") / "log", 450, join=request.param == "joined")


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    """The result of a replay that was left alone, and its metrics."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = start(log, run)
    out, err = done.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0, err
    found = without_rates(json.loads(out)), metrics(run)
    assert len(found[1]) > 8
    return found


def start(log: Path, run: Path) -> subprocess.Popen[str]:
    """Begin a replay, or go on with it."""
    resume = ("--resume",) if (run / "config.toml").exists() else ()
    command = [
        sys.executable,
        "-m",
        "stream_app.cli",
        "replay",
        "--log",
        log,
        *MODELS,
        *OPTIONS,
        "--run",
        run,
        "--json",
        *resume,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(word) for word in (*command, *resume)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_rates(result: dict[str, Any]) -> dict[str, Any]:
    del result["seconds"]
    for model in result["models"].values():
        del model["impressions_per_s"]
    return result


def metrics(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("impressions_per_s", None)
    return lines


def test_kill_9_at_random_moments_changes_nothing(
    log: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[Any]]
) -> None:
    run = killed_at_random_moments(tmp_path, lambda run: start(log, run), 3)
    process = start(log, run)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert (without_rates(json.loads(out)), metrics(run)) == undisturbed


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(
    log: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[Any]]
) -> None:
    for n in range(TRIES):
        run = tmp_path / f"run{n}"
        process = start(log, run)
        wait_for_checkpoint(run, "", process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        if process.returncode:
            break
    assert (process.returncode, out) == (130, ""), err
    assert "stopping after this step" in err
    stopped = re.search(r"stopped after ([\d,]+) requests", err)
    assert stopped is not None
    assert 0 < int(stopped[1].replace(",", "")) < 450
    assert f"go on with: freshet replay --run {run} --resume" in err
    process = start(log, run)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert f"going on after {stopped[1]} requests" in err
    assert (without_rates(json.loads(out)), metrics(run)) == undisturbed
