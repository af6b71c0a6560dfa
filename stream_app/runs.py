"""The folder of a run.

::

    RUN/config.toml      what the run was told, resolved
    RUN/metrics.jsonl    one line per model and window of event time
    RUN/order.jsonl      of a live run: which rows each step took, see stream_app.order
    RUN/vectors.f32      vectors of items while the run is at work, see learners.vectors
    RUN/checkpoints/     see learners.checkpoint
    RUN/result.json      figures and digests, when the run has reached its end
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy.typing as npt

from learners.checkpoint import Checkpoint, latest, load, save
from learners.checkpoint.background import BackgroundJob, StateCopy
from stream_app.config import RunConfig, read_layer, resolve, to_toml

CONFIG, METRICS, CHECKPOINTS, RESULT, LOCK = "config.toml", "metrics.jsonl", "checkpoints", "result.json", ".lock"
ORDER = "order.jsonl"
State = Mapping[str, npt.NDArray[Any]]
States = Mapping[str, State]

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "METRICS",
    "ORDER",
    "RESULT",
    "RunError",
    "RunFolder",
    "differences",
    "is_run",
    "write_whole",
]


class RunError(ValueError):
    """A run folder that cannot be used as asked."""


class Difference(NamedTuple):
    """An option that the run has otherwise."""

    key: str
    of_run: Any
    asked: Any


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / CONFIG).is_file()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(data)
    os.replace(draft, path)


def differences(of_run: RunConfig, asked: RunConfig) -> list[Difference]:
    """Return what would make a resumed run another one; where the log lies and when checkpoints are written would not."""
    # As JSON, because a TOML file has no tuples.
    old, new = (_flat(msgspec.json.decode(msgspec.json.encode(config))) for config in (of_run, asked))
    ignored = {"log", "replay.checkpoint_seconds", "replay.bootstrap"}
    keys = sorted(key for key in (set(old) | set(new)) - ignored if not key.startswith(("train.", "kafka.")))
    return [Difference(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


class RunFolder:
    """A run's folder, held by one process.

    Args:
        path: of the folder, which is there.

    Raises:
        RunError: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = (path / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunError(f"another process is at work in the run {str(path)!r}: wait for it, or stop it") from None
        self._metrics = (path / METRICS).open("ab")
        self._order = (path / ORDER).open("ab") if (path / ORDER).exists() else None
        self._copies, self._saving = StateCopy(), BackgroundJob[Path | None]()

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> Self:
        """Make the folder of a new run.

        Raises:
            RunError: there is a run already, or something else.
        """
        if is_run(path):
            raise RunError(f"{str(path)!r} holds a run already: go on with it with --resume, or give another folder to --run")
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - {METRICS, ORDER, LOCK}):
            raise RunError(f"{str(path)!r} is there and is no run: give a new or an empty folder to --run")
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        write_whole(path / CONFIG, to_toml(config).encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder of a run that was begun.

        Raises:
            RunError: there is none.
        """
        if not is_run(path):
            raise RunError(f"there is no run in {str(path)!r} to go on with: leave --resume out to begin one")
        return cls(path)

    @staticmethod
    def config_of(path: Path) -> RunConfig:
        """Return what a run was told."""
        return resolve([read_layer(path / CONFIG)])

    def append_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines of metrics; they last from the next checkpoint on."""
        self._metrics.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self._metrics.flush()

    def append_order(self, line: bytes) -> None:
        """Note which rows a step took; the note lasts from the next checkpoint on."""
        if self._order is None:
            self._order = (self.path / ORDER).open("ab")
        self._order.write(line)

    def save(
        self,
        step: int,
        *,
        models: States,
        arrays: States,
        marks: Mapping[str, Mapping[int, int]],
        extra: Mapping[str, Any],
        pinned: Collection[str] = (),
    ) -> Path:
        """Write a checkpoint that knows how long the metrics and the order are; return its folder."""
        self.settle()
        return self._write(step, models, arrays, marks, self._with_lengths(extra), pinned, lambda states: None)

    def save_beside(
        self,
        step: int,
        *,
        models: States,
        arrays: States,
        marks: Mapping[str, Mapping[int, int]],
        extra: Mapping[str, Any],
        pinned: Collection[str] = (),
        check: Callable[[States], None] = lambda states: None,
        on_saved: Callable[[Path], None] = lambda path: None,
    ) -> bool:
        """Copy the state, and write the copy on another thread.

        Args:
            step, models, arrays, marks, extra, pinned: as for :meth:`learners.checkpoint.save`.
            check: given the copy of the models on that thread; what it raises leaves the checkpoint before as it is.
            on_saved: called on that thread when the checkpoint counts.

        Returns:
            Whether it was begun. Else memory for the copy is being made on the other thread: try again when not :meth:`saving`.

        Raises:
            BaseException: what the last writing has raised.
        """
        self.settle()
        states = {**{f"model {name}": state for name, state in models.items()}, **arrays}
        if lacking := self._copies.lacks(states):
            self._saving.start(lambda: self._copies.reserve(lacking))
            return False
        copies = self._copies.take(states)
        copied = {name: copies[f"model {name}"] for name in models}, {name: copies[name] for name in arrays}
        job = partial(self._write, step, *copied, marks, self._with_lengths(extra), pinned, check)

        def write() -> Path:
            path = job()
            on_saved(path)
            return path

        self._saving.start(write)
        return True

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written beside."""
        return self._saving.busy

    def settle(self) -> None:
        """Wait until nothing is written beside any more.

        Raises:
            BaseException: what the writing has raised.
        """
        self._saving.wait()

    def _with_lengths(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        if self._order is not None:
            self._order.flush()
        return {**extra, "metrics_bytes": self._metrics.tell(), "order_bytes": self._order.tell() if self._order else 0}

    def _write(
        self,
        step: int,
        models: States,
        arrays: States,
        marks: Mapping[str, Mapping[int, int]],
        extra: Mapping[str, Any],
        pinned: Collection[str],
        check: Callable[[States], None],
    ) -> Path:
        check(models)
        os.fsync(self._metrics.fileno())
        if self._order is not None:
            os.fsync(self._order.fileno())
        return save(self.path / CHECKPOINTS, step, models, marks=marks, extra=extra, arrays=arrays, pinned=pinned)

    def load(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, None where the run got to none; metrics and order after it are cut off.

        Raises:
            CheckpointError: it is damaged, or of a version whose models cannot go on here; the message says what to do.
        """
        path = latest(self.path / CHECKPOINTS)
        checkpoint = None if path is None else load(path, learn=True)
        extra: Mapping[str, Any] = {} if checkpoint is None else checkpoint.extra
        for file, length in ((self._metrics, "metrics_bytes"), (self._order, "order_bytes")):
            if file is not None:
                file.truncate(extra.get(length, 0))
                file.seek(0, os.SEEK_END)
        return checkpoint

    def close(self) -> None:
        """Let go of the folder, when what is written beside is done.

        Raises:
            BaseException: what the writing has raised.
        """
        try:
            self.settle()
        finally:
            self._release()

    def _release(self) -> None:
        self._metrics.close()
        if self._order is not None:
            self._order.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    dot = f"{prefix}." if prefix else ""
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{dot}{name}").items()}
