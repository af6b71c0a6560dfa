"""What a run is told: TOML files and flags, checked, laid over one another.

From weak to strong: built-in defaults, the log's own ``LOG/freshet.toml`` (written by import and simulate), ``--config FILE``,
``--set KEY=VALUE`` and flags. Tables are laid over one another key by key; any other value replaces the one below it.
"""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import tomli_w

from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.train_config import TrainConfig
from stream_app.vectors_config import VectorsConfig

LOG_CONFIG = "freshet.toml"
Time = int | str | dt.datetime | dt.date
Positive = Annotated[int, msgspec.Meta(ge=1)]

__all__ = [
    "ConfigError",
    "Layer",
    "ReplayConfig",
    "RunConfig",
    "flag_layer",
    "read_layer",
    "resolve",
    "set_layer",
    "time_ms",
    "to_toml",
]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file, the key, the value and what would be right."""


class ReplayConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"start": "from", "stop": "to", "evaluation": "eval"},
):
    """How samples are turned into models and figures. Times are UTC ms (files and flags also take ISO 8601)."""

    models: tuple[str, ...] = ()
    """Models of the run, in order; the others are compared with the first. Empty: every table of ``[models]``, else egin."""
    start: int | None = None
    """Learn and score requests with ``ts`` from here on."""
    stop: int | None = None
    """Learn and score requests with ``ts`` before this."""
    score_from: int | None = None
    """Requests with ``ts`` from here on count in the final figures."""
    evaluation: Literal["auto", "immediate", "delayed"] = "auto"
    """immediate: score a batch just before learning it. delayed: score at ``ts``, learn at ``due``. auto: delayed where the
    join has a label window."""
    batch_requests: Positive = 100
    """Requests in one step."""
    seed: int = 0
    """Of all random draws; each is counted on it, so that a run repeats."""
    threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Threads of the models; 0 takes the cores that the process may use. It is torch's number and that of the threads between
    which a step's layers, attention and similarities are cut. A second one is for cores that nobody else uses: on busy ones
    it costs time. Digests are equal only for equal thread counts."""
    device: str = "cpu"
    """cpu or cuda."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only, so that a digest repeats."""
    window_ms: Positive = 3_600_000
    """Length of a window of the metrics in event time."""
    window_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Close a window every so many scored requests instead; 0 leaves it to ``window_ms``."""
    checkpoint_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Wall seconds between checkpoints; when they are written changes nothing that is learned."""
    bootstrap: Annotated[int, msgspec.Meta(ge=0)] = 1_000
    """Draws of the paired bootstrap over users; 0 leaves the intervals out."""
    ignored_features: tuple[str, ...] = ()
    """Request and candidate features that only the evaluation may see."""
    slices: dict[str, dict[str, float | str]] = {}
    """Figures of their own for some of the requests: slice name to request features and the value each must have."""
    standard_slices: bool = True
    """Figures by item and user (cold or known), position, domain, hour of the day and how often the query came by."""
    hr_negatives: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Rank each positive once more among so many items drawn from those that came by before, and report HR@3; SEMI has 300.
    0 is off. It costs as much as scoring so many candidates more per positive."""
    hr_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of the requests with a positive that ``hr_negatives`` ranks, chosen by their ids."""
    slice_by: tuple[str, ...] = ()
    """Request and candidate features by whose values there are figures too; the first 64 values each."""


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a join or a replay is told."""

    log: str | None = None
    """Folder of the log; set in a run's ``config.toml``."""
    kafka: KafkaConfig = KafkaConfig()
    join: JoinConfig = JoinConfig()
    replay: ReplayConfig = ReplayConfig()
    train: TrainConfig = TrainConfig()
    vectors: VectorsConfig = VectorsConfig()
    models: dict[str, dict[str, Any]] = {}
    """Options per model; ``type`` is the type of model, by default the name."""

    def model_type(self, name: str) -> str:
        """Return the type of the model that is called ``name`` in this run."""
        return str(self.models.get(name, {}).get("type", name))

    def model_options(self, name: str) -> dict[str, Any]:
        """Return the options given for a model, without its type."""
        return {key: value for key, value in self.models.get(name, {}).items() if key != "type"}

    def window_ms(self) -> int:
        """Return how much later than its ``ts`` a row may be due."""
        return self.join.correction_window_ms if self.join.policy == "correct" else self.join.label_window_ms

    def delayed(self) -> bool:
        """Whether scores are taken at ``ts`` and labels at ``due``; ``correct`` gives each request out at once."""
        waits = self.join.policy == "wait" and self.join.label_window_ms > 0
        return self.replay.evaluation == "delayed" or (self.replay.evaluation == "auto" and waits)


class Layer(NamedTuple):
    """Part of a config and where it came from."""

    source: str
    values: Mapping[str, Any]


