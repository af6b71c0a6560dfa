"""Positives ranked among drawn items, where a replay is asked for it (``hr_negatives``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy.typing as npt

from learners.metrics import DrawnHits
from learners.samples import SampleBlock, SampleSchema
from stream_app.config import ConfigError, RunConfig
from stream_app.entrant import Entrant
from stream_app.oracle import BEST
from stream_app.profile import Profile

__all__ = ["DrawnRanks"]


class DrawnRanks:
    """Has the models score drawn items beside each positive, and keeps their figures with the entrants.

    Args:
        hits: draws and counts.
        entrants: the models; the best possible scores know nothing of drawn items.
        score_from: requests before this do not count, UTC ms.
        profile: where the time goes.
    """

    def __init__(self, hits: DrawnHits, entrants: Sequence[Entrant], score_from: int | None, profile: Profile) -> None:
        self._hits, self._score_from, self._profile = hits, score_from, profile
        self._entrants = {entrant.name: entrant for entrant in entrants if entrant.name != BEST}

    @classmethod
    def of(cls, config: RunConfig, schema: SampleSchema, entrants: Sequence[Entrant], profile: Profile) -> Self | None:
        """Return what a config asks for, None where it does not.

        Raises:
            ConfigError: clicks come after their requests were scored.
        """
        replay = config.replay
        if not replay.hr_negatives:
            return None
        if config.join.policy == "correct":
            raise ConfigError(
                'replay.hr_negatives ranks clicks when their request is scored, and with join.policy = "correct" they come '
                'later: leave it out, or join the log with join.policy = "wait"'
            )
        names = [entrant.name for entrant in entrants if entrant.name != BEST]
        hits = DrawnHits(schema, replay.hr_negatives, names, replay.seed, replay.hr_share)
        return cls(hits, entrants, replay.score_from, profile)

    def rank(self, block: SampleBlock) -> None:
        """Rank the positives of a block that is about to be scored."""
        with self._profile.stage("drawn negatives"):
            counts = None if self._score_from is None else block.column("ts") >= self._score_from
            for trial in self._hits.trials(block, counts):
                for name, entrant in self._entrants.items():
                    self._hits.count(name, entrant.learner.predict(trial), trial)
            self._hits.admit(block)
            self._note()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what must survive."""
        return self._hits.state()

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from :meth:`state`."""
        self._hits.load_state(state)
        self._note()

    def _note(self) -> None:
        for name, figures in self._hits.figures().items():
            self._entrants[name].drawn = figures
