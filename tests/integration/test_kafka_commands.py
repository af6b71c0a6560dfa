"""The commands that take --kafka, on a real broker: what they write and read is what they write to and read from a folder."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.cli import main
from stream_app.events import ACTIONS, IMPRESSIONS, SAMPLES, Impression, partition_of
from stream_app.kafka_config import KafkaConfig
from stream_app.topics import Log, Message
from stream_app.topics.embedded import open_log
from stream_app.topics.kafka import open_kafka

SIMULATE = ("--requests", "300", "--partitions", "2", "--users", "40", "--items", "80", "--queries", "20", "--categories", "5")
REPLAY = ("--model", "dnn", "--model", "trend", "--threads", "1", "--json", "--set", "replay.bootstrap=0")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the figures and digests of a replay, without rates."""
    found: dict[str, Any] = json.loads(run(capsys, "replay", *REPLAY, *words))
    assert found["models"]["dnn"]["digest"]
    figures = ("auc", "gauc", "log_loss", "digest")
    models = {name: {each: model[each] for each in figures} for name, model in found["models"].items()}
    return {"requests": found["requests"], "models": models}


def contents(log: Log, name: str) -> list[list[Message]]:
    topic = log.topic(name)
    return [[Message(*record[1:]) for record in topic.read(p, 0, 10_000)] for p in range(topic.n_partitions)]


def copy_topic(source: Log, target: Log, name: str) -> None:
    for partition, messages in enumerate(contents(source, name)):
        target.create(name, source.topic(name).n_partitions).append(partition, messages)


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(4)}."


def test_simulate_and_replay_give_what_the_embedded_log_gives(
    kafka: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, toml = tmp_path / "log", tmp_path / "best.toml"
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    run(capsys, "simulate", "--log", str(folder), *SIMULATE)
    said = run(capsys, "simulate", *at_kafka, "--save-config", str(toml), *SIMULATE)
    assert f"next: freshet join --kafka {kafka} --config {toml}" in said
    with open_log(folder) as log, open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as cluster:
        for name in (IMPRESSIONS, ACTIONS):
            assert contents(cluster, name) == contents(log, name)
    options = ("--config", str(toml))
    raw = replayed(capsys, "--log", str(folder))
    assert replayed(capsys, *at_kafka, *options) == raw

    run(capsys, "join", "--log", str(folder))
    joined = replayed(capsys, "--log", str(folder))
    with open_log(folder) as log, open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix), fence="copy") as cluster:
        copy_topic(log, cluster, SAMPLES)
    assert replayed(capsys, *at_kafka, *options) == joined
    span = ("--from", "1750000200000", "--to", "1750000600000")
    part = replayed(capsys, "--log", str(folder), *span)
    assert 0 < part["requests"] < joined["requests"]
    assert replayed(capsys, *at_kafka, *options, *span) == part


