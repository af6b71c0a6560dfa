"""Images for the containers of the integration tests: pulled where a registry answers, built where none does.

A closed network still has Debian's packages and Maven's jars: a base of Debian is made by debootstrap, with this machine's
certificates, and Kafka, Prometheus and Freshet are built on it. Docker keeps what was built; a second run takes seconds.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.integration.broker import VERSION, fetch_jars

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "docker"
PYTHON_IMAGE = "python:3.11-slim-bookworm"
KAFKA_IMAGE = f"apache/kafka:{VERSION}"
PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
PULL_S = 300
BUILD_S = 1_200
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class ImageError(RuntimeError):
    """An image can be neither pulled nor built; the message ends with what docker said."""


def why_no_docker() -> str | None:
    """Return what containers lack here, None if they can be run."""
    if shutil.which("docker") is None:
        return "no docker on the PATH: install Docker's engine"
    done = _docker("info", "--format", "{{.ServerVersion}}", timeout=20, check=False)
    if done.returncode != 0:
        return f"docker's engine does not answer ({done.stderr.strip()[-200:]}): start it with `dockerd`"
    return None


@functools.cache
def base_image() -> str:
    """Return an image with Python 3.11, venv and certificates."""
    if _here_or_pulled(PYTHON_IMAGE):
        return PYTHON_IMAGE
    name = "freshet-base:bookworm"
    if not _is_here(name):
        with tempfile.TemporaryDirectory(prefix="freshet-base-") as root:
            packages = "--include=ca-certificates,python3,python3-venv"
            _run(["debootstrap", "--variant=minbase", packages, "bookworm", root], "debootstrap")
            if _CERTIFICATES.is_file():
                shutil.copy(_CERTIFICATES, Path(root) / "etc/ssl/certs/ca-certificates.crt")
            # One pipe: the tree is not packed to disk first.
            _run(["sh", "-c", 'tar -C "$1" -c . | docker import - "$2" >/dev/null', "sh", root, name], "docker import")
    return name


@functools.cache
def freshet_image() -> str:
    """Return the project's own image, of the tree as it is."""
    name = "freshet:test"
    _docker(
        "build", "--quiet", "-f", "deploy/Dockerfile", "--build-arg", f"BASE_IMAGE={base_image()}", "-t", name, ".", cwd=ROOT
    )
    return name


@functools.cache
def kafka_image() -> str:
    """Return an image of Apache Kafka that takes the official one's settings."""
    if _here_or_pulled(KAFKA_IMAGE):
        return KAFKA_IMAGE
    with tempfile.TemporaryDirectory(prefix="freshet-kafka-") as context:
        shutil.copytree(HERE / "kafka", context, dirs_exist_ok=True)
        shutil.copytree(fetch_jars(), Path(context) / "libs")
        return _built("freshet-kafka:test", Path(context))


@functools.cache
def prometheus_image() -> str:
    """Return an image of Prometheus."""
    return PROMETHEUS_IMAGE if _here_or_pulled(PROMETHEUS_IMAGE) else _built("freshet-prometheus:test", HERE / "prometheus")


def _built(name: str, context: Path) -> str:
    _docker("build", "--quiet", "--build-arg", f"BASE_IMAGE={base_image()}", "-t", name, ".", cwd=context)
    return name


def _here_or_pulled(name: str) -> bool:
    return _is_here(name) or (_registry_answers() and _docker("pull", "-q", name, timeout=PULL_S, check=False).returncode == 0)


def _is_here(name: str) -> bool:
    return _docker("image", "inspect", "--format", "{{.Id}}", name, check=False).returncode == 0


@functools.cache
def _registry_answers() -> bool:
    """Whether a pull can be tried: the smallest image there is, in half a minute."""
    try:
        return _docker("pull", "-q", "hello-world", timeout=30, check=False).returncode == 0
    except ImageError:
        return False


def _docker(
    *arguments: str, cwd: Path | None = None, timeout: float = BUILD_S, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return _run(["docker", *arguments], f"docker {arguments[0]}", cwd=cwd, timeout=timeout, check=check)


def _run(
    command: list[str], what: str, *, cwd: Path | None = None, timeout: float = BUILD_S, check: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{what} took longer than {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise ImageError(f"{what} failed:\n{(done.stdout + done.stderr)[-3_000:]}")
    return done
