"""What a person must see of a queue to trust it: how full, how old, and how far its keys have drifted."""

from __future__ import annotations

import torch
from torch import Tensor

from negative_queues.key_queue import KeyQueue

__all__ = ["cosine", "telemetry"]


def telemetry(queue: KeyQueue, now_ms: int | None = None) -> dict[str, float]:
    """Return ``fill`` (share of the capacity), ``age.mean`` and ``age.max`` in enqueues; with ``now_ms`` (UTC) also in ms.

    Costs a pass over the queue and, on a GPU, a wait for it: ask now and then, not in every step.

    >>> queue = KeyQueue(4, 1, columns=())
    >>> for ts in (1_000, 3_000):
    ...     _ = queue.enqueue(torch.ones(1, 1), ts_ms=ts)
    >>> telemetry(queue, now_ms=4_000)
    {'fill': 0.5, 'age.mean': 0.5, 'age.max': 1.0, 'age_ms.mean': 2000.0, 'age_ms.max': 3000.0}
    """
    ages = {"age": queue.ages()}
    if now_ms is not None:
        ages["age_ms"] = queue.ages_ms(now_ms)
    figures = {"fill": queue.fill / queue.capacity}
    for name, age in ages.items():
        figures[f"{name}.mean"] = float(age.double().mean()) if queue.fill else 0.0
        figures[f"{name}.max"] = float(age.max()) if queue.fill else 0.0
    return figures


def cosine(stored: Tensor, encoded: Tensor) -> float:
    """Return the mean cosine between stored keys and the same entries encoded now, ``[n, D]`` each; 1 is no drift.

    Raises:
        ValueError: the shapes differ.
    """
    if stored.shape != encoded.shape:
        raise ValueError(f"stored keys are {list(stored.shape)}, encoded ones {list(encoded.shape)}")
    if not len(stored):
        return 1.0
    return float(torch.nn.functional.cosine_similarity(stored.detach().float(), encoded.detach().float(), dim=1).mean())
