"""``freshet train`` with item vectors: they come while it learns, and the run goes on and is repeated bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.cli import main
from stream_app.join import join_log
from stream_app.log_config import write_joined, write_log_config
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Message
from stream_app.topics.embedded import EmbeddedLog
from tests.item_vectors import append_vectors

DIM = 6
OPTIONS = ("--model", "semi", "--threads", "1", "--set", "replay.batch_requests=20", "--set", "models.semi.hidden=[8]")
VECTORS = ("--set", f"vectors.dim={DIM}", "--set", "vectors.capacity=60")


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, int, int]:
    """A joined log of 200 made-up requests, vectors up to the middle of its time, and when it begins and ends."""
    path = tmp_path / "log"
    options = SimulateOptions(requests=200, rate=0.15, users=40, items=80, queries=20, categories=5, partitions=2)
    with EmbeddedLog(path) as log:
        report = run_simulate(options, log, path)
        assert report.first_ts is not None
        assert report.last_ts is not None
        append_vectors(log, report.first_ts, (report.first_ts + report.last_ts) // 2, DIM, seed=1)
        join_log(log, path / "joiner", report.join)
    write_log_config(path, report.join)
    write_joined(path, report.join)
    return path, report.first_ts, report.last_ts


def freshet(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[Any, str]:
    """Run a command; return the object it printed, and what it said."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out.strip() else None), err


def test_a_run_with_vectors_goes_on_and_repeats(
    log: tuple[Path, int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, begin, end = log
    week, run = tmp_path / "week", tmp_path / "run"
    freshet(capsys, "replay", "--log", path, "--run", week, *OPTIONS, *VECTORS, "--to", (begin + end) // 2, "--json")
    words = ("train", "--log", path, "--run", run, "--from-run", week, *VECTORS, "--threads", 1, "--drain", "--json")
    first, _ = freshet(capsys, *words)
    assert 0 < first["requests"] < 200
    held = freshet(capsys, "inspect", run, "--json")[0]["vectors"]
    assert (held["dim"], held["items"], held["fill"]) == (DIM, 60, 1.0)
    assert held["evicted"] > 0
    order = (run / "order.jsonl").read_text().splitlines()
    assert all(sum(json.loads(line)["items"]) > 0 for line in order)
    assert main(["inspect", str(run)]) == 0
    assert "item vectors: 60 of 6 numbers, 100% of the store" in capsys.readouterr().out.replace("\n", " ")
    assert freshet(capsys, "train", "--run", run, "--repeat", "--json")[0]["same"]


def test_items_that_come_between_two_parts_of_a_run_count_in_the_second(
    log: tuple[Path, int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second part reads other samples too, so that there are steps in it."""
    path, begin, end = log
    run = tmp_path / "run"
    words = ("train", "--log", path, "--run", run, *OPTIONS, *VECTORS, "--drain", "--json")
    freshet(capsys, *words)
    before = freshet(capsys, "inspect", run, "--json")[0]["vectors"]["positions"]
    options = SimulateOptions(requests=100, rate=0.15, users=40, items=80, queries=20, categories=5, partitions=2, seed=9)
    with EmbeddedLog(tmp_path / "more") as more, EmbeddedLog(path) as opened:
        append_vectors(opened, begin, end, DIM, seed=2)
        report = run_simulate(options, more, tmp_path / "more")
        for name in ("impressions", "actions"):
            for p in range(2):
                later = [shifted(r.key, r.value, end - begin + 60_000) for r in more.topic(name).read(p, 0, 10_000)]
                opened.topic(name).append(p, later)
        join_log(opened, path / "joiner", report.join)
    result, said = freshet(capsys, *words)
    assert "going on after" in said
    after = freshet(capsys, "inspect", run, "--json")[0]["vectors"]["positions"]
    assert all(now > then for now, then in zip(after, before, strict=True))
    repeated, _ = freshet(capsys, "train", "--run", run, "--repeat", "--json")
    assert repeated["same"]
    assert repeated["digests"]["semi"] == result["models"]["semi"]["digest"]


def shifted(key: bytes, value: bytes, by: int) -> Message:
    """Return a record that much later."""
    event = msgspec.json.decode(value)
    event["ts"] += by
    return Message(event["ts"], key, msgspec.json.encode(event))


def test_another_length_is_refused(log: tuple[Path, int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run, other = log[0], tmp_path / "run", ("--set", "vectors.dim=5")
    freshet(capsys, "train", "--log", path, "--run", run, *OPTIONS, *VECTORS, "--drain", "--json")
    _, said = freshet(capsys, "train", "--log", path, "--run", run, *OPTIONS, *VECTORS, *other, "--drain", code=2)
    assert "vectors.dim was 6, now 5" in said
    more = ("--from-run", run, "--threads", 1, *VECTORS, *other, "--drain")
    _, said = freshet(capsys, "train", "--log", path, "--run", tmp_path / "other", *more, code=2)
    assert "dim = 6, this run vectors.dim = 5" in said
    _, said = freshet(capsys, "replay", "--log", path, *OPTIONS, *other, code=2)
    assert "has a vector of 6 numbers, vectors.dim = 5: set vectors.dim = 6" in said
