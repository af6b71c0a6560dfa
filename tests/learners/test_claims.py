"""Tasks that threads claim in stages: each is done once, in its stage, whoever comes, is late or fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from learners import claims
from learners import threads as module
from learners.threads import Team


class Shared:
    """Work in two stages that threads share: what each task did, by whom, and what was done when a task began."""

    def __init__(self, *sizes: int, threads: int = 2, task: Callable[[int, int], None] = lambda stage, at: None) -> None:
        self.sizes, self.task = sizes, task
        self.counts = claims.words(len(sizes), threads)
        self.done: list[tuple[int, int, int]] = []
        self.order_kept = True

    def __call__(self, until: int) -> None:
        for stage, n in enumerate(self.sizes):
            while (at := claims.claim(self.counts, stage, n)) >= 0:
                before = sum(1 for other, *_ in self.done if other < stage)
                self.order_kept &= before == sum(self.sizes[:stage])
                self.task(stage, at)
                self.done.append((stage, at, threading.get_ident()))
                claims.done(self.counts, stage)
            if until == claims.BUSY:
                return
            goes_on = stage < len(self.sizes) - 1 or until == claims.DONE
            if goes_on and not claims.wait(self.counts, stage, n):
                return

    def by(self, threads: int, meanwhile: Callable[[], None] | None = None) -> set[int]:
        """Have it done; return by whom."""
        Team(threads).share(self, self.counts, self.sizes, meanwhile)
        return {thread for *_, thread in self.done}


@pytest.mark.parametrize("cores", [1, 64])  # who waits sleeps where threads are more than cores
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_shared_work_is_done_once_stage_after_stage(threads: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_CORES", cores)
    for _ in range(50):
        work = Shared(5, 1, 4, threads=threads)
        work.by(threads)
        assert [each[:2] for each in sorted(work.done)] == [(0, n) for n in range(5)] + [(1, 0)] + [(2, n) for n in range(4)]
        assert work.order_kept
        assert claims.settled(work.counts, work.sizes)


@numba.njit(nogil=True)
def mark(job: claims.Words, marks: npt.NDArray[np.int64], until: int) -> None:
    at = claims.claim(job, 0, len(marks))
    while at >= 0:
        marks[at] += 1
        claims.done(job, 0)
        at = claims.claim(job, 0, len(marks))
    if until == claims.DONE:
        claims.wait(job, 0, len(marks))


def test_no_task_is_claimed_twice_by_threads_that_hold_no_lock() -> None:
    counts, marks = claims.words(1, 3), np.zeros(200_000, np.int64)
    Team(3).share(partial(mark, counts, marks), counts, [len(marks)])
    assert (marks == 1).all()
    assert claims.settled(counts, [len(marks)])


def test_threads_share_work_and_what_is_late_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(3)
    work = Shared(3, 1, task=lambda stage, at: None if stage else (barrier.wait(timeout=600), None)[1])
    assert len(work.by(3)) == 3
    monkeypatch.setattr(module._Pool, "call", lambda *_: None)
    assert Shared(7, 2).by(3) == {threading.get_ident()}  # nobody comes


@pytest.mark.parametrize("fails_in_caller", [True, False])
def test_a_task_of_shared_work_that_fails_is_told_and_nobody_waits_for_it(fails_in_caller: bool) -> None:
    barrier, caller = threading.Barrier(2), threading.get_ident()

    def task(stage: int, at: int) -> None:
        assert stage == 0, "what comes after a task that failed"
        barrier.wait(timeout=600)
        if (threading.get_ident() == caller) == fails_in_caller:
            raise ZeroDivisionError

    for _ in range(20):
        work = Shared(2, 3, task=task)
        with pytest.raises(ZeroDivisionError):
            work.by(2)
        assert len(work.done) == 1
    assert len(Shared(2, 3, task=lambda stage, at: None).by(2)) > 0  # nobody has died of it


def test_the_caller_does_something_else_while_others_are_at_long_tasks() -> None:
    begun, seen, weight = threading.Event(), threading.Event(), torch.ones(1, requires_grad=True)
    found: list[torch.Tensor] = []

    def meanwhile() -> None:
        assert begun.wait(timeout=600)
        found.append(weight * 2)  # with a graph
        seen.set()

    def task(stage: int, at: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(timeout=600)
        else:
            begun.set()
            assert seen.wait(timeout=600)

    work = Shared(2, task=task)
    assert len(work.by(2, meanwhile)) == 2
    assert found[0].requires_grad
    assert Shared(2).by(1, partial(found.append, weight)) == {threading.get_ident()}
    assert len(found) == 2


def test_what_the_caller_raises_meanwhile_waits_for_the_other_thread() -> None:
    both, done = threading.Barrier(2), threading.Event()

    def task(stage: int, at: int) -> None:
        both.wait(timeout=600)  # a task each
        if threading.current_thread() is threading.main_thread():
            return
        for _ in range(60_000):
            if work.counts[claims.FAILED]:  # the caller has raised, and waits
                break
            time.sleep(0.001)
        time.sleep(0.1)
        done.set()

    def meanwhile() -> None:
        raise KeyboardInterrupt

    work = Shared(2, 1, task=task)
    with pytest.raises(KeyboardInterrupt):
        work.by(2, meanwhile)
    assert done.is_set()
    assert all(stage == 0 for stage, *_ in work.done)
