"""Importing as a whole: killed and gone on with, repeated, into a log that has something; kinds from outside."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events import ACTIONS, IMPRESSIONS, Action, partition_of
from stream_app.importers.mapping import RowsOptions
from stream_app.importers.ordering import ActionQueue, sorted_rows
from stream_app.importers.registry import importer_kind, importer_names
from stream_app.importers.run import run_import
from stream_app.importers.source import ImportOptions, SourceError
from stream_app.topics import Log, Message, Topic, TopicError
from stream_app.topics.embedded import EmbeddedLog
from stream_app.topics.memory import MemoryLog

S0 = 1_700_000_000
OPTIONS = RowsOptions(layout="flat", ts_unit="s", partitions=3, click_ts="at")


def write_clicks(path: Path, n_pages: int, first: int = 0) -> Path:
    draw = random.Random(first)
    with path.open("w") as file:
        for page in range(first, first + n_pages):
            user = draw.randrange(50)
            for item in draw.sample(range(99), 3):
                row = {
                    "user_id": user,
                    "request_id": page,
                    "item_id": item,
                    "ts": S0 + page,
                    "at": S0 + page + draw.randrange(90),
                }
                file.write(json.dumps(row | {"label": int(draw.random() < 0.3)}) + "\n")
    return path


def content(log: Log) -> dict[str, list[list[tuple[int, bytes, bytes]]]]:
    return {
        name: [[(r.ts, r.key, r.value) for r in log.topic(name).read(p, 0, 1 << 30, 1 << 40)] for p in range(n)]
        for name, n in log.topics().items()
    }


class DyingTopic:
    """A topic whose writer dies after some appends."""

    def __init__(self, topic: Topic, log: DyingLog) -> None:
        self._topic, self._log = topic, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topic, name)

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        if self._log.appends_left == 0:
            raise KeyboardInterrupt
        self._log.appends_left -= 1
        return self._topic.append(partition, messages)


class DyingLog(MemoryLog):
    """A log in memory whose writer dies after some appends."""

    def __init__(self) -> None:
        super().__init__()
        self.appends_left = 0

    def topic(self, name: str) -> Any:
        return DyingTopic(super().topic(name), self)

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Any:
        return DyingTopic(super().create(name, n_partitions, retention_ms), self)


@given(lives=st.lists(st.integers(0, 3), max_size=4))
@settings(max_examples=12)
def test_any_crashes_leave_the_log_of_an_undisturbed_import(tmp_path_factory: pytest.TempPathFactory, lives: list[int]) -> None:
    folder = tmp_path_factory.mktemp("crash")
    path = write_clicks(folder / "log.jsonl", 2_500)
    options = msgspec.structs.replace(OPTIONS, partitions=1)  # so that batches fill up on the way
    calm = MemoryLog()
    report = run_import("rows", [path], calm, None, options)
    dying = DyingLog()
    for life in lives:
        dying.appends_left = life
        with contextlib.suppress(KeyboardInterrupt):
            run_import("rows", [path], dying, folder, options)
    dying.appends_left = 1 << 30
    last = run_import("rows", [path], dying, folder, options)
    assert content(dying) == content(calm)
    assert last.events == report.events
    assert (last.first_ts, last.last_ts, last.join) == (report.first_ts, report.last_ts, report.join)


SCRIPT = """
import sys
from pathlib import Path
import msgspec
from stream_app.importers.rows import RowsOptions
from stream_app.importers.run import run_import
from stream_app.topics.embedded import EmbeddedLog

folder, options = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=RowsOptions)
with EmbeddedLog(folder / "log") as log:
    def on_progress(*done):
        print(*done, flush=True)
        if len(sys.argv) > 3:
            sys.stdin.readline()  # Waits to be told to go on.
    run_import("rows", [folder / "log.jsonl"], log, folder / "log", options, on_progress=on_progress)
