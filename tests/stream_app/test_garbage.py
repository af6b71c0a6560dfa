"""Python's search for cycles, which comes rarely while a replay runs and as ever after it."""

from __future__ import annotations

import gc

import pytest

from stream_app.garbage import RARE, rare_garbage_collection


def test_the_search_is_rare_inside_and_as_before_after_it_whatever_the_end() -> None:
    before = gc.get_threshold()
    with rare_garbage_collection():
        assert gc.get_threshold() == RARE != before
    assert gc.get_threshold() == before
    with pytest.raises(KeyboardInterrupt), rare_garbage_collection():
        raise KeyboardInterrupt
    assert gc.get_threshold() == before
