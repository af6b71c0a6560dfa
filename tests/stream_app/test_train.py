"""The trainer: every row once, in an order that can be repeated; what it refuses; what a kill and a wrong model leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from learners.checkpoint import digest, latest, load
from learners.learner import Learner, Scores, State, Stats
from learners.metrics import MetricOptions
from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.config import Layer, RunConfig, resolve
from stream_app.entrant import Entrant
from stream_app.follower import Taken
from stream_app.guard import GuardError
from stream_app.live_reader import LiveReader
from stream_app.order import RecordedStep, encode_step, read_order, recorded_blocks
from stream_app.profile import Profile
from stream_app.runs import CHECKPOINTS, ORDER, RunFolder
from stream_app.sample_sources import NO_END
from stream_app.samples_reader import Place, SequenceGapError
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog
from stream_app.train import Trainer
from stream_app.train_launch import places_after

Make = Callable[..., SampleBlock]
N_ITEMS = 21
PATIENCE_S = 300
"""Bounds what hangs."""


class Counts(Learner):
    """Clicks per item with decay, so that the state depends on how the stream was cut; goes wrong when told to."""

    def __init__(self) -> None:
        self.name = "counts"
        self.clicks = np.ones(N_ITEMS)
        self.shown = np.full(N_ITEMS, 2.0)
        self.seen: list[tuple[int, int]] = []
        self.poison: str | None = None

    def predict(self, block: SampleBlock) -> Scores:
        items = block.ragged("candidate.item").values
        scores = np.asarray(self.clicks[items] / self.shown[items], np.float32).clip(0, 1)
        return 1 - scores if self.poison == "upside down" else scores

    def learn(self, block: SampleBlock) -> Stats:
        self.seen += zip(block.column("partition").tolist(), block.column("seq").tolist(), strict=True)
        items, labels = block.ragged("candidate.item").values, block.ragged("candidate.label").values
        self.clicks *= 0.999
        self.shown *= 0.999
        np.add.at(self.clicks, items, labels)
        np.add.at(self.shown, items, 1.0)
        if self.poison == "weights":
            self.clicks[0] = np.nan  # of an item that is never shown: no score tells
        return {"loss.click": np.nan if self.poison == "loss" else 0.5, "loss.edges": np.nan}

    def state(self) -> State:
        return {"clicks": self.clicks, "shown": self.shown}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.clicks, self.shown = (np.array(state[name]) for name in ("clicks", "shown"))


def config_of(**train: Any) -> RunConfig:
    replay = {"models": ["counts"], "batch_requests": 7, "window_ms": 300, "checkpoint_seconds": 1e-3, "eval": "immediate"}
    options = {"wait_ms": 0, "guard_impressions": 1, "guard_history": 4, **train}
    return resolve([Layer("test", {"replay": replay, "train": options})])


def append(topic: Topic, make: Make, partition: int, seqs: Sequence[int], **more: Any) -> None:
    block = make(seqs, [3 * seq + partition for seq in seqs], partition=partition, **more)
    topic.append(partition, [Message(int(block.column("due")[-1]), b"", block.to_ipc())])


def topic_of(make: Make, n_requests: int = 200, n_partitions: int = 2) -> Topic:
    topic = MemoryLog().create("samples", n_partitions)
    for partition in range(n_partitions):
        for first in range(0, n_requests, 16):
            append(topic, make, partition, range(first, min(first + 16, n_requests)))
    return topic


def trainer_of(config: RunConfig, schema: SampleSchema, folder: RunFolder | None, n_partitions: int = 2) -> Trainer:
    entrants = [Entrant("counts", Counts(), (), MetricOptions(window_ms=config.replay.window_ms))]
    trainer = Trainer(config, schema, entrants, (Place(position=0, end=NO_END),) * n_partitions, folder)
    if folder is not None and (checkpoint := folder.load()) is not None:
        trainer.load(checkpoint)
    return trainer


def counts(trainer: Trainer) -> Counts:
    learner = trainer.entrants[0].learner
    assert isinstance(learner, Counts)
    return learner


def reader_of(
    topic: Topic, schema: SampleSchema, trainer: Trainer, drain: bool = True, profile: Profile | None = None
) -> LiveReader:
    train = trainer.config.train
    return LiveReader(
        topic,
        schema,
        trainer.places,
        batch_requests=trainer.config.replay.batch_requests,
        wait_ms=train.wait_ms,
        queue_batches=2,
        drain=drain,
        profile=profile,
        prepare=trainer.preparation(),
    )


def drain(topic: Topic, schema: SampleSchema, trainer: Trainer, stop_after: int | None = None) -> bool:
    with reader_of(topic, schema, trainer) as reader:
        return trainer.run(reader, stop=lambda: stop_after is not None and trainer.batches >= stop_after)


def order_of(path: Path) -> list[RecordedStep]:
    newest = latest(path / CHECKPOINTS)
    assert newest is not None
    return list(read_order(path / ORDER, load(newest).extra["order_bytes"]))


def rows_of(order: Sequence[RecordedStep]) -> list[tuple[int, int]]:
    return [(t.partition, t.first + i) for step in order for t in step.taken for i in range(t.n)]


def repeated(topic: Topic, schema: SampleSchema, path: Path) -> str:
    """Return the digest of what the run's order gives."""
    trainer = trainer_of(config_of(), schema, None)
    for _, block in recorded_blocks(topic, schema, trainer.began_at, iter(order_of(path))):
        trainer.learn(block)
    return digest(counts(trainer).state())


