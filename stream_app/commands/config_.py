"""Show or validate what a run would be told: defaults, the log's own file, --config and --set over one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Show:
    """Print the resolved config as TOML, defaults included.

    Example: freshet config show --log shop --set replay.batch_requests=200
    """

    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of a log, whose own file counts."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML over it."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """One option over all files."""

    def run(self) -> int:
        """Print it."""
        from stream_app.config import read_layer, resolve, set_layer, to_toml
        from stream_app.launch import with_defaults
        from stream_app.log_config import joined_layers

        layers = joined_layers(self.log) if self.log is not None else []
        layers += ([read_layer(self.config)] if self.config else []) + [set_layer(one) for one in self.set]
        print(to_toml(with_defaults(resolve(layers))), end="")
        return 0


@dataclass(frozen=True)
class Validate:
    """Check a config file, the options of its models too.

    Example: freshet config validate shop.toml
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
    """TOML."""

    def run(self) -> int:
        """Check it; an error says what is wrong."""
        from stream_app.config import read_layer, resolve
        from stream_app.launch import with_defaults

        with_defaults(resolve([read_layer(self.file)]))
        print(f"{self.file} is valid")
        return 0


def kinds() -> dict[str, str]:
    """Return what can be asked for, with a line each."""
    return {"show": "print the resolved config", "validate": "check a file"}


def command(kind: str) -> type[Any]:
    """Return the command of a kind."""
    return {"show": Show, "validate": Validate}[kind]
