"""The runs of a sweep as processes side by side.

Each run is a ``freshet replay`` of its own with a folder of its own: what is done is skipped, what was cut off goes on from its
checkpoint, and what fails leaves its log and stops no other.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from stream_app.config import RunConfig, to_toml
from stream_app.progress import duration
from stream_app.runs import RESULT, RunFolder, differences, is_run, write_whole

from .spec import PlannedRun, SweepError

__all__ = ["Outcome", "Sweep", "run_folder"]

_POLL_SECONDS: Final = 0.2
_SHARE: Final = re.compile(r"\((\d+)%\)")


class Outcome(NamedTuple):
    """How a run ended."""

    run: PlannedRun
    error: str | None
    """Last line of its log, None where it is done."""
    skipped: bool = False
    """Whether it was done before."""


class _Running:
    """A run that is going on."""

    def __init__(self, run: PlannedRun, process: subprocess.Popen[bytes], log: Path) -> None:
        self.run, self.process, self.log = run, process, log
        self.first_share: float | None = None
        self.share = 0.0

    def line(self) -> str:
        """Return what it last said; takes note of how far it is."""
        said = _last_line(self.log)
        if found := _SHARE.search(said):
            self.share = int(found[1]) / 100
            if self.first_share is None:
                self.first_share = self.share
        return f"{self.run.key}: {said.removeprefix('freshet: ') or 'begins'}"


def run_folder(out: Path, run: PlannedRun) -> Path:
    """Return the folder of a run."""
    return out / "runs" / run.variant.slug / str(run.seed)


class Sweep:
    """Runs side by side.

    Args:
        runs: in the order in which they begin.
        logs: key of a run -> folder of the log that it replays.
        out: folder of the sweep.
        jobs: processes at a time.
        threads: of each.
    """

    def __init__(self, runs: Sequence[PlannedRun], logs: Mapping[str, Path], out: Path, jobs: int, threads: int) -> None:
        self._waiting = list(runs)
        self._logs, self._out, self._jobs, self._threads = logs, out, jobs, threads
        self._running: list[_Running] = []
        self._outcomes: list[Outcome] = []
        self._began = time.monotonic()
        self._n_runs = len(runs)

    def run(
        self, on_progress: Callable[[list[str]], None] = lambda lines: None, stop: Callable[[], bool] = lambda: False
    ) -> list[Outcome]:
        """Run all; return how each ended, in the order of their end. ``stop`` ends the running ones, with a checkpoint each.

        Raises:
            SweepError: the folder holds a run of the same name that was told otherwise.
        """
        try:
            self._skip_done()
            while self._running or (self._waiting and not stop()):
                while self._waiting and len(self._running) < self._jobs and not stop():
                    self._running.append(self._begin(self._waiting.pop(0)))
                if stop():
                    self._end_all()
                self._collect()
                on_progress(self.lines())
                time.sleep(_POLL_SECONDS)
        finally:
            self._end_all()
        return self._outcomes

    def lines(self) -> list[str]:
        """Return a line for the whole, and one per running variant."""
        lines = [running.line() for running in self._running]
        done, skipped = len(self._outcomes), sum(outcome.skipped for outcome in self._outcomes)
        whole = f"sweep: {done} of {self._n_runs} runs done"
        if left := self._seconds_left(done - skipped):
            whole += f", {duration(left)} left"
        return [whole, *lines]

    def _seconds_left(self, n_done: int) -> float | None:
        """Return the time that is left, from what was done since this command began; None before anything is known.

        Runs of different variants take different times, and the last ones leave cores idle: an estimate, not a promise.
        """
        worked = n_done + sum(each.share - (each.first_share or 0.0) for each in self._running)
        left = len(self._waiting) + sum(1.0 - each.share for each in self._running)
        return (time.monotonic() - self._began) * left / worked if worked > 0 else None

    def _skip_done(self) -> None:
        waiting = []
        for run in self._waiting:
            folder = run_folder(self._out, run)
            if is_run(folder):
                self._check_same(run, folder)
            if (folder / RESULT).exists():
                self._outcomes.append(Outcome(run, None, skipped=True))
            else:
                waiting.append(run)
        self._waiting = waiting

    def _config(self, run: PlannedRun) -> RunConfig:
        replay = msgspec.structs.replace(run.config.replay, threads=self._threads)
        return msgspec.structs.replace(run.config, replay=replay, log=str(self._logs[run.key].resolve()))

    def _check_same(self, run: PlannedRun, folder: Path) -> None:
        if found := differences(RunFolder.config_of(folder), self._config(run)):
            first = found[0]
            raise SweepError(
                f"variant {run.variant.name!r}, seed {run.seed}, was run with {first.key} = {first.of_run!r}, the spec now "
                f"says {first.asked!r}: give another folder to --out, or remove {str(folder)!r}"
            )

    def _begin(self, run: PlannedRun) -> _Running:
        config, log = self._out / "configs" / f"{run.key}.toml", self._out / "logs" / f"{run.key}.txt"
        for path in (config, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(config, to_toml(self._config(run)).encode())
        folder = run_folder(self._out, run)
        words = ["replay", "--log", str(self._logs[run.key]), "--config", str(config), "--run", str(folder), "--json"]
        words += ["--resume"] if is_run(folder) else []
        with log.open("ab") as said:
            process = _start(words, said)
        return _Running(run, process, log)

    def _collect(self) -> None:
        for each in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(each)
            code = each.process.returncode
            if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                self._waiting.insert(0, each.run)
                continue
            error = None if code == 0 else _last_line(each.log) or f"it ended with {code}"
            self._outcomes.append(Outcome(each.run, error))

    def _end_all(self) -> None:
        for each in self._running:
            if each.process.poll() is None:
                each.process.terminate()
        for each in self._running:
            each.process.wait()


def _start(words: Sequence[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which then ends the runs politely.
    return subprocess.Popen(
        [sys.executable, "-m", "stream_app.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4_096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