"""


def test_kill_9_and_the_same_again(tmp_path: Path) -> None:
    path = write_clicks(tmp_path / "log.jsonl", 12_000)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), msgspec.json.encode(OPTIONS).decode()]
    held = []
    for chunks in (6, 9):
        with subprocess.Popen(
            [*command, "told"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, close_fds=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(chunks):
                assert process.stdout.readline()
                process.stdin.write(b"\n")
            process.kill()  # Anywhere in the next chunk.
        with EmbeddedLog(tmp_path / "log", read_only=True) as log:
            held.append(sum(log.topic(IMPRESSIONS).end(p) for p in range(3)))
    calm = MemoryLog()
    wanted = run_import("rows", [path], calm, None, OPTIONS)
    assert 0 < held[0] <= held[1] < wanted.impressions
    subprocess.run(command, check=True, capture_output=True)
    with EmbeddedLog(tmp_path / "log") as log:
        assert content(log) == content(calm)
        again = run_import("rows", [path], log, tmp_path / "log", OPTIONS)
        assert (again.was_done, again.resumed, again.events) == (True, True, wanted.events)
        assert content(log) == content(calm)


def test_every_record_is_where_its_key_belongs(tmp_path: Path) -> None:
    log = MemoryLog()
    report = run_import("rows", [write_clicks(tmp_path / "log.jsonl", 300)], log, None, OPTIONS)
    for name, partitions in content(log).items():
        for partition, records in enumerate(partitions):
            for ts, key, value in records:
                event = msgspec.json.decode(value)
                assert (ts, key) == (event["ts"], event["user_id"].encode())
                assert partition_of(key, 3) == partition
            assert [ts for ts, _, _ in records] == sorted(ts for ts, _, _ in records)
        assert sum(map(len, partitions)) == report.events[name]


def test_a_second_import_goes_behind_the_first(tmp_path: Path) -> None:
    log = MemoryLog()
    first, second = write_clicks(tmp_path / "a.jsonl", 300), write_clicks(tmp_path / "b.jsonl", 300, first=1_000)
    run_import("rows", [first], log, tmp_path, OPTIONS)
    run_import("rows", [second], log, tmp_path, OPTIONS)
    both = MemoryLog()
    run_import("rows", [first, second], both, None, OPTIONS)
    assert content(log) == content(both)
    with pytest.raises(SourceError, match=r"already holds events up to ts .* in the order of time, or into a new log folder"):
        run_import("rows", [write_clicks(tmp_path / "c.jsonl", 300, first=2)], log, None, OPTIONS)


def test_an_unfinished_import_comes_first(tmp_path: Path) -> None:
    first, second = write_clicks(tmp_path / "a.jsonl", 4_000), write_clicks(tmp_path / "b.jsonl", 300, first=9_000)
    dying = DyingLog()
    dying.appends_left = 2
    with pytest.raises(KeyboardInterrupt):
        run_import("rows", [first], dying, tmp_path, OPTIONS)
    dying.appends_left = 1 << 30
    with pytest.raises(
        SourceError,
        match=r"the import of a\.jsonl \(rows\) into this log was cut off, .*: a\.jsonl then, b\.jsonl now\. Run that",
    ):
        run_import("rows", [second], dying, tmp_path, OPTIONS)
    run_import("rows", [first], dying, tmp_path, OPTIONS)
    run_import("rows", [second], dying, tmp_path, OPTIONS)


def test_a_log_that_is_not_what_the_import_left(tmp_path: Path) -> None:
    path = write_clicks(tmp_path / "a.jsonl", 4_000)
    log = DyingLog()
    log.appends_left = 2
    with pytest.raises(KeyboardInterrupt):
        run_import("rows", [path], log, tmp_path / "one", OPTIONS)
    log.appends_left = 1 << 30
    for _ in range(5):
        log.topic(ACTIONS).append(1, [Message(S0, b"", b"{}")] * 1_000)
    with pytest.raises(SourceError, match="gained records that this import does not make"):
        run_import("rows", [path], log, tmp_path / "one", OPTIONS)
    log = DyingLog()
    log.appends_left = 1
    log.create(IMPRESSIONS, 3).append(0, [Message(S0 - 1, b"", b"{}")] * 5)
    with pytest.raises(KeyboardInterrupt):
        run_import("rows", [path], log, tmp_path / "two", OPTIONS)
    shorter = MemoryLog()
    shorter.create(IMPRESSIONS, 3)
    with pytest.raises(SourceError, match="shorter than this import left it"):
        run_import("rows", [path], shorter, tmp_path / "two", OPTIONS)


def test_another_limit_is_another_import(tmp_path: Path) -> None:
    log = MemoryLog()
    path = write_clicks(tmp_path / "a.jsonl", 50)
    assert run_import("rows", [path], log, tmp_path, OPTIONS, limit=10).impressions == 10
    assert run_import("rows", [path], log, tmp_path, OPTIONS, limit=10).was_done
    with pytest.raises(SourceError, match="already holds events"):
        run_import("rows", [path], log, tmp_path, OPTIONS)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = write_clicks(tmp_path / "a.jsonl", 5_000)
    run_import("rows", [path], MemoryLog(), None, OPTIONS, on_progress=lambda *now: seen.append(now))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size, "bytes")
    assert len(seen) > 3


def test_garbage_is_looked_for_again_after_an_import_whatever_its_end(tmp_path: Path) -> None:
    enabled: list[bool] = []
    path = write_clicks(tmp_path / "a.jsonl", 200)
    run_import("rows", [path], MemoryLog(), None, OPTIONS, on_progress=lambda *_: enabled.append(gc.isenabled()))
    assert gc.isenabled()
    assert set(enabled) == {False}
    with pytest.raises(KeyboardInterrupt):
        run_import("rows", [path], DyingLog(), None, OPTIONS)
    assert gc.isenabled()


def test_what_cannot_be(tmp_path: Path) -> None:
    path = write_clicks(tmp_path / "a.jsonl", 5)
    with pytest.raises(SourceError, match="no importer 'gloob'; known: globo, mind, movielens, recbole, rows, taobao"):
        run_import("gloob", [path], MemoryLog(), None)
    with pytest.raises(SourceError, match="takes GloboOptions, not RowsOptions"):
        run_import("globo", [path], MemoryLog(), None, OPTIONS)
    with pytest.raises(SourceError, match="limit = 0: at least 1"):
        run_import("rows", [path], MemoryLog(), None, OPTIONS, limit=0)
    with pytest.raises(SourceError, match="no files given"):
        run_import("rows", [], MemoryLog(), None, OPTIONS)
    with pytest.raises(SourceError, match="partitions = 0"):
        run_import("rows", [path], MemoryLog(), None, msgspec.structs.replace(OPTIONS, partitions=0))
    log = MemoryLog()
    log.create(IMPRESSIONS, 8)
    with pytest.raises(TopicError, match="8"):
        run_import("rows", [path], log, None, OPTIONS)
    with pytest.raises(SourceError, match="its options are partitions, on_error, "):
        importer_kind("rows").read_options({"user": 5, "colour": "red"})
    assert importer_kind("rows").read_options({"user": "who"}) == RowsOptions(user="who")


OUTSIDE = """
from stream_app.events import Action
from stream_app.importers.source import Chunk, ImporterKind, ImportOptions
from stream_app.joiner.config import JoinConfig

