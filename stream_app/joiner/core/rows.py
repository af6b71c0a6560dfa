"""A request becomes a row: its candidates with what metadata completes, and its user's histories point in time.

What the impression does not say, the newest version by its ``ts`` does. Category: the candidate's, else its item's. Domain:
likewise, else the request's. Features: likewise, or the user's.
"""

from __future__ import annotations

import numpy as np

from stream_app.joiner.scan.compiled import inner

from .arena import find, look, vector_at
from .layout import (
    ACTED,
    BLOCK,
    BLOCK_REQUESTS,
    COMPLETE,
    CORRECTS,
    ENTRY,
    FEATURES_AT,
    HAS_ITEMS,
    HAS_TRUTH,
    HAS_USERS,
    HEAD,
    ITEM,
    LENGTHS,
    N_CATEGORIES,
    N_FEATURES,
    N_PAGE_FEATURES,
    N_SEQUENCES,
    NEEDED,
    PAGE_CATEGORIES,
    PAGE_DOMAIN,
    PAGE_FEATURES_AT,
    PAGE_FLAGS,
    PAGE_N,
    PAGE_QUERY,
    PAGE_REQUEST,
    PAGE_TS,
    PAGE_USER,
    PAGE_WORDS,
    POSITION,
    PROFILE,
    QUERIES,
    QUERY_ENTRY,
    QUERY_LENGTH,
    ROWS,
    SEQUENCES,
    VERSION_CATEGORY,
    VERSION_DOMAIN,
    VERSION_FEATURES,
    WANT,
    WIDEN,
    Columns,
    Ints,
    Memory,
)
from .sequences import end_before, version_at

_FLOAT_BITS = 0x7FFFFFFF
_INFINITE = 0x7F800000


@inner
def candidates_at(m: Memory, request: int) -> int:
    """Return the address of a request's first candidate."""
    return int(request + HEAD + PAGE_WORDS + m.config[N_PAGE_FEATURES])


@inner
def place_of(m: Memory, request: int, item: int, start: int) -> int:
    """Return the index of the first candidate from ``start`` on that is ``item``, or -1."""
    items = candidates_at(m, request)
    for place in range(start, m.words[request + HEAD + PAGE_N]):
        if m.words[items + place] == item:
            return place
    return -1


@inner
def row_needs(m: Memory, out: Columns, request: int) -> int:
    """Say what is missing to make a row of a request, 0 if nothing is."""
    words, regs, config = m.words, m.regs, m.config
    row, n = regs[ROWS], words[request + HEAD + PAGE_N]
    if row >= config[BLOCK_REQUESTS]:
        return BLOCK
    full = out.offsets[0, row] + n > out.ids.shape[1]
    full |= out.offsets[1, row] + config[QUERY_LENGTH] > out.entries.shape[1]
    for s in range(config[N_SEQUENCES]):
        full |= out.offsets[2 + s, row] + config[LENGTHS + s] > out.entries.shape[1]
    if full:
        regs[NEEDED] = n
        return WIDEN
    if config[N_PAGE_FEATURES] and regs[HAS_USERS] and look(m, PROFILE, words[request + HEAD + PAGE_USER]) < 0:
        return WANT
    if regs[HAS_ITEMS] and not words[request + HEAD + PAGE_FLAGS] & COMPLETE:
        items = candidates_at(m, request)
        for place in range(n):
            if look(m, ITEM, words[items + place]) < 0:
                return WANT
    return 0


@inner
def _value(words: Ints, at: int, version: int, is_float: int) -> int:
    """Return a feature's value, or the version's where it is missing (0 for an id, NaN for a float)."""
    value = words[at]
    missing = value & _FLOAT_BITS > _INFINITE if is_float else value == 0
    return int(words[version] if missing and version else value)


