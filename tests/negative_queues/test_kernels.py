"""Kept machine code is of today's sources and of nobody else: each test runs kernels in processes of their own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

from negative_queues.kernels import kernel, sources

ROOT = Path(__file__).parents[2]
HEAD = "import numpy as np\nfrom negative_queues.kernels import kernel\n"


class Package:
    """Modules of kernels in a folder, and processes that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "made"
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()

    def write(self, **modules: str) -> None:
        for name, text in modules.items():
            (self.folder / f"{name}.py").write_text(HEAD + text)

    def run(self, code: str) -> str:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT")
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(self.folder.parent), str(ROOT)])
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # Python's own takes a source of the same second and size for unchanged
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr}"
        return ran.stdout.strip()

    def kept(self, pattern: str = "*") -> list[Path]:
        return sorted((self.folder / "__pycache__").glob(f"{pattern}.nbc"))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


LARGE = """
def made_for(factor):
    @kernel
    def run(x):  # too large to be copied into what calls it
        for i in range(len(x)):
            if x[i] % 3 == 0:
                x[i] = np.sin(x[i]) * factor + np.sort(x)[0]
            elif x[i] % 3 == 1:
                x[i] = np.cos(x[i]) * factor - np.sort(x)[1]
            else:
                x[i] = np.tan(x[i]) * factor * np.sort(x)[2]
        return x.sum()
    return run
"""


def test_code_from_two_processes_is_never_mixed_up(package: Package) -> None:
    """Two closures of one name: by the numbers that Numba counts itself, machine code of two processes calls both the same."""
    package.write(large=LARGE)
    calls = "from .large import made_for\nlarge = made_for({})\n@kernel\ndef run(x):\n    return large(x)\n"
    package.write(by1=calls.format(1), by2=calls.format(2))
    alone = "import numpy as np; from made.by{} import run; print(run(np.arange(9.0)))"
    told = [package.run(alone.format(factor)) for factor in (1, 2)]
    both = "import numpy as np; from made.by1 import run as a; from made.by2 import run as b; "
    assert package.run(f"{both}print(a(np.arange(9.0)), b(np.arange(9.0)), len(b.stats.cache_hits))") == " ".join([*told, "1"])
    assert told[0] != told[1]


def test_a_forked_process_gives_other_names_than_its_parent(package: Package) -> None:
    package.write(some="@kernel\ndef run(x):\n    return x + 1\n")
    names = package.run(
        "import os; from made.some import run; child = os.fork(); child and os.wait(); run._cache.disable(); run(1); "
        "os.write(1, next(iter(run.overloads.values())).fndesc.mangled_name.encode() + b' ')"
    ).split()
    assert len(set(names)) == 2


def test_code_is_old_when_what_it_calls_changes(package: Package) -> None:
    package.write(
        deepest="STEP = 1\n",
        deep="from .deepest import STEP\n@kernel\ndef add(x):\n    return x + STEP\n",
        caller="from .deep import (\n    add,\n)\n@kernel\ndef run(x):\n    return add(x)\n",
    )
    run = "from made.caller import run; print(run(1), len(run.stats.cache_hits))"
    assert [package.run(run), package.run(run)] == ["2 0", "2 1"]
    package.write(deepest="STEP = 2\n")
    assert [package.run(run), package.run(run)] == ["3 0", "3 1"]
    assert len(package.kept("caller.run.*")) == 1, "code of older sources goes"


def test_a_date_alone_makes_nothing_old(package: Package) -> None:
    package.write(some="@kernel\ndef run(x):\n    return x + 1\n")
    run = "from made.some import run; run(1); print(len(run.stats.cache_hits))"
    package.run(run)
    os.utime(package.folder / "some.py", (1, 1))
    assert package.run(run) == "1"


def test_each_kind_of_arguments_has_a_file_that_anyone_can_read(package: Package) -> None:
    package.write(some="@kernel\ndef run(x):\n    return x + 1\n")
    run = "import os, sys; os.umask(0o022); from made.some import run; print(run({}), len(run.stats.cache_hits))"
    assert [package.run(run.format(x)) for x in ("1", "1.5", "1", "1.5")] == ["2 0", "2.5 0", "2 1", "2.5 1"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in package.kept()] == [0o644] * 2
    assert not [path for path in package.folder.rglob("*") if path.suffix in (".tmp", ".nbi")]


@pytest.mark.parametrize(
    "damage", [lambda old: b"", lambda old: old[:-1], lambda old: old[:99] + bytes([old[99] ^ 1]) + old[100:]]
)
def test_a_damaged_file_is_made_again(package: Package, damage: Callable[[bytes], bytes]) -> None:
    package.write(some="@kernel\ndef run(x):\n    return x + 1\n")
    run = "from made.some import run; print(run(1), len(run.stats.cache_hits))"
    package.run(run)
    (path,) = package.kept()
    path.write_bytes(damage(path.read_bytes()))
    assert [package.run(run), package.run(run)] == ["2 0", "2 1"]


def test_a_kernel_that_takes_a_function_is_not_kept(package: Package) -> None:
    package.write(some="@kernel\ndef add(x):\n    return x + 1\n@kernel\ndef run(f, x):\n    return f(x)\n")
    assert package.run("from made.some import add, run; print(run(add, 1))") == "2"
    assert package.kept("some.add.*")
    assert not package.kept("some.run.*")


@pytest.mark.parametrize(
    "text",
    [
        "from made import b",
        "import made.a, made.b",
        "from . import b",
        "from .b import x",
        "from . import (\n    a,\n    b,\n)",
        "def late():\n    from .b import x",
        "from .a import x",  # which imports it, and this file in turn
    ],
)
def test_sources_are_a_file_and_what_it_imports(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_with(case: str, **changed: str) -> str:
        made = tmp_path / case / "made"
        made.mkdir(parents=True)
        files = {
            "__init__": "",
            "a": "from .b import x\nfrom . import main",
            "b": "x = 1",
            "c": "x = 1",
            "main": text,
        } | changed
        for name, content in files.items():
            (made / f"{name}.py").write_text(content)
        monkeypatch.setattr("negative_queues.kernels._ROOT", made.parent)
        return sources(made / "main.py")

    monkeypatch.setattr("negative_queues.kernels._PACKAGES", ("made",))
    hashes = [
        hash_with("as it is"),
        hash_with("other", c="x = 2"),
        hash_with("itself", main=text + "\n"),
        hash_with("b", b="x = 2"),
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_with_the_compiler_off_a_function_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: float) -> float:
        return 2 * x

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert kernel(double) is double
    assert kernel(inline="always")(double) is double
    assert double(1.5) == 3
