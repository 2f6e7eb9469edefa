"""Certificates that SMTP listeners serve by server name (SNI), and their changes."""

import asyncio
import hashlib
import smtplib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mail.smtp.connection_limits import SessionLimits
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListener, SmtpListenerConfig
from mail.tls import server_tls
from mail.tls.server_tls import CertificateFiles, context_from_pem
from mail.tls.sni_certificates import MAX_CONTEXTS, SniCertificates
from merganser.errors import CommandError
from merganser.server import smtp_listeners
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from resolvers.certificates import certificate_reload
from resolvers.certificates.served_keys import find_served_spki_sha256
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_DELETE,
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
    rsa_key,
    set_certificate,
    store_certificate,
)
from tests.support.time_limits import HANG_SECONDS

INSECURE_CONTEXT = ssl.create_default_context()
INSECURE_CONTEXT.check_hostname = False
INSECURE_CONTEXT.verify_mode = ssl.CERT_NONE


@dataclass
class SniListener:
    """A listener and its keyring."""

    listener: SmtpListener
    keyring: SniCertificates

    async def served_fingerprint(
        self, name: str | None, context: ssl.SSLContext = INSECURE_CONTEXT
    ) -> str:
        """Return the SHA-256 fingerprint of the certificate served for this name."""
        client = await connect_smtp(self.listener.port)
        assert (await client.run_command("STARTTLS")).startswith("220 ")
        if name is None:
            context = new_insecure_context()
        await client.writer.start_tls(context, server_hostname=name or "")
        tls_object = client.writer.get_extra_info("ssl_object")
        raw = tls_object.getpeercert(binary_form=True)
        assert (await client.run_command("EHLO x")).startswith("250-")
        await client.close()
        digest = hashlib.sha256(raw).hexdigest()
        return ":".join(digest[position : position + 2] for position in range(0, 64, 2))


