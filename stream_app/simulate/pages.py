"""Who looks, when, and at what: requests and their candidates, as a function of the request's number.

Shapes: ``R`` requests of a chunk, ``C`` candidates of each, ``P`` proposals that they are taken from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .draws import Purpose, uniforms
from .world import FAVOURITES, World

__all__ = ["Pages", "make_pages"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PROPOSALS = 2
"""Per candidate: what is proposed twice is shown once."""
_FROM_TOPIC, _FROM_FAVOURITES, _FROM_POPULAR = 0.45, 0.65, 0.9
"""Shares (cumulative) of candidates by where they come from; the rest are among the newest."""
_NEWEST = 100


class Pages(NamedTuple):
    """A chunk of requests."""

    n: Ints
    """Request numbers, ``[R]``."""
    ts: Ints
    """UTC ms, ``[R]``; does not fall."""
    user: Ints
    """``[R]``."""
    query: Ints
    """``[R]``, -1 without one."""
    query_category: Ints
    """``[R]``, -1 without a query."""
    items: Ints
    """Candidates in the order shown, ``[R, C]``; distinct in a row."""


def make_pages(world: World, first: int, n_requests: int) -> Pages:
    """Return requests ``first`` to ``first + n_requests``."""
    options = world.options
    n = np.arange(first, first + n_requests)
    draws = uniforms(options.seed, Purpose.REQUEST, first, n_requests, 8)
    user, topic = _sessions(world, n)
    query = np.full(n_requests, -1)
    asks = draws[:, 1] < options.query_share
    # Of a category's queries the first are asked more often: the density falls as 1 / sqrt(rank).
    per_category = (options.queries - 1 - topic) // options.categories + 1
    query[asks] = (topic + options.categories * (per_category * draws[:, 2] ** 2).astype(np.int64))[asks]
    ts = options.start_ts + ((n + draws[:, 0]) * (1_000.0 / options.rate)).astype(np.int64)
    items = _candidates(world, n, user, topic, draws[:, 3])
    return Pages(n, ts, user, query, np.where(asks, topic, -1), items)


def _sessions(world: World, n: Ints) -> tuple[Ints, Ints]:
    """Return user and topic of requests, ``[R]`` each: request n is of the session that runs in lane n modulo concurrency."""
    options = world.options
    lane, turn = n % options.concurrency, n // options.concurrency
    session = (turn + lane % options.session_requests) // options.session_requests * options.concurrency + lane
    low = int(session.min())
    draws = uniforms(options.seed, Purpose.SESSION, low, int(session.max()) - low + 1, 4)[session - low]
    user = np.searchsorted(world.activity_sum, draws[:, 0], side="right").clip(max=options.users - 1)
    own = _favourite(world, user, draws[:, 1], n)
    off_topic = draws[:, 2] < options.off_topic
    return user, np.where(off_topic, (draws[:, 3] * options.categories).astype(np.int64), own)


def _favourite(world: World, user: Ints, uniform: Floats, n: Ints) -> Ints:
    """Draw one of the users' favourite categories as of requests ``n``."""
    drifted = np.sin(world.turned(n)) ** 2
    is_new = uniform < drifted
    # What is left of the number after this choice is uniform again.
    rest = np.where(
        is_new, uniform / np.where(drifted > 0, drifted, 1.0), (uniform - drifted) / np.where(drifted < 1, 1 - drifted, 1.0)
    )
    weights = FAVOURITES[: world.favourites.shape[-1]]
    rank = np.searchsorted(np.cumsum(weights / weights.sum()), rest, side="right").clip(max=len(weights) - 1)
    found: Ints = world.favourites[is_new.astype(np.int64), user, rank]
    return found


def _candidates(world: World, n: Ints, user: Ints, topic: Ints, spare: Floats) -> Ints:
    options = world.options
    n_requests, width = len(n), _PROPOSALS * options.candidates
    draws = uniforms(options.seed, Purpose.PROPOSAL, int(n[0]), n_requests, 3 * width)
    source, which, extra = (draws[:, i * width : (i + 1) * width].ravel() for i in range(3))  # [R * P] each
    row = np.repeat(np.arange(n_requests), width)
    at, arrived = n[row], world.arrived(n)[row]
    proposed = np.empty(n_requests * width, np.int64)
    by_category = source < _FROM_FAVOURITES
    category = np.where(source < _FROM_TOPIC, topic[row], _favourite(world, user[row], extra, at))
    by_category &= world.arrived_in(category, at) > 0
    proposed[by_category] = _of_category(world, category[by_category], at[by_category], which[by_category])
    popular = ~by_category & (source < _FROM_POPULAR)
    target = which * world.arrived_sum[arrived]
    ranked = np.minimum(np.searchsorted(world.arrived_sum, target, side="right") - 1, arrived - 1)
    newest = arrived - 1 - (which * np.minimum(arrived, _NEWEST)).astype(np.int64)
    others = world.by_arrival[np.where(popular, ranked, newest)]
    proposed[~by_category] = others[~by_category]
    return _distinct(world, proposed.reshape(n_requests, width), world.arrived(n), spare)


def _of_category(world: World, category: Ints, n: Ints, uniform: Floats) -> Ints:
    """Draw items of a category by popularity, among those that are there."""
    low = world.category_start[category]
    high = low + world.arrived_in(category, n)
    sums = world.popularity_sum
    target = sums[low] + uniform * (sums[high] - sums[low])
    found: Ints = (np.searchsorted(sums, target, side="right") - 1).clip(low, high - 1)
    return found


def _distinct(world: World, proposed: Ints, arrived: Ints, spare: Floats) -> Ints:
    """Take the first C different items of each row; a row that has fewer is filled up from a random place on."""
    n_shown = world.options.candidates
    order = np.argsort(proposed, axis=1, kind="stable")
    in_order = np.take_along_axis(proposed, order, axis=1)
    repeated = np.zeros(proposed.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    first = np.argsort(repeated, axis=1, kind="stable")[:, :n_shown]
    items: Ints = np.take_along_axis(proposed, first, axis=1)
    for row in np.flatnonzero((~repeated).sum(axis=1) < n_shown):
        shown = dict.fromkeys(items[row].tolist())
        at = int(spare[row] * arrived[row])
        while len(shown) < n_shown:
            shown[int(world.by_arrival[at % arrived[row]])] = None
            at += 1
        items[row] = list(shown)
    return items
