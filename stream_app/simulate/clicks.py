"""The probability of a click in closed form, and the clicks.

With user vector ``u`` (in the domain and at the time of the request), item vector ``v``, both of length 1::

    z = bias + affinity * <u, v> + match * [item in the query's category] + quality_item
        + repeat * [item in the category clicked last] - position * ln(1 + rank)
    truth = (1 - noise) * sigmoid(z) + noise * noise_rate

*Clicked last* is the user's newest click with a time before the request's, so a history tells it. Truth is rounded to six
digits before clicks are drawn from it: what is logged is exactly what was tossed.

Shapes: ``R`` requests of a chunk, ``C`` candidates of each, ``U`` users.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .draws import Purpose, uniforms
from .pages import Pages
from .world import World

__all__ = ["Clicker", "Clicks"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_REMEMBERED = 32
"""Clicks of a user, by request, that are looked through for the newest before a request: far more than can be under way."""


class Clicks(NamedTuple):
    """What happened on a chunk of requests."""

    truth: Floats
    """Probability of a click, ``[R, C]``."""
    clicked: Bools
    """``[R, C]``."""
    delay_ms: Ints
    """From the request to the click, from 1 to below the label window, ``[R, C]``; means something where clicked."""


class Clicker:
    """Draws clicks, chunk after chunk in order; keeps each user's newest clicks.

    Args:
        world: whom and what it is about.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        n_users = world.options.users
        self._last_ts = np.full((n_users, _REMEMBERED), np.iinfo(np.int64).max)
        self._last_category = np.full((n_users, _REMEMBERED), -1)
        self._n_clicks = np.zeros(n_users, np.int64)

    def click(self, pages: Pages) -> Clicks:
        """Return the clicks on the next chunk."""
        options = self._world.options
        first, n_requests = int(pages.n[0]), len(pages.n)
        logits = self._logits(pages)
        draws = uniforms(options.seed, Purpose.CLICK, first, n_requests, options.candidates)
        delay_ms = self._delays(first, n_requests)
        truth, clicked = np.empty_like(logits), np.empty(logits.shape, bool)
        # A user's later requests depend on the earlier ones' clicks: the k-th request of every user at a time.
        for rows in _turns(pages.user):
            category = self._world.item_category[pages.items[rows]]
            again = category == self._clicked_last(pages.user[rows], pages.ts[rows])[:, None]
            truth[rows] = self._truth(logits[rows] + options.repeat * again)
            clicked[rows] = draws[rows] < truth[rows]
            self._remember(pages.user[rows], clicked[rows], pages.ts[rows, None] + delay_ms[rows], category)
        return Clicks(truth, clicked, delay_ms)

    def _logits(self, pages: Pages) -> Floats:
        """Return all of z but the repeat, ``[R, C]``."""
        world, options = self._world, self._world.options
        angle = world.turned(pages.n)[:, None]
        before, after = (world.interest[pages.domain, turn, pages.user] for turn in range(2))
        interest = np.cos(angle) * before + np.sin(angle) * after  # [R, D]
        interest /= np.sqrt((interest * interest).sum(axis=-1, keepdims=True))
        # A sum and no matrix product: its order must not depend on how many requests a chunk has.
        affinity = (interest[:, None, :] * world.item_vector[pages.items]).sum(axis=-1)
        match = world.item_category[pages.items] == pages.query_category[:, None]
        rank = np.log1p(np.arange(options.candidates))
        logits: Floats = (
            options.bias
            + options.affinity * affinity
            + options.match * match
            + world.item_quality[pages.items]
            - options.position * rank
        )
        return logits

    def _truth(self, logits: Floats) -> Floats:
        options = self._world.options
        truth = (1 - options.noise) / (1 + np.exp(-logits)) + options.noise * options.noise_rate
        return np.round(truth, 6).clip(1e-6, 1 - 1e-6)

    def _delays(self, first: int, n_requests: int) -> Ints:
        """Return delays of an exponential distribution that is cut off at the label window, ``[R, C]``."""
        options = self._world.options
        draws = uniforms(options.seed, Purpose.DELAY, first, n_requests, options.candidates)
        longest = options.label_window_ms - 1
        inside = -np.expm1(-longest / options.click_delay_ms)
        delays = -options.click_delay_ms * np.log1p(-draws * inside)
        delay_ms: Ints = (1 + delays.astype(np.int64)).clip(max=longest)
        return delay_ms

    def _clicked_last(self, user: Ints, ts: Ints) -> Ints:
        """Return the category of the newest click before ``ts``, -1 if there is none, ``[R]``."""
        times = self._last_ts[user]
        newest = np.where(times < ts[:, None], times, -1).argmax(axis=1)[:, None]
        found = np.take_along_axis(self._last_category[user], newest, axis=1)[:, 0]
        return np.where(np.take_along_axis(times, newest, axis=1)[:, 0] < ts, found, -1)

    def _remember(self, user: Ints, clicked: Bools, ts: Ints, category: Ints) -> None:
        """Keep clicks of different users, rank by rank."""
        for rank in np.flatnonzero(clicked.any(axis=0)):
            rows = clicked[:, rank]
            who = user[rows]
            slot = self._n_clicks[who] % _REMEMBERED
            self._last_ts[who, slot] = ts[rows, rank]
            self._last_category[who, slot] = category[rows, rank]
            self._n_clicks[who] += 1


def _turns(user: Ints) -> list[Ints]:
    """Split rows so that each part has a user once, and a user's rows stay in order."""
    order = np.argsort(user, kind="stable")
    grouped = user[order]
    starts = np.flatnonzero(np.concatenate([[True], grouped[1:] != grouped[:-1]]))
    turn = np.empty(len(user), np.int64)
    turn[order] = np.arange(len(user)) - np.repeat(starts, np.diff(np.append(starts, len(user))))
    by_turn = np.argsort(turn, kind="stable")
    return np.split(by_turn, np.cumsum(np.bincount(turn))[:-1])
