"""The joiner of one partition: impressions x actions -> labelled requests. No I/O, no clock: a function of logs and marks.

The one sequence (:mod:`.merge`) is applied record by record. What depends on events that may still come waits in a queue in
the order of (time, step, offset), and happens once the sequence has passed its time + lateness:

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
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, USERS
from stream_app.topics import Record

from .blocks import Rows, generation_of
from .config import JoinConfig
from .dead_letters import DeadLetter, dead_letter
from .decode import Decoder, Kind, joiner_kinds
from .fill import filled, only_candidate
from .histories import ITEM, QUERY, TRIM_EVERY, User, holds, insert, insert_query, soft_limit, trim
from .labels import latest_showing, place_of
from .merge import NEVER, Input, Mark, Merged, merge
from .metadata import query_categories_with, upserted, version_at
from .pending import LEFT, NO_CATEGORIES, Event, ItemUpdate, Request, Unusable, UserUpdate, Waiting
from .store import Header, Position, State, StateError

# A step is one number, time | step | offset, so that the queue compares fast.
_OFFSET_BITS: Final = 46
_TIME_BITS: Final = _OFFSET_BITS + 2
_OFFSETS: Final = (1 << _OFFSET_BITS) - 1
SEE: Final = 0
ACT: Final = 1 << _OFFSET_BITS
LEAVE: Final = 2 << _OFFSET_BITS
FORGET: Final = 3 << _OFFSET_BITS
_STEPS: Final = FORGET


COUNTERS: Final = (
    "requests",
    "rows",
    "labels",
    "corrections",
    "actions",
    "late_actions",
    "orphan_actions",
    "duplicate_actions",
    "ignored_actions",
    "duplicate_impressions",
    "early_requests",
    "truncated",
    "items",
    "users",
)
"""What is counted, besides dead letters by reason."""


class ForeignRecordsError(ValueError):
    """Too many records lie in a partition that is not their key's: another partitioner wrote the topic."""


class Output(NamedTuple):
    """What one :meth:`Joiner.advance` gave."""

    blocks: list[SampleBlock]
    dead_letters: list[DeadLetter]


def inputs_of(topics: dict[str, int], partition: int) -> list[tuple[str, int]]:
    """Return the topic partitions that the joiner of ``partition`` reads, in the order of the merge.

    Args:
        topics: the log's topics and their partition counts; a raw topic that is not there is no input.
        partition: of the user-keyed topics.
    """
    keyed = [(topic, partition) for topic in (ACTIONS, IMPRESSIONS) if topic in topics]
    items = [(ITEMS, p) for p in range(topics.get(ITEMS, 0))]
    return keyed + items + ([(USERS, partition)] if USERS in topics else [])


def new_header(config: JoinConfig, n_partitions: int, inputs: Iterable[tuple[str, int]]) -> Header:
    """Return the header of a state that has seen nothing."""
    return Header(generation_of(config, n_partitions), [Position(topic, partition) for topic, partition in inputs])


