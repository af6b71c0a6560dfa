"""``freshet``: find the verb, read its flags, run it.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 2 something that the user can mend (one line
says what), 130 interrupted. ``FRESHET_DEBUG=1`` shows the traceback of such an error too.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, cast

VERBS = {
    "demo": "generate, join, train and compare, in about a minute",
    "import": "raw log files into a log: freshet import KIND FILE...",
    "simulate": "write a made-up stream whose best possible figures are known",
    "join": "impressions and actions into labelled samples",
    "train": "learn live samples as they come, from Kafka or a log",
    "replay": "learn and score samples in one pass, several models side by side",
    "inspect": "what is in a log or a run",
    "topics": "make the topics of a Kafka cluster that are not there yet",
    "doctor": "check a Kafka cluster before it is used",
    "sweep": "variants over the same samples, side by side, in one table",
    "report": "a page of one run, or of several side by side",
    "config": "show or validate what a run would be told",
}
OURS = ("learners", "negative_queues", "stream_app")
HELP = """usage: freshet VERB ...

Streaming online learning for click models: join live logs, sample small graphs
out of behaviour sequences, learn seconds after the click.

verbs:
{verbs}

examples:
  freshet demo
  freshet import rows clicks.jsonl --mapping mapping.toml --log shop
  freshet join --log shop
  freshet replay --log shop --model egin --model din --run runs/first

freshet VERB --help tells the rest of a verb."""

__all__ = ["VERBS", "main"]


class Command(Protocol):
    """A verb with its flags."""

    def run(self) -> int:
        """Do it; return the exit code."""


class UsageError(ValueError):
    """No such verb or kind."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``freshet`` with the given arguments (default: the process's); return its exit code."""
    # Threads of torch that wait spin for a moment, then sleep. Never sleeping costs 8x on two busy cores, always sleeping 2x on
    # two idle ones (benchmarks/replay.py). Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:9} {summary}" for verb, summary in VERBS.items())))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"freshet {version('freshet')}")
        return 0
    try:
        return _parse(words).run()
    except KeyboardInterrupt:
        print("freshet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter must not fail at flushing the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("FRESHET_DEBUG") == "1" or not _for_users(error):
            raise
        print(f"freshet: error: {error}", file=sys.stderr)
        return 2


def _parse(words: list[str]) -> Command:
    import tyro

    module = importlib.import_module(f"stream_app.commands.{_known(words[0], VERBS, 'verb')}_")
    if not hasattr(module, "kinds"):
        return cast(Command, tyro.cli(module.command(), prog=f"freshet {words[0]}", args=words[1:]))
    kinds: dict[str, str] = module.kinds()
    if len(words) < 2 or words[1] in ("-h", "--help"):
        _list_kinds(words[0], module, kinds)
    kind = _known(words[1], kinds, f"kind of {words[0]}")
    return cast(Command, tyro.cli(module.command(kind), prog=f"freshet {words[0]} {kind}", args=words[2:]))


def _list_kinds(verb: str, module: Any, kinds: dict[str, str]) -> NoReturn:
    lines = "\n".join(f"  {name:9} {summary}" for name, summary in kinds.items())
    print(f"usage: freshet {verb} KIND ...\n\n{module.__doc__}\nkinds:\n{lines}\n")
    print(f"freshet {verb} KIND --help tells the rest of a kind.")
    raise SystemExit(0)


def _known(word: str, names: dict[str, Any], what: str) -> str:
    if word in names:
        return word
    near = difflib.get_close_matches(word, names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"no {what} {word!r}: {hint}there are {', '.join(names)}")


def _for_users(error: BaseException) -> bool:
    """Whether the message says it all: one of our own errors, or a file that is not there or may not be used."""
    if isinstance(error, OSError):
        return error.filename is not None
    return type(error).__module__.partition(".")[0] in OURS


if __name__ == "__main__":
    sys.exit(main())
