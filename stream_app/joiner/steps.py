"""What the joiner does with a user's events, some at once and some when the sequence has passed a time.

What depends on events that may still come waits in a queue in the order of (time, step, offset), and happens once the
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

from array import array
from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final

from .blocks import Rows
from .config import JoinConfig
from .decode import Kind, joiner_kinds
from .fill import filled, only_candidate
from .histories import ITEM, QUERY, TRIM_EVERY, User, holds, insert, insert_query, soft_limit, trim
from .labels import latest_showing, place_of
from .merge import NEVER
from .metadata import query_categories_with, version_at
from .pending import LEFT, NO_CATEGORIES, Request, Waiting
from .store import State

# A step is one number, time | step | offset, so that the queue compares fast.
_OFFSET_BITS: Final = 46
_TIME_BITS: Final = _OFFSET_BITS + 2
_OFFSETS: Final = (1 << _OFFSET_BITS) - 1
SEE: Final = 0
ACT: Final = 1 << _OFFSET_BITS
LEAVE: Final = 2 << _OFFSET_BITS
FORGET: Final = 3 << _OFFSET_BITS
_STEPS: Final = FORGET


class Steps:
    """Pending requests and waiting actions of one partition.

    Args:
        config: options.
        state: holds users, requests and actions.
        rows: takes the rows that leave.
    """

    def __init__(self, config: JoinConfig, state: State, rows: Rows) -> None:
        self._config = config
        self._state = state
        self._rows = rows
        self._counters = state.header.counters
        self._users, self._touched_users = state.users, state.touched_users
        self._requests, self._new_requests, self._touched_requests = state.requests, state.new_requests, state.touched_requests
        self._waiting, self._new_waiting, self._touched_waiting = state.waiting, state.new_waiting, state.touched_waiting
        self._kinds: list[Kind] = list(joiner_kinds(config).values())
        self._lengths = [sequence.length for sequence in config.item_sequences.values()]
        self._soft_limits = [soft_limit(length) * ITEM for length in self._lengths]
        self._soft_query_limit = soft_limit(config.query_length) * QUERY
        self._corrects = config.policy == "correct"
        self._lateness = config.lateness_ms
        self._window = config.correction_window_ms if self._corrects else config.label_window_ms
        self._signatures = {action.signature() for action in state.waiting_actions()}
        """Of all waiting actions."""
        self._passed = NEVER
        """All events that are not late and older than this have been applied."""
        self._queue: list[int] = []
        """A heap of steps."""
        self._later: deque[int] = deque()
        """Steps a window after the ``ts`` of their requests; they come in order, so that the heap stays small."""
        self._load()

    def __len__(self) -> int:
        return len(self._queue) + len(self._later)

    def show(self, request: Request, effective: int) -> None:
        """Take an impression."""
        user = self._users.get(request.user)
        if user is None or not user.touched:
            user = self._touch(request.user)
        pending = user.pending
        if request.request in pending:
            self._counters["duplicate_impressions"] += 1
            return
        self._counters["requests"] += 1
        offset = request.offset
        pending[request.request] = offset
        self._requests[offset] = request
        self._new_requests.append(offset)
        heappush(self._queue, request.ts << _TIME_BITS | SEE | offset)
        if len(pending) - user.n_closed > self._config.max_pending_per_user:
            self._close_oldest(user, effective)

    def receive(self, action: Waiting, effective: int) -> None:
        """Take an action: it waits until all that it may refer to is known, unless that time has passed."""
        self._counters["actions"] += 1
        if action.ts < effective - self._lateness:
            self._counters["late_actions"] += 1
            action.late = True
            self._passed = effective - self._lateness
            self._act(action)
            return
        signature = action.signature()
        if signature in self._signatures:
            self._counters["duplicate_actions"] += 1
            return
        self._signatures.add(signature)
        self._wait(action)

    def pass_to(self, effective: int) -> None:
        """Take all steps whose time + lateness lies before ``effective``."""
        queue, later, state = self._queue, self._later, self._state
        horizon = (effective - self._lateness) << _TIME_BITS
        while True:
            if later and (not queue or later[0] < queue[0]):
                if later[0] >= horizon:
                    return
                packed = later.popleft()
            elif queue and queue[0] < horizon:
                packed = heappop(queue)
            else:
                return
            time, step, offset = packed >> _TIME_BITS, packed & _STEPS, packed & _OFFSETS
            self._passed = time
            if step == ACT:
                action = self._waiting.get(offset) or state.action(offset)
                assert action is not None, "an action waits until its step"
                self._act(action)
                continue
            request = self._requests.get(offset) or state.request(offset)
            if request is None:
                continue  # It left early, or was forgotten early.
            if step == SEE:
                self._see(request)
            elif step == FORGET:
                self._drop(request, self._touch(request.user))
            elif request.due == time:
                self._leave(request)

    def _see(self, request: Request) -> None:
        """Keep the query's categories as they are now, and enter the query into the user's sequence."""
        request.seen = True
        self._changed(request)
        if request.query:
            if request.query_categories == NO_CATEGORIES:
                request.query_categories = self._categories_of(request.query)
            self._remember_query(self._touch(request.user), request.query, request.query_categories, request.ts)
        step = request.due << _TIME_BITS | LEAVE | request.offset
        if self._corrects or request.closed:
            heappush(self._queue, step)
        else:
            self._later.append(step)

    def _act(self, action: Waiting) -> None:
        """Let an action find its request; label it, and enter the user's histories."""
        user = self._users.get(action.user)
        if user is None or not user.touched:
            user = self._touch(action.user)
        request: Request | None = None
        if action.request:
            offset = user.pending.get(action.request)
            if offset is not None:
                request = self._pending(offset)
                if request.ts > action.ts:
                    action.ts = request.ts
                    self._wait(action)
                    return
        elif user.pending:
            request = latest_showing(user, action, self._pending, self._window_end)
        kind = self._kinds[action.kind]
        if self._waiting.pop(action.offset, None) is not None:
            if action.offset < self._state.first_new_action:
                self._touched_waiting.add(action.offset)
            self._signatures.discard(action.signature())
        if action.late and _in_histories(action, kind, user):
            self._counters["duplicate_actions"] += 1
            return
        place = -1 if request is None else place_of(action.item, request.items)
        if kind.labels and not action.late:
            if place < 0 or request is None or action.ts > self._window_end(request):
                self._counters["orphan_actions"] += 1
            else:
                self._label(request, action, place)
        category = action.category or self._category_of(action, request, place)
        for at in kind.sequences:
            entries = user.sequences[at]
            insert(entries, (action.item, category, action.ts))
            if len(entries) > self._soft_limits[at]:
                self._trim(user, entries, ITEM, self._lengths[at])
        if kind.labels and category:
            self._learn_categories(action.query or (0 if request is None else request.query), category)
        if action.query and not action.request:
            self._remember_query(user, action.query, self._categories_of(action.query), action.ts)

    def _label(self, request: Request, action: Waiting, place: int) -> None:
        """Label the candidate at ``place``, also where the page shows it again; once."""
        if place in request.acted:
            return
        self._changed(request)
        self._counters["labels"] += 1
        if self._corrects:
            row = filled(only_candidate(request, place), self._state)
            self._counters["corrections"] += 1
            # Nothing is fresh: the request's own row has carried it.
            self._rows.add(row, self._state.user(request.user), request.ts, action.ts, (0,), self._config.correction_weight)
        while place >= 0:
            request.acted = (*request.acted, place)
            place = place_of(action.item, request.items, place + 1)

    def _leave(self, request: Request) -> None:
        """Make a row of a request: labels, histories and metadata are what is known by now."""
        user = self._users.get(request.user)
        if user is None or not user.touched:
            user = self._touch(request.user)
        row = request if request.complete and not request.request_features else filled(request, self._state)
        self._rows.add(row, user, user.last_ts, request.due, () if self._corrects else request.acted, 1.0)
        if request.ts > user.last_ts:
            user.last_ts = request.ts
        if not self._corrects or request.closed:
            self._drop(request, user)
            return
        request.phase = LEFT
        self._changed(request)
        self._later.append(request.ts + self._window << _TIME_BITS | FORGET | request.offset)

    def _drop(self, request: Request, user: User) -> None:
        """Forget a request: no action can refer to it any more."""
        del user.pending[request.request]
        user.n_closed -= request.closed
        offset = request.offset
        del self._requests[offset]
        if offset < self._state.first_new_request:
            self._touched_requests.add(offset)

    def _close_oldest(self, user: User, effective: int) -> None:
        """Let the user's oldest request leave early: what is known of its labels by now is what it gets."""
        self._counters["early_requests"] += 1
        still_open = [request for request in map(self._pending, user.pending.values()) if not request.closed]
        request = min(still_open, key=lambda request: (request.ts, request.offset))
        if request.phase == LEFT:
            self._drop(request, user)
            return
        user.n_closed += 1
        request.closed = True
        self._changed(request)
        if effective < request.due:
            request.due = effective
            if request.seen:
                heappush(self._queue, effective << _TIME_BITS | LEAVE | request.offset)

    def _wait(self, action: Waiting) -> None:
        offset = action.offset
        self._waiting[offset] = action
        if offset >= self._state.first_new_action:
            self._new_waiting.append(offset)
        else:
            self._touched_waiting.add(offset)
        heappush(self._queue, action.ts << _TIME_BITS | ACT | offset)

    def _window_end(self, request: Request) -> int:
        return request.ts + self._window if self._corrects else request.due

    def _remember_query(self, user: User, query: int, categories: tuple[int, int, int, int], ts: int) -> None:
        length = self._config.query_length
        if length:
            insert_query(user.queries, (query, *categories, ts))
            if len(user.queries) > self._soft_query_limit:
                self._trim(user, user.queries, QUERY, length)

    def _trim(self, user: User, entries: array[int], width: int, length: int) -> None:
        """Drop entries that no request sees any more; not at each entry, and when is a function of the entries alone."""
        if len(entries) // width % TRIM_EVERY == 0:
            oldest_needed = min([self._passed, *(self._pending(offset).ts for offset in user.pending.values())])
            self._counters["truncated"] += trim(entries, width, length, oldest_needed)

    def _category_of(self, action: Waiting, request: Request | None, place: int) -> int:
        if self._state.header.has_items:
            version = version_at(self._state.item(action.item), action.ts)
            if version is not None and version.category:
                return version.category
        if request is None or place < 0:
            return 0
        return int.from_bytes(request.categories[8 * place : 8 * place + 8], "little", signed=True)

    def _learn_categories(self, query: int, category: int) -> None:
        if query:
            state = self._state
            known = state.query_categories.get(query) or state.categories_of(query)
            if not known or known[0] != category:
                state.query_categories[query] = query_categories_with(known, category)
                state.touched_queries.add(query)

    def _categories_of(self, query: int) -> tuple[int, int, int, int]:
        state = self._state
        known = state.query_categories.get(query) or state.categories_of(query)
        first, second, third, fourth = (*known, *NO_CATEGORIES)[:4]
        return first, second, third, fourth

    def oldest_asked(self, effective: int) -> int:
        """Return the ``ts`` before which only late events ask for metadata; closing early may take one lateness more."""
        return effective - self._window - 2 * self._lateness

    def _touch(self, key: int) -> User:
        user = self._users.get(key) or self._state.user(key)
        if not user.touched:
            user.touched = True
            self._touched_users[key] = user
        return user

    def _changed(self, request: Request) -> None:
        if request.offset < self._state.first_new_request:
            self._touched_requests.add(request.offset)

    def _pending(self, offset: int) -> Request:
        request = self._requests.get(offset) or self._state.request(offset)
        assert request is not None, "a user's pending requests are kept"
        return request

    def _load(self) -> None:
        """Make the steps of the state's pending requests and waiting actions."""
        queue = self._queue
        queue.extend(action.ts << _TIME_BITS | ACT | action.offset for action in self._state.waiting_actions())
        later: list[int] = []
        for request in self._state.pending():
            if not request.seen:
                queue.append(request.ts << _TIME_BITS | SEE | request.offset)
            elif request.phase == LEFT:
                later.append(request.ts + self._window << _TIME_BITS | FORGET | request.offset)
            else:
                leave = request.due << _TIME_BITS | LEAVE | request.offset
                (queue if self._corrects or request.closed else later).append(leave)
        heapify(queue)
        self._later.extend(sorted(later))


def _in_histories(action: Waiting, kind: Kind, user: User) -> bool:
    sequences = kind.sequences
    return bool(sequences) and all(holds(user.sequences[at], action.item, action.ts) for at in sequences)
