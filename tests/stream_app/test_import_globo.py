"""The ``globo`` importer: small made logs against a brute-force reading of the definition, and the real log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression, hash_id
from stream_app.importers.drawing import EVALUATION_FEATURES
from stream_app.importers.globo import GloboOptions
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.importers.source import SourceError
from stream_app.join import stream_samples
from stream_app.topics.memory import MemoryLog

T0 = 1_506_826_800_000
SMALL = {"window": 40, "warm_up": 60, "n_negatives": 3, "partitions": 2}


def made_clicks(n_clicks: int = 600, seed: int = 1) -> dict[str, list[int]]:
    """Clicks with many equal times, some of them of one user, on articles that come and go."""
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, 25, n_clicks).tolist(),
        "click_article_id": (rng.integers(0, 20, n_clicks) + np.arange(n_clicks) // 30).tolist(),
        "click_timestamp": (T0 + np.cumsum(rng.integers(0, 2, n_clicks))).tolist(),
        "click_country": rng.integers(1, 4, n_clicks).tolist(),
    }


def write(path: Path, columns: dict[str, list[int]]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def imported(path: Path, limit: int | None = None, **options: Any) -> tuple[MemoryLog, ImportReport]:
    log = MemoryLog()
    report = run_import("globo", [path], log, None, GloboOptions(**options), limit=limit)
    return log, report


def events(log: MemoryLog, topic: str, kind: type[Any]) -> list[Any]:
    found = log.topic(topic)
    records = [r for p in range(found.n_partitions) for r in found.read(p, 0, 1 << 30, 1 << 40)]
    assert all(r.ts == msgspec.json.decode(r.value)["ts"] for r in records)
    return [msgspec.json.decode(r.value, type=kind) for r in records]


def in_order(columns: dict[str, list[int]]) -> list[tuple[int, int, int]]:
    return sorted(zip(columns["click_timestamp"], columns["user_id"], columns["click_article_id"], strict=True))


def test_requests_are_what_the_definition_says(tmp_path: Path) -> None:
    columns = made_clicks()
    log, report = imported(write(tmp_path / "clicks.parquet", columns), **SMALL)
    clicks = in_order(columns)
    due = [
        (ts, user, article)
        for i, (ts, user, article) in enumerate(clicks)
        if i >= 60 and any(u == user and t < ts for t, u, _ in clicks[:i])
    ]
    pages = sorted(events(log, IMPRESSIONS, Impression), key=lambda page: int(page.request_id))
    actions = events(log, ACTIONS, Action)
    by_request = {a.request_id: a for a in actions if a.request_id is not None}
    labelled = [(page.ts, int(page.user_id), int(by_request[page.request_id].item_id)) for page in pages]
    assert labelled == due
    assert sorted((a.ts, int(a.user_id), int(a.item_id)) for a in actions) == clicks
    assert report.events == {IMPRESSIONS: len(due), ACTIONS: len(clicks)}
    assert (report.first_ts, report.last_ts) == (clicks[0][0], clicks[-1][0])


def test_candidates_are_recent_distinct_and_new_to_the_user(tmp_path: Path) -> None:
    columns = made_clicks()
    log, report = imported(write(tmp_path / "clicks.parquet", columns), **SMALL)
    clicks = in_order(columns)
    clicked_by = {a.request_id: a for a in events(log, ACTIONS, Action)}
    flags = set()
    for page in events(log, IMPRESSIONS, Impression):
        click = clicked_by[page.request_id]
        at = next(i for i, c in enumerate(clicks) if c == (page.ts, int(page.user_id), int(click.item_id)))
        start = next(i for i, c in enumerate(clicks) if c[0] == page.ts)
        window = {str(article) for _, _, article in clicks[max(0, start - 40) : start]}
        before = {str(article) for _, user, article in clicks[:at] if user == int(page.user_id)}
        shown = [item.item_id for item in page.items]
        assert [item.position for item in page.items] == [0, 1, 2, 3]
        assert len(set(shown)) == 4
        assert click.item_id in shown
        assert set(shown) - {click.item_id} <= window - before
        given = (page.features["in_window"], page.features["clicked_before"])
        assert given == (float(click.item_id in window), float(click.item_id in before))
        assert page.features["country"] in {"1", "2", "3"}
        flags.add(given)
    assert len(flags) >= 3
    assert report.ignored_features == EVALUATION_FEATURES == ("in_window", "clicked_before")
    assert report.join.request_features == {"country": "id", "in_window": "float", "clicked_before": "float"}


def given_file(path: Path, log: MemoryLog, take: slice) -> Path:
    """Write some of a log's requests as a file of candidates, in their order."""
    clicked = {a.request_id: a.item_id for a in events(log, ACTIONS, Action)}
    pages = sorted(events(log, IMPRESSIONS, Impression), key=lambda page: int(page.request_id))[take]
    rows = [
        {
            "request_id": int(page.request_id),
            "user_id": int(page.user_id),
            "ts": page.ts,
            "candidates": [int(item.item_id) for item in page.items],
            "labels": [int(item.item_id == clicked[page.request_id]) for item in page.items],
            "in_window": bool(page.features["in_window"]),
            "clicked_before": bool(page.features["clicked_before"]),
        }
        for page in pages
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_given_candidates_become_exactly_the_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.parquet", made_clicks())
    drawn, _ = imported(path, **SMALL)
    some = given_file(tmp_path / "given.parquet", drawn, slice(20, 300, 3))
    log, report = imported(path, candidates=some, partitions=2)
    wanted = {
        page.request_id for page in sorted(events(drawn, IMPRESSIONS, Impression), key=lambda p: int(p.request_id))[20:300:3]
    }
    assert {p.request_id: p for p in events(log, IMPRESSIONS, Impression)} == {
        p.request_id: p for p in events(drawn, IMPRESSIONS, Impression) if p.request_id in wanted
    }
    actions = events(log, ACTIONS, Action)
    assert {a.request_id for a in actions} - {None} == wanted
    assert max(a.ts for a in actions) == max(p.ts for p in events(log, IMPRESSIONS, Impression))
    _, whole = imported(path, candidates=some, stop_after_last=False)
    assert whole.actions == 600 > report.actions


def test_given_candidates_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.parquet", made_clicks())
    drawn, _ = imported(path, **SMALL)
    given = given_file(tmp_path / "given.parquet", drawn, slice(0, 10))
    table = pq.read_table(given)
    pq.write_table(table.set_column(1, "user_id", pa.array([999] * 10)), tmp_path / "strange.parquet")
    with pytest.raises(SourceError, match=r"strange.parquet: request 1 \(user 999.*no click"):
        imported(path, candidates=tmp_path / "strange.parquet")
    pq.write_table(table.set_column(2, "ts", pa.array([T0 + 10**9] * 10)), tmp_path / "late.parquet")
    with pytest.raises(SourceError, match="after the last click"):
        imported(path, candidates=tmp_path / "late.parquet")
    pq.write_table(table.drop_columns(["labels"]), tmp_path / "bare.parquet")
    with pytest.raises(SourceError, match="no column 'labels'"):
        imported(path, candidates=tmp_path / "bare.parquet")
    with pytest.raises(SourceError, match="no file of candidates"):
        imported(path, candidates=tmp_path / "none.parquet")


def test_limit_counts_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.parquet", made_clicks())
    log, report = imported(path, limit=7, **SMALL)
    assert report.impressions == 7
    whole, _ = imported(path, **SMALL)
    assert set(map(repr, events(log, ACTIONS, Action))) < set(map(repr, events(whole, ACTIONS, Action)))


def test_too_few_candidates_leave_a_plain_action(tmp_path: Path) -> None:
    columns = {"user_id": [1, 1, 1], "click_article_id": [1, 2, 3], "click_timestamp": [T0, T0 + 1, T0 + 2]}
    _, report = imported(write(tmp_path / "clicks.parquet", columns), warm_up=0)
    assert report.events == {ACTIONS: 3}
    assert list(report.left_out.values()) == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"click_timestamp": [T0, T0 + 5, T0 + 2]}, r"clicks.parquet:3: click_timestamp = \d+ is 3 ms older.*sort the file"),
        ({"user_id": [1, None, 2]}, r"clicks.parquet:2: user_id is missing"),
        ({"user_id": ["a", "b", "c"]}, "column 'user_id' is string, whole numbers are needed"),
        ({"click_article_id": None}, "no column 'click_article_id'"),
    ],
)
def test_bad_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {"user_id": [1, 2, 3], "click_article_id": [1, 2, 3], "click_timestamp": [T0, T0, T0]} | change
    pq.write_table(
        pa.table({name: values for name, values in columns.items() if values is not None}), tmp_path / "clicks.parquet"
    )
    with pytest.raises(SourceError, match=message):
        imported(tmp_path / "clicks.parquet")


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "clicks.parquet").write_text("user_id,click_article_id\n")
    with pytest.raises(SourceError, match="not readable as Parquet"):
        imported(tmp_path / "clicks.parquet")


