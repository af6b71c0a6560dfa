"""The next batches are read and decoded on a thread while this one is learned."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from stream_app.long_slices import take_long_slices
from stream_app.profile import Profile

Item = TypeVar("Item")


class _Ended(NamedTuple):
    """The end of the items, and the error that they ended with."""

    error: BaseException | None


def prefetch(items: Iterable[Item], profile: Profile, depth: int = 4, at_once: int = 1) -> Generator[Item, None, None]:
    """Yield the items in their order, some of them made ahead on a thread; an error comes where it belongs.

    The thread ends when the items do, and when this iterator is closed.

    Args:
        items: iterated on the thread.
        profile: told how long this iterator had to wait for the thread.
        depth: hand-overs made ahead at most.
        at_once: items that are handed over together. Each hand-over wakes both threads, and one that wakes takes the
            interpreter from the other.
    """
    ready: SimpleQueue[list[Item] | _Ended] = SimpleQueue()
    room: SimpleQueue[None] = SimpleQueue()  # one per hand-over that may be made ahead
    stop = threading.Event()
    for _ in range(depth):
        room.put(None)

    def make() -> None:
        made: list[Item] = []
        ended = _Ended(None)
        try:
            take_long_slices()
            for item in items:
                made.append(item)
                if len(made) == at_once:
                    room.get()
                    ready.put(made)
                    made = []
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the reader, whose error it is
            ended = _Ended(error)
        ready.put(made)
        ready.put(ended)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with profile.stage("wait for samples"):
                entry = ready.get()
            room.put(None)
            if isinstance(entry, _Ended):
                if entry.error is not None:
                    raise entry.error
                return
            yield from entry
    finally:
        stop.set()
        room.put(None)
        thread.join()
