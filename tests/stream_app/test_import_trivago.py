"""The ``trivago`` importer: the file format as published, the order of steps, and the real log against its requests."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression, hash_id
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.importers.source import SourceError
from stream_app.importers.trivago import TrivagoOptions
from stream_app.join import stream_samples
from stream_app.topics.memory import MemoryLog

S0 = 1_541_548_800


def row(user: str, at: int, step: int, kind: str, reference: str, **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "session_id": "s" + user,
        "timestamp": S0 + at,
        "step": step,
        "action_type": kind,
        "reference": reference,
        "platform": "FR",
        "city": "Marseille, France",
        "device": "tablet",
        "current_filters": None,
        "impressions": None,
        "prices": None,
    } | more


ROWS = [
    row("B", 5, 1, "interaction item image", "11"),
    row("B", 5, 2, "interaction item info", "12"),
    row("B", 5, 3, "clickout item", "12", impressions="11|12|13", prices="70|80|90", current_filters="Hotel|Pool"),
    row("B", 6, 4, "search for item", "14"),
    row("A", 2, 1, "search for destination", "Marseille, France"),
    row("A", 5, 2, "filter selection", "Pool"),
    row("A", 5, 3, "clickout item", "99", impressions="11|12", prices="70|80"),
    row("A", 5, 4, "interaction item info", "unknown"),
    row("A", 7, 5, "clickout item", "11", impressions="11", prices="75", city="Paris, France"),
]


def imported(path: Path, limit: int | None = None, **options: Any) -> tuple[MemoryLog, ImportReport]:
    log = MemoryLog()
    return log, run_import("trivago", [path], log, None, TrivagoOptions(partitions=1, **options), limit=limit)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def events(log: MemoryLog, topic: str, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(r.value, type=kind) for r in log.topic(topic).read(0, 0, 1 << 30, 1 << 40)]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_rows_become_events_in_the_order_of_steps(tmp_path: Path, suffix: str) -> None:
    log, report = imported(written(tmp_path / f"train.{suffix}", ROWS))
    assert [(a.user_id, a.ts - S0 * 1_000, a.kind, a.item_id, a.request_id) for a in events(log, ACTIONS, Action)] == [
        ("B", 5_000, "image", "11", None),
        ("A", 5_001, "click", "99", None),  # not on its list: history only
        ("B", 5_001, "info", "12", None),
        ("B", 5_002, "click", "12", "0"),
        ("B", 6_000, "search", "14", None),
        ("A", 7_000, "click", "11", "1"),
    ]
    first, second = events(log, IMPRESSIONS, Impression)
    assert (first.request_id, first.user_id, first.ts, first.query) == ("0", "B", S0 * 1_000 + 5_002, "Marseille, France")
    assert first.query_category == ["Marseille, France", "France"]
    assert [(i.item_id, i.position, i.category, i.features["price"]) for i in first.items] == [
        ("11", 0, "Marseille, France", 70.0),
        ("12", 1, "Marseille, France", 80.0),
        ("13", 2, "Marseille, France", 90.0),
    ]
    geometric = (71 * 81 * 91) ** (1 / 3)
    in_list = [i.features["price_in_list"] for i in first.items]
    np.testing.assert_allclose(np.exp(np.array(in_list, float)), np.array([71, 81, 91]) / geometric)
    assert second.items[0].features == {"price": 75.0, "price_in_list": 0.0}
    assert first.features == {"platform": "FR", "device": "tablet", "filters": "Hotel|Pool", "n_filters": 2.0}
    assert (second.query, second.features["n_filters"]) == ("Paris, France", 0.0)
    assert report.left_out == {
        "search for destination": 1,
        "filter selection": 1,
        "lists without the item clicked (history only)": 1,
        "interaction item info without an item": 1,
    }


def test_more_than_a_thousand_steps_in_a_second_share_the_last_ms(tmp_path: Path) -> None:
    rows = [row("A", 0, step, "interaction item image", str(step)) for step in range(1_200)]
    log, _ = imported(written(tmp_path / "train.parquet", [*rows, row("A", 1, 1_200, "interaction item info", "7")]))
    found = events(log, ACTIONS, Action)
    assert [a.ts - S0 * 1_000 for a in found] == [*range(1_000), *[999] * 200, 1_000]
    assert [int(a.item_id) for a in found] == [*range(1_200), 7]


def test_limit_counts_requests(tmp_path: Path) -> None:
    log, report = imported(written(tmp_path / "train.parquet", ROWS), limit=1)
    assert report.impressions == 1
    assert events(log, ACTIONS, Action)[-1].request_id == "0"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            row("C", 9, 1, "clickout item", "11", impressions="11|12", prices="70"),
            r"train.csv:11: impressions = '2 items, 1 prices'",
        ),
        (row("C", 9, 1, "clickout item", "11"), r"train.csv:11: impressions = '0 items, 0 prices'"),
        (
            row("C", 9, 1, "clickout item", "11", impressions="11", prices="cheap"),
            r"train.csv:11: prices = 'cheap' is no number",
        ),
        (
            row("C", 9, 1, "clickout item", "11", impressions="11|12", prices="70|-1"),
            r"train.csv:11: prices = '70\|-1' is a list with a price below 0",
        ),
        (row("", 9, 1, "interaction item info", "11"), r"train.csv:11: user \(column 'user_id'\) = None is missing"),
        (
            row("C", 9, 1, "interaction item info", "11", timestamp="soon"),
            r"train.csv:11: ts \(column 'timestamp'\) = 'soon' is no time",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = tmp_path / "train.csv"
    rows = [{name: str(value) if value is not None else None for name, value in r.items()} for r in [*ROWS, bad]]
    written(path, rows)
    with pytest.raises(SourceError, match=message):
        imported(path)
    _, report = imported(path, on_error="skip")
    assert (report.errors, report.impressions, report.actions) == (1, 2, 6)
    assert "train.csv:11" in report.first_errors[0]


def test_a_column_is_missing(tmp_path: Path) -> None:
    rows = [{name: value for name, value in r.items() if name != "prices"} for r in ROWS]
    with pytest.raises(SourceError, match="no column 'prices'"):
        imported(written(tmp_path / "train.parquet", rows))


@pytest.mark.data
def test_the_real_log_gives_its_published_requests(data: Path) -> None:
    log, report = imported(data / "trivago_sessions_100k.parquet")
    block = SampleBlock.concat(list(stream_samples(log, report.join, 0)))
    wanted = pq.read_table(data / "trivago_requests.parquet").to_pylist()
    assert len(block) == len(wanted) == 13_596
    # Users of one second leave in another order than in the file, so requests meet by user and time, a user's in order.
    rows_of = defaultdict(list)
    for at in np.argsort(block.column("ts"), kind="stable").tolist():
        rows_of[int(block.column("user")[at]), int(block.column("ts")[at]) // 1_000 * 1_000].append(at)
    names = ("candidate.item", "candidate.label", "candidate_feature.price", "click.item", "click.ts")
    columns = {name: block.ragged(name) for name in names}
    n_same: defaultdict[bool, int] = defaultdict(int)

    def part(name: str, row: int) -> list[Any]:
        values, offsets = columns[name]
        return list(values[offsets[row] : offsets[row + 1]].tolist())

    for want in wanted:
        at = rows_of[hash_id("user", want["user_id"]), want["ts"]].pop(0)
        assert block.column("query")[at] == hash_id("query", want["query_text"])
        assert part("candidate.item", at) == [hash_id("item", str(item)) for item in want["candidates"]]
        assert part("candidate.label", at) == want["labels"]
        assert part("candidate_feature.price", at) == want["prices"]
        assert part("click.item", at) == [hash_id("item", str(item)) for item in want["history"]]
        assert [ts // 1_000 * 1_000 for ts in part("click.ts", at)] == want["history_ts"]
        n_same[bool(want["history"])] += 1
    assert min(n_same.values()) > 1_000
