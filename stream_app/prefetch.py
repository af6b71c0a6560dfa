"""The next batches are read and decoded on a thread while this one is learned."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
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
    ready: queue.Queue[Item | _Ended[Item]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: Item | _Ended[Item]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # handed to the reader, whose error it is
            put(_Ended(error))
        else:
            put(_Ended(None))

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with profile.stage("wait for samples"):
                entry = ready.get()
            if isinstance(entry, _Ended):
                if entry.error is not None:
                    raise entry.error
                return
            yield entry
    finally:
        stop.set()
        thread.join()
