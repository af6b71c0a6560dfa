"""``freshet simulate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

DOC = """Write a made-up log whose click probabilities are known; the same options give the same log.

Example: freshet simulate --log play --requests 100000 --drift 0.5
"""


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """What is not a knob of the generator; those are added by :func:`command`."""

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
    """The first event is now, and the others follow at the pace of their own times."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """End after so many of the simulated requests."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Simulate; write the log's config; print what was done."""
        import msgspec

        from stream_app.commands.option_flags import given_flags
        from stream_app.commands.where import open_for_writing
        from stream_app.commands.written import print_written
        from stream_app.config import ConfigError
        from stream_app.importers.pace import Pace
        from stream_app.progress import Progress
        from stream_app.simulate.options import SimulateOptions
        from stream_app.simulate.run import run_simulate

        try:
            options = msgspec.convert(given_flags(self, Simulate), SimulateOptions)
        except msgspec.ValidationError as error:
            raise ConfigError(f"freshet simulate: {error}") from error
        pace = Pace(live=True) if self.live else None
        place = open_for_writing(self.log, self.kafka, self.config, self.set)
        with place as log, Progress("simulate", "requests") as progress:
            report = run_simulate(options, log, self.log, limit=self.limit, on_progress=progress.update_of, pace=pace)
        print_written(self.log, report, as_json=self.json, kafka=self.kafka, save_config=self.save_config)
        return 0


def command() -> type[Any]:
    """Return the command with the generator's knobs."""
    from stream_app.commands.option_flags import with_flags
    from stream_app.simulate.options import SimulateOptions

    return with_flags(Simulate, SimulateOptions, "Command", DOC)
