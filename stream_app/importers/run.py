"""One import from beginning to end: open, make the events, append, say what was done."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from stream_app.garbage import no_garbage_collection
from stream_app.topics import Log

from .books import Book, FolderBook
from .pace import Pace
from .progress import asked, begin, begun, done_before, fingerprint, refuse_live, skips
from .registry import importer_kind
from .report import ImportReport
from .source import Importer, ImportOptions, Progress, SourceError, Tally
from .writer import EventWriter, OlderThanLogError

__all__ = ["Job", "run_import", "write_source"]


def run_import(
    kind: str,
    files: Sequence[Path],
    log: Log,
    log_dir: Path | None,
    options: ImportOptions | None = None,
    *,
    limit: int | None = None,
    on_progress: Progress | None = None,
    pace: Pace | None = None,
    book: Book | None = None,
) -> ImportReport:
    """Import files into a log.

    The same call after a kill at any moment goes on where the log ends; after the end it changes nothing.

    Args:
        kind: a name of :func:`~stream_app.importers.registry.importer_names`.
        files: read in the given order.
        log: where to; its raw topics are created if need be.
        log_dir: folder of the log, for ``imports/FINGERPRINT.json``; None is no folder.
        options: an instance of the kind's options; None takes the defaults.
        limit: end after so many impressions (events, where a source has no impressions).
        on_progress: called with (done, total, unit).
        pace: when events are due; None writes them as they come.
        book: where progress is kept, if not in the folder; without either an import cannot be resumed.

    Raises:
        SourceError: a file, a row or an option cannot be used.
        TopicError: the log's topics have another partition count.
    """
    importer = importer_kind(kind)
    options = importer.options() if options is None else options
    if not isinstance(options, importer.options):
        raise SourceError(f"importer {kind!r} takes {importer.options.__name__}, not {type(options).__name__}")
    if limit is not None and limit < 1:
        raise SourceError(f"limit = {limit}: at least 1, or none")
    for path in files:
        if not path.is_file():
            raise SourceError(f"there is no file {str(path)!r}")
    if not files:
        raise SourceError(f"importer {kind!r}: no files given")
    tally = Tally(options.on_error)
    source = importer.open(list(files), options, tally)
    job = Job(kind, source, tally, options, options.partitions, limit)
    return write_source(job, log, log_dir, on_progress, pace, book)


class Job(NamedTuple):
    """One import, ready to run."""

    kind: str
    source: Importer
    tally: Tally
    options: msgspec.Struct
    partitions: int
    limit: int | None


def write_source(
    job: Job,
    log: Log,
    log_dir: Path | None,
    on_progress: Progress | None,
    pace: Pace | None = None,
    book: Book | None = None,
) -> ImportReport:
    """Write all that a source makes to a log; see :func:`run_import`."""
    kind, source, _, options, partitions, limit = job
    if partitions < 1:
        raise SourceError(f"partitions = {partitions}: at least 1")
    chosen = book if book is not None or log_dir is None else FolderBook(log_dir / "imports")
    if chosen is None:
        return _write(job, EventWriter(log, partitions, {}, False, pace), on_progress)
    wanted = asked(kind, source.inputs(), options, limit)
    identity = fingerprint(wanted)
    with chosen.claim(identity, log) as claimed:
        known = state = begun(chosen, identity, wanted, claimed)
        if known is not None and known.report is not None:
            return msgspec.structs.replace(known.report, was_done=True)
        if known is None and pace is not None and pace.live:
            refuse_live(chosen, wanted, claimed)
        skip = {} if known is None else skips(known, claimed, partitions, chosen)

        def before_append() -> None:
            nonlocal state
            state = state or begin(chosen, identity, wanted, claimed)

        # A version that kept no options at their defaults may have had others: all that it wrote is compared.
        compared_from = known.base if known is not None and known.every is None else None
        resumed = any(map(any, skip.values()))
        writer = EventWriter(claimed, partitions, skip, resumed, pace, chosen.batch, before_append, compared_from)
        try:
            report = _write(job, writer, on_progress)
        except OlderThanLogError as error:
            there = done_before(chosen, wanted, claimed)
            raise error if there is None else SourceError(f"{there}. {str(error).partition(':')[0]}") from error
        state = state or begin(chosen, identity, wanted, claimed)  # There was no event at all.
        state.report = msgspec.structs.replace(report, resumed=known is not None)
        chosen.save(claimed, identity, state)
        return state.report


def _write(job: Job, writer: EventWriter, on_progress: Progress | None) -> ImportReport:
    source, tally = job.source, job.tally
    with no_garbage_collection():
        for chunk in source.chunks(job.limit):
            writer.write(chunk.events)
            gc.collect(0)  # the chunk's own; events come by the million and none is part of a cycle
            if on_progress is not None:
                on_progress(chunk.done, source.total, source.unit)
    if unexplained := writer.unexplained():
        raise SourceError(
            f"the log gained records that this import does not make: {unexplained}. Something else wrote to it, or "
            "the import was begun by another version of Freshet: import into a new log folder"
        )
    writer.flush()
    return ImportReport(
        kind=job.kind,
        events=writer.counts(),
        first_ts=writer.first_ts,
        last_ts=writer.last_ts,
        join=source.join_config(),
        ignored_features=source.ignored_features(),
        errors=tally.errors,
        first_errors=tuple(tally.first_errors),
        left_out=dict(tally.left_out),
    )
