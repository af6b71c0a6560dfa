"""The best that any model could do, where a generator knows the probability of each label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import Learner, Scores, State, Stats
from learners.samples import SampleBlock

BEST = "best possible"


class Oracle(Learner):
    """Scores with the truth; only figures ever see it."""

    name = BEST

    def predict(self, block: SampleBlock) -> Scores:
        """Return the true probabilities, float32 ``[C]``."""
        return block.ragged("candidate.truth").values.astype(np.float32)

    def learn(self, block: SampleBlock) -> Stats:
        """Know already."""
        return {}

    def state(self) -> State:
        """Return nothing: there is no state."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take nothing back.

        Raises:
            ValueError: there is something.
        """
        if state:
            raise ValueError(f"the best possible scores have no state, a checkpoint has {sorted(state)}")
