"""Records that could not be used: nothing is dropped silently."""

from __future__ import annotations

import base64
from typing import Final

import msgspec
import xxhash

from stream_app.topics import Record

from .pending import Unusable

KEPT_BYTES: Final = 64 << 10


class DeadLetter(msgspec.Struct, frozen=True):
    """A record of topic ``dead_letters``, as JSON."""

    topic: str
    partition: int
    offset: int
    ts: int
    """The record's own broker time, UTC ms."""
    code: str
    """Short name of the reason."""
    reason: str
    size: int
    """Bytes of the record's value."""
    xxh3_128: str
    """Hash of the whole value, hexadecimal."""
    head: str
    """The first 64 KB of the value, base64."""


def dead_letter(topic: str, partition: int, record: Record, unusable: Unusable) -> DeadLetter:
    """Describe a record that cannot be used."""
    value = record.value
    head = base64.b64encode(value[:KEPT_BYTES]).decode()
    reason = unusable.reason.encode("utf-8", "backslashreplace").decode()
    digest = xxhash.xxh3_128_hexdigest(value)
    return DeadLetter(topic, partition, record.offset, record.ts, unusable.code, reason, len(value), digest, head)
