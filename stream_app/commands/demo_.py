"""``freshet demo``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Demo:
    """Generate a stream whose click probabilities are known, join it, train six models on it, compare them.

    Example: freshet demo --folder demo
    """

    folder: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: a temporary one)")] = None
    """Where log and run are kept; new or empty."""
    requests: Annotated[int, tyro.conf.arg(metavar="N")] = 30_000
    """Pages to generate."""
    model: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable; default: all six)"),
    ] = ()
    """A model to train."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of the leaderboard."""

    def run(self) -> int:
        """Do it."""
        from stream_app.commands.figures import print_result
        from stream_app.demo import MODELS, demo
        from stream_app.runs import RunError

        if self.folder is not None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise RunError(f"{str(self.folder)!r} is not empty: give a new folder to --folder, or none")
        if self.requests < 1:
            raise RunError(f"--requests {self.requests}: give 1 or more")
        with contextlib.ExitStack() as until_done:
            folder = self.folder or Path(until_done.enter_context(tempfile.TemporaryDirectory(prefix="freshet-demo-")))
            launched = demo(folder, self.requests, self.model or MODELS, self._say)
            if launched.stopped_by is not None:
                return 128 + launched.stopped_by
            print_result(launched.replay, folder / "run", as_json=self.json, page=launched.page)
        self._say(self._next(folder))
        return 0

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr if self.json else sys.stdout, flush=True)

    def _next(self, folder: Path) -> str:
        if self.folder is None:
            return "next: the same with --folder demo keeps log and run; then: freshet inspect demo/run"
        lines = [
            "next:",
            f"  open {folder / 'run' / 'index.html'} in a browser: curves, slices, calibration, what the models looked at",
            f"  freshet inspect {folder / 'run'}",
            f"  freshet replay --log {folder / 'log'} --model egin --model din --set models.egin.top_k=5",
            "  your own log: freshet import rows --help",
        ]
        return "\n".join(lines)


def command() -> type[Demo]:
    """Return the command."""
    return Demo
