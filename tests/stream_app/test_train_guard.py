"""What the guard calls bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream_app.guard import Guard, GuardError
from stream_app.train_config import TrainConfig


def guard_of(**options: Any) -> Guard:
    return Guard("m", TrainConfig(**{"guard_impressions": 10, "guard_history": 8, "guard_windows": 2, **options}))


def window(auc: float | None, log_loss: float = 0.4, impressions: float = 100.0) -> dict[str, float | None]:
    return {"auc": auc, "log_loss": log_loss, "impressions": impressions}


def test_bad_windows_in_a_row_stop_the_run_and_single_ones_do_not() -> None:
    guard = guard_of()
    guard.check_windows([window(0.8)] * 4)
    for _ in range(5):
        guard.check_windows([window(0.55)])
        assert guard.n_bad == 1
        guard.check_windows([window(0.7)])
        assert guard.n_bad == 0
    guard.check_windows([window(0.55)])
    with pytest.raises(GuardError, match=r"m: AUC 0.5400 where 0.\d+ is usual, for 2 windows in a row"):
        guard.check_windows([window(0.54), window(0.9)])


def test_a_log_loss_that_doubles_is_bad() -> None:
    guard = guard_of()
    guard.check_windows([window(0.8), window(0.8), window(0.8, 0.75)])
    with pytest.raises(GuardError, match=r"log loss 0.9000 where 0.4000 is usual"):
        guard.check_windows([window(0.8, 0.9)] * 2)


def test_bad_windows_do_not_become_usual() -> None:
    guard = guard_of(guard_windows=100)
    guard.check_windows([window(0.8)] * 8 + [window(0.5)] * 50)
    assert guard.n_bad == 50
    guard.check_windows([window(0.79)])
    assert guard.n_bad == 0


@pytest.mark.parametrize(
    "windows",
    [
        [window(0.8), window(0.2), window(0.2), window(0.2)],  # nothing is usual after one window
        [window(0.8)] * 8 + [window(0.2, impressions=9.0)] * 9,  # too few impressions to say
        [window(0.45)] * 8 + [window(0.4)] * 9,  # no better than chance before either
        [window(None)] * 8 + [window(0.4)] * 9,  # corrections alone have no AUC
    ],
)
def test_what_nobody_can_judge_is_not_judged(windows: list[dict[str, float | None]]) -> None:
    guard_of(guard_history=8 if len(windows) > 4 else 400).check_windows(windows)


def test_steps_and_states_that_are_no_numbers() -> None:
    guard = guard_of()
    scores = np.array([0.1, 0.2], np.float32)
    guard.check_step(scores, {"loss.click": 0.1, "loss.i2i": float("nan")})
    guard.check_state({"a": np.array([3e38, 3e38], np.float32), "n": np.array([1], np.int64)})
    for bad in ({"loss.click": float("nan")}, {"loss.i2i": float("inf")}):
        with pytest.raises(GuardError, match=r"m: loss"):
            guard.check_step(scores, bad)
    with pytest.raises(GuardError, match="scores"):
        guard.check_step(np.array([0.1, np.nan], np.float32), {})
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(GuardError, match="m: w is not finite"):
            guard.check_state({"w": np.array([0.0, value, 1.0], np.float32)})


def test_it_goes_on_from_its_notes() -> None:
    guard, again = guard_of(), guard_of()
    guard.check_windows([window(0.8)] * 4 + [window(0.5)])
    again.load(guard.notes())
    with pytest.raises(GuardError):
        again.check_windows([window(0.5)])
