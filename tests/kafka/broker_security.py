"""The secure broker's users, certificates and listener properties. All secrets are made anew for each broker."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
JAAS = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Account:
    """A user of the broker."""

    name: str
    password: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True)
class Certificates:
    """PEM files. The client's key is there plain and encrypted."""

    ca: Path
    broker: Path
    client: Path
    client_key: Path
    encrypted_client_key: Path
    client_key_password: str


def make_certificates(folder: Path) -> Certificates:
    """A certificate authority of its own, and what it signed for 127.0.0.1 and for a client, in ``folder``."""
    import trustme
    from cryptography.hazmat.primitives import serialization as pem

    folder.mkdir(parents=True, exist_ok=True)
    password = secrets.token_hex(12)
    authority = trustme.CA()
    broker, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@latent-encoder.test")

    def write(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def key(leaf: trustme.LeafCert, encryption: pem.KeySerializationEncryption) -> bytes:
        # Kafka reads PKCS #8 alone.
        loaded = pem.load_pem_private_key(leaf.private_key_pem.bytes(), None)
        return loaded.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)

    def chain(leaf: trustme.LeafCert) -> bytes:
        return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)

    return Certificates(
        ca=write("ca.pem", authority.cert_pem.bytes()),
        broker=write("broker.pem", key(broker, pem.NoEncryption()) + chain(broker)),
        client=write("client.pem", chain(client)),
        client_key=write("client.key", key(client, pem.NoEncryption())),
        encrypted_client_key=write("client_encrypted.key", key(client, pem.BestAvailableEncryption(password.encode()))),
        client_key_password=password,
    )


def sasl_properties(listener: str, accounts: tuple[Account, ...]) -> dict[str, str]:
    """The broker's properties of one SASL listener that knows these users; SCRAM's stand in the formatted log."""
    prefix = f"listener.name.{listener.lower()}"
    users = " ".join(f'user_{account.name}="{account.password}"' for account in accounts)
    scram = f"{JAAS}.scram.ScramLoginModule required;"
    return {
        f"{prefix}.sasl.enabled.mechanisms": ",".join(MECHANISMS),
        f"{prefix}.plain.sasl.jaas.config": f"{JAAS}.plain.PlainLoginModule required {users};",
        f"{prefix}.scram-sha-256.sasl.jaas.config": scram,
        f"{prefix}.scram-sha-512.sasl.jaas.config": scram,
    }


def scram_arguments(accounts: tuple[Account, ...]) -> list[str]:
    """What ``StorageTool format`` is told of these users."""
    pairs = [(mechanism, account) for account in accounts for mechanism in MECHANISMS if mechanism != "PLAIN"]
    return [f"--add-scram={mechanism}=[name={user.name},password={user.password}]" for mechanism, user in pairs]


def tls_properties(certificates: Certificates) -> dict[str, str]:
    """The broker's properties of its TLS listeners; MTLS lets nobody in without a certificate of ours."""
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.broker),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "listener.name.mtls.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^.*$/tls-client/",
    }


def authorizer_properties(allowed: tuple[Account, ...]) -> dict[str, str]:
    """Rights: these users, the plain listener and a client's certificate may do everything, others nothing."""
    users = ["ANONYMOUS", "tls-client", *(account.name for account in allowed)]
    return {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": ";".join(f"User:{user}" for user in users),
    }
