"""``taobao``, ``movielens`` and ``recbole``: small files as published, messy ones, and what the rows become."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression
from stream_app.importers.drawing import Clicks, Drawn, DrawOptions, Shown
from stream_app.importers.recent_keys import RecentKeys, pair_key
from stream_app.importers.registry import importer_kind
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.importers.source import SourceError, Tally
from stream_app.importers.time_sort import TimeSort
from stream_app.join import stream_samples
from stream_app.topics.embedded import EmbeddedLog
from stream_app.topics.memory import MemoryLog

S0 = 1_511_600_000
"""25 November 2017, in seconds."""


def imported(kind: str, path: Path, limit: int | None = None, **options: Any) -> tuple[MemoryLog, ImportReport]:
    log = MemoryLog()
    chosen = importer_kind(kind).read_options({"partitions": 1, **options})
    return log, run_import(kind, [path], log, None, chosen, limit=limit)


def events(log: MemoryLog, topic: str, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(r.value, type=kind) for r in log.topic(topic).read(0, 0, 1 << 30, 1 << 40)]


def actions(log: MemoryLog) -> list[Action]:
    return events(log, ACTIONS, Action)


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def taobao_lines(n_rows: int = 400, seed: int = 3) -> list[str]:
    """Lines in the order of users, as the public file has them."""
    rng = np.random.default_rng(seed)
    users, items = np.sort(rng.integers(1, 13, n_rows)), rng.integers(100, 130, n_rows)
    times, kinds = S0 + rng.integers(0, 5_000, n_rows), rng.choice(["pv", "pv", "pv", "cart", "fav", "buy"], n_rows)
    return [f"{u},{i},{i % 7},{k},{t}" for u, i, k, t in zip(users, items, kinds, times, strict=True)]


def test_taobao_rows_become_events_in_the_order_of_time(tmp_path: Path) -> None:
    lines = taobao_lines()
    path = written(tmp_path / "UserBehavior.csv", "\n".join(lines) + "\n")
    log, report = imported("taobao", path, warm_up=50, window=100, n_negatives=4)
    rows = sorted((line.split(",") for line in lines), key=lambda row: int(row[4]))
    wanted = [(u, i, 1_000 * int(t), "click" if k == "pv" else k, c) for u, i, c, k, t in rows]
    assert [(a.user_id, a.item_id, a.ts, a.kind, a.category) for a in actions(log)] == wanted
    clicks, n_requests = [row for row in wanted if row[3] == "click"], 0
    pages = {page.request_id: page for page in events(log, IMPRESSIONS, Impression)}
    of_click = [a for a in actions(log) if a.kind == "click"]
    for at, (user, item, ts, _, category) in enumerate(clicks):
        is_request = at >= 50 and any(u == user and t < ts for u, _, t, _, _ in clicks[:at])
        assert (of_click[at].request_id is not None) <= is_request
        if of_click[at].request_id is None:
            continue
        page = pages[of_click[at].request_id or ""]
        before = [row for row in clicks if row[2] < ts][-100:]
        mine = {row[1] for row in clicks[:at] if row[0] == user}
        others = {each.item_id for each in page.items} - {item}
        assert (page.user_id, page.ts, len(page.items), len(others)) == (user, ts, 5, 4)
        assert others <= {row[1] for row in before} - mine
        assert {each.item_id: each.category for each in page.items} == {e: str(int(e) % 7) for e in [*others, item]}
        assert page.features == {"in_window": float(item in {r[1] for r in before}), "clicked_before": float(item in mine)}
        n_requests += 1
        assert category == str(int(item) % 7)
    assert n_requests == report.impressions > 50
    assert report.ignored_features == ("in_window", "clicked_before")


def test_drawing_goes_on_over_batches(tmp_path: Path) -> None:
    """More rows than are read back from a sorted run at once."""
    lines = taobao_lines(30_000)
    log, report = imported("taobao", written(tmp_path / "UserBehavior.csv", "\n".join(lines)), warm_up=14_000, n_negatives=2)
    rows = sorted((line.split(",") for line in lines), key=lambda row: int(row[4]))
    views = [row for row in rows if row[3] == "pv"]
    window = [row[1] for row in views]
    pages = events(log, IMPRESSIONS, Impression)
    # 12 users and 30 items: a user has soon seen all there is, and what is left has no candidates.
    assert report.impressions + sum(report.left_out.values()) == len(views) - 14_000
    assert {each.item_id for page in pages for each in page.items} <= set(window)


def test_pages_come_in_every_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 30_000
    rows = zip(rng.integers(0, 300, n), rng.integers(0, 5_000, n), np.sort(rng.integers(0, 500_000, n)), strict=True)
    lines = [f"{user},{item},1,pv,{S0 + at}" for user, item, at in rows]
    log, report = imported("taobao", written(tmp_path / "UserBehavior.csv", "\n".join(lines)), warm_up=1_000, window=2_000)
    clicked: dict[str, set[str]] = {}
    recent: list[str] = []
    pages = {page.request_id: page for page in events(log, IMPRESSIONS, Impression)}
    for action in actions(log):
        mine = clicked.setdefault(action.user_id, set())
        if action.request_id is not None:
            others = {each.item_id for each in pages[action.request_id].items} - {action.item_id}
            assert len(others) == 9
            assert not others & mine
            assert others <= set(recent)
        mine.add(action.item_id)
        recent = [*recent[-2_000:], action.item_id]
    assert report.impressions >= n - 1_000 - 300


def test_taobao_joins_into_samples(tmp_path: Path) -> None:
    path = written(tmp_path / "UserBehavior.csv", "\n".join(taobao_lines()))
    log, report = imported("taobao", path, warm_up=20, n_negatives=3)
    blocks = list(stream_samples(log, report.join, 0))
    assert sum(map(len, blocks)) == report.impressions
    for block in blocks:
        labels = block.ragged("candidate.label")
        assert np.array_equal(np.add.reduceat(labels.values, labels.offsets[:-1]), np.ones(len(block)))
    assert sum(len(block.ragged("intent.item").values) for block in blocks) > 0


def test_taobao_leaves_out_rows_of_other_days(tmp_path: Path) -> None:
    text = f"1,2,3,pv,{S0}\n1,3,3,pv,-2134949234\n1,4,3,buy,2122867355\n1,5,3,pv,{S0 + 9}\n1,6,3,pv,1600000000\n"
    path = written(tmp_path / "UserBehavior.csv", text)
    log, report = imported("taobao", path)
    assert [a.item_id for a in actions(log)] == ["2", "5"]
    assert report.left_out == {"rows of other days than 25 November to 3 December 2017": 3}
    assert [a.item_id for a in actions(imported("taobao", path, dates="any")[0])] == ["2", "5", "6", "4"]
    old = written(tmp_path / "old.csv", "1,2,3,pv,1300000000\n")
    with pytest.raises(SourceError, match="no row that can be imported"):
        imported("taobao", old)


MESSY = "\ufeff1,10,3,pv,{0}\r\n\r\n2,11,3,buy,{1}\r\n\n   \n3,12,4,pv,{2}"


def test_byte_order_mark_crlf_blank_lines_and_no_last_newline(tmp_path: Path) -> None:
    log, report = imported("taobao", written(tmp_path / "UserBehavior.csv", MESSY.format(S0, S0 + 1, S0 + 2)))
    found = [(a.user_id, a.item_id, a.kind, a.category) for a in actions(log)]
    assert found == [("1", "10", "click", "3"), ("2", "11", "buy", "3"), ("3", "12", "click", "4")]
    assert report.errors == 0


GOOD = f"1,2,3,pv,{S0}\n"


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        ("taobao", "u.csv", f"{GOOD}1,2,pv,{S0}\n", r"u.csv:2: the line = .* has 4 fields by commas, not 5"),
        ("taobao", "u.csv", GOOD.replace(",", "\t"), "has 1 fields by commas, not 5 .*; it is split by tabs"),
        ("taobao", "u.csv", GOOD.replace(",", ";"), "it is split by semicolons"),
        (
            "taobao",
            "u.csv",
            f"user,item,category,behavior,timestamp\n{GOOD}",
            r"u.csv:1: behavior = 'behavior' is not one of pv, cart",
        ),
        ("taobao", "u.csv", f"\n\n{GOOD}1,2,3,pv,soon\n", r"u.csv:4: timestamp = 'soon' is not a time in whole seconds"),
        ("taobao", "u.csv", f"1,,3,pv,{S0}\n", r"u.csv:1: item = '' is not an id"),
        ("taobao", "u.csv", "1,2,3,pv,1_511_600_000\n", "timestamp = '1_511_600_000' is not"),
        ("taobao", "u.csv", "", "no row that can be imported"),
        ("taobao", "u.csv", "PK\x03\x04rest", "u.csv: this is a ZIP archive; unpack it first"),
        (
            "movielens",
            "r.dat",
            "1::1193::5::978300760\n1::661::3\n",
            r"r.dat:2: the line = '1::661::3' has 3 fields by '::', not 4",
        ),
        ("movielens", "r.dat", "1::1193::9::978300760\n", "r.dat:1: rating = '9' is not a rating from 0 to 5"),
        ("movielens", "r.dat", "1::1193::nan::978300760\n", "rating = 'nan' is not a rating"),
        ("movielens", "r.dat", "1::1193::5::97830\n", "timestamp = '97830' is not a time in seconds since 1970"),
        ("movielens", "ratings.csv", "user,movie,rating,time\n1,2,3,4\n", r"ratings.csv:1: 'user,movie.* no line of MovieLens"),
        (
            "movielens",
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,2,4.0\n",
            r"ratings.csv:2: .* has 3 fields by commas, not 4",
        ),
        ("movielens", "u.data", "196\t242\t3\t881250949\n186\t302\tx\t891717742\n", r"u.data:2: rating = 'x' is not a rating"),
        ("recbole", "x.inter", "user_id,item_id\n1,2\n", r"x.inter:1: 'user_id,item_id' is no typed name"),
        ("recbole", "x.inter", "user_id:token\titem_id:text\n", "is no typed name"),
        (
            "recbole",
            "x.inter",
            "user_id:token\titem_id:token\n1\t2\n",
            r"no field 'timestamp', found user_id, item_id; .* --time",
        ),
        (
            "recbole",
            "x.inter",
            "user_id:token\titem_id:token\ttimestamp:float\n1\t2\n",
            r"x.inter:2: .* has 2 fields by tabs, not 3",
        ),
        (
            "recbole",
            "x.inter",
            "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t0\n",
            r"x.inter:2: timestamp = '0' is not a time",
        ),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, kind: str, name: str, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        imported(kind, written(tmp_path / name, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    path.write_bytes(GOOD.encode() + b"1,\xff\xfe,3,pv,1511600000\n")
    with pytest.raises(SourceError, match=r"u.csv:2: .* is no UTF-8 text"):
        imported("taobao", path)


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "u.csv", f"{GOOD}1,2,3,view,{S0}\nx\n1,2,3,pv,\n1,9,3,buy,{S0 + 1}\n")
    log, report = imported("taobao", path, on_error="skip")
    assert ([a.item_id for a in actions(log)], report.errors) == (["2", "9"], 3)
    assert report.first_errors[0].startswith("u.csv:2: behavior = 'view' is not one of pv, cart, fav, buy")
    wrong = written(tmp_path / "wrong.csv", GOOD.replace(",", ";"))
    with pytest.raises(SourceError, match="no row that can be imported"):
        imported("taobao", wrong, on_error="skip")


RATINGS = [(1, 10, 5.0, 30), (2, 10, 3.0, 20), (1, 11, 4.0, 40), (2, 12, 4.5, 50), (3, 12, 0.5, 10)]


def movielens(tmp_path: Path, form: str) -> Path:
    t = [(u, m, f"{r:g}" if form != "csv" else f"{r:.1f}", 978_300_000 + at) for u, m, r, at in RATINGS]
    if form == "dat":
        return written(tmp_path / "ratings.dat", "".join(f"{u}::{m}::{r}::{at}\n" for u, m, r, at in t))
    if form == "csv":
        text = "userId,movieId,rating,timestamp\r\n" + "".join(f"{u},{m},{r},{at}\r\n" for u, m, r, at in t)
        return written(tmp_path / "ratings.csv", text)
    return written(tmp_path / "u.data", "".join(f"{u}\t{m}\t{r}\t{at}\n" for u, m, r, at in t))


@pytest.mark.parametrize("form", ["dat", "csv", "data"])
def test_movielens_in_its_three_formats(tmp_path: Path, form: str) -> None:
    log, report = imported("movielens", movielens(tmp_path, form), candidates="rows")
    rows = sorted(RATINGS, key=lambda row: row[3])
    found = [(int(a.user_id), int(a.item_id), a.value, a.ts - 978_300_000_000, a.kind) for a in actions(log)]
    assert found == [(u, m, r, 1_000 * at, "click" if r >= 4 else "rating") for u, m, r, at in rows]
    pages = events(log, IMPRESSIONS, Impression)
    assert [[item.item_id for item in page.items] for page in pages] == [[str(row[1])] for row in rows]
    block = SampleBlock.concat(list(stream_samples(log, report.join, 0)))
    assert block.ragged("candidate.label").values.tolist() == [float(row[2] >= 4) for row in rows]
    # The history is what was liked before: user 1 had liked movie 10.
    assert np.diff(block.ragged("click.item").offsets).tolist() == [0, 0, 0, 1, 0]
    assert report.ignored_features == ()


def test_movielens_positive_from(tmp_path: Path) -> None:
    log, _ = imported("movielens", movielens(tmp_path, "dat"), positive=4.5)
    assert [a.kind for a in actions(log)] == ["rating", "rating", "click", "rating", "click"]


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\ttags:token_seq\n"


def test_recbole_fields(tmp_path: Path) -> None:
    text = INTER + "ann\tx\t3\t881250949\ta b\nbob\ty\t5\t8.81250948e8\t\n"
    path = written(tmp_path / "small.inter", text)
    log, _ = imported("recbole", path)
    assert [(a.user_id, a.item_id, a.ts, a.kind, a.value) for a in actions(log)] == [
        ("bob", "y", 881_250_948_000, "click", None),
        ("ann", "x", 881_250_949_000, "click", None),
    ]
    log, _ = imported("recbole", path, label="rating", positive=4)
    assert [(a.kind, a.value) for a in actions(log)] == [("click", 5.0), ("other", 3.0)]
    log, _ = imported("recbole", path, label="rating", category="tags", on_error="skip")
    assert [a.category for a in actions(log)] == ["a b"]


def test_recbole_with_other_names(tmp_path: Path) -> None:
    text = "session:token\tproduct:token\tms:float\n1\t2\t1511600000123\n"
    log, report = imported(
        "recbole", written(tmp_path / "a.inter", text), user="session", item="product", time="ms", ts_unit="ms", limit=None
    )
    assert (actions(log)[0].ts, report.actions) == (1_511_600_000_123, 1)


def test_limit_counts_requests(tmp_path: Path) -> None:
    path = written(tmp_path / "UserBehavior.csv", "\n".join(taobao_lines()))
    log, report = imported("taobao", path, limit=5, warm_up=20, n_negatives=3)
    whole, _ = imported("taobao", path, warm_up=20, n_negatives=3)
    assert report.impressions == 5
    assert actions(whole)[: report.actions] == actions(log)


class KilledError(Exception):
    pass


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Cut off after each of some chunks, then run again: the same records as an import in one go."""
    path = written(tmp_path / "UserBehavior.csv", "\n".join(taobao_lines(6_000)))
    options = importer_kind("taobao").read_options({"partitions": 2, "warm_up": 100, "n_negatives": 3})
    with EmbeddedLog(tmp_path / "whole") as log:
        run_import("taobao", [path], log, tmp_path / "whole", options)
        whole = [[(r.ts, r.value) for r in log.topic(ACTIONS).read(p, 0, 1 << 30, 1 << 40)] for p in range(2)]

    def kill_at(share: float) -> Any:
        def on_progress(done: int, total: int, unit: str) -> None:
            if done >= share * total:
                raise KilledError

        return on_progress

    with EmbeddedLog(tmp_path / "cut") as log:
        for share in (0.05, 0.3, 0.99):
            with pytest.raises(KilledError):
                run_import("taobao", [path], log, tmp_path / "cut", options, on_progress=kill_at(share))
        report = run_import("taobao", [path], log, tmp_path / "cut", options)
        found = [[(r.ts, r.value) for r in log.topic(ACTIONS).read(p, 0, 1 << 30, 1 << 40)] for p in range(2)]
    assert report.resumed
    assert found == whole


