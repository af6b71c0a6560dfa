"""Vowpal Wabbit as a model of a run: it sees the same requests as ours, scores a batch and then learns it.

``benchmarks/accuracy.py trivago-vw`` brings it into the registry by an entry point, as any model from outside, so that its
figures and their paired intervals are made by the same code. An example is one candidate; namespaces:

==== =============================================================================================================
c    the candidate
h    the history, its newest 50 items
l    whether the candidate is the item acted on last, and whether the user acted on it at all
p    its position
n    its price: the logarithm, and that less the mean over the list
t    the query (trivago: the city)
==== =============================================================================================================

Those that a log does not know are left out. Needs the extra ``bench``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from vowpalwabbit import Workspace

from learners.learner import Learner, Scores, State, Stats
from learners.models import ModelContext
from learners.samples import SampleBlock


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of Vowpal Wabbit."""

    arguments: str = "-q ch"
    """Which pairs of namespaces are crossed, rates, and so on."""
    namespaces: str = "chlpnt"
    """Those that an example has."""
    sequence: str = "click"
    """Item sequence that is the history."""


class VowpalWabbit(Learner):
    """Logistic regression with crossed features, one pass."""

    tells_items_apart = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self._vw = Workspace(f"--loss_function logistic --link logistic -b 24 --quiet {config.arguments}")

    def predict(self, block: SampleBlock) -> Scores:
        """Return the probability of a click per candidate, ``[C]``."""
        return np.array([self._vw.predict(line) for line in self._lines(block)], np.float32)

    def learn(self, block: SampleBlock) -> Stats:
        """Learn each candidate, in order."""
        self._learn(block, self._lines(block))
        return {}

    def predict_learn(self, block: SampleBlock) -> tuple[Scores, Stats]:
        """Score all of a block, then learn it; its lines are written once."""
        lines = [*self._lines(block)]
        scores = np.array([self._vw.predict(line) for line in lines], np.float32)
        self._learn(block, lines)
        return scores, {}

    def _learn(self, block: SampleBlock, lines: Iterable[str]) -> None:
        for label, line in zip(block.ragged("candidate.label").values.tolist(), lines, strict=True):
            self._vw.learn(f"{1 if label else -1} {line}")

    def _lines(self, block: SampleBlock) -> Iterator[str]:
        schema, given = block.schema, self.config.namespaces
        items, offsets = block.ragged("candidate.item")
        past, bounds = block.ragged(f"{self.config.sequence}.item")
        positions = block.ragged("candidate.position").values
        queries = block.column("query") if schema.has_query else np.zeros(len(block), np.int64)
        prices = _prices(block) if "n" in given and "price" in schema.candidate_floats else None
        for row in range(len(block)):
            seen = past[bounds[row] : bounds[row + 1]].tolist()[-50:]
            shared = "".join(
                (
                    f" |h {' '.join(f'i{each}' for each in seen)}" if "h" in given else "",
                    f" |t q{queries[row]}" if "t" in given and queries[row] else "",
                )
            )
            known = set(seen)
            for at in range(offsets[row], offsets[row + 1]):
                item = int(items[at])
                parts = [f"|c i{item}"] if "c" in given else []
                if "l" in given:
                    parts.append(f"|l {'last' if seen and item == seen[-1] else 'seen' if item in known else 'new'}")
                if "p" in given:
                    parts.append(f"|p p{positions[at]}")
                if prices is not None:
                    parts.append(f"|n price:{prices[0][at]:.4f} above:{prices[1][at]:.4f}")
                yield " ".join(parts) + shared

    def state(self) -> State:
        """Return nothing: a run with it is not resumed."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Refuse."""
        raise ValueError("vw: a run with Vowpal Wabbit cannot be resumed; start it again")


def _prices(block: SampleBlock) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the logarithm of each price, ``[C]``, and that less the mean of its list."""
    values, offsets = block.ragged("candidate_feature.price")
    logs = np.log1p(np.nan_to_num(values.astype(np.float64)))
    lengths = np.diff(offsets)
    means = np.add.reduceat(logs, offsets[:-1]) / lengths if len(logs) else logs
    return logs, logs - np.repeat(means, lengths)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    return VowpalWabbit(config)
