"""Small made-up logs in a folder, for the tests of what reads one."""

from __future__ import annotations

from pathlib import Path

from stream_app.join import join_log
from stream_app.log_config import write_joined, write_log_config
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog

__all__ = ["made_up_log"]


def made_up_log(path: Path, requests: int, *, rate: float = 0.15, items: int = 80, join: bool = True) -> Path:
    """Make a log of 40 users in two partitions, joined as ``freshet join`` would or left raw, and return its folder."""
    options = SimulateOptions(requests=requests, rate=rate, users=40, items=items, queries=20, categories=5, partitions=2)
    with EmbeddedLog(path) as log:
        report = run_simulate(options, log, path)
        if join:
            join_log(log, path / "joiner", report.join)
    write_log_config(path, report.join)
    if join:
        write_joined(path, report.join)
    return path
