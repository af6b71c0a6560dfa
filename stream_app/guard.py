"""Stops a run whose model has gone wrong, before a checkpoint of it can take the place of a good one.

Two things can go wrong. *Numbers*: a score, the click loss or a weight is NaN or infinite; one is enough, because nothing
heals it. A network finds such a click loss before it moves, so that what it has in memory stays good too. *Figures*: the AUC or
the log loss of ``guard_windows`` windows in a row is far from what is usual, the median of the good windows before. The usual
figures are the run's own: no threshold has to be guessed beforehand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import Scores, Stats
from stream_app.train_config import TrainConfig

CHANCE = 0.5
"""AUC of a model that knows nothing."""

__all__ = ["Guard", "GuardError", "check_state", "check_step"]


class GuardError(ValueError):
    """The model has gone wrong; the message says how, and from where to go on."""


def check_step(model: str, scores: Scores | None, stats: Stats) -> None:
    """Check what a step of a model has shown.

    Args:
        model: its name, for messages.
        scores: None where the step gave none.
        stats: what it said.

    Raises:
        GuardError: a score or a loss is no number.
    """
    if scores is not None and not np.isfinite(scores).all():
        raise GuardError(f"{model}: scores are not finite any more")
    for name, value in stats.items():
        # A part that has nothing to do in a step may say NaN, for example edges; there is always a click loss.
        if math.isinf(value) or (name == "loss.click" and math.isnan(value)):
            raise GuardError(f"{model}: {name} is {value}")


def check_state(model: str, state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check what of a model is about to be written.

    Raises:
        GuardError: a weight is no number.
    """
    for name, array in state.items():
        # The sum is finite exactly if all are: float64 does not overflow on so few float32, and NaN and inf stay.
        if array.dtype.kind == "f" and not math.isfinite(float(np.sum(array, dtype=np.float64))):
            raise GuardError(f"{model}: {name} is not finite any more")


class Guard:
    """Judges one model.

    Args:
        model: its name, for messages.
        config: what is too bad.
    """

    def __init__(self, model: str, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.n_bad = 0
        """Bad windows since the last good one."""
        self._usual: dict[str, list[float]] = {"auc": [], "log_loss": []}

    def check_step(self, scores: Scores, stats: Stats) -> None:
        """Check what a step has shown; see :func:`check_step`."""
        check_step(self.model, scores, stats)

    def check_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Check what is about to be written; see :func:`check_state`."""
        check_state(self.model, state)

    def check_windows(self, figures: Sequence[Mapping[str, float | None]]) -> None:
        """Judge windows that closed, oldest first.

        Args:
            figures: of each; None is not defined.

        Raises:
            GuardError: so many bad ones in a row as the config allows.
        """
        for window in figures:
            if (window["impressions"] or 0) < self.config.guard_impressions:
                continue
            found = {name: value for name in self._usual if (value := window[name]) is not None}
            bad = [words for name, value in found.items() if (words := self._judge(name, value))]
            if not bad:
                self.n_bad = 0
                for name, value in found.items():
                    self._usual[name] = [*self._usual[name], value][-self.config.guard_history :]
                continue
            self.n_bad += 1
            if self.n_bad >= self.config.guard_windows:
                raise GuardError(f"{self.model}: {' and '.join(bad)}, for {self.n_bad} windows in a row")

    def _judge(self, name: str, value: float) -> str | None:
        """Return what is wrong with a figure, if anything is."""
        before = self._usual[name]
        if len(before) < max(1, self.config.guard_history // 4):
            return None
        usual = statistics.median(before)
        if name == "auc":
            least = CHANCE + self.config.guard_skill * (usual - CHANCE)
            return f"AUC {value:.4f} where {usual:.4f} is usual" if usual > CHANCE and value < least else None
        return f"log loss {value:.4f} where {usual:.4f} is usual" if value > self.config.guard_log_loss * usual else None

    def notes(self) -> dict[str, Any]:
        """Return what must survive, as JSON."""
        return {"usual": self._usual, "n_bad": self.n_bad}

    def load(self, notes: Mapping[str, Any]) -> None:
        """Go on from :meth:`notes`."""
        self.n_bad = notes["n_bad"]
        self._usual = {name: list(values) for name, values in notes["usual"].items()}
