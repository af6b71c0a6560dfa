"""What only the embedded log has: files, locks, other processes, kill -9."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stream_app.topics import Message, PositionLostError, Record, TopicError, embedded
from stream_app.topics.chunks import ChunkCursor, DecodedChunk, MissingChunkError
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.folder import TopicFile, read_topic_file

ROOT = Path(__file__).parents[2]

# Appends batches of 1 to 400 records to the log in argv[1] for ever, telling each acknowledged end.
WRITER = """
import random, sys
from stream_app.topics import Message
from stream_app.topics.embedded import EmbeddedLog
draw = random.Random(int(sys.argv[2]))
with EmbeddedLog(sys.argv[1]) as log:
    topic = log.create("raw", 1)
    end = topic.end(0)
    while True:
        n = draw.randint(1, 400)
        end = topic.append(0, [Message(i, b"%d" % i, b"value-%d" % i * draw.randint(0, 30)) for i in range(end, end + n)])
        print(end, flush=True)
"""

# Appends 1,000 records in the topic's turn for every line on stdin.
STEPPER = """
import sys
from stream_app.topics import Message
from stream_app.topics.embedded import EmbeddedLog
with EmbeddedLog(sys.argv[1]) as log:
    topic = log.create("raw", 2)
    print("ready", flush=True)
    for line in sys.stdin:
        end = topic.append(1, [Message(i, b"", b"v") for i in range(1_000)])
        if line.strip() == "trim":
            topic.trim(1, end - 10)
        print(end, flush=True)
"""


@contextmanager
def python(code: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    variables = os.environ | environment
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return hear(process)


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    appended = [Message(i * 7 % 1_000, b"k%d" % i, b"v" * i) for i in range(1_000)]
    with EmbeddedLog(tmp_path) as log:
        topic = log.create("raw", 2, retention_ms=10_000)
        topic.append(1, appended[:600])
        topic.trim(1, 30)
    with EmbeddedLog(tmp_path) as log:
        topic = log.topic("raw")
        assert (topic.n_partitions, topic.retention_ms) == (2, 10_000)
        assert (topic.start(1), topic.end(1)) == (30, 600)
        assert topic.append(1, appended[600:]) == 1_000
        assert topic.read(1, 30, 2_000) == [Record(i, *appended[i]) for i in range(30, 1_000)]
        assert topic.position_at(1, 999) == next(i for i in range(30, 1_000) if appended[i].ts >= 999)


def test_the_end_survives_trimming_everything(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        topic = log.create("raw", 1)
        topic.append(0, [Message(5, b"", b"")] * 700)
        topic.trim(0, 700)
    with EmbeddedLog(tmp_path) as log:
        topic = log.topic("raw")
        assert (topic.start(0), topic.end(0), topic.read(0, 700)) == (700, 700, [])
        assert topic.append(0, [Message(1, b"", b"")]) == 701


def test_sync_appends_are_read_back(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path, sync=True) as log:
        topic = log.create("raw", 1)
        assert topic.append(0, [Message(1, b"k", b"v")]) == 1
        assert topic.read(0, 0) == [Record(0, 1, b"k", b"v")]


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_in_the_middle_of_appends_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    end = 0
    for life in range(2):
        with python(WRITER, tmp_path, seed * 10 + life) as process:
            for _ in range(40 + 60 * seed):
                acknowledged = int(hear(process))
            process.kill()
            assert process.stdout is not None
            # A line that was on its way when the kill came is an acknowledgement too; one that was cut is not.
            acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
        with open_log(tmp_path) as log:
            topic = log.topic("raw")
            assert topic.end(0) >= acknowledged > end
            end = topic.end(0)
            position = 0
            while found := topic.read(0, position, 5_000):
                assert [record.offset for record in found] == list(range(position, position + len(found)))
                assert all(record.ts == record.offset and record.key == b"%d" % record.offset for record in found)
                position += len(found)
            assert position == end


def test_a_follower_in_another_process_sees_growth_and_trims(tmp_path: Path) -> None:
    with python(STEPPER, tmp_path) as process:
        assert hear(process) == "ready"
        with open_log(tmp_path) as log:
            topic = log.topic("raw")
            assert (topic.end(1), topic.read(1, 0)) == (0, [])
            for step in range(1, 6):
                assert say(process, "append") == str(step * 1_000)
                found = topic.read(1, (step - 1) * 1_000)
                assert [record.offset for record in found] == list(range((step - 1) * 1_000, step * 1_000))
            assert say(process, "trim") == "6000"
            assert (topic.start(1), topic.end(1)) == (5_990, 6_000)
            with pytest.raises(PositionLostError, match="first record is 5990"):
                topic.read(1, 0)
            assert len(topic.read(1, 5_990)) == 10


def test_a_reader_of_the_same_process_follows_too(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as writer, open_log(tmp_path) as reader:
        topic = writer.create("raw", 1)
        followed = reader.topic("raw")
        for i in range(5):
            topic.append(0, [Message(i, b"", b"")])
            assert followed.end(0) == i + 1
            assert followed.position_at(0, i) == i
            assert followed.read(0, i) == [Record(i, i, b"", b"")]


def test_a_follower_keeps_up_with_flushes_compactions_and_trims(tmp_path: Path) -> None:
    """The writer's files come and go under the follower; what it reads stays dense and true."""
    value = os.urandom(20_000)
    n_records = 6_000

    def write() -> None:
        for begin in range(0, n_records, 20):
            end = topic.append(0, [Message(i, b"", value + b"%d" % i) for i in range(begin, begin + 20)])
            if end % 500 == 0:
                topic.trim(0, max(0, end - 400))

    with EmbeddedLog(tmp_path) as log, open_log(tmp_path) as reader:
        topic = log.create("raw", 1)
        followed = reader.topic("raw")
        thread = threading.Thread(target=write)
        thread.start()
        position = n_seen = 0
        while position < n_records:
            try:
                found = followed.read(0, position, 300)
            except PositionLostError:
                position = followed.start(0)
                continue
            assert [record.offset for record in found] == list(range(position, position + len(found)))
            assert all(record.value == value + b"%d" % record.offset for record in found)
            position += len(found)
            n_seen += len(found)
        thread.join()
        assert n_seen > 0
        assert (followed.start(0), followed.end(0)) == (n_records - 400, n_records)


