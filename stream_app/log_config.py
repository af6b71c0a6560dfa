"""The config files in a log's folder.

``freshet.toml`` is written by import and simulate, and is yours to change. ``joined.toml`` says how the samples were made.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomli_w

from stream_app.config import LOG_CONFIG, Layer, read_layer, to_toml
from stream_app.joiner.config import JoinConfig

JOINED = "joined.toml"

__all__ = ["JOINED", "joined_layers", "log_layers", "write_best", "write_joined", "write_log_config"]


def log_layers(log: Path) -> list[Layer]:
    """Return what the log's own file says, if it has one."""
    return [read_layer(path)] if (path := log / LOG_CONFIG).is_file() else []


def joined_layers(log: Path) -> list[Layer]:
    """Return what the log's own file says, and over it how its samples were made."""
    return log_layers(log) + ([read_layer(path)] if (path := log / JOINED).is_file() else [])


def write_log_config(log: Path, join: JoinConfig, ignored_features: tuple[str, ...] = (), vector_dim: int = 0) -> bool:
    """Write how a log is best joined, unless its file is there already; return whether it was written."""
    return write_best(log / LOG_CONFIG, join, ignored_features, vector_dim)


def write_best(path: Path, join: JoinConfig, ignored_features: tuple[str, ...] = (), vector_dim: int = 0) -> bool:
    """Write to a file how a log is best joined, unless it is there already; return whether it was written."""
    if path.exists():
        return False
    values = {"join": msgspec.toml.decode(to_toml(join))}
    if ignored_features:
        values["replay"] = {"ignored_features": list(ignored_features)}
    if vector_dim:
        values["vectors"] = {"dim": vector_dim}
    path.write_text("# Written by Freshet with the log; yours to change before the log is joined.\n" + tomli_w.dumps(values))
    return True


def write_joined(log: Path, join: JoinConfig) -> None:
    """Note how the log's samples are made."""
    values = {"join": msgspec.toml.decode(to_toml(join))}
    (log / JOINED).write_text("# How the samples of this log were made. Written by freshet join.\n" + tomli_w.dumps(values))
