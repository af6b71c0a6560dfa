"""What a killed import needs to go on, kept in a book (:mod:`.books`): a folder of the log, or a topic of the cluster.

1. The fingerprint names the source files (name, size, hashes of both ends), the importer, its options and the limit. Options at
   their defaults are not in it: a version that has more options goes on with what an earlier one began.
2. Just before the first append the book gets the ends of all raw topics: the *base*. What ends earlier, as a wrong option does,
   leaves nothing behind.
3. Batches are appended; nothing else is written.
4. After the last append the book says that the import is done, with its report.

A run that finds a base makes the same events again, and leaves out, per partition, as many records as there are behind it. Dead
after 2: nothing is left out. After any append of 3: exactly what was appended is left out, since a partition gets its records
in their order and none twice, and an append is all or nothing. After 4: the report is returned. So what the log itself keeps is
the progress, and nothing has to be kept in step with it. Each run claims the import first: when it counts, nothing of an
earlier run is under way any more.

Whether the events are the same, the fingerprint cannot say: another version may make others. So each partition's last record is
compared with the event that takes its place (:class:`~stream_app.importers.writer.EventWriter`). And all options are kept, so
that a default that has changed is found before anything is appended; of an import that a version began which did not keep them,
every record is compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from stream_app.events import RAW_TOPICS
from stream_app.topics import Log

from .books import Book, ImportState
from .source import SourceError

__all__ = ["Asked", "asked", "begin", "begun", "done_before", "fingerprint", "refuse_live", "skips"]

_END_BYTES: Final = 1 << 20
_FORMAT: Final = 2


class Asked(NamedTuple):
    """What an import is asked to do."""

    kind: str
    files: Sequence[Path]
    options: dict[str, Any]
    """Those that are not at their defaults, as JSON values."""
    limit: int | None
    every: dict[str, Any]
    """All options, as JSON values."""


def asked(kind: str, files: Sequence[Path], options: msgspec.Struct, limit: int | None) -> Asked:
    """Return what is asked."""
    every = msgspec.json.decode(msgspec.json.encode(options, enc_hook=_plain))  # as it is when it is read again
    return Asked(kind, files, _not_default(options), limit, every)


def _not_default(value: Any) -> Any:
    """Return a value as JSON has it, without fields of structs that are at their defaults, by value and at any depth."""
    if isinstance(value, msgspec.Struct):
        fields = {
            field.name: getattr(value, field.name) for field in msgspec.structs.fields(value) if not _is_default(field, value)
        }
        return {name: _not_default(each) for name, each in fields.items()}
    if isinstance(value, Mapping):
        return {str(key): _not_default(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_not_default(each) for each in value]
    return msgspec.to_builtins(_plain(value) if isinstance(value, Path) else value, enc_hook=_plain)


def _plain(value: Any) -> str:
    """Return a value that JSON does not have; of a file its name, since it may stand elsewhere and be spelled otherwise."""
    return value.name if isinstance(value, Path) else str(value)


def _is_default(field: Any, of: msgspec.Struct) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return bool(getattr(of, field.name) == field.default)
    return field.default_factory is not msgspec.NODEFAULT and bool(getattr(of, field.name) == field.default_factory())


def fingerprint(wanted: Asked) -> str:
    """Return the identity of an import: 16 hexadecimal digits."""
    digest = hashlib.sha256(msgspec.json.encode([_FORMAT, wanted.kind, wanted.limit, wanted.options], order="sorted"))
    for path in wanted.files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_END_BYTES)
            file.seek(max(0, size - _END_BYTES))
            ends = hashlib.sha256(head + file.read()).hexdigest()
        digest.update(msgspec.json.encode([path.name, size, ends]))
    return digest.hexdigest()[:16]


def begun(book: Book, identity: str, wanted: Asked, log: Log) -> ImportState | None:
    """Return the state of an import that an earlier run has begun; None if there was none, or none that appended anything.

    Raises:
        SourceError: another import into this log is unfinished: its records could not be told from this one's. Or the import
            was done, and its records are not there any more. Or it was cut off, and a default has changed since.
    """
    known = book.all(log)
    if identity in known:
        _check_still_there(known[identity], log, book)
        _check_defaults(known[identity], wanted, book)
        return known[identity]
    for other, state in known.items():
        if state.report is None:
            by = " with that version" if _untold(state, wanted) else ""
            raise SourceError(
                f"the import of {_named(state)} into this log was cut off, and this is another one: "
                f"{_differences(state, wanted)}. Run that one again{by} to finish it, or use {book.place}. (It is "
                f"{other} in `imports`)"
            )
    return None


def _check_defaults(state: ImportState, wanted: Asked, book: Book) -> None:
    """Refuse to go on where a default was another when the import began: the identity says only what is not at its default."""
    if state.report is not None or state.every is None:
        return
    if found := list(_changed(state.every, wanted.every)):
        raise SourceError(
            f"the import of {_named(state)} into this log was cut off, and the defaults of options have changed since: "
            f"{'; '.join(found)}. Finish it with the version of Freshet that began it, or import into {book.place}"
        )


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield in words the options of both versions that are not the same, at any depth."""
    for name in then.keys() & now.keys():
        a, b = then[name], now[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changed(a, b, f"{within}{name}.")
        elif a != b:
            yield f"option {within}{name}: {msgspec.json.encode(a).decode()} then, {msgspec.json.encode(b).decode()} now"


def begin(book: Book, identity: str, wanted: Asked, log: Log) -> ImportState:
    """Put an import that nobody has begun into the book, just before its first append; return its state.

    Not earlier: one that a wrong option or a bad row ends before it has appended anything is not in the way of another.

    Raises:
        SourceError: another import into this log has been begun since.
    """
    if begun(book, identity, wanted, log) is not None:
        raise SourceError(f"another process has begun this import: let that one finish, or use {book.place}")
    state = ImportState(
        kind=wanted.kind,
        files=[file.name for file in wanted.files],
        base=_ends(log),
        options=wanted.options,
        limit=wanted.limit,
        format=_FORMAT,
        every=wanted.every,
    )
    book.save(log, identity, state)
    return state


def done_before(book: Book, wanted: Asked, log: Log) -> str | None:
    """Return in words that the log holds a finished import of these files, and the way out; None where it holds none.

    For an import that is older than the log: the usual cause is that it was there before, by another name.
    """
    for other, state in book.all(log).items():
        if state.report is not None and _same_files(state, wanted):
            return (
                f"this log holds the import of {_named(state)} already, and this is another one: "
                f"{_differences(state, wanted)}. If what is there is what you want, there is nothing to do but to join it; to "
                f"have it otherwise, import into {book.place}. (It is {other} in `imports`)"
            )
    return None


def refuse_live(book: Book, wanted: Asked, log: Log) -> None:
    """Refuse to import at the time that it is now what may be in the log already: its events would follow, a second time.

    Raises:
        SourceError: an earlier version of Freshet has finished an import of such files.
    """
    for other, state in book.all(log).items():
        if state.report is not None and _same_files(state, wanted) and _untold(state, wanted):
            raise SourceError(
                f"this log holds the import of {_named(state)} already, by an earlier version of Freshet, and whether this is "
                "the same one cannot be told: with --live its events would come a second time. If what is there is what you "
                f"want, there is nothing to do but to join it; else import into {book.place}, or give other files other names. "
                f"(It is {other} in `imports`)"
            )


def _same_files(state: ImportState, wanted: Asked) -> bool:
    return (state.kind, state.files) == (wanted.kind, [file.name for file in wanted.files])


def _named(state: ImportState) -> str:
    return f"{', '.join(state.files)} ({state.kind})" if state.files else state.kind


def _differences(begun: ImportState, wanted: Asked) -> str:
    """Return in words how an import that was begun differs from what is asked."""
    found = _found(begun, wanted)
    if begun.options is None:
        found.append("an earlier version of Freshet began it, which named imports in another way")
    elif _untold(begun, wanted):
        found.append(
            "what is in the files has changed since, or an earlier version of Freshet began it, whose events are others"
        )
    return "; ".join(found) or "what is in the files has changed since"


def _untold(begun: ImportState, wanted: Asked) -> bool:
    """Whether only the identity tells them apart, and the two versions may have made it in different ways."""
    return begun.options is None or (begun.format != _FORMAT and not _found(begun, wanted))


def _found(begun: ImportState, wanted: Asked) -> list[str]:
    files = [file.name for file in wanted.files]
    pairs: list[tuple[str, Any, Any]] = [("kind", begun.kind, wanted.kind)]
    if begun.files != files:
        pairs.append(("files", ", ".join(begun.files) or "none", ", ".join(files) or "none"))
    if begun.options is not None:
        pairs.append(("limit", begun.limit, wanted.limit))
        pairs += [
            (f"option {name}", begun.options.get(name, "at its default"), wanted.options.get(name, "at its default"))
            for name in sorted({*begun.options, *wanted.options})
        ]
    return [f"{name}: {then} then, {now} now" for name, then, now in pairs if then != now]


def skips(state: ImportState, log: Log, n_partitions: int, book: Book) -> dict[str, list[int]]:
    """Return the records per topic and partition that earlier runs of this import appended.

    Raises:
        SourceError: the log is shorter than when the import began.
    """
    found: dict[str, list[int]] = {}
    names = log.topics()
    for name in RAW_TOPICS:
        if names.get(name) != n_partitions:
            continue
        base, topic = state.base.get(name, [0] * n_partitions), log.topic(name)
        found[name] = [book.appended(topic, p, base[p]) for p in range(n_partitions)]
        if min(found[name]) < 0:
            raise _replaced(name, book)
    return found


def _ends(log: Log) -> dict[str, list[int]]:
    names = log.topics()
    return {name: [log.topic(name).end(p) for p in range(names[name])] for name in RAW_TOPICS if name in names}


def _check_still_there(state: ImportState, log: Log, book: Book) -> None:
    if state.report is None:
        return
    ends = _ends(log)
    for name, n_events in state.report.events.items():
        if sum(ends.get(name, [])) < sum(state.base.get(name, [])) + n_events:
            raise _replaced(name, book)


def _replaced(name: str, book: Book) -> SourceError:
    return SourceError(
        f"topic {name!r} is shorter than this import left it: the log was replaced, its `imports` were not; remove both, or "
        f"import into {book.place}"
    )
