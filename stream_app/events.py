"""What may arrive on a raw topic: impressions, actions, items and users, as JSON.

Ids are strings outside and int64 inside (:func:`hash_id`). Unknown fields are ignored, so that a producer may add its own;
a missing or wrongly typed field is an error that becomes a dead letter.
"""

from __future__ import annotations

from typing import Final

import msgspec
import xxhash

IMPRESSIONS: Final = "impressions"
ACTIONS: Final = "actions"
ITEMS: Final = "items"
USERS: Final = "users"
SAMPLES: Final = "samples"
DEAD_LETTERS: Final = "dead_letters"
MARKS: Final = "marks"
RAW_TOPICS: Final = (ACTIONS, IMPRESSIONS, ITEMS, USERS)

FeatureValue = float | int | str | bool | None


class ImpressionItem(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One candidate that was shown."""

    item_id: str
    category: str | None = None
    position: int | None = None
    domain: str | None = None
    features: dict[str, FeatureValue] = {}
    truth: float | None = None
    """Probability of the label where a generator knows it; reaches samples, never a model."""


class Impression(msgspec.Struct, frozen=True, omit_defaults=True):
    """One page shown to one user; ``ts`` in UTC ms."""

    request_id: str
    user_id: str
    ts: int
    items: list[ImpressionItem]
    query: str | None = None
    query_category: list[str] = []
    domain: str | None = None
    features: dict[str, FeatureValue] = {}


class Action(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a user did with an item: a click, a watch, a purchase; ``ts`` in UTC ms, ``value`` as the kind defines it."""

    user_id: str
    item_id: str
    ts: int
    kind: str
    request_id: str | None = None
    query: str | None = None
    category: str | None = None
    value: float | None = None
    domain: str | None = None


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of an item, valid from ``ts`` (UTC ms) until a newer version."""

    item_id: str
    ts: int
    category: str | None = None
    domain: str | None = None
    features: dict[str, FeatureValue] = {}
    vector: list[float] | None = None
    """Pre-extracted, of a length that all items of a log share; learners read it beside the samples."""


class User(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of a user, valid from ``ts`` (UTC ms) until a newer version."""

    user_id: str
    ts: int
    features: dict[str, FeatureValue] = {}


def hash_id(namespace: str, identifier: str) -> int:
    """Return the int64 that stands for an id: xxh3_64 over (namespace, 0 byte, id), never 0 (0 is missing).

    >>> hash_id("item", "a") == hash_id("item", "a") != hash_id("user", "a")
    True
    """
    unsigned = xxhash.xxh3_64_intdigest(f"{namespace}\0{identifier}".encode())
    return (unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned) or 1


class IdHashes(dict[str, int]):
    """:func:`hash_id` of one namespace behind a bounded cache: ``hashes[identifier]``.

    Args:
        namespace: ``item``, ``user``, ``query``, ``category``, ``domain``, ``request`` or ``feature.NAME``.
        capacity: ids kept; the cache starts afresh when full.
    """

    def __init__(self, namespace: str, capacity: int = 1 << 18) -> None:
        super().__init__()
        self.namespace = namespace
        self.capacity = capacity

    def __missing__(self, identifier: str) -> int:
        if len(self) >= self.capacity:
            self.clear()
        value = self[identifier] = hash_id(self.namespace, identifier)
        return value


def partition_of(key: bytes, n_partitions: int) -> int:
    """Return the partition of a record key, as Kafka's default partitioner does (murmur2, positive, modulo).

    >>> partition_of(b"user-1", 1)
    0
    """
    return (murmur2(key) & 0x7FFFFFFF) % n_partitions


def murmur2(data: bytes) -> int:
    """Return Kafka's murmur2 hash of ``data`` (unsigned 32 bit), the seed that all its clients share."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)
