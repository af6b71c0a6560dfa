"""``freshet report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write a run's page again, or one page for several runs side by side; say whether they were scored on the same requests.

    Example: freshet report runs/first runs/second --out compared.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="")]
    """Folders of runs."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/index.html; report.html for several)")
    ] = None
    """Where the page goes."""
    open: tyro.conf.FlagCreatePairsOff[bool] = False
    """Open it in the browser."""

    def run(self) -> int:
        """Write it, say where it is."""
        from stream_app.report.several import write_report

        path, comparison = write_report(self.runs, self.out)
        if comparison is not None:
            for line in _told(comparison):
                print(line)
        print(path)
        if self.open:
            import webbrowser

            webbrowser.open(path.resolve().as_uri())
        return 0


def _told(comparison: dict[str, object]) -> list[str]:
    checks = comparison["checks"]
    assert isinstance(checks, list)
    differing = [str(check["name"]) for check in checks if not check["same"]]
    if comparison["same_requests"]:
        rest = f"; not: {', '.join(differing)}" if differing else ""
        return [f"all runs were scored on the same requests{rest}"]
    return [f"the runs were not scored on the same requests, so their figures cannot be paired; not: {', '.join(differing)}"]


def command() -> type[Report]:
    """Return the command."""
    return Report
