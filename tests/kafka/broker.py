"""A real Apache Kafka for the tests: one KRaft node in a JVM of its own, which does not outlive the tests.

with Broker.start(folder) as broker:
    Producer({"bootstrap.servers": broker.bootstrap})
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import broker_security as security
from kafka.broker_jars import BrokerUnavailable, broker_class_path, find_java
from kafka.broker_security import Account, Certificates
from kafka.tcp_proxy import TcpProxy

HOST = "127.0.0.1"
START_TIMEOUT = 90.0
# Below the ports that systems give to clients: a client that dials a dead broker's port could else get that very port
# for its own end, be connected to itself, and keep the broker from coming back.
PORTS = range(15000, 32000)
JVM = (
    *("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
    *("-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
SMALL = {
    # One node: nothing is replicated, and what belongs to the groups and transactions is one partition each.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "min.insync.replicas": "1",
    "auto.create.topics.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    # Times: a test does not wait where a cluster would.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "500",
    # How long a restarted controller waits for the dead broker of its own data before it lets the new one in.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "300",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}
# Waits until its standard input ends, as it does with the process that holds the other end, however that dies.
WATCHER = 'read -r line; kill -9 "$1" 2>/dev/null'


class Broker:
    """One broker. Its ports, its data and its users stay the same from ``start`` to ``stop``.

    Attributes:
        bootstrap: "127.0.0.1:port", PLAINTEXT; with ``sasl`` the users' rights are checked, and this one has all.
        proxied_bootstrap: the same through the proxy, where one was given.
        sasl_bootstrap: SASL_PLAINTEXT, with ``sasl``.
        tls_bootstrap: SSL, with ``tls``; the client shows no certificate.
        mtls_bootstrap: SSL, with ``tls``; the client must show one of the broker's own authority.
        sasl_tls_bootstrap: SASL_SSL, with both.
        user: may do everything; in PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
        guest: can log in by the same mechanisms, and has no right to anything.
        certificates: the PEM files, with ``tls``.
        log_path: what the JVM prints.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sasl: bool = False,
        tls: bool = False,
        proxy: TcpProxy | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.log_path = folder, folder / "broker.log"
        self.user, self.guest = Account("encoder"), Account("guest")
        self.certificates: Certificates | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        protocols = _listeners(sasl=sasl, tls=tls, proxied=proxy is not None)
        addresses = dict(zip(protocols, (f"{HOST}:{port}" for port in free_ports(len(protocols))), strict=True))
        self.bootstrap = addresses["PLAINTEXT"]
        self.sasl_bootstrap, self.sasl_tls_bootstrap = addresses.get("SASL", ""), addresses.get("SASL_TLS", "")
        self.tls_bootstrap, self.mtls_bootstrap = addresses.get("TLS", ""), addresses.get("MTLS", "")
        self.proxied_bootstrap = ""
        advertised = {name: address for name, address in addresses.items() if name != "CONTROLLER"}
        if proxy:
            proxy.target = addresses["PROXIED"]
            self.proxied_bootstrap = advertised["PROXIED"] = proxy.address
        self.properties = {
            **_node_properties(addresses, advertised, protocols),
            "log.dirs": str(folder / "data"),
            **SMALL,
        }
        if sasl:
            for listener in {"SASL", "SASL_TLS"} & protocols.keys():
                self.properties |= security.sasl_properties(listener, (self.user, self.guest))
            self.properties |= security.authorizer_properties((self.user,))
        if tls:
            self.certificates = security.make_certificates(folder / "certificates")
            self.properties |= security.tls_properties(self.certificates)
        self.properties |= overrides or {}

    @classmethod
    def start(cls, folder: Path, **options: Any) -> Broker:
        """Make the broker's data in ``folder``, start it, and wait until it serves.

        Args:
            sasl: a SASL listener too, PLAIN and SCRAM, and an authorizer.
            tls: a TLS listener too.
            proxy: one more listener, which is reached through this proxy alone.
            overrides: more or other properties of the broker.

        Raises:
            BrokerUnavailable: no Java or no jars here.
            RuntimeError: it did not come up; the text ends with its log.
        """
        broker = cls(folder, **options)
        broker._format()
        broker._launch()
        return broker

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        if self._process is None:
            raise RuntimeError("the broker does not run")
        return self._process.pid

    @property
    def ca_file(self) -> str:
        """The authority that a client of the TLS listeners must trust (PEM)."""
        if self.certificates is None:
            raise RuntimeError("the broker has no TLS listener")
        return str(self.certificates.ca)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """``kill -9``, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The end of it; what it still holds is wanted by nobody."""
        self.kill()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, orderly: bool = False) -> None:
        """Start again on the same data and ports, after a kill or the end of one that runs; wait until it serves.

        Args:
            orderly: a controlled shutdown (SIGTERM) of one that runs, in place of ``kill -9``.
        """
        if self._process is not None:
            self._end(signal.SIGTERM if orderly else signal.SIGKILL)
        self._launch()

    def log(self) -> str:
        """What the JVM has printed, over all its lives."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def sasl_client(self, mechanism: str = "SCRAM-SHA-512", account: Account | None = None) -> dict[str, str]:
        """A client's properties for ``sasl_bootstrap``: ``user``'s, or another account's."""
        account = account or self.user
        return {
            "bootstrap.servers": self.sasl_bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": account.name,
            "sasl.password": account.password,
        }

    def tls_client(self, *, certificate: bool = False) -> dict[str, str]:
        """A client's properties for ``tls_bootstrap``; ``certificate``: for ``mtls_bootstrap``."""
        client = {"security.protocol": "SSL", "ssl.ca.location": self.ca_file}
        files = self.certificates
        if not certificate or files is None:
            return client | {"bootstrap.servers": self.tls_bootstrap}
        own = {"ssl.certificate.location": str(files.client), "ssl.key.location": str(files.client_key)}
        return client | own | {"bootstrap.servers": self.mtls_bootstrap}

    def sasl_tls_client(self, mechanism: str = "SCRAM-SHA-512", account: Account | None = None) -> dict[str, str]:
        """A client's properties for ``sasl_tls_bootstrap``."""
        both = self.tls_client() | self.sasl_client(mechanism, account)
        return both | {"bootstrap.servers": self.sasl_tls_bootstrap, "security.protocol": "SASL_SSL"}

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _format(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}={value}\n" for name, value in self.properties.items()]
        self._properties_file.write_text("".join(lines), encoding="utf-8")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With "=": an id may begin with a dash.
        options = ["--standalone", f"--cluster-id={cluster}", f"--config={self._properties_file}"]
        if self.sasl_bootstrap:
            options += security.scram_arguments((self.user, self.guest))
        command = [*_java(), "kafka.tools.StorageTool", "format", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_TIMEOUT)
        if done.returncode:
            raise RuntimeError(f"the broker's folder cannot be formatted: {(done.stdout + done.stderr)[-2000:]}")

    @property
    def _properties_file(self) -> Path:
        return self.folder / "server.properties"

    def _launch(self) -> None:
        command = [*_java(), "kafka.Kafka", str(self._properties_file)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCHER, "sh", str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._wait_until_it_serves()
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_serves(self) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        deadline = time.monotonic() + START_TIMEOUT
        while self.is_running and time.monotonic() < deadline:
            try:
                # It lists itself when the controller has let it in: from then on it leads its partitions.
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                pass
            time.sleep(0.05)
        state = "serves nobody" if self.is_running else "has ended"
        raise RuntimeError(f"the broker {state}: {self.log()[-3000:]}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._watcher is not None:  # after the broker, so that nobody is ever without it
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None


@dataclass(frozen=True)
class ExistingBroker:
    """A broker that was there before the tests, and stays."""

    bootstrap: str


@contextlib.contextmanager
def started_broker(folder: Path, **options: Any) -> Iterator[Broker]:
    """``Broker.start`` for a fixture: where none can run the test is skipped, or fails with ``KAFKA_REQUIRED=1``."""
    import pytest

    try:
        broker = Broker.start(folder, **options)
    except BrokerUnavailable as reason:
        if os.environ.get("KAFKA_REQUIRED") == "1":
            pytest.fail(f"no Kafka broker: {reason}", pytrace=False)
        pytest.skip(f"no Kafka broker: {reason}")
    with broker:
        yield broker


@contextlib.contextmanager
def session_broker(folder: Path) -> Iterator[Broker | ExistingBroker]:
    """The broker of ``KAFKA_TEST_BOOTSTRAP``, else one that is started and ends with the ``with``."""
    if bootstrap := os.environ.get("KAFKA_TEST_BOOTSTRAP"):
        yield ExistingBroker(bootstrap)
        return
    with started_broker(folder) as broker:
        yield broker


def free_ports(count: int) -> list[int]:
    """So many free ports of 127.0.0.1 from ``PORTS``, all different."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise BrokerUnavailable(f"fewer than {count} free ports from {PORTS.start} to {PORTS.stop}")


def _listeners(*, sasl: bool, tls: bool, proxied: bool) -> dict[str, str]:
    """The security protocol of each listener, by its name."""
    protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
    protocols |= {"PROXIED": "PLAINTEXT"} if proxied else {}
    protocols |= {"SASL": "SASL_PLAINTEXT"} if sasl else {}
    protocols |= {"TLS": "SSL", "MTLS": "SSL"} if tls else {}
    return protocols | ({"SASL_TLS": "SASL_SSL"} if sasl and tls else {})


def _node_properties(
    addresses: Mapping[str, str], advertised: Mapping[str, str], protocols: Mapping[str, str]
) -> dict[str, str]:
    """One node that is broker and controller, where it listens and what it tells clients of that."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": addresses["CONTROLLER"],
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": ",".join(f"{name}://{address}" for name, address in addresses.items()),
        "advertised.listeners": ",".join(f"{name}://{address}" for name, address in advertised.items()),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
    }


def _java() -> list[str]:
    return [find_java(), *JVM, "-cp", broker_class_path()]
