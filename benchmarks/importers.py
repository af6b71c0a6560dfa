"""Rows per second and memory of the importers and the generator, onto an embedded log.

    python benchmarks/importers.py [--rows 1000000] [--only rows.csv]
    python benchmarks/importers.py --full --only taobao        # ten million rows
    python benchmarks/importers.py --rows 5000000 --only taobao --remembered 1000000

Memory is the growth of the process's peak from a tenth of the work to all of it, and from its half (late), which bounded memory
keeps near 0: each case runs in a process of its own, and ``MB by tenths`` shows the way there. Globo and trivago need the real
logs (FRESHET_DATA); the files of taobao, movielens, recbole and mind are made, in their public formats and in no order of
time. Beside each, in the same run: rows per CPU second that Arrow's CSV parser and Python's csv module read, to do nothing with
them.
"""

from __future__ import annotations

import argparse
import csv
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
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from stream_app.importers.globo import GloboOptions
from stream_app.importers.mapping import RowsOptions
from stream_app.importers.registry import importer_kind
from stream_app.importers.report import ImportReport
from stream_app.importers.run import run_import
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FRESHET_DATA") or ROOT.parent / "shared" / "data")
PAGE_ROWS = 10
CHUNK = 200_000
Int64s = npt.NDArray[np.int64]
PUBLIC = {"taobao": "UserBehavior.csv", "movielens": "ratings.dat", "recbole": "log.inter", "mind": "behaviors.tsv"}
CASES = ("rows.jsonl", "rows.csv", "rows.parquet", "globo", "globo.given", "trivago", *PUBLIC, "simulate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the made logs; a tenth as many requests elsewhere")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--remembered", type=int, help="clicks that are remembered, where candidates are drawn")
    parser.add_argument("--here", action="store_true", help="run the one case in this process")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    parser.add_argument("--full", action="store_true", help="ten million rows")
    given = parser.parse_args()
    if given.quick or given.full:
        given.rows = 10_000_000 if given.full else 200_000 if given.only in PUBLIC else 20_000
    if given.here:
        print(json.dumps(measure(given.only, given.rows, given.remembered)))
        return
    print(
        f"{'case':14}{'rows':>11}{'events':>11}{'rows/CPU s':>13}{'rows/s':>10}{'peak MB':>9}{'growth MB':>11}{'late MB':>9}"
        f"{'read/s Arrow':>14}{'csv':>11}"
    )
    for case in [given.only] if given.only else CASES:
        command = [sys.executable, __file__, "--here", "--only", case, "--rows", str(given.rows)]
        command += [] if given.remembered is None else ["--remembered", str(given.remembered)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        show(case, json.loads(done.stdout.splitlines()[-1]))


def show(case: str, found: dict[str, Any]) -> None:
    plain = "".join(f"{found[name]:{width},.0f}" for name, width in (("arrow", 14), ("csv", 11)) if name in found)
    print(
        f"{case:14}{found['rows']:11,}{found['events']:11,}{found['rows'] / found['cpu_s']:13,.0f}"
        f"{found['rows'] / found['wall_s']:10,.0f}{found['peak_mb']:9,.0f}{found['growth_mb']:11,.0f}"
        f"{found['late_mb']:9,.0f}{plain}"
    )
    print(f"{'':14}MB by tenths: {' '.join(f'{peak:,.0f}' for peak in found['tenths'])}", flush=True)


def measure(case: str, n_rows: int, remembered: int | None) -> dict[str, Any]:
    """Run one case; ``rows`` are rows of the source, and for the generator candidates."""
    peaks: list[tuple[float, float]] = []

    def on_progress(done: int, total: int, unit: str) -> None:
        peaks.append((done / max(1, total), peak_mb()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = prepare(case, folder, n_rows, remembered)
        wall, cpu = time.perf_counter(), time.process_time()
        with EmbeddedLog(folder / "log") as log:
            report, rows = arguments(log, on_progress)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        last = peaks[-1][0]
        tenths = [next(peak for share, peak in peaks if share >= last * part / 10) for part in range(1, 11)]
        peak = peak_mb()  # before the plain reading, which is not bounded
        plain = read_plainly(folder / PUBLIC[case], rows) if case in PUBLIC else {}
    return {
        "rows": rows,
        "events": sum(report.events.values()),
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mb": peak,
        "growth_mb": peak - tenths[0],
        "late_mb": peak - tenths[4],
        "tenths": tenths,
        **plain,
    }


def read_plainly(path: Path, n_rows: int) -> dict[str, float]:
    """Return rows per CPU second of reading a file and doing nothing with it."""
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


def prepare(case: str, folder: Path, n_rows: int, remembered: int | None) -> Any:
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
        chosen = importer_kind(kind).read_options({} if remembered is None else {"remembered": remembered})
        return lambda log, progress: (run_import(kind, [path], log, None, chosen, on_progress=progress), n_rows)
    if kind == "globo":
        given = DATA / "globo_requests.parquet" if variant else None
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
    with path.open("wb") as file:
        if path.suffix == ".parquet":
            with pq.ParquetWriter(file, flat_log(0, 0).schema) as parquet:
                for first in range(0, n_rows, CHUNK):
                    parquet.write_table(flat_log(first, min(CHUNK, n_rows - first)))
            return
        for first in range(0, n_rows, CHUNK):
            n = min(CHUNK, n_rows - first)
            if path.name in PUBLIC.values():
                file.write(interactions(path.name, first, n))
            elif path.suffix == ".csv":
                pa.csv.write_csv(flat_log(first, n), file, pa.csv.WriteOptions(include_header=not first))
            else:
                file.write(json_lines(flat_log(first, n)))


def flat_log(first: int, n_rows: int) -> pa.Table:
    """Return rows ``first`` on of a flat click log."""
    rng = np.random.default_rng(first)
    rows = np.arange(first, first + n_rows)
    page = rows // PAGE_ROWS
    n_pages = n_rows // PAGE_ROWS + 1
    users, queries, devices = (rng.integers(0, n, n_pages) for n in (50_000, 5_000, 3))
    here = page - first // PAGE_ROWS
    return pa.table(
        {
            "request_id": named("request-", page),
            "user_id": named("user-", users[here]),
            "ts": 1_700_000_000_000 + 250 * page,
            "item_id": rng.integers(0, 100_000, n_rows),
            "category": named("category-", rng.integers(0, 200, n_rows)),
            "position": rows % PAGE_ROWS,
            "label": (rng.random(n_rows) < 0.1).astype(np.int64),
            "query": named("query ", queries[here]),
            "price": np.round(rng.lognormal(3, 1, n_rows), 2),
            "brand": rng.integers(0, 1_000, n_rows),
            "device": pa.array(["phone", "tablet", "desktop"]).take(pa.array(devices[here])),
        }
    )


def named(prefix: str, numbers: Int64s) -> Any:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def json_lines(table: pa.Table) -> Any:
    parts: list[Any] = []
    for name in table.schema.names:
        column = table[name].combine_chunks()
        mark = '"' if pa.types.is_string(column.type) else ""
        parts += [f'{", " if parts else "{"}"{name}": {mark}', column.cast(pa.string()), mark]
    return text([*parts, "}"])


def text(parts: list[Any], separator: str = "") -> Any:
    """Return the bytes of one line per row: its parts with a separator between them."""
    lines = pc.binary_join_element_wise(pc.binary_join_element_wise(*parts, separator), "\n", "")
    return lines.buffers()[2]


def interactions(name: str, first: int, n_rows: int) -> Any:
    """Return rows in the format of a public set: users in no order of time, items by popularity that drifts."""
    rng = np.random.default_rng(first)
    users = (first + np.sort(rng.integers(0, n_rows, n_rows))) // 100
    times = 1_511_600_000 + rng.integers(0, 600_000, n_rows)
    items = (rng.zipf(1.2, n_rows) % 400_000 + (times - 1_511_600_000) // 600) % 1_000_000
    draws = rng.integers(0, 40, n_rows)
    user, item, time_, category, rating = (
        pa.array(column).cast(pa.string()) for column in (users, items, times, items % 9_000, 1 + draws % 5)
    )
    if name == "UserBehavior.csv":
        behaviors = pa.array(["pv", "pv", "pv", "pv", "cart", "fav", "pv", "buy"]).take(pa.array(draws % 8))
        return text([user, item, category, behaviors, time_], ",")
    if name == "ratings.dat":
        return text([user, item, rating, time_], "::")
    if name == "log.inter":
        lines = text([named("u", users), named("i", items), rating, time_], "\t").to_pybytes()
        return lines if first else b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + lines
    when = pc.strftime(pa.array(times).cast(pa.timestamp("s")), format="%m/%d/%Y %I:%M:%S %p")
    history = pc.binary_join_element_wise(*(named("N", (items + 7 * n) % 50_000) for n in range(30)), " ")
    clicked = draws % 20
    shown = (text_of(named("N", (items + 11 * n) % 50_000), (clicked == n).astype(np.int64)) for n in range(20))
    return text(
        [
            named("", rng.integers(0, 1 << 30, n_rows)),
            named("U", users),
            when,
            history,
            pc.binary_join_element_wise(*shown, " "),
        ],
        "\t",
    )


def text_of(item: Any, label: Int64s) -> Any:
    return pc.binary_join_element_wise(item, pa.array(label).cast(pa.string()), "-")


def peak_mb() -> float:
    """Return the peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


if __name__ == "__main__":
    main()
