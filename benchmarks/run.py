"""Run the benchmarks one after the other and write what they print to RESULTS.md, with the machine and the versions.

    make bench                 all of them, with the peers, in an environment of its own (.venv-bench); hours
    make bench-quick           small ones, in minutes; peers only where they are installed
    make bench ARGS=--half     the learner's claims in full, the others small: under half an hour on a quiet machine
    python benchmarks/run.py [--quick | --half] [--only NAME...] [--data DIR] [--log DIR] [--out FILE]

Each script stands for one claim, has its baseline in the same run, and can be run by itself. With --log, a joined log of
Globo's (`freshet import globo`), the step is measured on its requests rather than on made-up ones. Accuracy, SEMI's
experiments and the half hour of the live path are left out unless they are named with --only: they take long and are not
about speed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    *("joiner", "topics", "replay", "step", "step_sizes", "peers", "tables", "graph", "queues", "growth", "limit"),
    *("metrics", "slices", "page", "trainer", "worker", "importers"),
)
LEARNER = ("step", "step_sizes", "peers", "tables", "graph", "queues", "growth", "limit")
SLOW = ("accuracy", "live", "semi")
PACKAGES = (
    *("torch", "numba", "numpy", "pyarrow", "rocksdict", "faust-streaming", "kafka-python"),
    *("torch-rechub", "deepctr-torch", "fbgemm-gpu-cpu"),
)
LIMIT_S = 3_600


def machine() -> list[str]:
    """Return what the figures were made on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cpu = models[0] if models else "unknown processor"
    memory = next((int(line.split()[1]) // 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    when, cores, load = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC", len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return [
        f"- {when}; {cpu}, {cores} cores, {memory} GiB; load average {load:.1f} before the first script",
        f"- Python {platform.python_version()}; {', '.join(found)}",
    ]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def run(name: str, quick: bool, data: Path | None, log: Path | None) -> tuple[str, bool]:
    """Run one script; return its section and whether it ended well."""
    command = [sys.executable, f"benchmarks/{name}.py"] + (["--quick"] if quick else [])
    if name == "growth" and not quick:
        command += ["--images", "docs/images"]
    if name == "semi" and not quick:
        command += ["--out", "docs/images"]
    if name == "peers" and data is not None:
        command += ["--requests", str(data / "globo_requests.parquet")]
    if name == "step" and log is not None and not quick:
        command += ["--log", str(log), "--requests", "4000"]
    if name == "step_sizes" and log is not None and not quick:
        command += ["--log", str(log)]
    shown = " ".join(["python", *command[1:]])
    for path, called in ((data, "DATA"), (log, "LOG")):
        shown = shown if path is None else shown.replace(str(path), called)
    print(f"== {shown}", flush=True)
    began, environment = time.monotonic(), {**os.environ, "PYTHONPATH": "."}
    try:
        done = subprocess.run(
            command,
            cwd=HERE.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        out, good = done.stdout, done.returncode == 0
        if not good:
            out += f"\nended with {done.returncode}:\n" + "\n".join(done.stderr.splitlines()[-5:])
    except subprocess.TimeoutExpired:
        out, good = f"not done after {LIMIT_S} s", False
    print(out, flush=True)
    return f"## {name}\n\n`{shown}`, {time.monotonic() - began:.0f} s\n\n```\n{out.strip()}\n```\n", good


def main() -> int:
    """Run what was asked for; 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true")
    sizes.add_argument("--half", action="store_true", help="full sizes for the learner's claims alone")
    parser.add_argument("--only", nargs="+", choices=[*SCRIPTS, *SLOW])
    parser.add_argument("--data", type=Path, help="folder of the real logs")
    parser.add_argument("--log", type=Path, help="a joined log for the step")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    about = machine()
    names = options.only or [name for name in SCRIPTS if (HERE / f"{name}.py").is_file()]
    sections, failed = [], []
    for name in names:
        section, good = run(name, options.quick or (options.half and name not in LEARNER), options.data, options.log)
        sections.append(section)
        if not good:
            failed.append(name)
    title = (
        "# Results of the benchmarks"
        + (", small sizes" if options.quick else "")
        + (", small sizes but for the learner" if options.half else "")
    )
    why = "Written by `benchmarks/run.py`. Trust the ratios: both sides of each were measured in one run."
    options.out.write_text("\n".join([title, "", why, "", *about, "", *sections]))
    print(f"written to {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
