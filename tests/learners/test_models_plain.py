"""What a GPU learns: every model with torch's own operations in place of the kernels, step by step against the kernels.

On the CPU :func:`learners.device.plain` sends a model the way that a GPU takes; with a GPU the same steps run there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from learners import device
from learners.adam import DenseAdam
from learners.checks import PLAIN_SCHEMA, SCHEMA, Case, random_block
from learners.models import BUILT_IN
from learners.network import NeuralLearner

RULES = {"covisitation", "last_clicked", "popularity", "trend"}  # no operation of torch's
CASES = [Case(kind, {}, schema) for kind in BUILT_IN if kind not in RULES for schema in (SCHEMA, PLAIN_SCHEMA)]
CASES += [
    Case("egin", {"place_bias": True}),
    Case("egin", {"node_bias": True, "subsample": 1e-3}),
    Case("din", {"admit_after": 2}),
]
CASES += [Case("dnn", {"expire_after_ms": 90_000}), Case("egin", {"graph_inputs": "frozen"}), Case("din", vectors=6)]
CASES += [Case("din", {"admit_after": 2})]
Where = Callable[[], AbstractContextManager[None]]
NAMES = ["-".join([case.kind, *case.options, *["vectors"] * bool(case.vectors), case.schema.generation]) for case in CASES]


def neural(case: Case, on: str = "cpu") -> NeuralLearner:
    learner = case.build(device=on)
    assert isinstance(learner, NeuralLearner)
    return learner


def check_both_learn_the_same(
    case: Case, one: NeuralLearner, other: NeuralLearner, there: Callable[[], AbstractContextManager[None]]
) -> None:
    """Each step begins alike: where a unit of a layer is at zero within rounding, two learners go ways of their own."""
    for seed in range(6):
        block, own = random_block(case.schema, 64, seed=seed), random_block(case.schema, 64, seed=seed)
        scores, stats = one.predict_learn(block)
        with there():
            of_other, stats_of_other = other.predict_learn(own)
            states = one.state(), {name: np.array(array) for name, array in other.state().items()}
        np.testing.assert_allclose(scores, of_other, atol=1e-6, rtol=1e-5)
        assert stats.keys() == stats_of_other.keys()
        for name, value in stats.items():
            assert value == pytest.approx(stats_of_other[name], rel=1e-4, abs=1e-5, nan_ok=True), name
        assert states[0].keys() == states[1].keys()
        for name, array in states[0].items():
            np.testing.assert_allclose(array, states[1][name], atol=1e-5, rtol=1e-4, err_msg=f"{name} after step {seed}")
        with there():
            other.load_state({name: np.array(array) for name, array in states[0].items()})


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_torchs_operations_learn_what_the_kernels_do(case: Case) -> None:
    one = neural(case)
    with device.plain():
        other = neural(case)
    assert isinstance(one.optimiser, DenseAdam)
    assert not isinstance(other.optimiser, DenseAdam)
    check_both_learn_the_same(case, one, other, device.plain)


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_gpu_learns_what_the_cpu_does(case: Case) -> None:
    check_both_learn_the_same(case, neural(case), neural(case, "cuda"), contextlib.nullcontext)


def test_each_operation_asks_for_its_way_in_one_place() -> None:
    """What asks for the device's type itself goes by kernels under ``plain`` too, and nothing here would see it."""
    package = Path(device.__file__).parent
    asking = [path for path in package.rglob("*.py") if re.search(r"device\.type [=!]=|is_cpu|is_cuda", path.read_text())]
    paces_itself = "models/semi.py"
    assert {path.relative_to(package).as_posix() for path in asking} == {"device.py", paces_itself}
