"""Popularity: the click rate of an item so far, whoever asks.

``p = (clicks + n0 p0) / (impressions + n0)`` with ``p0`` the click rate of the whole stream so far.
"""

from __future__ import annotations

import msgspec

from learners.learner import Learner, Scores
from learners.models import ModelContext
from learners.rates import RateLearner, Rates
from learners.samples import SampleBlock


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``popularity``."""

    prior: float = 20.0
    """n0: impressions that the stream's own rate counts for."""
    max_rows: int = 10_000_000
    """Items held."""


class Popularity(RateLearner):
    """Smoothed click rate per item."""

    def __init__(self, config: Config) -> None:
        super().__init__(Rates("popularity", config.prior, config.max_rows))

    def predict(self, block: SampleBlock) -> Scores:
        """Return smoothed click rates, ``[C]``."""
        return self._rates.predict(block.ragged("candidate.item").values)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner; it needs no queries, no categories and no history."""
    return Popularity(config)
