"""The joiner against a slow one of plain strings and lists, written from the contract: any log, any marks, any polling."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.samples import SampleBlock
from stream_app.events import RAW_TOPICS, hash_id
from stream_app.join import stream_samples
from stream_app.joiner.config import ItemSequence, JoinConfig
from stream_app.joiner.merge import Mark
from stream_app.topics import Log, Message
from stream_app.topics.memory import MemoryLog

Row = dict[str, Any]
Events = dict[str, list[dict[str, Any]]]


# -- the slow joiner


class Oracle:
    """Executes the contract: records in order; what depends on later events waits until the sequence has passed it."""

    def __init__(self, config: JoinConfig, events: Events, marks: Sequence[Mark]) -> None:
        self.config = config
        self.corrects = config.policy == "correct"
        self.window = config.correction_window_ms if self.corrects else config.label_window_ms
        self.todo: list[tuple[tuple[int, int, int], Any]] = []
        self.rows: list[tuple[tuple[int, int, int], Row]] = []
        self.requests: dict[str, list[dict[str, Any]]] = {}
        self.entries: dict[tuple[str, str], list[tuple[str, str | None, int]]] = {}
        self.queries: dict[str, list[tuple[str, list[str], int]]] = {}
        self.clicked: dict[str, list[str]] = {}
        self.versions: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.signatures: set[Any] = set()
        self.last: dict[str, int] = {}
        for effective, rank, offset, event in sorted(self.sequence(events, marks), key=lambda record: record[:3]):
            self.run(effective - config.lateness_ms)
            getattr(self, RAW_TOPICS[rank])(event, effective, offset)
        self.run(1 << 60)
        self.rows.sort(key=lambda row: row[0])

    def sequence(self, events: Events, marks: Sequence[Mark]) -> list[tuple[int, int, int, dict[str, Any]]]:
        merged = []
        for topic, records in events.items():
            high = -1
            for offset, event in enumerate(records):
                marked = [mark.time for mark in marks if (mark.topic, mark.offset) == (topic, offset)]
                high = max([high, event["ts"], *marked])
                merged.append((high, RAW_TOPICS.index(topic), offset, event))
        return merged

    def run(self, before: int) -> None:
        while self.todo:
            self.todo.sort(key=lambda step: step[0])
            if self.todo[0][0][0] >= before:
                return
            (time, kind, _), subject = self.todo.pop(0)
            [self.see, self.act, self.leave, self.forget][kind](subject, time)

    # records

    def impressions(self, event: dict[str, Any], effective: int, offset: int) -> None:
        mine = self.requests.setdefault(event["user_id"], [])
        if event["ts"] < effective - self.config.lateness_ms or event["request_id"] in {r["request_id"] for r in mine}:
            return
        due = event["ts"] + (0 if self.corrects else self.window)
        request = event | {"offset": offset, "due": due, "acted": set(), "left": False, "closed": False}
        request["categories"] = list(event.get("query_category", []))[:4]
        mine.append(request)
        if event.get("query"):
            self.todo.append(((event["ts"], 0, offset), request))
        self.todo.append(((due, 2, offset), request))
        still_open = sorted((r for r in mine if not r["closed"]), key=lambda r: (r["ts"], r["offset"]))
        if len(still_open) > self.config.max_pending_per_user:
            oldest = still_open[0]
            if oldest["left"]:
                mine.remove(oldest)
            else:
                oldest["closed"] = True
                if effective < oldest["due"]:
                    self.todo.remove(((oldest["due"], 2, oldest["offset"]), oldest))
                    oldest["due"] = effective
                    self.todo.append(((effective, 2, oldest["offset"]), oldest))

    def actions(self, event: dict[str, Any], effective: int, offset: int) -> None:
        if event["kind"] not in {"click", "buy"}:
            return
        late = event["ts"] < effective - self.config.lateness_ms
        signature = tuple(event.get(key) for key in ("user_id", "item_id", "kind", "ts", "request_id"))
        action = event | {"offset": offset, "late": late}
        if late:
            self.act(action, event["ts"])
        elif signature not in self.signatures:
            self.signatures.add(signature)
            self.todo.append(((event["ts"], 1, offset), action))

    def items(self, event: dict[str, Any], effective: int, offset: int) -> None:
        self.upsert(("item", event["item_id"]), event, effective)

    def users(self, event: dict[str, Any], effective: int, offset: int) -> None:
        self.upsert(("user", event["user_id"]), event, effective)

    def upsert(self, key: tuple[str, str], event: dict[str, Any], effective: int) -> None:
        versions = sorted([*self.versions.get(key, []), event], key=lambda version: int(version["ts"]))
        old = [v for v in versions if v["ts"] <= effective - self.window - 2 * self.config.lateness_ms]
        self.versions[key] = versions[max(0, len(old) - 1) :]

    def version(self, kind: str, name: str, ts: int) -> dict[str, Any]:
        known = [version for version in self.versions.get((kind, name), []) if version["ts"] <= ts]
        return known[-1] if known else {}

    # steps

    def see(self, request: dict[str, Any], time: int) -> None:
        request["categories"] = request["categories"] or self.clicked.get(request["query"], [])[:4]
        self.enter_query(request["user_id"], request["query"], request["categories"], request["ts"])

    def enter_query(self, user: str, query: str, categories: list[str], ts: int) -> None:
        queries = self.queries.setdefault(user, [])
        at = len([entry for entry in queries if entry[2] <= ts])
        if at and queries[at - 1][0] == query:
            return
        if at < len(queries) and queries[at][0] == query:
            queries[at] = (query, queries[at][1], ts)
            return
        queries.insert(at, (query, list(categories), ts))

    def act(self, action: dict[str, Any], time: int) -> None:
        mine = self.requests.get(action["user_id"], [])
        found = None
        if action.get("request_id"):
            found = next((r for r in mine if r["request_id"] == action["request_id"]), None)
            if found and found["ts"] > time:
                self.todo.append(((found["ts"], 1, action["offset"]), action))
                return
        else:
            fits = [r for r in mine if r["ts"] <= time <= self.end(r) and action["item_id"] in shown(r)]
            found = max(fits, key=lambda r: (r["ts"], r["offset"]), default=None)
        item = action["item_id"]
        on_page = found is not None and item in shown(found)
        domain = action.get("domain") or self.version("item", item, time).get("domain")
        if not domain and found and on_page:
            domain = found["items"][shown(found).index(item)].get("domain") or found.get("domain")
        fed = [name for name, sequence in self.config.item_sequences.items() if feeds(sequence, action, domain)]
        sequences = [self.entries.setdefault((action["user_id"], name), []) for name in fed]
        if action["late"] and sequences and all(any(e[0] == item and e[2] == time for e in s) for s in sequences):
            return
        labels = action["kind"] in self.config.label_kinds and reaches(self.config.label_min_value, action)
        if found and on_page and labels and not action["late"] and time <= self.end(found) and item not in found["acted"]:
            found["acted"].add(item)
            if self.corrects:
                self.emit(found, time, 0, action["offset"], item)
        category = action.get("category") or self.version("item", item, time).get("category")
        if not category and found and on_page:
            category = found["items"][shown(found).index(item)].get("category")
        for entries in sequences:
            entries.insert(len([entry for entry in entries if entry[2] <= time]), (item, category, time))
        query = action.get("query") or (found or {}).get("query")
        if labels and category and query:
            self.clicked[query] = [category, *(other for other in self.clicked.get(query, []) if other != category)][:4]
        if action.get("query") and not action.get("request_id"):
            self.enter_query(action["user_id"], action["query"], self.clicked.get(action["query"], [])[:4], time)

    def end(self, request: dict[str, Any]) -> int:
        return int(request["ts"] + self.window if self.corrects else request["due"])

    def leave(self, request: dict[str, Any], time: int) -> None:
        self.emit(request, time, 1, request["offset"], None)
        self.last[request["user_id"]] = max(self.last.get(request["user_id"], -1), request["ts"])
        request["left"] = True
        if not self.corrects or request["closed"]:
            self.requests[request["user_id"]].remove(request)
        else:
            self.todo.append(((request["ts"] + self.window, 3, request["offset"]), request))

    def forget(self, request: dict[str, Any], time: int) -> None:
        mine = self.requests[request["user_id"]]
        if request in mine:
            mine.remove(request)

    # rows

    def emit(self, request: dict[str, Any], due: int, topic: int, offset: int, only: str | None) -> None:
        user, ts = request["user_id"], request["ts"]
        last = ts if only else self.last.get(user)
        candidates = [request["items"][shown(request).index(only)]] if only else request["items"]
        row: Row = {
            "request": hash_id("request", request["request_id"]),
            "user": hash_id("user", user),
            "ts": ts,
            "due": due,
            "query": hashed("query", request.get("query")),
            "query_category": padded(request["categories"]),
            "domain": hashed("domain", request.get("domain")),
        }
        for name, sequence in self.config.item_sequences.items():
            history = [entry for entry in self.entries.get((user, name), []) if entry[2] < ts][-sequence.length :]
            row[f"{name}.item"] = [hashed("item", entry[0]) for entry in history]
            row[f"{name}.category"] = [hashed("category", entry[1]) for entry in history]
            row[f"{name}.ts"] = [entry[2] for entry in history]
            row[f"{name}.fresh"] = len([entry for entry in history if last is None or entry[2] >= last])
        queries = [entry for entry in self.queries.get(user, []) if entry[2] < ts][-self.config.query_length :]
        row["query.id"] = [hashed("query", entry[0]) for entry in queries]
        row["query.category"] = [padded(entry[1]) for entry in queries]
        row["query.ts"] = [entry[2] for entry in queries]
        row["query.fresh"] = len([entry for entry in queries if last is None or entry[2] >= last])
        known = [self.version("item", item["item_id"], ts) for item in candidates]
        pairs = list(zip(candidates, known, strict=True))
        row["candidate.item"] = [hashed("item", item["item_id"]) for item in candidates]
        row["candidate.category"] = [hashed("category", i.get("category") or v.get("category")) for i, v in pairs]
        domains = [i.get("domain") or v.get("domain") or request.get("domain") for i, v in pairs]
        row["candidate.domain"] = [hashed("domain", domain) for domain in domains]
        row["candidate.position"] = [item.get("position", -1) for item in candidates]
        acted = {only} if only else set() if self.corrects else request["acted"]
        row["candidate.label"] = [float(item["item_id"] in acted) for item in candidates]
        row["candidate.weight"] = [self.config.correction_weight if only else 1.0] * len(candidates)
        row["request_feature.age"] = either("age", request, self.version("user", user, ts), math.nan)
        row["candidate_feature.price"] = [either("price", i, v, math.nan) for i, v in pairs]
        brands = [either("brand", i, v, None) for i, v in pairs]
        row["candidate_feature.brand"] = [hashed("feature.brand", None if brand is None else str(brand)) for brand in brands]
        self.rows.append(((due, topic, offset), row))


def reaches(least: dict[str, float], action: dict[str, Any]) -> bool:
    kind, value = action["kind"], action.get("value")
    return kind not in least or (value is not None and value >= least[kind])


def feeds(sequence: ItemSequence, action: dict[str, Any], domain: str | None) -> bool:
    fits = not sequence.domains or domain in sequence.domains
    return fits and action["kind"] in sequence.kinds and reaches(sequence.min_value, action)


def shown(request: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in request["items"]]


def hashed(namespace: str, name: str | None) -> int:
    return hash_id(namespace, name) if name else 0


def padded(categories: Sequence[str]) -> list[int]:
    return ([hashed("category", category) for category in categories] + [0] * 4)[:4]


def either(name: str, first: dict[str, Any], second: dict[str, Any], missing: Any) -> Any:
    value = first.get("features", {}).get(name)
    return second.get("features", {}).get(name, missing) if value is None else value


# -- logs


def rows_of(blocks: Sequence[SampleBlock]) -> list[Row]:
    rows = []
    for block in blocks:
        rows += block.batch.to_pylist()
    return rows


def comparable(rows: Sequence[Row]) -> list[str]:
    """Rows as text, without what only the real joiner gives, NaN equal to NaN."""
    return [repr(sorted((key, value) for key, value in row.items() if key not in ("seq", "partition"))) for row in rows]


def fill(log: Log, events: Events, marks: Sequence[Mark]) -> Log:
    for topic, records in events.items():
        messages = [Message(0, event.get("user_id", "").encode(), msgspec.json.encode(event)) for event in records]
        log.create(topic, 1).append(0, messages)
    log.create("marks", 1).append(0, [Message(0, b"", msgspec.json.encode(mark)) for mark in marks])
    return log


USERS = st.sampled_from(["u", "v"])
ITEMS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["x", "y", "z"])
REQUESTS = st.sampled_from(["1", "2", "3", "4"])
QUERIES = st.sampled_from(["q", "r"])
PRICE = st.fixed_dictionaries({}, optional={"price": st.sampled_from([1.5, 2.0]), "brand": NAMES})
VALUES = st.sampled_from([None, -1.5, 0, 0.4999999999999999, 0.5, 0.6, 12])
AGE = st.fixed_dictionaries({}, optional={"age": st.sampled_from([1.0, 30.0])})
TS = st.integers(0, 40)
SHOWN = st.fixed_dictionaries(
    {"item_id": ITEMS, "features": PRICE}, optional={"category": NAMES, "domain": NAMES, "position": st.integers(0, 9)}
)
EVENTS = {
    "impressions": st.fixed_dictionaries(
        {"request_id": REQUESTS, "user_id": USERS, "ts": TS, "items": st.lists(SHOWN, min_size=1, max_size=3), "features": AGE},
        optional={"query": QUERIES, "query_category": st.lists(NAMES, max_size=5), "domain": NAMES},
    ),
    "actions": st.fixed_dictionaries(
        {"user_id": USERS, "item_id": ITEMS, "ts": TS, "kind": st.sampled_from(["click", "click", "buy", "scroll"])},
        optional={"request_id": REQUESTS, "query": QUERIES, "category": NAMES, "domain": NAMES, "value": VALUES},
    ),
    "items": st.fixed_dictionaries(
        {"item_id": ITEMS, "ts": TS, "features": PRICE}, optional={"category": NAMES, "domain": NAMES}
    ),
    "users": st.fixed_dictionaries({"user_id": USERS, "ts": TS, "features": AGE}),
}


@st.composite
def event_logs(draw: st.DrawFn) -> tuple[Events, list[Mark]]:
    topics = ["impressions", *draw(st.sets(st.sampled_from(["actions", "actions ", "items", "users"])))]
    events: Events = {}
    records: list[dict[str, Any]]
    for topic in {topic.strip() for topic in topics}:
        records = draw(st.lists(EVENTS[topic], max_size=14 if topic in ("impressions", "actions") else 4))
        disorder = draw(st.sampled_from([0, 0, 6, 60]))
        jitter = [draw(st.integers(0, disorder)) for _ in records] if disorder else [0] * len(records)
        pairs = sorted(zip(records, jitter, strict=True), key=lambda pair: pair[0]["ts"] + pair[1])
        events[topic] = [record for record, _ in pairs]
    marks = [
        Mark(topic, 0, draw(st.integers(0, len(events[topic]))), draw(TS))
        for topic in draw(st.lists(st.sampled_from(sorted(events)), max_size=2))
    ]
    return events, marks


CLICKS = ItemSequence(length=3)
SEQUENCES = [
    {"click": CLICKS, "any": ItemSequence(kinds=("buy", "click"), length=2)},
    # One kind in two domains, and one domain of two kinds.
    {
        "click": ItemSequence(domains=("x",), length=3),
        "any": ItemSequence(kinds=("buy", "click"), domains=("y", "z"), length=2),
    },
    {"click": CLICKS, "any": ItemSequence(kinds=("buy", "click"), min_value={"buy": 0.5, "click": -1.5}, length=2)},
    {"click": ItemSequence(domains=("x", "y"), min_value={"click": 0.5}), "any": ItemSequence(kinds=("buy",), length=2)},
]
CONFIGS = st.builds(
    JoinConfig,
    label_kinds=st.sampled_from([("click",), ("buy", "click")]),
    label_min_value=st.sampled_from([{}, {}, {"click": 0.5}, {"click": -1.5}]),
    policy=st.sampled_from(["wait", "wait", "correct"]),
    label_window_ms=st.sampled_from([0, 5, 15]),
    correction_window_ms=st.sampled_from([0, 5, 15]),
    correction_weight=st.just(0.5),
    lateness_ms=st.sampled_from([0, 3, 10]),
    item_sequences=st.sampled_from(SEQUENCES),
    query_length=st.just(2),
    max_pending_per_user=st.sampled_from([1, 2, 100]),
    request_features=st.just({"age": "float"}),
    candidate_features=st.just({"price": "float", "brand": "id"}),
    block_requests=st.sampled_from([1, 3, 100]),
)


@given(config=CONFIGS, log=event_logs(), read_records=st.integers(1, 9))
@settings(max_examples=500)
def test_rows_are_those_of_the_oracle_whatever_the_polling(
    config: JoinConfig, log: tuple[Events, list[Mark]], read_records: int
) -> None:
    events, marks = log
    expected = Oracle(config, events, marks).rows
    rows = rows_of(list(stream_samples(fill(MemoryLog(), events, marks), config, 0, read_records=read_records)))
    assert comparable(rows) == comparable([row for _, row in expected])
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert all(ts < row["ts"] for name in ("click", "any", "query") for ts in row[f"{name}.ts"])


def busy_log(seed: int, n: int) -> Events:
    """Two users who never rest: sequences fill up and are trimmed while requests wait."""
    draw = random.Random(seed)
    events: Events = {"impressions": [], "actions": []}
    for ts in range(n):
        user = draw.choice("uv")
        if draw.random() < 0.05:
            shown = [{"item_id": item} for item in draw.sample("abcd", 2)]
            page = {"request_id": str(ts), "user_id": user, "ts": ts, "items": shown, "query": draw.choice("pqrs")}
            events["impressions"].append(page)
        else:
            action = {"user_id": user, "item_id": draw.choice("abcd"), "ts": ts, "kind": "click", "query": draw.choice("pqrs")}
            events["actions"].append(action | {"category": draw.choice("xyz")})
    return events


def test_trimmed_histories_are_those_of_the_oracle() -> None:
    config = JoinConfig(
        label_window_ms=100,
        lateness_ms=10,
        item_sequences={"click": CLICKS},
        query_length=4,
        max_pending_per_user=2,
        request_features={"age": "float"},
        candidate_features={"price": "float", "brand": "id"},
    )
    events = busy_log(seed=1, n=1_500)
    log = fill(MemoryLog(), events, [])
    rows = rows_of(list(stream_samples(log, config, 0, read_records=100)))
    assert comparable(rows) == comparable([row for _, row in Oracle(config, events, []).rows])
    assert len(rows) > 50


def diverse_log(seed: int, n: int) -> Events:
    """Two users who act in three domains that now the action, now metadata, now the page tells, with values now and then."""
    draw = random.Random(seed)
    events: Events = {"impressions": [], "actions": [], "items": []}

    def some(**choices: Any) -> dict[str, Any]:
        return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.4}

    for ts in range(n):
        what, user, item = draw.random(), draw.choice("uv"), draw.choice("abcd")
        if what < 0.2:
            shown = [{"item_id": each, **some(domain="xyz", category="xyz")} for each in draw.sample("abcd", 2)]
            page = {"request_id": str(ts), "user_id": user, "ts": ts, "items": shown, **some(query="pqrs", domain="xyz")}
            events["impressions"].append(page)
        elif what < 0.3 and events["actions"]:
            events["actions"].append(draw.choice(events["actions"][-15:]))  # delivered once more, often late
        elif what < 0.9:
            late = draw.choice([0, 0, 0, 30])
            action = {"user_id": user, "item_id": item, "ts": max(0, ts - late), "kind": draw.choice(["click", "buy"])}
            named = {"request_id": events["impressions"][-1]["request_id"]} if events["impressions"] and ts % 3 == 0 else {}
            events["actions"].append(action | named | some(domain="xyz", value=[None, -2, 0.49, 0.5, 1], category="xyz"))
        else:
            events["items"].append({"item_id": item, "ts": ts, **some(domain="xyz", category="xyz")})
    return events


@pytest.mark.parametrize("policy", ["wait", "correct"])
@pytest.mark.parametrize("sequences", SEQUENCES)
def test_rules_in_a_busy_log_are_those_of_the_oracle(sequences: dict[str, ItemSequence], policy: Any) -> None:
    config = JoinConfig(
        label_kinds=("buy", "click"),
        label_min_value={"click": 0.5},
        policy=policy,
        label_window_ms=20,
        correction_window_ms=20,
        lateness_ms=10,
        item_sequences=sequences,
        query_length=4,
        request_features={"age": "float"},
        candidate_features={"price": "float", "brand": "id"},
    )
    for seed in range(3):
        events = diverse_log(seed, n=300)
        rows = rows_of(list(stream_samples(fill(MemoryLog(), events, []), config, 0, read_records=100)))
        assert comparable(rows) == comparable([row for _, row in Oracle(config, events, []).rows])
        assert sum(len(row["click.item"]) > 0 for row in rows) > 15
