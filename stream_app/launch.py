"""From a config to a replay that has run: what ``freshet replay`` and ``freshet demo`` share."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from learners.models import config_of
from stream_app.config import RunConfig
from stream_app.entrants import build_entrants
from stream_app.item_vectors import item_vectors
from stream_app.profile import Profile
from stream_app.progress import Progress
from stream_app.replay import Replay, Step
from stream_app.replay_reading import ReplayReading
from stream_app.report.writer import PageWriter
from stream_app.runs import RunError, RunFolder, differences
from stream_app.sample_sources import open_source
from stream_app.signals import PoliteStop
from stream_app.topics import Log

DEFAULT_MODELS = ("egin",)
FEW_STEPS = 100
"""A run of fewer steps tells little about a network, and says so."""
SWITCH_SECONDS = 1e-4
"""A step takes the interpreter back after each of its kernels, some hundred times; where the threads that read and count may
keep it for Python's 5 ms, it waits for them. A replay takes .9 of the time so (benchmarks/replay.py)."""

__all__ = ["Launched", "check_same", "launch", "say", "set_threads", "with_defaults"]


class Launched(NamedTuple):
    """A replay after its run."""

    replay: Replay
    profile: Profile
    page: PageWriter | None
    """Of a run that is kept."""
    stopped_by: int | None
    """Number of the signal that ended it early; None where it reached the end of the range."""


def with_defaults(config: RunConfig) -> RunConfig:
    """Return a config that says all: which models with all their options, how many threads.

    Raises:
        ModelError: there is no such model, or it does not take an option.
    """
    names = config.replay.models or tuple(config.models) or DEFAULT_MODELS
    threads = config.replay.threads or len(os.sched_getaffinity(0))
    models = {}
    for name in names:
        kind = config.model_type(name)
        models[name] = {"type": kind, **msgspec.to_builtins(config_of(kind, config.model_options(name)))}
    replay = msgspec.structs.replace(config.replay, models=names, threads=threads)
    return msgspec.structs.replace(config, replay=replay, models=models)


def launch(log: Log, config: RunConfig, run: Path | None = None, *, resume: bool = False, quiet: bool = False) -> Launched:
    """Replay a log's samples.

    Args:
        log: open for reading.
        config: of :func:`with_defaults`.
        run: folder of the run; None keeps nothing.
        resume: go on with the run in ``run``.
        quiet: no progress.

    Raises:
        RunError: the folder holds another run, or none.
        SampleError: the samples cannot be used, or are not those that the run began with.
    """
    if resume and run is None:
        raise RunError("--resume needs --run: the folder of the run to go on with")
    profile = Profile()
    source = open_source(log, config.join, profile)
    reading = ReplayReading(config, source, source.schema(), profile)
    folder = None if run is None else (RunFolder.open(run) if resume else RunFolder.create(run, config))
    try:
        if folder is not None and resume:
            check_same(folder, config)
        if not resume:
            # It starts while the models are made.
            places = source.places(config.replay.start)
            reading.begin(places, *([places] if config.delayed() else []))
        set_threads(config)
        items = item_vectors(log, config, run, profile=profile)
        entrants = build_entrants(config, source.schema(), vectors=items.store if items else None)
        for entrant in entrants:
            for part, why in entrant.learner.describe().get("off", {}).items():
                say(f"{entrant.name}: {part} is off, because {why}", quiet)
        page = None if folder is None else PageWriter(folder.path, resumed=resume)
        on_saved = page.checkpointed if page else _nothing
        replay = Replay(config, source, entrants, folder, profile, on_saved=on_saved, items=items, reading=reading)
        if folder is not None and resume and (checkpoint := folder.load()) is not None:
            replay.load(checkpoint)
            say(f"going on after {replay.requests:,} requests", quiet)
        if page is not None:
            page.begun(replay)
        with PoliteStop() as stop, Progress("replay", "requests", quiet=quiet) as progress:

            def on_step(step: Step) -> None:
                progress.update(step.requests, f"at {_utc(step.ts)}", share=step.share)

            finished = replay.run(on_step, stop)
        if finished and replay.batches < FEW_STEPS:
            say(
                f"only {replay.batches} steps of {config.replay.batch_requests} requests: too few for a network to learn much. "
                "For a log as small as this: --set replay.batch_requests=10",
                quiet,
            )
    finally:
        reading.close()
        if folder is not None:
            folder.close()
    return Launched(replay, profile, page, None if finished else stop.signal)


def check_same(folder: RunFolder, config: RunConfig) -> None:
    """Refuse to go on with a run under another config.

    Raises:
        RunError: an option differs.
    """
    if found := differences(RunFolder.config_of(folder.path), config):
        lines = "; ".join(f"{each.key} was {each.of_run!r}, now {each.asked!r}" for each in found)
        raise RunError(
            f"the run in {str(folder.path)!r} was begun with another config: {lines}. Leave these options as they were, "
            "or start a new run in another folder"
        )


def set_threads(config: RunConfig) -> None:
    """Give torch its threads, where the models have brought it in, and with them the step (:mod:`learners.threads`); before
    anything is on a device."""
    if "torch" not in sys.modules:
        return
    import torch

    torch.set_num_threads(config.replay.threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    if config.replay.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch.use_deterministic_algorithms
        torch.use_deterministic_algorithms(True)


def _utc(ts: int) -> str:
    return dt.datetime.fromtimestamp(ts / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _nothing(replay: Replay) -> None:
    """Do nothing after a checkpoint."""


def say(line: str, quiet: bool) -> None:
    """Print a line on stderr."""
    if not quiet:
        print(f"freshet: {line}", file=sys.stderr, flush=True)
