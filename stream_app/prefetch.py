"""The next batches are read and decoded on a thread while this one is learned."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

from stream_app.profile import Profile

Item = TypeVar("Item")


class _Ended(Generic[Item]):
    """The end of the items, and the error that they ended with."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterable[Item], profile: Profile, depth: int = 4) -> Generator[Item, None, None]:
    """Yield the items in their order, up to ``depth`` of them made ahead on a thread; an error comes where it belongs.

    The thread ends when the items do, and when this iterator is closed.

    Args:
        items: iterated on the thread.
        profile: told how long this iterator had to wait for the thread.
        depth: items made ahead at most.
    """
    ready: SimpleQueue[Item | _Ended[Item]] = SimpleQueue()
    room: SimpleQueue[None] = SimpleQueue()  # one per item that may be made ahead
    stop = threading.Event()
    for _ in range(depth):
        room.put(None)

    def make() -> None:
        try:
            for item in items:
                room.get()
                if stop.is_set():
                    return
                ready.put(item)
        except BaseException as error:  # handed to the reader, whose error it is
            ready.put(_Ended(error))
        else:
            ready.put(_Ended(None))

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
            yield entry
    finally:
        stop.set()
        room.put(None)
        thread.join()
