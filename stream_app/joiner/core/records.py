"""Records into memory and out of it: loading, packing what was touched for a commit, and letting go of what is not needed.

A stored record is its words: the size of its body, the body, and per vector the words used, and the words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stream_app.joiner.scan.compiled import inner, kernel

from .arena import copy, drop, enter, find, forget, new_record, opened_at, vector_at, vectors_of
from .layout import (
    ACTION,
    FIRST_TOUCHED,
    FLAGS,
    GONE,
    HEAD,
    KEY,
    KIND,
    LAST_TS,
    N_CATEGORIES,
    NEXT,
    QUERY,
    REQUEST,
    SIZE,
    STORED,
    TOUCHED,
    USED,
    USER,
    USER_WORDS,
    Ints,
    Memory,
)


@inner
def _empty(m: Memory, kind: int, key: int) -> None:
    """Make a record of what was never stored; a request or an action that is not there has gone."""
    size = USER_WORDS if kind == USER else N_CATEGORIES if kind == QUERY else 0
    record = new_record(m, kind, key, size)
    for i in range(size):
        m.words[record + HEAD + i] = 0
    if kind == USER:
        m.words[record + HEAD + LAST_TS] = -1
    if kind in (REQUEST, ACTION):
        drop(m, record)


@kernel
def load(m: Memory, wanted: Ints, data: Ints, ends: Ints) -> None:
    """Take stored records into memory; there must be room.

    Args:
        m: memory; what it holds already stays.
        wanted: ``[n, 2]``: kind and key.
        data: their words, one after another.
        ends: ``[n]``, where those of each end; none if it was never stored.
    """
    start = 0
    for i in range(len(wanted)):
        kind, key = wanted[i, 0], wanted[i, 1]
        if not find(m, kind, key):
            if ends[i] == start:
                _empty(m, kind, key)
            else:
                at, size = start + 1, data[start]
                record = new_record(m, kind, key, size)
                copy(m.words, record + HEAD, data, at, size)
                at += size
                m.words[record + FLAGS] = STORED
                for index in range(vectors_of(m.config, kind)):
                    n = data[at]
                    if n:
                        to = opened_at(m, vector_at(m, record, index), 0, n)
                        copy(m.words, to, data, at + 1, n)
                    at += 1 + n
        start = ends[i]


@inner
def _n_packed(m: Memory, record: int) -> int:
    n = 1 + m.words[record + SIZE]
    for index in range(vectors_of(m.config, m.words[record + KIND])):
        n += 1 + m.words[vector_at(m, record, index) + 1]
    return int(n)


@inner
def _settle(m: Memory, record: int) -> None:
    """Say that a touched record is as the store has it."""
    if m.words[record + FLAGS] & GONE:
        forget(m, record)
    else:
        m.words[record + FLAGS] = STORED


@inner
def _pack(m: Memory, record: int, data: Ints, at: int) -> int:
    words, size = m.words, m.words[record + SIZE]
    copy(data, at, words, record + SIZE, size + 1)
    at += size + 1
    for index in range(vectors_of(m.config, words[record + KIND])):
        vector = vector_at(m, record, index)
        n = data[at] = words[vector + 1]
        copy(data, at + 1, words, words[vector], n)
        at += 1 + n
    return at


@kernel
def pack(
    m: Memory, letters: npt.NDArray[np.uint8], keys: npt.NDArray[np.uint8], data: Ints, ends: Ints, gone: Ints
) -> tuple[int, int, int]:
    """Pack what was touched, as much as there is room for, and begin a new batch with it.

    Args:
        m: memory.
        letters: of the kinds.
        keys: ``[n, 9]`` is filled: letter and big-endian key.
        data: is filled: packed words, one after another.
        ends: ``[n]`` is filled, where those of each end.
        gone: ``[m, 2]`` is filled: kind and key of stored records that have gone.

    Returns:
        How many records are packed, how many have gone, and the words that the next one needs, 0 if there is none.
    """
    words, at, i, n_gone, n_words = m.words, 0, 0, 0, 0
    record = m.regs[FIRST_TOUCHED]
    while record and i < len(ends) and n_gone < len(gone):
        following = words[record + NEXT]
        if not words[record + FLAGS] & GONE:
            n_words = _n_packed(m, record)
            if at + n_words > len(data):
                break
            at = _pack(m, record, data, at)
            keys[i, 0] = letters[words[record + KIND]]
            for byte in range(8):
                keys[i, 1 + byte] = np.uint8(words[record + KEY] >> (56 - 8 * byte) & 255)
            ends[i] = at
            i += 1
        elif words[record + FLAGS] & STORED:
            gone[n_gone, 0], gone[n_gone, 1] = words[record + KIND], words[record + KEY]
            n_gone += 1
        _settle(m, record)
        record = following
    m.regs[FIRST_TOUCHED] = record
    return i, n_gone, max(n_words, 1) if record else 0


@kernel
def settle(m: Memory) -> None:
    """Begin a new batch: what was touched is stored, what has gone is forgotten."""
    record = m.regs[FIRST_TOUCHED]
    m.regs[FIRST_TOUCHED] = 0
    while record:
        following = m.words[record + NEXT]
        _settle(m, record)
        record = following


@kernel
def held(m: Memory, kind: int, found: Ints) -> int:
    """Find the records of a kind: address, key and when they were used last into ``found`` ``[n, 3]``; return ``n``."""
    n = 0
    for i in range(len(m.slots)):
        record = m.slots[i, 0]
        if record and m.words[record + KIND] == kind:
            found[n, 0], found[n, 1], found[n, 2] = record, m.words[record + KEY], m.words[record + USED]
            n += 1
    return n


@kernel
def evict(m: Memory, records: Ints) -> None:
    """Let go of records that no commit has to write."""
    for record in records:
        assert not m.words[record + FLAGS] & TOUCHED
        forget(m, record)


@kernel
def enter_all(m: Memory, slots: Ints) -> None:
    """Put the records of a smaller index into this one."""
    for i in range(len(slots)):
        if slots[i, 0]:
            enter(m, slots[i, 0])