@given(st.lists(st.integers(-4, 4)), st.integers(1, 9), st.integers(1, 4))
def test_a_sort_in_runs_is_a_stable_sort(times: list[int], run_rows: int, batch_rows: int) -> None:
    with TimeSort(run_rows, batch_rows) as sort:
        for at in range(0, len(times), 3):
            part = times[at : at + 3]
            sort.add(pa.record_batch({"ts": pa.array(part, pa.int64()), "n": [f"{at + i}" for i in range(len(part))]}))
        batches = [batch.to_pylist() for batch in sort.merged()]
    found = [(row["ts"], int(row["n"])) for batch in batches for row in batch]
    assert found == sorted((ts, n) for n, ts in enumerate(times))
    assert all(left[-1]["ts"] < right[0]["ts"] for left, right in pairwise(batches))


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 12), st.none() | st.integers(0, 40))
def test_keys_are_forgotten_oldest_first_and_never_too_early(keys: list[int], capacity: int, expected: int | None) -> None:
    recent = RecentKeys(capacity, expected)
    for at, key in enumerate(keys):
        recent.add(pair_key(key, 1))
        newest = list(dict.fromkeys(reversed(keys[: at + 1])))
        assert all(pair_key(each, 1) in recent for each in newest[:1])
        known = [each for each in range(31) if pair_key(each, 1) in recent]
        assert set(known) <= set(newest)
        assert len(known) <= 2 * capacity
    if len(set(keys)) < capacity:
        assert all(pair_key(each, 1) in recent for each in keys)


