"""An action: it waits, finds its request, labels it, and enters the user's histories."""

from __future__ import annotations

from stream_app.joiner.action_values import NO_VALUE, OUT_OF_REACH
from stream_app.joiner.scan.compiled import inner

from .arena import drop, find, growth, look, new_record, room, touch, vector_at
from .layout import (
    ACT,
    ACTED,
    ACTION,
    ACTION_CATEGORY,
    ACTION_DOMAIN,
    ACTION_ITEM,
    ACTION_KIND,
    ACTION_QUERY,
    ACTION_REQUEST,
    ACTION_TS,
    ACTION_USER,
    ACTION_VALUE,
    ACTION_WORDS,
    CORRECTS,
    DOMAINS_AT,
    ENTRY,
    EVENT_HEAD,
    HAS_ITEMS,
    HEAD,
    ITEM,
    KEY,
    KIND_BY_DOMAIN,
    KIND_FEEDS,
    KIND_LABELS,
    KINDS_AT,
    LATE,
    LENGTHS,
    N_ACTIONS,
    N_CORRECTIONS,
    N_DUPLICATE_ACTIONS,
    N_FEATURES,
    N_LABELS,
    N_LOW_VALUE,
    N_NO_DOMAIN,
    N_NO_VALUE,
    N_ORPHANS,
    N_SEQUENCES,
    N_TRUNCATED,
    OFFSET_OF_EVENT,
    PAGE_DOMAIN,
    PAGE_DUE,
    PAGE_N,
    PAGE_QUERY,
    PAGE_TS,
    PASSED,
    PENDING,
    PENDING_ENTRY,
    PENDING_OFFSET,
    PENDING_REQUEST,
    PENDING_TS,
    QUERY,
    REQUEST,
    SEQUENCES,
    USER,
    VERSION_CATEGORY,
    VERSION_DOMAIN,
    VERSION_FEATURES,
    WANT,
    WINDOW,
    Columns,
    Ints,
    Memory,
)
from .pages import pending_of, remember_query
from .queue import place_of_signature, pop, push, sign, unsign
from .rows import add_row, candidates_at, place_of, row_needs
from .sequences import holds, insert_entry, learn_category, trim_sometimes, version_at


@inner
def _window_end(m: Memory, request: int) -> int:
    """Return the last ``ts`` of an action that a request takes."""
    page = request + HEAD
    return int(m.words[page + PAGE_TS] + m.config[WINDOW] if m.config[CORRECTS] else m.words[page + PAGE_DUE])


@inner
def _latest_showing(m: Memory, user: int, item: int, ts: int) -> int:
    """Return the user's latest request at or before ``ts`` that showed the item and whose window holds it; or 0, -1 to load."""
    words, vector = m.words, vector_at(m, user, PENDING)
    latest = 0
    for at in range(words[vector], words[vector] + words[vector + 1], PENDING_ENTRY):
        shown, offset = words[at + PENDING_TS], words[at + PENDING_OFFSET]
        if shown > ts:
            continue
        if latest:
            newest = words[latest + HEAD + PAGE_TS]
            if shown < newest or (shown == newest and offset < words[latest + KEY]):
                continue
        request = look(m, REQUEST, offset)
        if request < 0:
            return -1
        if request and ts <= _window_end(m, request) and place_of(m, request, item, 0) >= 0:
            latest = request
    return latest


@inner
def _wait(m: Memory, words: Ints, body: int, offset: int, waiting: int) -> int:
    """Let an action wait until its ``ts`` has passed; ``waiting`` is its record, 0 if it has none yet."""
    status = room(m, 0)
    if status:
        return status
    if not waiting:
        waiting = new_record(m, ACTION, offset, ACTION_WORDS)
        for i in range(ACTION_WORDS):
            m.words[waiting + HEAD + i] = words[body + i]
    touch(m, waiting)
    push(m, m.words[waiting + HEAD + ACTION_TS], ACT, offset)
    return 0


