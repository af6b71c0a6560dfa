"""The models of a run, made as its config says."""

from __future__ import annotations

from learners.metrics import MetricOptions
from learners.models import ModelContext, build
from learners.samples import SampleSchema
from learners.vectors import VectorStore
from stream_app.config import RunConfig
from stream_app.entrant import Entrant
from stream_app.oracle import BEST, Oracle

__all__ = ["build_entrants"]


def build_entrants(
    config: RunConfig, schema: SampleSchema, *, live: bool = False, vectors: VectorStore | None = None
) -> list[Entrant]:
    """Build the models of a run, and the best possible scores where the samples know them.

    Args:
        config: names the models.
        schema: of the samples.
        live: whether the run follows a stream and need not repeat a clock.
        vectors: of items, which the run fills.

    Raises:
        ModelError: there is no such model, or it does not take an option.
    """
    options = MetricOptions(window_ms=config.replay.window_ms, window_requests=config.replay.window_requests)
    entrants = []
    for name in config.replay.models:
        context = ModelContext(
            schema=schema,
            name=name,
            seed=config.replay.seed,
            device=config.replay.device,
            live=live,
            ignored_features=config.replay.ignored_features,
            vectors=vectors,
        )
        learner = build(config.model_type(name), config.model_options(name), context)
        entrants.append(Entrant(name, learner, tuple(config.replay.slices), options))
    if schema.has_truth:
        entrants.append(Entrant(BEST, Oracle(), tuple(config.replay.slices), options))
    return entrants