class Joiner:
    """Joins one partition. Fed by whoever reads the inputs; see :func:`stream_app.join.join_log`.

    Args:
        config: options.
        partition: of the user-keyed topics.
        n_partitions: of the user-keyed topics.
        inputs: of :func:`inputs_of`.
        state: where to go on.

    Raises:
        StateError: the state is of another generation or of other inputs.
    """

    def __init__(
        self, config: JoinConfig, partition: int, n_partitions: int, inputs: Sequence[tuple[str, int]], state: State
    ) -> None:
        _check_header(state.header, new_header(config, n_partitions, inputs))
        self.config = config
        self.partition = partition
        self.state = state
        self.inputs = [Input(p.topic, p.partition, p.offset, p.high) for p in state.header.positions]
        self._n_partitions = n_partitions
        self._decoder = Decoder(config, partition, n_partitions)
        self._kinds: list[Kind] = list(joiner_kinds(config).values())
        self._lengths = [sequence.length for sequence in config.item_sequences.values()]
        self._corrects = config.policy == "correct"
        self._lateness = config.lateness_ms
        self._window = config.correction_window_ms if self._corrects else config.label_window_ms
        self._counters = state.header.counters
        for name in COUNTERS:
            self._counters.setdefault(name, 0)
        self._users, self._requests, self._waiting = state.users, state.requests, state.waiting
        self._touched_users = state.touched_users
        self._touched_requests, self._touched_waiting = state.touched_requests, state.touched_waiting
        self._new_requests, self._new_waiting = state.new_requests, state.new_waiting
        self._soft_limits = [soft_limit(length) * ITEM for length in self._lengths]
        self._soft_query_limit = soft_limit(config.query_length) * QUERY
        self._rows = Rows(config, partition, n_partitions, state.header.seq)
        self._blocks: list[SampleBlock] = []
        self._dead_letters: list[DeadLetter] = []
        self._signatures = {action.signature() for action in state.waiting_actions()}
        self._queue: list[int] = []
        """A heap of steps."""
        self._later: deque[int] = deque()
        """Steps a window after the ``ts`` of their requests; they come in order, so that the heap stays small."""
        self._load_steps()
        self._passed = NEVER
        """All events that are not late and older than this have been applied."""

    # -- what the owner calls

    def feed(self, source: Input, records: Sequence[Record]) -> None:
        """Give the next records of an input that has none left, from ``source.read`` on."""
        source.feed(records, *self._decoder.decode(source.topic, records))

    def newest(self, topic: str, records: Sequence[Record]) -> int:
        """Return the highest ``ts`` of the usable records of a topic, or :data:`~.merge.NEVER`."""
        return max(self._decoder.decode(topic, records)[1], default=NEVER)

    def mark(self, mark: Mark) -> None:
        """Give a mark, which must be durable by now."""
        for source in self.inputs:
            if (source.topic, source.partition) == (mark.topic, mark.partition):
                source.add_mark(mark)

    @property
    def n_pending(self) -> int:
        """Steps that wait for the sequence to pass."""
        return len(self._queue) + len(self._later)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the state's beginning."""
        return self._counters

    def advance(self) -> Output:
        """Apply all that can be applied; return the rows that left and the records that could not be used.

        Raises:
            ForeignRecordsError: more than ``max_foreign`` records belong to other partitions.
        """
        merged = merge(self.inputs)
        self._apply(merged)
        for source, n in merged.sources:
            source.take(n)
        self._pass(merged.bound)
        if len(self._rows):
            self._take_rows()
        header = self.state.header
        header.positions = [Position(s.topic, s.partition, s.position, s.high) for s in self.inputs]
        header.seq = self._rows.seq
        output = Output(self._blocks, self._dead_letters)
        self._blocks, self._dead_letters = [], []
        return output

    # -- records

    def _apply(self, merged: Merged) -> None:
        queue, later, lateness = self._queue, self._later, self._lateness
        index = -1
        for event, effective in zip(merged.events, merged.effective, strict=True):
            index += 1
            horizon = (effective - lateness) << _TIME_BITS
            if (queue and queue[0] < horizon) or (later and later[0] < horizon):
                self._pass(effective)
            if isinstance(event, Request):
                if event.ts < effective - lateness:
                    reason = f"ts {event.ts} is more than {lateness} ms before effective time {effective}"
                    self._refuse(*merged.source(index), Unusable("late", reason))
                else:
                    self._show(event, effective)
            elif isinstance(event, Waiting):
                self._receive(event, effective)
            elif isinstance(event, Unusable):
                self._refuse(*merged.source(index), event)
            else:
                self._know(event, effective)

    def _show(self, request: Request, effective: int) -> None:
        """Take an impression."""
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
        if len(pending) - user.n_closed > self.config.max_pending_per_user:
            self._close_oldest(user, effective)

    def _receive(self, action: Waiting, effective: int) -> None:
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

    def _know(self, event: Event, effective: int) -> None:
        """Take metadata, and count what needs no more."""
        state = self.state
        if isinstance(event, ItemUpdate):
            state.items[event.item] = upserted(state.item(event.item), event.version, self._oldest_asked(effective))
            state.touched_items.add(event.item)
            state.header.has_items = True
            self._counters["items"] += 1
        elif isinstance(event, UserUpdate):
            state.profiles[event.user] = upserted(state.profile(event.user), event.version, self._oldest_asked(effective))
            state.touched_profiles.add(event.user)
            state.header.has_users = True
            self._counters["users"] += 1
        else:
            self._counters["ignored_actions"] += 1

    def _refuse(self, source: Input, record: Record, unusable: Unusable) -> None:
        """Make a dead letter; records of shared inputs become one only in one partition."""
        if source.topic == ITEMS and source.partition % self._n_partitions != self.partition:
            return
        name = f"dead_letters.{unusable.code}"
        self._counters[name] = self._counters.get(name, 0) + 1
        self._dead_letters.append(dead_letter(source.topic, source.partition, record, unusable))
        if unusable.code == "foreign" and self._counters[name] > self.config.max_foreign:
            raise ForeignRecordsError(
                f"partition {source.partition} of topic {source.topic!r} has more than max_foreign = {self.config.max_foreign} "
                f"records whose key belongs to another of the {self._n_partitions} partitions (last: offset {record.offset}). "
                "Raw topics of users must be partitioned by murmur2 of the user id: write the topic with that partitioner"
            )

    # -- steps

    def _pass(self, effective: int) -> None:
        """Take all steps whose time + lateness lies before ``effective``."""
        queue, later, state = self._queue, self._later, self.state
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
            if action.offset < self.state.first_new_action:
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
            row = filled(only_candidate(request, place), self.state)
            self._counters["corrections"] += 1
            # Nothing is fresh: the request's own row has carried it.
            self._add_row(row, self.state.user(request.user), request.ts, action.ts, (0,), self.config.correction_weight)
        while place >= 0:
            request.acted = (*request.acted, place)
            place = place_of(action.item, request.items, place + 1)

    def _leave(self, request: Request) -> None:
        """Make a row of a request: labels, histories and metadata are what is known by now."""
        user = self._touch(request.user)
        row = request if request.complete and not request.request_features else filled(request, self.state)
        self._add_row(row, user, user.last_ts, request.due, () if self._corrects else request.acted, 1.0)
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
        if offset < self.state.first_new_request:
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

    # -- what the steps share

    def _wait(self, action: Waiting) -> None:
        offset = action.offset
        self._waiting[offset] = action
        if offset >= self.state.first_new_action:
            self._new_waiting.append(offset)
        else:
            self._touched_waiting.add(offset)
        heappush(self._queue, action.ts << _TIME_BITS | ACT | offset)

    def _window_end(self, request: Request) -> int:
        return request.ts + self._window if self._corrects else request.due

    def _add_row(self, request: Request, user: User, last_ts: int, due: int, labelled: tuple[int, ...], weight: float) -> None:
        if self._rows.add(request, user, last_ts, due, labelled, weight) >= self.config.block_requests:
            self._take_rows()

    def _take_rows(self) -> None:
        block = self._rows.take()
        self._counters["rows"] += len(block)
        self._blocks.append(block)

    def _remember_query(self, user: User, query: int, categories: tuple[int, int, int, int], ts: int) -> None:
        length = self.config.query_length
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
        if self.state.header.has_items:
            version = version_at(self.state.item(action.item), action.ts)
            if version is not None and version.category:
                return version.category
        if request is None or place < 0:
            return 0
        return int.from_bytes(request.categories[8 * place : 8 * place + 8], "little", signed=True)

    def _learn_categories(self, query: int, category: int) -> None:
        if query:
            state = self.state
            known = state.query_categories.get(query) or state.categories_of(query)
            if not known or known[0] != category:
                state.query_categories[query] = query_categories_with(known, category)
                state.touched_queries.add(query)

    def _categories_of(self, query: int) -> tuple[int, int, int, int]:
        state = self.state
        known = state.query_categories.get(query) or state.categories_of(query)
        first, second, third, fourth = (*known, *NO_CATEGORIES)[:4]
        return first, second, third, fourth

    def _oldest_asked(self, effective: int) -> int:
        """Return the ``ts`` before which only late events ask for metadata; closing early may take one lateness more."""
        return effective - self._window - 2 * self._lateness

    def _touch(self, key: int) -> User:
        user = self._users.get(key) or self.state.user(key)
        if not user.touched:
            user.touched = True
            self._touched_users[key] = user
        return user

    def _changed(self, request: Request) -> None:
        if request.offset < self.state.first_new_request:
            self._touched_requests.add(request.offset)

    def _pending(self, offset: int) -> Request:
        request = self._requests.get(offset) or self.state.request(offset)
        assert request is not None, "a user's pending requests are kept"
        return request

    def _load_steps(self) -> None:
        """Make the steps of the state's pending requests and waiting actions."""
        queue = self._queue
        queue.extend(action.ts << _TIME_BITS | ACT | action.offset for action in self.state.waiting_actions())
        later: list[int] = []
        for request in self.state.pending():
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


def _check_header(header: Header, expected: Header) -> None:
    if header.generation != expected.generation:
        raise StateError(
            f"the joiner's state is of generation {header.generation}, this config makes {expected.generation}: its options or "
            "the partition count have changed. Join into a new folder, or delete the state and the topic of samples"
        )
    known = [(position.topic, position.partition) for position in header.positions]
    wanted = [(position.topic, position.partition) for position in expected.positions]
    if known != wanted:
        raise StateError(
            f"the joiner's state has the inputs {known}, the log has {wanted}: a raw topic appeared or went since samples were "
            "joined, so that their order would not be the log's. Delete the state and the topic of samples, and join again"
        )
