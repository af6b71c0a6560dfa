"""Figures that are counted many blocks at once: those of one block after the other, to the last bit, and their windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.checks import SCHEMA, random_block, replaced
from learners.metrics import MetricError, MetricOptions, SliceOptions
from learners.samples import SampleBlock
from stream_app.entrant import Entrant, Said, Scoring
from stream_app.figures_behind import FiguresBehind
from stream_app.oracle import Oracle
from stream_app.profile import Profile
from stream_app.score_record import ScoreRecord

N = 300
TS = np.sort(np.random.default_rng(1).integers(0, 40_000, N))
BLOCK = replaced(random_block(n_requests=N), request=np.arange(1, N + 1), ts=TS)
SCORES = np.random.default_rng(2).random((2, BLOCK.n_candidates)).astype(np.float32)
OFFSETS = BLOCK.ragged("candidate.item").offsets
FLOATS = (*SCHEMA.request_floats, *SCHEMA.candidate_floats)


def counted(
    cuts: list[int], asked: list[int], count_requests: int, *, corrections: bool, score_from: int | None, every: int = 0
) -> tuple[dict[str, bytes | str], list[dict[str, Any]]]:
    """Count parts that end at ``cuts``, ask for windows after some of them; return all states and the lines."""
    entrants = [Entrant(name, Oracle(), (), MetricOptions(window_ms=5_000, window_requests=every)) for name in ("a", "b")]
    record = ScoreRecord(SCHEMA, SliceOptions(standard=True, features=FLOATS), seed=3)
    lines: list[dict[str, Any]] = []
    scoring = Scoring(score_from, {}, corrections, record)
    figures = FiguresBehind(entrants, scoring, Profile(), lines.extend, count_requests)
    start = 0
    for number, stop in enumerate([*cuts, N]):
        scores = [of_model[OFFSETS[start] : OFFSETS[stop]] for of_model in SCORES]
        figures.count([BLOCK.slice(start, stop)], [scores])
        for step in range(asked[number % len(asked)]):
            said = [Said(), Said()]
            for each in said:
                each.note({"loss": 1.0 + number + step / 7})
            figures.write_windows(said)
        start = stop
    figures.write_windows([Said(), Said()])
    figures.drain()
    figures.close()
    states = {group: state for entrant in entrants for group, state in entrant.arrays().items()} | {"scored": record.state()}
    return {f"{group}/{name}": content(name, array) for group, state in states.items() for name, array in state.items()}, lines


def content(name: str, array: npt.NDArray[Any]) -> bytes | str:
    """Return the bits of an array; of an example its rows, since Arrow may write those of a slice in several ways."""
    return repr(SampleBlock.from_ipc(array.tobytes()).batch.to_pylist()) if name.startswith("example.") else array.tobytes()


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, N - 1), max_size=12, unique=True).map(sorted),
    asked=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    count_requests=st.integers(2, 2 * N),
    corrections=st.booleans(),
    score_from=st.sampled_from([None, int(TS[N // 2]), int(TS[-1]) + 1]),
    every=st.sampled_from([0, 37]),
)
def test_counted_at_once_or_one_by_one_the_figures_are_the_same(
    cuts: list[int], asked: list[int], count_requests: int, corrections: bool, score_from: int | None, every: int
) -> None:
    options: dict[str, Any] = {"corrections": corrections, "score_from": score_from, "every": every}
    at_once, lines = counted(cuts, asked, count_requests, **options)
    one_by_one, expected = counted(cuts, asked, 1, **options)
    assert lines == expected
    assert len(lines) >= 2
    assert [name for name in one_by_one if at_once[name] != one_by_one[name]] == []


def test_a_score_that_is_none_is_said_at_the_latest_when_drained() -> None:
    figures = FiguresBehind([Entrant("a", Oracle(), (), MetricOptions())], Scoring(None, {}, False), Profile(), lambda _: None)
    part: SampleBlock = BLOCK.slice(0, 3)
    figures.count([part], [[np.full(part.n_candidates, 2.0, np.float32)]])
    with pytest.raises(MetricError, match="is no probability"):
        figures.drain()
    figures.close()
