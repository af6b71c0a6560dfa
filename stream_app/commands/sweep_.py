"""``freshet sweep``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from stream_app.join import JoinReport
    from stream_app.sweep.spec import PlannedRun


_LEAST_FIRST = ("impr./s", "MRR", "log loss", "gAUC", "seeds")


@dataclass(frozen=True)
class Sweep:
    """Run variants of models, options or joins over the same samples, side by side where cores allow; compare them.

    Example: freshet sweep ablations.toml --log shop --out sweeps/ablations
    """

    spec: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SPEC.toml")]
    """Names the variants."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: sweeps/SPEC)")] = None
    """Folder for runs, results.json and the page."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: as the spec says)")] = None
    """Folder of the log."""
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all cores)")] = None
    """Runs at a time; the cores are shared out among them as threads."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the sweep in --out: what is done is skipped, what was cut off goes on from its checkpoint."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of the table."""

    def run(self) -> int:
        """Sweep; print the table or the JSON object."""
        from stream_app.signals import PoliteStop
        from stream_app.sweep.joins import samples_of
        from stream_app.sweep.running import Sweep as Runs
        from stream_app.sweep.spec import SweepError, plan, read_spec

        spec = read_spec(self.spec)
        log = self.log or (Path(spec.log) if spec.log is not None else None)
        if log is None:
            raise SweepError("--log DIR is missing: the folder of the log to replay (or `log` in the spec)")
        runs, out = plan(spec, log), self.out or Path("sweeps") / self.spec.stem
        jobs, threads = _shares(out, runs, self.jobs, self.resume)
        with PoliteStop() as stop, _Lines() as lines:

            def on_join(name: str, report: JoinReport) -> None:
                lines.show([f"join for {name!r}: {report.events:,} events, {report.rows:,} requests"])

            logs = samples_of(log, runs, out, on_progress=on_join, stop=stop)
            outcomes = [] if stop() else Runs(runs, logs, out, jobs, threads).run(lines.show, stop)
        if stop.signal is not None:
            print(f"freshet: go on with: freshet sweep {self.spec} --log {log} --out {out} --resume", file=sys.stderr)
            return 128 + stop.signal
        for outcome in outcomes:
            if outcome.error is not None:
                print(
                    f"freshet: {outcome.run.key} failed: {outcome.error}; {out / 'logs' / outcome.run.key}.txt", file=sys.stderr
                )
        self._finish(outcomes, runs, out)
        return 1 if any(outcome.error is not None for outcome in outcomes) else 0

    def _finish(self, outcomes: Sequence[Any], runs: Sequence[PlannedRun], out: Path) -> None:
        import msgspec

        from stream_app.runs import write_whole
        from stream_app.sweep.results import sweep_results, table
        from stream_app.sweep.running import run_folder

        results = sweep_results(outcomes, runs, out)
        write_whole(out / "results.json", msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
        done = {outcome.run.key for outcome in outcomes if outcome.error is None}
        first_seed = [run_folder(out, run) for run in runs if run.seed == runs[0].seed and run.key in done]
        if first_seed:
            from stream_app.report.several import write_report

            write_report(first_seed, out / "index.html")
        if self.json:
            print(msgspec.json.encode(results).decode())
            return
        _print_table(table(results))
        print(f"{out / 'results.json'}, {out / 'index.html'} (seed {runs[0].seed})")


def _shares(out: Path, runs: Sequence[PlannedRun], jobs: int | None, resume: bool) -> tuple[int, int]:
    """Return how many runs go at a time, and the threads of each; a sweep that goes on keeps its threads, for its digests."""
    import os

    from stream_app.runs import write_whole
    from stream_app.sweep.spec import SweepError

    if jobs is not None and jobs < 1:
        raise SweepError(f"--jobs {jobs}: at least 1")
    noted = out / "threads"
    if noted.exists() and not resume:
        raise SweepError(f"{str(out)!r} holds a sweep already: go on with it with --resume, or give another folder to --out")
    if resume and not noted.exists():
        raise SweepError(f"there is no sweep in {str(out)!r} to go on with: leave --resume out to begin one")
    cores = len(os.sched_getaffinity(0))
    jobs = min(jobs or cores, len(runs))
    if noted.exists():
        return jobs, int(noted.read_text())
    threads = max(1, cores // jobs)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(noted, str(threads).encode())
    return jobs, threads


class _Lines:
    """Some lines of progress: in place on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self._live: Any = None
        self._told = float("-inf")

    def __enter__(self) -> _Lines:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, lines: Sequence[str]) -> None:
        """Show the lines of now."""
        import time

        from stream_app.progress import LIVE_SECONDS, PLAIN_SECONDS

        now = time.monotonic()
        if now - self._told < (LIVE_SECONDS if self._live is not None else PLAIN_SECONDS):
            return
        self._told = now
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text("\n".join(lines)), refresh=True)
        else:
            print("\n".join(f"freshet: {line}" for line in lines), file=sys.stderr, flush=True)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print the table, less the columns that the console is too narrow for: the last in importance first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, columns = Console(), list(range(len(rows[0])))
    for least in (*_LEAST_FIRST, None):
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in columns:
            drawn.add_column(rows[0][column], justify="right" if column else "left", no_wrap=bool(column))
        for row in rows[1:]:
            drawn.add_row(*(Text(row[column]) for column in columns))
        if least is None or console.measure(drawn, options=console.options.update(width=10_000)).maximum <= console.width:
            break
        columns = [column for column in columns if rows[0][column] != least]
    console.print(drawn)


def command() -> type[Sweep]:
    """Return the command."""
    return Sweep
