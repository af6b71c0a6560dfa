"""The arena: blocks of a power of two of words, vectors that grow in them, records found by (kind, key)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from stream_app.joiner.scan.compiled import inner

from .layout import (
    BATCH,
    COUNTS,
    FIRST_TOUCHED,
    FLAGS,
    FREE,
    GONE,
    GROW,
    HEAD,
    HEAP_SIZE,
    ITEM,
    KEY,
    KIND,
    N_SEQUENCES,
    N_SIGNATURES,
    N_SLOTS,
    NEEDED,
    NEXT,
    PROFILE,
    SEQUENCES,
    SIZE,
    TOP,
    TOUCHED,
    USED,
    USER,
    VECTOR,
    WANTED_KEY,
    WANTED_KIND,
    Ints,
    Memory,
)

_U: Final = np.uint64
_MIX_1: Final = _U(0x9E3779B97F4A7C15)
_MIX_2: Final = _U(0xD6E8FEB86659FD93)
_HALF: Final = _U(32)
_ONE: Final = _U(1)
_SMALLEST: Final = 3
_ROOM: Final = 256
"""Words that any step may take besides what it asks for."""
_STEPS: Final = 4
"""Entries that one step may add to the heap, the index or the signatures, and some more."""


@inner
def mixed(state: np.uint64, number: int) -> np.uint64:
    """Return a hash of a hash and one more number."""
    x = (state ^ _U(number)) * _MIX_1
    x = (x ^ x >> _HALF) * _MIX_2
    return x ^ x >> _HALF


@inner
def class_of(n: int) -> int:
    """Return the size class of ``n`` words."""
    size_class = _SMALLEST
    while 1 << size_class < n:
        size_class += 1
    return size_class


@inner
def allocated(m: Memory, size_class: int) -> int:
    """Return the address of a block; there must be room."""
    at = m.regs[FREE + size_class]
    if at:
        m.regs[FREE + size_class] = m.words[at]
    else:
        at = m.regs[TOP]
        m.regs[TOP] = at + (1 << size_class)
    return int(at)


@inner
def release(m: Memory, at: int, size_class: int) -> None:
    """Give a block back."""
    m.words[at] = m.regs[FREE + size_class]
    m.regs[FREE + size_class] = at


@inner
def room(m: Memory, n: int) -> int:
    """Say GROW if a step that takes ``n`` words could not be taken to its end."""
    if (
        m.regs[TOP] + n + _ROOM > len(m.words)
        or m.regs[HEAP_SIZE] + _STEPS > len(m.heap)
        or 2 * (m.regs[N_SLOTS] + _STEPS) > len(m.slots)
        or 2 * (m.regs[N_SIGNATURES] + _STEPS) > len(m.signatures)
    ):
        m.regs[NEEDED] = n + _ROOM
        return GROW
    return 0


@inner
def copy(to: Ints, at: int, source: Ints, first: int, n: int) -> None:
    """Copy ``n`` words to where none of them stands; indexes that are not signed let it be done several words at a time."""
    target: Any = _U(at)
    origin: Any = _U(first)
    for _ in range(n):
        to[target] = source[origin]
        target += _ONE
        origin += _ONE


# -- vectors


@inner
def widen(m: Memory, vector: int, n: int) -> None:
    """Let a vector hold ``n`` more words."""
    words = m.words
    used, size_class = words[vector + 1], words[vector + 2]
    if size_class and used + n <= 1 << size_class:
        return
    wider = class_of(used + n)
    at = allocated(m, wider)
    copy(words, at, words, words[vector], used)
    if size_class:
        release(m, words[vector], size_class)
    words[vector], words[vector + 2] = at, wider


@inner
def opened_at(m: Memory, vector: int, place: int, n: int) -> int:
    """Make room for ``n`` words at ``place`` of a vector; return their address."""
    widen(m, vector, n)
    words = m.words
    at = words[vector] + place
    for i in range(words[vector] + words[vector + 1] - 1, at - 1, -1):
        words[i + n] = words[i]
    words[vector + 1] += n
    return int(at)


@inner
def cut_out(m: Memory, vector: int, place: int, n: int) -> None:
    """Take ``n`` words at ``place`` out of a vector."""
    words = m.words
    end = words[vector] + words[vector + 1]
    for i in range(words[vector] + place + n, end):
        words[i - n] = words[i]
    words[vector + 1] -= n


@inner
def vectors_of(config: Ints, kind: int) -> int:
    """Return how many vectors a record of a kind has."""
    if kind == USER:
        return int(SEQUENCES + config[N_SEQUENCES])
    return 1 if kind in (ITEM, PROFILE) else 0


@inner
def vector_at(m: Memory, record: int, index: int) -> int:
    """Return the address of a record's vector."""
    return int(record + HEAD + m.words[record + SIZE] + VECTOR * index)


