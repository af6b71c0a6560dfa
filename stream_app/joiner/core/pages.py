"""A page through its steps: shown, seen, left, forgotten.

What is missing is told before anything changes, so that the same step is taken again when it is there.
"""

from __future__ import annotations

from stream_app.joiner.scan.compiled import inner

from .arena import copy, cut_out, drop, find, growth, look, new_record, opened_at, room, touch, vector_at
from .layout import (
    CLOSED,
    CORRECTS,
    EVENT_HEAD,
    FORGET,
    HEAD,
    KEY,
    LAST_TS,
    LEAVE,
    LEFT,
    MAX_PENDING,
    N_CATEGORIES,
    N_CLOSED,
    N_DUPLICATE_PAGES,
    N_EARLY,
    N_REQUESTS,
    N_TRUNCATED,
    OFFSET_OF_EVENT,
    PAGE_CATEGORIES,
    PAGE_DUE,
    PAGE_FLAGS,
    PAGE_QUERY,
    PAGE_REQUEST,
    PAGE_TS,
    PAGE_USER,
    PASSED,
    PENDING,
    PENDING_CLOSED,
    PENDING_ENTRY,
    PENDING_OFFSET,
    PENDING_REQUEST,
    PENDING_TS,
    QUERIES,
    QUERY,
    QUERY_ENTRY,
    QUERY_LENGTH,
    REQUEST,
    SEE,
    SEEN,
    SIZE_OF_EVENT,
    USER,
    WANT,
    WINDOW,
    Columns,
    Ints,
    Memory,
)
from .queue import pop, push
from .rows import add_row, row_needs
from .sequences import insert_query, trim_sometimes


@inner
def pending_of(m: Memory, user: int, what: int, value: int) -> int:
    """Return the address of a user's pending request whose word ``what`` is ``value``, or 0."""
    vector = vector_at(m, user, PENDING)
    first = m.words[vector]
    for at in range(first, first + m.words[vector + 1], PENDING_ENTRY):
        if m.words[at + what] == value:
            return int(at)
    return 0


@inner
def remember_query(m: Memory, user: int, query: int, categories: int, ts: int) -> None:
    """Enter a query into a user's sequence."""
    length = m.config[QUERY_LENGTH]
    if length:
        vector = vector_at(m, user, QUERIES)
        insert_query(m, vector, query, categories, ts)
        m.regs[N_TRUNCATED] += trim_sometimes(m, user, vector, QUERY_ENTRY, length, m.regs[PASSED])


@inner
def _drop_page(m: Memory, request: int, user: int) -> None:
    """Forget a request: no action can refer to it any more."""
    entry = pending_of(m, user, PENDING_OFFSET, m.words[request + KEY])
    m.words[user + HEAD + N_CLOSED] -= m.words[entry + PENDING_CLOSED]
    vector = vector_at(m, user, PENDING)
    cut_out(m, vector, entry - m.words[vector], PENDING_ENTRY)
    touch(m, user)
    drop(m, request)


@inner
def _oldest_open(m: Memory, user: int, event: Ints, start: int) -> int:
    """Return the offset of the oldest of a user's requests that do not leave early, with the one that is being shown."""
    page, words, vector = start + EVENT_HEAD, m.words, vector_at(m, user, PENDING)
    oldest, ts = event[start + OFFSET_OF_EVENT], event[page + PAGE_TS]
    for at in range(words[vector], words[vector] + words[vector + 1], PENDING_ENTRY):
        earlier = words[at + PENDING_TS] < ts or (words[at + PENDING_TS] == ts and words[at + PENDING_OFFSET] < oldest)
        if not words[at + PENDING_CLOSED] and earlier:
            oldest, ts = words[at + PENDING_OFFSET], words[at + PENDING_TS]
    return int(oldest)


