"""Rows per second and memory of the importers and the generator, onto an embedded log.

    python benchmarks/importers.py [--rows 1000000] [--only rows.csv]
    python benchmarks/importers.py --full --only taobao        # ten million rows

Memory is the growth of the process's peak from a tenth of the work to all of it, which bounded reading keeps near 0: each case
runs in a process of its own. Globo and trivago need the real logs (FRESHET_DATA); the files of taobao, movielens, recbole and
mind are made, in their public formats and in no order of time. Beside each, in the same run: rows per CPU second that Arrow's
CSV parser and Python's csv module read, to do nothing with them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stream_app.importers.globo import GloboOptions
from stream_app.importers.mapping import RowsOptions
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FRESHET_DATA") or ROOT.parent / "shared" / "data")
PAGE_ROWS = 10
PUBLIC = {"taobao": "UserBehavior.csv", "movielens": "ratings.dat", "recbole": "log.inter", "mind": "behaviors.tsv"}
CASES = ("rows.jsonl", "rows.csv", "rows.parquet", "globo", "globo.given", "trivago", *PUBLIC, "simulate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the made logs; a tenth as many requests elsewhere")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--here", action="store_true", help="run the one case in this process")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    parser.add_argument("--full", action="store_true", help="ten million rows")
    given = parser.parse_args()
    if given.quick or given.full:
        given.rows = 10_000_000 if given.full else 200_000 if given.only in PUBLIC else 20_000
    if given.here:
        print(json.dumps(measure(given.only, given.rows)))
        return
    print(
        f"{'case':14}{'rows':>11}{'events':>11}{'rows/CPU s':>13}{'rows/s':>10}{'peak MB':>9}{'growth MB':>11}"
        f"{'read/s Arrow':>14}{'csv':>11}"
    )
    for case in [given.only] if given.only else CASES:
        command = [sys.executable, __file__, "--here", "--only", case, "--rows", str(given.rows)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{case:14}{found['rows']:11,}{found['events']:11,}{found['rows'] / found['cpu_s']:13,.0f}"
            f"{found['rows'] / found['wall_s']:10,.0f}{found['peak_mb']:9,.0f}{found['growth_mb']:11,.0f}"
            + "".join(f"{found[name]:{width},.0f}" for name, width in (("arrow", 14), ("csv", 11)) if name in found)
        )


def measure(case: str, n_rows: int) -> dict[str, float]:
    """Run one case; ``rows`` are rows of the source, and for the generator candidates."""
    peaks: list[tuple[float, float]] = []

    def on_progress(done: int, total: int, unit: str) -> None:
        peaks.append((done / max(1, total), peak_mb()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = prepare(case, folder, n_rows)
        wall, cpu = time.perf_counter(), time.process_time()
        with EmbeddedLog(folder / "log") as log:
            report, rows = arguments(log, on_progress)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        last = peaks[-1][0]
        early = next(peak for share, peak in peaks if share >= last / 10)
        peak = peak_mb()  # before the plain reading, which is not bounded
        plain = read_plainly(folder / PUBLIC[case], rows) if case in PUBLIC else {}
    return {
        "rows": rows,
        "events": sum(report.events.values()),
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mb": peak,
        "growth_mb": peak - early,
        **plain,
    }


def read_plainly(path: Path, n_rows: int) -> dict[str, float]:
    """Return rows per CPU second of reading a file and doing nothing with it."""
    import csv

    import pyarrow as pa
    import pyarrow.csv

    began = time.process_time()
    if path.suffix != ".dat":  # Arrow knows no separator of two characters
        options = {
            "read_options": pa.csv.ReadOptions(use_threads=False, autogenerate_column_names=True),
            "parse_options": pa.csv.ParseOptions(delimiter="," if path.suffix == ".csv" else "\t", quote_char=False),
        }
        for _ in pa.csv.open_csv(path, **options):
            pass
    arrow = time.process_time() - began
    began = time.process_time()
    with path.open(newline="") as file:
        for _ in csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t" if path.suffix != ".dat" else ":"):
            pass
    found = {"csv": n_rows / (time.process_time() - began)}
    return found if path.suffix == ".dat" else {"arrow": n_rows / arrow, **found}


def prepare(case: str, folder: Path, n_rows: int) -> Any:
    """Return what runs the case on a log: it gives the report and the rows read."""
    kind, _, variant = case.partition(".")
    if kind == "rows":
        path = folder / f"log.{variant}"
        write_in_a_process_of_its_own(path, n_rows)
        options = RowsOptions(layout="flat", features={"price": "float", "brand": "id"}, request_features={"device": "id"})
        return lambda log, progress: (run_import("rows", [path], log, None, options, on_progress=progress), n_rows)
    if kind in PUBLIC:
        path = folder / PUBLIC[kind]
        write_in_a_process_of_its_own(path, n_rows)
        return lambda log, progress: (run_import(kind, [path], log, None, on_progress=progress), n_rows)
    if kind == "globo":
        given = str(DATA / "globo_requests.parquet") if variant else None
        files, limit = [DATA / "globo_clicks.parquet"], n_rows // 10

        def globo(log: EmbeddedLog, progress: Any) -> tuple[ImportReport, int]:
            report = run_import("globo", files, log, None, GloboOptions(candidates=given), limit=limit, on_progress=progress)
            return report, report.actions

        return globo
    if kind == "trivago":
        files = [DATA / "trivago_sessions_100k.parquet"]
        return lambda log, progress: (run_import("trivago", files, log, None, on_progress=progress), 100_003)
    simulated = SimulateOptions(requests=n_rows // 10)
    return lambda log, progress: (run_simulate(simulated, log, None, on_progress=progress), n_rows)


def write_in_a_process_of_its_own(path: Path, n_rows: int) -> None:
    """So that making the file does not count in the peak."""
    code = f"from benchmarks.importers import write_log; from pathlib import Path; write_log(Path({str(path)!r}), {n_rows})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def write_log(path: Path, n_rows: int) -> None:
    """Write a flat click log (pages of ten rows, eleven columns), or one in the format of a public set."""
    if path.name in PUBLIC.values():
        write_public(path, n_rows)
        return
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    page = np.arange(n_rows) // PAGE_ROWS
    n_pages = int(page[-1]) + 1
    columns = {
        "request_id": [f"request-{p}" for p in page.tolist()],
        "user_id": [f"user-{u}" for u in rng.integers(0, n_pages // 20 + 1, n_pages)[page].tolist()],
        "ts": 1_700_000_000_000 + 250 * page,
        "item_id": rng.integers(0, 100_000, n_rows),
        "category": [f"category-{c}" for c in rng.integers(0, 200, n_rows).tolist()],
        "position": np.arange(n_rows) % PAGE_ROWS,
        "label": (rng.random(n_rows) < 0.1).astype(np.int64),
        "query": [f"query {q}" for q in rng.integers(0, 5_000, n_pages)[page].tolist()],
        "price": np.round(rng.lognormal(3, 1, n_rows), 2),
        "brand": rng.integers(0, 1_000, n_rows),
        "device": rng.choice(["phone", "tablet", "desktop"], n_pages)[page],
    }
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=100_000)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        with path.open("w") as file:
            for batch in table.to_batches(max_chunksize=50_000):
                file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())


_BEHAVIORS = ("pv", "pv", "pv", "pv", "cart", "fav", "pv", "buy")


def write_public(path: Path, n_rows: int) -> None:
    """Write interactions in the format of a public set: users in no order of time, items by popularity that drifts."""
    rng = np.random.default_rng(0)
    lines = {
        "UserBehavior.csv": lambda u, i, t, r: f"{u},{i},{i % 9_000},{_BEHAVIORS[r % 8]},{t}",
        "ratings.dat": lambda u, i, t, r: f"{u}::{i}::{1 + r % 5}::{t}",
        "log.inter": lambda u, i, t, r: f"u{u}\ti{i}\t{1 + r % 5}\t{t}",
        "behaviors.tsv": _impression,
    }
    line = lines[path.name]
    with path.open("w") as file:
        if path.suffix == ".inter":
            file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        for first in range(0, n_rows, 100_000):
            n = min(100_000, n_rows - first)
            users = (first + np.sort(rng.integers(0, n, n))) // 100
            times = 1_511_600_000 + rng.integers(0, 600_000, n)
            items = (rng.zipf(1.2, n) % 400_000 + (times - 1_511_600_000) // 600) % 1_000_000
            columns = zip(users.tolist(), items.tolist(), times.tolist(), rng.integers(0, 1 << 30, n).tolist(), strict=True)
            file.writelines(f"{line(*row)}\n" for row in columns)


def _impression(user: int, item: int, ts: int, draw: int) -> str:
    when = time.strftime("%m/%d/%Y %I:%M:%S %p", time.gmtime(ts))
    history = " ".join(f"N{(item + 7 * n) % 50_000}" for n in range(30))
    shown = " ".join(f"N{(item + 11 * n) % 50_000}-{int(n == draw % 20)}" for n in range(20))
    return f"{draw}\tU{user}\t{when}\t{history}\t{shown}"


def peak_mb() -> float:
    """Return the peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


if __name__ == "__main__":
    main()
