"""Joining beside a replay, in a process of its own: the same batches, the same errors, and no process that is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learners.samples import SampleBlock
from stream_app.config import Layer, RunConfig, resolve
from stream_app.events import ACTIONS
from stream_app.joiner.joiner import ForeignRecordsError
from stream_app.log_config import log_layers
from stream_app.profile import Profile
from stream_app.read_messages import Ask, ReadProcessError, Setup
from stream_app.read_process import ReadProcess
from stream_app.replay_reading import ReplayReading, joins_beside
from stream_app.sample_sources import JoinedSource
from stream_app.samples_reader import Batch, Place
from stream_app.shared_blocks import SharedBlocks
from stream_app.topics import Message, TopicError
from stream_app.topics.address import FolderAddress
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.memory import MemoryLog
from tests.logs import made_up_log

ROOT = Path(__file__).resolve().parents[2]
REQUESTS, BATCH = 1_500, 20
PATIENCE_S = 300
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc about processes of another parent")
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a replay joins beside where it has two cores")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up log that nobody has joined."""
    return made_up_log(tmp_path_factory.mktemp("beside") / "log", REQUESTS, join=False)


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one."""
    return made_up_log(tmp_path_factory.mktemp("little") / "log", 300, join=False)


def config_of(folder: Path, span: tuple[int | None, int | None] = (None, None), **join: Any) -> RunConfig:
    replay = {"batch_requests": BATCH} | {name: ts for name, ts in zip(("from", "to"), span, strict=True) if ts is not None}
    return resolve([*log_layers(folder), Layer("test", {"join": join, "replay": replay})])


@contextlib.contextmanager
def reading_of(folder: Path, config: RunConfig, *, beside: bool, profile: Profile | None = None) -> Iterator[ReplayReading]:
    with open_log(folder) as log:
        source = JoinedSource(log, config.join)
        if not beside:
            source.address = None
        reading = ReplayReading(config, source, source.schema(), profile or Profile())
        try:
            yield reading
        finally:
            reading.close()


def beginning() -> tuple[Place, ...]:
    return (Place(position=0, end=2**62),) * 2


def told(batches: list[Batch]) -> list[tuple[Any, tuple[Place, ...], int]]:
    """Return batches so that equal ones compare equal, to the last bit."""
    return [(batch.block.to_ipc(), batch.places, batch.order_due) for batch in batches]


def both_ways(folder: Path, config: RunConfig, *streams: tuple[Place, ...]) -> list[list[list[Batch]]]:
    """Return the batches of streams, joined beside and joined in this process."""
    found = []
    for beside in (True, False):
        with reading_of(folder, config, beside=beside) as reading:
            reading.begin(*streams)
            with contextlib.ExitStack() as opened:
                each = [opened.enter_context(contextlib.closing(reading.stream(i))) for i in range(len(streams))]
                opened.callback(reading.close)
                found.append([list(stream) for stream in each])
    return found


@TWO_CORES
def test_batches_are_those_of_joining_in_the_process(raw: Path) -> None:
    config = config_of(raw)
    beside, inside = both_ways(raw, config, beginning())
    assert sum(len(batch.block) for batch in inside[0]) == REQUESTS
    assert told(beside[0]) == told(inside[0])
    # Two streams share one join; each goes on where its run was.
    learned, shown = inside[0][10].places, inside[0][30].places
    beside, inside = both_ways(raw, config, learned, shown)
    assert [len(stream) for stream in inside] == [REQUESTS // BATCH - 11, REQUESTS // BATCH - 31]
    assert [told(stream) for stream in beside] == [told(stream) for stream in inside]


@TWO_CORES
def test_a_range_is_that_of_joining_in_the_process(raw: Path) -> None:
    (whole,), _ = both_ways(raw, config_of(raw), beginning())
    first, last = (int(whole[at].block.column("ts")[0]) for at in (20, 50))
    beside, inside = both_ways(raw, config_of(raw, (first, last)), beginning(), beginning())
    shown = [ts for batch in inside[0] for ts in batch.block.column("ts").tolist()]
    assert first <= min(shown) <= max(shown) < last
    assert len(shown) > 20 * BATCH
    assert [told(stream) for stream in beside] == [told(stream) for stream in inside]


@TWO_CORES
def test_a_run_goes_on_by_seq_whatever_the_numbers_of_blocks_are(raw: Path) -> None:
    """As in a log that has grown since, where records are joined in other pieces."""
    config = config_of(raw)
    (whole,), _ = both_ways(raw, config, beginning())
    moved = tuple(msgspec.structs.replace(place, position=10**6) for place in whole[10].places)
    for (rest,) in both_ways(raw, config, moved):
        assert told(rest) == told(whole[11:])


@TWO_CORES
def test_who_joins_where(raw: Path) -> None:
    config = config_of(raw)
    with open_log(raw) as log:
        assert joins_beside(JoinedSource(log, config.join))
        copy = MemoryLog()
        for name, n_partitions in log.topics().items():
            copy.create(name, n_partitions)
    assert not joins_beside(JoinedSource(copy, config.join))  # No other process can see it.
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from tests.stream_app import test_read_process as here\n"
        f"with here.open_log({str(raw)!r}) as log:\n"
        f"    print(here.joins_beside(here.JoinedSource(log, here.config_of(here.Path({str(raw)!r})).join)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@TWO_CORES
def test_an_error_comes_where_it_belongs(raw: Path, tmp_path: Path) -> None:
    folder = made_up_log(tmp_path / "log", 300, join=False)
    with EmbeddedLog(folder) as log:
        topic = log.topic(ACTIONS)
        records = topic.read(0, 0, 50)
        last = topic.read(0, topic.end(0) - 1)[0].ts
        topic.append(1, [Message(last, record.key, record.value) for record in records])
    config = config_of(folder, max_foreign=10)
    said, before = [], []
    for beside in (True, False):
        batches: list[Batch] = []
        with reading_of(folder, config, beside=beside) as reading:
            reading.begin(beginning())
            with contextlib.closing(reading.stream(0)) as stream, pytest.raises(ForeignRecordsError) as raised:
                batches.extend(stream)
        said.append(str(raised.value))
        before.append(told(batches))
    assert "more than max_foreign = 10" in said[0]
    assert said[0] == said[1]
    assert before[0] == before[1]


def setup_of(folder: Path, at_once: int = 1, batch_requests: int = BATCH) -> Setup:
    config = config_of(folder)
    with open_log(folder) as log:
        schema = JoinedSource(log, config.join).schema()
    ask = Ask(beginning(), batch_requests, None, None, config.window_ms(), at_once)
    return Setup(FolderAddress(str(folder)), config.join, schema, (ask,))


def test_a_log_that_is_gone_is_an_error_of_the_replay(raw: Path, tmp_path: Path) -> None:
    setup = msgspec.structs.replace(setup_of(raw), address=FolderAddress(str(tmp_path / "nowhere")))
    process = ReadProcess(setup)
    try:
        with pytest.raises(TopicError, match="/nowhere; check the path") as raised:
            next(process.batches(0, Profile()))
        assert "In the process that reads" in raised.value.__notes__[0]
    finally:
        process.end()


def test_it_joins_no_further_ahead_than_the_socket_holds(raw: Path) -> None:
    process, profile = ReadProcess(setup_of(raw)), Profile()
    try:
        batches = process.batches(0, profile)
        rows = len(next(batches).block)
        assert "hand over" in {each.stage for each in profile.rows()}
        stuck = wait_until_idle(process.pid)
        assert stuck, "the process has ended: all was handed over though nobody took it"
        assert rows + sum(len(batch.block) for batch in batches) == REQUESTS
        assert {each.stage: each.calls for each in profile.rows()}["hand over"] == REQUESTS // BATCH
    finally:
        process.end()


def wait_until_idle(pid: int) -> bool:
    """Wait until a process has used no CPU for a second; return whether it still lives."""
    seen, since = "", time.monotonic()
    while time.monotonic() - since < 1.0:
        if not lives(pid):
            return False
        used = " ".join(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        if used != seen:
            seen, since = used, time.monotonic()
        time.sleep(0.05)
    return True


def test_a_process_that_was_killed_is_told_of(raw: Path) -> None:
    process = ReadProcess(setup_of(raw))
    try:
        batches = process.batches(0, Profile())
        next(batches)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ReadProcessError, match=r"was killed by signal 9 .*memory is short.*--resume"):
            list(batches)
    finally:
        process.end()


def test_who_waits_is_woken_at_the_end(raw: Path) -> None:
    process, raised = ReadProcess(setup_of(raw)), threading.Event()
    os.kill(process.pid, signal.SIGSTOP)  # It will never answer.

    def wait() -> None:
        with contextlib.suppress(ReadProcessError):
            list(process.batches(0, Profile()))
        raised.set()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    process.end()
    thread.join(PATIENCE_S)
    assert raised.is_set()
    assert not lives(process.pid)


class Twice:
    """Two blocks, and then an error."""

    name, n_partitions = "twice", 1

    def __init__(self, block: SampleBlock) -> None:
        self.block, self.made = block, 0

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        for number in range(2):
            self.made += 1
            yield number, self.block
        raise TopicError("the third one is gone")


def test_readers_share_one_pass_and_its_error(make_block: Callable[..., SampleBlock]) -> None:
    source = Twice(make_block(range(2), [1, 2]))
    shared = SharedBlocks(source, 2)
    ahead, behind = (shared.blocks(0, 0, 2) for _ in range(2))
    found: list[list[int]] = [[], []]
    for numbers, reader in zip(found, (ahead, behind), strict=True):
        with pytest.raises(TopicError, match="the third one is gone"):
            numbers.extend(number for number, _ in reader)
        assert source.made == 2
    # `extend` keeps what came before the error.
    assert found == [[0, 1], [0, 1]]


# -- the command


def replay(raw: Path, *words: str, cores: str = "os.sched_getaffinity(0)", batch: int = BATCH) -> subprocess.Popen[str]:
    code = f"import os, sys; os.sched_setaffinity(0, {cores}); from stream_app.cli import main; sys.exit(main(sys.argv[1:]))"
    options = (
        "--model",
        "trend",
        "--threads",
        "1",
        "--json",
        "--set",
        f"replay.batch_requests={batch}",
        "--set",
        "replay.bootstrap=0",
    )
    command = [sys.executable, "-c", code, "replay", "--log", str(raw), *options, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def child_of(process: subprocess.Popen[str]) -> int:
    """Wait for the process that joins, and return its number."""
    deadline = time.monotonic() + PATIENCE_S
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):  # It has ended meanwhile.
                if b"stream_app.read_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    raise AssertionError(process.communicate()[1])


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_for_its_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while lives(pid):
        assert time.monotonic() < deadline, f"process {pid} is left behind"
        time.sleep(0.02)


@TWO_CORES
def test_one_core_and_two_give_the_same_figures(little: Path) -> None:
    found = []
    for cores in ("os.sched_getaffinity(0)", "[min(os.sched_getaffinity(0))]"):
        out, err = (process := replay(little, "--profile", cores=cores)).communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        result = json.loads(out)
        del result["seconds"]
        for model in result["models"].values():
            del model["impressions_per_s"]
        found.append((result, {word for word in ("join", "merge", "hand over") if word in err}))
    assert found[0][0] == found[1][0]
    assert [stages for _, stages in found] == [{"join", "merge", "hand over"}, {"join", "merge"}]


@LINUX
@TWO_CORES
def test_no_process_outlives_a_replay_that_is_killed(raw: Path) -> None:
    process = replay(raw, batch=1)
    child = child_of(process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for_its_end(child)


@LINUX
@TWO_CORES
def test_a_replay_whose_joining_was_killed_says_so(raw: Path) -> None:
    process = replay(raw, batch=1)
    os.kill(child_of(process), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, "")
    assert "that joins for the replay was killed by signal 9" in err
    assert "Traceback" not in err


@LINUX
@TWO_CORES
def test_ctrl_c_is_heard_by_the_replay_alone(raw: Path, tmp_path: Path) -> None:
    """How it goes on then is in tests/integration/test_replay_kill.py."""
    for n in range(9):  # It may end before that, where the machine lets it run and not the test.
        run = tmp_path / f"run{n}"
        process = replay(raw, "--run", str(run), "--set", "replay.checkpoint_seconds=0.2", batch=1)
        child = child_of(process)
        deadline = time.monotonic() + PATIENCE_S
        while not (run / "checkpoints" / "LATEST").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        if process.returncode:
            break
    assert (process.returncode, out) == (130, ""), err
    assert f"go on with: freshet replay --run {run} --resume" in err
    wait_for_its_end(child)