@inner
def show(m: Memory, event: Ints, start: int, effective: int) -> int:
    """Take an impression."""
    words, page = m.words, start + EVENT_HEAD
    user = look(m, USER, event[page + PAGE_USER])
    if user < 0:
        return WANT
    size = event[start + SIZE_OF_EVENT] - EVENT_HEAD
    status = room(m, 2 * (size + HEAD) + growth(m, user))
    if status:
        return status
    if pending_of(m, user, PENDING_REQUEST, event[page + PAGE_REQUEST]):
        m.regs[N_DUPLICATE_PAGES] += 1
        return 0
    vector, offset = vector_at(m, user, PENDING), event[start + OFFSET_OF_EVENT]
    n_open = words[vector + 1] // PENDING_ENTRY + 1 - words[user + HEAD + N_CLOSED]
    closing = -1
    if n_open > m.config[MAX_PENDING]:
        closing = _oldest_open(m, user, event, start)
        if closing != offset and look(m, REQUEST, closing) < 0:
            return WANT
    m.regs[N_REQUESTS] += 1
    request = new_record(m, REQUEST, offset, size)
    copy(words, request + HEAD, event, page, size)
    touch(m, request)
    push(m, event[page + PAGE_TS], SEE, offset)
    entry = opened_at(m, vector, words[vector + 1], PENDING_ENTRY)
    words[entry + PENDING_REQUEST], words[entry + PENDING_OFFSET] = event[page + PAGE_REQUEST], offset
    words[entry + PENDING_TS], words[entry + PENDING_CLOSED] = event[page + PAGE_TS], 0
    touch(m, user)
    if closing >= 0:
        _close(m, user, find(m, REQUEST, closing), effective)
    return 0


@inner
def _close(m: Memory, user: int, request: int, effective: int) -> None:
    """Let a request leave early: what is known of its labels by now is what it gets."""
    words, page = m.words, request + HEAD
    m.regs[N_EARLY] += 1
    if words[page + PAGE_FLAGS] & LEFT:
        _drop_page(m, request, user)
        return
    words[user + HEAD + N_CLOSED] += 1
    words[pending_of(m, user, PENDING_OFFSET, words[request + KEY]) + PENDING_CLOSED] = 1
    words[page + PAGE_FLAGS] |= CLOSED
    touch(m, request)
    if effective < words[page + PAGE_DUE]:
        words[page + PAGE_DUE] = effective
        if words[page + PAGE_FLAGS] & SEEN:
            push(m, effective, LEAVE, words[request + KEY])


@inner
def see(m: Memory, request: int) -> int:
    """Keep the query's categories as they are now, and enter the query into the user's sequence."""
    words, page = m.words, request + HEAD
    user = look(m, USER, words[page + PAGE_USER])
    if user < 0:
        return WANT
    query, known = words[page + PAGE_QUERY], page + PAGE_CATEGORIES
    learned = 0
    if query and not (words[known] or words[known + 1] or words[known + 2] or words[known + 3]):
        learned = look(m, QUERY, query)
        if learned < 0:
            return WANT
    status = room(m, growth(m, user))
    if status:
        return status
    pop(m)
    words[page + PAGE_FLAGS] |= SEEN
    touch(m, request)
    if learned:
        for i in range(N_CATEGORIES):
            words[known + i] = words[learned + HEAD + i]
    if query:
        touch(m, user)
        remember_query(m, user, query, known, words[page + PAGE_TS])
    push(m, words[page + PAGE_DUE], LEAVE, words[request + KEY])
    return 0


@inner
def leave(m: Memory, out: Columns, request: int) -> int:
    """Make a row of a request: labels, histories and metadata are what is known by now."""
    words, page = m.words, request + HEAD
    user = look(m, USER, words[page + PAGE_USER])
    if user < 0:
        return WANT
    status = row_needs(m, out, request)
    if not status:
        status = room(m, 0)
    if status:
        return status
    pop(m)
    touch(m, user)
    add_row(m, out, request, user, -1, words[user + HEAD + LAST_TS], words[page + PAGE_DUE])
    words[user + HEAD + LAST_TS] = max(words[user + HEAD + LAST_TS], words[page + PAGE_TS])
    if not m.config[CORRECTS] or words[page + PAGE_FLAGS] & CLOSED:
        _drop_page(m, request, user)
        return 0
    words[page + PAGE_FLAGS] |= LEFT
    touch(m, request)
    push(m, words[page + PAGE_TS] + m.config[WINDOW], FORGET, words[request + KEY])
    return 0


@inner
def forget_page(m: Memory, request: int) -> int:
    """Forget a request whose correction window is over."""
    user = look(m, USER, m.words[request + HEAD + PAGE_USER])
    if user < 0:
        return WANT
    pop(m)
    _drop_page(m, request, user)
    return 0
