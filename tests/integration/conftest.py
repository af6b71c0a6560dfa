"""What the integration tests share: a broker."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Broker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``HOST:PORT`` of a Kafka broker: the one that ``FRESHET_KAFKA`` names, else one of this session's own.

    Topics of a test must have names of their own (a prefix drawn at random): the broker is shared, and may be anybody's.
    """
    if server := os.environ.get("FRESHET_KAFKA"):
        yield server
        return
    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.server


@pytest.fixture
def kafka_broker(tmp_path: Path) -> Iterator[Broker]:
    """A running broker of this test's own, to be killed and started again."""
    with Broker(tmp_path / "kafka") as broker:
        yield broker
    gc.collect()  # sockets of refused connections, which the client leaves behind, go while the test's warning filters hold
