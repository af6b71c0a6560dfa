"""Co-visitation: items clicked after the items in the history, corrected for degree.

``s(c | h_1..h_n) = sum_j n(h_j, c) / sqrt(n(h_j) n(c))`` (item-to-item cosine, Sarwar et al. 2001), where ``n(h, c)`` counts
clicks on ``c`` with ``h`` among the newest ``length`` entries of the history. The stream's click rate and a slope on
``log(1 + 10 s)``, both learned online, make it a probability. Plain counts favour whatever is popular; the square roots take
that out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from learners.batch import pairs
from learners.learner import Learner, Scores, State, Stats
from learners.models import ModelContext
from learners.samples import Ragged, SampleBlock
from learners.tables import CountTable
from negative_queues.draws import fold64
from negative_queues.kernels import kernel

Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SCALE = 10.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``covisitation``."""

    sequence: str = "click"
    """Item sequence that is the history."""
    length: int = 10
    """Newest entries of the history that count."""
    by_degree: bool = True
    """Whether counts are divided by the square roots of both items' own; without, what is popular is favoured."""
    rate: float = 0.05
    """Adagrad's rate for the slope that makes a score a probability."""
    max_rows: int = 10_000_000
    """Pairs held."""


class Covisitation(Learner):
    """Item-to-item counts between the history and what was clicked next."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._pairs = CountTable("covisitation.pairs", 1, config.max_rows)
        self._degrees = CountTable("covisitation.items", 1, config.max_rows)
        self._total = np.array([2.0, 1.0, 0.0])  # candidates, clicks (1 in 2 before the first), sum of scores
        self._slope = np.array([1.0, 1e-8])  # slope and its Adagrad accumulator

    def predict(self, block: SampleBlock) -> Scores:
        """Return probabilities ``[C]``; without a history, or for an item never clicked, all are the base rate."""
        return self._probability(self._score(block)).astype(np.float32)

    def predict_learn(self, block: SampleBlock) -> tuple[Scores, Stats]:
        """Score, then count."""
        score = self._score(block)
        probability = self._probability(score)
        label = block.ragged("candidate.label").values.astype(np.float64)
        weight = block.ragged("candidate.weight").values.astype(np.float64)
        gradient = float((weight * (probability - label) * self._centred(score)).mean()) if len(score) else 0.0
        self._slope[1] += gradient**2
        self._slope[0] -= self.config.rate * gradient / np.sqrt(self._slope[1])
        self._total += [weight.sum(), (weight * label).sum(), score.sum()]
        self._count(block, label > 0)
        return probability.astype(np.float32), {}

    def learn(self, block: SampleBlock) -> Stats:
        """Count the clicks of the block."""
        return self.predict_learn(block)[1]

    def _probability(self, score: Floats) -> Floats:
        rate = self._total[1] / self._total[0]
        logit = np.log(rate / (1.0 - rate)) + self._slope[0] * self._centred(score)
        probability: Floats = 1.0 / (1.0 + np.exp(-logit))
        return probability

    def _centred(self, score: Floats) -> Floats:
        # around the mean so far: else the slope would first chase the base rate, and Adagrad never lets it come back
        mean = float(self._total[2] / self._total[0])
        return score - mean

    def _recent(self, block: SampleBlock) -> Ragged:
        history = block.ragged(f"{self.config.sequence}.item")
        start = np.maximum(history.offsets[1:] - self.config.length, history.offsets[:-1])
        keep = np.arange(len(history.values)) >= np.repeat(start, history.lengths)
        lengths = np.minimum(history.lengths, self.config.length)
        return Ragged(history.values[keep], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def _score(self, block: SampleBlock) -> Floats:
        candidates, history = block.ragged("candidate.item"), self._recent(block)
        candidate, entry = pairs(candidates.offsets, history.offsets)
        after, before = candidates.values[candidate], history.values[entry]
        together = self._pairs.read(pair_keys(before, after))[:, 0]
        if self.config.by_degree:
            degree = self._degrees.read(before)[:, 0] * self._degrees.read(after)[:, 0]
            together = together / np.sqrt(np.maximum(degree, 1.0))
        score: Floats = np.log1p(SCALE * np.bincount(candidate, together, len(candidates.values)))
        return score

    def _count(self, block: SampleBlock, clicked: npt.NDArray[np.bool_]) -> None:
        candidates, history = block.ragged("candidate.item"), self._recent(block)
        candidate, entry = pairs(candidates.offsets, history.offsets)
        positive = clicked[candidate]
        after, before = candidates.values[candidate[positive]], history.values[entry[positive]]
        ts = int(block.column("ts").max()) if len(block) else 0
        self._pairs.add(pair_keys(before, after), np.ones((len(after), 1)), ts)
        clicks = candidates.values[clicked]
        self._degrees.add(clicks, np.ones((len(clicks), 1)), ts)

    def state(self) -> State:
        """Return counts and weights."""
        state: State = {"total": self._total, "slope": self._slope}
        for name, table in (("pairs", self._pairs), ("degrees", self._degrees)):
            state.update({f"{name}.{part}": array for part, array in table.state().items()})
        return state

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take counts and weights back."""
        for name, table in (("pairs", self._pairs), ("degrees", self._degrees)):
            table.load_state({key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(name)})
        self._total, self._slope = np.array(state["total"]), np.array(state["slope"])

    def describe(self) -> dict[str, Any]:
        """Return the tables' sizes."""
        return {"tables": {"pairs": self._pairs.describe(), "items": self._degrees.describe()}}


@kernel
def pair_keys(first: Keys, second: Keys) -> Keys:
    """Return one 64-bit key per ordered pair of ids; 0 (missing) where either is missing."""
    out = np.zeros(len(first), np.int64)
    for i in range(len(first)):
        if first[i] != 0 and second[i] != 0:
            out[i] = np.int64(fold64(np.uint64(first[i]), np.uint64(second[i])))
    return out


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner.

    Raises:
        ValueError: the samples have no such sequence.
    """
    if config.sequence not in context.schema.item_sequences:
        have = ", ".join(context.schema.item_sequences) or "none"
        raise ValueError(f"covisitation: no item sequence {config.sequence!r} in these samples; they have: {have}")
    return Covisitation(config)
