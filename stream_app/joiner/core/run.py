"""The one sequence, event by event, as one kernel.

What depends on events that may still come waits in a heap in the order of (time, step, offset), and happens once the
sequence has passed its time + lateness:

========= ==================== =========================================================================================
step      time                 what happens
========= ==================== =========================================================================================
SEE       request.ts           the query's categories so far are kept with the request; the query enters the user's sequence
ACT       action's counted ts  the action finds its request: a label or a correction row; it enters the user's histories
LEAVE     due                  the request leaves as a row, with its history point in time
FORGET    ts + correction      under ``correct``: no further action can correct the request
========= ==================== =========================================================================================

At equal times SEE comes first, so that no query category of a request knows its own clicks, and rows of actions (topic 0)
leave before those of impressions (topic 1), as the order of rows (due, topic, offset) wants. A late action is one whose time
has been passed when it is applied: it feeds histories at once and labels nothing.
"""

from __future__ import annotations

from stream_app.joiner.scan.compiled import inner, kernel

from .actions import act, receive
from .arena import find, growth, look, room, touch
from .layout import (
    ACT,
    ACT_EVENT,
    ACTION,
    ACTION_ITEM,
    ACTION_QUERY,
    ACTION_USER,
    COMPLETE,
    CURSOR,
    DONE,
    EVENT_HEAD,
    HAS_ITEMS,
    HAS_USERS,
    HEAD,
    HEAP_SIZE,
    IGNORED,
    ITEM,
    ITEM_EVENT,
    LATENESS,
    LEAVE,
    N_ACTIONS,
    N_FEATURES,
    N_IGNORED,
    N_ITEMS,
    N_LATE,
    N_PAGE_FEATURES,
    N_REFUSED,
    N_USERS,
    OFFSET_BITS,
    OFFSET_OF_EVENT,
    OFFSETS,
    PAGE,
    PAGE_DUE,
    PAGE_FLAGS,
    PAGE_N,
    PAGE_QUERY,
    PAGE_TS,
    PAGE_USER,
    PAGE_WORDS,
    PASSED,
    PROFILE,
    QUERY,
    REQUEST,
    SEE,
    STEP,
    TYPE,
    UPDATE_KEY,
    UPDATE_VERSION,
    USER,
    USER_EVENT,
    VERSION_FEATURES,
    WANT,
    WINDOW,
    Columns,
    Ints,
    Memory,
)
from .pages import forget_page, leave, see, show
from .queue import pop
from .sequences import upsert


@inner
def _know(m: Memory, event: Ints, start: int, effective: int) -> int:
    """Take metadata: a new version of an item or a user."""
    body = start + EVENT_HEAD
    is_item = event[start + TYPE] == ITEM_EVENT
    width = VERSION_FEATURES + (m.config[N_FEATURES] if is_item else m.config[N_PAGE_FEATURES])
    record = look(m, ITEM if is_item else PROFILE, event[body + UPDATE_KEY])
    if record < 0:
        return WANT
    status = room(m, growth(m, record) + 4 * width)
    if status:
        return status
    version = event[body + UPDATE_VERSION]
    # Before it only late events ask for metadata; closing early may take one lateness more.
    oldest = effective - m.config[WINDOW] - 2 * m.config[LATENESS]
    at = upsert(m, record, width, version, oldest)
    if at:
        for i in range(width):
            m.words[at + i] = event[body + UPDATE_VERSION + i]
    touch(m, record)
    m.regs[HAS_ITEMS if is_item else HAS_USERS] = 1
    m.regs[N_ITEMS if is_item else N_USERS] += 1
    return 0


@inner
def _take_step(m: Memory, out: Columns) -> int:
    """Take the first step of the heap, unless it is an action's: that one is the caller's."""
    time, step, offset = m.heap[0, 0], m.heap[0, 1] >> OFFSET_BITS, m.heap[0, 1] & OFFSETS
    request = look(m, REQUEST, offset)
    if request < 0:
        return WANT
    if not request or (step == LEAVE and m.words[request + HEAD + PAGE_DUE] != time):
        pop(m)  # It left early, or was forgotten early.
        return 0
    if step == SEE:
        return see(m, request)
    return leave(m, out, request) if step == LEAVE else forget_page(m, request)


