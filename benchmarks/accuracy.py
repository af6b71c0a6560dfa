"""What the models reach: Globo, trivago and the generator, through the commands that people run, over several seeds.

    python benchmarks/accuracy.py globo --data DIR --seeds 3
    python benchmarks/accuracy.py globo-parts --data DIR      (EGIN's ablations and options)
    python benchmarks/accuracy.py globo-all --data DIR        (all 3 M clicks as one stream, candidates drawn)
    python benchmarks/accuracy.py trivago --data DIR
    python benchmarks/accuracy.py trivago-vw --data DIR       (Vowpal Wabbit beside; needs the extra "bench")
    python benchmarks/accuracy.py trivago-parts --data DIR    (the sweep over what lies between EGIN and Vowpal Wabbit)
    python benchmarks/accuracy.py globo-vw --data DIR         (Vowpal Wabbit beside)
    python benchmarks/accuracy.py generator --requests 200000

Each prints a table of means over the seeds with their spread, and the difference to the first model with its paired interval
(seed 0, bootstrap over users). Logs are made once per work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.curves import print_table

FRESHET = [sys.executable, "-m", "stream_app.cli"]
CONFIGS = Path(__file__).parent / "configs"
FIGURES = ("auc", "gauc", "log_loss", "mrr")
ENVIRONMENT = os.environ.copy()


def freshet(*arguments: object) -> str:
    command = [*FRESHET, *(str(argument) for argument in arguments)]
    print("$ freshet", *command[3:], file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT).stdout


def replays(log: Path, models: list[str], seeds: int, *options: object) -> list[dict[str, Any]]:
    named = [part for model in models for part in ("--model", model)]
    return [json.loads(freshet("replay", "--log", log, *named, "--seed", s, *options, "--json")) for s in range(seeds)]


def globo(data: Path, log: Path) -> tuple[list[object], list[str]]:
    requests = data / "globo_requests.parquet"
    if not log.exists():
        freshet("import", "globo", data / "globo_clicks.parquet", "--candidates", requests, "--log", log)
        freshet("join", "--log", log)
    return ["--config", CONFIGS / "globo.toml", "--score-from", fifth_part(requests)], ["egin", "din", "dnn", "trend"]


def globo_parts(data: Path, log: Path) -> tuple[list[object], list[str]]:
    options, _ = globo(data, log)
    variants = ["all-edges", "no-positions", "place-bias", "alpha-1", "graph-table-only", "no-graph"]
    return options, ["egin", *(f"egin-{variant}" for variant in variants), "din", "dnn", "dnn-mean-only"]


def globo_all(data: Path, log: Path) -> tuple[list[object], list[str]]:
    clicks = data / "globo_clicks.parquet"
    if not log.exists():
        freshet("import", "globo", clicks, "--log", log)
        freshet("join", "--log", log)
    times = json.loads(freshet("inspect", log, "--json"))["topics"]["impressions"]
    return ["--config", CONFIGS / "globo.toml", "--score-from", times["first_ts"]], ["egin", "din", "dnn", "trend"]


def trivago(data: Path, log: Path) -> tuple[list[object], list[str]]:
    if not log.exists():
        freshet("import", "trivago", data / "trivago_sessions_100k.parquet", "--log", log)
        freshet("join", "--log", log)
    options = ["--config", CONFIGS / "trivago.toml", "--score-from", fifth_part(data / "trivago_requests.parquet")]
    return options, ["egin", "last_clicked", "din", "dnn", "egin-defaults", "egin-no-graph", "egin-no-query"]


def trivago_vw(data: Path, log: Path) -> tuple[list[object], list[str]]:
    options, _ = trivago(data, log)
    return ["--config", CONFIGS / "trivago_vw.toml", *options[2:]], ["egin", "last_clicked", "vw", "vw-tuned", "egin-defaults"]


def globo_vw(data: Path, log: Path) -> tuple[list[object], list[str]]:
    options, _ = globo(data, log)
    models = ["egin", "egin-no-graph", "egin-place-bias", "din", "dnn", "vw"]
    return ["--config", CONFIGS / "globo_vw.toml", *options[2:]], models


def trivago_parts(data: Path, log: Path) -> None:
    """Run the sweep and print its table as Markdown."""
    trivago(data, log)
    folder = log.with_name(f"{log.name}-sweep")
    freshet("sweep", CONFIGS.parent / "sweeps" / "trivago_parts.toml", "--log", log, "--out", folder, "--jobs", 1)
    print_table(json.loads((folder / "results.json").read_text()))


def bring_in_vowpal(folder: Path) -> None:
    """Let the commands find ``benchmarks.vowpal`` as a model from outside: by the entry point of a package."""
    package = folder / "freshet_vw-0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: freshet-vw\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[freshet.models]\nvw = benchmarks.vowpal\n")
    paths = [str(CONFIGS.parent.parent), str(folder), ENVIRONMENT.get("PYTHONPATH", "")]
    ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def generator(requests: int, log: Path) -> tuple[list[object], list[str]]:
    if not log.exists():
        freshet("simulate", "--log", log, "--requests", requests)
        freshet("join", "--log", log)
    times = json.loads(freshet("inspect", log, "--json"))["topics"]["impressions"]
    first, last = times["first_ts"], times["last_ts"]
    return ["--score-from", first + (last - first) * 4 // 5], ["egin", "din", "dnn", "popularity"]


def fifth_part(requests: Path) -> int:
    """Return the time of the first request of the last fifth, UTC ms."""
    return time_of(requests, pq.read_metadata(requests).num_rows * 4 // 5)


def time_of(requests: Path, at: int) -> int:
    """Return the time of a request, UTC ms."""
    return int(pq.read_table(requests, columns=["ts"])["ts"].to_pylist()[at])


REAL = {
    "globo": globo,
    "globo-parts": globo_parts,
    "globo-all": globo_all,
    "globo-vw": globo_vw,
    "trivago": trivago,
    "trivago-vw": trivago_vw,
}


def table(results: list[dict[str, Any]], title: str) -> None:
    first = results[0]
    print(f"\n{title}, {len(results)} seed(s); {first['evaluation']}")
    header = "".join(f"{name:>18}" for name in FIGURES)
    print(f"{'model':24}{header}{'impressions/s':>16}   difference in AUC")
    for model in first["models"]:
        rows = [result["models"][model] for result in results]
        cells = "".join(f"{cell([row[name] for row in rows]):>18}" for name in FIGURES)
        rate = statistics.median(row["impressions_per_s"] for row in rows)
        difference = rows[0].get("difference", {}).get("auc")
        interval = "" if difference is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
        print(f"{model:24}{cells}{rate:16,.0f}   {interval}")
    if "best_auc" in first:
        print(f"{'best possible':24}{first['best_auc']:18.4f}{'':18}{first['best_log_loss']:18.4f}")
        reached = {name: statistics.mean(result["models"][name]["auc"] for result in results) for name in first["models"]}
        if (floor := reached.pop("popularity", None)) is not None:
            for name, auc in reached.items():
                share = (auc - floor) / (first["best_auc"] - floor)
                print(f"{name}: {share:.1%} of the way from popularity to the best possible")


def cell(values: list[float]) -> str:
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=[*REAL, "trivago-parts", "generator"], nargs="?", default="generator")
    parser.add_argument("--data", type=Path, help="folder of the real logs")
    parser.add_argument("--work", type=Path, help="folder for logs, kept; a temporary one by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200_000, help="of the generator")
    parser.add_argument("--last", type=int, default=0, help="begin so many requests before the end (globo, trivago); 0: all")
    parser.add_argument("--model", action="append", help="instead of the usual ones; repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the generator with few requests")
    options = parser.parse_args()
    if options.log != "generator" and options.data is None:
        parser.error(f"{options.log} needs --data DIR, the folder of the real logs")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)) / options.log.removesuffix("-vw").removesuffix("-parts")
        if options.log in ("globo-vw", "trivago-vw", "trivago-parts"):
            bring_in_vowpal(Path(temporary))
        if options.log == "trivago-parts":
            trivago_parts(options.data, folder)
            return
        if options.log == "generator":
            arguments, models = generator(5_000 if options.quick else options.requests, folder)
        else:
            arguments, models = REAL[options.log](options.data, folder)
        arguments += ["--threads", options.threads]
        if options.last:
            arguments += ["--from", time_of(options.data / f"{folder.name}_requests.parquet", -options.last)]
        results = replays(folder, options.model or models, options.seeds, *arguments)
    table(results, options.log)
    for name, found in results[0].get("slices", {}).items():
        if "models" in found:  # a slice of replay.slices; the others are in the run's page
            parts = [{**result, **result["slices"][name]} for result in results]
            table(parts, f"{options.log}, {name}")
    print(json.dumps(results), file=sys.stderr)


if __name__ == "__main__":
    main()
