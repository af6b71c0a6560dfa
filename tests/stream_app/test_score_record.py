"""What a run keeps of what it scored: a function of the requests, whatever their blocks, their order and a kill."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.checks import SCHEMA, random_block, replaced
from learners.metrics import Fingerprint, MetricError
from learners.samples import Ragged, SampleBlock
from stream_app.score_record import EXAMPLES, ScoreRecord

BLOCK = replaced(random_block(n_requests=400), request=np.arange(1, 401))


def recorded(blocks: Sequence[SampleBlock], record: ScoreRecord | None = None) -> ScoreRecord:
    record = record or ScoreRecord(SCHEMA, seed=3)
    for block in blocks:
        record.observe(block, None)
    return record


def kept(record: ScoreRecord) -> list[int]:
    return [int(block.column("request")[0]) for block in record.examples()]


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 399), max_size=5, unique=True))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    whole = recorded([BLOCK])
    parts = recorded([BLOCK.slice(a, b) for a, b in itertools.pairwise([0, *sorted(cuts), 400])])
    assert parts.fingerprint.describe() == whole.fingerprint.describe()
    assert kept(parts) == kept(whole)
    assert [part.tolist() for part in parts.items()] == [part.tolist() for part in whole.items()]


def test_a_stop_and_another_start_change_nothing() -> None:
    whole = recorded([BLOCK.slice(at, at + 50) for at in range(0, 400, 50)])
    half = recorded([BLOCK.slice(at, at + 50) for at in range(0, 200, 50)])
    again = ScoreRecord(SCHEMA, seed=3)
    again.load_state({name: array.copy() for name, array in half.state().items()})
    recorded([BLOCK.slice(at, at + 50) for at in range(200, 400, 50)], again)
    ours, theirs = again.state(), whole.state()
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_examples_have_a_label_and_a_history_where_there_are_such() -> None:
    examples = recorded([BLOCK]).examples()
    assert len(examples) == EXAMPLES
    assert all(block.ragged("candidate.label").values.any() and len(block.ragged("click.item").values) for block in examples)
    assert kept(recorded([BLOCK], ScoreRecord(SCHEMA, seed=4))) != kept(recorded([BLOCK]))
    unclicked = BLOCK.ragged("candidate.label")
    plain = replaced(BLOCK, candidate__label=Ragged(np.zeros_like(unclicked.values), unclicked.offsets))
    assert len(recorded([plain]).examples()) == EXAMPLES


def test_only_requests_that_count_are_kept() -> None:
    record = ScoreRecord(SCHEMA, seed=3)
    final = np.arange(400) >= 390
    record.observe(BLOCK, final)
    assert len(kept(record)) == 10
    assert min(kept(record)) > 390
    assert record.fingerprint.describe()["requests"] == 10
    assert record.fingerprint.describe()["first_ts"] == BLOCK.column("ts")[390]


def test_the_order_of_requests_does_not_change_the_fingerprint() -> None:
    shuffled = BLOCK.take(np.random.default_rng(0).permutation(400))
    assert recorded([shuffled]).fingerprint.describe() == recorded([BLOCK]).fingerprint.describe()
    one, other = Fingerprint(), Fingerprint()
    one.add(BLOCK.slice(0, 100))
    other.add(BLOCK.slice(100, 400))
    one.merge(other)
    assert one.describe() == recorded([BLOCK]).fingerprint.describe()


@pytest.mark.parametrize(
    "change",
    [
        lambda: replaced(BLOCK, request=np.arange(2, 402)),
        lambda: replaced(BLOCK, ts=BLOCK.column("ts") + 1),
        lambda: replaced(BLOCK, candidate__item=_with_one_more("candidate.item")),
        lambda: replaced(BLOCK, candidate__label=_with_one_flipped()),
        lambda: BLOCK.slice(0, 399),
        lambda: SampleBlock.concat([BLOCK, BLOCK.slice(0, 1)]),
    ],
)
def test_whatever_is_scored_otherwise_changes_the_fingerprint(change: Callable[[], SampleBlock]) -> None:
    changed, same = recorded([change()]), recorded([BLOCK])
    assert changed.fingerprint.describe()["fingerprint"] != same.fingerprint.describe()["fingerprint"]


def _with_one_more(column: str) -> Ragged:
    values, offsets = BLOCK.ragged(column)
    changed = values.copy()
    changed[17] += 1
    return Ragged(changed, offsets)


def _with_one_flipped() -> Ragged:
    values, offsets = BLOCK.ragged("candidate.label")
    changed = values.copy()
    changed[17] = 1 - changed[17]
    return Ragged(changed, offsets)


def test_an_older_checkpoint_is_refused() -> None:
    with pytest.raises(MetricError, match="kept no record of what it scored"):
        ScoreRecord(SCHEMA).load_state({})
    with pytest.raises(MetricError, match="does not fit this version"):
        Fingerprint().load_state({"words": np.zeros(2, np.int64)})
