"""The page of a long run: its size, what writing it costs, and how long a browser takes to open it.

    python benchmarks/page.py [--run RUN] [--requests 3000000] [--window 1000] [--turns 5]
    python benchmarks/page.py --quick

What RUN's folder holds is stretched: its windows of figures again and again, later each time, until there is one for every so
many of the requests, and a checkpoint for each. All else on a page is bounded whatever the length. Without --run a run of the
demo with six models is made first. The time to open is a browser's whole life, from its start to the drawn page and its end,
less that on an empty page, turn by turn; and the page's own clock when all is drawn. FRESHET_CHROMIUM names the browser.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from stream_app.cli import main as freshet
from stream_app.report.run_data import MOMENTS, SNAPSHOT
from stream_app.report.several import write_page
from stream_app.runs import CONFIG, METRICS

MODELS = ("egin", "din", "dnn", "bst", "popularity", "trend")
CLOCK = """<script>
addEventListener("load", () => {
  document.body.getBoundingClientRect();  // has all be laid out
  document.documentElement.dataset.drawn = performance.now();
});
</script>
"""
EMPTY = "<!doctype html><html><body>empty</body></html>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run; none: a demo is made")
    parser.add_argument("--requests", type=int, default=3_000_000)
    parser.add_argument("--window", type=int, default=1_000, help="requests in a window of figures")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a short demo, opened once, to see that it runs")
    given = parser.parse_args()
    given.turns = 1 if given.quick else given.turns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = folder / "long"
        stretch(given.run or demo(folder, 2_000), long, given.requests // given.window)
        began = time.process_time()
        write_page(long)
        wrote = time.process_time() - began
        page = long / "index.html"
        n_windows, size = given.requests // given.window, page.stat().st_size
        print(f"{given.requests:,} requests, {n_windows:,} windows for each model: page of {size / 1e6:.2f} MB")
        print(f"read the run's folder and wrote the page in {wrote:.2f} s CPU")
        show_opening(page, folder, given.turns)


def demo(folder: Path, n_requests: int) -> Path:
    named = [word for model in MODELS for word in ("--model", model)]
    if freshet(["demo", "--requests", str(n_requests), *named, "--folder", str(folder / "demo")]):
        raise SystemExit("the demo failed")
    return folder / "demo" / "run"


def stretch(run: Path, long: Path, n_windows: int) -> None:
    """Copy what a page is made of; every model gets ``n_windows`` windows, the run as many checkpoints."""
    long.mkdir()
    for name in (CONFIG, SNAPSHOT):
        shutil.copy(run / name, long / name)
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    models: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        models.setdefault(line["model"], []).append(line)
    span = max(line["last_ts"] for line in lines) - min(line["first_ts"] for line in lines) + 1
    with (long / METRICS).open("w") as file:
        for windows in models.values():
            for at, line in enumerate(islice(cycle(windows), n_windows)):
                later = at // len(windows) * span
                moved = {name: line[name] + later for name in ("first_ts", "last_ts")}
                file.write(json.dumps(line | moved) + "\n")
    first = json.loads((run / MOMENTS).read_text().splitlines()[0])
    with (long / MOMENTS).open("w") as file:
        for at in range(n_windows + 1):
            kind = "checkpoint" if at else "start"
            moment = {"kind": kind, "ts": first["ts"] + at * span // 10, "requests": 1_000 * at, "seconds": 10.0 * at}
            file.write(json.dumps(first | moment) + "\n")


def show_opening(page: Path, folder: Path, turns: int) -> None:
    names = (os.environ.get("FRESHET_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    chromium = next((found for name in names if name and (found := shutil.which(name))), None)
    if chromium is None:
        print("not opened: no Chromium on the path, and FRESHET_CHROMIUM names none")
        return
    timed = folder / "timed.html"
    timed.write_text(page.read_text().replace("</body>", f"{CLOCK}</body>"))
    empty = folder / "empty.html"
    empty.write_text(EMPTY.replace("</body>", f"{CLOCK}</body>"))
    took: dict[Path, list[tuple[float, float, float]]] = {empty: [], timed: []}
    for turn in range(turns + 1):
        for path, times in took.items():
            one = opened(chromium, path, folder / "profile")
            if turn:  # The first one makes the browser's profile.
                times.append(one)
    none, full = ([statistics.median(column) for column in zip(*took[path], strict=True)] for path in (empty, timed))
    print(
        f"opened in {full[0] - none[0]:.2f} s ({full[0]:.2f} with the browser's start and end), {full[1] - none[1]:.2f} s CPU"
    )
    print(f"drawn {full[2]:.2f} s after the browser began to read it (an empty page: {none[2]:.2f})")


def opened(chromium: str, page: Path, profile: Path) -> tuple[float, float, float]:
    """Return wall and CPU seconds of a browser that opens a page, and the page's own clock when it is drawn."""
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = re.search(r'data-drawn="([\d.]+)"', done.stdout)
    if clock is None:
        raise SystemExit(f"{page.name} was not drawn: {done.stderr[-500:]}")
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.monotonic() - began, cpu, float(clock[1]) / 1_000


if __name__ == "__main__":
    main()
