"""What was on the page when an interaction happened, for logs that only know the interaction: candidates by recent popularity.

The one place where importers draw. On a log with drawn candidates a figure says how well a model tells the next item from
others that were in demand; it says nothing of what a page does to a click.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numba
import numpy as np

from .recent_keys import Int64s, RecentKeys, has_key, pair_key
from .source import ImportOptions, SourceError, Tally

__all__ = ["EVALUATION_FEATURES", "Clicks", "DrawOptions", "Drawn", "Shown"]

EVALUATION_FEATURES: Final = ("in_window", "clicked_before")
"""Tell requests whose clicked item the drawing gives away; for slices of the evaluation, never for a model."""

_DRAWS: Final = 256
_TRIES: Final = 20


class DrawOptions(ImportOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How candidates are drawn."""

    seed: int = 20171001
    """Of the draws."""
    window: int = 20_000
    """Candidates are drawn from so many clicks before a request."""
    warm_up: int = 200_000
    """First clicks, which are no requests."""
    n_negatives: int = 9
    """Candidates beside the clicked one."""
    remembered: int = 4_000_000
    """What a user clicked is not drawn for them, for so many of the newest clicks of all users; bounds the memory (at most 64
    bytes each)."""

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("warm_up", 0), ("n_negatives", 1), ("remembered", 1)):
            if getattr(self, name) < least:
                raise SourceError(f"{name} = {getattr(self, name)}: at least {least}")


class Clicks(NamedTuple):
    """Clicks in the order of time, ``[N]`` each; equal times are never torn apart."""

    users: Int64s
    items: Int64s
    times: Int64s
    """UTC ms."""
    shown: list[Any]
    """What stands for each item among the candidates: its id, with whatever belongs to it."""


class Shown(NamedTuple):
    """The page of one click."""

    request_id: str
    candidates: list[Any]
    in_window: bool
    """Whether the clicked item is among the clicks that candidates are drawn from, as all others are."""
    clicked_before: bool
    """Whether the user had clicked it before, as none of the others."""


class Drawn:
    """The clicked item and distinct ones of the last clicks, in an order that is drawn too.

    Every click after the warm-up of a user with an earlier click (by time) is a request. The others on its page come evenly
    from the ``window`` clicks strictly before it, none of them clicked by the user so far: what ``make_requests.py`` of the
    Globo data does. Memory holds the window and the newest ``remembered`` clicks; older ones are forgotten, so that their
    items may be drawn for the user again, and a user of whom all clicks are forgotten is new.

    Args:
        options: of the draws; one generator for the whole log, so a request depends on all before it.
        tally: counts clicks for which too few candidates are left.
    """

    def __init__(self, options: DrawOptions, tally: Tally) -> None:
        self._rng = np.random.default_rng(options.seed)
        self._window, self._warm_up, self._n_negatives = options.window, options.warm_up, options.n_negatives
        self._tally = tally
        self._items: Int64s = np.zeros(0, np.int64)
        self._shown: list[Any] = []
        self._n_clicks = 0
        self._n_requests = 0
        self._users = RecentKeys(options.remembered)
        self._pairs = RecentKeys(options.remembered)
        self._last_at: dict[int, int] = {}

    def finished(self) -> bool:
        """Whether no later click can be a request."""
        return False

    def of(self, clicks: Clicks) -> Iterator[Shown | None]:
        """Yield the page of each click, None where it is no request."""
        kept = len(self._items)
        self._items, self._shown = np.concatenate([self._items, clicks.items]), self._shown + clicks.shown
        ends = kept + np.searchsorted(clicks.times, clicks.times, side="left")
        offset = self._n_clicks - kept
        same_time: list[tuple[int, int, int]] = []
        columns = zip(clicks.users.tolist(), clicks.items.tolist(), ends.tolist(), strict=True)
        for at, (user, item, end) in enumerate(columns, kept):
            if same_time and same_time[-1][2] < end:
                self._move_on(same_time, offset)
                same_time = []
            pair, shown = pair_key(user, item), None
            if at + offset >= self._warm_up and pair_key(user, 0) in self._users:
                shown = self._page(user, at, pair in self._pairs, end, offset)
            yield shown
            self._pairs.add(pair)
            same_time.append((user, item, at))
        self._move_on(same_time, offset)
        self._n_clicks += len(clicks.users)
        self._items, self._shown = self._items[-self._window :].copy(), self._shown[-self._window :]
        self._forget()

    def _move_on(self, clicks: list[tuple[int, int, int]], offset: int) -> None:
        """Let the clicks of one time count for later ones."""
        for user, item, at in clicks:
            self._users.add(pair_key(user, 0))
            self._last_at[item] = at + offset

    def _forget(self) -> None:
        """Drop the last clicks of items that the window has left behind, now and then."""
        if len(self._last_at) > 4 * self._window:
            self._last_at = {item: at for item, at in self._last_at.items() if at >= self._n_clicks - self._window}

    def _page(self, user: int, at: int, clicked_before: bool, end: int, offset: int) -> Shown | None:
        start = max(0, end - self._window)
        chosen = self._draw(user, int(self._items[at]), start, end)
        if chosen is None:
            self._tally.left_out["clicks with too few candidates (history only)"] += 1
            return None
        places = [at, *chosen]
        order = self._rng.permutation(len(places)).tolist()
        self._n_requests += 1
        in_window = self._last_at.get(int(self._items[at]), -1) >= start + offset
        return Shown(str(self._n_requests - 1), [self._shown[places[i]] for i in order], in_window, clicked_before)

    def _draw(self, user: int, item: int, start: int, end: int) -> list[int] | None:
        chosen, n_chosen = np.zeros(self._n_negatives, np.int64), 0
        window, pairs = self._items[start:end], self._pairs
        for _ in range(_TRIES if len(window) else 0):
            draws = self._rng.integers(0, len(window), _DRAWS)
            n_chosen = _choose(draws, window, user, item, pairs.new, pairs.old, chosen, n_chosen)
            if n_chosen == len(chosen):
                return [start + place for place in chosen.tolist()]
        return None


@numba.njit(cache=True, nogil=True)
def _choose(
    draws: Int64s, window: Int64s, user: int, item: int, new: Int64s, old: Int64s, chosen: Int64s, n_chosen: int
) -> int:
    """Add the drawn places of the window to ``chosen`` that are other items, and new to the user; return how many there are."""
    for place in draws:
        code, known = window[place], False
        for i in range(n_chosen):
            known |= window[chosen[i]] == code
        if known or code == item:
            continue
        key = pair_key(user, code)
        if has_key(new, key) or has_key(old, key):
            continue
        chosen[n_chosen] = place
        n_chosen += 1
        if n_chosen == len(chosen):
            break
    return n_chosen
