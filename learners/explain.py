"""What a model looks at when it scores a request: likenesses to the history, what it picks, which edges the request adds.

EGIN and DIN are told in :mod:`learners.explain_networks`, through what their parts compute anyway; any other learner may have a
method of its own, ``explain(block) -> Explanation``. Letters: ``C`` candidates of the request, ``H`` entries of a sequence.
"""

from __future__ import annotations

import sys
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from learners.learner import Learner, Scores
from learners.samples import SampleBlock

__all__ = ["Explains", "Explanation", "Link", "Look", "explain"]

Matrix = npt.NDArray[np.float32]


class Look(NamedTuple):
    """How much each entry of a sequence says."""

    name: str
    """What is compared: ``i2i``, ``q2q``, ``q2i``, ``attention.click``."""
    sequence: str
    """``click`` or another item sequence, or ``query``."""
    values: Matrix
    """float32 ``[C, H]``, or ``[1, H]`` where it is about the request: cosines, or DIN's weights; oldest entry first."""
    picked: list[list[int]]
    """Per row the entries that the model takes, the most alike first; empty where it takes all."""


class Link(NamedTuple):
    """An edge that learning this request adds to the graph. Ends are (node type, where, index)."""

    kind: str
    first: tuple[str, str, int]
    """For example ``("item", "history", 3)``, ``("item", "candidate", 0)``, ``("query", "now", 0)``."""
    second: tuple[str, str, int]


class Explanation(NamedTuple):
    """Of one request."""

    scores: Scores
    looks: list[Look]
    links: list[Link]


@runtime_checkable
class Explains(Protocol):
    """A learner that explains itself."""

    def explain(self, block: SampleBlock) -> Explanation:
        """Return what it looks at in a block of one request."""


def explain(learner: Learner, block: SampleBlock) -> Explanation:
    """Return what a learner looks at, with its weights as they are; a learner that cannot say gives its scores alone.

    Args:
        learner: changes nothing.
        block: of one request.

    Raises:
        ValueError: the block has not one request.
    """
    if len(block) != 1:
        raise ValueError(f"one request is explained at a time, the block has {len(block)}")
    if isinstance(learner, Explains):
        return learner.explain(block)
    scores = learner.predict(block)
    if "torch" not in sys.modules:  # then no network is running, and importing it would take seconds
        return Explanation(scores, [], [])
    from learners.explain_networks import looks_and_links

    return Explanation(scores, *looks_and_links(learner, block))
