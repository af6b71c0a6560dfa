"""Writes a run's page while it runs and at its end, and notes when there were checkpoints and restarts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stream_app.report.names import read_names
from stream_app.report.run_data import MOMENTS, SNAPSHOT
from stream_app.report.several import write_page
from stream_app.report.snapshot import Reportable, snapshot
from stream_app.runs import write_whole

SHARE = 0.005
"""Part of a run's wall time that may go into its page before its end."""

__all__ = ["SHARE", "PageWriter"]


class PageWriter:
    """Keeps ``RUN/index.html`` up to date.

    Args:
        folder: of the run.
        resumed: whether the run goes on; noted as a restart.
    """

    def __init__(self, folder: Path, *, resumed: bool = False) -> None:
        self.folder = folder
        self.seconds = 0.0
        """Wall time spent on the page so far."""
        self.names: dict[str, str] = {}
        """Names of the ids that the finished page shows, by the first digits of their hash."""
        self._resumed = resumed
        self._last = 0.0
        self._wrote_at = time.monotonic()

    def begun(self, run: Reportable) -> None:
        """Note that the run begins here, or goes on."""
        self._note("restart" if self._resumed else "start", run)

    def checkpointed(self, run: Reportable) -> None:
        """Note a checkpoint, and write the page unless that would cost more than :data:`SHARE` of the time."""
        self._note("checkpoint", run)
        if self._last <= SHARE * (time.monotonic() - self._wrote_at):
            self._write(run, None)

    def finished(self, run: Reportable, result: Mapping[str, Any]) -> None:
        """Write the page of a run that has reached its end.

        Args:
            run: as it is now.
            result: of :func:`stream_app.results.result_of`: intervals and digests.
        """
        self._write(run, result)

    def _note(self, kind: str, run: Reportable) -> None:
        line = {"kind": kind, "ts": run.ts, "requests": run.requests, "seconds": round(run.wall_seconds(), 1), **run.lag()}
        with (self.folder / MOMENTS).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def _write(self, run: Reportable, result: Mapping[str, Any] | None) -> None:
        """Write the page; a page that cannot be written is said and does not end a run."""
        began = time.monotonic()
        try:
            self._write_now(run, result)
        except Exception as error:
            if os.environ.get("FRESHET_DEBUG") == "1":
                raise
            print(f"freshet: the run's page was not written: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self._wrote_at = time.monotonic()
        self._last = self._wrote_at - began
        self.seconds += self._last

    def _write_now(self, run: Reportable, result: Mapping[str, Any] | None) -> None:
        data = snapshot(run, finished=result is not None)
        for name, found in ({} if result is None else result["models"]).items():
            data["models"][name] |= {key: found[key] for key in ("digest", "difference") if key in found}
        if result is not None and data["log"]:
            data["names"] = self.names = read_names(data, Path(data["log"]))
        write_whole(self.folder / SNAPSHOT, msgspec.json.encode(data))
        write_page(self.folder)