@inner
def _candidate(m: Memory, out: Columns, request: int, place: int, c: int) -> None:
    words, config = m.words, m.config
    n, at = words[request + HEAD + PAGE_N], candidates_at(m, request) + place
    version = 0
    if m.regs[HAS_ITEMS] and not words[request + HEAD + PAGE_FLAGS] & COMPLETE:
        record = find(m, ITEM, words[at])
        version = version_at(m, record, VERSION_FEATURES + config[N_FEATURES], words[request + HEAD + PAGE_TS])
    category, domain = words[at + n], words[at + 2 * n]
    if version:
        category = category if category else words[version + VERSION_CATEGORY]
        domain = domain if domain else words[version + VERSION_DOMAIN]
    out.ids[0, c], out.ids[1, c] = words[at], category
    out.ids[2, c] = domain if domain else words[request + HEAD + PAGE_DOMAIN]
    out.positions[c] = np.int32(words[at + 3 * n] & POSITION)
    at += 4 * n
    for i in range(config[HAS_TRUTH]):
        out.features[i, c] = words[at]
        at += n
    for i in range(config[N_FEATURES]):
        known = version + VERSION_FEATURES + i if version else 0
        out.features[config[HAS_TRUTH] + i, c] = _value(words, at, known, config[config[FEATURES_AT] + i])
        at += n


@inner
def _history(
    m: Memory, out: Columns, vector: int, width: int, length: int, history: int, column: int, ts: int, last_ts: int
) -> None:
    """Write the newest entries older than ``ts`` into the columns of a history, and how many are not older than ``last_ts``."""
    words, row = m.words, m.regs[ROWS]
    end = end_before(m, vector, width, ts) // width
    first, at, fresh = max(0, end - length), out.offsets[1 + history, row], 0
    entries = words[vector]
    for i in range(width):
        values, source, to = out.entries[column + i], np.uint64(entries + first * width + i), np.uint64(at)
        for _ in range(first, end):
            values[to] = words[source]
            source, to = source + np.uint64(width), to + np.uint64(1)
    for entry in range(first, end):
        fresh += words[np.uint64(entries + entry * width + width - 1)] >= last_ts
    at += end - first
    out.offsets[1 + history, row + 1] = at
    out.fresh[history, row] = fresh


@inner
def add_row(m: Memory, out: Columns, request: int, user: int, only: int, last_ts: int, due: int) -> None:
    """Write a row; nothing may be missing for it.

    Args:
        m, out: from where, and to where.
        request, user: whose histories are cut at the request's ``ts``.
        only: the one candidate of a correction, -1 for all of a page.
        last_ts: entries from here on are fresh; -1 for all.
        due: when the labels are final.
    """
    words, row, page = m.words, m.regs[ROWS], request + HEAD
    head = out.heads[row]
    head[0], head[1], head[2] = words[page + PAGE_REQUEST], words[page + PAGE_USER], words[page + PAGE_TS]
    head[3], head[4] = due, words[page + PAGE_QUERY]
    for i in range(N_CATEGORIES):
        head[5 + i] = words[page + PAGE_CATEGORIES + i]
    head[9], head[10] = words[page + PAGE_DOMAIN], only >= 0
    c, n = out.offsets[0, row], words[page + PAGE_N]
    positions = candidates_at(m, request) + 3 * n
    for place in range(n):
        if only < 0 or place == only:
            _candidate(m, out, request, place, c)
            acted = words[positions + place] & ACTED and not m.config[CORRECTS]
            out.labels[c] = 1.0 if only >= 0 or acted else 0.0
            c += 1
    out.offsets[0, row + 1] = c
    profile = 0
    if m.config[N_PAGE_FEATURES] and m.regs[HAS_USERS]:
        record = find(m, PROFILE, words[page + PAGE_USER])
        profile = version_at(m, record, VERSION_FEATURES + m.config[N_PAGE_FEATURES], words[page + PAGE_TS])
    for i in range(m.config[N_PAGE_FEATURES]):
        known = profile + VERSION_FEATURES + i if profile else 0
        out.page_features[i, row] = _value(words, page + PAGE_WORDS + i, known, m.config[m.config[PAGE_FEATURES_AT] + i])
    n_sequences, column = m.config[N_SEQUENCES], 0
    for s in range(n_sequences + 1):
        is_query = s == n_sequences
        vector = vector_at(m, user, QUERIES if is_query else SEQUENCES + s)
        width, length = QUERY_ENTRY if is_query else ENTRY, m.config[QUERY_LENGTH if is_query else LENGTHS + s]
        _history(m, out, vector, width, length, 0 if is_query else 1 + s, column, words[page + PAGE_TS], last_ts)
        column += ENTRY
    m.regs[ROWS] = row + 1
