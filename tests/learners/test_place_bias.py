"""How lately a candidate was had, against a loop; and that a step learns the pair and nothing beside it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learners.checks import PLAIN_SCHEMA, SCHEMA, Case, random_block
from learners.models.egin import EGIN
from learners.network import NeuralLearner
from learners.place_bias import AGES, entries_ago
from learners.samples import Ragged

LISTS = st.lists(st.tuples(st.lists(st.integers(0, 6), max_size=5), st.lists(st.integers(0, 6), max_size=80)), max_size=4)


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged(np.array([each for part in lists for each in part], np.int64), np.cumsum([0, *map(len, lists)]))


@given(LISTS)
def test_the_newest_occurrence_counts(requests: list[tuple[list[int], list[int]]]) -> None:
    found = entries_ago(ragged([items for items, _ in requests]), ragged([past for _, past in requests]))
    wanted = []
    for items, past in requests:
        for item in items:
            ago = past[::-1].index(item) + 1 if item and item in past else 0
            wanted.append(min(int(np.ceil(np.log2(ago))) + 1, AGES - 1) if ago else 0)
    assert found.tolist() == wanted


def test_positions_and_ages_have_a_logit_each() -> None:
    for schema in (SCHEMA, PLAIN_SCHEMA):
        learner = Case("egin", {"place_bias": True}, schema).build()
        assert isinstance(learner, NeuralLearner)
        assert isinstance(learner.network, EGIN)
        blocks = [random_block(schema, seed=seed) for seed in range(3)]
        pairs = set()
        for block in blocks:
            learner.learn(block)
            candidates, positions = block.ragged("candidate.item"), block.ragged("candidate.position").values
            pairs |= set(zip(positions.tolist(), entries_ago(candidates, block.ragged("click.item")).tolist(), strict=True))
        assert learner.network.tables["place"].describe()["rows"] == len(pairs)
