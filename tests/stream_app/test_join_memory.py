"""The joiner's memory is bounded by its options, however many users and items the log has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from stream_app.durable_join import Reading, fresh_header
from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression, ImpressionItem
from stream_app.joiner.config import JoinConfig
from stream_app.state import RocksState
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

CONFIG = JoinConfig(label_window_ms=500, lateness_ms=0)
PAGES = 8_000
STEP_MS = 10
READ = 100


def log_of_new_users() -> MemoryLog:
    """Return a log in which each page is another user's, and clicked."""
    log = MemoryLog()
    pages, clicks = [], []
    for i in range(PAGES):
        ts, user = 1_000_000 + i * STEP_MS, f"u{i}"
        page = Impression(f"r{i}", user, ts, [ImpressionItem(f"i{i + k}") for k in range(5)], query=f"q{i}")
        pages.append(Message(ts, user.encode(), msgspec.json.encode(page)))
        click = Action(user, f"i{i}", ts + 5, "click", f"r{i}")
        clicks.append(Message(ts + 5, user.encode(), msgspec.json.encode(click)))
    log.create(IMPRESSIONS, 1).append(0, pages)
    log.create(ACTIONS, 1).append(0, clicks)
    return log


def sizes(folder: Path, cache_entries: int) -> list[int]:
    """Return the bytes of the joiner's arrays after each quarter of the log."""
    log = log_of_new_users()
    found: list[int] = []
    with RocksState(folder, fresh_header(log, CONFIG, 0, 1), len(CONFIG.item_sequences), cache_entries) as state:
        reading = Reading(log, CONFIG, 0, 1, state, READ)
        while reading.advance()[0]:
            state.commit()
            if reading.joiner.inputs[0].position >= (len(found) + 1) * PAGES // 4:
                arrays = (state.slab.words, state.slab.slots, state.slab.heap, state.slab.signatures)
                found.append(sum(array.nbytes for array in arrays))
    return found


@pytest.mark.parametrize("cache_entries", [50, 500])
def test_new_users_do_not_let_the_arena_grow(tmp_path: Path, cache_entries: int) -> None:
    quarters = sizes(tmp_path / "bounded", cache_entries)
    assert len(quarters) >= 3
    assert quarters[0] == quarters[-1]
    unbounded = sizes(tmp_path / "unbounded", 10 * PAGES)
    assert unbounded[-1] > 1.5 * unbounded[0]
    assert unbounded[-1] > 3 * quarters[-1]
