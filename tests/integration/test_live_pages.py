"""The commands of the pages about Kafka run, on a real broker."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.integration.broker import free_ports
from tests.pages import BROKER, PAGES, needs_kafka, run_page

LIVE = [page for page in PAGES if needs_kafka(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", LIVE, ids=lambda page: page.name)
def test_the_commands_run(page: Path, kafka: str, tmp_path: Path) -> None:
    prefix, ports = f"page{secrets.token_hex(4)}", free_ports(2)
    replaced = {
        f"--kafka {BROKER}": f"--kafka {kafka} --set kafka.topic_prefix={prefix}.",
        "freshet join": f"freshet join --app {prefix}",
        "9108": str(ports[0]),
        "9109": str(ports[1]),
    }
    run_page(page, tmp_path, replaced)


def test_there_is_such_a_page() -> None:
    assert [page.name for page in LIVE] == ["go-live.md"]
