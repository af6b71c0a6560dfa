"""What happens to appends and reads when the broker is killed, and to secrets when it is asked for them."""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from stream_app.cli import main
from stream_app.config import ConfigError, RunConfig, resolve, set_layer, to_toml
from stream_app.kafka_config import KafkaConfig, KafkaConfigError, client_options, parse_servers
from stream_app.topics import Message, Record, TopicError
from stream_app.topics.kafka import open_kafka
from tests.integration.broker import Broker

T = TypeVar("T")
SECRET = "open-sesame-4711"
PATIENCE_S = 300
"""Bounds what hangs."""


def warm(broker: Broker) -> None:
    """Have a broker that was just started answer once, so that it then does within the short time that a test gives it."""
    with open_kafka(KafkaConfig(servers=(broker.server,))) as log:
        log.create("warm", 1).append(0, [Message(1, b"", b"")])


def in_the_end(work: Callable[[], T]) -> T:
    """Return what ``work`` returns once a cluster answers; it may be back and not ready yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except TopicError:
            assert time.monotonic() < deadline


def read_until(topic_config: KafkaConfig, n_records: int, found: list[Record], deadline: float) -> None:
    """Follow topic ``a`` until it has given so many records."""
    with open_kafka(topic_config) as log:
        topic, position = log.topic("a"), 0
        while len(found) < n_records and time.monotonic() < deadline:
            for record in topic.read(0, position, 500):
                found.append(record)
                position = record.offset + 1
            time.sleep(0.01)


@pytest.mark.parametrize("fence", [None, "joiner-0"])
def test_appends_and_reads_go_on_after_a_broker_was_killed(
    kafka_broker: Broker, fence: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    seed = secrets.randbelow(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    config = KafkaConfig(servers=(kafka_broker.server,), request_timeout_ms=5_000)
    n_batches, found = 120, list[Record]()
    with open_kafka(config, fence=fence) as log, caplog.at_level(logging.WARNING, "stream_app"):
        topic = log.create("a", 1)
        reader = threading.Thread(target=read_until, args=(config, n_batches * 5, found, time.monotonic() + PATIENCE_S))
        reader.start()
        kill_at = draw.randint(10, n_batches - 20)
        for n in range(n_batches):
            if n == kill_at:
                kafka_broker.kill()
                back = threading.Timer(0.5, kafka_broker.start)
                back.start()
            topic.append(0, [Message(1_000 + n, b"k", b"%d" % (5 * n + i)) for i in range(5)])
        back.join()
        reader.join()
    assert [record.value for record in found] == [b"%d" % n for n in range(n_batches * 5)]
    said = Counter(record.message.partition(" is ")[2].split(" ")[0] for record in caplog.records)
    assert said["away"] <= 2  # once per connection that noticed, and never per attempt


@pytest.mark.parametrize("fence", [None, "joiner-0"])
def test_appends_go_on_after_a_broker_did_not_answer_in_time(kafka_broker: Broker, fence: str | None) -> None:
    """A machine that hangs, or a network that drops packets: connections stay open, and requests run into their timeout."""
    config = KafkaConfig(servers=(kafka_broker.server,), request_timeout_ms=1_000)
    warm(kafka_broker)
    with open_kafka(config, fence=fence) as log:
        topic = log.create("a", 1)
        for n in range(60):
            if n in (20, 40):
                kafka_broker.pause()
                threading.Timer(3.0, kafka_broker.resume).start()
            topic.append(0, [Message(1_000 + n, b"k", b"%d" % n)])
    found = list[Record]()
    read_until(config, 60, found, time.monotonic() + PATIENCE_S)
    assert [record.value for record in found] == [b"%d" % n for n in range(60)]


def test_an_outage_longer_than_the_patience_says_so(kafka_broker: Broker) -> None:
    config = KafkaConfig(servers=(kafka_broker.server,), request_timeout_ms=1_000, outage_ms=2_000)
    warm(kafka_broker)
    with open_kafka(config) as log:
        topic = log.create("a", 1)
        topic.append(0, [Message(1, b"", b"x")])
        kafka_broker.kill()
        with pytest.raises(TopicError, match=r"cannot append to topic 'a' partition 0"):
            topic.append(0, [Message(1, b"", b"y")])
        with pytest.raises(TopicError, match=r"tried for 2 s .*kafka\.outage_ms"):
            topic.read(0, 0)
        kafka_broker.start()
        assert [record.value for record in in_the_end(lambda: topic.read(0, 0))][:1] == [b"x"]
        in_the_end(lambda: topic.append(0, [Message(1, b"", b"z")]))


@pytest.fixture
def guarded(tmp_path: Path, kafka_broker: Broker) -> Iterator[Broker]:
    """A broker that asks for a password on one port and speaks TLS on another."""
    kafka_broker.kill()
    with Broker(tmp_path / "guarded", users={"freshet": SECRET}, tls=True) as broker:
        yield broker


def test_passwords_and_tls(
    guarded: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"{SECRET}\n")
    wrong.write_text(f"{SECRET}-not")
    config = KafkaConfig(
        servers=(guarded.sasl_server,),
        security="sasl_plaintext",
        user="freshet",
        password_file=str(right),
    )
    with open_kafka(config) as log:
        log.create("a", 1).append(0, [Message(1, b"", b"x")])
        shown = [repr(config), str(config), to_toml(RunConfig(kafka=config)), repr(log), log.where]
    bad = KafkaConfig(
        servers=(guarded.sasl_server,),
        security="sasl_plaintext",
        user="freshet",
        password_file=str(wrong),
        request_timeout_ms=1_000,
    )
    with pytest.raises(TopicError, match="cannot connect") as failed:
        open_kafka(bad)
    assert main(["doctor", "--kafka", guarded.sasl_server, "--set", f"kafka.password_file={right}"]) == 2
    tls = KafkaConfig(servers=(guarded.tls_server,), security="ssl", ca_file=str(guarded.ca_file))
    with open_kafka(tls) as log:
        assert [record.value for record in log.topic("a").read(0, 0)] == [b"x"]
    shown += [str(failed.value), repr(failed.value), caplog.text, *capsys.readouterr()]
    assert [text for text in shown if SECRET in text] == []


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("servers=['nowhere']", r"'nowhere' is no HOST:PORT"),
        ("servers=['a:99999']", r"'a:99999' is no HOST:PORT"),
        ("security='sasl_ssl'", r"needs user and one of password_env .*; given: none of them"),
        ("password_env='P'", r"security = 'plaintext' uses no password, but password_env is given"),
        ("ca_file='x'", r"uses no TLS, but ca_file is given"),
        ("topic_prefix='a/b'", r"topic_prefix = 'a/b'"),
        ("replication_factor=0", r"replication_factor = 0"),
        (f"password='{SECRET}'", r"unknown key 'kafka.password': did you mean 'password_\w+'"),
    ],
)
def test_bad_settings_are_named(setting: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve([set_layer(f"kafka.{setting}")])


def test_secrets_that_are_not_there(tmp_path: Path) -> None:
    def guarded(env: str | None, file: Path | None) -> KafkaConfig:
        path = None if file is None else str(file)
        return KafkaConfig(servers=("a:1",), security="sasl_ssl", user="u", password_env=env, password_file=path)

    with pytest.raises(KafkaConfigError, match=r"password_env = 'FRESHET_NO_SUCH': .* is not set or empty"):
        client_options(guarded("FRESHET_NO_SUCH", None))
    with pytest.raises(KafkaConfigError, match=r"password_file = .*No such file"):
        client_options(guarded(None, tmp_path / "none"))
    with pytest.raises(KafkaConfigError, match=r"kafka.servers is empty"):
        client_options(KafkaConfig())
    with pytest.raises(KafkaConfigError, match=r"ca_file = 'none': there is no such file"):
        client_options(KafkaConfig(servers=("a:1",), security="ssl", ca_file="none"))


def test_servers_are_split() -> None:
    assert parse_servers("a:1, [::1]:2") == ("a:1", "[::1]:2")
