"""``freshet train`` on an embedded log: as a command, from a replay on, and what it shows."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from learners.metrics import MetricOptions
from stream_app.cli import main
from stream_app.entrant import Entrant
from stream_app.live_reader import Lag
from stream_app.live_view import line_of, table_of
from stream_app.oracle import Oracle
from stream_app.train_metrics import TrainMetrics, TrainMetricsError
from stream_app.train_status import CheckpointStatus, Status
from tests.logs import made_up_log

OPTIONS = ("--model", "trend", "--threads", "1", "--set", "replay.batch_requests=20")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joined log of 300 made-up requests."""
    return made_up_log(tmp_path_factory.mktemp("train") / "log", 300)


def freshet(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[Any, str]:
    """Run a command; return the object it printed, and what it said."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out.strip() else None), err


def test_train_drains_goes_on_and_repeats(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ("train", "--log", log, "--run", run, *OPTIONS, "--drain", "--json")
    result, _ = freshet(capsys, *words)
    assert (result["requests"], result["batches"]) == (300, 15)
    assert pa.default_memory_pool().backend_name == "system"  # Arrow's own keeps what threads have freed.
    again, said = freshet(capsys, *words)
    assert "going on after 300 requests" in said
    assert again["models"] == result["models"]
    repeated, _ = freshet(capsys, "train", "--run", run, "--repeat", "--json")
    assert repeated["same"]
    assert repeated["digests"]["trend"] == result["models"]["trend"]["digest"]


def test_replay_then_live(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay of a part of the log, then the rest live: each row once."""
    to = 1_750_000_000_000 + 1_000_000
    freshet(capsys, "replay", "--log", log, "--run", tmp_path / "week", *OPTIONS, "--to", to, "--json")
    week = json.loads((tmp_path / "week" / "result.json").read_text())
    run = tmp_path / "run"
    result, _ = freshet(
        capsys, "train", "--log", log, "--run", run, "--from-run", tmp_path / "week", "--drain", "--json", "--threads", 1
    )
    assert 0 < week["requests"] < 300
    assert week["requests"] + result["requests"] == 300
    repeated, _ = freshet(capsys, "train", "--run", run, "--repeat", "--json")
    assert repeated["same"]
    weights_alone, _ = freshet(
        capsys, "train", "--log", log, "--run", tmp_path / "all", "--from-run", tmp_path / "week", "--from", "2001-01-01",
        "--drain", "--json",
    )  # fmt: skip
    assert weights_alone["requests"] == 300
    _, said = freshet(capsys, "train", "--log", log, "--run", tmp_path / "week", *OPTIONS, "--drain", code=2)
    assert "another config" in said or "is a replay's" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--log", "LOG", "--set", "join.label_window_ms=7"), "give the config that the join was given"),
        (("--log", "LOG", "--from-run", "nowhere"), "no run with a checkpoint"),
        (("--log", "LOG", "--kafka", "a:1"), "exclude each other"),
        ((), "give --kafka HOST:PORT, or --log DIR"),
        (("--log", "LOG", "--set", "train.guard_skill=2"), "train.guard_skill = 2"),
    ],
)
def test_what_is_refused(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    given = [str(log) if word == "LOG" else word for word in words]
    _, said = freshet(capsys, "train", *given, "--run", tmp_path / "run", "--model", "trend", "--drain", code=2)
    assert message in said


def status_of(**more: Any) -> Status:
    entrant = Entrant("egin", Oracle(), (), MetricOptions())
    entrant.learned, entrant.stats = 12_340, {"loss.click": 0.25, "loss.i2i": 0.5, "edges.i2i": 7.0}
    values: dict[str, Any] = {
        "batches": 12,
        "requests": 1_234,
        "ts": 1_750_000_000_000,
        "impressions_per_s": 4_321.0,
        "lag": Lag(3, 1_750_000_075_000),
        "queue_rows": 800,
        "queue_fill": 0.5,
        "checkpoint": CheckpointStatus("000000000010", 10, 0.0, 1.5, 4_096),
        "entrants": [entrant],
        "windows": {"egin": {"figures": {"auc": 0.75, "log_loss": 0.3}}},
    }
    return Status(**(values | more))


def test_a_status_as_a_line_and_as_a_table() -> None:
    from rich.console import Console

    line = line_of(status_of())
    assert "1,234 requests, 4,321 impressions/s, lag 800 rows and 3 blocks, 1 min 15 s of event time, queue 50%" in line
    assert "egin AUC 0.7500 log loss 0.3000" in line
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table_of(status_of()))
    shown = console.export_text()
    assert "click 0.2500  i2i 0.5000" in shown
    assert re.search(r"egin\s+0\.7500\s+0\.3000\s+12,340", shown)
    caught_up = status_of(lag=Lag(0, 1_750_000_075_000), queue_rows=0, checkpoint=CheckpointStatus(), windows={})
    assert "0 s of event time" in line_of(caught_up)
    assert "no checkpoint yet" in line_of(caught_up)


def test_prometheus_is_told() -> None:
    with TrainMetrics(0) as metrics:
        metrics.update(status_of(requests=1_000))
        metrics._updated = 0.0
        metrics.update(status_of())
        metrics.step(0.03)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(TrainMetricsError, match="--metrics-port"):
            TrainMetrics(metrics.port)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["freshet_trainer_rows_total"]) == 234
    assert float(values["freshet_trainer_lag_blocks"]) == 3
    assert float(values["freshet_trainer_lag_event_seconds"]) == 75
    assert float(values['freshet_trainer_window_auc{model="egin"}']) == 0.75
    assert float(values['freshet_trainer_loss{model="egin",part="i2i"}']) == 0.5
    assert float(values["freshet_trainer_checkpoint_bytes"]) == 4_096
    assert float(values['freshet_trainer_step_seconds_bucket{le="0.05"}']) == 1
    assert float(values["freshet_trainer_step_seconds_count"]) == 1
