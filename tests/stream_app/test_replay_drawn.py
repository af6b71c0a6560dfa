"""HR@3 among drawn negatives in a replay: in the result and the leaderboard, the same after a stop, learned by nobody."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from learners.checks import random_block, replaced
from learners.samples import SampleSchema
from stream_app.config import ConfigError, Layer, RunConfig, resolve
from stream_app.entrants import build_entrants
from stream_app.replay import Replay, Step
from stream_app.report.leaderboard import leaderboard
from stream_app.results import result_of, standings_of
from stream_app.runs import RunFolder
from stream_app.sample_sources import TopicSource
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog

SCHEMA = SampleSchema(generation="drawn")


def config_of(evaluation: str, **options: Any) -> RunConfig:
    replay = {"models": ["dnn", "popularity"], "eval": evaluation, "batch_requests": 32, "hr_negatives": 6, **options}
    return resolve([Layer("test", {"replay": replay, "models": {"dnn": {"dim": 4, "hidden": [8]}}})])


def samples() -> Topic:
    topic = MemoryLog().create("samples", 1)
    for at in range(30):
        block = random_block(SCHEMA, 64, seed=at, n_items=60)
        seqs = np.arange(64 * at, 64 * at + 64)
        block = replaced(block, seq=seqs, ts=1_000 + 10 * seqs, due=1_100 + 10 * seqs, partition=np.zeros(64, np.int32))
        topic.append(0, [Message(int(block.column("due")[-1]), b"", block.to_ipc())])
    return topic


def run(topic: Topic, config: RunConfig, folder: RunFolder | None = None, stop_after: int | None = None) -> Replay:
    replay = Replay(config, TopicSource(topic), build_entrants(config, SCHEMA), folder)
    if folder is not None and (checkpoint := folder.load()) is not None:
        replay.load(checkpoint)
    last = Step(0, 0, 0, None)

    def on_step(step: Step) -> None:
        nonlocal last
        last = step

    replay.run(on_step, lambda: stop_after is not None and last.batches >= stop_after)
    return replay


def reported(replay: Replay) -> dict[str, Any]:
    models = result_of(replay)["models"]
    return {name: {k: v for k, v in model.items() if k != "impressions_per_s"} for name, model in models.items()}


@pytest.mark.parametrize("evaluation", ["immediate", "delayed"])
def test_the_figure_is_there_the_same_after_a_stop_and_nothing_else_moves(evaluation: str, tmp_path: Path) -> None:
    topic, config = samples(), config_of(evaluation)
    whole = run(topic, config)
    found = reported(whole)
    assert all(0 < model["hr@3_drawn"] <= 1 for model in found.values())
    without = reported(run(topic, config_of(evaluation, hr_negatives=0)))
    assert without == {name: {k: v for k, v in model.items() if k != "hr@3_drawn"} for name, model in found.items()}
    with RunFolder.create(tmp_path / "run", config) as folder:
        first = run(topic, config, folder, stop_after=5)
        assert first.requests < whole.requests
        assert reported(run(topic, config, folder)) == found


def test_the_leaderboard_has_a_column_where_it_was_asked_for() -> None:
    replay = run(samples(), config_of("immediate"))
    console = Console(record=True, width=200, file=io.StringIO())
    leaderboard(console, standings_of(replay), {})
    assert "HR@3 drawn" in console.export_text()


def test_corrections_cannot_be_ranked() -> None:
    config = resolve([Layer("test", {"join": {"policy": "correct"}, "replay": {"models": ["dnn"], "hr_negatives": 5}})])
    with pytest.raises(ConfigError, match=r"hr_negatives ranks clicks when their request is scored"):
        Replay(config, TopicSource(samples()), build_entrants(config, SCHEMA))
