"""A record that cannot be used costs one dead letter, moves no clock, and the stream goes on."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from learners.samples import SampleBlock
from stream_app.events import DEAD_LETTERS, SAMPLES, Action, Impression, ImpressionItem, partition_of
from stream_app.join import join_log, stream_samples
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.joiner import ForeignRecordsError
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

NOW = 1_700_000_000_000
CONFIG = JoinConfig(request_features={"age": "float"}, candidate_features={"price": "float", "brand": "id"})


def impression(**changes: Any) -> dict[str, Any]:
    page = {"request_id": "r", "user_id": "u", "ts": NOW, "items": [{"item_id": "a"}, {"item_id": "b"}]}
    return {key: value for key, value in (page | changes).items() if value is not ...}


def shown(**changes: Any) -> dict[str, Any]:
    return impression(items=[{"item_id": "a"} | changes])


def raw(text: str) -> bytes:
    return text.encode()


TEMPLATE = '{"request_id": "r", "user_id": "u", "ts": %s, "items": [{"item_id": "a"%s}]%s}'
GOOD = msgspec.json.encode(impression())
BAD: dict[str, tuple[str, bytes]] = {
    "empty": ("json", b""),
    "truncated": ("json", GOOD[:-9]),
    "not json": ("json", b"request_id=r"),
    "byte order mark": ("json", b"\xef\xbb\xbf" + GOOD),
    "two documents": ("json", GOOD + GOOD),
    "NaN": ("json", raw(TEMPLATE % ("NaN", "", ""))),
    "Infinity in a feature": ("json", raw(TEMPLATE % (NOW, "", ', "features": {"age": Infinity}'))),
    "deep nesting": ("json", raw(TEMPLATE % (NOW, "", ', "extra": ' + "[" * 100_000 + "]" * 100_000))),
    "lone surrogate": ("json", raw(TEMPLATE % (NOW, "", ', "query": "\\ud800"'))),
    "an array": ("schema", b"[]"),
    "null": ("schema", b"null"),
    "no request_id": ("schema", msgspec.json.encode(impression(request_id=...))),
    "no user_id": ("schema", msgspec.json.encode(impression(user_id=...))),
    "no items": ("schema", msgspec.json.encode(impression(items=...))),
    "number for an id": ("schema", msgspec.json.encode(impression(user_id=7))),
    "string for ts": ("schema", msgspec.json.encode(impression(ts=str(NOW)))),
    "float for ts": ("schema", raw(TEMPLATE % (f"{NOW}.5", "", ""))),
    "ts out of range": ("schema", raw(TEMPLATE % ("1e400", "", ""))),
    "items of the wrong type": ("schema", msgspec.json.encode(impression(items="a"))),
    "null item": ("schema", msgspec.json.encode(impression(items=[None]))),
    "list as a feature": ("schema", msgspec.json.encode(impression(features={"age": [1]}))),
    "invalid UTF-8": ("text", GOOD.replace(b'"u"', b'"\xff"')),
    "empty request id": ("empty_id", msgspec.json.encode(impression(request_id=""))),
    "empty user id": ("empty_id", msgspec.json.encode(impression(user_id=""))),
    "empty item id": ("empty_id", msgspec.json.encode(shown(item_id=""))),
    "nothing shown": ("no_items", msgspec.json.encode(impression(items=[]))),
    "1970": ("clock", msgspec.json.encode(impression(ts=1))),
    "2100": ("clock", msgspec.json.encode(impression(ts=4_102_444_800_000))),
    "huge ts": ("clock", raw(TEMPLATE % ("9" * 400, "", ""))),
    "negative ts": ("clock", msgspec.json.encode(impression(ts=-NOW))),
    "10 MB": ("too_large", msgspec.json.encode(impression(request_id="r" * 10_000_000))),
    "negative position": ("position", msgspec.json.encode(shown(position=-2))),
    "huge position": ("position", msgspec.json.encode(shown(position=1 << 40))),
    "string for a float feature": ("feature", msgspec.json.encode(impression(features={"age": "old"}))),
    "string for a candidate's float": ("feature", msgspec.json.encode(shown(features={"price": "dear"}))),
    "float beyond float32": ("feature", msgspec.json.encode(shown(features={"price": 1e300}))),
    "integer beyond all floats": ("feature", raw(TEMPLATE % (NOW, ', "features": {"price": ' + "9" * 400 + "}", ""))),
    "foreign key": ("foreign", GOOD),
}


def letters_of(log: MemoryLog, partition: int = 0) -> list[dict[str, Any]]:
    return [msgspec.json.decode(record.value) for record in log.topic(DEAD_LETTERS).read(partition, 0)]


@pytest.mark.parametrize("name", BAD)
def test_one_bad_record_is_one_dead_letter_and_the_stream_goes_on(name: str, tmp_path: Path) -> None:
    code, value = BAD[name]
    key = (
        b"u"
        if name != "foreign key"
        else next(k for k in (b"a", b"b", b"c", b"d") if partition_of(k, 2) != partition_of(b"u", 2))
    )
    home = partition_of(b"u", 2)
    log = MemoryLog()
    topic = log.create("impressions", 2)
    good = [msgspec.json.encode(impression(request_id=f"good {n}")) for n in range(2)]
    topic.append(home, [Message(NOW, b"u", good[0]), Message(NOW, key, value), Message(NOW, b"u", good[1])])
    report = join_log(log, tmp_path, CONFIG)
    assert report.dead_letters == {code: 1}
    (letter,) = letters_of(log, home)
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("impressions", home, 1)
    assert (letter["code"], letter["size"], letter["ts"]) == (code, len(value), NOW)
    assert letter["reason"]
    assert base64.b64decode(letter["head"]) == value[: 64 << 10]
    assert letter["xxh3_128"] == xxhash.xxh3_128_hexdigest(value)
    blocks = [SampleBlock.from_ipc(record.value) for record in log.topic(SAMPLES).read(home, 0)]
    assert sum(len(block) for block in blocks) == report.rows == 2


def test_a_dead_letter_names_the_feature(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create("impressions", 1).append(0, [Message(NOW, b"u", msgspec.json.encode(shown(features={"price": "dear"})))])
    join_log(log, tmp_path, CONFIG)
    (letter,) = letters_of(log)
    assert "candidate feature 'price' is a float, the log has the string 'dear'" in letter["reason"]


@pytest.mark.parametrize(
    "value",
    [
        b'{"user_id": "u", "item_id": "a", "ts": 1, "kind": "click"}',
        b'{"user_id": "u", "item_id": "", "ts": 1700000000000, "kind": "click"}',
        b'{"user_id": "u", "item_id": "", "ts": 1700000000000, "kind": "unused"}',
        b'{"user_id": "u", "item_id": 5, "ts": 1700000000000, "kind": "click"}',
        b'{"user_id": "u", "ts": 1700000000000, "kind": "click"}',
        b'{"user_id": "u", "item_id": "a", "ts": 1700000000000}',
    ],
)
def test_bad_actions_items_and_users_are_dead_letters_too(value: bytes, tmp_path: Path) -> None:
    log = MemoryLog()
    for topic in ("actions", "items", "users"):
        log.create(topic, 1).append(0, [Message(NOW, b"u", value)])
    report = join_log(log, tmp_path, CONFIG)
    topics = {letter["topic"] for letter in letters_of(log)}
    assert "actions" in topics
    assert sum(report.dead_letters.values()) == len(topics)


def test_unusable_records_move_no_clock() -> None:
    """A record from 2100 between two good ones, and one from 1970: neither makes the next one late nor moves what is due."""
    config = JoinConfig(max_clock_skew_ms=1_000, lateness_ms=0, label_window_ms=10)
    log = MemoryLog()
    pages = [Message(NOW + n, b"u", msgspec.json.encode(impression(request_id=str(n), ts=NOW + n))) for n in range(3)]
    strange = [Message(NOW, b"u", msgspec.json.encode(impression(ts=ts))) for ts in (4_102_444_800_000, 1, NOW + 1_001)]
    topic = log.create("impressions", 1)
    for page, other in zip(pages, strange, strict=True):
        topic.append(0, [page, other])
    rows = [row for block in stream_samples(log, config, 0) for row in block.batch.to_pylist()]
    assert [row["due"] for row in rows] == [NOW + 10, NOW + 11, NOW + 12]


def test_a_late_impression_is_a_dead_letter(tmp_path: Path) -> None:
    log = MemoryLog()
    times = [NOW, NOW + 6_000, NOW + 1_000, NOW + 999]
    pages = [Message(ts, b"u", msgspec.json.encode(impression(request_id=str(n), ts=ts))) for n, ts in enumerate(times)]
    log.create("impressions", 1).append(0, pages)
    report = join_log(log, tmp_path, JoinConfig())
    assert report.dead_letters == {"late": 1}
    assert letters_of(log)[0]["offset"] == 3
    assert report.rows == 3


def test_many_foreign_records_stop_the_join(tmp_path: Path) -> None:
    log = MemoryLog()
    topic = log.create("actions", 2)
    for n in range(40):
        user = f"user {n}"
        action = Action(user, "a", NOW, "click")
        topic.append(n % 2, [Message(NOW, user.encode(), msgspec.json.encode(action))])
    assert join_log(log, tmp_path / "few", JoinConfig()).dead_letters["foreign"] > 10
    with pytest.raises(ForeignRecordsError, match="murmur2 of the user id"):
        join_log(log, tmp_path / "many", JoinConfig(max_foreign=5))


def test_an_empty_key_is_nobody_s_and_not_foreign(tmp_path: Path) -> None:
    log = MemoryLog()
    page = Impression("r", "u", NOW, [ImpressionItem("a")])
    log.create("impressions", 2).append(0, [Message(NOW, b"", msgspec.json.encode(page))])
    assert join_log(log, tmp_path, JoinConfig()).rows == 1


def test_bad_records_of_a_shared_topic_are_reported_once(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create("impressions", 3)
    items = log.create("items", 2)
    for partition in (0, 1):
        items.append(partition, [Message(NOW, b"a", b"{")])
    assert join_log(log, tmp_path, JoinConfig()).dead_letters == {"json": 2}


@pytest.mark.parametrize(
    ("vector", "code", "reason"),
    [
        ("[]", "vector", "an empty vector"),
        ("[1, 1e39]", "vector", "beyond float32"),
        ("[1, 1e400]", "schema", "Number out of range"),
        ("[1, NaN]", "json", "JSON is malformed"),
        ('[1, "2"]', "schema", "Expected `float`, got `str` - at `$.vector[1]`"),
        ("[1, null]", "schema", "Expected `float`, got `null` - at `$.vector[1]`"),
        ("3", "schema", "Expected `array | null`, got `int` - at `$.vector`"),
    ],
)
def test_a_vector_that_nobody_can_read_is_one_dead_letter(vector: str, code: str, reason: str, tmp_path: Path) -> None:
    """One, however many partitions read the items; and an item with a good one, or none, is none."""
    log = MemoryLog()
    log.create("impressions", 3)
    values = [f'{{"item_id": "a", "ts": {NOW}, "vector": {each}}}'.encode() for each in (vector, "[1, -2.5]", "null")]
    log.create("items", 1).append(0, [Message(NOW, b"a", value) for value in values])
    assert join_log(log, tmp_path, JoinConfig()).dead_letters == {code: 1}
    (letter,) = letters_of(log)
    assert letter["offset"] == 0
    assert reason in letter["reason"]


def test_a_vector_of_another_length_is_a_dead_letter_where_the_joiner_knows_it(tmp_path: Path) -> None:
    values = [f'{{"item_id": "a", "ts": {NOW}, "vector": {each}}}'.encode() for each in ("[1]", "[1, 2]", "[1, 2, 3]", "null")]
    reasons = {}
    for dim in (0, 2):
        log = MemoryLog()
        log.create("impressions", 1)
        log.create("items", 1).append(0, [Message(NOW, b"a", value) for value in values])
        join_log(log, tmp_path / str(dim), JoinConfig(vector_dim=dim))
        reasons[dim] = [letter["reason"] for letter in letters_of(log)]
    assert reasons == {0: [], 2: [f"a vector of {n} numbers, and join.vector_dim = 2" for n in (1, 3)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vector_dim": -1}, "vector_dim = -1 must not be negative"),
        ({"lateness_ms": -1}, "lateness_ms = -1 must not be negative"),
        ({"max_pending_per_user": 0}, "max_pending_per_user = 0 must be at least 1"),
        ({"block_requests": 0}, "block_requests = 0 must be in 1 to"),
        ({"item_sequences": {"query": {}}}, "the name is that of the sequence of queries"),
        ({"item_sequences": {"click": {"length": 0}}}, "length = 0: a sequence carries at least 1 entry"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        msgspec.convert(options, JoinConfig)