def test_import_writes_to_kafka(kafka: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"request_id": f"r{i}", "user_id": f"u{i % 5}", "ts": 1_700_000_000_000 + 1_000 * i, "items": [{"item_id": "a"}]}
        for i in range(50)
    ]
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    words = ("rows", str(events), "--layout", "events", "--partitions", "2", "--rate", "100000")
    run(capsys, "import", *words, "--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    with open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as cluster:
        found = contents(cluster, IMPRESSIONS)
    assert sum(map(len, found)) == 50
    for partition, messages in enumerate(found):
        assert {partition_of(message.key, 2) for message in messages} <= {partition}


def test_live_events_happen_now(kafka: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.time() * 1_000
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    run(
        capsys,
        "simulate",
        *at_kafka,
        "--live",
        *SIMULATE,
        "--rate",
        "1000",
        "--click-delay-ms",
        "50",
        "--label-window-ms",
        "200",
    )
    after = time.time() * 1_000
    with open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as cluster:
        found = [message for messages in contents(cluster, IMPRESSIONS) for message in messages]
    stamps = [msgspec.json.decode(message.value, type=Impression).ts for message in found]
    assert len(stamps) == 300
    assert before - 1 <= min(stamps) <= max(stamps) <= after + 1
    assert [message.ts for message in found] == stamps


def test_one_place_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["simulate"], ["simulate", "--log", str(tmp_path / "a"), "--kafka", "localhost:1"]):
        assert main(words) == 2
        assert "give one of --log DIR" in capsys.readouterr().err
    assert main(["replay"]) == 2
    assert "--kafka HOST:PORT" in capsys.readouterr().err
    assert main(["simulate", "--kafka", "nowhere"]) == 2
    assert "'nowhere' is no HOST:PORT" in capsys.readouterr().err


def findings(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> dict[str, dict[str, str]]:
    assert main(["doctor", "--json", *words]) == code
    return {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}


def test_doctor_likes_what_freshet_made(kafka: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    run(capsys, "simulate", *at_kafka, *SIMULATE)
    found = findings(capsys, 0, *at_kafka)
    assert {each["status"] for each in found.values()} == {"ok"}
    assert "murmur2" in found["partitioner of impressions"]["found"]
    assert main(["doctor", *at_kafka]) == 0
    assert "co-partitioning" in capsys.readouterr().out


def test_doctor_finds_what_is_wrong(kafka: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    assert findings(capsys, 1, *at_kafka)["topic impressions"]["status"] == "fail"
    with open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as log:
        impressions, actions = log.create(IMPRESSIONS, 2), log.create(ACTIONS, 3)
        wrong = 1 - partition_of(b"u1", 2)
        event = Impression("r1", "u1", 1_000, [])
        impressions.append(wrong, [Message(50_000_000, b"u1", msgspec.json.encode(event)), Message(1, b"u1", b"{}")])
        log.create(SAMPLES, 2)
        log.alter(SAMPLES, {"max.message.bytes": "1000000"})
        log.alter(ACTIONS, {"retention.ms": "3600000"})
        assert actions.n_partitions == 3
    found = findings(capsys, 1, *at_kafka)
    bad = {check: each["status"] for check, each in found.items() if each["status"] != "ok"}
    assert bad == {
        "co-partitioning": "fail",
        "size of samples": "fail",
        "retention of actions": "warn",
        "records of impressions": "fail",
        "partitioner of impressions": "fail",
        "clock of impressions": "warn",
        "records of actions": "warn",
    }
    assert all(found[check]["todo"] for check in bad)


def test_doctor_finds_a_codec_that_cannot_be_decoded(kafka: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The broker compresses by the topic's setting, whatever the producer does."""
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    run(capsys, "simulate", *at_kafka, *SIMULATE)
    with open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as log:
        log.alter(ACTIONS, {"compression.type": "snappy"})
        deadline = time.monotonic() + 120
        while True:  # The partition's leader hears of the setting a moment after the one who was asked to change it.
            log.topic(ACTIONS).append(0, [Message(1_800_000_000_000, b"u", b"{" * 1_000)])
            if main(["doctor", *at_kafka]) == 1 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    capsys.readouterr()
    found = findings(capsys, 1, *at_kafka)
    assert found["codec of impressions"]["status"] == "ok"
    assert found["codec of actions"]["status"] == "fail"
    assert "compression.type = snappy" in found["codec of actions"]["found"]
    assert "snappy compression codec not found" in found["codec of actions"]["found"]
    assert "records of actions" not in found


def test_inspect_tells_what_is_on_a_cluster(
    kafka: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    at_kafka = ("--kafka", kafka, "--set", f"kafka.topic_prefix={prefix}")
    run(capsys, "simulate", "--log", str(folder), *SIMULATE)
    run(capsys, "join", "--log", str(folder))
    with open_log(folder) as log, open_kafka(KafkaConfig(servers=(kafka,), topic_prefix=prefix)) as cluster:
        for name in (IMPRESSIONS, ACTIONS, SAMPLES):
            copy_topic(log, cluster, name)
    of_folder = json.loads(run(capsys, "inspect", str(folder), "--json"))
    found = json.loads(run(capsys, "inspect", *at_kafka, "--json"))
    assert found["kind"] == "cluster"
    assert set(found["topics"]) == {IMPRESSIONS, ACTIONS, SAMPLES}
    for name, topic in found["topics"].items():
        same = {key: value for key, value in of_folder["topics"][name].items() if key != "bytes"}
        assert {key: value for key, value in topic.items() if key != "bytes"} == same
        assert topic["bytes"] > 0
    assert found["samples"] == of_folder["samples"]
    shown = run(capsys, "inspect", *at_kafka)
    assert "impressions" in shown
    assert "samples: last seq per partition 0:" in shown
    assert main(["inspect"]) == 2
    assert main(["inspect", str(folder), "--kafka", kafka]) == 2


def test_doctor_names_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys, 1, "--kafka", "127.0.0.1:1")
    assert "cannot connect" in found["broker"]["found"]
