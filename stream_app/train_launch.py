"""From a config to a training run: what it begins with, how it goes on, and how it is repeated."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from learners.checkpoint import Checkpoint, digest, latest, load
from learners.samples import SampleBlock, SampleError, SampleSchema
from stream_app.config import RunConfig
from stream_app.entrant import Entrant
from stream_app.entrants import build_entrants
from stream_app.events import SAMPLES
from stream_app.freed_memory import GivesBack, use_system_pool
from stream_app.item_vectors import ItemVectors, item_vectors
from stream_app.joiner.blocks import sample_schema
from stream_app.launch import check_same, say, set_threads
from stream_app.live_reader import LiveReader
from stream_app.live_view import LiveView
from stream_app.order import read_order, recorded_blocks
from stream_app.profile import Profile
from stream_app.report.writer import PageWriter
from stream_app.results import result_of
from stream_app.runs import CHECKPOINTS, ORDER, RunError, RunFolder, is_run
from stream_app.sample_sources import NO_END, TopicSource
from stream_app.samples_reader import Place
from stream_app.signals import PoliteStop
from stream_app.topics import Log, Topic, TopicError
from stream_app.train import Trainer
from stream_app.train_metrics import TrainMetrics

BASE = "base"
"""Folder in a run: the checkpoint that it began with, where it did not begin afresh."""
WAIT_SECONDS = 0.5

__all__ = ["BASE", "Commits", "Repeated", "Trained", "places_after", "repeat", "train"]


class Trained(NamedTuple):
    """A training run after its end."""

    trainer: Trainer
    profile: Profile
    stopped_by: int | None
    """Number of the signal that ended it; None where everything was drained."""


@runtime_checkable
class Commits(Protocol):
    """A log that takes notes of how far somebody has come."""

    def commit(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Note (topic, partition) -> next offset."""


