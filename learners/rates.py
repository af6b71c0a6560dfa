"""Rates: clicks over impressions per item, smoothed by the stream's own rate, forgetting or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import Learner, Scores, State, Stats
from learners.samples import SampleBlock
from learners.tables import CountTable, Distinct, distinct

Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Rates:
    """Impressions and clicks per item, with a half-life in event time.

    Args:
        name: for messages.
        prior: impressions that the stream's rate counts for.
        max_rows: items held.
        half_life_ms: after which a count has halved; None forgets nothing.
    """

    def __init__(self, name: str, prior: float, max_rows: int, half_life_ms: float | None = None) -> None:
        if prior <= 0:
            raise ValueError(f"{name}: prior = {prior} must be above 0, or an unseen item has no rate")
        if half_life_ms is not None and not half_life_ms > 0:
            raise ValueError(f"{name}: half_life_ms = {half_life_ms} must be above 0")
        self.table = CountTable(name, 2, max_rows)
        self._prior = prior
        self._half_life_ms = math.inf if half_life_ms is None else half_life_ms
        self._total = np.array([2.0, 1.0])  # impressions and clicks of the stream, Laplace's 1 in 2 before the first

    def predict(self, items: Keys, ts: Keys | None = None) -> Scores:
        """Return the smoothed rate of every item ``[C]``, as of ``ts`` (ms, ``[C]``) where counts are forgotten."""
        return self.lately(distinct(items), ts)[1].astype(np.float32)

    def lately(self, asked: Distinct, ts: Keys | None = None) -> tuple[Floats, Floats]:
        """Return impressions and smoothed rate of every item ``[C]`` that is asked for; ``ts`` as for :meth:`predict`."""
        if ts is None:
            counts = self.table.read(asked.keys)[asked.places[0].numpy()]
        else:
            counts = self.table.lately(asked, ts, self._half_life_ms)
        mean = self._total[1] / self._total[0]
        return counts[:, 0], (counts[:, 1] + self._prior * mean) / (counts[:, 0] + self._prior)

    @staticmethod
    def amounts(block: SampleBlock) -> Floats:
        """Return what a block adds, ``[C, 2]``: every candidate is an impression and every label a click, by weight."""

        def make() -> Floats:
            labels, weights = (block.ragged(f"candidate.{part}").values for part in ("label", "weight"))
            amounts = np.empty((len(labels), 2))
            amounts[:, 0] = weights
            np.multiply(amounts[:, 0], labels, out=amounts[:, 1])
            return amounts

        return block.once("impressions and clicks", make)

    def learn(self, block: SampleBlock) -> None:
        """Count the candidates of a block."""
        self.count(self.asked(block), self.amounts(block), int(block.column("ts").max()) if len(block) else 0)

    @staticmethod
    def asked(block: SampleBlock) -> Distinct:
        """Return the candidates of a block."""
        return block.once(("distinct", ("candidate.item",)), lambda: distinct(block.ragged("candidate.item").values))

    def count(self, asked: Distinct, amounts: Floats, ts: int) -> None:
        """Do what :meth:`learn` does, of items ``[C]``, :meth:`amounts` and the newest request's time (ms)."""
        self.table.add_asked(asked, amounts, ts, self._half_life_ms)
        self._total += amounts.sum(0)

    def state(self) -> State:
        """Return the counts."""
        return {"total": self._total, **self.table.state()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take counts back."""
        self.table.load_state(state)
        self._total = np.array(state["total"])


class RateLearner(Learner):
    """A model that only counts: what ``popularity`` and ``trend`` share; each says how it scores."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates

    def prepare(self, block: SampleBlock) -> None:
        """Dedupe the candidates."""
        self._rates.asked(block)
        self._rates.amounts(block)

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