def test_rows_that_come_while_it_learns_are_learned_once_and_can_be_repeated(make_block: Make, tmp_path: Path) -> None:
    topic, schema = MemoryLog().create("samples", 2), make_block([0], [0]).schema
    config = config_of(wait_ms=3)
    draws = np.random.default_rng(5)

    def produce() -> None:
        heads = [0, 0]
        while min(heads) < 300:
            p = int(draws.integers(2))
            n = int(draws.integers(1, 20))
            append(topic, make_block, p, range(heads[p], heads[p] + n))
            heads[p] += n
            time.sleep(float(draws.random()) * 0.005)

    producer = threading.Thread(target=produce)
    with RunFolder.create(tmp_path / "run", config) as folder:
        trainer = trainer_of(config, schema, folder)
        producer.start()

        def done() -> bool:
            return not producer.is_alive() and len(counts(trainer).seen) == sum(
                SampleBlock.from_ipc(r.value).batch.num_rows for p in range(2) for r in topic.read(p, 0, 10_000)
            )

        with reader_of(topic, schema, trainer, drain=False) as reader:
            assert not trainer.run(reader, stop=done)
    producer.join()
    seen = counts(trainer).seen
    for p in range(2):
        of_partition = [seq for partition, seq in seen if partition == p]
        assert of_partition == list(range(len(of_partition)))
        assert len(of_partition) >= 300
    order = order_of(tmp_path / "run")
    assert rows_of(order) == seen
    assert max(sum(t.n for t in step.taken) for step in order) == 7
    assert repeated(topic, schema, tmp_path / "run") == digest(counts(trainer).state())


@pytest.mark.parametrize("stops", [(), (1,), (5, 6, 40), (57,)])
def test_a_stop_and_another_start_learn_each_row_once(make_block: Make, tmp_path: Path, stops: tuple[int, ...]) -> None:
    topic, config = topic_of(make_block), config_of()
    schema = make_block([0], [0]).schema
    RunFolder.create(tmp_path / "run", config).close()
    for stop in (*stops, None):
        with RunFolder.open(tmp_path / "run") as folder:
            trainer = trainer_of(config, schema, folder)
            assert drain(topic, schema, trainer, stop) == (stop is None)
    rows = rows_of(order_of(tmp_path / "run"))
    assert sorted(rows) == [(p, seq) for p in range(2) for seq in range(200)]
    assert trainer.requests == 400
    assert repeated(topic, schema, tmp_path / "run") == digest(counts(trainer).state())


