"""Jobs behind a loop: their order, their errors, their end."""

from __future__ import annotations

import threading
import time

import pytest

from stream_app.behind import Behind

PATIENCE_S = 300
"""Bounds what hangs."""


def test_jobs_are_done_in_their_order_on_one_thread_that_is_not_the_callers() -> None:
    behind, done, threads = Behind(backlog=3), [], set()

    def job(number: int) -> None:
        done.append(number)
        threads.add(threading.get_ident())

    for number in range(100):
        behind.put(lambda number=number: job(number))  # type: ignore[misc]
    behind.drain()
    assert done == list(range(100))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    behind.close()


def test_an_error_is_raised_where_jobs_are_put_and_nothing_is_done_after_it() -> None:
    behind, done = Behind(backlog=2), []

    def fails() -> None:
        raise ZeroDivisionError("the third")

    def put_all() -> None:
        for number in range(100):
            behind.put(fails if number == 2 else lambda number=number: done.append(number))  # type: ignore[misc]

    with pytest.raises(ZeroDivisionError, match="the third"):
        put_all()
    behind.close()
    assert done == [0, 1]


def test_draining_raises_the_error_of_a_job() -> None:
    behind = Behind()

    def fails() -> None:
        raise ZeroDivisionError("alone")

    behind.put(fails)
    with pytest.raises(ZeroDivisionError, match="alone"):
        behind.drain()
    behind.close()


def test_putting_waits_once_the_backlog_is_full() -> None:
    behind, go, put = Behind(backlog=2), threading.Event(), threading.Event()
    behind.put(go.wait)  # type: ignore[arg-type]
    behind.put(lambda: None)

    def third() -> None:
        behind.put(lambda: None)
        put.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not put.wait(0.2)
    go.set()
    thread.join(PATIENCE_S)
    assert put.is_set()
    behind.drain()
    behind.close()


def test_closing_drops_what_waits_and_a_later_job_begins_anew() -> None:
    behind, go, begun, done = Behind(), threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        go.wait(PATIENCE_S)
        done.append("first")

    behind.put(first)
    behind.put(lambda: done.append("dropped"))
    assert begun.wait(PATIENCE_S)
    waits, closing = behind._waiting[-1], threading.Thread(target=behind.close)
    closing.start()
    deadline = time.monotonic() + PATIENCE_S
    while not waits.cancelled() and time.monotonic() < deadline:
        time.sleep(0.001)
    go.set()  # It has dropped what waits, and waits for the first.
    closing.join(PATIENCE_S)
    assert done == ["first"]
    behind.put(lambda: done.append("after"))
    behind.drain()
    assert done == ["first", "after"]
    behind.close()


def test_a_backlog_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="backlog is 0"):
        Behind(backlog=0)