def test_growing_keeps_keys() -> None:
    recent = RecentKeys(50_000)
    keys = [pair_key(n, n % 7) for n in range(40_000)]
    for key in keys:
        recent.add(key)
    assert len(set(keys)) == 40_000
    assert all(key in recent for key in keys)
    assert pair_key(40_001, 0) not in recent


@pytest.mark.parametrize("capacity", [5_000, 8_193, 60_000])
def test_memory_of_keys_is_taken_at_once_and_stays(capacity: int) -> None:
    """Whether they are expected or not, the same keys are known; where they are, no table is ever made anew."""
    recent, growing = RecentKeys(capacity, 60_000), RecentKeys(capacity)
    first, tables = recent.nbytes, {recent.keys.new.ctypes.data, recent.keys.old.ctypes.data}
    for n in range(60_000):
        for keys in (recent, growing):
            keys.add(pair_key(n, 1))
        if n % 4_999 == 0 or n == 59_999:
            known = [pair_key(each, 1) in recent for each in range(max(0, n - 20_000), n, 97)]
            assert known == [pair_key(each, 1) in growing for each in range(max(0, n - 20_000), n, 97)]
    assert {recent.keys.new.ctypes.data, recent.keys.old.ctypes.data} == tables
    assert max(growing.nbytes, recent.nbytes) <= 64 * capacity
    assert growing.nbytes <= recent.nbytes == first


