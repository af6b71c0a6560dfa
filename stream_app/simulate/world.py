"""Users, queries, items and categories: all that is drawn once.

Where there are two domains, category ``k`` of one is about the same as category ``k`` of the other, and items, queries and
categories of the second come after those of the first. What a domain's vectors say of an item is turned in a way of its own, as
if other extractors had made them: that two vectors of different domains mean the same must be learned.

Shapes: ``M`` domains; over all of them ``K`` categories, ``N`` items; ``U`` users, ``D`` latent dimensions, ``F`` = 3 favourite
categories of a user.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .draws import Purpose, table_rng
from .options import SimulateOptions

__all__ = ["FAVOURITES", "World"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FAVOURITES = np.array([0.55, 0.3, 0.15])
"""Weights of a user's favourite categories."""
_SPREAD = 0.6
"""How far items lie from their category, and users from their favourites, against the length of a category's vector."""
_POPULARITY = 0.8
_ACTIVITY = 0.6
"""Exponents of the power laws of items and users."""


class World:
    """What the simulation is about.

    Items are numbered by (category, arrival), so that the items of a category that are there at a time are one range.

    Args:
        options: the knobs.
    """

    def __init__(self, options: SimulateOptions) -> None:
        rng = table_rng(options.seed)
        n_domains, n_users = options.domains, options.users
        self.options = options
        self.n_categories = n_domains * options.categories
        topics = _unit(rng.standard_normal((options.categories, options.dim)))  # [K / M, D]

        category = np.sort(np.arange(options.items) % options.categories)
        self.item_category: Ints = np.concatenate([category + d * options.categories for d in range(n_domains)])  # [N]
        self.item_domain: Ints = self.item_category // options.categories  # [N]
        self.category_start: Ints = np.searchsorted(self.item_category, np.arange(self.n_categories + 1))  # [K + 1]
        self.domain_start: Ints = np.arange(n_domains) * options.items  # [M]
        n_items = len(self.item_category)
        self.arrival = np.concatenate([self._arrivals(rng, category) for _ in range(n_domains)])
        """Index of the first request that may show an item, ``[N]``."""
        categories = np.tile(topics, (n_domains, 1))  # [K, D]
        self.item_vector = _unit(categories[self.item_category] + _noise(rng, n_items, options.dim))  # [N, D]
        self.item_quality: Floats = options.quality * rng.standard_normal(n_items)  # [N]
        popularity = np.concatenate([(1.0 + rng.permutation(options.items)) ** -_POPULARITY for _ in range(n_domains)])
        self.popularity_sum: Floats = np.concatenate([[0.0], np.cumsum(popularity)])  # [N + 1] in the order of items
        self.by_arrival: Ints = np.lexsort((self.arrival, self.item_domain))  # [N] domain after domain
        self.domain_arrival: Ints = self._key(self.item_domain, self.arrival)[self.by_arrival]  # [N] rises
        self.arrived_sum: Floats = np.concatenate([[0.0], np.cumsum(popularity[self.by_arrival])])  # [N + 1]
        self.category_arrival: Ints = self._key(self.item_category, self.arrival)  # [N] rises

        self._draw_interests(rng, topics)
        activity = (1.0 + rng.permutation(n_users)) ** -_ACTIVITY
        self.activity_sum: Floats = np.cumsum(activity) / activity.sum()  # [U]
        self.video_from: Ints = np.zeros(n_users, np.int64)
        """Index of the first request that may be a user's on videos, ``[U]``."""
        if n_domains > 1:
            late = rng.permutation(n_users)[: int(options.video_late * n_users)]
            self.video_from[late] = rng.permutation(len(late)) * options.requests // max(1, len(late))

    def _arrivals(self, rng: np.random.Generator, category: Ints) -> Ints:
        """Return the arrivals of a domain's items."""
        options = self.options
        n_new = int(options.new_items * options.items)
        arrival = np.zeros(options.items, np.int64)
        late = np.sort(rng.permutation(options.items)[:n_new])
        arrival[late] = rng.permutation(1 + np.arange(n_new) * options.requests // max(1, n_new)) % options.requests
        order = np.lexsort((arrival, category))
        return arrival[order]

    def _draw_interests(self, rng: np.random.Generator, topics: Floats) -> None:
        """Draw favourites ``[M, 2, U, F]`` and interests ``[M, 2, U, D]``, before (0) and after (1) a quarter turn of drift."""
        options, shared = self.options, self.options.shared
        own: list[Ints] = []
        noises: list[Floats] = []
        interests: list[Floats] = []
        for domain in range(options.domains):
            favourites = np.stack([_favourites(rng, options.users, options.categories) for _ in range(2)])
            if domain:
                favourites = np.where(rng.random(favourites.shape) < shared, own[0], favourites)
            weights = FAVOURITES[: favourites.shape[-1], None]
            mixed = (weights * topics[favourites]).sum(axis=-2)
            noise = np.stack([_noise(rng, options.users, options.dim) * FAVOURITES[0] for _ in range(2)])
            if domain:
                noise = shared * noises[0] + np.sqrt(1 - shared**2) * noise
            noises.append(noise)
            own.append(favourites)
            interests.append(_unit(mixed + noise))
        self.favourites: Ints = np.stack([each + d * options.categories for d, each in enumerate(own)])
        self.interest: Floats = np.stack(interests)

    def vectors(self) -> Floats:
        """Return what comes with the items, ``[N, vector_dim]``, of about one per number; four digits are kept."""
        options = self.options
        rng, dim = table_rng(options.seed, Purpose.VECTORS), options.vector_dim
        turns = rng.standard_normal((options.domains, options.dim, dim))
        told = (
            np.einsum("nd,ndv->nv", self.item_vector, turns[self.item_domain]) if dim else np.zeros((len(self.item_vector), 0))
        )
        vectors: Floats = np.round(told + options.vector_noise * rng.standard_normal(told.shape), 4)
        return vectors

    def turned(self, n: Ints) -> Floats:
        """Return the angle of drift at requests ``n``, ``[R]``."""
        days: Floats = n / self.options.rate / 86_400.0
        angle: Floats = self.options.drift * days
        return angle

    def arrived(self, domain: Ints, n: Ints) -> Ints:
        """Return how many items of a domain there are at requests ``n``, ``[R]``."""
        return np.searchsorted(self.domain_arrival, self._key(domain, n), side="right") - self.domain_start[domain]

    def arrived_in(self, category: Ints, n: Ints) -> Ints:
        """Return how many items of a category there are at requests ``n``, ``[R]``."""
        return np.searchsorted(self.category_arrival, self._key(category, n), side="right") - self.category_start[category]

    def arriving(self, after: int, last: int) -> Ints:
        """Return the items that arrive after request ``after`` and up to ``last``, in order."""
        items = np.flatnonzero((self.arrival > after) & (self.arrival <= last))
        return items[np.argsort(self.arrival[items], kind="stable")]

    def _key(self, group: Ints, n: Ints) -> Ints:
        """Return what orders by group, then by request."""
        return group * (self.options.requests + 1) + n


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return unit


def _noise(rng: np.random.Generator, n: int, dim: int) -> Floats:
    noise: Floats = rng.standard_normal((n, dim)) * (_SPREAD / np.sqrt(dim))
    return noise


def _favourites(rng: np.random.Generator, n_users: int, n_categories: int) -> Ints:
    n_favourites = min(len(FAVOURITES), n_categories)
    return np.argsort(rng.random((n_users, n_categories)), axis=1)[:, :n_favourites]
