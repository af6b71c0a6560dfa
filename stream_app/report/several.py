"""The page of one run or of several, from their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stream_app.report.page import page
from stream_app.report.run_data import read_run
from stream_app.runs import RunError, write_whole

PAGE, SEVERAL = "index.html", "report.html"

__all__ = ["PAGE", "SEVERAL", "write_page", "write_report"]


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of one run from what is in its folder; return where it is."""
    path = folder / PAGE if out is None else out
    write_whole(path, page([read_run(folder)]).encode())
    return path


def write_report(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, dict[str, Any] | None]:
    """Write the page; return where it is, and the comparison where there are several runs.

    Raises:
        RunError: a folder is no run, or is given twice.
    """
    if not folders:
        raise RunError("freshet report needs the folder of a run: freshet report RUN...")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RunError("a run is given twice: name each folder once")
    if len(folders) == 1:
        return write_page(folders[0], out), None
    from stream_app.report.compare import compare  # late: the bootstrap brings numba, which one run's page does without

    runs = [read_run(folder) for folder in folders]
    _tell_apart(runs, folders)
    comparison = compare(runs, folders)
    path = Path(SEVERAL) if out is None else out
    write_whole(path, page(runs, comparison).encode())
    return path, comparison


def _tell_apart(runs: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    """Give runs whose folders have the same name the name of the folder above as well."""
    names = Counter(run["name"] for run in runs)
    for run, folder in zip(runs, folders, strict=True):
        if names[run["name"]] > 1:
            run["name"] = f"{folder.resolve().parent.name}/{run['name']}"
    if len({run["name"] for run in runs}) < len(runs):
        for run, folder in zip(runs, folders, strict=True):
            run["name"] = str(folder)
