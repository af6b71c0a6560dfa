"""``freshet replay``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from stream_app.config import Layer, RunConfig
    from stream_app.launch import Launched
    from stream_app.topics import Log

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]
When = Literal["delayed", "immediate", "auto"]


@dataclass(frozen=True)
class Replay:
    """Learn and score a range of a log's samples in one pass, several models side by side.

    Example: freshet replay --log shop --model egin --model din --score-from 2026-03-01 --run runs/first
    """

    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the log; with --resume that of the run."""
    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """A Kafka cluster instead: its `samples`, or where it has none its raw topics, joined on the fly."""
    model: Annotated[Repeated, tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)")] = ()
    """A model: a table [models.NAME] of the config, or a type (egin, din, dnn, popularity, trend, covisitation)."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="T", help_behavior_hint="")] = None
    """Learn and score requests shown from here on (UTC ms or ISO 8601)."""
    to: Annotated[str | None, tyro.conf.arg(metavar="T", help_behavior_hint="")] = None
    """Learn and score requests shown before this."""
    score_from: Annotated[str | None, tyro.conf.arg(metavar="T", help_behavior_hint="")] = None
    """Only requests shown from here on count in the final figures."""
    eval: Annotated[
        Literal["delayed", "immediate", "auto"] | None, tyro.conf.arg(metavar="WHEN", help_behavior_hint="(default: auto)")
    ] = None
    """delayed: score when shown, learn when the label is final. immediate: score just before learning. auto: delayed where
    the join has a label window."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Of all random draws."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Threads of the models; digests are equal only for equal thread counts."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: cpu)")] = None
    """cpu or cuda."""
    deterministic: tyro.conf.FlagCreatePairsOff[bool] = False
    """On CUDA: deterministic kernels only."""
    slice: Annotated[Repeated, tyro.conf.arg(metavar="FEATURE", help_behavior_hint="(repeatable)")] = ()
    """A request or candidate feature: figures by its values too."""
    hr_negatives: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Rank each positive among N items drawn from those seen so far too: HR@3 (SEMI has 300)."""
    run_: Annotated[Path | None, tyro.conf.arg(name="run", metavar="DIR", help_behavior_hint="")] = None
    """Folder for config, metrics and checkpoints; without it nothing is kept."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --run, also after kill -9."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML over the log's own freshet.toml."""
    set: Annotated[Repeated, tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")] = ()
    """One option over all files, for example models.egin.top_k=5."""
    profile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print where the time went."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of the leaderboard."""

    def run(self) -> int:
        """Replay; print the leaderboard or the JSON object."""
        from stream_app.commands.figures import print_profile, print_result
        from stream_app.launch import launch

        config = self._resolved()
        with _opened(config) as log:
            launched = launch(log, config, self.run_, resume=self.resume)
        if self.profile:
            print_profile(launched)
        if launched.stopped_by is not None:
            return self._stopped(launched)
        print_result(launched.replay, self.run_, as_json=self.json, page=launched.page)
        return 0

    def _resolved(self) -> RunConfig:
        from stream_app.commands.where import check_one_place, kafka_layer
        from stream_app.config import ConfigError, Layer, flag_layer, read_layer, resolve, set_layer
        from stream_app.launch import with_defaults

        layers = self._base()
        if self.config is not None:
            layers.append(read_layer(self.config))
        layers += [set_layer(assignment) for assignment in self.set]
        flags: dict[str, Any] = {
            "models": self.model,
            "from": self.from_,
            "to": self.to,
            "score_from": self.score_from,
            "eval": self.eval,
        }
        flags |= {"slice_by": self.slice, "hr_negatives": self.hr_negatives}
        flags |= {name: getattr(self, name) for name in ("seed", "threads", "device", "deterministic")}
        layers.append(flag_layer(flags))
        if self.log is not None and self.kafka is not None:
            check_one_place(self.log, self.kafka)
        if self.log is not None:
            layers.append(Layer("--log", {"log": str(self.log.resolve())}))
        if self.kafka is not None:
            layers.append(kafka_layer(self.kafka))
        config = resolve(layers)
        if config.log is None and not config.kafka.servers:
            raise ConfigError("--log DIR is missing: the folder of the log to replay, or --kafka HOST:PORT for a cluster")
        return with_defaults(config)

    def _base(self) -> list[Layer]:
        from stream_app.config import read_layer
        from stream_app.log_config import joined_layers
        from stream_app.runs import CONFIG, is_run

        if self.resume and self.run_ is not None and is_run(self.run_):
            return [read_layer(self.run_ / CONFIG)]
        return joined_layers(self.log) if self.log is not None else []

    def _stopped(self, launched: Launched) -> int:
        print(f"freshet: stopped after {launched.replay.requests:,} requests", file=sys.stderr)
        if self.run_ is None:
            print("freshet: nothing was kept; give --run DIR to be able to go on", file=sys.stderr)
        else:
            print(f"freshet: go on with: freshet replay --run {self.run_} --resume", file=sys.stderr)
        assert launched.stopped_by is not None
        return 128 + launched.stopped_by


def _opened(config: RunConfig) -> Log:
    if config.log is None:
        from stream_app.topics.kafka import open_kafka

        return open_kafka(config.kafka)
    from stream_app.topics.embedded import open_log

    return open_log(config.log)


def command() -> type[Replay]:
    """Return the command."""
    return Replay
