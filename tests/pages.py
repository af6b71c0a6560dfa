"""Runs the commands of a Markdown page, as its reader would: in order, in one empty folder, in one shell.

* A fenced block ``console``: lines that begin with ``$ `` are commands (a line that ends in a backslash goes on in the next
  one), the others are what a command prints, for the reader alone.
* A fenced block ``toml``, ``csv`` or ``python`` is a file where the line before it (but for a blank one) ends in a name in
  backticks and a colon, or where its first line is ``# NAME``. It is written where it stands among the commands.

Commands of ``docker``, ``git`` and ``make`` are not run; :func:`outside` gives them to checks of their own.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["BROKER", "PAGES", "ROOT", "Command", "File", "commands", "needs_kafka", "outside", "run_page", "steps"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]))
"""Every page that a reader may follow."""
SECONDS = 900.0
"""After so long a page hangs, however busy the machine is."""
BROKER = "localhost:9092"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`([\w.-]+)`:\s*$")
_NAME = re.compile(r"# ([\w-]+\.\w+)")
_OUTSIDE = ("docker", "git", "make")


class Command(NamedTuple):
    """One command of a page."""

    text: str


class File(NamedTuple):
    """A file that a page shows."""

    name: str
    text: str


def steps(page: Path) -> Iterator[Command | File]:
    """Yield files and commands in the order of the page."""
    text = page.read_text()
    for fence in _FENCE.finditer(text):
        language, body = fence[1], fence[2]
        if language == "console":
            yield from (Command(found) for found in re.findall(r"^\$ ((?:.*\\\n)*.*)", body, re.MULTILINE))
        elif language in ("toml", "csv", "python", "sh"):
            named = _NAMED.search(text[: fence.start()]) or _NAME.match(body)
            if named:
                yield File(named[1], body)


def commands(page: Path) -> list[str]:
    """Return the commands of a page."""
    return [step.text for step in steps(page) if isinstance(step, Command)]


def outside(page: Path) -> list[list[str]]:
    """Return the words of the commands that are not run here."""
    return [words for text in commands(page) if (words := shlex.split(text, comments=True))[0] in _OUTSIDE]


def needs_kafka(page: Path) -> bool:
    """Whether a command of the page talks to a broker."""
    return any(BROKER in text for text in commands(page))


def run_page(page: Path, folder: Path, replaced: Mapping[str, str] | None = None) -> None:
    """Run a page's commands in a folder.

    Args:
        page: its path.
        folder: empty.
        replaced: text of commands -> what stands in for it here, one after the other.

    Raises:
        AssertionError: a command failed; the message has the page, the command and all that was printed.
    """
    (folder / ".page").write_text("set -mu\n" + "".join(_script(step, replaced or {}) for step in steps(page)))
    process = subprocess.Popen(
        ["bash", ".page"],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
        raise AssertionError(f"{page.name}: not at its end after {SECONDS:g} s:\n{printed}") from None
    print(printed)
    assert process.returncode == 0, f"{page.name}: a command failed with {process.returncode}:\n{printed}"


def _script(step: Command | File, replaced: Mapping[str, str]) -> str:
    """Return a step as lines of a shell's script that ends where a command fails."""
    if isinstance(step, File):
        return f"cat > {shlex.quote(step.name)} <<'END OF FILE'\n{step.text}END OF FILE\n"
    if shlex.split(step.text, comments=True)[0] in _OUTSIDE:
        return ""
    text = step.text
    for old, new in replaced.items():
        text = text.replace(old, new)
    failed = 'code=$?; [ $code -eq 0 ] || { jobs -p | while read -r job; do kill -- "-$job"; done; exit $code; }'
    return f'echo "${{SECONDS}} s" {shlex.quote("$ " + text)}\n{text}\n{failed}\n'
