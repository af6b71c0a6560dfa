"""A real Apache Kafka on loopback, from Maven Central's jars: started in seconds, killed, and started again on its data.

The jars (43 MB) are fetched once by Maven into ``$XDG_CACHE_HOME/freshet/kafka-VERSION`` (default ``~/.cache``). A broker is
one JVM in KRaft mode, broker and controller together, with the settings of a production cluster where they matter: no topic
is made by accident, messages over 1 MB are refused unless a topic allows them.

    with Broker(tmp_path) as broker:
        open_kafka(KafkaConfig(servers=(broker.server,)))
        broker.kill()  # kill -9
        broker.start()  # the same data, the same port
"""

from __future__ import annotations

import atexit
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

VERSION = "4.1.0"
SLF4J = "1.7.36"  # Without a binding of slf4j the broker logs nothing, not even that it started.
STORE_PASSWORD = "of-a-key-that-lives-as-long-as-a-test"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
START_S = 300.0
"""Bounds a start that hangs; it takes two seconds, and twenty where the machine is busy."""
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>freshet</groupId>
  <artifactId>test-broker</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{SLF4J}</version></dependency>
  </dependencies>
</project>
"""


class BrokerError(RuntimeError):
    """The broker did not start, or its jars could not be fetched; the message ends with what it said."""


def cache_folder() -> Path:
    """Return the folder that holds the jars."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "freshet" / f"kafka-{VERSION}"


def why_no_broker() -> str | None:
    """Return what a broker of our own lacks here, None if it can be started."""
    if shutil.which("java") is None:
        return "no java on the PATH: install a JRE (17 or newer), or set FRESHET_KAFKA=HOST:PORT to use a broker that runs"
    if shutil.which("mvn") is None and not (cache_folder() / "libs").is_dir():
        return f"no mvn on the PATH and no jars in {cache_folder()}: install Maven, or set FRESHET_KAFKA=HOST:PORT"
    return None


def fetch_jars() -> Path:
    """Return the folder of the jars; Maven fetches them where they are not there yet.

    Raises:
        BrokerError: Maven failed.
    """
    folder = cache_folder()
    libs = folder / "libs"
    if libs.is_dir():
        return libs
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's workers all come here at once
        if libs.is_dir():
            return libs
        (folder / "pom.xml").write_text(_POM)
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'libs.new'}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise BrokerError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2_000:]}")
        (folder / "libs.new").rename(libs)
    return libs


