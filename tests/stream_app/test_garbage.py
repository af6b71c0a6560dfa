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


@pytest.mark.parametrize("youngest", [0, 50_000])
def test_who_has_it_off_or_rarer_still_keeps_that(youngest: int) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(youngest, *before[1:])
        with rare_garbage_collection():
            assert gc.get_threshold()[0] == youngest
        assert gc.get_threshold()[0] == youngest
    finally:
        gc.set_threshold(*before)
