"""The rules of the house: who may import whom, what is exported, how fast the door opens."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("negative_queues", "learners", "stream_app")
"""From the ground up: a floor imports itself and what lies under it."""

THIRD_PARTY = {
    "negative_queues": {"numba", "numpy", "torch"},
    "learners": {"msgspec", "numba", "numpy", "pyarrow", "safetensors", "torch"},
}
"""What a floor may need; the top floor may need what pyproject.toml declares."""

OWNERS = {
    "faust": {"stream_app/worker.py"},
    "kafka": {"stream_app/topics/kafka.py"},
    "rocksdict": {"stream_app/state.py", "stream_app/topics/embedded.py", "stream_app/topics/rocks_memory.py"},
}
"""Packages with a character of their own, and the only rooms that they may enter."""

NOT_BELOW = ("faust", "kafka", "rich", "rocksdict", "stream_app", "tyro", "xxhash")
HELP_S = 0.5
LONGEST_FILE = 450
MODULES = sorted(path.relative_to(ROOT).as_posix() for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imports(path: str) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) for every import of a file, also those inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = path.split("/")[: -node.level]
                yield node.lineno, ".".join([*package, *filter(None, [node.module])])
            else:
                yield node.lineno, node.module or ""


def every_import() -> Iterator[tuple[str, str, str]]:
    """Yield (file, "file:line", top-level package) for every import of something outside the standard library."""
    for path in MODULES:
        for line, name in imports(path):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names:
                yield path, f"{path}:{line}", top


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_imports_go_down_only() -> None:
    above = {floor: set(FLOORS[FLOORS.index(floor) + 1 :]) for floor in FLOORS}
    assert [f"{where} imports {top}" for path, where, top in every_import() if top in above[path.partition("/")[0]]] == []


def test_a_package_stays_in_its_rooms() -> None:
    assert [f"{where} imports {top}" for path, where, top in every_import() if path not in OWNERS.get(top, {path})] == []


def test_floors_need_what_they_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["kafka"]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in lines}
    allowed = THIRD_PARTY | {"stream_app": declared | set(OWNERS)}
    strangers = [
        f"{where} imports {top}"
        for path, where, top in every_import()
        if top not in FLOORS and top not in allowed[path.partition("/")[0]]
    ]
    assert strangers == []


@pytest.mark.parametrize("floor", ["negative_queues", "learners"])
def test_a_lower_floor_stands_alone(floor: str) -> None:
    """As on a GPU box that has torch, numpy, numba, pyarrow and msgspec, and nothing of the application."""
    names = [module_name(path) for path in MODULES if path.startswith(f"{floor}/")]
    block = f"import importlib, sys\nsys.modules.update(dict.fromkeys({NOT_BELOW!r}))\n"
    code = f"{block}for name in {names!r}: importlib.import_module(name)\nprint(len({names!r}), 'imported')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.strip() == f"{len(names)} imported"


def exported(path: str) -> list[str] | None:
    """Return a module's ``__all__`` as it stands in the file; None without one."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(name, ast.Name) and name.id == "__all__" for name in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return None


def in_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name: ruff's order (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("path", [path for path in MODULES if exported(path) is not None])
def test_exports_hold(path: str) -> None:
    names = exported(path)
    assert names is not None
    assert names == sorted(set(names), key=in_order)
    module = importlib.import_module(module_name(path))
    assert [name for name in names if not hasattr(module, name)] == []


def freshet_help(*options: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run ``freshet --help`` as the installed command does; return it with its wall time in seconds."""
    code = "import sys; sys.argv = ['freshet', '--help']; from stream_app.cli import main; sys.exit(main())"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done, time.perf_counter() - start


def test_help_imports_nothing_heavy() -> None:
    done, _ = freshet_help("-X", "importtime")
    assert done.returncode == 0, done.stderr[-2_000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "stream_app" in imported
    assert imported & {"numba", "pyarrow", "scipy", "sklearn", "torch"} == set()


def test_help_answers_at_once() -> None:
    """The best of some runs: other work on the machine only ever adds time."""
    took = []
    for _ in range(6):
        done, seconds = freshet_help()
        assert done.returncode == 0, done.stderr[-2_000:]
        assert "replay" in done.stdout
        took.append(seconds)
        if seconds < HELP_S:
            return
    pytest.fail(f"freshet --help took {min(took):.2f} s at best, {HELP_S} s are promised")


def test_rooms_are_small() -> None:
    lengths = {path: (ROOT / path).read_text().count("\n") for path in MODULES}
    assert {path: n_lines for path, n_lines in lengths.items() if n_lines > LONGEST_FILE} == {}


def test_pages_point_at_what_exists() -> None:
    """Links between the project's pages, and the make targets that they name."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        links = set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))
        named = set(re.findall(r"(?:`|^ *|&& )make ([a-z-]+)", text, re.MULTILINE))
        broken += [f"{page.name}: {link}" for link in sorted(links) if not (page.parent / link).exists()]
        broken += [f"{page.name}: make {target}" for target in sorted(named - targets)]
    assert broken == []