def free_ports(n: int) -> list[int]:
    """Return ``n`` ports of loopback that nothing listens on now, and that stay this process's among all that ask here.

    Below those that the system gives to whoever connects: one of these may be taken before a broker binds it, or while it is
    down, and whoever tries to reach a broker that is down may be given its port and so be connected to itself.
    """
    locks = Path(tempfile.gettempdir()) / f"freshet-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, _lowest_given_port()), k=2_000):
        if len(found) == n:
            break
        lock = (locks / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as tried:
                tried.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _PORT_LOCKS.append(lock)
        found.append(port)
    assert len(found) == n, f"of 2,000 ports {len(found)} are free, {n} are wanted"
    return found


_PORT_LOCKS: list[IO[str]] = []
"""Held as long as the process lives."""


def _lowest_given_port() -> int:
    """Return the first port that the system gives to whoever connects or binds port 0."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    return max(22_001, int(given.read_text().split()[0])) if given.exists() else 32_768


class Broker:
    """One Kafka node: data in ``folder``, started by the constructor's caller with :meth:`start` or ``with``.

    Args:
        folder: for data, configuration and ``broker.log``.
        users: names and passwords; opens :attr:`sasl_server`, a listener of SASL: PLAIN and SCRAM.
        tls: opens :attr:`tls_server`, a listener of TLS whose certificate is in :attr:`ca_file`; with ``users``
            :attr:`sasl_tls_server` as well, of SASL over TLS.
        settings: further lines of ``server.properties``.
    """

    def __init__(
        self, folder: Path, *, users: dict[str, str] | None = None, tls: bool = False, settings: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.log_file = folder / "broker.log"
        self.ca_file = folder / "ca.pem"
        self._users = users or {}
        self._tls = tls
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    @property
    def server(self) -> str:
        """``127.0.0.1:PORT`` of the plaintext listener."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def sasl_server(self) -> str:
        """``127.0.0.1:PORT`` of the listener that asks for a password."""
        return f"127.0.0.1:{self._ports[2]}"

    @property
    def tls_server(self) -> str:
        """``127.0.0.1:PORT`` of the listener that speaks TLS."""
        return f"127.0.0.1:{self._ports[3]}"

    @property
    def sasl_tls_server(self) -> str:
        """``127.0.0.1:PORT`` of the listener that speaks TLS and asks for a password."""
        return f"127.0.0.1:{self._ports[4]}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> Self:
        """Start, on the same data and ports as before if there was a before; return when clients are served.

        Raises:
            BrokerError: it ended, or is not up after :data:`START_S` seconds.
        """
        if self._process is not None:
            return self
        libs = fetch_jars()
        if not self._ports:
            self._format(libs)
        self._start(libs)
        return self

    def stop(self) -> None:
        """Stop in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop at once, as kill -9 does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the process: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def _format(self, libs: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports = free_ports(5)
        if self._tls:
            self._make_certificate()
        (self.folder / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in self._properties().items()))
        command = [*_java(libs, "128m"), "kafka.tools.StorageTool", "format", "-t", "RnJlc2hldFRlc3RzMDAwMA", "-c"]
        scram = [
            word
            for name, password in self._users.items()
            for mechanism in SCRAM
            for word in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]
        done = subprocess.run(
            [*command, "server.properties", *scram],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerError(f"formatting {self.folder} failed:\n{(done.stdout + done.stderr)[-2_000:]}")

    def _start(self, libs: Path) -> None:
        begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            command = [*_java(libs, "512m"), "kafka.Kafka", "server.properties"]
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        atexit.register(self.kill)
        deadline = time.monotonic() + START_S
        while b"Kafka Server started" not in (said := self._said(begin)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise BrokerError(f"the broker in {self.folder} did not start:\n{said[-3_000:].decode(errors='replace')}")
            time.sleep(0.05)

    def _said(self, begin: int) -> bytes:
        with self.log_file.open("rb") as file:
            file.seek(begin)
            return file.read()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        atexit.unregister(self.kill)

    def _make_certificate(self) -> None:
        store = ["-keystore", "keys.p12", "-storetype", "PKCS12", "-storepass", STORE_PASSWORD, "-alias", "broker"]
        made = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=localhost", "-ext", "san=ip:127.0.0.1,dns:localhost"]
        for command in ([*made, "-validity", "30"], ["-exportcert", "-rfc", "-file", str(self.ca_file)]):
            subprocess.run(["keytool", *command, *store], cwd=self.folder, capture_output=True, timeout=START_S, check=True)

    def _properties(self) -> dict[str, str]:
        plain, controller, sasl, tls, both = (f"127.0.0.1:{port}" for port in self._ports)
        listeners = {"PLAINTEXT": plain, "CONTROLLER": controller}
        if self._users:
            listeners["SASL"] = sasl
        if self._tls:
            listeners["TLS"] = tls
        if self._users and self._tls:
            listeners["SASLTLS"] = both
        advertised = {name: address for name, address in listeners.items() if name != "CONTROLLER"}
        protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL"
        found = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": protocols,
            "listeners": ",".join(f"{name}://{address}" for name, address in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{address}" for name, address in advertised.items()),
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # One of each: a single node keeps nothing twice, and starts faster with fewer files.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # Tests wait for no group, and a broker that was killed is back at once.
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
        }
        for listener in ("sasl", "sasltls") if self._users else ():
            found[f"listener.name.{listener}.sasl.enabled.mechanisms"] = ",".join(("PLAIN", *SCRAM))
            users = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
            login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            found[f"listener.name.{listener}.plain.sasl.jaas.config"] = login
            for mechanism in SCRAM:
                login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                found[f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"] = login
        for listener in ("tls", "sasltls") if self._tls else ():
            found[f"listener.name.{listener}.ssl.keystore.location"] = str(self.folder / "keys.p12")
            found[f"listener.name.{listener}.ssl.keystore.type"] = "PKCS12"
            found[f"listener.name.{listener}.ssl.keystore.password"] = STORE_PASSWORD
        return found | self._settings

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()


def _java(libs: Path, memory: str) -> list[str]:
    """Return the command up to the class; the quick compiler alone, since no broker of a test lives long."""
    simple = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
    return ["java", f"-Xmx{memory}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *simple, "-cp", f"{libs}/*"]
