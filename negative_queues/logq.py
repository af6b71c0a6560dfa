"""Log probability of one draw, for the logQ correction of negatives that come from a stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from negative_queues.frequency import StreamingFrequency

__all__ = ["log_draw_probability"]


def log_draw_probability(frequency: StreamingFrequency, ids: Tensor, per_step: int) -> Tensor:
    """Return ``log q(id)``, the log probability that one entry of the stream is the id, float32 ``[n]`` on the ids' device.

    The estimate is of ``p``, the probability that a step meets the id; of ``per_step`` entries one is the id with
    ``q = p / per_step`` as long as an id is hardly ever twice in a step (Yi et al. 2019 leave the constant out: it cancels
    in the standard correction, not in the corrected one).

    Args:
        frequency: updated once per step with the ids of that step.
        ids: int64 ``[n]``.
        per_step: entries that a step brings, at least 1.
    """
    p = torch.from_numpy(frequency.probability(ids.cpu().numpy()))
    return (p.log() - math.log(max(per_step, 1))).float().to(ids.device)
