"""The knobs of the generator."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from stream_app.importers.source import SourceError

__all__ = ["DOMAINS", "SimulateOptions"]

DOMAINS: Final = ("video", "product")
"""Names of the domains where there are two."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Scale = Annotated[float, msgspec.Meta(ge=0)]


class SimulateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is simulated; the log is a function of these values alone.

    Raises:
        SourceError: there are too few items or queries for the rest.
    """

    requests: Count = 30_000
    candidates: Count = 10
    """Items shown per request."""
    users: Count = 1_000
    queries: Count = 400
    items: Count = 2_000
    categories: Count = 20
    dim: Count = 8
    """Of the latent interests."""
    domains: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    """2: videos and products; ``items``, ``categories`` and ``queries`` are of each. A session is in one of them."""
    shared: Share = 0.5
    """Part of a user's interests that is the same in both domains: 0 is none, 1 all."""
    video_share: Share = 0.3
    """With two domains: sessions on videos, of users who have come to them."""
    video_late: Share = 0.5
    """With two domains: users who come to videos only during the run, evenly; until then they look at products alone."""
    pages_of: Literal["both", "video"] = "both"
    """With two domains: ``video`` logs no pages of products, only what was clicked there."""
    short_watches: Share = 0.0
    """With two domains: videos that are begun and left, of those shown and not watched. Above 0, watches have a ``value``, the
    share that was watched, and those from one half on label and stand in histories."""
    vector_dim: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Numbers of the vector that comes with each item; 0 is none."""
    vector_noise: Scale = 0.5
    """Length of the noise in an item's vector, against what it tells of the item."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    partitions: Count = 4

    start_ts: Annotated[int, msgspec.Meta(ge=0)] = 1_750_000_000_000
    """UTC ms of the first request."""
    rate: Annotated[float, msgspec.Meta(gt=0)] = 0.35
    """Requests per second of event time."""
    concurrency: Count = 64
    """Sessions that run side by side; a session's requests are ``concurrency / rate`` seconds apart."""
    session_requests: Count = 4
    """Requests of one user, on one topic, before the session ends."""

    query_share: Share = 0.7
    """Requests with a query; the rest are visits of a start page."""
    off_topic: Share = 0.2
    """Sessions on any category rather than one of the user's own."""
    new_items: Share = 0.2
    """Items that arrive during the run, evenly; the rest are there from the start."""

    bias: float = -3.0
    """Log odds of a click where nothing speaks for or against it."""
    affinity: Scale = 3.0
    """Weight of the cosine of user and item."""
    match: Scale = 0.8
    """Added where the item is of the query's category."""
    quality: Scale = 0.3
    """Standard deviation of the items' own attraction."""
    repeat: Scale = 0.8
    """Added where the item is of the category that the user clicked last."""
    position: Scale = 0.2
    """Taken off per ``ln(1 + position)``."""
    noise: Share = 0.0
    """Share of clicks that are a coin toss with ``noise_rate``."""
    noise_rate: Share = 0.1
    drift: Scale = 0.0
    """Radians per day by which interests turn away from where they began; a quarter turn is a new person."""

    label_window_ms: Annotated[int, msgspec.Meta(ge=2)] = 600_000
    """All clicks come within this time of their request."""
    click_delay_ms: Annotated[float, msgspec.Meta(gt=0)] = 30_000.0
    """Mean of the exponential delay, before it is cut at the label window."""

    def __post_init__(self) -> None:
        there = self.items - int(self.new_items * self.items)
        if there < 2 * self.candidates:
            raise SourceError(
                f"items = {self.items}: {there} are there from the start, and {self.candidates} candidates need at least "
                f"{2 * self.candidates}; set items higher, or candidates or new_items lower"
            )
        for name, value in (("items", self.items), ("queries", self.queries)):
            if value < self.categories:
                raise SourceError(f"{name} = {value}: at least one per category is needed, and categories = {self.categories}")
