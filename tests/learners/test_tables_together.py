"""Tables that are looked up and learned together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learners.tables import EmbeddingTable, TableConfig
from learners.tables.together import Together, asked_together

TS = 1_700_000_000_000


@pytest.mark.parametrize("restore", ["load_state", "apply_delta"])
@pytest.mark.parametrize("optimiser", ["adagrad", "sgd"])  # the step of the first is one call for all tables
def test_what_was_looked_up_before_a_restore_is_not_learned_after_it(optimiser: Any, restore: str) -> None:
    """The rows would be other keys' by then."""
    tables = [EmbeddingTable(f"t{at}", TableConfig(dim=2, optimiser=optimiser)) for at in range(2)]
    together, asked = Together(tables), asked_together([np.arange(1, 5), np.arange(11, 15)])
    torch.autograd.backward(together.look_up(asked, learn=True, ts=TS).sum())
    together.apply_gradients()
    marks = [table.mark() for table in tables]
    tables[1].update(np.array([99]), torch.ones(1, 2), TS)
    states = [{n: np.array(a) for n, a in table.state().items()} for table in tables]
    deltas = [table.delta_state(mark) for table, mark in zip(tables, marks, strict=True)]
    torch.autograd.backward(together.look_up(asked, learn=True, ts=TS).sum())
    if restore == "load_state":
        tables[1].load_state(states[1])
    else:
        tables[0].apply_delta(deltas[0])
    with pytest.raises(RuntimeError, match="needs a look_up"):
        together.apply_gradients()
    torch.autograd.backward(together.look_up(asked, learn=True, ts=TS).sum())
    together.apply_gradients()
