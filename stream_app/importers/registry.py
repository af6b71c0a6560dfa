"""The kinds of file that can be imported, by name.

A kind from outside is an :class:`~stream_app.importers.source.ImporterKind` behind an entry point of the group
``freshet.importers``; its name must be the entry point's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from .source import ImporterKind, SourceError

__all__ = ["GROUP", "importer_kind", "importer_names"]

GROUP: Final = "freshet.importers"
_BUILT_IN: Final = {name: f".{name}" for name in ("globo", "mind", "movielens", "recbole", "rows", "taobao", "trivago")}


def importer_names() -> list[str]:
    """Return the names of all kinds, without importing any."""
    return sorted({*_BUILT_IN, *(entry.name for entry in _outside())})


def importer_kind(name: str) -> ImporterKind:
    """Return a kind by its name.

    Raises:
        SourceError: there is none of this name, or what its entry point names is no importer.
    """
    if name in _BUILT_IN:
        kind = importlib.import_module(_BUILT_IN[name], __package__).KIND
    else:
        kind = _load(name)
    if not isinstance(kind, ImporterKind):
        raise SourceError(f"importer {name!r}: its entry point gives a {type(kind).__name__}, an ImporterKind is needed")
    return kind


def _load(name: str) -> object:
    for entry in _outside():
        if entry.name == name:
            return entry.load()
    raise SourceError(
        f"there is no importer {name!r}; known: {', '.join(importer_names())}. One from outside is an entry point of {GROUP!r}"
    )


def _outside() -> Iterator[EntryPoint]:
    yield from entry_points(group=GROUP)
