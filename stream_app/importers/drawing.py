"""What was on the page when an interaction happened, for logs that only know the interaction: candidates by recent popularity.

The one place where importers draw. On a log with drawn candidates a figure says how well a model tells the next item from
others that were in demand; it says nothing of what a page does to a click.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from .page_draws import PAGE, TOO_FEW, draw_pages
from .recent_keys import Int64s, RecentKeys
from .source import ImportOptions, SourceError, Tally

__all__ = ["EVALUATION_FEATURES", "Clicks", "DrawOptions", "Drawn", "Pages", "Shown"]

EVALUATION_FEATURES: Final = ("in_window", "clicked_before")
"""Tell requests whose clicked item the drawing gives away; for slices of the evaluation, never for a model."""

_TOO_FEW_LEFT: Final = "clicks with too few candidates (history only)"


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
    """What a user clicked is not drawn for them, for so many of the newest clicks of all users; bounds the memory: 32 to 64
    bytes each (134 MB for the default), half of that where the file has no more rows."""

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
    shown: Any
    """``[N]`` or ``[N, K]`` of objects: what stands for each item among the candidates, its id and whatever belongs to it."""


class Shown(NamedTuple):
    """The page of one click."""

    request_id: str
    candidates: list[Any]
    in_window: bool
    """Whether the clicked item is among the clicks that candidates are drawn from, as all others are."""
    clicked_before: bool
    """Whether the user had clicked it before, as none of the others."""


class Pages(NamedTuple):
    """The pages of ``N`` clicks as columns; ``P`` of them are requests, in their order."""

    of_click: Int64s
    """``[P]``: which clicks."""
    shown: Any
    """``[P, 1 + n_negatives]`` or ``[P, 1 + n_negatives, K]`` of objects: what stands for each candidate."""
    in_window: list[bool]
    clicked_before: list[bool]
    first_id: int
    """Requests before these: their ids are counted."""
    too_few: Int64s
    """Clicks that were to be requests and are none, as too few candidates are left."""


class Drawn:
    """The clicked item and distinct ones of the last clicks, in an order that is drawn too.

    Every click after the warm-up of a user with an earlier click (by time) is a request. The others on its page come evenly
    from the ``window`` clicks strictly before it, none of them clicked by the user so far: what ``make_requests.py`` of the
    Globo data does. Memory holds the window and the newest ``remembered`` clicks; older ones are forgotten, so that their
    items may be drawn for the user again, and a user of whom all clicks are forgotten is new.

    Args:
        options: of the draws; one generator for the whole log, so a request depends on all before it.
        tally: counts clicks for which too few candidates are left.
        n_clicks: of the whole log at most: memory is taken for as many at once, and does not grow with them then.
    """

    def __init__(self, options: DrawOptions, tally: Tally, n_clicks: int | None = None) -> None:
        self._rng = np.random.default_rng(options.seed)
        self._window, self._warm_up, self._n_negatives = options.window, options.warm_up, options.n_negatives
        self._tally = tally
        self._items: Int64s = np.zeros(0, np.int64)
        self._shown: Any = None
        self._n_clicks = 0
        self._n_requests = 0
        self._users = RecentKeys(options.remembered)
        self._pairs = RecentKeys(options.remembered, n_clicks)

    def finished(self) -> bool:
        """Whether no later click can be a request."""
        return False

    def of(self, clicks: Clicks) -> Iterator[Shown | None]:
        """Yield the page of each click, None where it is no request."""
        found = self.pages(clicks)
        pages: dict[int, Shown | None] = dict.fromkeys(found.too_few.tolist())
        columns = zip(found.of_click.tolist(), found.shown.tolist(), found.in_window, found.clicked_before, strict=True)
        for n, (at, shown, in_window, clicked_before) in enumerate(columns, found.first_id):
            pages[at] = Shown(str(n), shown, in_window, clicked_before)
        for at in range(len(clicks.users)):
            page = pages.get(at)
            if page is None and at in pages:
                self.count_too_few(1)
            yield page

    def pages(self, clicks: Clicks) -> Pages:
        """Draw the pages of clicks; the caller counts those with too few candidates (:meth:`count_too_few`)."""
        kept = len(self._items)
        self._items = np.concatenate([self._items, clicks.items])
        shown = np.asarray(clicks.shown, object)
        self._shown = shown if self._shown is None else np.concatenate([self._shown, shown])
        ends = kept + np.searchsorted(clicks.times, clicks.times, side="left")
        first_request = max(0, self._warm_up - self._n_clicks)
        drawn = draw_pages(
            self._rng, clicks.users, self._items, ends, first_request, self._window, self._n_negatives, self._users.keys,
            self._pairs.keys,
        )  # fmt: skip
        self._users.keys, self._pairs.keys = drawn.users, drawn.pairs
        requests = np.flatnonzero(drawn.status == PAGE)
        found = Pages(
            requests,
            self._shown[drawn.places[requests]],
            drawn.in_window[requests].tolist(),
            drawn.clicked_before[requests].tolist(),
            self._n_requests,
            np.flatnonzero(drawn.status == TOO_FEW),
        )
        self._n_requests += len(requests)
        self._n_clicks += len(clicks.users)
        self._items, self._shown = self._items[-self._window :].copy(), self._shown[-self._window :].copy()
        return found

    def count_too_few(self, n_clicks: int) -> None:
        """Count clicks that are no requests as too few candidates are left."""
        if n_clicks:
            self._tally.left_out[_TOO_FEW_LEFT] += n_clicks
