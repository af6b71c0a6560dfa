"""What makes two imports the same one: versions with more options go on with it, anything else is refused and says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.events import Action
from stream_app.importers.books import FolderBook
from stream_app.importers.globo import GloboOptions
from stream_app.importers.mapping import ActionColumns, RowsOptions
from stream_app.importers.pace import Pace
from stream_app.importers.progress import asked, begin, begun, fingerprint
from stream_app.importers.registry import importer_kind
from stream_app.importers.run import Job, run_import, write_source
from stream_app.importers.source import Chunk, Event, ImportOptions, SourceError, Tally
from stream_app.joiner.config import JoinConfig
from stream_app.simulate.options import SimulateOptions
from stream_app.topics import Message
from stream_app.topics.embedded import EmbeddedLog
from stream_app.topics.memory import MemoryLog

S0 = 1_700_000_000
EVERY = {"partitions": 4, "on_error": "stop"}
DRAWN = EVERY | {"seed": 20171001, "window": 20_000, "warm_up": 200_000, "n_negatives": 9, "remembered": 4_000_000}
ROWS_NONE = "user item request ts query query_category category domain position label clicked click_ts actions label_window_ms"
# What imports of this version are known by, of one small file: an import that it began is told by these in any later version.
TODAY: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "globo": ("46b327c7795ae13e", DRAWN | {"candidates": None, "stop_after_last": True}, {"seed": 3}, "f743181568bb0f76"),
    "mind": ("3c80c8afdf60aa9e", EVERY | {"histories": True}, {"histories": False}, "48aa4e16f66e0be4"),
    "movielens": (
        "dbba388ccf2f8f43",
        DRAWN | {"warm_up": 2_000, "candidates": "drawn", "positive": 4.0},
        {"candidates": "rows"},
        "bfd88abb46f72d94",
    ),
    "recbole": (
        "4f0fd28e67d282f2",
        DRAWN
        | {"warm_up": 2_000, "candidates": "drawn", "user": "user_id", "item": "item_id", "time": "timestamp", "ts_unit": "s"}
        | {"label": None, "positive": 1.0, "category": None},
        {"label": "rating", "positive": 3},
        "5851841f1c482f2e",
    ),
    "rows": (
        "44a855cfb731f115",
        EVERY
        | dict.fromkeys(ROWS_NONE.split())
        | {"layout": "events", "ts_unit": "ms", "positive": (), "label_kind": "click", "features": {}, "request_features": {}}
        | {"sort": False, "delimiter": ",", "header": (), "separator": "|", "lateness_ms": 5_000},
        {"layout": "flat", "features": {"price": "float", "brand": {"column": "b", "kind": "id"}}, "actions": {"files": "a*"}},
        "996e73199bfd2a8e",
    ),
    "taobao": ("e873d30639fc69a1", DRAWN | {"dates": "published"}, {"n_negatives": 4, "dates": "any"}, "8e8e4736be5ba63c"),
    "trivago": ("150d8e5d20e1fc57", EVERY, {"partitions": 2}, "0975168311fd2785"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "events.txt"
    found.write_bytes(b"1,2,3\n")
    return found


def identity(path: Path, options: msgspec.Struct, kind: str = "rows", limit: int | None = None) -> str:
    return fingerprint(asked(kind, [path], options, limit))


@pytest.mark.parametrize("kind", TODAY)
def test_an_import_that_this_version_began_is_known_later(path: Path, kind: str) -> None:
    plain, _, some, chosen = TODAY[kind]
    assert identity(path, importer_kind(kind).options(), kind) == plain
    assert identity(path, importer_kind(kind).read_options(some), kind) == chosen


@pytest.mark.parametrize("kind", TODAY)
def test_defaults_stay_what_they_are(kind: str) -> None:
    """A default is not in the identity: where one changes, other events would go behind those of a run that was cut off.

    So whoever changes one raises ``_FORMAT`` in stream_app/importers/progress.py, and what stands above.
    """
    options, defaults = importer_kind(kind).options(), TODAY[kind][1]
    assert {name: getattr(options, name) for name in defaults} == defaults
    assert set(defaults) <= set(options.__struct_fields__), "an option that is gone"


@pytest.mark.parametrize("kind", [*TODAY, "simulate"])
def test_a_version_with_more_options_goes_on(path: Path, kind: str) -> None:
    options = SimulateOptions if kind == "simulate" else importer_kind(kind).options
    later: Any = msgspec.defstruct(
        "Later",
        [("more", int, 5), ("lists", dict[str, int], msgspec.field(default_factory=dict)), ("none", str | None, None)],
        bases=(options,),
        frozen=True,
        kw_only=True,
    )
    today = identity(path, options(), kind)
    assert identity(path, later(), kind) == today
    assert identity(path, later(more=5, lists={}), kind) == today
    assert (
        len({today, *(identity(path, later(**each), kind) for each in ({"more": 6}, {"lists": {"a": 5}}, {"none": ""}))}) == 4
    )


@pytest.mark.parametrize("kind", [*TODAY, "simulate"])
def test_a_default_that_has_changed_ends_a_resume(path: Path, kind: str) -> None:
    options = SimulateOptions if kind == "simulate" else importer_kind(kind).options
    book = FolderBook(path.parent / "imports")
    began = asked(kind, [path], options(), None)
    log = MemoryLog()
    begin(book, fingerprint(began), began, log)
    assert set(began.every) == set(options.__struct_fields__)
    for name in began.every:  # As another version of Freshet asks that has another default.
        wanted = began._replace(every=began.every | {name: "another"})
        assert fingerprint(wanted) == fingerprint(began)
        with pytest.raises(SourceError, match=rf'cut off.* changed since: option {name}: .* then, "another" now\. Finish it'):
            begun(book, fingerprint(wanted), wanted, log)
    assert begun(book, fingerprint(began), began, log) is not None


def test_a_default_within_an_option_that_has_changed_ends_a_resume(path: Path) -> None:
    class Later(ActionColumns, frozen=True, kw_only=True):
        default_kind: str = "view"

    book, log = FolderBook(path.parent / "imports"), MemoryLog()
    began, wanted = (
        asked("rows", [path], RowsOptions(actions=each), None) for each in (ActionColumns(user="u"), Later(user="u"))
    )
    assert fingerprint(wanted) == fingerprint(began)
    begin(book, fingerprint(began), began, log)
    with pytest.raises(SourceError, match=r'option actions.default_kind: "click" then, "view" now'):
        begun(book, fingerprint(wanted), wanted, log)


def test_a_file_of_candidates_is_told_by_its_name_and_content(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = path.with_name("given.parquet")
    given.write_bytes(b"lists")
    monkeypatch.chdir(path.parent)
    (path.parent / "elsewhere").mkdir()
    moved = path.parent / "elsewhere" / given.name
    moved.write_bytes(b"lists")

    def of(spelled: str) -> str:
        options = importer_kind("globo").read_options({"candidates": spelled})
        return fingerprint(asked("globo", [path, Path(spelled)], options, None))

    known = of("given.parquet")
    assert {of("./given.parquet"), of(str(given)), of("elsewhere/../given.parquet"), of("elsewhere/given.parquet")} == {known}
    moved.write_bytes(b"other")
    renamed = given.rename("new.parquet")
    assert len({known, of("elsewhere/given.parquet"), of(str(renamed)), identity(path, GloboOptions(), "globo")}) == 4


def test_defaults_are_told_by_value_and_at_any_depth(path: Path) -> None:
    read = importer_kind("globo").read_options
    assert identity(path, read({"window": int("20000")}), "globo") == identity(path, GloboOptions(), "globo")
    ways = [
        RowsOptions(),
        RowsOptions(actions=ActionColumns()),
        RowsOptions(actions=ActionColumns(user="who")),
        RowsOptions(positive=("1",)),
        RowsOptions(features={"price": "float"}),
        RowsOptions(request_features={"price": "float"}),
    ]
    assert len({identity(path, each) for each in ways}) == len(ways)
    assert identity(path, RowsOptions(actions=ActionColumns(default_kind="click"))) == identity(path, ways[1])


class Counted:
    """A source of events that a version of Freshet makes."""

    unit, total = "events", 1

    def __init__(self, path: Path, item: str, n_cut: int | None, other_at: int | None = None) -> None:
        self._path, self._item, self._n_cut, self._other_at = path, item, n_cut, other_at

    def inputs(self) -> list[Path]:
        return [self._path]

    def ignored_features(self) -> tuple[str, ...]:
        return ()

    def join_config(self) -> JoinConfig:
        return JoinConfig()

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        for first in range(0, 3_000, 1_000):
            if first == self._n_cut:
                raise KeyboardInterrupt
            users = range(first, first + 1_000)
            items = ("other" if user == self._other_at else self._item for user in users)
            pairs = zip(users, items, strict=True)
            events: list[Event] = [Action(str(user % 50), item, 1_000 * (S0 + user), "click") for user, item in pairs]
            yield Chunk(events, 0)


def count_up(path: Path, log: EmbeddedLog, item: str, n_cut: int | None = None, other_at: int | None = None) -> dict[str, int]:
    options = ImportOptions(partitions=1)
    job = Job("counted", Counted(path, item, n_cut, other_at), Tally("stop"), options, 1, None)
    return dict(write_source(job, log, path.parent, None).events)


def test_other_events_of_another_version_are_refused(path: Path) -> None:
    with EmbeddedLog(path.parent / "log") as log:
        with pytest.raises(KeyboardInterrupt):
            count_up(path, log, "x", n_cut=2_000)
        said = r'partition 0: an earlier run .* ended with \{.*"x".*\}, where this version .* makes \{.*"y".* into a new log'
        with pytest.raises(SourceError, match=said):
            count_up(path, log, "y")
        assert log.topic("actions").end(0) == 2_000
        assert count_up(path, log, "x") == {"actions": 3_000}


def test_all_that_a_version_wrote_which_kept_no_options_is_compared(path: Path) -> None:
    """Its defaults may have been others, and those may show in some of the events only."""
    with EmbeddedLog(path.parent / "log") as log:
        actions = log.create("actions", 1)
        actions.append(0, [Message(1, b"0", b"{}")])  # what was there before is not compared
        with pytest.raises(KeyboardInterrupt):
            count_up(path, log, "x", n_cut=2_000)
        (kept,) = (path.parent / "imports").iterdir()
        kept.write_text(json.dumps(json.loads(kept.read_bytes()) | {"every": None}))
        with pytest.raises(SourceError, match=r'an earlier run of this import has \{.*"x".*makes \{.*"other".*new log'):
            count_up(path, log, "x", other_at=700)
        assert actions.end(0) == 2_001
        assert count_up(path, log, "x") == {"actions": 3_000}
        assert actions.end(0) == 3_001


def test_a_refused_import_says_what_is_different(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"user_id": n % 9, "request_id": n, "item_id": 1, "ts": S0 + n, "label": 1} for n in range(9_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = RowsOptions(layout="flat", ts_unit="s", label="label", partitions=1)

    with EmbeddedLog(tmp_path / "log") as log:

        def stop(*_: Any) -> None:
            if log.topic("impressions").end(0):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_import("rows", [path], log, tmp_path, options, on_progress=stop)
        for other, limit, said in (
            (
                msgspec.structs.replace(options, label_kind="buy"),
                None,
                r"another one: option label_kind: at its default then, buy now\.",
            ),
            (
                msgspec.structs.replace(options, ts_unit="ms"),
                5,
                r": limit: None then, 5 now; option ts_unit: s then, at its default now\.",
            ),
        ):
            with pytest.raises(SourceError, match=said):
                run_import("rows", [path], log, tmp_path, other, limit=limit)
        copy = tmp_path / "other.jsonl"
        copy.write_bytes(path.read_bytes())
        with pytest.raises(SourceError, match=r"files: log\.jsonl then, other\.jsonl now\. Run that one again to finish it"):
            run_import("rows", [copy], log, tmp_path, options)
        with pytest.raises(SourceError, match=r"kind: rows then, taobao now"):
            run_import("taobao", [path], log, tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        with pytest.raises(SourceError, match=r"what is in the files has changed since"):
            run_import("rows", [path], log, tmp_path, options)
        path.write_bytes(whole)
        (kept,) = (tmp_path / "imports").glob("*.json")
        state = msgspec.json.decode(kept.read_bytes())
        old = {name: value for name, value in state.items() if name not in ("options", "limit")}
        kept.unlink()
        (earlier := kept.with_name("0123456789abcdef.json")).write_bytes(msgspec.json.encode(old))
        with pytest.raises(
            SourceError, match=r"an earlier version of Freshet began it, .* again with that version to finish it"
        ):
            run_import("rows", [path], log, tmp_path, options)
        earlier.rename(kept)
        assert run_import("rows", [path], log, tmp_path, options).resumed


def test_an_import_that_appended_nothing_is_not_in_the_way(tmp_path: Path) -> None:
    """Refused for an option, for a row, or because it is older than the log: the next one goes on without it."""

    def rows(name: str, first: int) -> Path:
        path = tmp_path / name
        events = [
            {"user_id": n % 9, "request_id": f"{name}{n}", "item_id": 1, "ts": first + n, "label": "bought"} for n in range(90)
        ]
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        return path

    older, first, newer, other = rows("a.jsonl", S0), rows("b.jsonl", S0 + 900), rows("c.jsonl", S0 + 1_800), rows("d.txt", S0)
    wrong = RowsOptions(layout="flat", ts_unit="s", label="label", partitions=1)
    options = msgspec.structs.replace(wrong, positive=("bought",))
    with EmbeddedLog(tmp_path / "log") as log:
        for path, chosen, said in ((other, options, "unknown kind of file"), (first, wrong, "bought")):
            with pytest.raises(SourceError, match=said):
                run_import("rows", [path], log, tmp_path, chosen)
        assert not run_import("rows", [first], log, tmp_path, options).resumed
        for _ in range(2):
            with pytest.raises(SourceError, match="in the order of time"):
                run_import("rows", [older], log, tmp_path, options)
        assert not run_import("rows", [newer], log, tmp_path, options).resumed
        assert run_import("rows", [first], log, tmp_path, options).was_done
        assert log.topic("impressions").end(0) == 180


def small_log(path: Path, first: int = S0) -> tuple[Path, RowsOptions]:
    rows = [{"user_id": n % 9, "request_id": n, "item_id": 1, "ts": first + n / 100, "label": 1} for n in range(90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, RowsOptions(layout="flat", ts_unit="s", label="label", partitions=1)


def live() -> Pace:
    return Pace(live=True, clock=lambda: 2.0 * S0, sleep=lambda seconds: None)


def made_by(version: str, folder: Path) -> None:
    """Leave the only import of a log as earlier versions of Freshet left it: under another identity, with less about it."""
    (kept,) = (folder / "imports").glob("*.json")
    state = msgspec.json.decode(kept.read_bytes())
    unknown = {"options without defaults": {"format"}, "all options": {"format", "options", "limit"}, "a later one": set()}[
        version
    ]
    old = {name: value for name, value in state.items() if name not in unknown}
    old |= {"format": 1} if version == "a later one" else {}
    kept.unlink()
    kept.with_name("0123456789abcdef.json").write_bytes(msgspec.json.encode(old))


@pytest.mark.parametrize("version", ["all options", "options without defaults", "a later one"])
def test_an_import_that_an_earlier_version_finished_is_not_made_again(tmp_path: Path, version: str) -> None:
    path, options = small_log(tmp_path / "log.jsonl")
    with EmbeddedLog(tmp_path / "log") as log:
        run_import("rows", [path], log, tmp_path, options)
        made_by(version, tmp_path)
        said = (
            r"this log holds the import of log\.jsonl \(rows\) already.*an earlier version of Freshet"
            r".*nothing to do but to join it.*a new log folder.*\(It is 0123456789abcdef in `imports`\)"
        )
        for pace in (None, live()):
            with pytest.raises(SourceError, match=said) as error:
                run_import("rows", [path], log, tmp_path, options, pace=pace)
            assert ("with --live its events would come a second time" in str(error.value)) == (pace is not None)
            assert "in the order of time" not in str(error.value)
        assert log.topic("impressions").end(0) == 90


def test_another_import_of_files_that_are_there_says_how_it_differs(tmp_path: Path) -> None:
    path, options = small_log(tmp_path / "log.jsonl")
    other, _ = small_log(tmp_path / "other.jsonl", S0 - 900)
    with EmbeddedLog(tmp_path / "log") as log:
        run_import("rows", [path], log, tmp_path, options)
        with pytest.raises(
            SourceError, match=r"holds the import of log.jsonl \(rows\) already.*: limit: None then, 5 now\. If"
        ):
            run_import("rows", [path], log, tmp_path, options, limit=5)
        with pytest.raises(SourceError, match=r"^topic 'impressions' already holds events .* in the order of time"):
            run_import("rows", [other], log, tmp_path, options)
        newer, _ = small_log(path, S0 + 900)  # Another file of the same name, as a day's are.
        assert run_import("rows", [newer], log, tmp_path, options).events["impressions"] == 90
        run_import("rows", [other], log, tmp_path, options, pace=live())
        assert log.topic("impressions").end(0) == 270
