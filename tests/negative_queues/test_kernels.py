"""Kept machine code is of today's sources and of nobody else: each test runs kernels in processes of their own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

from negative_queues.kernel_sources import sources
from negative_queues.kernels import kernel

ROOT = Path(__file__).parents[2]
HEAD = "import numpy as np\nfrom negative_queues.kernels import kernel\n"


class Package:
    """Modules of kernels in a folder, and processes that run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "made"
        self.errors = ""
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()

    def write(self, **modules: str) -> None:
        for name, text in modules.items():
            (self.folder / f"{name}.py").write_text(HEAD + text)

    def run(self, code: str, **variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")} | variables
        environment["PYTHONPATH"] = os.pathsep.join([str(self.folder.parent), str(ROOT)])
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # Python's own takes a source of the same second and size for unchanged
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{ran.returncode}: {ran.stderr}"
        self.errors = ran.stderr
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
    package.write(deepest="STEP = 2\n", caller="from .deep import add\n\n\n@kernel\ndef run(x):\n    return 1 * add(x)\n")
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
    """Nor one that has another as a free variable: Numba names that anew in each process, so it would never be found again."""
    package.write(
        some="@kernel\ndef add(x):\n    return x + 1\n@kernel\ndef run(f, x):\n    return f(x)\n"
        "def made(f):\n    @kernel\n    def run(x):\n        return f(x)\n    return run\n"
    )
    assert package.run("from made.some import add, made, run; print(run(add, 1), made(add)(1))") == "2 2"
    assert [path.name.split(".")[1] for path in package.kept()] == ["add"]


def test_functions_of_one_name_are_not_mixed_up(package: Package) -> None:
    """They differ in a constant, which is not in the bytecode, or in how they are compiled."""
    two = "    {}:\n        @kernel\n        def run(x):\n            return x + {}\n"
    package.write(
        two="def made(one):\n" + two.format("if one", 1) + two.format("else", 2) + "    return run\n",
        lambdas="a, b = kernel(lambda x: x + 1), kernel(lambda x: x + 2)\n",
        options="def run(x):\n    return 1 / x\na, b = kernel(run), kernel(error_model='numpy')(run)\n",
    )
    told = package.run(
        "from made.two import made; print(made(True)(1), made(False)(1)); "
        "from made.lambdas import a, b; print(a(1), b(1)); "
        "from made.options import a, b; a(1.); print(b(0.))"
    )
    assert told.split() == ["2", "3", "2", "3", "inf"]


def test_scripts_in_one_folder_leave_each_other_s_code(package: Package) -> None:
    for name, step in ("one", 1), ("two", 2):
        package.write(**{name: f"@kernel\ndef run(x):\n    return x + {step}\nprint(run(1), len(run.stats.cache_hits))\n"})
    runs = [
        f"import runpy; runpy.run_path({str(package.folder / name)!r}, run_name='__main__')" for name in ("one.py", "two.py")
    ]
    assert [package.run(run) for run in [*runs, runs[0]]] == ["2 0", "3 0", "2 1"]


def test_code_is_of_what_numba_was_told_by_the_environment(package: Package) -> None:
    package.write(some="@kernel\ndef run(x, i):\n    return x[i]\n")
    run = "from made.some import run; print(run(np.arange(2), 0))"
    package.run("import numpy as np; " + run)
    beyond = "import numpy as np\nfrom made.some import run\ntry: run(np.arange(2), 2)\nexcept IndexError: print('beyond')"
    assert package.run(beyond, NUMBA_BOUNDSCHECK="1") == "beyond"


def test_a_module_that_is_reloaded_has_its_own_code(package: Package) -> None:
    """And it is not kept: what else this process has loaded may be older than the files."""
    package.write(step="STEP = 1\n", some="from .step import STEP\n@kernel\ndef run(x):\n    return x + STEP\n")
    reloads = (
        "import importlib, pathlib, sys; sys.dont_write_bytecode = True; from made import some, step; print(some.run(1)); "
        "path = pathlib.Path(step.__file__); old = path.read_text(); path.write_text('STEP = 20\\n'); "
        "importlib.reload(step); importlib.reload(some); print(some.run(1))"
    )
    assert package.run(reloads).split() == ["2", "21"]
    assert package.run("from made import some; print(some.run(1), len(some.run.stats.cache_hits))") == "21 0"


def test_a_kernel_runs_where_its_code_cannot_be_kept(package: Package) -> None:
    package.write(some="@kernel\ndef run(x):\n    return x + 1\n")
    taken = package.folder / "__pycache__"
    run = "import warnings; warnings.simplefilter('always'); from made.some import run; {}print(run(1))"
    gone = f"import pathlib, shutil; shutil.rmtree({str(taken)!r}); pathlib.Path({str(taken)!r}).touch(); "
    assert package.run(run.format(gone)) == "2", "the folder goes after the import, as when the disk fills up"
    assert "machine code is not kept" in package.errors
    assert package.run(run.format(""), HOME="/dev/null", XDG_CACHE_HOME="/dev/null/none") == "2", "there is none from the start"
    assert "NUMBA_CACHE_DIR" in package.errors


def test_a_kernel_without_a_file_of_its_own_is_not_kept(package: Package) -> None:
    text = "@kernel\ndef run(x):\n    return x + 1\n"
    with zipfile.ZipFile(package.folder / "all.zip", "w") as file:
        file.writestr("zipped.py", HEAD + text)
    told = package.run(
        f"exec(compile({HEAD + text!r}, '<stdin>', 'exec'))\nprint(run(1))\n"
        f"import sys; sys.path.insert(0, {str(package.folder / 'all.zip')!r})\nfrom zipped import run\nprint(run(1))"
    )
    assert (told.split(), package.errors) == (["2", "2"], "")


def test_a_numba_that_numbers_in_another_way_is_refused(package: Package) -> None:
    other = "from numba.core.bytecode import FunctionIdentity as F\ndel F._unique_ids\ntry: import negative_queues.kernels\n"
    assert "Numba" in package.run(f"{other}except ImportError as error: print(error)")


@pytest.mark.parametrize(
    "text",
    [
        "if True: from . import b",
        "x = 1; import made.b as c",
        "from .b import (  # (so)\n    x,\n)",
        "from . import (  # (so)\n    a,  # :)\n    b,\n)",
        "from . import main, \\\n    b",
        "from.b import x",
        "from .import b",
        "from made import b",
        "import made.a, made.b",
        "from . import b",
        "from .b import x",
        "from . import (\n    a,\n    b,\n)",
        "def late():\n    from .b import x",
        "from .a import x",  # which imports it, and this file in turn
    ],
)
def test_sources_are_a_file_and_what_it_imports(tmp_path: Path, text: str) -> None:
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
        return sources(made / "main.py")

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
