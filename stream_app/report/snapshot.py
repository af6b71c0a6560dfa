"""What a run's page shows beside the windows of its figures, taken from the run itself: one object, ``RUN/report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from learners.embeddings import Likeness, tables_likeness
from learners.explain import Explanation, explain
from learners.metrics import as_json
from learners.samples import QUERY, SampleBlock, SampleSchema
from stream_app.config import RunConfig
from stream_app.entrant import Entrant
from stream_app.oracle import BEST
from stream_app.report.slices import slices_json
from stream_app.score_record import ScoreRecord

FORMAT = 1
MOST_ENTRIES, MOST_CANDIDATES, MOST_LINKS = 40, 30, 120
"""Of a request that is looked at: newest history entries, candidates, edges of a kind."""

__all__ = ["FORMAT", "Reportable", "snapshot"]


class Reportable(Protocol):
    """A run that can be shown."""

    config: RunConfig
    entrants: list[Entrant]
    record: ScoreRecord
    schema: SampleSchema
    delayed: bool
    requests: int
    ts: int

    def wall_seconds(self) -> float:
        """Return the wall time of the run."""

    def lag(self) -> Mapping[str, float]:
        """Return how far it is behind, in seconds, by what it is behind; nothing where there is nothing to wait for."""


def snapshot(run: Reportable, *, finished: bool) -> dict[str, Any]:
    """Return what the run is and has reached.

    Args:
        run: not learning while this is taken.
        finished: whether this is its end; only then are embeddings compared.
    """
    models = {entrant.name: entrant for entrant in run.entrants if entrant.name != BEST}
    replay = run.config.replay
    return {
        "format": FORMAT,
        "finished": finished,
        "log": run.config.log,
        "generation": run.schema.generation,
        "join": msgspec.to_builtins(run.config.join),
        "from": replay.start,
        "to": replay.stop,
        "score_from": replay.score_from,
        "evaluation": "delayed" if run.delayed else "immediate",
        "seed": replay.seed,
        "batch_requests": replay.batch_requests,
        "requests": run.requests,
        "ts": run.ts,
        "seconds": round(run.wall_seconds(), 3),
        "scored": run.record.fingerprint.describe(),
        "has_category": run.schema.has_category,
        "models": {name: _model(entrant, run, finished) for name, entrant in models.items()},
        "best": next((as_json(each.final.figures()) for each in run.entrants if each.name == BEST), None),
        "slices": slices_json(run.record.cells.cells, {each.name: each.by_slice for each in run.entrants}, BEST),
        "examples": [_example(block, models) for block in run.record.examples()],
    }


def _model(entrant: Entrant, run: Reportable, finished: bool) -> dict[str, Any]:
    reliability = entrant.final.slices["all"].reliability()
    described = entrant.learner.describe()
    likenesses = tables_likeness(entrant.learner, *run.record.items()) if finished else {}
    return {
        "type": run.config.model_type(entrant.name),
        "figures": as_json(entrant.final.figures()),
        "impressions_per_s": round(entrant.learned / entrant.seconds, 1) if entrant.seconds > 0 else None,
        "reliability": [[_short(value) for value in part] for part in zip(*reliability, strict=True)],
        "off": described.get("off", {}),
        "tables": described.get("tables", {}),
        "queues": described.get("queues", {}),
        "embeddings": {name: _likeness(found) for name, found in likenesses.items()},
    }


def _likeness(found: Likeness) -> dict[str, Any]:
    return {
        **{name: _finite(getattr(found, name)) for name in ("within", "between")},
        **{name: getattr(found, name) for name in ("pairs_within", "pairs_between", "items")},
        "matrix": np.round(found.matrix, 3).tolist(),
        "categories": [_id(category) for category in found.matrix_categories],
    }


def _example(block: SampleBlock, models: dict[str, Entrant]) -> dict[str, Any]:
    sequences = [*block.schema.item_sequences, *([QUERY] if block.schema.has_query else [])]
    starts = {name: _first_shown(block, name) for name in sequences}
    candidates = {name: _ids(block.ragged(f"candidate.{name}").values[:MOST_CANDIDATES]) for name in ("item", "category")}
    numbers = {name: block.ragged(f"candidate.{name}").values[:MOST_CANDIDATES].tolist() for name in ("label", "position")}
    return {
        "request": _id(block.column("request")[0]),
        "user": _id(block.column("user")[0]),
        "ts": int(block.column("ts")[0]),
        "query": _id(block.column("query")[0]),
        "n_candidates": block.n_candidates,
        "candidates": {**candidates, **numbers},
        "sequences": {name: _entries(block, name, starts[name]) for name in sequences},
        "models": {name: _explained(explain(entrant.learner, block), starts) for name, entrant in models.items()},
    }


def _entries_column(name: str) -> str:
    return f"{name}.id" if name == QUERY else f"{name}.item"


def _first_shown(block: SampleBlock, name: str) -> int:
    return max(0, len(block.ragged(_entries_column(name)).values) - MOST_ENTRIES)


def _entries(block: SampleBlock, name: str, start: int) -> dict[str, Any]:
    ids, ts = block.ragged(_entries_column(name)).values, block.ragged(f"{name}.ts").values
    age = block.column("ts")[0] - ts
    return {"n": len(ids), "ids": _ids(ids[start:]), "age_s": (age[start:] // 1000).tolist()}


def _explained(found: Explanation, starts: dict[str, int]) -> dict[str, Any]:
    looks = []
    for look in found.looks:
        start = starts[look.sequence]
        looks.append(
            {
                "name": look.name,
                "sequence": look.sequence,
                "values": np.round(look.values[:MOST_CANDIDATES, start:], 3).tolist(),
                "picked": [[at - start for at in row if at >= start] for row in look.picked[:MOST_CANDIDATES]],
            }
        )
    counts: dict[str, int] = {}
    links = []
    for link in found.links:
        counts[link.kind] = counts.get(link.kind, 0) + 1
        if counts[link.kind] <= MOST_LINKS:
            links.append([link.kind, list(link.first), list(link.second)])
    return {
        "scores": [_short(score) for score in found.scores[:MOST_CANDIDATES]],
        "looks": looks,
        "links": links,
        "edges": counts,
    }


def _ids(values: npt.NDArray[Any]) -> list[str]:
    return [_id(value) for value in values]


def _id(value: int) -> str:
    """Return how an id is shown: the first ten hexadecimal digits of its hash; nothing where it is missing."""
    return f"{int(value) & 0xFFFFFFFFFFFFFFFF:016x}"[:10] if value else ""


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _finite(value: float) -> float | None:
    return _short(value) if np.isfinite(value) else None