@inner
def receive(m: Memory, event: Ints, start: int, horizon: int) -> int:
    """Take an action: it waits until all that it may refer to is known, unless that time has passed.

    Returns:
        Where its body begins if it is late and must act at once, else -1 - what is missing.
    """
    body = start + EVENT_HEAD
    if event[body + ACTION_TS] < horizon:
        event[body + ACTION_KIND] |= LATE
        m.regs[PASSED] = horizon
        return body
    status = 0
    if m.signatures[place_of_signature(m, event, body), 0]:
        m.regs[N_DUPLICATE_ACTIONS] += 1
    else:
        status = _wait(m, event, body, event[start + OFFSET_OF_EVENT], 0)
        if not status:
            sign(m, event, body)
    m.regs[N_ACTIONS] += not status
    return -1 - status


@inner
def _feeds(m: Memory, kind: int, s: int, value: int, domain: int) -> bool:
    """Whether an action of a kind, a value and a domain (0: unknown) feeds a sequence."""
    config = m.config
    if value < config[kind + KIND_FEEDS + s]:
        return False
    first, end = config[config[DOMAINS_AT] + s], config[config[DOMAINS_AT] + s + 1]
    for at in range(first, end):
        if config[at] == domain:
            return True
    return bool(first == end)


@inner
def _in_histories(m: Memory, user: int, kind: int, value: int, domain: int, item: int, ts: int) -> bool:
    fed = False
    for s in range(m.config[N_SEQUENCES]):
        if _feeds(m, kind, s, value, domain):
            fed = True
            if not holds(m, vector_at(m, user, SEQUENCES + s), item, ts):
                return False
    return fed


@inner
def act(m: Memory, out: Columns, words: Ints, body: int, offset: int, waiting: int) -> int:
    """Let an action find its request; label it, and enter the user's histories.

    Args:
        m, out: memory and rows.
        words, body, offset: where the action stands: in an event, or in its record.
        waiting: its record, whose step is the first in the heap; 0 if it comes late.
    """
    ts, item = words[body + ACTION_TS], words[body + ACTION_ITEM]
    user = look(m, USER, words[body + ACTION_USER])
    if user < 0:
        return WANT
    request = 0
    if words[body + ACTION_REQUEST]:
        entry = pending_of(m, user, PENDING_REQUEST, words[body + ACTION_REQUEST])
        if entry:
            request = look(m, REQUEST, m.words[entry + PENDING_OFFSET])
            if request >= 0 and m.words[request + HEAD + PAGE_TS] > ts:
                status = room(m, 0)
                if status:
                    return status
                if waiting:
                    pop(m)
                words[body + ACTION_TS] = m.words[request + HEAD + PAGE_TS]
                return _wait(m, words, body, offset, waiting)
    else:
        request = _latest_showing(m, user, item, ts)
    if request < 0:
        return WANT
    late = words[body + ACTION_KIND] & LATE
    kind = m.config[KINDS_AT] + (words[body + ACTION_KIND] - late) * (KIND_FEEDS + m.config[N_SEQUENCES])
    place = place_of(m, request, item, 0) if request else -1
    query = words[body + ACTION_QUERY]
    if not query and request:
        query = m.words[request + HEAD + PAGE_QUERY]
    status = room(m, growth(m, user))
    if not status and query and look(m, QUERY, query) < 0:
        status = WANT
    if not status and m.regs[HAS_ITEMS] and look(m, ITEM, item) < 0:
        status = WANT
    if not status and m.config[CORRECTS] and place >= 0:
        status = row_needs(m, out, request)
    if status:
        return status
    value = words[body + ACTION_VALUE]
    domain = _domain_of(m, words, body, ts, request, place) if m.config[kind + KIND_BY_DOMAIN] else 0
    if waiting:
        pop(m)
        drop(m, waiting)
        if not late:
            unsign(m, words, body)
    touch(m, user)
    if late and _in_histories(m, user, kind, value, domain, item, ts):
        m.regs[N_DUPLICATE_ACTIONS] += 1
        return 0
    if not late and m.config[kind + KIND_LABELS] != OUT_OF_REACH:
        _label_if_it_may(m, out, request, user, item, place, ts, value, m.config[kind + KIND_LABELS])
    m.regs[N_NO_DOMAIN] += m.config[kind + KIND_BY_DOMAIN] and not domain
    _remember(m, words, body, user, request, place, kind, domain, query)
    return 0


