"""Raw log files into the raw topics of a log. The same command after a kill goes on where the log ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

KNOWN = {
    "globo": "news clicks of Globo.com; candidates drawn, or given with --candidates",
    "rows": "your own log: JSON lines, CSV or Parquet, through a field mapping",
    "trivago": "hotel search sessions of the RecSys Challenge 2019",
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """What every kind of import is told; its own options are added by :func:`command`."""

    kind: ClassVar[str]
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")]
    """Read in the given order."""
    log: Annotated[Path, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")]
    """Folder of the log; made if it is not there."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """End after so many impressions (events, where a source has no impressions)."""
    mapping: Annotated[Path | None, tyro.conf.arg(metavar="TOML", help_behavior_hint="")] = None
    """Options of the kind as a TOML file, for example the field mapping of `rows`; flags count over it."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Import; write the log's config; print what was done."""
        from stream_app.commands.option_flags import given_flags
        from stream_app.commands.written import print_written
        from stream_app.config import read_layer
        from stream_app.importers.registry import importer_kind
        from stream_app.importers.run import run_import
        from stream_app.progress import Progress
        from stream_app.topics.embedded import EmbeddedLog

        given = dict(read_layer(self.mapping).values) if self.mapping is not None else {}
        options = importer_kind(self.kind).read_options(given | given_flags(self, Import))
        with EmbeddedLog(self.log) as log, Progress(f"import {self.kind}", "") as progress:
            report = run_import(self.kind, self.files, log, self.log, options, limit=self.limit, on_progress=progress.update_of)
        print_written(self.log, report, as_json=self.json)
        return 0


def kinds() -> dict[str, str]:
    """Return the kinds with a line each."""
    from stream_app.importers.registry import importer_names

    return {name: KNOWN.get(name, "from outside") for name in importer_names()}


def command(kind: str) -> type[Any]:
    """Return the command of a kind: :class:`Import` and the kind's own options."""
    from stream_app.commands.option_flags import with_flags
    from stream_app.importers.registry import importer_kind

    importer = importer_kind(kind)
    doc = f"{importer.summary}\n\nExample: freshet import {kind} FILE --log DIR"
    made = with_flags(Import, importer.options, f"Import{kind.title()}", doc)
    made.kind = kind
    return made