def test_a_follower_sees_a_trim_just_before_the_writer_came_back(tmp_path: Path) -> None:
    writer = EmbeddedLog(tmp_path)
    topic = writer.create("raw", 1)
    with open_log(tmp_path) as follower:
        topic.append(0, [Message(0, b"", b"%d" % i) for i in range(200)])
        topic.trim(0, 100)
        assert follower.topic("raw").start(0) == 100
        topic.trim(0, 200)
        writer.close()  # The trim is in the write-ahead log, which the next writer turns into a data file.
        with EmbeddedLog(tmp_path) as again:
            assert again.topic("raw").start(0) == 200
            assert follower.topic("raw").start(0) == 200
            assert follower.topic("raw").position_at(0, 0) == 200


def test_a_handle_that_read_first_can_write_later(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"a")])
    with EmbeddedLog(tmp_path) as log:
        topic = log.topic("raw")
        assert topic.end(0) == 1
        assert topic.append(0, [Message(2, b"", b"b")]) == 2
        assert [record.value for record in topic.read(0, 0)] == [b"a", b"b"]


def test_partitions_may_have_different_writers(tmp_path: Path) -> None:
    with python(STEPPER, tmp_path) as process, EmbeddedLog(tmp_path) as log:
        assert hear(process) == "ready"
        assert say(process, "append") == "1000"
        topic = log.topic("raw")
        assert topic.append(0, [Message(1, b"", b"")]) == 1
        assert topic.end(1) == 1_000
        with pytest.raises(TopicError, match=rf"topics/raw/1 is being written by process {process.pid} .*LOCK.*one writer"):
            topic.append(1, [Message(1, b"", b"")])
        assert len(topic.read(1, 0)) == topic.end(1) == 1_000
        assert say(process, "append") == "2000"
        assert topic.end(1) == 2_000


def test_a_second_writer_in_the_same_process_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as second:
        with EmbeddedLog(tmp_path) as first:
            first.create("raw", 1).append(0, [Message(1, b"", b"")])
            with pytest.raises(TopicError, match="another handle of this process"):
                second.topic("raw").append(0, [Message(2, b"", b"")])
        assert second.topic("raw").append(0, [Message(2, b"", b"")]) == 2


def test_threads_share_a_topic(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        topic = log.create("raw", 1)
        ends: list[int] = []
        threads = [
            threading.Thread(target=lambda: ends.extend(topic.append(0, [Message(1, b"", b"v")]) for _ in range(200)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == list(range(1, 801))
        assert len(topic.read(0, 0)) == 800


def test_a_log_that_is_read_only_refuses_to_change(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"")])
    with open_log(tmp_path) as log:
        topic = log.create("raw", 1)
        changes: list[Callable[[], int]] = [lambda: topic.append(0, [Message(1, b"", b"")]), lambda: topic.trim(0, 1)]
        for change in changes:
            with pytest.raises(TopicError, match="reading only"):
                change()
        with pytest.raises(TopicError, match="no topic 'other'"):
            log.create("other", 1)
        with pytest.raises(TopicError, match="exists with 1 partition"):
            log.create("raw", 2)
        assert topic.end(0) == 1
    assert not (tmp_path / "topics" / "other").exists()


def test_what_is_not_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="no log at"):
        open_log(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("milk")
    with pytest.raises(TopicError, match="not a log"):
        EmbeddedLog(tmp_path / "notes")
    with pytest.raises(TopicError, match="is a file"):
        EmbeddedLog(tmp_path / "notes" / "todo.txt")


def test_a_newer_or_damaged_topic_file_is_refused(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1)
        file = tmp_path / "topics" / "raw" / "topic.json"
        file.write_text('{"version": 2, "shards": 3}')
        for use in (lambda: log.topic("raw"), lambda: log.create("raw", 1), log.topics):
            with pytest.raises(TopicError, match=r"newer Freshet \(log format 2.*upgrade"):
                use()
        file.write_text('{"version": 1, "partit')
        with pytest.raises(TopicError, match="not a topic file"):
            log.topic("raw")


def test_a_damaged_partition_is_refused(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"")])
    (tmp_path / "topics" / "raw" / "0" / "CURRENT").write_text("nonsense")
    with EmbeddedLog(tmp_path) as log:
        with pytest.raises(TopicError, match=r"cannot read .*restore"):
            log.topic("raw").end(0)
        with pytest.raises(TopicError, match=r"cannot open .*restore"):
            log.topic("raw").append(0, [Message(1, b"", b"")])