def read_layer(path: Path) -> Layer:
    """Read a TOML file.

    Raises:
        ConfigError: it is not there or not TOML; the message names the file and the place.
    """
    try:
        return Layer(str(path), msgspec.toml.decode(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {str(path)!r}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def set_layer(assignment: str) -> Layer:
    """Turn ``models.egin.top_k=5`` into a layer; what is no TOML value is taken as text.

    Raises:
        ConfigError: there is no ``=`` or no key.
    """
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {assignment!r}: write KEY=VALUE with a dotted key, for example models.egin.top_k=5")
    try:
        value = msgspec.toml.decode(f"value = {text}".encode())["value"]
    except msgspec.DecodeError:
        value = text
    for part in reversed(parts):
        value = {part: value}
    return Layer(f"--set {assignment}", value)


def flag_layer(flags: Mapping[str, Any]) -> Layer:
    """Turn flags of a command into a layer over ``[replay]``: None and empty ones were not given."""
    given = {key: value for key, value in flags.items() if value is not None and value is not False and value != ()}
    return Layer("the command line", {"replay": given} if given else {})


def resolve(layers: Sequence[Layer]) -> RunConfig:
    """Lay layers over one another, the last on top, and check them; an error names the layer that is wrong.

    What goes together may lie in several layers: ``--set kafka.security=ssl --set kafka.ca_file=...``.

    Raises:
        ConfigError: an unknown key, a wrong type or value.
    """
    merged: dict[str, Any] = {}
    wrong: list[ConfigError] = []
    for layer in layers:
        try:
            _convert(layer.source, layer.values)
        except ConfigError as error:  # Judged below: by itself it may lack what another layer has.
            wrong.append(error)
        merged = _over(merged, layer.values)
    try:
        return _convert("the config", merged)
    except ConfigError as error:
        raise wrong[0] if wrong else error from error


def time_ms(value: Time) -> int:
    """Return UTC ms of an int (already UTC ms), a date, or ISO 8601 text (UTC where it names no zone).

    >>> time_ms("2017-10-10"), time_ms("2017-10-10T00:00:01.500"), time_ms("1507593600000")
    (1507593600000, 1507593601500, 1507593600000)
    """
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        if re.fullmatch(r"-?\d{5,}", value):
            return int(value)
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(
                f"time {value!r}: write UTC ms or ISO 8601, for example 1507593600000 or 2017-10-10T12:00"
            ) from None
    if not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    if value.tzinfo is None:
        value = value.replace(tzinfo=dt.UTC)
    return (value - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def to_toml(config: msgspec.Struct) -> str:
    """Return a config with all its defaults as TOML; None is left out."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(config)))


def _convert(source: str, values: Mapping[str, Any]) -> RunConfig:
    try:
        config = msgspec.convert(_with_times(values), type=RunConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), values)}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    joined, read = config.join.vector_dim, config.vectors.dim
    if joined and read and joined != read:
        raise ConfigError(
            f"{source}: join.vector_dim = {joined} and vectors.dim = {read}: both are the length of items' vectors"
        )
    return config


def _with_times(values: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    replay = result.get("replay")
    if isinstance(replay, Mapping):
        times = {key: time_ms(replay[key]) for key in ("from", "to", "score_from") if isinstance(replay.get(key), Time)}
        result["replay"] = {**replay, **times}
    return result


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(message: str, values: Mapping[str, Any]) -> str:
    """Turn msgspec's message into one with the key's full name, its value, and near misses of an unknown key."""
    what, _, place = message.partition(" - at `$")
    path = re.findall(r"\.\.\.|[^.\[\]]+", place.rstrip("`"))  # `...` stands for any key of a table
    if unknown := re.match(r"Object contains unknown field `(.*)`", what):
        fields = _fields(path)
        near = difflib.get_close_matches(unknown[1], fields, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {_dotted([*path, unknown[1]])!r}: {hint}there are {', '.join(fields)}"
    found = " or ".join(repr(value) for value in _values_at(values, path))
    return f"{_dotted(path) or 'the file'} = {found}: {what[:1].lower() + what[1:]}"


def _dotted(path: Sequence[str]) -> str:
    return ".".join("*" if part == "..." else part for part in path)


def _values_at(value: Any, path: Sequence[str]) -> list[Any]:
    if not path:
        return [value]
    if path[0] == "..." and isinstance(value, Mapping):
        return [found for inner in value.values() for found in _values_at(inner, path[1:])]
    if isinstance(value, list | tuple) and path[0].isdigit():
        return _values_at(value[int(path[0])], path[1:])
    return _values_at(value[path[0]], path[1:]) if isinstance(value, Mapping) and path[0] in value else []


def _fields(path: Sequence[str]) -> list[str]:
    kind: Any = msgspec.inspect.type_info(RunConfig)
    for part in path:
        if isinstance(kind, msgspec.inspect.StructType):
            kind = next(field.type for field in kind.fields if field.encode_name == part)
        elif isinstance(kind, msgspec.inspect.DictType):
            kind = kind.value_type
    return [field.encode_name for field in kind.fields] if isinstance(kind, msgspec.inspect.StructType) else []


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value
