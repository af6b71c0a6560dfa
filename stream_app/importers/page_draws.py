"""The loop of :mod:`.drawing`, one click after the other, compiled.

NumPy's generator draws the same numbers in here as outside (numba's promise, and a test's): a page is what a plain loop with
``rng.integers`` and ``rng.permutation`` makes of the same clicks.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from negative_queues.kernels import kernel

from .recent_keys import Int64s, Keys, holds, pair_key, remember

__all__ = ["PAGE", "TOO_FEW", "Draws", "draw_pages"]

PAGE: Final = 1
"""Status of a click that is a request."""
TOO_FEW: Final = 2
"""Status of one that has too few candidates to be a request."""
_DRAWS: Final = 256
_TRIES: Final = 20


class Draws(NamedTuple):
    """What is drawn for ``N`` clicks, with ``C`` candidates each."""

    status: npt.NDArray[np.int8]
    """``[N]``: 0 is no request."""
    places: Int64s
    """``[N, C]``: where in the window and the clicks its candidates are, in the order shown."""
    in_window: npt.NDArray[np.bool_]
    clicked_before: npt.NDArray[np.bool_]
    users: Keys
    pairs: Keys


@kernel
def draw_pages(
    rng: Any,
    users: Int64s,
    items: Int64s,
    ends: Int64s,
    first_request: int,
    window: int,
    n_negatives: int,
    known_users: Keys,
    known_pairs: Keys,
) -> Draws:
    """Draw the pages of ``N`` clicks.

    Args:
        rng: NumPy's generator; moves on.
        users: ``[N]``.
        items: ``[W + N]``: of the ``W`` clicks before, then of these.
        ends: ``[N]``: how many of ``items`` were clicked strictly earlier.
        first_request: clicks before it are none.
        window: candidates come from so many clicks.
        n_negatives: candidates beside the clicked one.
        known_users: users with a click; those of these clicks are remembered.
        known_pairs: (user, item) that were clicked, likewise.
    """
    n_clicks, kept, moved = len(users), len(items) - len(users), len(items) - len(users)
    status, places = np.zeros(n_clicks, np.int8), np.zeros((n_clicks, 1 + n_negatives), np.int64)
    in_window, clicked_before = np.zeros(n_clicks, np.bool_), np.zeros(n_clicks, np.bool_)
    last = _last_places(items, kept)
    chosen = np.zeros(1 + n_negatives, np.int64)
    for n in range(n_clicks):
        user, at, end = users[n], kept + n, ends[n]
        while moved < end:  # clicks of one time count for later ones only
            known_users = remember(known_users, pair_key(users[moved - kept], 0))
            last[_slot(last, items, items[moved])] = moved
            moved += 1
        pair = pair_key(user, items[at])
        if n >= first_request and holds(known_users, pair_key(user, 0)):
            start = max(0, end - window)
            clicked_before[n] = holds(known_pairs, pair)
            in_window[n] = last[_slot(last, items, items[at])] >= start
            status[n] = TOO_FEW
            if _choose(rng, items[start:end], user, items[at], known_pairs, chosen[1:]):
                chosen[0], chosen[1:] = at, chosen[1:] + start
                places[n] = rng.permutation(chosen)
                status[n] = PAGE
        known_pairs = remember(known_pairs, pair)
    while moved < len(items):
        known_users = remember(known_users, pair_key(users[moved - kept], 0))
        moved += 1
    return Draws(status, places, in_window, clicked_before, known_users, known_pairs)


@kernel
def _choose(rng: Any, window: Int64s, user: int, item: int, pairs: Keys, chosen: Int64s) -> bool:
    """Put places of the window into ``chosen`` that are different items, other ones, and new to the user; False: too few."""
    n_chosen = 0
    for _ in range(_TRIES if len(window) else 0):
        for place in rng.integers(0, len(window), _DRAWS):
            code, known = window[place], False
            for i in range(n_chosen):
                known |= window[chosen[i]] == code
            if known or code == item or holds(pairs, pair_key(user, code)):
                continue
            chosen[n_chosen] = place
            n_chosen += 1
            if n_chosen == len(chosen):
                return True
    return False


@kernel
def _last_places(items: Int64s, n_items: int) -> Int64s:
    """Return a table (linear probing) of where each of the first items stands last; -1 is empty."""
    size = 16
    while size < 2 * len(items):
        size *= 2
    last = np.full(size, -1, np.int64)
    for at in range(n_items):
        last[_slot(last, items, items[at])] = at
    return last


@kernel
def _slot(last: Int64s, items: Int64s, item: int) -> int:
    """Return where an item is in a table of :func:`_last_places`, or would be."""
    mask = len(last) - 1
    slot: int = pair_key(0, item) & mask
    while last[slot] >= 0 and items[last[slot]] != item:
        slot = (slot + 1) & mask
    return slot