def test_memory_of_keys_is_that_of_the_file_where_it_is_small() -> None:
    recent = RecentKeys(4_000_000, 10_000)
    first = recent.nbytes
    for n in range(10_000):
        recent.add(pair_key(n, 1))
    assert recent.nbytes == first < 300_000


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("taobao", "UserBehavior.csv", "{user},{item},1,pv,{ts}"),
        ("movielens", "ratings.dat", "{user}::{item}::5::{ts}"),
        ("mind", "behaviors.tsv", "{n}\tU{user}\t11/13/2019 8:36:57 AM\tN1 N2\tN{item}-1 N5-0"),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str, name: str, line: str) -> None:
    """What Python and NumPy hold at half of the way and at the end; the events of what lies between are 20 MB."""
    rng = np.random.default_rng(0)
    n = 60_000
    rows = zip(range(n), rng.integers(0, 300, n), rng.integers(0, 3_000, n), rng.integers(0, 500_000, n), strict=True)
    path = written(tmp_path / name, "\n".join(line.format(n=at, user=u, item=i, ts=S0 + t) for at, u, i, t in rows))
    options = {"warm_up": 1_000, "window": 2_000, "remembered": 2_000} if kind != "mind" else {}
    held: list[tuple[float, int]] = []

    def on_progress(done: int, total: int, unit: str) -> None:
        held.append((done / total, tracemalloc.get_traced_memory()[0]))

    tracemalloc.start()
    try:
        with EmbeddedLog(tmp_path / "log") as log:
            run_import(kind, [path], log, None, importer_kind(kind).read_options(options), on_progress=on_progress)
    finally:
        tracemalloc.stop()
    half = [size for share, size in held if 0.3 < share < 0.7]
    late = [size for share, size in held if share > 0.8]
    assert max(late) < max(half) + 3_000_000, (half, late)