@inner
def _label_if_it_may(
    m: Memory, out: Columns, request: int, user: int, item: int, place: int, ts: int, value: int, least: int
) -> None:
    """Let an action that came in time label its request, or count why it does not; ``least`` is the value that labels."""
    if value < least:
        m.regs[N_NO_VALUE if value == NO_VALUE else N_LOW_VALUE] += 1
    elif place < 0 or ts > _window_end(m, request):
        m.regs[N_ORPHANS] += 1
    else:
        _label(m, out, request, user, item, place, ts)


@inner
def _remember(
    m: Memory, words: Ints, body: int, user: int, request: int, place: int, kind: int, domain: int, query: int
) -> None:
    """Enter an action into the user's histories, its category under its query, and its own query."""
    item, ts, value = words[body + ACTION_ITEM], words[body + ACTION_TS], words[body + ACTION_VALUE]
    category = words[body + ACTION_CATEGORY]
    if not category:
        category = _category_of(m, item, ts, request, place)
    for s in range(m.config[N_SEQUENCES]):
        if _feeds(m, kind, s, value, domain):
            vector = vector_at(m, user, SEQUENCES + s)
            insert_entry(m, vector, item, category, ts)
            length = m.config[LENGTHS + s]
            m.regs[N_TRUNCATED] += trim_sometimes(m, user, vector, ENTRY, length, m.regs[PASSED])
    if not query:
        return
    learned = find(m, QUERY, query)
    if value >= m.config[kind + KIND_LABELS] and category and learn_category(m, learned + HEAD, category):
        touch(m, learned)
    if words[body + ACTION_QUERY] and not words[body + ACTION_REQUEST]:
        remember_query(m, user, query, learned + HEAD, ts)


@inner
def _category_of(m: Memory, item: int, ts: int, request: int, place: int) -> int:
    """Return the category of an action's item: by metadata, else by its request."""
    words = m.words
    if m.regs[HAS_ITEMS]:
        version = version_at(m, find(m, ITEM, item), VERSION_FEATURES + m.config[N_FEATURES], ts)
        if version and words[version + VERSION_CATEGORY]:
            return int(words[version + VERSION_CATEGORY])
    return int(words[candidates_at(m, request) + words[request + HEAD + PAGE_N] + place]) if place >= 0 else 0


@inner
def _domain_of(m: Memory, words: Ints, body: int, ts: int, request: int, place: int) -> int:
    """Return the domain of an action: its own, else its item's by metadata, else its candidate's, else its page's; or 0."""
    domain = words[body + ACTION_DOMAIN]
    if not domain and m.regs[HAS_ITEMS]:
        version = version_at(m, find(m, ITEM, words[body + ACTION_ITEM]), VERSION_FEATURES + m.config[N_FEATURES], ts)
        domain = m.words[version + VERSION_DOMAIN] if version else domain
    if not domain and place >= 0:
        page = request + HEAD
        domain = m.words[candidates_at(m, request) + 2 * m.words[page + PAGE_N] + place]
        domain = domain if domain else m.words[page + PAGE_DOMAIN]
    return int(domain)


@inner
def _label(m: Memory, out: Columns, request: int, user: int, item: int, place: int, ts: int) -> None:
    """Label the candidate at ``place``, also where the page shows it again; once."""
    words = m.words
    positions = candidates_at(m, request) + 3 * words[request + HEAD + PAGE_N]
    if words[positions + place] & ACTED:
        return
    touch(m, request)
    m.regs[N_LABELS] += 1
    if m.config[CORRECTS]:
        # Nothing is fresh: the request's own row has carried it.
        add_row(m, out, request, user, place, words[request + HEAD + PAGE_TS], ts)
        m.regs[N_CORRECTIONS] += 1
    while place >= 0:
        words[positions + place] |= ACTED
        place = place_of(m, request, item, place + 1)
