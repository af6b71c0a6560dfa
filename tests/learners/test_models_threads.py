"""Networks whose step is cut between threads: the check-suite with two of them, and what they learn against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from learners import attention_passes, mlp_passes, sim_extract
from learners.checks import CHECKS, SCHEMA, Case, random_block

CASES = [Case(kind, {}, SCHEMA) for kind in ("dnn", "din", "egin")]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, a range each however few rows there are."""
    for module in (attention_passes, mlp_passes, sim_extract):
        monkeypatch.setattr(module, "LEAST", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
@pytest.mark.usefixtures("two_threads")
def test_model_on_two_threads(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
@pytest.mark.usefixtures("two_threads")
def test_two_threads_learn_what_one_learns(case: Case) -> None:
    scores = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        learner = case.build(seed=0)
        scores[threads] = [learner.predict_learn(random_block(case.schema, seed=seed, n_items=80))[0] for seed in range(8)]
    for one, two in zip(scores[1], scores[2], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)
