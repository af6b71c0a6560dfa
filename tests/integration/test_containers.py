"""The whole pipeline in containers: the project's own image, real Kafka, the composition that deploy/ ships."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault(
    "TESTCONTAINERS_RYUK_DISABLED", "true"
)  # its image cannot be pulled on a closed network; `with` cleans up

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from tests.integration.broker import free_ports
from tests.integration.images import ROOT, base_image, freshet_image, kafka_image, prometheus_image

pytestmark = [pytest.mark.docker, pytest.mark.slow]
PARTITIONS, REQUESTS = 2, 600


class Kafka(DockerContainer):
    """One node of Kafka, for containers of the same network as ``kafka:9092``.

    The package's own KafkaContainer asks for another vendor's image and its scripts.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(kafka_image())
        self.with_network(network).with_network_aliases("kafka")
        settings = {
            "CLUSTER_ID": "RnJlc2hldFRlc3RzMDAwMQ",
            "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_LISTENERS": "INSIDE://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": "INSIDE://kafka:9092",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "INSIDE",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        }
        for name, value in settings.items():
            self.with_env(name, value)
        self.waiting_for(LogMessageWaitStrategy(re.compile("Kafka Server started")).with_startup_timeout(90))


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def freshet(network: Network, *arguments: str) -> DockerContainer:
    container = DockerContainer(freshet_image()).with_network(network).with_command(list(arguments))
    return container.with_env("OMP_NUM_THREADS", "1")


def finished(container: DockerContainer, seconds: float) -> str:
    """Wait until a container has ended well; return what it printed."""
    wrapped = container.get_wrapped_container()
    code = wrapped.wait(timeout=seconds)["StatusCode"]
    out, err = (part.decode() for part in container.get_logs())
    assert code == 0, f"exit code {code}:\n{out}\n{err}"
    return out


def eventually(what: str, seconds: float, look: Callable[[], Any]) -> Any:
    """Return the first thing that is true of what ``look`` returns."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if last := look():
                return last
        except OSError as error:
            last = error
        time.sleep(1)
    pytest.fail(f"{what}: not within {seconds:.0f} s; last: {last}")


def test_every_request_passes_from_simulator_to_trainer(network: Network) -> None:
    config = ROOT / "deploy" / "freshet.toml"
    simulate = ["simulate", "--kafka=kafka:9092", f"--requests={REQUESTS}", f"--partitions={PARTITIONS}", "--rate=50"]
    delays = ["--label-window-ms=15000", "--click-delay-ms=3000"]
    with Kafka(network), freshet(network, *simulate, *delays, "--json") as simulator:
        written = json.loads(finished(simulator, 120))
        join = ["join", "--kafka=kafka:9092", "--config=/etc/freshet.toml", "--worker-id=one"]
        with freshet(network, *join).with_volume_mapping(str(config), "/etc/freshet.toml") as worker:
            train = ["train", "--kafka=kafka:9092", "--run=run", "--config=/etc/freshet.toml", "--json"]
            one_model = ["--set=replay.models=['dnn']"]

            def trained() -> dict[str, Any] | None:
                """Train what is there now; the run's folder is new each time, the samples are the same."""
                container = freshet(network, *train, *one_model, "--drain").with_volume_mapping(
                    str(config), "/etc/freshet.toml"
                )
                with container:
                    out = finished(container, 240)
                result: dict[str, Any] = json.loads(out)
                return result if result["requests"] == REQUESTS else None

            # The last requests leave when their label window has passed; nothing follows them but time.
            result = eventually("all requests are learned", 300, trained)
            wrapped = worker.get_wrapped_container()
            wrapped.stop(timeout=60)
            assert wrapped.wait()["StatusCode"] == 0, worker.get_logs()[1].decode()
    assert written["events"]["impressions"] == result["requests"] == REQUESTS
    assert 0.4 < result["models"]["dnn"]["auc"] < 0.95


def test_the_image_runs_as_nobody_special_and_knows_its_verbs() -> None:
    said = in_the_image("id -u; freshet --version; ls -ld /var/lib/freshet")
    assert said[0] == "10001"
    assert said[1].startswith("freshet ")
    assert "freshet freshet" in said[2]


@pytest.fixture
def composition(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[..., str], str]]:
    """What runs ``docker compose`` on deploy/compose.yaml, under a project name and ports of its own; Prometheus' address."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    command = ["docker", "compose"] if plugin else ["docker-compose"]
    if not plugin and shutil.which("docker-compose") is None:
        pytest.fail("neither `docker compose` nor `docker-compose`: install Docker's compose plugin")
    kafka_port, prometheus_port = free_ports(2)
    environment = {
        **os.environ,
        "FRESHET_IMAGE": freshet_image(),
        "KAFKA_IMAGE": kafka_image(),
        "PROMETHEUS_IMAGE": prometheus_image(),
        "BASE_IMAGE": base_image(),
        "KAFKA_PORT": str(kafka_port),
        "PROMETHEUS_PORT": str(prometheus_port),
        "RATE": "30",
        "DOCKER_BUILDKIT": "0",
        "COMPOSE_DOCKER_CLI_BUILD": "0",
    }
    file = ["-f", str(ROOT / "deploy" / "compose.yaml"), "-p", f"freshet-test-{os.getpid()}"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *file, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    try:
        yield run, f"http://127.0.0.1:{prometheus_port}"
    finally:
        if request.session.testsfailed:
            print(run("logs", "--tail=60"))
        run("down", "--volumes", "--timeout=30")


def test_the_composition_learns_and_is_watched(composition: tuple[Callable[..., str], str]) -> None:
    compose, address = composition

    def asked(query: str) -> float:
        with urllib.request.urlopen(f"{address}/api/v1/query?query={urllib.parse.quote(query)}", timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        return sum(float(each["value"][1]) for each in found)

    compose("up", "--detach")
    eventually("Prometheus sees worker and trainer", 120, lambda: asked("up") == 2)
    eventually("the trainer learns", 240, lambda: asked("freshet_trainer_impressions_total") > 500)
    before = asked("freshet_trainer_impressions_total")
    eventually("it goes on", 60, lambda: asked("freshet_trainer_impressions_total") > before + 500)
    containers = [compose("ps", "-q", part).strip() for part in ("worker", "trainer")]
    eventually("both are healthy", 90, lambda: [health(each) for each in containers] == ["healthy", "healthy"])


def health(container: str) -> str:
    """Return what Docker says of a container's health."""
    return docker("inspect", "--format", "{{.State.Health.Status}}", container)


def docker(*arguments: str) -> str:
    """Return what a command of docker prints."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def in_the_image(script: str) -> list[str]:
    """Return the lines that a shell script prints in the project's image."""
    return docker("run", "--rm", "--entrypoint", "sh", freshet_image(), "-c", script).split("\n")


def test_the_image_holds_the_project_and_nothing_else_of_the_tree() -> None:
    listing = in_the_image("ls /opt/project; ls /opt")
    assert {"negative_queues", "learners", "stream_app", "freshet", "torch"} <= set(listing)
    assert "tests" not in listing
    assert Path(ROOT / ".dockerignore").read_text().startswith("*")
