"""What ``import`` and ``simulate`` do and say when the raw topics are written."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from stream_app.config import LOG_CONFIG
from stream_app.importers.report import ImportReport
from stream_app.log_config import write_log_config


def print_written(log: Path, report: ImportReport, *, as_json: bool) -> None:
    """Write the log's config, if it has none, and print what was done."""
    if not write_log_config(log, report.join, report.ignored_features) and not report.was_done:
        print(f"freshet: {log / LOG_CONFIG} was there already and stays as it is", file=sys.stderr)
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
    print(f"next: freshet join --log {log}")
