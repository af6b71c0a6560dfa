"""Samples for the variants of a sweep: the log's own where they fit, else a join of its own per distinct ``[join]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from stream_app.events import RAW_TOPICS, SAMPLES
from stream_app.inspect import JOINER
from stream_app.join import JoinReport, count_partitions, join_log
from stream_app.joiner.blocks import sample_schema
from stream_app.joiner.config import JoinConfig
from stream_app.log_config import write_joined
from stream_app.sample_sources import TopicSource
from stream_app.topics import Log, Topic
from stream_app.topics.embedded import EmbeddedLog, open_log

from .spec import PlannedRun, SweepError

__all__ = ["DONE", "JoinedElsewhere", "samples_of"]

DONE = "joined"
"""A file in a folder of samples that says that they are complete."""


class JoinedElsewhere:
    """A log whose raw topics are those of one log, and all else those of another: joins into a folder of its own.

    Args:
        raw: read only.
        made: takes samples, marks and dead letters.
    """

    def __init__(self, raw: Log, made: Log) -> None:
        self._raw, self._made = raw, made

    def topics(self) -> dict[str, int]:
        """Return the raw topics, and what was made of them."""
        raw = {name: n for name, n in self._raw.topics().items() if name in RAW_TOPICS}
        return raw | {name: n for name, n in self._made.topics().items() if name not in RAW_TOPICS}

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> Topic:
        """Create a topic where the samples go."""
        return self._made.create(name, n_partitions, retention_ms)

    def topic(self, name: str) -> Topic:
        """Return a topic that exists."""
        return (self._raw if name in RAW_TOPICS else self._made).topic(name)

    def close(self) -> None:
        """Leave both logs to those that opened them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def samples_of(
    log: Path,
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    on_progress: Callable[[str, JoinReport], None] = lambda name, report: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Return the log that each run replays, by :attr:`PlannedRun.key`; joins what is not there, goes on where it was cut off.

    Raises:
        SweepError: the log was joined with other options and holds no raw topics to join again.
        JoinError: it cannot be joined.
    """
    found: dict[str, Path] = {}
    with open_log(log) as raw:
        topics = raw.topics()
        is_raw = any(name in topics for name in RAW_TOPICS)
        own = TopicSource(raw.topic(SAMPLES)).schema().generation if SAMPLES in topics else None
        n_partitions = count_partitions(raw) if is_raw else topics.get(SAMPLES, 1)
        made: dict[str, Path] = {}
        for run in runs:
            generation = sample_schema(run.config.join, n_partitions).generation
            if generation == own:
                found[run.key] = log
                continue
            if generation not in made:
                if not is_raw:
                    raise SweepError(
                        f"variant {run.variant.name!r} joins otherwise than the samples of {str(log)!r}, which holds no raw "
                        "topics to join again: leave [join] as it is, or give the log with its impressions and actions"
                    )
                made[generation] = out / "joins" / generation
                name = run.variant.name
                _join(raw, made[generation], run.config.join, partial(on_progress, name), stop)
                if stop():
                    return found
            found[run.key] = made[generation]
    return found


def _join(
    raw: Log, folder: Path, config: JoinConfig, on_progress: Callable[[JoinReport], None], stop: Callable[[], bool]
) -> None:
    if (folder / DONE).exists():
        return
    with EmbeddedLog(folder) as made:
        join_log(JoinedElsewhere(raw, made), folder / JOINER, config, on_progress=on_progress, stop=stop)
    if not stop():
        write_joined(folder, config)
        (folder / DONE).touch()