def test_two_creators_agree_on_one_shape(tmp_path: Path) -> None:
    shapes: list[int] = []

    def create(n_partitions: int) -> None:
        with EmbeddedLog(tmp_path) as log, suppress(TopicError):
            shapes.append(log.create("raw", n_partitions).n_partitions)

    threads = [threading.Thread(target=create, args=(n,)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_log(tmp_path) as log:
        assert shapes == [log.topics()["raw"]]


def test_retention_gives_back_the_disk(tmp_path: Path) -> None:
    value = os.urandom(10_000)
    with EmbeddedLog(tmp_path) as log:
        topic = log.create("raw", 1, retention_ms=1_000)
        for begin in range(0, 12_000, 50):
            topic.append(0, [Message(i, b"", value) for i in range(begin, begin + 50)])
        assert topic.end(0) - topic.start(0) < 1_200
        assert topic.disk_bytes(0) < 60 << 20  # 120 MB were appended, 10 MB are held.


def test_a_follower_leaves_nothing_in_the_temporary_folder_however_it_ends(tmp_path: Path) -> None:
    follow = """
import sys
from stream_app.topics.embedded import open_log
with open_log(sys.argv[1]) as log:
    print(log.topic("raw").end(0), flush=True)
    sys.stdin.read()
"""
    with EmbeddedLog(tmp_path / "log") as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"")])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with python(follow, tmp_path / "log", TMPDIR=str(temporary)) as process:
        assert hear(process) == "1"
        assert list(temporary.iterdir()) == []
        process.kill()


def info_logs() -> dict[str, Path]:
    """Return the info logs of followers that this process has open."""
    opened = {os.path.realpath(file): file for file in Path("/proc/self/fd").iterdir()}
    return {path: file for path, file in opened.items() if "/freshet-follow-" in path and "/LOG" in path}


def test_a_follower_never_begins_another_info_log(tmp_path: Path) -> None:
    """With its folder gone it could not, and RocksDB would end the process; here after 40 GB that were appended."""
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"")])
        others = info_logs()  # of followers that this process has not let go of yet
        with open_log(tmp_path) as follower:
            assert follower.topic("raw").end(0) == 1
            (told,) = [file.read_text() for path, file in info_logs().items() if path not in others]
    assert "Options.max_log_file_size: 0\n" in told


@pytest.mark.parametrize(("n_failures", "comes"), [(1, True), (100, False)])
def test_a_read_that_failed_keeps_no_database_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_failures: int, comes: bool
) -> None:
    """Not while it is tried again, and not until somebody looks for garbage, which a replay has done rarely."""
    failures = [MissingChunkError("the writer's files have changed") for _ in range(n_failures)]
    decoded = ChunkCursor.decoded

    def fails(cursor: ChunkCursor) -> DecodedChunk:
        if failures:
            raise failures.pop()
        return decoded(cursor)

    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1).append(0, [Message(1, b"", b"v")])
    gc.collect()
    others = info_logs().keys()
    gc.disable()
    try:
        monkeypatch.setattr(ChunkCursor, "decoded", fails)
        with open_log(tmp_path) as follower:
            if comes:
                assert follower.topic("raw").read(0, 0) == [Record(0, 1, b"", b"v")]
                assert len(info_logs().keys() - others) == 1
            else:
                with pytest.raises(TopicError, match=r"cannot read .*files have changed.*restore"):
                    follower.topic("raw").read(0, 0)
        assert info_logs().keys() <= others
    finally:
        gc.enable()


def test_a_topic_that_is_asked_for_while_its_log_closes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a thread may that reads ahead; what it opened then, nobody would close."""
    with EmbeddedLog(tmp_path) as log:
        log.create("raw", 1)
    log = open_log(tmp_path)

    def closes_meanwhile(file: Path) -> TopicFile:
        log.close()
        return read_topic_file(file)

    monkeypatch.setattr(embedded, "read_topic_file", closes_meanwhile)
    with pytest.raises(TopicError, match="is closed; open it again"):
        log.topic("raw")
