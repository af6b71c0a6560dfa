"""Users, queries, items and categories: all that is drawn once.

Shapes: ``K`` categories, ``N`` items, ``U`` users, ``D`` latent dimensions, ``F`` = 3 favourite categories of a user.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .draws import table_rng
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
        n_items, n_categories, n_users = options.items, options.categories, options.users
        self.options = options
        categories = _unit(rng.standard_normal((n_categories, options.dim)))  # [K, D]

        self.item_category: Ints = np.sort(np.arange(n_items) % n_categories)  # [N]
        self.category_start: Ints = np.searchsorted(self.item_category, np.arange(n_categories + 1))  # [K + 1]
        self.arrival = self._arrivals(rng)  # [N] index of the first request that may show it
        self.item_vector = _unit(categories[self.item_category] + _noise(rng, n_items, options.dim))  # [N, D]
        self.item_quality: Floats = options.quality * rng.standard_normal(n_items)  # [N]
        popularity = (1.0 + rng.permutation(n_items)) ** -_POPULARITY
        self.popularity_sum: Floats = np.concatenate([[0.0], np.cumsum(popularity)])  # [N + 1] in the order of items
        self.by_arrival: Ints = np.argsort(self.arrival, kind="stable")  # [N]
        self.arrival_sorted: Ints = self.arrival[self.by_arrival]
        self.arrived_sum: Floats = np.concatenate([[0.0], np.cumsum(popularity[self.by_arrival])])  # [N + 1]
        self.arrival_key: Ints = self.item_category * (options.requests + 1) + self.arrival  # [N] rises

        # Interests before (0) and after (1) a quarter turn of drift.
        self.favourites: Ints = np.stack([_favourites(rng, n_users, n_categories) for _ in range(2)])  # [2, U, F]
        weights = FAVOURITES[: self.favourites.shape[-1], None]
        mixed = (weights * categories[self.favourites]).sum(axis=-2)  # [2, U, D]
        self.interest = _unit(np.stack([m + _noise(rng, n_users, options.dim) * FAVOURITES[0] for m in mixed]))  # [2, U, D]
        activity = (1.0 + rng.permutation(n_users)) ** -_ACTIVITY
        self.activity_sum: Floats = np.cumsum(activity) / activity.sum()  # [U]

    def _arrivals(self, rng: np.random.Generator) -> Ints:
        options = self.options
        n_new = int(options.new_items * options.items)
        arrival = np.zeros(options.items, np.int64)
        late = np.sort(rng.permutation(options.items)[:n_new])
        arrival[late] = rng.permutation(1 + np.arange(n_new) * options.requests // max(1, n_new)) % options.requests
        order = np.lexsort((arrival, self.item_category))
        return arrival[order]

    def turned(self, n: Ints) -> Floats:
        """Return the angle of drift at requests ``n``, ``[R]``."""
        days: Floats = n / self.options.rate / 86_400.0
        angle: Floats = self.options.drift * days
        return angle

    def arrived(self, n: Ints) -> Ints:
        """Return how many items there are at requests ``n``, ``[R]``."""
        found: Ints = np.searchsorted(self.arrival_sorted, n, side="right")
        return found

    def arrived_in(self, category: Ints, n: Ints) -> Ints:
        """Return how many items of a category there are at requests ``n``, ``[R]``."""
        key = category * (self.options.requests + 1) + n
        return np.searchsorted(self.arrival_key, key, side="right") - self.category_start[category]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return unit


def _noise(rng: np.random.Generator, n: int, dim: int) -> Floats:
    noise: Floats = rng.standard_normal((n, dim)) * (_SPREAD / np.sqrt(dim))
    return noise


def _favourites(rng: np.random.Generator, n_users: int, n_categories: int) -> Ints:
    n_favourites = min(len(FAVOURITES), n_categories)
    return np.argsort(rng.random((n_users, n_categories)), axis=1)[:, :n_favourites]
