"""The suite's own mechanism: what a machine lacks is skipped and listed, or is a failure where it is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
SUITE = """
import pytest

def test_by_fixture(data):
    assert data.is_dir()

@pytest.mark.data
def test_by_marker():
    pass

@pytest.mark.skip(reason="not today")
def test_other():
    pass

def test_plain():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A project with this project's conftest and four tests, in a folder that has no real logs beside it."""
    tests = tmp_path / "project" / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST.read_text())
    (tests / "test_it.py").write_text(SUITE)
    (tests.parent / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["data: needs the real logs"]\n')
    return tests.parent


def run(suite: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FRESHET_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(command, cwd=suite, env=clean | environment, capture_output=True, text=True, timeout=600, check=False)


def test_what_is_missing_is_skipped_and_listed(suite: Path) -> None:
    done = run(suite)
    assert done.returncode == 0
    section = done.stdout.split("could not run here")[1]
    assert "2 tests: needs data: no folder" in section
    assert "point FRESHET_DATA at the real logs" in section
    assert "1 test: not today" in section
    assert "1 passed, 3 skipped" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("required", ["data", "cuda, data", "all"])
def test_what_is_required_and_missing_fails(suite: Path, required: str) -> None:
    done = run(suite, FRESHET_REQUIRE=required)
    assert done.returncode == 1
    assert "FRESHET_REQUIRE asks for data: no folder" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert "1 passed" in last
    assert "1 skipped" in last
    assert "2 failed" in last or "2 errors" in last


def test_what_is_there_runs(suite: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    done = run(suite, FRESHET_DATA=str(logs), FRESHET_REQUIRE="data")
    assert done.returncode == 0
    assert "3 passed, 1 skipped" in done.stdout.splitlines()[-1]


def test_a_folder_beside_the_project_is_found(suite: Path) -> None:
    (suite.parent / "shared" / "data").mkdir(parents=True)
    assert run(suite, FRESHET_REQUIRE="data").returncode == 0


def test_a_misspelt_requirement_is_refused(suite: Path) -> None:
    done = run(suite, FRESHET_REQUIRE="date")
    assert done.returncode == 4
    assert (
        "FRESHET_REQUIRE names date; known: all, chromium, cuda, data, docker, kafka, kafka_broker" in done.stderr + done.stdout
    )
