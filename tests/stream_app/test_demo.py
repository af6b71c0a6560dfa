"""The demo, small: it says what it does, and ends with a leaderboard that has the best possible AUC."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_app.cli import main


def test_demo_small(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["demo", "--requests", "200", "--model", "popularity", "--model", "trend", "--folder", str(tmp_path / "demo")]
    assert main(words) == 0
    out = capsys.readouterr().out
    for said in ("1. simulate", "2. join", "3. replay", "best possible", "freshet inspect"):
        assert said in out
    result = json.loads((tmp_path / "demo" / "run" / "result.json").read_text())
    assert list(result["models"]) == ["popularity", "trend"]
    assert 0 < result["models"]["trend"]["impressions"] < 2_000


def test_demo_for_programs_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--requests", "100", "--model", "popularity", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["best_auc"] > 0.5
    assert "1. simulate" in captured.err
