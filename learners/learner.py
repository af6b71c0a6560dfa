"""Two verbs make a learner: predict and learn."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.samples import SampleBlock

Scores = npt.NDArray[np.float32]
Stats = dict[str, float]
State = dict[str, npt.NDArray[Any]]


class Learner(abc.ABC):
    """A model that learns from a stream of blocks.

    ``predict`` changes nothing. ``learn`` is a function of (state, block, seed, step) alone: no clock, no hidden randomness.
    """

    name: str
    tells_items_apart: bool = True
    """Whether an item's own history of clicks moves its score; False for rules of place, which the check for it passes over."""

    prepares_ahead: bool = True
    """Whether :meth:`prepare` on another thread gains time."""

    def prepare(self, block: SampleBlock) -> None:  # noqa: B027 - a learner may leave all of it to the step
        """Make ahead what a step on the block needs of the block alone, and keep it there (:meth:`SampleBlock.once`).

        Called on another thread while blocks before it are learned, where :attr:`prepares_ahead`, or not at all: so it reads no
        state that learning changes, and scores and what is learned have the same bits without it. A few calls that leave Python
        are worth it; the rest takes the interpreter from the step. What it raises comes where the block does.
        """

    @abc.abstractmethod
    def predict(self, block: SampleBlock) -> Scores:
        """Return the probability of the label for every candidate, float32 ``[C]`` in the order of ``candidate.item``."""

    @abc.abstractmethod
    def learn(self, block: SampleBlock) -> Stats:
        """Learn from a block once; return what happened (``loss.click``, ``edges.i2i``, ``queue.item.fill``, ...)."""

    def predict_learn(self, block: SampleBlock) -> tuple[Scores, Stats]:
        """Score a block with the weights before it, then learn it; one forward pass where the model can."""
        scores = self.predict(block)
        return scores, self.learn(block)

    @abc.abstractmethod
    def state(self) -> State:
        """Return everything that must survive, as named arrays (views; copy before the next ``learn``)."""

    @abc.abstractmethod
    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the learner that returned ``state``.

        Raises:
            ValueError: an array is missing, unknown or of another shape; nothing has changed then.
        """

    def take_decisions(self, state: Mapping[str, npt.NDArray[Any]]) -> None:  # noqa: B027 - nearly no learner decides anything
        """Before the first step: decide by what the learner that returned ``state`` decided by a clock, so as to repeat it."""

    def describe(self) -> dict[str, Any]:
        """Return sizes that a person asks for: parameters, table rows, queue fill, parts that are off and why."""
        return {}
