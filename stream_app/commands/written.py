"""What ``import`` and ``simulate`` do and say when the raw topics are written."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from stream_app.config import LOG_CONFIG
from stream_app.importers.report import ImportReport
from stream_app.log_config import write_best


def print_written(
    log: Path | None, report: ImportReport, *, as_json: bool, kafka: str | None = None, save_config: Path | None = None
) -> None:
    """Write the log's config, if it has none, and print what was done."""
    path = save_config if log is None else log / LOG_CONFIG
    if path is not None:
        written = write_best(path, report.join, report.ignored_features, report.vector_dim)
        if not written and not report.was_done:
            print(f"freshet: {path} was there already and stays as it is", file=sys.stderr)
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    for topic, n in report.events.items():
        print(f"{topic}: {n:,}")
    for reason, n in report.left_out.items():
        print(f"left out, {reason}: {n:,}")
    if report.errors:
        print(f"bad rows left out: {report.errors:,}, the first of them:")
        print("\n".join(f"  {error}" for error in report.first_errors))
    if report.was_done:
        print("this was complete before: nothing was written")
    place = f"--log {log}" if log is not None else f"--kafka {kafka}"
    print(f"next: freshet join {place}" + (f" --config {path}" if log is None and path is not None else ""))
