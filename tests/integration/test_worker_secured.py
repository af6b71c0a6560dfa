"""The worker on brokers that ask for a password, over TLS or not: faust is told what kafka-python is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stream_app.kafka_config import KafkaConfig
from tests.integration.broker import Broker
from tests.integration.worker_process import Cluster, simulated, stop

SECRET = "open-sesame-4711"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with a listener for each kind of security."""
    with Broker(tmp_path_factory.mktemp("secured"), users={"freshet": SECRET}, tls=True) as broker:
        yield broker


WAYS: dict[str, dict[str, object]] = {
    "tls": {"security": "ssl"},
    "plain": {"security": "sasl_plaintext"},
    "scram": {"security": "sasl_plaintext", "mechanism": "SCRAM-SHA-512"},
    "plain over tls": {"security": "sasl_ssl"},
    # The last one is what a cluster should have, and runs in every run of the tests.
    "scram over tls": {"security": "sasl_ssl", "mechanism": "SCRAM-SHA-256"},
}


def reached(broker: Broker, way: str, password_file: Path) -> KafkaConfig:
    """Return how the broker is reached over the listener of a kind."""
    fields = dict(WAYS[way])
    if fields["security"] != "ssl":
        fields |= {"user": "freshet", "password_file": str(password_file)}
    if "ssl" in str(fields["security"]):
        fields["ca_file"] = str(broker.ca_file)
    servers = {"ssl": broker.tls_server, "sasl_plaintext": broker.sasl_server, "sasl_ssl": broker.sasl_tls_server}
    return msgspec.convert(fields | {"servers": [servers[str(fields["security"])]]}, KafkaConfig)


@pytest.mark.parametrize("way", ["scram over tls", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[:-1])])
def test_a_worker_joins_over_a_secured_listener(way: str, secured: Broker, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    password_file.write_text(f"{SECRET}\n")
    config = reached(secured, way, password_file)
    cluster = Cluster(config.servers[0], tmp_path, config)
    given = msgspec.to_builtins(config)
    names = ("security", "mechanism", "user", "password_file", "ca_file")
    try:
        cluster.create(2)
        cluster.produce(simulated(300, 2))
        sets = [word for name in names if given[name] is not None for word in ("--set", f"kafka.{name}={given[name]}")]
        worker = cluster.worker("w0", *sets)
        cluster.wait_until_joined()
        assert stop(worker) == 0
        assert cluster.check_against_embedded() > 100
        assert SECRET not in cluster.told()
    finally:
        cluster.close()


@pytest.mark.slow
def test_a_worker_with_a_wrong_password_says_so(secured: Broker, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(SECRET)
    wrong.write_text(f"{SECRET}-not")
    config = reached(secured, "scram", right)
    cluster = Cluster(config.servers[0], tmp_path, config)
    try:
        cluster.create(1)
        sets = ("security=sasl_plaintext", "mechanism=SCRAM-SHA-512", "user=freshet", f"password_file={wrong}")
        worker = cluster.worker("w0", *(word for each in sets for word in ("--set", f"kafka.{each}")))
        assert worker.wait(60) != 0
        assert "cannot connect" in cluster.told()
        assert SECRET not in cluster.told()
    finally:
        cluster.close()
