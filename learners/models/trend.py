"""Trend: the click rate of an item lately, whoever asks; counts halve every ``half_life_ms`` of event time."""

from __future__ import annotations

import msgspec
import numpy as np

from learners.learner import Learner, Scores
from learners.models import ModelContext
from learners.rates import RateLearner, Rates
from learners.samples import SampleBlock


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``trend``."""

    prior: float = 20.0
    """Impressions that the stream's own rate counts for."""
    half_life_ms: float = 3_600_000.0
    """An impression counts half after this much event time."""
    max_rows: int = 10_000_000
    """Items held."""


class Trend(RateLearner):
    """Smoothed, forgetting click rate per item."""

    def __init__(self, config: Config) -> None:
        if config.half_life_ms <= 0:
            raise ValueError(f"trend: half_life_ms = {config.half_life_ms} must be above 0; use popularity to forget nothing")
        super().__init__(Rates("trend", config.prior, config.max_rows, config.half_life_ms))

    def predict(self, block: SampleBlock) -> Scores:
        """Return click rates as of each request's time, ``[C]``."""
        items = block.ragged("candidate.item")
        return self._rates.predict(items.values, np.repeat(block.column("ts"), items.lengths))


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner; it needs no queries, no categories and no history."""
    return Trend(config)
