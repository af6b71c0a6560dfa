"""How much of faust's own rate a worker keeps: events/s of ``freshet join --kafka`` against an agent that does nothing.

Both run on one broker, in processes of their own, one after the other, over the same events (impressions and actions of a
simulation, 2 partitions), each from the beginning, in several rounds. The agent is faust as its manual has it, with the
settings that are best for it here: batches of 500 (``take_events``), no topic of leaders, fetches of up to 16 MB. The clock
runs to the last event: for the agent from the first one; for the worker from the last look at which nothing was delivered (up
to a quarter of a second earlier) until all is joined and committed. CPU seconds are those of faust's process in that time, and
of the worker's second process, the joiners', on their own.

``direct``: the part that joiners read from Kafka themselves, because they did not come from faust.

    .venv/bin/python benchmarks/worker.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stream_app.kafka_config import KafkaConfig  # noqa: E402
from stream_app.simulate.options import SimulateOptions  # noqa: E402
from stream_app.simulate.run import run_simulate  # noqa: E402
from stream_app.topics import Message  # noqa: E402
from stream_app.topics.kafka import KafkaLog, open_kafka  # noqa: E402
from stream_app.topics.memory import MemoryLog  # noqa: E402
from tests.integration.broker import Broker, free_ports  # noqa: E402

TOPICS = ("impressions", "actions", "items")
N_PARTITIONS = 2
NO_OP = """
import json, sys, threading, time
import faust
from stream_app.worker import run_delivery
server, name, n_events, folder = sys.argv[1:]
app = faust.App(
    name, broker=f"aiokafka://{server}", datadir=folder, topic_disable_leader=True, topic_allow_declare=False,
    consumer_auto_offset_reset="earliest", consumer_max_fetch_size=16 << 20, stream_wait_empty=False, web_enabled=False,
)
ended, n, first = threading.Event(), 0, None
async def nothing(stream):
    global n, first
    async for events in stream.take_events(500, within=0.05):
        if first is None:
            first = time.perf_counter(), time.process_time()
        n += len(events)
        if n >= int(n_events):
            print(json.dumps({"events": n, "seconds": time.perf_counter() - first[0], "cpu": time.process_time() - first[1]}))
            ended.set()
for each in ("impressions", "actions"):
    topic = app.topic(each, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    app.agent(topic, name=each)(nothing)
run_delivery(app, ended)
"""


def fill(log: KafkaLog, requests: int) -> int:
    """Simulate into Kafka; return how many events faust has to deliver."""
    source = MemoryLog()
    options = SimulateOptions(requests=requests, partitions=N_PARTITIONS, rate=100.0, label_window_ms=5_000, click_delay_ms=900)
    run_simulate(options, source, None)
    for name in TOPICS:
        for p in range(N_PARTITIONS):
            log.create(name, N_PARTITIONS)
            position = 0
            while records := source.topic(name).read(p, position, 5_000):
                log.topic(name).append(p, [Message(r.ts, r.key, r.value) for r in records])
                position = records[-1].offset + 1
    return sum(log.topic(name).end(p) for name in ("impressions", "actions") for p in range(N_PARTITIONS))


def no_op(server: str, name: str, n_events: int, folder: Path) -> dict[str, float]:
    """Run the agent that does nothing."""
    words = [sys.executable, "-c", NO_OP, server, name, str(n_events), str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(server: str, name: str, n_events: int, folder: Path) -> dict[str, float]:
    """Run a worker until it has joined everything."""
    (port,) = free_ports(1)
    words = ["join", "--kafka", server, "--app", name, "--worker-id", "w", "--state", str(folder), "--metrics-port", str(port)]
    words += ["--set", "join.label_window_ms=5000", "--set", "join.lateness_ms=0"]
    process = subprocess.Popen([sys.executable, "-m", "stream_app.cli", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    first: tuple[float, float, float] | None = None
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(0.25)  # Each scrape is a few ms of the process that is measured.
            at, found = time.perf_counter(), scrape(port)
            cpu, joiners = cpu_seconds(process.pid), sum(map(cpu_seconds, children(process.pid)))
            joined = found.get("freshet_worker_joined_total", 0.0)
            delivered = sum(value for key, value in found.items() if key.startswith("freshet_worker_events_total"))
            if found and joined + delivered == 0:
                first = at, cpu, joiners
            if first is not None and joined >= n_events:
                time.sleep(2.5)
                direct = scrape(port)["freshet_worker_direct_records"]
                return {
                    "events": joined,
                    "seconds": at - first[0],
                    "cpu": cpu - first[1],
                    "joiners": joiners - first[2],
                    "direct": direct / n_events,
                }
        raise TimeoutError(f"joined {joined} of {n_events} events in 300 s")
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def scrape(port: int) -> dict[str, float]:
    """Return a worker's metrics; empty while it does not answer."""
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return {}
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {key: float(value) for key, _, value in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    quick = parser.parse_args().quick
    requests, rounds = (20_000, 1) if quick else (60_000, 3)
    rates: dict[str, list[float]] = {"no-op agent": [], "worker": []}
    spent: dict[str, list[float]] = {"no-op agent": [], "worker": []}
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "kafka") as broker:
        with open_kafka(KafkaConfig(servers=(broker.server,))) as log:
            n_events = fill(log, requests)
        print(f"{n_events:,} events in {N_PARTITIONS} partitions, {rounds} round(s)")
        for i in range(rounds):
            for name, run in (("no-op agent", no_op), ("worker", worker)):
                if name == "worker":
                    forget_results(broker.server)
                found = run(broker.server, f"bench-{name[:2]}-{i}", n_events, Path(folder) / f"{name[:2]}{i}")
                rate = found["events"] / found["seconds"]
                rates[name].append(rate)
                share = ""
                if "direct" in found:
                    share = f", {1e6 * found['joiners'] / found['events']:.1f} of the joiners, {found['direct']:.0%} direct"
                spent[name].append(found["cpu"] / found["events"])
                per_event = 1e6 * found["cpu"] / found["events"]
                print(f"{name:12} {rate:8,.0f} events/s, {per_event:5.1f} us of CPU per event{share}", flush=True)
    ratio = median(rates["worker"]) / median(rates["no-op agent"])
    cpu = median(spent["no-op agent"]) / median(spent["worker"])
    print(f"worker / no-op agent: {ratio:.2f} (median of {rounds}); in CPU of faust's process: {cpu:.2f}")


def forget_results(server: str) -> None:
    """Delete what an earlier round has made, so that each publishes everything."""
    with open_kafka(KafkaConfig(servers=(server,))) as log:
        results = [name for name in ("samples", "marks", "dead_letters") if name in log.topics()]
        if results:
            log.admin.delete_topics(results)
            while set(results) & set(log.topics()):
                time.sleep(0.1)


if __name__ == "__main__":
    main()