def train(
    log: Log,
    config: RunConfig,
    run: Path,
    *,
    from_run: Path | None = None,
    drain: bool = False,
    metrics_port: int | None = None,
    quiet: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train from a log's samples as they come; go on with the run if there is one.

    Args:
        log: that somebody joins, now or later.
        config: of :func:`stream_app.launch.with_defaults`.
        run: folder of the run.
        from_run: a run to take the weights of, and its position unless ``replay.from`` is given.
        drain: end when all samples that are there now are learned.
        metrics_port: for Prometheus; None offers none.
        quiet: no progress.
        stop: asked after each step, beside SIGINT and SIGTERM.

    Raises:
        RunError: the folder holds another run.
        SampleError: the samples cannot be used, or are not those that the run began with.
        TopicError: the log cannot be read.
        GuardError: a model went wrong.
    """
    use_system_pool()
    profile = Profile()
    with contextlib.ExitStack() as opened:
        polite = opened.enter_context(PoliteStop())
        opened.enter_context(GivesBack())
        topic = _wait_for_samples(log, drain, polite, quiet)
        schema = _schema(topic, config)
        page = PageWriter(run, resumed=is_run(run))
        folder = opened.enter_context(RunFolder.open(run) if is_run(run) else RunFolder.create(run, config))
        check_same(folder, config)
        set_threads(config)
        items = item_vectors(log, config, run, live=True, profile=profile)
        entrants = build_entrants(config, schema, live=True, vectors=items.store if items else None)
        on_saved = _committer(log, config, quiet)
        trainer = _trainer(topic, config, schema, entrants, items, folder, from_run, profile, on_saved, page)
        page.begun(trainer)
        if trainer.batches:
            say(f"going on after {trainer.requests:,} requests", quiet)
        on_tick, on_step = _shown(opened, metrics_port, quiet)
        reader = opened.enter_context(_reader(topic, schema, trainer, config, drain, profile))
        ended = trainer.run(reader, on_tick, on_step, lambda: polite() or (stop is not None and stop()))
        page.finished(trainer, result_of(trainer))
    return Trained(trainer, profile, None if ended else polite.signal)


def _shown(
    opened: contextlib.ExitStack, metrics_port: int | None, quiet: bool
) -> tuple[Callable[[Any], None], Callable[[float], None]]:
    """Return what is called with a status, and with the seconds of a step: the view in the terminal and Prometheus' figures."""
    metrics = None if metrics_port is None else opened.enter_context(TrainMetrics(metrics_port))
    if metrics is not None:
        say(f"metrics for Prometheus on port {metrics.port}", quiet)
    view = opened.enter_context(LiveView(quiet=quiet))

    def on_tick(status: Any) -> None:
        view.update(status)
        if metrics is not None:
            metrics.update(status)

    return on_tick, (lambda seconds: None) if metrics is None else metrics.step


def _wait_for_samples(log: Log, drain: bool, stop: Callable[[], bool], quiet: bool) -> Topic:
    told = False
    while not drain and not stop() and SAMPLES not in log.topics():
        if not told:
            say(f"waiting for the topic {SAMPLES!r}: no join has written to it yet", quiet)
            told = True
        time.sleep(WAIT_SECONDS)
    return log.topic(SAMPLES)


def _schema(topic: Topic, config: RunConfig) -> SampleSchema:
    """Return what the config says the samples are, held against the newest ones."""
    schema = sample_schema(config.join, topic.n_partitions)
    for p in range(topic.n_partitions):
        if (end := topic.end(p)) > topic.start(p) and (records := topic.read(p, end - 1, 1)):
            found = SampleBlock.from_ipc(records[0].value).schema
            if found != schema:
                raise SampleError(
                    f"topic {SAMPLES!r} holds samples of generation {found.generation}, [join] of this config makes "
                    f"{schema.generation}: give the config that the join was given with --config, or train in a new run from "
                    "samples of this one"
                )
            break
    return schema


def _trainer(
    topic: Topic,
    config: RunConfig,
    schema: SampleSchema,
    entrants: Sequence[Entrant],
    items: ItemVectors | None,
    folder: RunFolder,
    from_run: Path | None,
    profile: Profile,
    on_saved: Callable[[Sequence[Place]], None],
    page: PageWriter,
) -> Trainer:
    """Return the trainer where it goes on: from its checkpoint, from the base of its models, or from the beginning."""
    checkpoint = folder.load()
    if checkpoint is not None:
        if "began_at" not in checkpoint.extra:
            raise RunError(
                f"the run in {str(folder.path)!r} is a replay's: give a new folder to --run, and --from-run {folder.path} to "
                "begin with its models"
            )
        trainer = Trainer(
            config, schema, entrants, (), folder, profile=profile, on_saved=on_saved, on_page=page.checkpointed, items=items
        )
        trainer.load(checkpoint)
        return trainer
    places = tuple(msgspec.structs.replace(place, end=NO_END) for place in TopicSource(topic).places(config.replay.start))
    base = folder.path / BASE
    if from_run is not None and not base.is_dir():
        _copy_base(from_run, base)
    based_on = None
    if base.is_dir():
        found = _take_base(base, schema, entrants, items)
        based_on = {"run": str(from_run), "digests": found.digests}
        if config.replay.start is None:
            places = places_after(topic, msgspec.convert(found.extra["learned"], type=tuple[Place, ...]))
    return Trainer(
        config,
        schema,
        entrants,
        places,
        folder,
        based_on=based_on,
        profile=profile,
        on_saved=on_saved,
        on_page=page.checkpointed,
        items=items,
    )


def _reader(
    topic: Topic, schema: SampleSchema, trainer: Trainer, config: RunConfig, drain: bool, profile: Profile
) -> LiveReader:
    """Return the reader of the samples after those that the trainer has learned."""
    return LiveReader(
        topic,
        schema,
        trainer.places,
        batch_requests=config.replay.batch_requests,
        wait_ms=config.train.wait_ms,
        queue_batches=config.train.queue_batches,
        drain=drain,
        profile=profile,
        prepare=trainer.preparation(),
    )


def _copy_base(from_run: Path, base: Path) -> None:
    path = latest(from_run / CHECKPOINTS) if is_run(from_run) else None
    if path is None:
        raise RunError(
            f"--from-run {str(from_run)!r}: there is no run with a checkpoint; give the folder of a replay or a training"
        )
    draft = base.with_name(f".{BASE}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(path, draft)
    os.replace(draft, base)


def _take_base(base: Path, schema: SampleSchema, entrants: Sequence[Entrant], items: ItemVectors | None) -> Checkpoint:
    """Give the models what they begin with, and the store its vectors; this log's items are put over them from their beginning.

    Raises:
        RunError: it knows other models.
        SampleError: it learned other samples.
        VectorError: its vectors are of another length.
        CheckpointError: it cannot be read, or is of a version whose models cannot go on here.
    """
    checkpoint = load(base, learn=True)
    if checkpoint.extra["generation"] != schema.generation:
        raise SampleError(
            f"--from-run: it learned samples of generation {checkpoint.extra['generation']}, these are of {schema.generation}: "
            "the joiner's config or the number of partitions differs. Replay with the config of the live join"
        )
    missing = [entrant.name for entrant in entrants if entrant.name not in checkpoint.models]
    if missing:
        raise RunError(
            f"--from-run: it has no model {missing[0]!r}, it has {', '.join(checkpoint.models)}: name one with --model"
        )
    if items is not None and (vectors := checkpoint.arrays.get("vectors")):
        items.load_store(vectors)
    for entrant in entrants:
        entrant.learner.load_state(checkpoint.models[entrant.name])
    return checkpoint


def places_after(topic: Topic, places: Sequence[Place]) -> tuple[Place, ...]:
    """Return the places after the same rows in this topic, whose blocks may be others than those that the rows were read from.

    The block of a mark is looked for by its ``seq``, so a replay that joined on the fly, or read another log of the same
    events, has a position here too; where the mark has not come yet, the place is the end.

    Raises:
        SampleError: the numbers of partitions differ.
    """
    if len(places) != topic.n_partitions:
        raise SampleError(f"topic {topic.name!r} has {topic.n_partitions} partitions, the run learned from {len(places)}")
    return tuple(
        msgspec.structs.replace(place, position=_block_of(topic, p, place), end=NO_END) for p, place in enumerate(places)
    )


def _block_of(topic: Topic, partition: int, place: Place) -> int:
    """Return the number of the first block whose last row is the mark or a later one, the end if there is none."""
    low, high = topic.start(partition), topic.end(partition)
    if place.seq is None:
        return low
    while low < high:
        middle = (low + high) // 2
        (record,) = topic.read(partition, middle, 1)
        if SampleBlock.from_ipc(record.value).marks().get(partition, -1) >= place.seq:
            high = middle
        else:
            low = middle + 1
    return low


def _committer(log: Log, config: RunConfig, quiet: bool) -> Callable[[Sequence[Place]], None]:
    """Return what tells the log how far the run has come. Advisory: it may fail, it may be late, nobody waits for it."""
    if not isinstance(log, Commits):
        return lambda places: None
    busy = threading.Lock()

    def commit(positions: Mapping[tuple[str, int], int]) -> None:
        try:
            log.commit(config.train.group, positions)
        except TopicError as error:
            say(f"the position was not committed, which only monitors of lag miss: {error}", quiet)
        finally:
            busy.release()

    def on_saved(places: Sequence[Place]) -> None:
        positions = {(SAMPLES, p): place.position + 1 for p, place in enumerate(places) if place.seq is not None}
        if positions and busy.acquire(blocking=False):
            threading.Thread(target=commit, args=(positions,), name="commit", daemon=True).start()

    return on_saved


class Repeated(NamedTuple):
    """A run that was learned once more."""

    requests: int
    digests: dict[str, str]
    """Per model, of what was learned now."""
    of_run: dict[str, str]
    """Per model, of the run's newest checkpoint."""

    @property
    def same(self) -> bool:
        """Whether both are the same, bit for bit."""
        return self.digests == self.of_run


def repeat(log: Log, run: Path) -> Repeated:
    """Learn once more what a live run has learned up to its newest checkpoint: the same rows in the same steps.

    Args:
        log: that the run learned from.
        run: its folder; it is only read.

    Raises:
        RunError: there is no checkpoint, or the order was not recorded.
        SampleError: the log does not hold the rows any more, or holds others.
    """
    path = latest(run / CHECKPOINTS) if is_run(run) else None
    if path is None or not (run / ORDER).is_file():
        raise RunError(f"{str(run)!r} is no training run with a checkpoint and a recorded order: there is nothing to repeat")
    config, checkpoint, topic = RunFolder.config_of(run), load(path, learn=True), log.topic(SAMPLES)
    schema = sample_schema(config.join, topic.n_partitions)
    set_threads(config)
    items = item_vectors(log, config, live=True)
    entrants = build_entrants(config, schema, vectors=items.store if items else None)
    if (run / BASE).is_dir():
        _take_base(run / BASE, schema, entrants, items)
    for entrant in entrants:
        entrant.learner.take_decisions(checkpoint.models[entrant.name])
    places = msgspec.convert(checkpoint.extra["began_at"], type=tuple[Place, ...])
    trainer = Trainer(config, schema, entrants, places)
    steps = read_order(run / ORDER, checkpoint.extra["order_bytes"])
    for step, block in recorded_blocks(topic, schema, places, steps):
        if items is not None:
            items.advance_to(step.items)
        trainer.learn(block)
    digests = {entrant.name: digest(entrant.learner.state()) for entrant in entrants}
    return Repeated(trainer.requests, digests, checkpoint.digests)
