"""Snapshots: a state goes on where it stood, on a machine that has never seen it; an owner of the past is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import msgspec
import obstore
import pytest
import xxhash
from obstore.store import MemoryStore
from rocksdict import Options, Rdict

from learners.samples import SampleBlock
from stream_app.durable_join import DurableJoin, JoinError, JoinReport
from stream_app.events import SAMPLES, Action, Impression, ImpressionItem
from stream_app.join import stream_samples
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.store import StateError
from stream_app.snapshots import SnapshotError, Snapshots, restore_if_newer
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

CONFIG = JoinConfig(label_window_ms=2_000, lateness_ms=0)


def add(log: MemoryLog, first: int, n: int) -> None:
    for i in range(first, first + n):
        ts = 10_000 + 100 * i
        page = Impression(f"r{i}", f"u{i % 7}", ts, [ImpressionItem("a"), ImpressionItem("b")])
        click = Action(f"u{i % 7}", "a", ts + 50, "click", f"r{i}")
        log.topic("impressions").append(0, [Message(ts, b"u", msgspec.json.encode(page))])
        log.topic("actions").append(0, [Message(ts + 50, b"u", msgspec.json.encode(click))])


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog()
    made.create("impressions", 1)
    made.create("actions", 1)
    add(made, 0, 200)
    return made


def opened(log: MemoryLog, folder: Path) -> DurableJoin:
    return DurableJoin(log, folder, CONFIG, 0, 1)


def run(join: DurableJoin) -> JoinReport:
    report = JoinReport(n_partitions=1)
    while join.step(report):
        pass
    return report


def rows(log: MemoryLog) -> list[dict[str, Any]]:
    records = log.topic(SAMPLES).read(0, 0, 1 << 20)
    return [row for record in records for row in SampleBlock.from_ipc(record.value).batch.to_pylist()]


@pytest.fixture(params=["memory", "folder", "file"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    urls: dict[str, str | MemoryStore] = {
        "memory": MemoryStore(),
        "folder": str(tmp_path / "kept"),
        "file": f"file://{tmp_path}/kept",
    }
    return Snapshots(urls[request.param])


def test_another_machine_goes_on_from_a_snapshot_with_raw_topics_trimmed(
    snapshots: Snapshots, log: MemoryLog, tmp_path: Path
) -> None:
    here = opened(log, tmp_path / "here" / "state")
    run(here)
    taken = snapshots.save(0, 3, here.checkpoint, tmp_path / "here" / "checkpoint")
    positions = {source.topic: source.position for source in here.inputs}
    assert taken.position == sum(positions.values())
    add(log, 200, 100)
    run(here)  # What is done after the snapshot is done again elsewhere; the same rows, published once.
    here.close()
    copy = MemoryLog()
    for name in ("impressions", "actions"):
        records = log.topic(name).read(0, 0, 1 << 20)
        copy.create(name, 1).append(0, [Message(r.ts, r.key, r.value) for r in records])
        log.topic(name).trim(0, positions[name])
    there = tmp_path / "there" / "state"
    with pytest.raises(JoinError, match="restore a snapshot"):
        opened(log, there)
    assert restore_if_newer(snapshots, 0, there)
    join = opened(log, there)
    report = run(join)
    assert 0 < report.events < 300
    while join.mark_the_end():
        run(join)
    join.close()
    assert len(rows(log)) == 300
    streamed = [row for block in stream_samples(copy, CONFIG, 0) for row in block.batch.to_pylist()]
    assert rows(log) == streamed


def test_a_snapshot_that_cannot_be_opened_is_not_taken_for_an_older_one(log: MemoryLog, tmp_path: Path) -> None:
    """All that there is must not be deleted for what may be a full disk, or one snapshot without a file."""
    kept = Snapshots(str(tmp_path / "kept"))
    join = opened(log, tmp_path / "here")
    run(join)
    taken = kept.save(0, 3, join.checkpoint, tmp_path / "checkpoint")
    join.close()
    files = {name: data for name, data in taken.files.items() if not name.startswith("MANIFEST")}
    with pytest.raises(SnapshotError, match=r"cannot be opened in .*MANIFEST.* the one before it counts") as found:
        kept.restore(msgspec.structs.replace(taken, files=files), tmp_path / "there")
    assert "--state" not in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "kept"]


def test_a_snapshot_of_an_older_format_says_what_to_do(log: MemoryLog, tmp_path: Path) -> None:
    kept = Snapshots(str(tmp_path / "kept"))
    join = opened(log, tmp_path / "here")
    run(join)
    taken = kept.save(0, 3, join.checkpoint, tmp_path / "checkpoint")
    join.close()
    # The stored snapshot is edited to what a version before has stored: its header says format 2.
    old = tmp_path / "old"
    kept.restore(taken, old)
    db = Rdict(str(old), Options(raw_mode=True))
    header = msgspec.msgpack.decode(cast(bytes, db.get(b"h")))
    assert header[-1] == 3
    db[b"h"] = msgspec.msgpack.encode([*header[:-1], 2])
    db.close()
    files = {}
    for file in old.iterdir():
        if not file.name.startswith(("LOCK", "LOG")):
            data = file.read_bytes()
            files[file.name] = f"{xxhash.xxh3_128_hexdigest(data)}-{len(data)}"
            (tmp_path / "kept" / "0" / "data" / files[file.name]).write_bytes(data)
    (manifest,) = (tmp_path / "kept" / "0").glob("*.json")
    manifest.write_bytes(msgspec.json.encode(msgspec.structs.replace(taken, files=files)))
    # A new machine, and one with a state that is not as far: nothing is put in its place.
    behind = DurableJoin(log, tmp_path / "behind", CONFIG, 0, 1, read_records=16)
    behind.step(JoinReport(n_partitions=1))
    behind.close()
    says = rf"snapshot 0/{manifest.name} in {tmp_path}/kept is of .* format 2, this version's of 3\): stop the workers, delete "
    for folder in (tmp_path / "there", tmp_path / "behind"):
        with pytest.raises(SnapshotError, match=says):
            restore_if_newer(kept, 0, folder)
        assert not folder.with_name(f"{folder.name}.restored").exists()
    assert not (tmp_path / "there").exists()
    opened(log, tmp_path / "behind").close()
    # A state of that format on this machine is refused before any snapshot is looked into, with its own way out.
    with pytest.raises(StateError, match=r"format 2, this version's of 3\): delete it .*snapshots of it too: --snapshots"):
        restore_if_newer(kept, 0, old)
    # What the message says helps.
    shutil.rmtree(tmp_path / "kept")
    assert not restore_if_newer(Snapshots(str(tmp_path / "kept")), 0, tmp_path / "there")
    join = opened(log, tmp_path / "there")
    assert run(join).events > 0
    join.close()


def test_a_state_that_is_further_stays(snapshots: Snapshots, log: MemoryLog, tmp_path: Path) -> None:
    assert not restore_if_newer(snapshots, 0, tmp_path / "state")
    join = opened(log, tmp_path / "state")
    run(join)
    snapshots.save(0, 1, join.checkpoint, tmp_path / "checkpoint")
    add(log, 200, 10)
    run(join)
    join.close()
    assert not restore_if_newer(snapshots, 0, tmp_path / "state")
    assert restore_if_newer(snapshots, 0, tmp_path / "older")


def test_an_owner_of_the_past_is_refused(snapshots: Snapshots, log: MemoryLog, tmp_path: Path) -> None:
    join = opened(log, tmp_path / "state")
    run(join)
    newest = snapshots.save(0, 5, join.checkpoint, tmp_path / "checkpoint")
    with pytest.raises(SnapshotError, match="another worker owns the partition"):
        snapshots.save(0, 4, join.checkpoint, tmp_path / "checkpoint")
    join.close()
    assert snapshots.newest(0) == newest
    assert snapshots.newest(1) is None


def test_two_are_kept_and_tables_are_stored_once(log: MemoryLog, tmp_path: Path) -> None:
    store = MemoryStore()
    snapshots = Snapshots(store)
    join = opened(log, tmp_path / "state")
    for generation in range(1, 5):
        run(join)
        taken = snapshots.save(0, generation, join.checkpoint, tmp_path / "checkpoint")
        add(log, 200 * generation, 20)
    join.close()
    paths = [each["path"] for piece in obstore.list(store) for each in piece]
    manifests = [path for path in paths if path.endswith(".json")]
    assert [path.rpartition("/")[2][:10] for path in sorted(manifests)] == ["0000000003", "0000000004"]
    kept = [msgspec.json.decode(bytes(obstore.get(store, path).bytes())) for path in manifests]
    assert {path.rpartition("/")[2] for path in paths if "/data/" in path} == {
        name for manifest in kept for name in manifest["files"].values()
    }
    assert taken.files.keys() >= {"CURRENT"}
    assert not (tmp_path / "checkpoint").exists()


def test_a_damaged_snapshot_is_not_taken_for_a_state(log: MemoryLog, tmp_path: Path) -> None:
    store = MemoryStore()
    snapshots = Snapshots(store)
    join = opened(log, tmp_path / "state")
    run(join)
    taken = snapshots.save(0, 1, join.checkpoint, tmp_path / "checkpoint")
    join.close()
    obstore.put(store, f"0/data/{next(iter(taken.files.values()))}", b"something else")
    with pytest.raises(SnapshotError, match="is damaged"):
        restore_if_newer(snapshots, 0, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_place_that_cannot_be_used_is_named() -> None:
    with pytest.raises(SnapshotError, match=r"ftp://nowhere.*give a folder, or a URL"):
        Snapshots("ftp://nowhere")