def new_insecure_context() -> ssl.SSLContext:
    """Return a TLS client context that checks no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def run_listener(
    environment: Environment,
    folder: Path,
    file: CertificateFiles | None = None,
    **config_options: Any,
) -> AsyncIterator[SniListener]:
    """Run a listener that serves the stored certificates and follows their changes."""
    keyring = certificate_reload.new_empty_keyring(environment, file)
    await certificate_reload.update_keyring_from_database(environment, keyring)
    follow_task = asyncio.create_task(
        certificate_reload.keep_keyring_up_to_date_forever(environment, keyring)
    )
    listener = MxListener(
        environment,
        folder / "spool",
        SmtpListenerConfig(SessionLimits(), certificates=keyring, **config_options),
        MxRules(0, 0),
    )
    await listener.start(host="127.0.0.1", port=0)
    try:
        yield SniListener(listener, keyring)
    finally:
        follow_task.cancel()
        await listener.close(1)


async def test_each_name_gets_its_certificate(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    own_fingerprint = (await store_certificate(root, SERVER_NAME))["fingerprintSha256"]
    shop = await store_certificate(
        root, "shop.example", names=["shop.example", "*.shop.example", "b.example"]
    )
    exact_fingerprint = (await store_certificate(root, "a.shop.example"))["fingerprintSha256"]
    odd_fingerprint = (await store_certificate(root, "odd.example", names=["other.example"]))[
        "fingerprintSha256"
    ]
    async with run_listener(environment, tmp_path) as sni_listener:
        for name, expected in (
            (SERVER_NAME, own_fingerprint),
            ("MX.Example.ORG", own_fingerprint),
            ("shop.example", shop["fingerprintSha256"]),
            ("www.shop.example", shop["fingerprintSha256"]),
            ("b.example", shop["fingerprintSha256"]),
            ("a.shop.example", exact_fingerprint),
            ("odd.example", odd_fingerprint),
            # A wildcard matches one label: the certificate of the hostname.
            (
                "x.www.shop.example",
                own_fingerprint,
            ),
            ("nobody.example", own_fingerprint),
            (None, own_fingerprint),
        ):
            assert await sni_listener.served_fingerprint(name) == expected, name


async def test_longest_valid_of_several_certificates_is_served(
    root: GraphQLClient, environment: Environment, clock: ManualClock, tmp_path: Path
) -> None:
    names = ["a.example", "b.example"]
    await store_certificate(root, "short.example", names=names, days=60)
    long_fingerprint = (await store_certificate(root, "long.example", names=names, days=80))[
        "fingerprintSha256"
    ]
    own_fingerprint = (await store_certificate(root, "b.example", days=40))["fingerprintSha256"]
    async with run_listener(environment, tmp_path) as sni_listener:
        assert [await sni_listener.served_fingerprint(name) for name in names] == [
            long_fingerprint,
            own_fingerprint,
        ]
        # the certificate with this name has expired
        clock.tick(seconds=20 * ONE_DAY.total_seconds())
        assert [await sni_listener.served_fingerprint(name) for name in names] == [
            long_fingerprint,
            long_fingerprint,
        ]


async def test_certificate_file_is_served_for_other_names(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    authority = CertificateAuthority(tmp_path)
    file = CertificateFiles(authority.issue_certificate("file.example"))
    stored_fingerprint = (await store_certificate(root, SERVER_NAME))["fingerprintSha256"]
    async with run_listener(environment, tmp_path, file) as sni_listener:
        assert await sni_listener.served_fingerprint(SERVER_NAME) == stored_fingerprint
        file_fingerprint = await sni_listener.served_fingerprint("nobody.example")
        assert file_fingerprint == await sni_listener.served_fingerprint(None) != stored_fingerprint
        # The client verifies the name.
        await sni_listener.served_fingerprint("file.example", authority.client_context())
        authority.issue_certificate("file.example")  # replaced on disk
        assert await sni_listener.served_fingerprint("nobody.example") != file_fingerprint


async def test_certificate_change_needs_no_restart(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    async with run_listener(environment, tmp_path) as sni_listener:
        client = await connect_smtp(sni_listener.listener.port, greet=False)
        await client.read_reply()
        assert "STARTTLS" not in await client.run_command("EHLO x")
        assert (await client.run_command("STARTTLS")).startswith("502 ")
        first_certificate = await store_certificate(root)

        async def is_served(fingerprint: str) -> bool:
            return (
                sni_listener.keyring.is_ready
                and await sni_listener.served_fingerprint(SERVER_NAME) == fingerprint
            )

        await poll_until(lambda: is_served(first_certificate["fingerprintSha256"]))
        assert "STARTTLS" in await client.run_command("EHLO x")  # also on a connection from before
        second_certificate = await store_certificate(root)
        assert second_certificate["id"] == first_certificate["id"]
        await poll_until(lambda: is_served(second_certificate["fingerprintSha256"]))
        await client.close()
        await root(CERTIFICATE_DELETE, input={"certificates": [{"id": first_certificate["id"]}]})

        async def has_no_certificate() -> bool:
            return not sni_listener.keyring.is_ready

        await poll_until(has_no_certificate)
        assert sni_listener.keyring.context_for_name_or_default(SERVER_NAME) is None


async def test_certificate_stored_by_other_process_is_served(
    root: GraphQLClient, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_reload, "POLL_SECONDS", 0.05)
    # Without wake-ups of the first process.
    other_environment = replace(environment, wakeups=type(environment.wakeups)())
    async with run_listener(other_environment, tmp_path) as sni_listener:
        certificate = await store_certificate(root)

        async def is_ready() -> bool:
            return sni_listener.keyring.is_ready

        await poll_until(is_ready)
        assert (
            await sni_listener.served_fingerprint(SERVER_NAME) == certificate["fingerprintSha256"]
        )


async def test_implicit_tls_waits_for_certificate(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    async with run_listener(environment, tmp_path, implicit_tls=True) as sni_listener:
        port = sni_listener.listener.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        signer = CertificateSigner()
        cert, key = signer.issue_certificate(["mx.example.org"])
        assert (await set_certificate(root, serverName=SERVER_NAME, cert=cert, privateKey=key))[
            "errors"
        ] == []

        async def is_ready() -> bool:
            return sni_listener.keyring.is_ready

        await poll_until(is_ready)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=INSECURE_CONTEXT, server_hostname=SERVER_NAME
        )
        assert (await reader.readline()).startswith(b"220 ")
        writer.close()


async def test_undecryptable_certificate_is_skipped(
    root: GraphQLClient, environment: Environment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.example"]
    good_fingerprint = (await store_certificate(root, "good.example", names=names, days=60))[
        "fingerprintSha256"
    ]
    await store_certificate(root, "lost.example", names=names, days=80)
    statement = "UPDATE certificates SET private_key = 'x.AAAA' WHERE server_name = 'lost.example'"
    async with environment.write_session() as session:
        await (await session.connection()).exec_driver_sql(statement)
    async with run_listener(environment, tmp_path) as sni_listener:
        assert await sni_listener.served_fingerprint("a.example") == good_fingerprint
        assert await sni_listener.served_fingerprint("lost.example") == good_fingerprint
    assert caplog.text.count("Certificate can't be used") == 1


async def test_cached_contexts_are_limited(
    root: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_CONTEXTS >= 100
    monkeypatch.setattr("mail.tls.sni_certificates.MAX_CONTEXTS", 2)
    for name in ("a.example", "b.example", "c.example"):
        await store_certificate(root, name)
    keyring = certificate_reload.new_empty_keyring(environment)
    await certificate_reload.update_keyring_from_database(environment, keyring)
    first_context = keyring.context_for_name_or_default("a.example")
    assert first_context is keyring.context_for_name_or_default("a.example")
    for name in ("b.example", "c.example"):
        assert keyring.context_for_name_or_default(name) is not None
    assert keyring.context_for_name_or_default("a.example") is not first_context  # built again


async def test_tls_sessions_are_resumed(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await store_certificate(root)
    async with run_listener(environment, tmp_path) as sni_listener:
        context = new_insecure_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        session, port = None, sni_listener.listener.port

        def connect_with_session(
            session: ssl.SSLSession | None,
        ) -> tuple[ssl.SSLSession | None, bool | None]:
            with smtplib.SMTP("127.0.0.1", port, timeout=HANG_SECONDS) as smtp:
                smtp.ehlo()
                smtp.docmd("STARTTLS")
                assert isinstance(smtp.sock, socket.socket)
                tls_socket = context.wrap_socket(
                    smtp.sock, server_hostname=SERVER_NAME, session=session
                )
                smtp.sock, smtp.file = tls_socket, None
                smtp.ehlo()
                return tls_socket.session, tls_socket.session_reused

        session, reused = await asyncio.to_thread(connect_with_session, None)
        assert not reused
        _, reused = await asyncio.to_thread(connect_with_session, session)
        assert reused


def test_private_key_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cert, key = CertificateSigner().issue_certificate(key=rsa_key())
    assert context_from_pem(cert, key)
    monkeypatch.delattr("os.memfd_create")
    with server_tls._temporary_pem_file(cert, key) as (path, password):  # noqa: SLF001 - checks the temporary file
        file_text = Path(path).read_text()
        assert Path(path).stat().st_mode & 0o077 == 0
        assert password is not None
    assert "ENCRYPTED" in file_text
    assert "BEGIN PRIVATE KEY" not in file_text
    assert context_from_pem(cert, key)
    assert list(tmp_path.iterdir()) == []


async def test_submission_needs_stored_or_pending_certificate(
    root: GraphQLClient, environment: Environment
) -> None:
    settings = Settings(submission_listen="127.0.0.1:587")
    with pytest.raises(CommandError, match="MERGANSER_SUBMISSION_LISTEN requires a certificate"):
        await smtp_listeners.require_certificate_for_submission(settings, environment)
    await smtp_listeners.require_certificate_for_submission(
        Settings(smtp_listen="127.0.0.1:25"), environment
    )
    await set_certificate(root, serverName=SERVER_NAME, acme=True)
    await smtp_listeners.require_certificate_for_submission(settings, environment)


async def test_tlsa_digest_is_of_served_certificate(
    root: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    assert await find_served_spki_sha256(environment, SERVER_NAME) is None
    file = CertificateAuthority(tmp_path).issue_certificate()
    with_file = replace(environment, options=replace(environment.options, tls_cert=file))
    file_digest = await find_served_spki_sha256(with_file, SERVER_NAME)
    assert file_digest is not None
    await store_certificate(root, "other.example")
    other_digest = await find_served_spki_sha256(environment, SERVER_NAME)
    assert other_digest not in (None, file_digest)
    assert await find_served_spki_sha256(with_file, SERVER_NAME) == file_digest
    await store_certificate(root, "wild.example", names=["*.example.org"])
    wildcard_digest = await find_served_spki_sha256(with_file, SERVER_NAME)
    await store_certificate(root, SERVER_NAME)
    assert (
        len(
            {
                other_digest,
                file_digest,
                wildcard_digest,
                await find_served_spki_sha256(with_file, SERVER_NAME),
            }
        )
        == 4
    )
