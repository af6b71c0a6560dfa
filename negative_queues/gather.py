"""All ranks' rows in rank order, so that each rank's queue is that of one process with the joined batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Joined", "agree", "all_gather_rows"]


class Joined(NamedTuple):
    """Rows of all ranks, ``[N, ...]``, and where this rank's begin among them."""

    rows: Tensor
    first: int


def all_gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Joined:
    """Return the rows of all ranks in rank order, on every rank; ranks may bring different numbers of rows.

    No gradient passes. Without an initialised ``torch.distributed`` it is the rows themselves.

    Args:
        rows: ``[n, ...]``; all but the first dimension equal on all ranks.
        group: of ranks; None for all.
    """
    if not dist.is_initialized():
        return Joined(rows.detach(), 0)
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device), group=group)
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return Joined(joined, sum(counts[: dist.get_rank(group)]))


def agree(fine: Tensor, group: dist.ProcessGroup | None = None) -> bool:
    """Return whether a condition (a bool scalar) holds on every rank; itself without ``torch.distributed``."""
    if not dist.is_initialized():
        return bool(fine)
    flag = fine.to(torch.int32).reshape(1).clone()
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
    return bool(flag)
