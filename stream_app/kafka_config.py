"""How a Kafka cluster is reached: the table ``[kafka]`` of a config. Imports nothing of Kafka.

A password is never part of a config: it is read, when a connection is made, from the environment variable or the file that
the config names. So no config that is printed, stored with a run or shown in an error can hold one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

__all__ = ["KafkaConfig", "KafkaConfigError", "client_options", "parse_servers"]

Milliseconds = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{0,100}")


class KafkaConfigError(ValueError):
    """A cluster that cannot be reached as asked; the message names the field, its value and the way out."""


class KafkaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach a Kafka cluster, and how topics are made there.

    Raises:
        KafkaConfigError: fields do not go together.
    """

    servers: tuple[str, ...] = ()
    """``HOST:PORT`` of some of the brokers; the rest are found through them."""
    client_id: Name = "freshet"
    """Name by which the brokers' logs and quotas know this program."""
    topic_prefix: str = ""
    """Put before every topic's name there, so that several Freshets share a cluster."""
    replication_factor: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """Copies of each new topic; -1 is the cluster's default. From 3 on, writes wait for 2 of them."""

    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    """``ssl``: TLS. ``sasl_*``: user and password; over ``sasl_plaintext`` with PLAIN the password can be read on the wire."""
    ca_file: str | None = None
    """PEM of the authority that signed the brokers' certificates; None takes the system's."""
    cert_file: str | None = None
    """PEM of this client's certificate, where the brokers ask for one."""
    key_file: str | None = None
    """PEM of its key."""
    check_hostname: bool = True
    """Whether a broker's certificate must be of the host that was asked for."""
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """Of SASL."""
    user: str | None = None
    """Of SASL."""
    password_env: str | None = None
    """Name of the environment variable that holds the password."""
    password_file: str | None = None
    """File that holds the password; a newline at its end does not count."""

    request_timeout_ms: Milliseconds = 10_000
    """A broker that has not answered by then is asked again, or another one is."""
    outage_ms: Milliseconds = 300_000
    """How long reads and appends wait for a cluster that is away before they give up."""
    max_block_bytes: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 30)] = 16 << 20
    """Largest record; topics are created to take it."""
    compression: Literal["none", "gzip", "lz4", "zstd"] = "lz4"
    """Of records that import and simulate write; blocks of samples are compressed already."""

    def __post_init__(self) -> None:
        for server in self.servers:
            _check_server(server)
        if not _PREFIX.fullmatch(self.topic_prefix):
            raise KafkaConfigError(
                f"topic_prefix = {self.topic_prefix!r}: use at most 100 letters, digits, '.', '_' and '-', as in topic names"
            )
        if self.replication_factor == 0:
            raise KafkaConfigError("replication_factor = 0: at least 1, or -1 for the cluster's default")
        self._check_tls()
        self._check_sasl()

    def _check_tls(self) -> None:
        given = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if given and self.security not in ("ssl", "sasl_ssl"):
            raise KafkaConfigError(f"security = {self.security!r} uses no TLS, but {given[0]} is given: set ssl or sasl_ssl")
        if (self.cert_file is None) != (self.key_file is None):
            raise KafkaConfigError("cert_file and key_file go together: give both, or neither")

    def _check_sasl(self) -> None:
        sources = [name for name in ("password_env", "password_file") if getattr(self, name) is not None]
        if self.security.startswith("sasl"):
            if self.user is None or len(sources) != 1:
                given = ", ".join((["user"] if self.user is not None else []) + sources)
                raise KafkaConfigError(
                    f"security = {self.security!r} needs user and one of password_env (name of an environment variable) and "
                    f"password_file; given: {given or 'none of them'}"
                )
        elif self.user is not None or sources:
            name = "user" if self.user is not None else sources[0]
            raise KafkaConfigError(
                f"security = {self.security!r} uses no password, but {name} is given: set sasl_ssl or sasl_plaintext"
            )


def parse_servers(text: str) -> tuple[str, ...]:
    """Return the servers of ``HOST:PORT,HOST:PORT``.

    >>> parse_servers("one:9092, two:9092")
    ('one:9092', 'two:9092')

    Raises:
        KafkaConfigError: one of them is no HOST:PORT.
    """
    servers = tuple(part.strip() for part in text.split(","))
    for server in servers:
        _check_server(server)
    return servers


def client_options(config: KafkaConfig) -> dict[str, Any]:
    """Return what every client of kafka-python is told, the password among it: not to be printed.

    Raises:
        KafkaConfigError: no servers, a file is not there, or the password's source is empty.
    """
    if not config.servers:
        raise KafkaConfigError("kafka.servers is empty: give --kafka HOST:PORT, or servers in [kafka] of the config")
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise KafkaConfigError(f"kafka.{name} = {path!r}: there is no such file")
    options: dict[str, Any] = {
        "bootstrap_servers": list(config.servers),
        "client_id": config.client_id,
        "security_protocol": config.security.upper(),
        "request_timeout_ms": config.request_timeout_ms,
        "bootstrap_timeout_ms": config.request_timeout_ms,
        # A broker that comes back is found within a second, whenever it comes.
        "reconnect_backoff_max_ms": 1_000,
        # Fetches and blocks are larger than the default of 100 MB allows for.
        "receive_message_max_bytes": 256 << 20,
    }
    if config.security in ("ssl", "sasl_ssl"):
        options |= {"ssl_cafile": config.ca_file, "ssl_certfile": config.cert_file, "ssl_keyfile": config.key_file}
        options["ssl_check_hostname"] = config.check_hostname
    if config.security.startswith("sasl"):
        options |= {"sasl_mechanism": config.mechanism, "sasl_plain_username": config.user}
        options["sasl_plain_password"] = _password(config)
    return options


def _password(config: KafkaConfig) -> str:
    if config.password_env is not None:
        password = os.environ.get(config.password_env, "")
        if not password:
            raise KafkaConfigError(
                f"kafka.password_env = {config.password_env!r}: that environment variable is not set or empty"
            )
        return password
    path = Path(config.password_file or "")
    try:
        password = path.read_text().rstrip("\r\n")
    except OSError as error:
        raise KafkaConfigError(f"kafka.password_file = {str(path)!r}: {error.strerror}") from error
    if not password:
        raise KafkaConfigError(f"kafka.password_file = {str(path)!r}: the file is empty")
    return password


def _check_server(server: str) -> None:
    match = _SERVER.fullmatch(server)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise KafkaConfigError(f"servers: {server!r} is no HOST:PORT; write for example kafka-1:9092")
