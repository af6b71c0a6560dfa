"""What the joiner is told: which actions label, how long to wait, what goes into a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

FeatureKind = Literal["float", "id"]
MAX_BLOCK_REQUESTS: Final = 32_767


class ItemSequence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sequence of items a user acted on."""

    kinds: tuple[str, ...] = ("click",)
    """Kinds of action that feed it."""
    domains: tuple[str, ...] = ()
    """Domains whose actions feed it; empty: all. The domain of an action is its own, else its item's (the newest metadata with
    ``ts <=`` the action's), else that of the candidate it acted on, else that of its page."""
    min_value: dict[str, float] = {}
    """Kinds that feed it only with a ``value`` of so much or more, and not without a value."""
    length: int = 50
    """Newest entries that a sample carries."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length = {self.length}: a sequence carries at least 1 entry; leave the sequence out instead")
        if not all(self.domains):
            raise ValueError(f"domains = {list(self.domains)}: an empty name is no domain; leave domains out to take all")
        _check_least("min_value", self.min_value, "kinds", self.kinds)


class JoinConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the joiner; a hash of them is the generation of its samples. All times in ms of event time."""

    label_kinds: tuple[str, ...] = ("click",)
    """Kinds of action that make a candidate positive."""
    label_min_value: dict[str, float] = {}
    """Of these, kinds that do so only with a ``value`` of so much or more, and not without one: ``{ watch = 0.5 }`` for what
    was watched at least half. Histories have thresholds of their own, ``min_value``."""
    policy: Literal["wait", "correct"] = "wait"
    """wait: a request leaves when its label window has passed. correct: it leaves at once as negative, and an action inside
    ``correction_window_ms`` adds a weighted positive row of its own (fake-negative weighting)."""
    label_window_ms: int = 1_800_000
    """How long after a request an action still labels it, with the policy wait."""
    correction_window_ms: int = 1_800_000
    """The same with the policy correct."""
    correction_weight: float = 1.0
    """Weight of the positive row that a correction adds."""
    lateness_ms: int = 5_000
    """How much older than the newest record of its topic partition a record may be before it is late."""
    max_clock_skew_ms: int = 86_400_000
    """A ``ts`` further than this from the record's broker time is a dead letter."""
    item_sequences: dict[str, ItemSequence] = msgspec.field(default_factory=lambda: {"click": ItemSequence()})
    """Histories of items in a sample, by name."""
    categories: bool = True
    """Whether the log knows categories of items or queries; False spares the models the tables for them."""
    query_length: int = 50
    """Newest queries that a sample carries; 0 where the log has no queries."""
    max_pending_per_user: int = 256
    """Requests of one user that may wait for labels; one more makes the oldest leave early (counted)."""
    max_foreign: int = 1_000
    """Records in a partition that is not their key's before the joiner stops: another partitioner wrote the topic."""
    request_features: dict[str, FeatureKind] = {}
    """Features of the page: name -> float, or id for anything to be looked up."""
    candidate_features: dict[str, FeatureKind] = {}
    """Features of the shown item, likewise."""
    vector_dim: int = 0
    """Numbers of every item's vector, as ``vectors.dim`` says: a record with another number is a dead letter. 0 leaves its
    vector to the learners, which pass it over, and the rest of it counts. Samples carry no vectors either way."""
    truth: bool = False
    """Whether candidates carry the label's probability (generators only)."""
    block_requests: int = 256
    """Requests in one block of samples, at most."""

    def __post_init__(self) -> None:
        for name in (
            "label_window_ms",
            "correction_window_ms",
            "lateness_ms",
            "max_clock_skew_ms",
            "query_length",
            "max_foreign",
            "vector_dim",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        _check_least("label_min_value", self.label_min_value, "label_kinds", self.label_kinds)
        if self.max_pending_per_user < 1:
            raise ValueError(f"max_pending_per_user = {self.max_pending_per_user} must be at least 1")
        if not 1 <= self.block_requests <= MAX_BLOCK_REQUESTS:
            raise ValueError(f"block_requests = {self.block_requests} must be in 1 to {MAX_BLOCK_REQUESTS}")
        if "query" in self.item_sequences:
            raise ValueError("item_sequences.query: the name is that of the sequence of queries; choose another")


def _check_least(name: str, least: Mapping[str, float], kinds_name: str, kinds: Sequence[str]) -> None:
    for kind, value in least.items():
        if kind not in kinds:
            raise ValueError(
                f"{name}.{kind} is a threshold for a kind that {kinds_name} = {list(kinds)} does not name: add it there, or "
                "take the threshold out"
            )
        if not math.isfinite(value):
            raise ValueError(f"{name}.{kind} = {value} must be a finite number")
