"""What the trainer is told beside the options that it shares with a replay."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["TrainConfig"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Factor = Annotated[float, msgspec.Meta(gt=1)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How live samples are taken, and when a run is stopped because its model went wrong.

    Models, seed, threads, ``batch_requests``, windows, slices and ``checkpoint_seconds`` are those of ``[replay]``.
    """

    wait_ms: Annotated[int, msgspec.Meta(ge=0)] = 50
    """How long a row waits at most for its step to fill up, wall time, while the models have nothing else to do."""
    queue_batches: Positive = 8
    """Steps that are read and decoded ahead, at most."""
    record_order: bool = True
    """Note which rows each step took (RUN/order.jsonl, about 30 bytes a step), so that the run can be repeated bit for bit."""
    group: Annotated[str, msgspec.Meta(min_length=1)] = "freshet-trainer"
    """Consumer group that Kafka is told the run's position of after each checkpoint, for monitors of lag; never read back."""
    guard: bool = True
    """Stop a run whose scores, loss or weights are no numbers any more, or whose figures collapse."""
    guard_skill: Share = 0.5
    """A window is bad whose AUC has less than this share of the usual one above chance: 0.5 + share * (median - 0.5)."""
    guard_log_loss: Factor = 2.0
    """A window is bad whose log loss is more than this times the usual one (the median of the good windows before)."""
    guard_windows: Positive = 3
    """Bad windows in a row that stop the run."""
    guard_history: Positive = 20
    """Good windows that the usual figures are the median of; a quarter of them must be there before any is judged."""
    guard_impressions: Annotated[int, msgspec.Meta(ge=0)] = 1_000
    """Windows with fewer impressions are not judged."""
