"""The kernels that read JSON: what they accept means what msgspec says it means, and the ordinary is accepted."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression, ImpressionItem, partition_of
from stream_app.joiner.action_values import NO_VALUE, OUT_OF_REACH, value_word
from stream_app.joiner.config import JoinConfig
from stream_app.joiner.core.layout import (
    ACT_EVENT,
    ACTION_VALUE,
    COMPLETE,
    EVENT_HEAD,
    IGNORED,
    PAGE,
    PAGE_FLAGS,
    SIZE_OF_EVENT,
    UNUSABLE,
)
from stream_app.joiner.decode import Decoder, joiner_kinds, reads_values
from stream_app.joiner.scan.homes import homes
from stream_app.joiner.scan.reader import Reader
from stream_app.joiner.scan.xxh3 import MAX_BYTES, xxh3_64
from stream_app.topics import Record

NOW = 1_700_000_000_000
CONFIG = JoinConfig(label_min_value={"click": 0.5})
DECODER = Decoder(CONFIG, 0, 1)
READER = Reader(list(joiner_kinds(CONFIG)), CONFIG.label_window_ms, reads_values(CONFIG))
FEATURED = JoinConfig(
    request_features={"age": "float", "a": "id", "日本": "id", "item-1": "float"},
    candidate_features={"price": "float", "a": "id", "x" * 40: "float"},
    truth=True,
)


@given(data=st.binary(min_size=1, max_size=MAX_BYTES))
@settings(max_examples=300)
def test_the_hash_is_xxh3(data: bytes) -> None:
    assert int(xxh3_64(np.frombuffer(data, np.uint8), len(data))) == xxhash.xxh3_64_intdigest(data)


@pytest.mark.parametrize("n", [1, 3, 4, 8, 9, 16, 17, 32, 33, 64, 65, 96, 97, 128])
def test_the_hash_is_xxh3_at_the_edges_of_its_cases(n: int) -> None:
    data = bytes(range(100, 100 + n))
    assert int(xxh3_64(np.frombuffer(data, np.uint8), n)) == xxhash.xxh3_64_intdigest(data)


@given(keys=st.lists(st.binary(max_size=40), max_size=20), n_partitions=st.integers(1, 200))
def test_partitions_of_keys_are_those_of_murmur2(keys: list[bytes], n_partitions: int) -> None:
    expected = [partition_of(key, n_partitions) if key else -1 for key in keys]
    assert homes(keys, n_partitions).tolist() == expected


def words_of(words: Any, start: int) -> list[int]:
    """The words of the event that begins at ``start``."""
    event: list[int] = words[start : start + words[start + SIZE_OF_EVENT]].tolist()
    return event


def reader_of(config: JoinConfig) -> Reader:
    features = config.request_features, config.candidate_features
    return Reader(list(joiner_kinds(config)), config.label_window_ms, reads_values(config), *features, config.truth)


def by_kernel(topic: str, values: list[bytes], reader: Reader = READER) -> list[Any]:
    read = reader.pages if topic == IMPRESSIONS else reader.actions
    words, starts, _ = read(values, np.arange(len(values)))
    return [None if start < 0 else words_of(words, start) for start in starts.tolist()]


def alone(topic: str, values: list[bytes], config: JoinConfig = CONFIG) -> list[Any]:
    """Decode each value with a broker time that suits any ``ts``, as the kernel knows no broker time."""
    decoder = Decoder(msgspec.structs.replace(config, max_clock_skew_ms=1 << 60), 0, 1)
    return [decoder.decode_alone(topic, Record(offset, NOW, b"", value))[0] for offset, value in enumerate(values)]


TEXT = st.one_of(
    st.sampled_from(["a", "", "item-1", "é", "日本", "😀", 'a"b', "a\\b", "a\nb", "click", "null"]),
    st.text(max_size=5),
    st.integers(0, 140).map("x".__mul__),
)
SCALAR = st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
ODD = st.one_of(SCALAR, st.lists(SCALAR, max_size=2), st.dictionaries(TEXT, SCALAR, max_size=2))
STAMPS = st.one_of(st.integers(0, 1 << 50), st.just(NOW), ODD)
IDS = st.one_of(TEXT, TEXT, TEXT, ODD)
FEATURES = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(["age", "a", "日本", "item-1", "price", "x" * 40]), TEXT), SCALAR, max_size=5),
    ODD,
)
EXTRA = {"query": IDS, "domain": IDS, "other": ODD, "features": FEATURES}
SHOWN = st.fixed_dictionaries(
    {"item_id": IDS},
    optional={"category": IDS, "position": st.one_of(st.integers(-1, 1 << 33), ODD), "truth": ODD, **EXTRA},
)
EVENTS = {
    IMPRESSIONS: st.fixed_dictionaries(
        {"request_id": IDS, "user_id": IDS, "ts": STAMPS, "items": st.one_of(st.lists(SHOWN, max_size=3), ODD)},
        optional={"query_category": st.one_of(st.lists(TEXT, max_size=6), ODD), **EXTRA},
    ),
    ACTIONS: st.fixed_dictionaries(
        {"user_id": IDS, "item_id": IDS, "ts": STAMPS, "kind": IDS},
        optional={"request_id": IDS, "category": IDS, "value": ODD, **EXTRA},
    ),
}


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6).map(repr),
    st.decimals(allow_nan=False, min_value=-(10**14), max_value=10**14, places=4).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,18})?", fullmatch=True),
    st.integers(0, 10**15 - 1).flatmap(lambda n: st.integers(0, 999).map(lambda rest: f"{n}.{rest:03}")),
    st.integers(1, 60).map(lambda n: f"{2.0**-n:.18f}"),
)


@st.composite
def values(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """Draw a topic and JSON of its events in any layout, some of it damaged."""
    topic = draw(st.sampled_from([IMPRESSIONS, ACTIONS]))
    drawn: list[bytes] = []
    for event in draw(st.lists(EVENTS[topic], min_size=1, max_size=4)):
        text = json.dumps(event, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        value = bytearray(text.encode("utf-8", "surrogatepass"))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
            at = draw(st.integers(0, len(value) - 1))
            value[at : at + draw(st.integers(0, 2))] = draw(
                st.sampled_from([b"", b'"', b"}", b",", b"0", b"\xff", b"\xc3", b" "])
            )
            if not value:
                break
        drawn.append(bytes(value))
    return topic, drawn


@given(drawn=values())
@settings(max_examples=400)
def test_what_a_kernel_reads_is_what_msgspec_reads(drawn: tuple[str, list[bytes]]) -> None:
    topic, raw = drawn
    for mine, expected in zip(by_kernel(topic, raw), alone(topic, raw), strict=True):
        assert mine is None or mine == expected


@given(drawn=values())
@settings(max_examples=400)
def test_features_that_a_kernel_reads_are_what_python_reads(drawn: tuple[str, list[bytes]]) -> None:
    topic, raw = drawn
    for mine, expected in zip(by_kernel(topic, raw, reader_of(FEATURED)), alone(topic, raw, FEATURED), strict=True):
        assert mine is None or mine == expected


def featured_page(value: str) -> bytes:
    """A page whose features all are ``value``, as JSON has it."""
    features = f'{{"age": {value}, "price": {value}, "a": {value}}}'
    shown = f'{{"item_id": "i", "category": "c", "domain": "d", "truth": 0.25, "features": {features}}}'
    return f'{{"request_id": "r", "user_id": "u", "ts": 1, "items": [{shown}], "features": {features}}}'.encode()


def features_by(value: str, config: JoinConfig) -> tuple[Any, Any]:
    raw = [featured_page(value)]
    return by_kernel(IMPRESSIONS, raw, reader_of(config))[0], alone(IMPRESSIONS, raw, config)[0]


@given(number=NUMBERS)
@settings(max_examples=400)
def test_a_feature_is_the_nearest_float(number: str) -> None:
    config = JoinConfig(request_features={"age": "float"}, candidate_features={"price": "float"}, truth=True)
    mine, expected = features_by(number, config)
    assert mine is None or mine == expected


@pytest.mark.parametrize(
    "number", ["0", "1", "-1", "0.0", "0.1", "-0.1", "16777217", "0.4583333333333333", "1e-3", "null", "-0.0", "true"]
)
def test_ordinary_features_are_read_by_kernel(number: str) -> None:
    config = JoinConfig(request_features={"age": "float"}, candidate_features={"price": "float"}, truth=True)
    mine, expected = features_by(number, config)
    assert expected[0] == PAGE
    assert mine == (None if number in ("1e-3", "-0.0", "true") else expected)


@pytest.mark.parametrize("value", ['"a"', '"日本"', "7", "0", "null", '""', "-7", "1.5", "true", '"' + "x" * 120 + '"'])
def test_ordinary_ids_of_features_are_read_by_kernel(value: str) -> None:
    config = JoinConfig(request_features={"a": "id"}, candidate_features={"a": "id"})
    mine, expected = features_by(value, config)
    assert expected[0] == PAGE
    assert mine == (expected if value in ('"a"', '"日本"', "7", "0", "null") else None)


def test_a_page_is_complete_only_with_all_its_features() -> None:
    config = JoinConfig(candidate_features={"price": "float", "a": "id"})
    whole = featured_page("1")
    raw = [whole, whole.replace(b'"price": 1, ', b"", 1), whole.replace(b', "a": 1', b"", 1)]
    flags = [one[EVENT_HEAD + PAGE_FLAGS] for one in by_kernel(IMPRESSIONS, raw, reader_of(config))]
    assert flags == [COMPLETE, 0, 0]
    assert [one[EVENT_HEAD + PAGE_FLAGS] for one in alone(IMPRESSIONS, raw, config)] == flags


def test_a_feature_whose_name_is_too_long_is_left_to_python() -> None:
    config = JoinConfig(request_features={"x" * 110: "id"})
    raw = [featured_page("1")]
    assert by_kernel(IMPRESSIONS, raw, reader_of(config)) == [None]
    assert alone(IMPRESSIONS, raw, config)[0][0] == PAGE


@given(value=st.binary(max_size=60))
def test_any_bytes_are_left_to_msgspec(value: bytes) -> None:
    assert by_kernel(IMPRESSIONS, [value, value]) == by_kernel(ACTIONS, [value, value]) == [None, None]


def page(**changes: Any) -> Impression:
    shown = [ImpressionItem("a", "x", 0, "shop"), ImpressionItem("日本", None, 3), ImpressionItem("c", position=2)]
    return msgspec.structs.replace(Impression("r", "u", NOW, shown, "query", ["x", "y"], "web"), **changes)


def test_ordinary_events_are_read_by_kernel() -> None:
    pages = [page(), page(query=None, features={"age": 30.5, "new": True}), page(items=[ImpressionItem("a")] * 200)]
    raw = [msgspec.json.encode(one) for one in pages]
    raw += [
        json.dumps(msgspec.to_builtins(one) | {"extra": None, "more": -1.5}, ensure_ascii=False, indent=2).encode()
        for one in pages[:2]
    ]
    assert all(one[0] == PAGE for one in by_kernel(IMPRESSIONS, raw))
    clicks = [Action("u", "a", NOW, kind, "r", "query", "x", 1.5) for kind in ("click", "scroll")]
    read = by_kernel(ACTIONS, [msgspec.json.encode(click) for click in clicks])
    assert [one[0] for one in read] == [ACT_EVENT, IGNORED]


def value_of(number: str) -> int | None:
    """The word that the kernel makes of an action's value; None where it leaves the action to msgspec."""
    read = by_kernel(ACTIONS, [f'{{"user_id": "u", "item_id": "a", "ts": 1, "kind": "click", "value": {number}}}'.encode()])[0]
    return None if read is None else int(read[EVENT_HEAD + ACTION_VALUE])


