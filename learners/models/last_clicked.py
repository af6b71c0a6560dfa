"""Last clicked: the item that the user acted on last, then the order that was shown. A rule, and on hotel search a strong one.

The order is the rule's; online counts only say how likely a click is at each place of it: the click rate of the item acted on
last, and the click rate per position, smoothed and made not to increase with the position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from learners.learner import Learner, Scores, State, Stats
from learners.models import ModelContext
from learners.samples import SampleBlock

Places = npt.NDArray[np.int64]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``last_clicked``."""

    sequence: str = "click"
    """Item sequence that is the history."""
    n_positions: int = 64
    """Positions told apart; later ones, and missing ones, are one."""
    prior: float = 20.0
    """Impressions that the stream's own rate counts for."""


class LastClicked(Learner):
    """Click rate per place in the rule's order."""

    tells_items_apart = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self._counts = np.zeros((config.n_positions + 2, 2))  # place -> impressions, clicks; place 0 is the item acted on last
        self._total = np.array([2.0, 1.0])

    def predict(self, block: SampleBlock) -> Scores:
        """Return click rates by place, ``[C]``."""
        mean = self._total[1] / self._total[0]
        rates = (self._counts[:, 1] + self.config.prior * mean) / (self._counts[:, 0] + self.config.prior)
        rates[1:] = np.minimum.accumulate(rates[1:])
        rates[0] = max(rates[0], rates[1])
        scores: Scores = rates[self._places(block)].astype(np.float32)
        return scores

    def _places(self, block: SampleBlock) -> Places:
        items, (past, offsets) = block.ragged("candidate.item"), block.ragged(f"{self.config.sequence}.item")
        held = np.diff(offsets) > 0
        last = np.zeros(len(block), np.int64)
        last[held] = past[offsets[1:][held] - 1]
        position = block.ragged("candidate.position").values.astype(np.int64)
        place = np.where((position < 0) | (position >= self.config.n_positions), self.config.n_positions, position) + 1
        is_last = (items.values != 0) & (items.values == np.repeat(last, items.lengths))
        return np.where(is_last, 0, place)

    def learn(self, block: SampleBlock) -> Stats:
        """Count impressions and clicks per place."""
        weight = block.ragged("candidate.weight").values.astype(np.float64)
        amounts = np.stack([weight, weight * block.ragged("candidate.label").values], 1)
        np.add.at(self._counts, self._places(block), amounts)
        self._total += amounts.sum(0)
        return {}

    def state(self) -> State:
        """Return the counts."""
        return {"counts": self._counts, "total": self._total}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take counts back."""
        if state["counts"].shape != self._counts.shape:
            raise ValueError(
                f"{self.name}: counts are {state['counts'].shape} in the checkpoint and {self._counts.shape} in this model; "
                "resume with the config that the run was started with"
            )
        self._counts, self._total = np.array(state["counts"]), np.array(state["total"])


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner.

    Raises:
        ValueError: the samples have no such sequence.
    """
    if config.sequence not in context.schema.item_sequences:
        have = ", ".join(context.schema.item_sequences) or "none"
        raise ValueError(f"last_clicked: no item sequence {config.sequence!r} in these samples; they have: {have}")
    return LastClicked(config)