@inner
def growth(m: Memory, record: int) -> int:
    """Return the words that are needed at most for each vector of a record to take an entry more."""
    n = 0
    for index in range(vectors_of(m.config, m.words[record + KIND])):
        n += 2 << m.words[vector_at(m, record, index) + 2]
        n += 1 << 6
    return n


# -- records


@inner
def _slot_of(m: Memory, kind: int, key: int) -> int:
    """Return the slot where a record's search begins."""
    return int(np.int64(mixed(_U(kind), key) >> _U(1)) & (len(m.slots) - 1))


@inner
def find(m: Memory, kind: int, key: int) -> int:
    """Return the address of a record, 0 if it is not in memory."""
    slots, mask = m.slots, len(m.slots) - 1
    i = _slot_of(m, kind, key)
    while slots[i, 0]:
        if slots[i, 1] == key and m.words[slots[i, 0]] == kind:
            return int(slots[i, 0])
        i = (i + 1) & mask
    return 0


@inner
def look(m: Memory, kind: int, key: int) -> int:
    """Return the address of a record, 0 if there is none, -1 if it must be loaded to know."""
    at = find(m, kind, key)
    if not at:
        m.regs[WANTED_KIND], m.regs[WANTED_KEY] = kind, key
        return -1
    m.words[at + USED] = m.regs[BATCH]
    return 0 if m.words[at + FLAGS] & GONE else at


@inner
def enter(m: Memory, record: int) -> None:
    """Put a record into the index."""
    slots, mask = m.slots, len(m.slots) - 1
    i = _slot_of(m, m.words[record + KIND], m.words[record + KEY])
    while slots[i, 0]:
        i = (i + 1) & mask
    slots[i, 0], slots[i, 1] = record, m.words[record + KEY]
    m.regs[N_SLOTS] += 1


@inner
def _withdraw(m: Memory, record: int) -> None:
    """Take a record out of the index, and close the gap behind it."""
    slots, mask = m.slots, len(m.slots) - 1
    gap = _slot_of(m, m.words[record + KIND], m.words[record + KEY])
    while slots[gap, 0] != record:
        gap = (gap + 1) & mask
    i = gap
    while True:
        i = (i + 1) & mask
        if not slots[i, 0]:
            break
        home = _slot_of(m, m.words[slots[i, 0]], slots[i, 1])
        if (i - home) & mask >= (i - gap) & mask:
            slots[gap, 0], slots[gap, 1] = slots[i, 0], slots[i, 1]
            gap = i
    slots[gap, 0] = 0
    m.regs[N_SLOTS] -= 1


@inner
def new_record(m: Memory, kind: int, key: int, size: int) -> int:
    """Return the address of a new record whose body of ``size`` words is still to be written; its vectors are empty."""
    words, n_vectors = m.words, vectors_of(m.config, kind)
    at = allocated(m, class_of(HEAD + size + VECTOR * n_vectors))
    words[at + KIND], words[at + KEY], words[at + FLAGS], words[at + SIZE] = kind, key, 0, size
    words[at + USED], words[at + NEXT] = m.regs[BATCH], 0
    for i in range(VECTOR * n_vectors):
        words[at + HEAD + size + i] = 0
    enter(m, at)
    m.regs[COUNTS + kind] += 1
    return at


@inner
def forget(m: Memory, record: int) -> None:
    """Remove a record from memory."""
    words = m.words
    n_vectors = vectors_of(m.config, words[record + KIND])
    for index in range(n_vectors):
        vector = vector_at(m, record, index)
        if words[vector + 2]:
            release(m, words[vector], words[vector + 2])
    _withdraw(m, record)
    m.regs[COUNTS + words[record + KIND]] -= 1
    release(m, record, class_of(HEAD + words[record + SIZE] + VECTOR * n_vectors))


@inner
def touch(m: Memory, record: int) -> None:
    """Note that the next commit has to write a record."""
    words = m.words
    if not words[record + FLAGS] & TOUCHED:
        words[record + FLAGS] |= TOUCHED
        words[record + NEXT] = m.regs[FIRST_TOUCHED]
        m.regs[FIRST_TOUCHED] = record


@inner
def drop(m: Memory, record: int) -> None:
    """Let a record be gone: it stays in memory, as such, until the next commit, so that no stored one takes its place."""
    touch(m, record)
    m.words[record + FLAGS] |= GONE
