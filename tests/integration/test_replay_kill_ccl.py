"""A replay of SEMI with CCL, drawn negatives and item vectors, killed at random moments, ends like one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.join import join_log
from stream_app.joiner.config import ItemSequence
from stream_app.log_config import write_joined, write_log_config
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog
from tests.integration.runs import PATIENCE_S, killed_at_random_moments
from tests.item_vectors import append_vectors

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "replay.batch_requests": "4",
    "replay.checkpoint_seconds": "0.2",
    "replay.window_ms": "300000",
    "replay.hr_negatives": "5",
    "models.semi.dim": "8",
    "models.semi.hidden": "[16]",
    "models.semi.ccl": "on",
    "models.semi.ccl_every": "3",
    "models.semi.ccl_batch": "8",
    "models.semi.ccl_capacity": "40",
    "models.semi.ccl_min_sessions": "[1, 1]",
}
VECTORS = {"vectors.dim": "6", "vectors.capacity": "50"}
"""Fewer than there are items, so that some give way."""

pytestmark = pytest.mark.slow


def start(log: Path, run: Path, options: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begin a replay, or go on with it."""
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "stream_app.cli", "replay", "--log", str(log), "--model", "semi", *settings]
    command += ["--threads", "1", "--run", str(run), "--json"]
    command += ["--resume"] if (run / "config.toml").exists() else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], run: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return result and metrics of a replay, without what a clock says."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    result = json.loads(out)
    del result["seconds"], result["models"]["semi"]["impressions_per_s"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("impressions_per_s", None)
        line.get("stats", {}).pop("ccl.time_share", None)
    return result, lines


@pytest.mark.parametrize("options", [OPTIONS, OPTIONS | VECTORS], ids=["ids", "vectors"])
def test_kill_9_brings_dictionaries_key_encoders_and_vectors_back(tmp_path: Path, options: dict[str, str]) -> None:
    log = tmp_path / "log"
    world = SimulateOptions(requests=400, rate=0.15, users=40, items=80, queries=20, categories=5, partitions=2)
    with EmbeddedLog(log) as opened:
        report = run_simulate(world, opened, log)
        assert report.first_ts is not None
        assert report.last_ts is not None
        middle = (report.first_ts + report.last_ts) // 2
        append_vectors(opened, report.first_ts, middle, dim=6, seed=1)
        append_vectors(opened, middle, report.last_ts, dim=6, seed=2)
        join = msgspec.structs.replace(report.join, item_sequences={"video": ItemSequence(), "product": ItemSequence(length=9)})
        join_log(opened, log / "joiner", join)
    write_log_config(log, join)
    write_joined(log, join)
    alone = finished(start(log, tmp_path / "alone", options), tmp_path / "alone")
    stats = [line["stats"] for line in alone[1] if "stats" in line]
    assert any("ccl.drift" in each for each in stats)
    assert ("vectors.dim" in options) == any(0 < each.get("vectors.missing", 0) < 1 for each in stats)
    assert 0 < alone[0]["models"]["semi"]["hr@3_drawn"] <= 1
    run = killed_at_random_moments(tmp_path, lambda run: start(log, run, options), 2)
    assert finished(start(log, run, options), run) == alone
