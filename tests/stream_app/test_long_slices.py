"""Threads behind a step: the scheduler is told, and nothing else of them changes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading

import pytest

from stream_app.long_slices import SLICE_NS, SchedAttr, take_long_slices
from stream_app.prefetch import prefetch
from stream_app.profile import Profile

GETATTR = {"x86_64": 315, "aarch64": 275}


def _asked() -> tuple[int, int, int]:
    """Return policy, nice value and slice (ns) of the calling thread."""
    attr = SchedAttr(ctypes.sizeof(SchedAttr))
    assert ctypes.CDLL(None).syscall(GETATTR[platform.machine()], 0, ctypes.byref(attr), ctypes.sizeof(attr), 0) == 0
    return attr.policy, attr.nice, attr.runtime


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() not in GETATTR, reason="Linux has slices")
def test_a_thread_has_long_slices_and_hands_them_on_and_others_do_not() -> None:
    mine, found = _asked(), []
    nice = min(19, mine[1] + 3)  # Whoever is nice already may be nicer, and not less.

    def behind() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        take_long_slices()
        found.append(_asked())
        begun = threading.Thread(target=lambda: found.append(_asked()))
        begun.start()
        begun.join()

    thread = threading.Thread(target=behind)
    thread.start()
    thread.join()
    release = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    slice_ns = SLICE_NS if release >= [6, 12] else found[0][2]
    assert found == [(mine[0], nice, slice_ns)] * 2
    assert _asked() == mine


def test_where_the_system_refuses_all_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> int:
        raise PermissionError("refused")

    for name in ("sched_getscheduler", "getpriority"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refused)
            assert list(prefetch(range(5), Profile())) == [0, 1, 2, 3, 4]
