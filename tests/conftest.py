"""What tests share: the things a machine may lack, hypothesis profiles, one thread per process.

A test *needs* a thing by asking for the fixture of its name or by carrying the marker of its name (``@pytest.mark.cuda``).
Where the thing is missing the test is skipped and listed at the end under "could not run here". ``FRESHET_REQUIRE`` names,
separated by commas, what must be there (``all`` for everything): its absence is then a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# One thread per process: pytest-xdist already fills the cores, and torch's pool of threads collapses when they are shared.
# Set before anything imports torch, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("freshet", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile(
    "freshet-ci", hypothesis.settings.get_profile("freshet"), derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("freshet"), max_examples=2_000)
# Random where people work, so that every run looks at new cases; the same cases each time where a red run blocks somebody.
hypothesis.settings.load_profile("freshet-ci" if os.environ.get("CI") else "freshet")


def _data_folder() -> Path:
    return Path(os.environ.get("FRESHET_DATA") or ROOT.parent / "shared" / "data")


def _why_no_data() -> str | None:
    folder = _data_folder()
    if folder.is_dir():
        return None
    return f"no folder {folder}: point FRESHET_DATA at the real logs"


def _why_no_cuda() -> str | None:
    import torch  # late: two seconds that most runs do not need

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _why_no_kafka() -> str | None:
    server = os.environ.get("FRESHET_KAFKA")
    if not server:
        return _why_no_broker()
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        return f"FRESHET_KAFKA={server} does not answer ({error}): give HOST:PORT of a broker that runs, or unset it"
    return None


def _why_no_broker() -> str | None:
    from tests.integration.broker import why_no_broker

    return why_no_broker()


def chromium_path() -> str | None:
    """Return the browser that draws pages in tests: ``FRESHET_CHROMIUM``, or the first of the usual names on the path."""
    names = [os.environ.get("FRESHET_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _why_no_chromium() -> str | None:
    return (
        None if chromium_path() else "no Chromium on the path: install it (apt-get install chromium), or set FRESHET_CHROMIUM"
    )


def _why_no_docker() -> str | None:
    from tests.integration.images import why_no_docker

    return why_no_docker()


NEEDS: dict[str, Callable[[], str | None]] = {
    "chromium": _why_no_chromium,
    "cuda": _why_no_cuda,
    "data": _why_no_data,
    "docker": _why_no_docker,
    "kafka": _why_no_kafka,
    "kafka_broker": _why_no_broker,
}
"""What a machine may lack: name -> a probe that returns why it is missing, None where it is there."""


def _required() -> set[str]:
    names = {name.strip() for name in os.environ.get("FRESHET_REQUIRE", "").split(",")} - {""}
    unknown = names - {"all", *NEEDS}
    if unknown:
        raise pytest.UsageError(f"FRESHET_REQUIRE names {', '.join(sorted(unknown))}; known: all, {', '.join(sorted(NEEDS))}")
    return set(NEEDS) if "all" in names else names


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a misspelt FRESHET_REQUIRE before anything runs; let in what Kafka's client does when it is imported."""
    # So it is in a shell's background, and would be in all that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _required()
    # It leaves the socket of a refused connection to the garbage collector.
    config.addinivalue_line("filterwarnings", "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what is missing here; fail it where FRESHET_REQUIRE asks for the thing."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    for name in sorted(NEEDS):
        if item.get_closest_marker(name) is None and name not in fixtures:
            continue
        why = NEEDS[name]()
        if why is None:
            continue
        if name in _required():
            pytest.fail(f"FRESHET_REQUIRE asks for {name}: {why}", pytrace=False)
        pytest.skip(f"needs {name}: {why}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what could not run here, and why."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if not reasons:
        return
    terminalreporter.section("could not run here")
    for reason, n_tests in sorted(reasons.items()):
        terminalreporter.line(f"{n_tests} {'test' if n_tests == 1 else 'tests'}: {reason}")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real logs: ``FRESHET_DATA``, or the one beside the project."""
    return _data_folder()


@pytest.fixture(scope="session")
def cuda() -> str:
    """Name of the CUDA device that a test may use."""
    return "cuda"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that a test may start."""
    path = chromium_path()
    assert path is not None, "tests that need it are skipped without"
    return path
