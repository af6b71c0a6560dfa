"""The live path for a while: simulator -> Kafka -> worker -> trainer, each a process; memory and lag of worker and trainer.

    python benchmarks/live.py [--minutes 30] [--rate 200] [--kafka HOST:PORT] [--model egin]
    python benchmarks/live.py --quick

``--rate``: pages a second, as they happen. A line a minute: resident memory (MB) and what of it is anonymous (the rest are
pages of files, which the system takes back when it needs them); what waits (records of the worker, looked at every two seconds:
median and most; event seconds of the trainer); rates; steps of the joiners whose writes to Kafka took over a second; and in
which part of the time some program waited for a processor (``/proc/pressure/cpu``): a lag that comes with it is the machine's.
At the end the slopes over the second half: of memory in MB an hour, of the lags in records and seconds an hour.
The world is small (``--users``, ``--items``) and so are EGIN's queues of negatives (20,000 ids in place of a million), so that
tables, histories and queues are full soon: what grows after that is a leak.
Without ``--kafka`` a broker is started from Maven's jars.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.integration.broker import Broker, free_ports  # noqa: E402

CONFIG = """
[join]
label_window_ms = 15000
lateness_ms = 2000
truth = true
[replay]
models = ["{model}"]
threads = 1
window_ms = 60000
checkpoint_seconds = 30.0
[models.egin]
type = "egin"
queue = 20000
"""
TITLES = (
    ("minute", 7),
    ("worker MB", 11),
    ("anon.", 7),
    ("lag rec.", 10),
    ("most", 7),
    ("trainer MB", 12),
    ("anon.", 7),
    ("lag s", 8),
    ("pages/s", 9),
    ("impr./s", 9),
    ("CPU %", 7),
    ("slow", 6),
    ("waits %", 9),
)
SLOW_SECONDS = "1.0"
"""A bucket of the histogram."""
LOOK_SECONDS = 2.0
FRESHET = [sys.executable, "-m", "stream_app.cli"]


class Program:
    """A verb that runs, and what its metrics say."""

    def __init__(self, words: list[str], log: Path, port: int | None = None) -> None:
        more = [] if port is None else [f"--metrics-port={port}"]
        self._port = port
        self.log = log
        command = [*FRESHET, *words, *more]
        self.process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, cwd=log.parent)

    def pids(self) -> list[int]:
        """Return its process and those that it has started: a worker's joiners have one."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def memory_mb(self, what: str = "VmRSS") -> float:
        """Return its resident memory, or the part of it that a field of /proc/PID/status names."""
        statuses = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in self.pids()]
        return sum(int(row.split()[1]) for rows in statuses for row in rows if row.startswith(f"{what}:")) * 1_024 / 1e6

    def cpu_seconds(self) -> float:
        """Return what it has used of the processors."""
        rows = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids()]
        return sum(int(row[11]) + int(row[12]) for row in rows) / os.sysconf("SC_CLK_TCK")

    def metrics(self) -> dict[str, float]:
        """Return each metric's sum over its labels, buckets and counts apart; nothing while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = "_".join([sample.name, *(sample.labels[label] for label in ("le", "name") if label in sample.labels)])
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def check(self) -> None:
        """End the benchmark where the program has ended."""
        if (code := self.process.poll()) is not None:
            raise SystemExit(f"{self.log.stem} ended with {code}:\n{self.log.read_text()[-2_000:]}")

    def end(self) -> None:
        """Stop it in good order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