@given(number=NUMBERS)
@settings(max_examples=400)
def test_a_value_is_the_nearest_float(number: str) -> None:
    assert value_of(number) in (None, value_word(float(number)))


@pytest.mark.parametrize(
    "number", ["0", "-0", "-0.0", "1", "0.5", "0.1", "-0.1", "0.4583333333333333", "0.000123456789012345", "1e3"]
)
def test_ordinary_values_are_read_by_kernel(number: str) -> None:
    assert value_of(number) == (None if "e" in number else value_word(float(number)))


@given(first=st.floats(allow_nan=False), second=st.floats(allow_nan=False))
def test_words_of_values_have_their_order(first: float, second: float) -> None:
    assert (value_word(first) < value_word(second)) == (first < second)
    assert NO_VALUE < value_word(first) < OUT_OF_REACH


def test_a_value_that_nobody_asks_for_is_as_if_it_were_missing() -> None:
    config = JoinConfig()
    click = msgspec.json.encode(Action("u", "a", NOW, "click", value=0.7))
    words, starts, _ = Reader(list(joiner_kinds(config)), 0, reads_values(config)).actions([click], np.arange(1))
    assert words_of(words, starts[0])[EVENT_HEAD + ACTION_VALUE] == NO_VALUE
    assert Decoder(config, 0, 1).decode_alone(ACTIONS, Record(0, NOW, b"", click))[0] == words_of(words, starts[0])


def test_what_a_kernel_leaves_is_read_alone() -> None:
    raw = [b'{"user_id": "u", "item_id": "\\u0061", "ts": 1, "kind": "click"}', b'{"user_id": "u"}']
    assert by_kernel(ACTIONS, raw) == [None, None]
    events, stamps = DECODER.decode(ACTIONS, [Record(7, 1, b"", raw[0]), Record(8, 1, b"", raw[1])])
    first, second = (words_of(events.words, start) for start in events.starts.tolist())
    assert (first[0], second[0]) == (ACT_EVENT, UNUSABLE)
    assert list(events.unusable) == [8]
    assert stamps.tolist() == [1, -1]
    plain, _ = DECODER.decode(ACTIONS, [Record(7, 1, b"", raw[0].replace(b"\\u0061", b"a"))])
    assert words_of(plain.words, plain.starts[0]) == first