def test_a_backlog_is_learned_in_the_order_of_time_roughly(make_block: Make) -> None:
    topic, schema = topic_of(make_block, 320), make_block([0], [0]).schema
    trainer = trainer_of(config_of(), schema, None)
    drain(topic, schema, trainer)
    due = [3 * seq + partition for partition, seq in counts(trainer).seen]
    assert max(np.maximum.accumulate(due) - due) <= 3 * 16


@pytest.mark.parametrize("prepares", [True, False])
def test_a_profile_has_no_stage_that_prepares_nothing(make_block: Make, prepares: bool) -> None:
    topic, schema = topic_of(make_block, 32), make_block([0], [0]).schema
    trainer, profile = trainer_of(config_of(), schema, None), Profile()
    counts(trainer).prepares_ahead = prepares
    with reader_of(topic, schema, trainer, profile=profile) as reader:
        assert trainer.run(reader)
    assert ("prepare" in {name for name, _, _ in profile.rows()}) == prepares


def test_what_was_published_twice_is_learned_once(make_block: Make) -> None:
    topic, schema = MemoryLog().create("samples", 1), make_block([0], [0]).schema
    for seqs in (range(10), range(10), range(5, 15), range(15, 20), range(3, 20)):
        append(topic, make_block, 0, seqs)
    trainer = trainer_of(config_of(), schema, None, 1)
    drain(topic, schema, trainer)
    assert counts(trainer).seen == [(0, seq) for seq in range(20)]


def broken(make: Make, kind: str) -> tuple[bytes, str]:
    """Return a record that cannot follow row 30, and what the message says."""
    if kind == "gap":
        return make(range(32, 40), range(32, 40)).to_ipc(), "seq 31 was expected, 32 came.*--from-run"
    if kind == "generation":
        schema = msgspec.structs.replace(make([0], [0]).schema, generation="another")
        return make(range(31, 40), range(31, 40), schema=schema).to_ipc(), "generation another after.*new run"
    if kind == "newer":
        schema = msgspec.structs.replace(make([0], [0]).schema, version=99)
        return make(range(31, 40), range(31, 40), schema=schema).to_ipc(), "version 99.*update Freshet"
    if kind == "partition":
        return make(range(31, 40), range(31, 40), partition=1).to_ipc(), "rows of another partition"
    return b"no arrow", "not a block of samples"


@pytest.mark.parametrize("kind", ["gap", "generation", "newer", "partition", "unreadable"])
def test_it_stops_at_what_cannot_be_learned_with_all_before_it_saved(make_block: Make, tmp_path: Path, kind: str) -> None:
    topic, schema, config = MemoryLog().create("samples", 1), make_block([0], [0]).schema, config_of()
    append(topic, make_block, 0, range(31))
    value, message = broken(make_block, kind)
    topic.append(0, [Message(0, b"", value)])
    with RunFolder.create(tmp_path / "run", config) as folder:
        trainer = trainer_of(config, schema, folder, 1)
        with pytest.raises(SequenceGapError if kind == "gap" else SampleError, match=message):
            drain(topic, schema, trainer)
    assert rows_of(order_of(tmp_path / "run")) == [(0, seq) for seq in range(31)]


def test_other_samples_than_those_of_the_run_are_refused(make_block: Make, tmp_path: Path) -> None:
    topic, schema, config = topic_of(make_block), make_block([0], [0]).schema, config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        drain(topic, schema, trainer_of(config, schema, folder), 10)
    other, short = MemoryLog().create("samples", 2), MemoryLog().create("samples", 2)
    for partition in range(2):
        for first in range(0, 96, 16):
            block = make_block(range(first, first + 16), range(16), partition=partition)
            columns = block.batch.set_column(2, block.batch.schema.field(2), block.batch.column("user"))
            other.append(partition, [Message(0, b"", SampleBlock(columns, schema).to_ipc())])
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="ends at block 0, the run was at"):
        drain(short, schema, trainer_of(config, schema, folder))
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="other samples"):
        drain(other, schema, trainer_of(config, schema, folder))
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="3 partitions"):
        drain(topic_of(make_block, 10, 3), schema, trainer_of(config, schema, folder))


