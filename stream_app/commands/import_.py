"""Raw log files into the raw topics of a log. The same command after a kill goes on where the log ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

if TYPE_CHECKING:
    from stream_app.importers.books import TopicBook
    from stream_app.topics import Log

KNOWN = {
    "globo": "news clicks of Globo.com; candidates drawn, or given with --candidates",
    "mind": "MIND news: behaviors.tsv and news.tsv",
    "movielens": "ratings of MovieLens: ratings.dat, ratings.csv or u.data",
    "recbole": "RecBole's atomic files of interactions: NAME.inter",
    "rows": "your own log: JSON lines, CSV or Parquet, through a field mapping",
    "taobao": "user behaviour of the Taobao shop: UserBehavior.csv",
    "trivago": "hotel search sessions of the RecSys Challenge 2019",
}
EXAMPLES = {
    "globo": ("globo_clicks.parquet",),
    "mind": ("MINDsmall_train/behaviors.tsv MINDsmall_train/news.tsv",),
    "movielens": ("ml-1m/ratings.dat", "ml-100k/u.data --candidates rows"),
    "recbole": ("ml-100k.inter --label rating --positive 4", "ctr.inter --label label --candidates rows --category cate_id"),
    "rows": ("clicks.csv --mapping mapping.toml",),
    "taobao": ("UserBehavior.csv", "UserBehavior.csv --warm-up 1000000 --n-negatives 19"),
    "trivago": ("train.csv",),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """What every kind of import is told; its own options are added by :func:`command`."""

    kind: ClassVar[str]
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")]
    """Read in the given order."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the log; made if it is not there. This or --kafka."""
    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """A Kafka cluster to write to instead; topics are made where they are not there."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """With --kafka: TOML whose table [kafka] says how to connect."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """With --kafka: one option over the file, for example kafka.topic_prefix=shop."""
    save_config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """With --kafka: write how these events are best joined, for --config of join and replay."""
    live: tyro.conf.FlagCreatePairsOff[bool] = False
    """The first event is now, and the others follow at the pace of their own times; to Kafka, anew at each start."""
    rate: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: no limit)")] = None
    """At most so many events per second."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """End after so many impressions (events, where a source has no impressions)."""
    mapping: Annotated[Path | None, tyro.conf.arg(metavar="TOML", help_behavior_hint="")] = None
    """Options of the kind as a TOML file, for example the field mapping of `rows`; flags count over it."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Import; write the log's config; print what was done."""
        from stream_app.commands.option_flags import given_flags
        from stream_app.commands.where import open_for_writing
        from stream_app.commands.written import print_written
        from stream_app.config import read_layer
        from stream_app.importers.pace import Pace
        from stream_app.importers.registry import importer_kind
        from stream_app.importers.run import run_import
        from stream_app.progress import Progress

        given = dict(read_layer(self.mapping).values) if self.mapping is not None else {}
        options = importer_kind(self.kind).read_options(given | given_flags(self, Import))
        pace = Pace(self.rate, self.live) if self.live or self.rate is not None else None
        place = open_for_writing(self.log, self.kafka, self.config, self.set)
        with place as log, Progress(f"import {self.kind}", "") as progress:
            # Live events are new ones at each start, so there is nothing to go on with.
            book = _topic_book(log) if self.kafka is not None and not self.live else None
            report = run_import(
                self.kind,
                self.files,
                log,
                self.log,
                options,
                limit=self.limit,
                on_progress=progress.update_of,
                pace=pace,
                book=book,
            )
        print_written(self.log, report, as_json=self.json, kafka=self.kafka, save_config=self.save_config)
        return 0


def _topic_book(log: Log) -> TopicBook:
    from stream_app.importers.books import TopicBook
    from stream_app.topics.kafka import KafkaLog, open_kafka

    assert isinstance(log, KafkaLog)
    return TopicBook(lambda fence: open_kafka(log.config, fence=fence))


def kinds() -> dict[str, str]:
    """Return the kinds with a line each."""
    from stream_app.importers.registry import importer_names

    return {name: KNOWN.get(name, "from outside") for name in importer_names()}


def command(kind: str) -> type[Any]:
    """Return the command of a kind: :class:`Import` and the kind's own options."""
    from stream_app.commands.option_flags import with_flags
    from stream_app.importers.registry import importer_kind

    importer = importer_kind(kind)
    examples = "".join(f"\n  freshet import {kind} {example} --log DIR" for example in EXAMPLES.get(kind, ("FILE",)))
    doc = f"{importer.summary}\n\nFor example:{examples}"
    made = with_flags(Import, importer.options, f"Import{kind.title()}", doc)
    made.kind = kind
    return made
