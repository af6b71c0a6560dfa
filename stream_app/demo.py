"""The demo: generator, log, join, replay of all models; each step is a function that the commands use too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_app.config import Layer, RunConfig, resolve
from stream_app.inspect import JOINER
from stream_app.join import join_log
from stream_app.launch import Launched, launch, with_defaults
from stream_app.log_config import joined_layers, log_layers, write_joined, write_log_config
from stream_app.progress import Progress
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog, open_log

MODELS = ("egin", "din", "dnn", "popularity", "trend", "covisitation")


def demo(folder: Path, requests: int, models: tuple[str, ...], say: Callable[[str], None]) -> Launched:
    """Generate, join, replay.

    Args:
        folder: new or empty; gets ``log`` and ``run``.
        requests: to generate.
        models: of the replay.
        say: told what happens, step by step.
    """
    log_folder, run_folder = folder / "log", folder / "run"
    options = SimulateOptions(requests=requests)
    say(
        f"1. simulate: {options.users:,} users search and click among {options.items:,} items, {requests:,} pages of "
        f"{options.candidates}, into the embedded log {log_folder}"
    )
    with EmbeddedLog(log_folder) as log, Progress("simulate", "requests") as progress:
        report = run_simulate(options, log, log_folder, on_progress=progress.update_of)
    write_log_config(log_folder, report.join, report.ignored_features)
    say(f"   {report.impressions:,} impressions, {report.actions:,} clicks, {report.items:,} items, one topic each")

    join = resolve(log_layers(log_folder)).join
    say(f"2. join: a request leaves as a sample {join.label_window_ms / 60_000:g} minutes after it was shown, with its clicks")
    with EmbeddedLog(log_folder) as log, Progress("join", "events", sum(report.events.values())) as progress:
        joined = join_log(log, log_folder / JOINER, join, on_progress=lambda report: progress.update(report.events))
    write_joined(log_folder, join)
    labels = joined.counters.get("labels", 0)
    say(f"   {joined.rows:,} samples with {labels:,} clicks, histories as of each request")

    say(f"3. replay: {', '.join(models)} side by side; a request is scored when shown and learned when its label is final")
    with open_log(log_folder) as log:
        return launch(log, _config(log_folder, models, report.first_ts, report.last_ts), run_folder)


def _config(log: Path, models: tuple[str, ...], first_ts: int | None, last_ts: int | None) -> RunConfig:
    """Return the replay's config; the first third of the stream is learned and does not count."""
    replay: dict[str, object] = {"models": models}
    if first_ts is not None and last_ts is not None:
        replay["score_from"] = first_ts + (last_ts - first_ts) // 3
    config = resolve([*joined_layers(log), Layer("the demo", {"log": str(log.resolve()), "replay": replay})])
    return with_defaults(config)
