"""Pre-extracted item vectors as inputs of a network, in the place of learned ids where there are any.

    v = mask * (W x + b) + (1 - mask) * e

``x`` is the item's vector (zeros where it has none), ``mask`` whether it has one, ``e`` the learned embedding, which stands in
for items without a vector and learns from those alone (beside what else of a network reads it).

SEMI (Lei et al. 2021, section 3.2.2) has one vector per item and says neither how it is brought to the width of the encoders
nor what an item without one is; the projection and ``e`` are this repository's.

Legend: ``N`` items, ``D`` dim of the vectors, ``T`` width of a target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learners.device import place
from learners.tables.index import Keys
from learners.vectors import VectorStore

__all__ = ["VectorInputs", "project"]


def project(projection: nn.Linear, given: Tensor) -> Tensor:
    """Return ``v``, ``[..., T]``, of ``x | mask | e``, ``[..., D + 1 + T]``."""
    vectors, mask, learned = torch.split(given, [projection.in_features, 1, projection.out_features], -1)
    return torch.where(mask > 0, projection(vectors), learned)


class VectorInputs(nn.Module):
    """Store -> linear projection.

    Args:
        store: of the run; read only.
        width: ``T``.
    """

    def __init__(self, store: VectorStore, width: int) -> None:
        super().__init__()
        self.store = store
        self.projection = nn.Linear(store.dim, width)

    def forward(self, items: Keys, learned: Tensor) -> Tensor:
        """Return ``v``, ``[N, T]``.

        Args:
            items: int64 ``[N]``; 0 is the missing item.
            learned: ``e``, ``[N, T]``.
        """
        return project(self.projection, self.given(items, learned))

    def given(self, items: Keys, learned: Tensor) -> Tensor:
        """Return what :func:`project` takes, ``x | mask | e``, ``[N, D + 1 + T]``."""
        vectors, found = self.store.get(items)
        mask = place(found, learned.device).to(learned)
        return torch.cat([place(vectors, learned.device), mask.unsqueeze(1), learned], 1)

    def look_ups(self) -> tuple[int, int]:
        """Return how many look-ups have found a vector so far, and how many have not."""
        return self.store.hits, self.store.misses

    def missing_share(self, since: tuple[int, int]) -> float:
        """Return which share of the look-ups since then has found no vector."""
        hits, misses = (now - then for now, then in zip(self.look_ups(), since, strict=True))
        return misses / max(1, hits + misses)
