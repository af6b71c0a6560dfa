"""Popularity: the click rate of an item so far, whoever asks.

``p = (clicks + n0 p0) / (impressions + n0)`` with ``p0`` the click rate of the whole stream so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy.typing as npt

from learners.learner import Learner, Scores, State, Stats
from learners.models import ModelContext
from learners.rates import Rates
from learners.samples import SampleBlock


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``popularity``."""

    prior: float = 20.0
    """n0: impressions that the stream's own rate counts for."""
    max_rows: int = 10_000_000
    """Items held."""


class Popularity(Learner):
    """Smoothed click rate per item."""

    def __init__(self, config: Config) -> None:
        self._rates = Rates("popularity", config.prior, config.max_rows)

    def predict(self, block: SampleBlock) -> Scores:
        """Return smoothed click rates, ``[C]``."""
        return self._rates.predict(block.ragged("candidate.item").values)

    def learn(self, block: SampleBlock) -> Stats:
        """Count impressions and clicks."""
        self._rates.learn(block)
        return {}

    def state(self) -> State:
        """Return the counts."""
        return self._rates.state()

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take counts back."""
        self._rates.load_state(state)

    def describe(self) -> dict[str, Any]:
        """Return the table's size."""
        return {"tables": {"item": self._rates.table.describe()}}


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner; it needs no queries, no categories and no history."""
    return Popularity(config)
