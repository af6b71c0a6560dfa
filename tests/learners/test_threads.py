"""Tasks side by side: what they return, what they raise, what they leave behind."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners import threads as module
from learners.threads import Team, held, team


@pytest.fixture(autouse=True)
def _own_setting() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def meet(barrier: threading.Barrier) -> int:
    """Return the thread once as many as the barrier waits for are here."""
    barrier.wait(timeout=600)
    return threading.get_ident()


@given(n=st.integers(0, 10_000), least=st.integers(0, 300), threads=st.integers(1, 9))
def test_a_cut_is_all_rows_in_order(n: int, least: int, threads: int) -> None:
    ranges = Team(threads).cut(n, least)
    assert [row for rows in ranges for row in range(rows.start, rows.stop)] == list(range(n))
    sizes = [rows.stop - rows.start for rows in ranges]
    assert len(ranges) <= threads
    assert max(sizes) - min(sizes) <= 1
    assert len(ranges) == 1 or min(sizes) >= max(least, 1)


def test_tasks_run_at_once_and_answer_in_their_order() -> None:
    torch.set_num_threads(3)
    barrier = threading.Barrier(3)
    with team() as threads:
        names = threads.run([partial(meet, barrier)] * 3)
        assert len(set(names)) == 3  # or the barrier would have broken
        assert threads.run([partial(int, n) for n in range(50)]) == list(range(50))


def test_torch_has_one_thread_inside_and_its_own_again_behind() -> None:
    torch.set_num_threads(2)
    barrier = threading.Barrier(2)

    def ask() -> tuple[int, int, bool]:
        barrier.wait(timeout=600)
        return torch.get_num_threads(), team().n, torch.is_grad_enabled()

    with team() as threads, torch.no_grad():
        assert threads.run([ask, ask]) == [(1, 1, False)] * 2
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), team():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_inside_held_torch_has_one_thread_and_a_team_has_all() -> None:
    torch.set_num_threads(3)
    barrier = threading.Barrier(3)
    with held():
        assert torch.get_num_threads() == 1
        with held(), team() as threads:
            assert threads.n == 3
            assert team().n == 1
            assert len(set(threads.run([partial(meet, barrier)] * 3))) == 3
        assert team().n == 3
    with pytest.raises(ZeroDivisionError), held():
        raise ZeroDivisionError
    assert (torch.get_num_threads(), team().n) == (3, 3)


def test_the_first_task_that_failed_is_raised_when_all_have_ended() -> None:
    torch.set_num_threads(2)
    ended: list[None] = []

    def fail(text: str) -> None:
        raise ValueError(text)

    def end() -> None:
        time.sleep(0.05)
        ended.append(None)

    tasks: list[Callable[[], None]] = [end, partial(fail, "first"), end, partial(fail, "second")]
    for _ in range(5):
        ended.clear()
        with team() as threads, pytest.raises(ValueError, match="first"):
            threads.run(tasks)
        assert len(ended) == 2
    with team() as threads:
        assert threads.run([partial(int, 1), partial(int, 2)]) == [1, 2]  # nobody has died of it


def test_an_interrupt_waits_for_the_other_thread() -> None:
    torch.set_num_threads(2)
    done, barrier = threading.Event(), threading.Barrier(2)

    def other() -> None:
        barrier.wait(timeout=600)
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        else:
            time.sleep(0.2)
            done.set()

    with pytest.raises(KeyboardInterrupt), team() as threads:
        threads.run([other, other])
    assert done.is_set()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["_Job.work", "_Job.end", "_Pool.call"])
def test_an_interrupt_between_tasks_waits_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as the caller's thread enters or leaves one of the steps around its tasks."""
    torch.set_num_threads(2)
    begun, done = threading.Event(), threading.Event()
    kind, step = name.split(".")
    whole = getattr(getattr(module, kind), step)
    interrupts = [KeyboardInterrupt]

    def cut(*given: object) -> None:
        if step == "call":
            whole(*given)
        if threading.current_thread() is threading.main_thread() and interrupts:
            assert begun.wait(timeout=600)
            raise interrupts.pop()
        if step != "call":
            whole(*given)

    def task() -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.2)
            done.set()
        else:
            assert begun.wait(timeout=600)

    monkeypatch.setattr(getattr(module, kind), step, cut)
    with pytest.raises(KeyboardInterrupt), team() as threads:
        threads.run([task, task])
    assert done.is_set()


