"""Place bias: a logit of its own for each pair of a candidate's position and how lately the user had this very item.

What rules and linear models get from one crossed feature, a network has to put together from a position's vector and a
slot's: on a log of some thousand requests it has not done so by the end. A scalar per pair in a table with Adagrad's large
first steps knows it after a few clicks, and the network beside it learns what is left ("wide and deep", Cheng et al. 2016,
with one cross).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from learners.batch import CANDIDATES, Batch
from learners.gather import rows
from learners.models import ModelContext
from learners.samples import Ragged
from learners.tables import Distinct, EmbeddingTable, TableConfig, distinct
from negative_queues.kernels import kernel

__all__ = ["PlaceBias", "entries_ago"]

Ids = npt.NDArray[np.int64]
AGES = 8
"""Ages told apart: not there, newest entry, 2nd, 3rd and 4th, up to 8th, up to 16th, up to 32nd, older."""
INITIAL_SCALE = 1e-6  # a pair not met yet says nothing


class PlaceBias:
    """The table of these logits.

    Args:
        context: name, seed, device.
        sequence: item sequence in which a candidate is looked for.
        n_positions: positions told apart; later ones are one, and missing ones another.
        rate: row-wise Adagrad's.
        keep: share of a row's accumulator that stays at each update.
    """

    def __init__(self, context: ModelContext, sequence: str, n_positions: int, rate: float, keep: float) -> None:
        config = TableConfig(dim=1, rate=rate, keep=keep, initial_scale=INITIAL_SCALE)
        self.table = EmbeddingTable(f"{context.name}/place", config, context.seed, context.device)
        self._sequence, self._n_positions = sequence, n_positions

    def asked(self, batch: Batch) -> Distinct:
        """Return the pairs of the candidates, made once."""

        def make() -> Distinct:
            ages = entries_ago(batch.ragged(CANDIDATES), batch.ragged(f"{self._sequence}.item"))
            places = batch.ids("candidate.position").clip(-1, self._n_positions - 1) + 2  # from 1 on: key 0 is a missing id
            return distinct(places * AGES + ages)

        return batch.block.once(("places and ages", self._sequence, self._n_positions), make)

    def __call__(self, batch: Batch, learn: bool) -> Tensor:
        """Return the logits, ``[C]``."""
        gathered = self.table.look_up(self.asked(batch), learn=learn, ts=batch.newest_ts)
        return rows(gathered.weight, gathered.places[0]).view(-1)


def entries_ago(candidates: Ragged, past: Ragged) -> Ids:
    """Return which of :data:`AGES` each candidate's newest occurrence in its request's sequence (oldest first) is, ``[C]``."""
    ages: Ids = np.zeros(len(candidates.values), np.int64)
    _find(candidates.values, candidates.offsets, past.values, past.offsets, ages)
    return ages


@kernel
def _find(items: Ids, offsets: Ids, past: Ids, bounds: Ids, ages: Ids) -> None:
    for row in range(len(offsets) - 1):
        for at in range(offsets[row], offsets[row + 1]):
            if items[at] == 0:
                continue
            for entry in range(bounds[row + 1] - 1, bounds[row] - 1, -1):
                if past[entry] == items[at]:
                    ago, age = bounds[row + 1] - entry, 1
                    while ago > 1 and age < AGES - 1:
                        ago, age = (ago + 1) // 2, age + 1
                    ages[at] = age
                    break