@kernel
def run(m: Memory, out: Columns, events: Ints, starts: Ints, effective: Ints, bound: int, refused: Ints) -> int:
    """Apply events from the register ``CURSOR`` on, and pass to ``bound``.

    Numba compiles what a function calls once more with it, so this one is flat, and calls each of the large ones in one place.

    Args:
        m: memory; where more is needed than there is, nothing of the step has happened, and it is taken again.
        out: takes the rows that leave.
        events, starts: of :mod:`.layout`; ``[N]``, where each begins.
        effective: ``[N]``, their times.
        bound: no later event has a lower effective time.
        refused: room for ``[N]``: indexes of events that become dead letters.

    Returns:
        Why it comes back: DONE, WANT, GROW, BLOCK or WIDEN.
    """
    regs, n = m.regs, len(starts)
    while True:
        at = regs[CURSOR]
        now = effective[at] if at < n else bound
        horizon = now - m.config[LATENESS]
        # First the steps whose time + lateness lies before what comes next.
        is_step = regs[HEAP_SIZE] > 0 and m.heap[0, 0] < horizon
        if not is_step and at >= n:
            return DONE
        start = 0 if is_step else starts[at]
        what = STEP if is_step else events[start + TYPE]
        status, acting, waiting, offset = 0, -1, 0, 0
        if is_step:
            regs[PASSED] = m.heap[0, 0]
            if m.heap[0, 1] >> OFFSET_BITS == ACT:
                offset = m.heap[0, 1] & OFFSETS
                waiting = look(m, ACTION, offset)
                acting = waiting + HEAD
                status = WANT if waiting < 0 else 0
            else:
                status = _take_step(m, out)
        elif what == ACT_EVENT:
            acting, offset = receive(m, events, start, horizon), events[start + OFFSET_OF_EVENT]
            if acting < 0:
                status = -1 - acting
        elif what == PAGE and events[start + EVENT_HEAD + PAGE_TS] >= horizon:
            status = show(m, events, start, now)
        elif what in (ITEM_EVENT, USER_EVENT):
            status = _know(m, events, start, now)
        elif what == IGNORED:
            regs[N_IGNORED] += 1
        else:  # A late page, or what could not be used.
            refused[regs[N_REFUSED]] = at
            regs[N_REFUSED] += 1
        if not status and acting >= 0:
            status = act(m, out, m.words if is_step else events, acting, offset, waiting)
            if not status and not is_step:
                regs[N_LATE] += 1
                regs[N_ACTIONS] += 1
        if status:
            return int(status)
        if not is_step:
            regs[CURSOR] = at + 1


@inner
def _miss(m: Memory, kind: int, key: int, missing: Ints, n: int) -> int:
    if key and n < len(missing) and not find(m, kind, key):
        missing[n, 0], missing[n, 1] = kind, key
        return n + 1
    return n


@kernel
def missing_of(m: Memory, events: Ints, starts: Ints, missing: Ints) -> int:
    """Find what events will ask for and memory does not hold, to be loaded at once; how much of it changes only speed.

    Args:
        m, events, starts: as of :func:`run`.
        missing: ``[>= n, 2]`` is filled: kind and key, some of them more than once.

    Returns:
        ``n``.
    """
    n = 0
    for start in starts:
        body, what = start + EVENT_HEAD, events[start + TYPE]
        if what == PAGE:
            n = _miss(m, USER, events[body + PAGE_USER], missing, n)
            n = _miss(m, QUERY, events[body + PAGE_QUERY], missing, n)
            if m.regs[HAS_USERS] and m.config[N_PAGE_FEATURES]:
                n = _miss(m, PROFILE, events[body + PAGE_USER], missing, n)
            if m.regs[HAS_ITEMS] and not events[body + PAGE_FLAGS] & COMPLETE:
                items = body + PAGE_WORDS + m.config[N_PAGE_FEATURES]
                for at in range(items, items + events[body + PAGE_N]):
                    n = _miss(m, ITEM, events[at], missing, n)
        elif what == ACT_EVENT:
            n = _miss(m, USER, events[body + ACTION_USER], missing, n)
            n = _miss(m, QUERY, events[body + ACTION_QUERY], missing, n)
            if m.regs[HAS_ITEMS]:
                n = _miss(m, ITEM, events[body + ACTION_ITEM], missing, n)
        elif what in (ITEM_EVENT, USER_EVENT):
            n = _miss(m, ITEM if what == ITEM_EVENT else PROFILE, events[body + UPDATE_KEY], missing, n)
    return n