def test_pairs_are_ordered() -> None:
    assert pair_key(3, 5) != pair_key(5, 3)


def test_drawing_forgets_what_is_old() -> None:
    """With little memory an item that the user clicked long ago may be drawn for them again; with enough it never is."""
    n = 400
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, n)
    clicks = Clicks(rng.integers(0, 3, n), items, np.arange(n), items.tolist())

    def again(remembered: int) -> int:
        drawn = Drawn(DrawOptions(window=100, warm_up=0, n_negatives=2, remembered=remembered), Tally("stop"))
        clicked: set[tuple[int, int]] = set()
        found = 0
        for user, item, page in zip(clicks.users.tolist(), items.tolist(), drawn.of(clicks), strict=True):
            if page is not None:
                found += sum((user, each) in clicked for each in page.candidates if each != item)
            clicked.add((user, item))
        return found

    assert again(10_000) == 0 < again(20)


def plainly_drawn(options: DrawOptions, batches: list[Clicks]) -> list[Shown | None]:
    """What :class:`Drawn` does, click by click, with NumPy's generator, sets and dicts; nothing is forgotten."""
    rng = np.random.default_rng(options.seed)
    items: list[int] = []
    users_by_time: list[tuple[int, int]] = []
    pairs: set[tuple[int, int]] = set()
    pages: list[Shown | None] = []
    n_requests = 0
    for clicks in batches:
        for user, item, ts in zip(clicks.users.tolist(), clicks.items.tolist(), clicks.times.tolist(), strict=True):
            earlier = [at for at, (_, when) in enumerate(users_by_time) if when < ts]
            window = earlier[-options.window :]
            page, at = None, len(items)
            if at >= options.warm_up and any(users_by_time[each][0] == user for each in earlier):
                chosen: list[int] = []
                for _ in range(20):
                    for place in rng.integers(0, len(window), 256).tolist():
                        code = items[window[place]]
                        full = len(chosen) == options.n_negatives
                        if full or code in {item, *(items[each] for each in chosen)} or (user, code) in pairs:
                            continue
                        chosen.append(window[place])
                    if len(chosen) == options.n_negatives:
                        break
                if len(chosen) == options.n_negatives:
                    shown = [[item, *(items[each] for each in chosen)][i] for i in rng.permutation(len(chosen) + 1).tolist()]
                    in_window = item in {items[each] for each in window}
                    page = Shown(str(n_requests), shown, in_window, (user, item) in pairs)
                    n_requests += 1
            pages.append(page)
            items.append(item)
            users_by_time.append((user, ts))
            pairs.add((user, item))
    return pages


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 12), st.integers(0, 2)), min_size=1, max_size=120),
    st.integers(1, 30),
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 40),
)
def test_drawing_is_a_plain_loop(
    steps: list[tuple[int, int, int]], window: int, warm_up: int, n_negatives: int, batch: int
) -> None:
    options = DrawOptions(seed=7, window=window, warm_up=warm_up, n_negatives=n_negatives)
    users, items, steps_ms = (np.array(column) for column in zip(*steps, strict=True))
    times = np.cumsum(steps_ms)
    cuts = [0, *(int(np.searchsorted(times, times[at])) for at in range(batch, len(times), batch)), len(times)]
    batches = [
        Clicks(users[first:end], items[first:end], times[first:end], items[first:end].tolist())
        for first, end in pairwise(dict.fromkeys(cuts))
        if first < end
    ]
    tally = Tally("stop")
    drawn = Drawn(options, tally)
    assert [page for clicks in batches for page in drawn.of(clicks)] == plainly_drawn(options, batches)