class Pipeline:
    """Simulator, worker and trainer on one cluster."""

    def __init__(self, options: argparse.Namespace, folder: Path, opened: ExitStack) -> None:
        server = options.kafka or opened.enter_context(Broker(folder / "broker")).server
        (folder / "freshet.toml").write_text(CONFIG.format(model=options.model))
        cluster = [f"--kafka={server}", f"--set=kafka.topic_prefix=live-{secrets.token_hex(3)}."]
        configured = [*cluster, f"--config={folder / 'freshet.toml'}"]
        world = [f"--users={options.users}", f"--items={options.items}", "--queries=50", "--categories=20"]
        world += [f"--rate={options.rate}", "--requests=100000000", "--label-window-ms=15000", "--click-delay-ms=3000"]
        ports = free_ports(2)
        self.simulator = Program(["simulate", *cluster, "--live", "--partitions=2", *world], folder / "simulator.log")
        opened.callback(self.simulator.end)
        time.sleep(5)
        self.worker = Program(["join", *configured, f"--state={folder / 'state'}"], folder / "worker.log", ports[0])
        opened.callback(self.worker.end)
        self.trainer = Program(["train", *configured, f"--run={folder / 'run'}"], folder / "trainer.log", ports[1])
        opened.callback(self.trainer.end)
        self._began = time.monotonic()

    @property
    def minute(self) -> float:
        """Minutes since the beginning."""
        return (time.monotonic() - self._began) / 60

    def check(self) -> None:
        """End the benchmark where a program has ended."""
        for program in (self.simulator, self.worker, self.trainer):
            program.check()

    def watch(self, seconds: float) -> list[float]:
        """Look at the worker's lag for a while."""
        lags, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
            self.check()
            lags.append(self.worker.metrics().get("freshet_worker_lag_records", 0.0))
        return lags

    def look(self, lags: list[float]) -> dict[str, float]:
        """Return what is so now; sums since the beginning among it."""
        of_worker, of_trainer = self.worker.metrics(), self.trainer.metrics()
        publishes = "freshet_worker_publish_seconds"
        return {
            "minute": self.minute,
            "worker_mb": self.worker.memory_mb(),
            "worker_anonymous_mb": self.worker.memory_mb("RssAnon"),
            "trainer_anonymous_mb": self.trainer.memory_mb("RssAnon"),
            "worker_lag": float(np.median(lags)),
            "worker_lag_most": max(lags),
            "slow": of_worker.get(f"{publishes}_count", 0.0) - of_worker.get(f"{publishes}_bucket_{SLOW_SECONDS}", 0.0),
            "waited": waited_seconds(),
            "actions": of_worker.get("freshet_worker_counts_actions", 0.0),
            "late": of_worker.get("freshet_worker_counts_late_actions", 0.0),
            "trainer_mb": self.trainer.memory_mb(),
            "trainer_lag": of_trainer.get("freshet_trainer_lag_event_seconds", 0.0),
            "rows": of_trainer.get("freshet_trainer_rows_total", 0.0),
            "impressions": of_trainer.get("freshet_trainer_impressions_total", 0.0),
            "cpu": self.worker.cpu_seconds() + self.trainer.cpu_seconds(),
        }


def waited_seconds() -> float:
    """Return the seconds since the machine's start in which some program waited for a processor; 0 where it does not tell."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    except OSError:
        return 0.0


def line(now: dict[str, float], last: dict[str, float]) -> str:
    """Return a line of the table: what is so, and rates since the last look."""
    passed = (now["minute"] - last.get("minute", 0.0)) * 60
    rows, impressions, cpu = ((now[name] - last.get(name, 0.0)) / passed for name in ("rows", "impressions", "cpu"))
    slow, waited = now["slow"] - last.get("slow", 0.0), (now["waited"] - last.get("waited", now["waited"])) / passed
    return (
        f"{now['minute']:7.1f}{now['worker_mb']:11.0f}{now['worker_anonymous_mb']:7.0f}{now['worker_lag']:10.0f}"
        f"{now['worker_lag_most']:7.0f}{now['trainer_mb']:12.0f}{now['trainer_anonymous_mb']:7.0f}{now['trainer_lag']:8.2f}"
        f"{rows:9.0f}{impressions:9.0f}{100 * cpu:7.0f}{slow:6.0f}{100 * waited:9.0f}"
    )


def summary(rows: list[dict[str, float]]) -> Iterator[str]:
    """Yield what the second half says: slopes of memory, and the largest lags."""
    late = rows[len(rows) // 2 :]
    if len(late) <= 2:
        return
    hours = np.array([row["minute"] / 60 for row in late])
    for name in ("worker_mb", "worker_anonymous_mb", "trainer_mb", "trainer_anonymous_mb", "worker_lag", "trainer_lag"):
        values = [row[name] for row in late]
        slope = np.polyfit(hours, values, 1)[0]
        span = f"{min(values):.1f} to {max(values):.1f}, mean {np.mean(values):.1f}"
        yield f"{name}: {slope:+.1f} an hour over the second half, {span}"
    yield f"actions: {rows[-1]['actions']:,.0f}, {rows[-1]['late']:,.0f} of them late"
    yield f"most that the worker was behind there: {max(row['worker_lag_most'] for row in late):.0f} records"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--model", default="egin")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--kafka")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between lines")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    minutes, every = (1.0, 10.0) if options.quick else (options.minutes, options.every)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        pipeline = Pipeline(options, Path(folder), opened)
        print("".join(f"{name:>{width}}" for name, width in TITLES))
        while pipeline.minute < minutes:
            now = pipeline.look(pipeline.watch(every))
            print(line(now, rows[-1] if rows else {}), flush=True)
            rows.append(now)
    for each in summary(rows):
        print(each)
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
