"""The heap of steps, and the set of signatures of the actions that wait."""

from __future__ import annotations

import numpy as np

from stream_app.joiner.scan.compiled import inner, kernel

from .arena import mixed
from .layout import (
    ACT,
    ACTION,
    ACTION_ITEM,
    ACTION_KIND,
    ACTION_LOGGED_TS,
    ACTION_REQUEST,
    ACTION_TS,
    ACTION_USER,
    FORGET,
    HEAP_SIZE,
    LATE,
    LEAVE,
    LEFT,
    N_SIGNATURES,
    OFFSET_BITS,
    PAGE_DUE,
    PAGE_FLAGS,
    PAGE_TS,
    SEE,
    SEEN,
    WINDOW,
    Ints,
    Memory,
)


@inner
def _before(heap: Ints, i: int, time: int, step: int) -> bool:
    return bool(heap[i, 0] < time or (heap[i, 0] == time and heap[i, 1] < step))


@inner
def push(m: Memory, time: int, step: int, offset: int) -> None:
    """Add a step; steps are taken in the order of (time, step, offset)."""
    heap, i = m.heap, m.regs[HEAP_SIZE]
    packed = step << OFFSET_BITS | offset
    m.regs[HEAP_SIZE] = i + 1
    while i > 0 and not _before(heap, (i - 1) >> 1, time, packed):
        heap[i, 0], heap[i, 1] = heap[(i - 1) >> 1, 0], heap[(i - 1) >> 1, 1]
        i = (i - 1) >> 1
    heap[i, 0], heap[i, 1] = time, packed


@inner
def pop(m: Memory) -> None:
    """Take the first step out of the heap."""
    heap, n = m.heap, m.regs[HEAP_SIZE] - 1
    m.regs[HEAP_SIZE] = n
    time, packed = heap[n, 0], heap[n, 1]
    i, child = 0, 1
    while child < n:
        if child + 1 < n and _before(heap, child + 1, heap[child, 0], heap[child, 1]):
            child += 1
        if not _before(heap, child, time, packed):
            break
        heap[i, 0], heap[i, 1] = heap[child, 0], heap[child, 1]
        i, child = child, 2 * child + 1
    heap[i, 0], heap[i, 1] = time, packed


@inner
def _home(signatures: Ints, user: int, item: int, kind: int, ts: int, request: int) -> int:
    hashed = mixed(mixed(mixed(mixed(mixed(np.uint64(0), user), item), kind), ts), request)
    return int(np.int64(hashed >> np.uint64(1)) & (len(signatures) - 1))


@inner
def _place(signatures: Ints, user: int, item: int, kind: int, ts: int, request: int) -> int:
    """Return the row of a signature, or the empty one where it belongs."""
    mask = len(signatures) - 1
    i = _home(signatures, user, item, kind, ts, request)
    while signatures[i, 0] and not (
        signatures[i, 1] == user
        and signatures[i, 2] == item
        and signatures[i, 3] == kind
        and signatures[i, 4] == ts
        and signatures[i, 5] == request
    ):
        i = (i + 1) & mask
    return i


@inner
def place_of_signature(m: Memory, words: Ints, body: int) -> int:
    """Return the row of an action's signature, or the empty one where it belongs: what two deliveries of it share."""
    return _place(
        m.signatures,
        words[body + ACTION_USER],
        words[body + ACTION_ITEM],
        words[body + ACTION_KIND],
        words[body + ACTION_LOGGED_TS],
        words[body + ACTION_REQUEST],
    )


@inner
def sign(m: Memory, words: Ints, body: int) -> None:
    """Remember an action's signature."""
    row = m.signatures[place_of_signature(m, words, body)]
    if not row[0]:
        m.regs[N_SIGNATURES] += 1
    row[0] = 1
    row[1], row[2], row[3] = words[body + ACTION_USER], words[body + ACTION_ITEM], words[body + ACTION_KIND]
    row[4], row[5] = words[body + ACTION_LOGGED_TS], words[body + ACTION_REQUEST]


@inner
def unsign(m: Memory, words: Ints, body: int) -> None:
    """Forget an action's signature, and close the gap behind it."""
    rows, mask = m.signatures, len(m.signatures) - 1
    gap = place_of_signature(m, words, body)
    if not rows[gap, 0]:
        return
    i = gap
    while True:
        i = (i + 1) & mask
        if not rows[i, 0]:
            break
        home = _home(rows, rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4], rows[i, 5])
        if (i - home) & mask >= (i - gap) & mask:
            for column in range(6):
                rows[gap, column] = rows[i, column]
            gap = i
    rows[gap, 0] = 0
    m.regs[N_SIGNATURES] -= 1


@kernel
def copy_signatures(source: Ints, to: Ints) -> None:
    """Copy all signatures into a larger, empty table."""
    for i in range(len(source)):
        if source[i, 0]:
            at = _place(to, source[i, 1], source[i, 2], source[i, 3], source[i, 4], source[i, 5])
            for column in range(6):
                to[at, column] = source[i, column]


@kernel
def restore(m: Memory, kind: int, keys: Ints, data: Ints, ends: Ints) -> None:
    """Make the steps of stored requests or actions, and sign the actions; there must be room.

    Args:
        m: memory.
        kind: REQUEST or ACTION.
        keys: offsets ``[n]``.
        data, ends: their packed words, and where those of each end.
    """
    start = 0
    for i in range(len(keys)):
        body = start + 1
        start = ends[i]
        if kind == ACTION:
            push(m, data[body + ACTION_TS], ACT, keys[i])
            if not data[body + ACTION_KIND] & LATE:
                sign(m, data, body)
            continue
        flags = data[body + PAGE_FLAGS]
        if not flags & SEEN:
            push(m, data[body + PAGE_TS], SEE, keys[i])
        elif flags & LEFT:
            push(m, data[body + PAGE_TS] + m.config[WINDOW], FORGET, keys[i])
        else:
            push(m, data[body + PAGE_DUE], LEAVE, keys[i])