class Lines:
    unit = "lines"
    def __init__(self, files, options, tally):
        self.files, self.total = files, 0
    def inputs(self):
        return self.files
    def chunks(self, limit):
        yield Chunk([Action(line, "1", 1_700_000_000_000, "click") for line in self.files[0].read_text().split()], 1)
    def join_config(self):
        return JoinConfig()
    def ignored_features(self):
        return ()

KIND = ImporterKind("lines", "a user per line", ImportOptions, Lines)
WRONG = Lines
"""


def test_a_kind_from_outside(tmp_path: Path) -> None:
    (tmp_path / "outside_lines.py").write_text(OUTSIDE)
    info = tmp_path / "outside_lines-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[freshet.importers]\nlines = outside_lines:KIND\nwrong = outside_lines:WRONG\n")
    (tmp_path / "who.txt").write_text("ann bob")
    code = f"""
from pathlib import Path
from stream_app.importers.registry import importer_names
from stream_app.importers.run import run_import
from stream_app.topics.memory import MemoryLog
print(importer_names(), run_import("lines", [Path({str(tmp_path / "who.txt")!r})], MemoryLog(), None).actions)
try:
    run_import("wrong", [], MemoryLog(), None)
except ValueError as error:
    print(error)
"""
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    first, second = done.stdout.splitlines()
    assert first == "['globo', 'lines', 'mind', 'movielens', 'recbole', 'rows', 'taobao', 'trivago', 'wrong'] 2"
    assert "gives a type, an ImporterKind is needed" in second


def test_names_and_kinds_agree() -> None:
    for name in importer_names():
        kind = importer_kind(name)
        assert (kind.name, bool(kind.summary), issubclass(kind.options, ImportOptions)) == (name, True, True)


@given(keys=st.lists(st.tuples(st.integers(0, 5), st.text(max_size=2))), run_rows=st.integers(1, 7))
def test_an_external_sort_is_a_stable_sort(keys: list[tuple[int, str]], run_rows: int) -> None:
    rows = [([number, text], i, None, [1.5, text]) for i, (number, text) in enumerate(keys)]
    found = [tuple(row) for row in sorted_rows(iter(rows), run_rows)]
    assert found == sorted(rows, key=lambda row: row[0])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5))))
def test_actions_wait_for_their_time(steps: list[tuple[int, int]]) -> None:
    queue, found, pushed = ActionQueue(), [], []
    for n, (delay, _) in enumerate(steps):
        now = sum(each for _, each in steps[: n + 1])
        queue.push(Action("u", str(n), now + delay, "click"))
        pushed.append((now + delay, n))
        found += queue.pop_until(now)
        assert all(action.ts <= now for action in found)
    found += queue.pop_all()
    assert [(action.ts, int(action.item_id)) for action in found] == sorted(pushed)
    assert len(queue) == 0
