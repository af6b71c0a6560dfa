"""The whole pipeline in containers: the project's own image, real Kafka, the composition that deploy/ ships."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ.setdefault(
    "TESTCONTAINERS_RYUK_DISABLED", "true"
)  # its image cannot be pulled on a closed network; `with` cleans up

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from tests.integration.broker import free_ports
from tests.integration.images import ROOT, base_image, freshet_image, kafka_image, prometheus_image
from tests.pages import commands

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
        self.waiting_for(LogMessageWaitStrategy(re.compile("Kafka Server started")).with_startup_timeout(300))


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
        written = json.loads(finished(simulator, 600))
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
                    out = finished(container, 600)
                result: dict[str, Any] = json.loads(out)
                return result if result["requests"] == REQUESTS else None

            # The last requests leave when their label window has passed; nothing follows them but time.
            result = eventually("all requests are learned", 900, trained)
            wrapped = worker.get_wrapped_container()
            wrapped.stop(timeout=300)
            assert wrapped.wait()["StatusCode"] == 0, worker.get_logs()[1].decode()
    assert written["events"]["impressions"] == result["requests"] == REQUESTS
    assert 0.4 < result["models"]["dnn"]["auc"] < 0.95


def test_the_image_runs_as_nobody_special_and_knows_its_verbs() -> None:
    said = in_the_image("id -u; freshet --version; ls -ld /var/lib/freshet")
    assert said[0] == "10001"
    assert said[1].startswith("freshet ")
    assert "freshet freshet" in said[2]


class Composition(NamedTuple):
    """The project's folder as somebody gets it, and what runs commands there on deploy/compose.yaml."""

    folder: Path
    environment: dict[str, str]
    project: str
    prometheus: str
    """Its address."""

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command of a page, as it is typed; where Docker has no compose plugin the older program stands in for it."""
        if not has_plugin():
            copied = re.fullmatch(r"docker compose (\S+ \S+) cp (\w+):(\S+) (\S+)", command)
            if copied is not None:  # It has no such command.
                command = f'docker cp "$(docker compose {copied[1]} ps -q {copied[2]})":{copied[3]} {copied[4]}'
            command = command.replace("docker compose", "docker-compose")
        # A session of its own, so that Ctrl-C can be sent to all of it, as a terminal does.
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, code: int = 0) -> str:
        """Run a command to its end; return what it printed."""
        process = self.start(command)
        out, _ = process.communicate(timeout=900)
        print(f"$ {command}\n{out[-6_000:]}")
        assert process.returncode == code, f"{command}: {process.returncode}"
        return out

    def until(self, command: str, what: str, seconds: float) -> str:
        """Run a command until it has printed something, then press Ctrl-C; return all that it printed."""
        process, printed = self.start(command), []
        stop = threading.Timer(seconds, lambda: os.killpg(process.pid, signal.SIGKILL))
        stop.start()
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if re.search(what, line):
                os.killpg(process.pid, signal.SIGINT)
                break
        process.communicate(timeout=300)
        stop.cancel()
        assert printed, f"{command} printed nothing"
        assert re.search(what, printed[-1]), f"{command}: no {what!r} within {seconds:g} s in\n{''.join(printed[-40:])}"
        return "".join(printed)

    def asked(self, query: str) -> float:
        """Return the sum of what Prometheus answers to a query."""
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?query={urllib.parse.quote(query)}", timeout=60) as answer:
            found = json.load(answer)["data"]["result"]
        return sum(float(each["value"][1]) for each in found)

    def left(self) -> list[str]:
        """Return containers and volumes of it."""
        mine = f"label=com.docker.compose.project={self.project}"
        return [*docker("ps", "-aq", "--filter", mine).split(), *docker("volume", "ls", "-q", "--filter", mine).split()]


def has_plugin() -> bool:
    """Whether Docker has its compose plugin."""
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def composition(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Composition]:
    """A copy of the project's folder, images that are here, a project name and ports of its own."""
    if not has_plugin() and shutil.which("docker-compose") is None:
        pytest.fail("neither `docker compose` nor `docker-compose`: install Docker's compose plugin")
    folder = tmp_path / "freshet"
    folder.mkdir()
    shutil.copy(ROOT / ".dockerignore", folder)
    for name in re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    kafka_port, prometheus_port = free_ports(2)
    environment = {
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"freshet-test-{os.getpid()}",
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
    made = Composition(folder, environment, environment["COMPOSE_PROJECT_NAME"], f"http://127.0.0.1:{prometheus_port}")
    compose = "docker compose -f deploy/compose.yaml"
    try:
        yield made
    finally:
        if request.session.testsfailed:
            print(made.run(f"{compose} logs --tail=60"))
        if made.left():
            made.run(f"{compose} down --volumes --timeout=30")


def test_the_five_commands_of_the_readme(composition: Composition) -> None:
    """As they stand there, one after the other; Prometheus is asked in between."""
    up, logs, doctor, copy, down = [text for text in commands(ROOT / "README.md") if text.startswith("docker compose")]
    made = composition
    made.run(up)
    made.until(logs, r"train: [\d,]+ requests, .*egin AUC 0\.\d+", 900)
    eventually("Prometheus sees worker and trainer", 300, lambda: made.asked("up") == 2)
    before = made.asked("freshet_trainer_impressions_total")
    eventually("it goes on", 300, lambda: made.asked("freshet_trainer_impressions_total") > before + 500)

    def counted() -> dict[str, float]:
        return {name: made.asked(f'freshet_worker_counts{{name="{name}"}}') for name in ("actions", "late_actions", "labels")}

    many = eventually("there are many actions", 300, lambda: found if (found := counted())["actions"] > 125 else None)
    assert many["labels"] > 0.8 * many["actions"], many
    parts = [made.run(f"docker compose -f deploy/compose.yaml ps -q {part}").strip() for part in ("worker", "trainer")]
    eventually("both are healthy", 300, lambda: [health(each) for each in parts] == ["healthy", "healthy"])
    assert "co-partitioning" in made.run(doctor)
    made.run(copy)
    page = (made.folder / "live.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "egin" in page
    assert made.left()
    made.run(down)
    assert made.left() == []


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