def test_rows_that_retention_dropped_before_they_were_learned_are_a_gap(make_block: Make, tmp_path: Path) -> None:
    topic, schema, config = topic_of(make_block, 200, 1), make_block([0], [0]).schema, config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        drain(topic, schema, trainer_of(config, schema, folder, 1), 8)  # 56 rows: the fourth block is half learned
    for n_blocks, refused in ((3, False), (5, True)):
        kept = MemoryLog().create("samples", 1)
        kept.append(0, [Message(record.ts, b"", record.value) for record in topic.read(0, 0)])
        kept.trim(0, n_blocks)
        with RunFolder.open(tmp_path / "run") as folder:
            trainer = trainer_of(config, schema, folder, 1)
            if refused:
                with pytest.raises(SequenceGapError, match="samples are missing"):
                    drain(kept, schema, trainer)
            else:
                drain(kept, schema, trainer, 9)


@pytest.mark.parametrize("first", [2, 7, 40])
def test_places_are_found_in_other_blocks_of_the_same_rows(make_block: Make, first: int) -> None:
    topic = MemoryLog().create("samples", 2)
    for start in range(0, 200, first):
        append(topic, make_block, 0, range(start, min(200, start + first)))
    marks = [Place(position=77, end=1, seq=seq, request=7 * seq + 1) for seq in (0, 1, first - 1, first, 150, 199, 500)]
    for mark in marks:
        place, untouched = places_after(topic, [mark, Place(position=9, end=9)])
        assert untouched.position == 0
        assert mark.seq is not None
        assert place.position == min(mark.seq // first, topic.end(0))


def test_the_order_of_a_step_is_a_line_and_a_cut_file_is_told(tmp_path: Path) -> None:
    steps = [RecordedStep((Taken(0, 0, 3), Taken(1, 7, 1))), RecordedStep((Taken(1, 8, 2),), (5, 0))]
    path = tmp_path / "order.jsonl"
    path.write_bytes(b"".join(encode_step(*step) for step in steps))
    size = path.stat().st_size
    assert list(read_order(path, size)) == steps
    assert list(read_order(path, len(encode_step(*steps[0])))) == steps[:1]
    with pytest.raises(SampleError, match="truncated"):
        list(read_order(path, size + 1))
    path.write_bytes(b"[[0,0")
    with pytest.raises(SampleError, match="damaged"):
        list(read_order(path, 5))


def test_a_long_step_loses_nothing(make_block: Make, tmp_path: Path) -> None:
    """While a step takes long the reader fills its queue and waits; nobody has to be told that it is still there."""
    topic, schema = topic_of(make_block, 60), make_block([0], [0]).schema
    trainer = trainer_of(config_of(), schema, None)
    fills: list[float] = []
    with reader_of(topic, schema, trainer) as reader:

        def takes_long(seconds: float) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while trainer.batches == 3 and reader.queue_fill() < 1 and time.monotonic() < deadline:
                time.sleep(1e-3)
            if trainer.batches == 3:
                time.sleep(0.2)  # With nowhere to put the next one.

        trainer.run(reader, on_step=takes_long, on_tick=lambda status: fills.append(status.queue_fill))
    assert sorted(counts(trainer).seen) == [(p, seq) for p in range(2) for seq in range(60)]
    assert max(fills) == 1.0


# -- the guard


@pytest.mark.parametrize(("poison", "message"), [("loss", "loss.click is nan"), ("weights", "clicks is not finite")])
def test_numbers_that_are_none_stop_the_run_and_leave_the_last_good_checkpoint(
    make_block: Make, tmp_path: Path, poison: str, message: str
) -> None:
    topic, schema, config = topic_of(make_block), make_block([0], [0]).schema, config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        trainer = trainer_of(config, schema, folder)
        drain(topic, schema, trainer, 10)
        good = trainer.checkpoint.name
        counts(trainer).poison = poison
        with pytest.raises(GuardError, match=f"{message}.*last good checkpoint is {good}.*--from-run"):
            drain(topic, schema, trainer)
    found = latest(tmp_path / "run" / CHECKPOINTS)
    assert found is not None
    assert found.name == good
    assert np.isfinite(load(found).models["counts"]["clicks"]).all()
    with RunFolder.open(tmp_path / "run") as folder:
        healed = trainer_of(config, schema, folder)
        drain(topic, schema, healed)
    assert sorted(rows_of(order_of(tmp_path / "run"))) == [(p, seq) for p in range(2) for seq in range(200)]


def test_a_collapse_turns_back_to_a_checkpoint_that_a_good_window_has_proven(make_block: Make, tmp_path: Path) -> None:
    topic, schema = topic_of(make_block, 1_600), make_block([0], [0]).schema
    config = config_of(guard_windows=2)
    with RunFolder.create(tmp_path / "run", config) as folder:
        trainer = trainer_of(config, schema, folder)

        def poison(seconds: float) -> None:
            while trainer.batches % 10 == 0 and folder.saving:  # checkpoints all along
                time.sleep(1e-3)
            if trainer.ts > 3_000:
                counts(trainer).poison = "upside down"

        with reader_of(topic, schema, trainer) as reader, pytest.raises(GuardError, match=r"AUC .* is usual") as error:
            trainer.run(reader, on_step=poison)
    found = latest(tmp_path / "run" / CHECKPOINTS)
    assert found is not None
    assert f"last good checkpoint is {found.name}" in str(error.value)
    assert 0 < load(found).extra["ts"] <= 3_000
    assert trainer.ts > 3_300


def test_without_a_guard_nothing_is_judged(make_block: Make) -> None:
    topic, schema = topic_of(make_block), make_block([0], [0]).schema
    trainer = trainer_of(config_of(guard=False), schema, None)
    counts(trainer).poison = "loss"
    assert drain(topic, schema, trainer)


# -- checkpoints beside learning


def test_a_checkpoint_written_beside_is_that_of_its_moment(make_block: Make, tmp_path: Path) -> None:
    topic, schema, config = topic_of(make_block), make_block([0], [0]).schema, config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        trainer = trainer_of(config, schema, folder)
        learner, names = counts(trainer), set()
        at: dict[int, str] = {}

        def note(seconds: float) -> None:
            while trainer.batches % 4 == 0 and folder.saving:  # steps go on beside the writing, and do not outrun it
                time.sleep(1e-3)
            at[trainer.batches] = digest(learner.state())
            names.add(trainer.checkpoint.name)

        with reader_of(topic, schema, trainer) as reader:
            trainer.run(reader, on_step=note, stop=lambda: trainer.batches == 50)
            assert len(names) > 4, "checkpoints were written while it learned"
    for folder_of in sorted((tmp_path / "run" / CHECKPOINTS).glob("0*")):
        checkpoint = load(folder_of)
        assert checkpoint.digests["counts"] == at[checkpoint.step]


def test_what_fails_beside_is_told_and_leaves_the_checkpoint_before(make_block: Make, tmp_path: Path) -> None:
    config = config_of()
    state = {"a": np.arange(200_000.0)}
    with RunFolder.create(tmp_path / "run", config) as folder:
        first = folder.save(1, models={"m": state}, arrays={}, marks={}, extra={})

        def refuse(states: Mapping[str, Any]) -> None:
            raise OSError("the disk is full")

        content: dict[str, Any] = {"models": {"m": state}, "arrays": {}, "marks": {}, "extra": {}}
        assert not folder.save_beside(2, **content), "memory for a large copy comes first"
        assert folder.save_beside(2, **content, check=refuse)
        with pytest.raises(OSError, match="disk is full"):
            folder.settle()
        assert latest(tmp_path / "run" / CHECKPOINTS) == first
        assert folder.save_beside(3, **content)
    assert latest(tmp_path / "run" / CHECKPOINTS) != first
