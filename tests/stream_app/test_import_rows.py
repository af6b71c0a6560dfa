"""The ``rows`` importer: layouts, kinds of file, and what people get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS, Action, Impression, ImpressionItem, Item, User
from stream_app.importers.mapping import ActionColumns, FeatureColumn, RowsOptions, read_mapping
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.importers.source import SourceError
from stream_app.topics.memory import MemoryLog

S0 = 1_700_000_000
MAPPING = """
layout = "flat"
user = "visitor"
request = "page_view"
item = "sku"
ts = "shown_at"
ts_unit = "s"
label = "clicked"
category = "department"
features = { price = "float", maker = { column = "brand", kind = "id" } }
"""
FLAT: list[dict[str, Any]] = [
    {"visitor": 7, "page_view": "a", "sku": 1, "shown_at": S0, "clicked": 0, "department": "x", "price": 3.5, "brand": 5},
    {"visitor": 7, "page_view": "a", "sku": 2, "shown_at": S0, "clicked": 1, "department": None, "price": None, "brand": 6},
    {
        "visitor": 8,
        "page_view": "b",
        "sku": 1,
        "shown_at": S0 + 1,
        "clicked": 0,
        "department": "x",
        "price": 4.0,
        "brand": None,
    },
]
FLAT_EVENTS = [
    Impression(
        "a",
        "7",
        S0 * 1_000,
        [
            ImpressionItem("1", "x", 0, None, {"price": 3.5, "maker": "5"}),
            ImpressionItem("2", None, 1, None, {"maker": "6"}),
        ],
    ),
    Action("7", "2", S0 * 1_000, "click", "a"),
    Impression("b", "8", S0 * 1_000 + 1_000, [ImpressionItem("1", "x", 0, None, {"price": 4.0})]),
]


@pytest.fixture
def mapping(tmp_path: Path) -> RowsOptions:
    (tmp_path / "mapping.toml").write_text(MAPPING)
    return msgspec.structs.replace(read_mapping(tmp_path / "mapping.toml"), partitions=1)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix in (".csv", ".tsv"):
        pa.csv.write_csv(table_of(rows), path, pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    elif path.suffix == ".parquet":
        pq.write_table(table_of(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(
    files: list[Path], options: RowsOptions | None = None, limit: int | None = None
) -> tuple[dict[str, list[Any]], ImportReport]:
    options = options or RowsOptions()
    log = MemoryLog()
    report = run_import("rows", files, log, None, msgspec.structs.replace(options, partitions=1), limit=limit)
    kinds: dict[str, type[Any]] = {IMPRESSIONS: Impression, ACTIONS: Action, ITEMS: Item, USERS: User}
    found = {
        name: [msgspec.json.decode(r.value, type=kinds[name]) for r in log.topic(name).read(0, 0, 1 << 30, 1 << 40)]
        for name in log.topics()
    }
    return found, report


def replace(options: RowsOptions, **changes: Any) -> RowsOptions:
    return msgspec.structs.replace(options, **changes)


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_a_flat_log(tmp_path: Path, mapping: RowsOptions, suffix: str) -> None:
    found, report = imported([write(tmp_path / f"log.{suffix}", FLAT)], mapping)
    assert found == {IMPRESSIONS: [FLAT_EVENTS[0], FLAT_EVENTS[2]], ACTIONS: [FLAT_EVENTS[1]]}
    assert report.join.candidate_features == {"price": "float", "maker": "id"}
    assert (report.join.label_window_ms, report.join.query_length) == (0, 0)


def test_a_page_without_an_id_is_told_by_user_and_time(tmp_path: Path, mapping: RowsOptions) -> None:
    rows = [{k: v for k, v in row.items() if k != "page_view"} for row in FLAT]
    found, _ = imported([write(tmp_path / "log.csv", rows)], replace(mapping, request=None))
    assert [page.request_id for page in found[IMPRESSIONS]] == [f"7.{S0}000", f"8.{S0 + 1}000"]
    assert [(page.user_id, len(page.items)) for page in found[IMPRESSIONS]] == [("7", 2), ("8", 1)]
    assert found[ACTIONS][0].request_id == found[IMPRESSIONS][0].request_id


def test_later_clicks_are_put_in_the_order_of_time(tmp_path: Path, mapping: RowsOptions) -> None:
    delays = [500, 10, 20, 0, 300]
    rows = [
        {
            "visitor": n,
            "page_view": n,
            "sku": n,
            "shown_at": S0 + n,
            "clicked": 1,
            "at": S0 + n + delay,
            "department": "x",
            "price": 1,
            "brand": 1,
        }
        for n, delay in enumerate(delays)
    ]
    found, report = imported([write(tmp_path / "log.csv", rows)], replace(mapping, click_ts="at"))
    assert [a.ts // 1_000 - S0 for a in found[ACTIONS]] == sorted(n + delay for n, delay in enumerate(delays))
    assert [a.request_id for a in found[ACTIONS]] == ["3", "1", "2", "4", "0"]
    assert report.join.label_window_ms == 1_800_000


@pytest.mark.parametrize(
    ("label", "positive"),
    [(1, True), ("0.5", True), ("true", True), (True, True), (0, False), ("", False), (None, False), ("no", False)],
)
def test_labels(tmp_path: Path, mapping: RowsOptions, label: Any, positive: bool) -> None:
    found, _ = imported([write(tmp_path / "log.jsonl", [FLAT[0] | {"clicked": label}])], mapping)
    assert len(found[ACTIONS]) == positive


def test_labels_by_value(tmp_path: Path, mapping: RowsOptions) -> None:
    rows = [FLAT[0] | {"clicked": "view"}, FLAT[1] | {"clicked": "buy"}]
    found, report = imported([write(tmp_path / "log.csv", rows)], replace(mapping, positive=("buy",), label_kind="buy"))
    assert [(a.item_id, a.kind) for a in found[ACTIONS]] == [("2", "buy")]
    assert report.join.label_kinds == ("buy",)
    assert report.join.item_sequences["click"].kinds == ("buy",)


PAGES: list[dict[str, Any]] = [
    {"user_id": "u", "request_id": "a", "ts": S0 * 1_000, "query": "shoe", "query_category": ["c", "d"],
     "item_id": ["1", "2", "1"], "label": [0, 0, 1],
     "price": [1.0, None, 3.0], "device": "tablet", "category": ["x", None, "x"]},
    {"user_id": "v", "request_id": "b", "ts": S0 * 1_000, "query": None, "query_category": [], "item_id": ["3"],
     "label": [0], "price": [2.0], "device": None, "category": ["y"]},
]  # fmt: skip
PAGE = RowsOptions(layout="page", features={"price": "float"}, request_features={"device": "id"})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_log_of_pages(tmp_path: Path, suffix: str) -> None:
    found, report = imported([write(tmp_path / f"log.{suffix}", PAGES)], PAGE)
    first, second = found[IMPRESSIONS]
    assert first == Impression(
        "a", "u", S0 * 1_000,
        [
            ImpressionItem("1", "x", 0, None, {"price": 1.0}),
            ImpressionItem("2", None, 1),
            ImpressionItem("1", "x", 2, None, {"price": 3.0}),
        ],
        "shoe", ["c", "d"], None, {"device": "tablet"},
    )  # fmt: skip
    assert (second.query, second.features, second.items[0].category) == (None, {}, "y")
    assert found[ACTIONS] == [Action("u", "1", S0 * 1_000, "click", "a", category="x")]
    assert (report.join.query_length, report.join.request_features) == (50, {"device": "id"})


def test_pages_with_lists_as_text(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "ts": S0 * 1_000, "item_id": "1 2 3", "clicked": "3 1", "price": "1 2 3"}]
    options = RowsOptions(layout="page", separator=" ", features={"price": "float"})
    found, _ = imported([write(tmp_path / "log.csv", rows)], options)
    assert [(i.item_id, i.features["price"]) for i in found[IMPRESSIONS][0].items] == [("1", 1.0), ("2", 2.0), ("3", 3.0)]
    assert [a.item_id for a in found[ACTIONS]] == ["1", "3"]


def test_a_page_with_lists_of_different_lengths(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"log.jsonl:1: label = \[False\] has 1 entries for 3 items"):
        imported([write(tmp_path / "log.jsonl", [PAGES[0] | {"label": [0]}])], PAGE)


def test_actions_of_their_own_are_merged_by_time(tmp_path: Path, mapping: RowsOptions) -> None:
    bought = [
        {"who": 7, "what": 2, "when": "2023-11-14T22:13:19.5Z", "kind": "buy", "amount": 9.5},
        {"who": 8, "what": 1, "when": "2023-11-14T22:13:20.5Z", "kind": "", "amount": None},
        {"who": 8, "what": 4, "when": "2023-11-15T22:13:20+00:00", "kind": "buy", "amount": 1},
    ]
    actions = ActionColumns(
        files="buy*", user="who", item="what", ts="when", ts_unit="iso", value="amount", default_kind="play"
    )
    files = [write(tmp_path / "log.csv", FLAT), write(tmp_path / "buy.csv", bought)]
    found, report = imported(files, replace(mapping, actions=actions))
    assert [(a.item_id, a.kind, a.ts - S0 * 1_000, a.value) for a in found[ACTIONS]] == [
        ("2", "buy", -500, 9.5),
        ("2", "click", 0, None),
        ("1", "play", 500, None),
        ("4", "buy", 86_400_000, 1.0),
    ]
    assert report.join.label_window_ms == 1_800_000
    cut, _ = imported(files, replace(mapping, actions=actions), limit=2)
    assert [a.ts - S0 * 1_000 for a in cut[ACTIONS]] == [-500, 0, 500]
    only, _ = imported(files[1:], replace(mapping, actions=actions), limit=2)
    assert len(only[ACTIONS]) == 2


OWN: list[Any] = [
    User("u", S0 * 1_000, {"age": 30}),
    Item("1", S0 * 1_000, "x", None, {"vector": 1.5}),
    Impression(
        "a", "u", S0 * 1_000, [ImpressionItem("1", features={"brand": "b", "price": 2})], "q", features={"device": "tv"}
    ),
    Action("u", "1", S0 * 1_000 + 50, "click", "a"),
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_raw_events_need_no_mapping(tmp_path: Path, suffix: str) -> None:
    found, report = imported([write(tmp_path / f"log.{suffix}", [msgspec.to_builtins(event) for event in OWN])])
    assert found == {USERS: [OWN[0]], ITEMS: [OWN[1]], IMPRESSIONS: [OWN[2]], ACTIONS: [OWN[3]]}
    assert report.join.request_features == {"device": "id"}
    assert report.join.candidate_features == {"brand": "id", "price": "float"}
    assert (report.join.query_length, report.join.label_window_ms) == (50, 1_800_000)


def test_raw_events_in_files_of_their_own(tmp_path: Path) -> None:
    pages = [msgspec.to_builtins(msgspec.structs.replace(OWN[2], request_id=str(n), ts=S0 * 1_000 + n)) for n in range(5)]
    clicks = [msgspec.to_builtins(msgspec.structs.replace(OWN[3], request_id=str(n), ts=S0 * 1_000 + n)) for n in range(5)]
    files = [write(tmp_path / "impressions.jsonl", pages), write(tmp_path / "actions.jsonl", clicks)]
    found, _ = imported(files)
    assert (len(found[IMPRESSIONS]), len(found[ACTIONS])) == (5, 5)
    found, _ = imported(files, limit=3)
    assert len(found[IMPRESSIONS]) == 3
    found, _ = imported(files[1:], limit=3)
    assert len(found[ACTIONS]) == 3


def bad_line(tmp_path: Path, line: str) -> str:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(msgspec.to_builtins(OWN[3])) + "\n\n" + line + "\n")
    with pytest.raises(SourceError) as caught:
        imported([path])
    _, report = imported([path], RowsOptions(on_error="skip"))
    assert (report.errors, report.actions) == (1, 1)
    assert report.first_errors == (str(caught.value),)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user_id": "u"', "log.jsonl:3: line ="),
        ("[1, 2]", "log.jsonl:3: line = '[1, 2]' is no raw event"),
        ('{"user_id": "u", "item_id": "1", "kind": "click"}', "missing required field `ts`"),
        ('{"user_id": 5, "item_id": "1", "kind": "click", "ts": 1700000000000}', "$.user_id"),
        ('{"user_id": "u", "item_id": "1", "kind": "click", "ts": 1700000000}', "3: ts = 1700000000 is not between the years"),
        ('{"user_id": "u", "item_id": "1", "kind": "click", "ts": 1600000000000}', "older than a row before it"),
        ('\xff\xfe', "log.jsonl:3: line ="),
    ],
)  # fmt: skip
def test_bad_raw_events(tmp_path: Path, line: str, message: str) -> None:
    assert message in bad_line(tmp_path, line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shown_at": "soon"}, r"log.csv:5: ts \(column 'shown_at'\) = 'soon' is no time in s"),
        ({"shown_at": "1700000002000"}, r"log.csv:5: .*not between the years 2000 and 2100 when read as s; set ts_unit"),
        ({"shown_at": str(S0 - 100)}, r"log.csv:5: ts = \d+ is 101.000 s older than a row before it.*sort = true"),
        ({"visitor": None}, r"log.csv:5: user \(column 'visitor'\) = None is missing"),
        ({"price": "cheap"}, r"log.csv:5: features.price \(column 'price'\) = 'cheap' is no number"),
        ({"price": "nan"}, r"log.csv:5: features.price \(column 'price'\) = 'nan' is no finite number"),
        ({"clicked": "maybe"}, r"log.csv:5: label \(column 'clicked'\) = 'maybe' is no number"),
        ({"visitor": "7", "page_view": "a"}, r"log.csv:5: request = 'a' is a page whose rows had ended"),
    ],
)
def test_bad_rows(tmp_path: Path, mapping: RowsOptions, change: dict[str, Any], message: str) -> None:
    last: dict[str, Any] = {
        "visitor": 9,
        "page_view": "c",
        "sku": 1,
        "shown_at": S0 + 2,
        "clicked": 1,
        "department": "x",
        "price": 1,
        "brand": 1,
    }
    rows = [{k: None if v is None else str(v) for k, v in row.items()} for row in [*FLAT, last | change]]
    path = write(tmp_path / "log.csv", rows)
    with pytest.raises(SourceError, match=message):
        imported([path], mapping)
    found, report = imported([path], replace(mapping, on_error="skip"))
    assert found == {IMPRESSIONS: [FLAT_EVENTS[0], FLAT_EVENTS[2]], ACTIONS: [FLAT_EVENTS[1]]}
    assert report.errors == 1


def test_a_csv_row_of_another_width(tmp_path: Path, mapping: RowsOptions) -> None:
    path = write(tmp_path / "log.csv", FLAT)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "1,2,3", *lines[2:], "9,c,broken"]) + "\n")
    with pytest.raises(SourceError, match=r"log.csv:3: .*has 3 columns, not 8"):
        imported([path], mapping)
    found, report = imported([path], replace(mapping, on_error="skip"))
    assert found[IMPRESSIONS] == [FLAT_EVENTS[0], FLAT_EVENTS[2]]
    assert report.errors == 2
    assert "log.csv:6:" in report.first_errors[1]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, mapping: RowsOptions, suffix: str) -> None:
    path = write(tmp_path / f"log.{suffix}", FLAT)
    with pytest.raises(SourceError, match=r"no column 'customer' for 'user'; the file has brand, clicked, .*user = "):
        imported([path], replace(mapping, user="customer"))
    with pytest.raises(SourceError, match=r"no column 'weight' for 'features.weight'"):
        imported([path], replace(mapping, features={"weight": "float"}))
    with pytest.raises(SourceError, match="no column 'label' for 'label'"):
        imported([path], replace(mapping, label=None))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_empty_files(tmp_path: Path, mapping: RowsOptions, suffix: str) -> None:
    (tmp_path / f"empty.{suffix}").touch()
    found, report = imported([tmp_path / f"empty.{suffix}", write(tmp_path / "log.csv", FLAT)], mapping)
    assert len(found[IMPRESSIONS]) == 2
    assert report.left_out == {"empty files": 1}
    _, report = imported([tmp_path / f"empty.{suffix}"])
    assert (report.events, report.first_ts) == ({}, None)


def test_files_that_cannot_be_read(tmp_path: Path, mapping: RowsOptions) -> None:
    (tmp_path / "log.parquet").write_text("no")
    with pytest.raises(SourceError, match="not readable as parquet"):
        imported([tmp_path / "log.parquet"], mapping)
    (tmp_path / "log.xlsx").write_text("no")
    with pytest.raises(SourceError, match=r"unknown kind of file; known are .jsonl"):
        imported([tmp_path / "log.xlsx"], mapping)
    with pytest.raises(SourceError, match="there is no file"):
        imported([tmp_path / "none.csv"], mapping)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('layuot = "flat"', "unknown field `layuot`; a mapping knows partitions, "),
        ('layout = "flatt"', "Invalid enum value 'flatt'"),
        ('features = { price = "int" }', "features"),
        ("layout = ", "mapping.toml: "),
    ],
)
def test_bad_mappings(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "mapping.toml").write_text(toml)
    with pytest.raises(SourceError, match=r"mapping\.toml") as caught:
        read_mapping(tmp_path / "mapping.toml")
    assert message in str(caught.value)
    with pytest.raises(SourceError, match="no mapping file"):
        read_mapping(tmp_path / "none.toml")


def test_times_that_parquet_declares_need_no_unit(tmp_path: Path, mapping: RowsOptions) -> None:
    table = pa.Table.from_pylist(FLAT)
    times = pa.array([S0 * 1_000_000, S0 * 1_000_000, S0 * 1_000_000 + 1_000_000], pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(3, "shown_at", times), tmp_path / "log.parquet")
    found, _ = imported([tmp_path / "log.parquet"], mapping)
    assert found[IMPRESSIONS] == [FLAT_EVENTS[0], FLAT_EVENTS[2]]


@pytest.mark.parametrize(
    ("unit", "value", "ms"),
    [
        ("s", f"{S0}.25", 250),
        ("s", S0 + 0.25, 250),
        ("ms", str(S0 * 1_000 + 7), 7),
        ("us", S0 * 1_000_000 + 7_900, 7),
        ("iso", "2023-11-14T23:13:20.125+01:00", 125),
    ],
)
def test_units_of_time(tmp_path: Path, mapping: RowsOptions, unit: Any, value: Any, ms: int) -> None:
    found, _ = imported([write(tmp_path / "log.jsonl", [FLAT[0] | {"shown_at": value}])], replace(mapping, ts_unit=unit))
    assert found[IMPRESSIONS][0].ts == S0 * 1_000 + ms


def test_inner_fields_of_json(tmp_path: Path) -> None:
    rows = [{"who": {"id": "u"}, "item_id": "1", "ts": S0 * 1_000, "label": 1, "page": {"id": "a", "ctx": {"os": "ios"}}}]
    options = RowsOptions(
        layout="flat", user="who.id", request="page.id", request_features={"os": FeatureColumn("page.ctx.os", "id")}
    )
    found, _ = imported([write(tmp_path / "log.jsonl", rows)], options)
    assert (found[IMPRESSIONS][0].user_id, found[IMPRESSIONS][0].features) == ("u", {"os": "ios"})
    assert found[ACTIONS][0].request_id == "a"


def test_a_csv_without_names(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"u;1;{S0};1\nu;2;{S0};0\n")
    options = RowsOptions(layout="flat", ts_unit="s", delimiter=";", header=("user_id", "item_id", "ts", "label"))
    found, _ = imported([tmp_path / "log.csv"], options)
    assert [item.item_id for item in found[IMPRESSIONS][0].items] == ["1", "2"]
    (tmp_path / "log.csv").write_text(f"u;1;{S0};1\nu;2;soon;0\n")
    with pytest.raises(SourceError, match=r"log.csv:2: ts = 'soon'"):
        imported([tmp_path / "log.csv"], options)


@given(order=st.permutations(range(24)), suffix=st.sampled_from(["csv", "jsonl", "parquet"]))
@settings(max_examples=15)
def test_sort_puts_any_order_right(tmp_path_factory: pytest.TempPathFactory, order: list[int], suffix: str) -> None:
    path = tmp_path_factory.mktemp("sort")
    options = RowsOptions(layout="flat", ts_unit="s", lateness_ms=0, position="rank")
    rows = [
        {
            "user_id": page % 3,
            "request_id": f"p{page}",
            "item_id": page * 10 + rank,
            "ts": S0 + page // 2,
            "label": int(rank == page % 4),
            "rank": rank,
        }
        for page in range(6)
        for rank in range(4)
    ]
    wanted, _ = imported([write(path / f"right.{suffix}", rows)], options)
    mixed = [rows[i] for i in order]
    files = [write(path / f"one.{suffix}", mixed[:10]), write(path / f"two.{suffix}", mixed[10:])]
    found, _ = imported(files, replace(options, sort=True))

    def as_sets(events: dict[str, list[Any]]) -> list[Any]:
        return sorted(
            (page.ts, page.request_id, sorted((i.item_id, i.position) for i in page.items)) for page in events[IMPRESSIONS]
        )

    assert as_sets(found) == as_sets(wanted)
    assert [page.ts for page in found[IMPRESSIONS]] == sorted(page.ts for page in wanted[IMPRESSIONS])
    assert sorted(map(repr, found[ACTIONS])) == sorted(map(repr, wanted[ACTIONS]))
