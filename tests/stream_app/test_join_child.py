"""The process of a worker's joiners, without a broker: it does not outlive its worker."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTAGE_SECONDS = 1_200
PATIENCE_S = 300
"""Bounds what hangs."""
# A worker as far as the joiners see it: prints their process, has frames under way to them, and waits to be killed.
WORKER = """
import sys, time
from pathlib import Path
from stream_app.join_messages import Setup
from stream_app.join_process import JoinProcess
from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.worker_metrics import WorkerMetrics
from stream_app.worker_options import WorkerOptions
server, outage = sys.argv[1], int(sys.argv[2])
options = WorkerOptions(worker_id="w0", state_dir=Path("state"))
kafka = KafkaConfig(servers=(server,), outage_ms=outage)
joiners = JoinProcess(Setup(options, JoinConfig(), kafka, 1), WorkerMetrics(), lambda error: print(error, file=sys.stderr))
joiners.start()
joiners.renew(time.monotonic())
joiners.assign([0], 1)
print(joiners._process.pid, flush=True)
time.sleep(outage / 1_000)
"""


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process of another parent lives")
@pytest.mark.parametrize("broker", ["away", "frozen"])
def test_joiners_that_wait_for_the_cluster_end_when_their_worker_is_killed(broker: str, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # The port is nobody else's, and refuses until somebody listens.
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if broker == "frozen":
            server.listen()
        words = [sys.executable, "-c", WORKER, address, str(OUTAGE_SECONDS * 1_000)]
        said = tmp_path / "said"
        with said.open("wb") as stderr, subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr) as worker:
            try:
                assert worker.stdout is not None
                joiners = int(worker.stdout.readline())
                if broker == "away":
                    wait_for(lambda: "trying again" in said.read_text(), said)
                else:
                    server.settimeout(PATIENCE_S)
                    server.accept()  # Asked and never answered.
                assert lives(joiners)
            finally:
                worker.kill()
        wait_for(lambda: not lives(joiners), said)


def wait_for(done: Callable[[], bool], said: Path) -> None:
    """Wait until something is so; fail with what was said on stderr."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