def joined(log: MemoryLog, report: ImportReport) -> SampleBlock:
    return SampleBlock.concat(list(stream_samples(log, report.join, 0)))


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_the_real_log_gives_its_published_requests(data: Path, given: bool) -> None:
    """Candidates, labels, histories and flags of the first requests, after the joiner; drawn and given ones alike."""
    n_requests = 3_000
    requests = data / "globo_requests.parquet"
    options = GloboOptions(partitions=1, candidates=requests if given else None)
    log = MemoryLog()
    report = run_import("globo", [data / "globo_clicks.parquet"], log, None, options, limit=n_requests)
    block = joined(log, report)
    wanted = next(pq.ParquetFile(requests).iter_batches(batch_size=n_requests)).to_pylist()
    row_of = {request: row for row, request in enumerate(block.column("request").tolist())}
    assert len(row_of) == n_requests == len(wanted)
    items, labels = block.ragged("candidate.item"), block.ragged("candidate.label")
    history, history_ts = block.ragged("click.item"), block.ragged("click.ts")

    def part(ragged: Any, row: int) -> list[Any]:
        return list(ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]].tolist())

    for want in wanted:
        row = row_of[hash_id("request", str(want["request_id"]))]
        assert block.column("ts")[row] == want["ts"]
        assert block.column("user")[row] == hash_id("user", str(want["user_id"]))
        assert part(items, row) == [hash_id("item", str(item)) for item in want["candidates"]]
        assert part(labels, row) == want["labels"]
        assert part(history, row) == [hash_id("item", str(item)) for item in want["history"]]
        assert part(history_ts, row) == want["history_ts"]
        for flag in EVALUATION_FEATURES:
            assert block.column(f"request_feature.{flag}")[row] == want[flag]
