"""The ``mind`` importer: both files as published, histories without times, and what may be wrong with a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, Action, Impression, Item, hash_id
from stream_app.importers.mind import MindOptions
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.importers.source import SourceError
from stream_app.join import stream_samples
from stream_app.topics.memory import MemoryLog

T = 1_573_634_217_000
"""11/13/2019 8:36:57 AM, UTC ms."""
BEHAVIORS = """\
3\tU2\t11/13/2019 8:36:58 AM\tN9\tN5-0 N1-1
1\tU1\t11/13/2019 8:36:57 AM\tN1 N2 N3\tN4-0 N5-1 N6-1
2\tU1\t11/12/2019 8:36:57 PM\tN1 N2 N3\tN4-1 N7-0
4\tU3\t11/14/2019 12:00:00 AM\t\tN1-0 N2-0
"""
NEWS = """\
N1\tlifestyle\tlifestyleroyals\tThe "Brands" Queen\tShop\thttps://x\t[]\t[{"Label": "a"}]
N4\tsports\tfootball_nfl\tTitle\tAbstract\thttps://y\t[]\t[]
N5\tnews\t\tTitle\t\thttps://z\t[]\t[]
"""


def imported(
    tmp_path: Path, behaviors: str = BEHAVIORS, news: str | None = NEWS, **more: Any
) -> tuple[MemoryLog, ImportReport]:
    files = []
    for name, text in (("behaviors.tsv", behaviors), ("news.tsv", news)):
        if text is not None:
            (tmp_path / name).write_bytes(text.encode())
            files.append(tmp_path / name)
    limit, log = more.pop("limit", None), MemoryLog()
    return log, run_import("mind", files, log, None, MindOptions(partitions=1, **more), limit=limit)


def events(log: MemoryLog, topic: str, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(r.value, type=kind) for r in log.topic(topic).read(0, 0, 1 << 30, 1 << 40)]


def test_histories_stand_before_the_first_impression_of_their_user(tmp_path: Path) -> None:
    log, report = imported(tmp_path)
    early = T - 12 * 3_600_000
    found = [(a.user_id, a.item_id, a.ts, a.kind, a.request_id) for a in events(log, ACTIONS, Action)]
    assert found == [
        ("U1", "N1", early - 3_000, "history", None),
        ("U1", "N2", early - 2_000, "history", None),
        ("U1", "N3", early - 1_000, "history", None),
        ("U1", "N4", early, "click", "2"),
        ("U1", "N5", T, "click", "1"),
        ("U1", "N6", T, "click", "1"),
        ("U2", "N9", T, "history", None),
        ("U2", "N1", T + 1_000, "click", "3"),
    ]
    pages = events(log, IMPRESSIONS, Impression)
    assert [(p.request_id, p.user_id, [i.item_id for i in p.items]) for p in pages] == [
        ("2", "U1", ["N4", "N7"]),
        ("1", "U1", ["N4", "N5", "N6"]),
        ("3", "U2", ["N5", "N1"]),
        ("4", "U3", ["N1", "N2"]),
    ]
    assert report.impressions == 4


def test_news_become_items_from_before_the_log(tmp_path: Path) -> None:
    log, report = imported(tmp_path)
    items = events(log, ITEMS, Item)
    assert [(i.item_id, i.category, i.features) for i in items] == [
        ("N1", "lifestyle", {"subcategory": "lifestyleroyals"}),
        ("N4", "sports", {"subcategory": "football_nfl"}),
        ("N5", "news", {}),
    ]
    assert {i.ts for i in items} == {min(a.ts for a in events(log, ACTIONS, Action)) - 1}
    block = SampleBlock.concat(list(stream_samples(log, report.join, 0)))
    by_request = dict(zip(block.column("request").tolist(), range(len(block)), strict=True))
    at = by_request[hash_id("request", "1")]
    labels, categories, history = (block.ragged(f"{name}") for name in ("candidate.label", "candidate.category", "click.item"))
    assert labels.values[slice(*labels.offsets[at : at + 2])].tolist() == [0.0, 1.0, 1.0]
    assert categories.values[slice(*categories.offsets[at : at + 2])].tolist() == [
        hash_id("category", "sports"),
        hash_id("category", "news"),
        0,
    ]
    assert history.values[slice(*history.offsets[at : at + 2])].tolist() == [
        hash_id("item", n) for n in ("N1", "N2", "N3", "N4")
    ]


def test_without_histories_and_without_news(tmp_path: Path) -> None:
    log, report = imported(tmp_path, news=None, histories=False)
    assert {a.kind for a in events(log, ACTIONS, Action)} == {"click"}
    assert (report.join.categories, report.join.candidate_features) == (False, {})
    assert report.join.item_sequences["click"].kinds == ("click",)


def test_files_are_told_by_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(BEHAVIORS)
    (tmp_path / "b.tsv").write_text(NEWS)
    report = run_import("mind", [tmp_path / "b.tsv", tmp_path / "a.tsv"], MemoryLog(), None)
    assert (report.impressions, report.items) == (4, 3)


def test_limit_counts_impressions(tmp_path: Path) -> None:
    log, report = imported(tmp_path, limit=2)
    assert [p.request_id for p in events(log, IMPRESSIONS, Impression)] == ["2", "1"]
    assert report.impressions == 2


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    plain, _ = imported(tmp_path)
    messy, report = imported(tmp_path, "\ufeff" + BEHAVIORS.replace("\n", "\r\n\r\n"), "\ufeff" + NEWS.replace("\n", "\r\n"))
    assert report.errors == 0
    for topic, kind in ((IMPRESSIONS, Impression), (ACTIONS, Action), (ITEMS, Item)):
        assert events(messy, topic, kind) == events(plain, topic, kind)


@pytest.mark.parametrize(
    ("behaviors", "message"),
    [
        ("1\tU1\t11/13/2019 8:36:57 AM\tN1-1\n", r"behaviors.tsv:1: the line = .* has 4 fields by tabs, not 5"),
        (BEHAVIORS + "5,U1,x\n", r"behaviors.tsv:5: the line"),
        ("1\tU1\t2019-11-13 08:36\tN1\tN1-1\n", r"behaviors.tsv:1: time = '2019-11-13 08:36' is no time like 11/13/2019"),
        ("1\tU1\t11/13/2019 8:36:57 AM\tN1\tN1 N2\n", r"list = 'N1' is no item with its label, like N55689-1; the test set"),
        ("1\tU1\t11/13/2019 8:36:57 AM\tN1\t\n", "list = '' is empty"),
        ("1\t\t11/13/2019 8:36:57 AM\tN1\tN1-1\n", "user = '' is missing"),
        ("", "no impression that can be imported"),
    ],
)
def test_bad_lines(tmp_path: Path, behaviors: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        imported(tmp_path, behaviors)


def test_bad_news(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"news.tsv:4: the line = 'N8,news' has 1 fields by tabs, not 3 or 8"):
        imported(tmp_path, news=NEWS + "N8,news\n")
    (tmp_path / "news.tsv").write_text(NEWS)
    with pytest.raises(SourceError, match=r"no behaviors.tsv among news.tsv"):
        run_import("mind", [tmp_path / "news.tsv"], MemoryLog(), None)


def test_bad_lines_can_be_left_out(tmp_path: Path) -> None:
    _, report = imported(tmp_path, BEHAVIORS + "x\n9\tU1\tnow\t\tN1-1\n", on_error="skip")
    assert (report.impressions, report.errors) == (4, 2)


def test_made_up_times_are_a_second_apart(tmp_path: Path) -> None:
    history = " ".join(f"N{n}" for n in range(500))
    log, _ = imported(tmp_path, f"1\tU1\t11/13/2019 8:36:57 AM\t{history}\tN1-1\n")
    times = np.array([a.ts for a in events(log, ACTIONS, Action)])
    assert (np.diff(times) == 1_000).all()
    assert times[-1] == T


def test_progress_moves_while_both_sorts_read(tmp_path: Path) -> None:
    lines = [f"{n}\tU{n % 900}\t11/13/2019 8:{n % 60:02}:57 AM\tN1 N2\tN4-0 N5-1\n" for n in range(9_000)]
    (tmp_path / "behaviors.tsv").write_text("".join(lines))
    log, seen = MemoryLog(), list[tuple[int, int]]()

    def on_progress(done: int, total: int, unit: str) -> None:
        n_written = sum(log.topic(IMPRESSIONS).end(partition) for partition in range(4)) if seen else 0
        seen.append((done, n_written))

    run_import("mind", [tmp_path / "behaviors.tsv"], log, None, on_progress=on_progress)
    total = (tmp_path / "behaviors.tsv").stat().st_size
    shares = [done / total for done, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    early = [share for share, (_, written) in zip(shares, seen, strict=True) if written == 0]
    assert len([share for share in early if 0 < share <= 0.2]) >= 4, "reading"
    assert len([share for share in early if 0.2 < share < 0.4]) >= 3, "the second sort"