def lines_of_run() -> list[int]:
    """Return the lines where the caller waits for a job: a loop that goes round or a call, where Python looks for signals."""
    lines, first = inspect.getsourcelines(module._beside)
    return [first + at for at, line in enumerate(lines) if line.strip().startswith(("while not job.ended:", "job.end()"))][:2]


@pytest.mark.parametrize("line", lines_of_run())
def test_a_second_interrupt_wherever_the_caller_waits_for_the_other_thread(line: int) -> None:
    """The first one comes as it begins to wait, the second on each line where it goes on to."""
    torch.set_num_threads(2)
    begun, done = threading.Event(), threading.Event()
    interrupts: list[int] = []

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and frame.f_lineno == line and interrupts == [1]:
            interrupts.append(2)
            raise KeyboardInterrupt
        return trace

    def trace_run(frame: FrameType, event: str, arg: object) -> Any:
        return trace if frame.f_code is module._beside.__code__ else None

    def task() -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(timeout=600)
            return
        begun.set()
        time.sleep(0.2)
        done.set()

    def end(job: Any) -> None:
        if not interrupts:
            interrupts.append(1)
            raise KeyboardInterrupt
        whole(job)

    whole = module._Job.end
    before = sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Job, "end", end)
        sys.settrace(trace_run)
        try:
            with pytest.raises(KeyboardInterrupt), team() as threads:
                threads.run([task, task])
        finally:
            sys.settrace(before)
        assert done.is_set()
        assert interrupts == [1, 2]


def test_a_thread_that_begins_while_another_is_held_has_all_threads() -> None:
    torch.set_num_threads(3)
    found: list[tuple[int, int]] = []

    def begin() -> None:
        thread = threading.Thread(target=lambda: found.append((torch.get_num_threads(), team().n)))
        thread.start()
        thread.join()

    with held():
        begin()
        with team() as threads:
            begin()
            threads.run([partial(int, n) for n in range(5)])
            begin()
    with team() as threads:
        begin()
        threads.run([partial(int, n) for n in range(5)])
        begin()
    begin()
    assert found == [(3, 3)] * 6
    assert torch.get_num_threads() == 3


def test_several_callers_do_not_mix() -> None:
    def call(caller: int, into: dict[int, list[list[int]]]) -> None:
        threads = Team(3)
        into[caller] = [threads.run([partial(int, caller * 100 + n) for n in range(7)]) for _ in range(100)]

    found: dict[int, list[list[int]]] = {}
    callers = [threading.Thread(target=call, args=(n, found)) for n in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert found == {n: [[n * 100 + i for i in range(7)]] * 100 for n in range(4)}


def test_what_tasks_hold_is_let_go() -> None:
    torch.set_num_threads(2)
    array = np.zeros(1000)
    held = weakref.ref(array)
    with team() as threads:
        threads.run([partial(np.sum, array)] * 2)
    del array
    for _ in range(60_000):  # a thread that came late may be about to see that there is nothing left to take
        if held() is None:
            break
        time.sleep(0.001)
    assert held() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    with team() as threads:
        threads.run([partial(meet, threading.Barrier(2))] * 2)
    child = os.fork()
    if child == 0:
        found = 255
        try:
            found = len(set(Team(2).run([partial(meet, threading.Barrier(2))] * 2)))
        finally:
            os._exit(found)  # never on into the tests that are the parent's
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="threads have no clocks of their own here")
def test_idle_threads_use_no_processor() -> None:
    torch.set_num_threads(2)
    with team() as threads:
        threads.run([partial(meet, threading.Barrier(2))] * 2)
    clocks = [time.pthread_getcpuclockid(each.ident) for each in threading.enumerate() if each.ident and each.name == "step"]
    assert clocks
    before = [time.clock_gettime(clock) for clock in clocks]
    time.sleep(0.5)
    for clock, start in zip(clocks, before, strict=True):  # what other tests left running is not of these
        assert time.clock_gettime(clock) - start < 0.1
