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
    domain: Ints
    """``[R]``; 0 where there is one domain."""
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
    user, domain, topic = _sessions(world, n)
    query = np.full(n_requests, -1)
    asks = draws[:, 1] < options.query_share
    # Of a category's queries the first are asked more often: the density falls as 1 / sqrt(rank).
    per_category = (options.domains * options.queries - 1 - topic) // world.n_categories + 1
    query[asks] = (topic + world.n_categories * (per_category * draws[:, 2] ** 2).astype(np.int64))[asks]
    ts = options.start_ts + ((n + draws[:, 0]) * (1_000.0 / options.rate)).astype(np.int64)
    items = _candidates(world, n, user, topic, draws[:, 3])
    return Pages(n, ts, user, domain, query, np.where(asks, topic, -1), items)


def _sessions(world: World, n: Ints) -> tuple[Ints, Ints, Ints]:
    """Return user, domain and topic of requests, ``[R]`` each: n is of the session that runs in lane n modulo concurrency."""
    options = world.options
    lane, turn = n % options.concurrency, n // options.concurrency
    session = (turn + lane % options.session_requests) // options.session_requests * options.concurrency + lane
    low = int(session.min())
    draws = uniforms(options.seed, Purpose.SESSION, low, int(session.max()) - low + 1, 4)[session - low]
    user = np.searchsorted(world.activity_sum, draws[:, 0], side="right").clip(max=options.users - 1)
    domain = _domains(world, session, user)
    own = _favourite(world, domain, user, draws[:, 1], n)
    off_topic = draws[:, 2] < options.off_topic
    anything = (draws[:, 3] * options.categories).astype(np.int64) + domain * options.categories
    return user, domain, np.where(off_topic, anything, own)


def _domains(world: World, session: Ints, user: Ints) -> Ints:
    """Return domains of requests, ``[R]``: products (1), unless the user has come to videos and wants some."""
    options = world.options
    if options.domains == 1:
        return np.zeros_like(session)
    low = int(session.min())
    draws = uniforms(options.seed, Purpose.DOMAIN, low, int(session.max()) - low + 1, 1)[session - low, 0]
    begins = session // options.concurrency * options.concurrency * options.session_requests
    wants = (draws < options.video_share) & (begins >= world.video_from[user])
    domain: Ints = 1 - wants.astype(np.int64)
    return domain


def _favourite(world: World, domain: Ints, user: Ints, uniform: Floats, n: Ints) -> Ints:
    """Draw one of the users' favourite categories as of requests ``n``."""
    drifted = np.sin(world.turned(n)) ** 2
    is_new = uniform < drifted
    # What is left of the number after this choice is uniform again.
    rest = np.where(
        is_new, uniform / np.where(drifted > 0, drifted, 1.0), (uniform - drifted) / np.where(drifted < 1, 1 - drifted, 1.0)
    )
    weights = FAVOURITES[: world.favourites.shape[-1]]
    rank = np.searchsorted(np.cumsum(weights / weights.sum()), rest, side="right").clip(max=len(weights) - 1)
    found: Ints = world.favourites[domain, is_new.astype(np.int64), user, rank]
    return found


def _candidates(world: World, n: Ints, user: Ints, topic: Ints, spare: Floats) -> Ints:
    options = world.options
    n_requests, width = len(n), _PROPOSALS * options.candidates
    draws = uniforms(options.seed, Purpose.PROPOSAL, int(n[0]), n_requests, 3 * width)
    source, which, extra = (draws[:, i * width : (i + 1) * width].ravel() for i in range(3))  # [R * P] each
    row = np.repeat(np.arange(n_requests), width)
    domain = topic // options.categories
    first, shown = world.domain_start[domain], world.arrived(domain, n)
    at, start, arrived = n[row], first[row], shown[row]
    proposed = np.empty(n_requests * width, np.int64)
    by_category = source < _FROM_FAVOURITES
    category = np.where(source < _FROM_TOPIC, topic[row], _favourite(world, domain[row], user[row], extra, at))
    by_category &= world.arrived_in(category, at) > 0
    proposed[by_category] = _of_category(world, category[by_category], at[by_category], which[by_category])
    popular = ~by_category & (source < _FROM_POPULAR)
    below, above = world.arrived_sum[start], world.arrived_sum[start + arrived]
    target = below + which * (above - below)
    ranked = (np.searchsorted(world.arrived_sum, target, side="right") - 1).clip(start, start + arrived - 1)
    newest = arrived - 1 - (which * np.minimum(arrived, _NEWEST)).astype(np.int64)
    others = world.by_arrival[np.where(popular, ranked, start + newest)]
    proposed[~by_category] = others[~by_category]
    there = [world.by_arrival[low : low + n] for low, n in zip(first.tolist(), shown.tolist(), strict=True)]
    return _distinct(proposed.reshape(n_requests, width), options.candidates, there, spare)


def _of_category(world: World, category: Ints, n: Ints, uniform: Floats) -> Ints:
    """Draw items of a category by popularity, among those that are there."""
    low = world.category_start[category]
    high = low + world.arrived_in(category, n)
    sums = world.popularity_sum
    target = sums[low] + uniform * (sums[high] - sums[low])
    found: Ints = (np.searchsorted(sums, target, side="right") - 1).clip(low, high - 1)
    return found


def _distinct(proposed: Ints, n_shown: int, there: list[Ints], spare: Floats) -> Ints:
    """Take the first C different items of each row; a row that has fewer is filled up from a random place of ``there`` on."""
    order = np.argsort(proposed, axis=1, kind="stable")
    in_order = np.take_along_axis(proposed, order, axis=1)
    repeated = np.zeros(proposed.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    first = np.argsort(repeated, axis=1, kind="stable")[:, :n_shown]
    items: Ints = np.take_along_axis(proposed, first, axis=1)
    for row in np.flatnonzero((~repeated).sum(axis=1) < n_shown):
        shown = dict.fromkeys(items[row].tolist())
        at = int(spare[row] * len(there[row]))
        while len(shown) < n_shown:
            shown[int(there[row][at % len(there[row])])] = None
            at += 1
        items[row] = list(shown)
    return items
