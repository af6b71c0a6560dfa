"""``freshet train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from stream_app.config import Layer, RunConfig
    from stream_app.topics import Log
    from stream_app.train_launch import Trained

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]
GUARD_EXIT = 3


@dataclass(frozen=True)
class Train:
    """Train from live samples as they come, until Ctrl-C; the same command goes on where the run stopped, after kill -9 too.

    Example: freshet train --kafka localhost:9092 --model egin --run runs/live
    """

    run_: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR", help_behavior_hint="(required)")]
    """Folder of the run: config, metrics, order, checkpoints. If it is there, the run goes on."""
    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Brokers of the cluster that has the topic `samples`."""
    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Instead of Kafka: folder of a log that another process joins (freshet join --follow)."""
    model: Annotated[Repeated, tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)")] = ()
    """A model: a table [models.NAME] of the config, or a type (egin, din, dnn, popularity, trend, covisitation)."""
    from_run: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Begin with the models of this run (a replay, say) and go on where it stopped."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="T", help_behavior_hint="")] = None
    """Begin at the samples due from here on (UTC ms or ISO 8601); with --from-run its models alone are taken."""
    drain: tyro.conf.FlagCreatePairsOff[bool] = False
    """End when all samples that are there now are learned."""
    repeat: tyro.conf.FlagCreatePairsOff[bool] = False
    """Learn once more what the run in --run has learned, in the recorded order, and compare the digests; writes nothing."""
    metrics_port: Annotated[int | None, tyro.conf.arg(metavar="PORT", help_behavior_hint="")] = None
    """Offer metrics for Prometheus there; 0 takes a free port."""
    checkpoint_seconds: Annotated[float | None, tyro.conf.arg(metavar="S", help_behavior_hint="(default: 60)")] = None
    """Between checkpoints, which are written while learning goes on."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 0)")] = None
    """Of all random draws."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Threads of the models."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: cpu)")] = None
    """cpu or cuda."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML; its [join] must be that of the join."""
    set: Annotated[Repeated, tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")] = ()
    """One option over all files, for example train.wait_ms=20."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object at the end."""

    def run(self) -> int:
        """Train; 0 after Ctrl-C or at the end, 3 where the guard stopped the run."""
        from stream_app.guard import GuardError
        from stream_app.train_launch import train

        config = self._resolved()
        with self._opened(config) as log:
            if self.repeat:
                return self._repeat(log)
            try:
                trained = train(
                    log, config, self.run_, from_run=self.from_run, drain=self.drain, metrics_port=self.metrics_port
                )
            except GuardError as error:
                print(f"freshet: error: {error}", file=sys.stderr)
                return GUARD_EXIT
        self._tell(trained)
        return 128 + trained.stopped_by if trained.stopped_by is not None and self.drain else 0

    def _opened(self, config: RunConfig) -> Log:
        if config.log is not None:
            from stream_app.topics.embedded import open_log

            return open_log(config.log)
        from stream_app.topics.kafka import open_kafka

        return open_kafka(config.kafka)

    def _resolved(self) -> RunConfig:
        from stream_app.config import ConfigError, Layer, flag_layer, read_layer, resolve, set_layer
        from stream_app.launch import with_defaults

        layers = self._base()
        if self.config is not None:
            layers.append(read_layer(self.config))
        layers += [set_layer(assignment) for assignment in self.set]
        flags: dict[str, Any] = {"models": self.model, "from": self.from_, "checkpoint_seconds": self.checkpoint_seconds}
        flags |= {name: getattr(self, name) for name in ("seed", "threads", "device")}
        layers.append(flag_layer(flags))
        if self.log is not None and self.kafka is not None:
            raise ConfigError("--log and --kafka exclude each other: samples come from one of them")
        if self.log is not None:
            layers.append(Layer("--log", {"log": str(self.log.resolve()), "kafka": {"servers": []}}))
        if self.kafka is not None:
            from stream_app.kafka_config import parse_servers

            layers.append(Layer("--kafka", {"log": None, "kafka": {"servers": list(parse_servers(self.kafka))}}))
        # A request is scored just before it is learned: live, nothing is known of rows to come.
        layers.append(Layer("freshet train", {"replay": {"eval": "immediate"}}))
        config = resolve(layers)
        if config.log is None and not config.kafka.servers:
            raise ConfigError("give --kafka HOST:PORT, or --log DIR: where the samples come from")
        return with_defaults(config)

    def _base(self) -> list[Layer]:
        """Return what lies below the flags: the run's own config, else that of --from-run, else that of the log."""
        from stream_app.config import Layer, read_layer
        from stream_app.log_config import joined_layers
        from stream_app.runs import CONFIG, is_run

        if is_run(self.run_):
            return [read_layer(self.run_ / CONFIG)]
        base = [Layer("defaults of freshet train", {"replay": {"window_ms": 600_000}})]
        if self.from_run is not None and is_run(self.from_run):
            source, values = read_layer(self.from_run / CONFIG)
            kept = {key: value for key, value in values.items() if key not in ("log", "kafka")}
            kept["replay"] = {k: v for k, v in values.get("replay", {}).items() if k not in ("from", "to", "score_from")}
            base.append(Layer(source, kept))
        return base + (joined_layers(self.log) if self.log is not None else [])

    def _repeat(self, log: Log) -> int:
        from stream_app.train_launch import repeat

        repeated = repeat(log, self.run_)
        if self.json:
            import msgspec

            print(msgspec.json.encode(repeated._asdict() | {"same": repeated.same}).decode())
        else:
            print(f"{repeated.requests:,} requests learned once more: {'the same' if repeated.same else 'OTHER'} digests")
            for name, found in repeated.digests.items():
                print(f"  {name}: {found[:16]} (run: {repeated.of_run[name][:16]})")
        return 0 if repeated.same else 1

    def _tell(self, trained: Trained) -> None:
        from learners.checkpoint import digest
        from learners.metrics import as_json

        trainer = trained.trainer
        print(f"freshet: {trainer.requests:,} requests learned; go on with the same command", file=sys.stderr)
        if not self.json:
            return
        import msgspec

        models = {
            entrant.name: {"digest": digest(entrant.learner.state()), **as_json(entrant.final.slices["all"].figures())}
            for entrant in trainer.entrants
        }
        found = {"requests": trainer.requests, "batches": trainer.batches, "seconds": trainer.wall_seconds(), "models": models}
        print(msgspec.json.encode(found).decode())


def command() -> type[Train]:
    """Return the command."""
    return Train
