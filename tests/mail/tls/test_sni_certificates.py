"""Which certificate clients of SMTP are shown, by the name they ask for, and how it changes."""

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
from resolvers.certificates.certificates import find_served_spki
from tests.conftest import Client, Clock
from tests.support.mail_servers.queue_worker import until
from tests.support.mail_servers.smtp_client import Authority, connect
from tests.support.operations.certificate_operations import (
    DAY,
    DELETE,
    NAME,
    Signer,
    put,
    rsa_key,
    stored,
)

ANY = ssl.create_default_context()
ANY.check_hostname = False
ANY.verify_mode = ssl.CERT_NONE


@dataclass
class Shown:
    """A listener, and what it shows."""

    listener: SmtpListener
    ring: SniCertificates

    async def to(self, name: str | None, context: ssl.SSLContext = ANY) -> str:
        """SHA-256 of the certificate that a client of this name is shown, as we write it."""
        neighbour = await connect(self.listener.port)
        assert (await neighbour.say("STARTTLS")).startswith("220 ")
        if name is None:
            context = replace_hostname()
        await neighbour.writer.start_tls(context, server_hostname=name or "")
        tunnel = neighbour.writer.get_extra_info("ssl_object")
        raw = tunnel.getpeercert(binary_form=True)
        assert (await neighbour.say("EHLO x")).startswith("250-")
        await neighbour.close()
        digest = hashlib.sha256(raw).hexdigest()
        return ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def replace_hostname() -> ssl.SSLContext:
    """A context for clients that name nobody."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


@asynccontextmanager
async def showing(
    world: Environment, folder: Path, file: CertificateFiles | None = None, **more: Any
) -> AsyncIterator[Shown]:
    """A listener that shows what is stored, and follows it."""
    ring = certificate_reload.new_keyring(world, file)
    await certificate_reload.load_changed_certificates(world, ring)
    following = asyncio.create_task(certificate_reload.follow_certificates(world, ring))
    listener = MxListener(
        world,
        folder / "spool",
        SmtpListenerConfig(SessionLimits(), certificates=ring, **more),
        MxRules(0, 0),
    )
    await listener.start(host="127.0.0.1", port=0)
    try:
        yield Shown(listener, ring)
    finally:
        following.cancel()
        await listener.close(1)


async def test_each_name_has_its_certificate(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    mine = (await stored(root, NAME))["fingerprintSha256"]
    shop = await stored(root, "shop.example", names=["shop.example", "*.shop.example", "b.example"])
    exact = (await stored(root, "a.shop.example"))["fingerprintSha256"]
    odd = (await stored(root, "odd.example", names=["other.example"]))["fingerprintSha256"]
    async with showing(world, tmp_path) as shown:
        for name, wanted in (
            (NAME, mine),
            ("MX.Example.ORG", mine),
            ("shop.example", shop["fingerprintSha256"]),
            ("www.shop.example", shop["fingerprintSha256"]),
            ("b.example", shop["fingerprintSha256"]),
            ("a.shop.example", exact),
            ("odd.example", odd),
            ("x.www.shop.example", mine),  # a star is one label: our own name's
            ("nobody.example", mine),
            (None, mine),
        ):
            assert await shown.to(name) == wanted, name


async def test_of_several_that_which_is_valid_longest(
    root: Client, world: Environment, clock: Clock, tmp_path: Path
) -> None:
    names = ["a.example", "b.example"]
    await stored(root, "short.example", names=names, days=60)
    long = (await stored(root, "long.example", names=names, days=80))["fingerprintSha256"]
    own = (await stored(root, "b.example", days=40))["fingerprintSha256"]
    async with showing(world, tmp_path) as shown:
        assert [await shown.to(name) for name in names] == [long, own]
        clock.tick(seconds=20 * DAY.total_seconds())  # its own has ended
        assert [await shown.to(name) for name in names] == [long, long]


async def test_the_file_is_for_whoever_asks_for_what_is_not_stored(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    file = CertificateFiles(authority.issue("file.example"))
    one = (await stored(root, NAME))["fingerprintSha256"]
    async with showing(world, tmp_path, file) as shown:
        assert await shown.to(NAME) == one
        of_file = await shown.to("nobody.example")
        assert of_file == await shown.to(None) != one
        await shown.to("file.example", authority.client())  # which it is
        authority.issue("file.example")  # replaced on disk
        assert await shown.to("nobody.example") != of_file


async def test_it_changes_without_a_restart(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    async with showing(world, tmp_path) as shown:
        neighbour = await connect(shown.listener.port, greet=False)
        await neighbour.hear()
        assert "STARTTLS" not in await neighbour.say("EHLO x")
        assert (await neighbour.say("STARTTLS")).startswith("502 ")
        first = await stored(root)

        async def is_shown(wanted: str) -> bool:
            return shown.ring.is_ready and await shown.to(NAME) == wanted

        await until(lambda: is_shown(first["fingerprintSha256"]))
        assert "STARTTLS" in await neighbour.say("EHLO x")  # also where one is connected already
        second = await stored(root)
        assert second["id"] == first["id"]
        await until(lambda: is_shown(second["fingerprintSha256"]))
        await neighbour.close()
        await root(DELETE, input={"ids": [first["id"]]})

        async def gone() -> bool:
            return not shown.ring.is_ready

        await until(gone)
        assert shown.ring.context_for_name(NAME) is None


async def test_what_another_process_stores_is_found(
    root: Client, world: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_reload, "POLL_SECONDS", 0.05)
    other = replace(world, wakeups=type(world.wakeups)())  # whose bells we do not hear
    async with showing(other, tmp_path) as shown:
        one = await stored(root)

        async def there() -> bool:
            return shown.ring.is_ready

        await until(there)
        assert await shown.to(NAME) == one["fingerprintSha256"]


async def test_tls_from_the_first_byte_waits_for_a_certificate(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    async with showing(world, tmp_path, implicit_tls=True) as shown:
        port = shown.listener.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        signer = Signer()
        cert, key = signer.issue(["mx.example.org"])
        assert (await put(root, serverName=NAME, cert=cert, privateKey=key))["errors"] == []

        async def there() -> bool:
            return shown.ring.is_ready

        await until(there)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=ANY, server_hostname=NAME
        )
        assert (await reader.readline()).startswith(b"220 ")
        writer.close()


async def test_one_that_cannot_be_opened_is_passed_over(
    root: Client, world: Environment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.example"]
    good = (await stored(root, "good.example", names=names, days=60))["fingerprintSha256"]
    await stored(root, "lost.example", names=names, days=80)
    lost = "UPDATE certificates SET private_key = 'x.AAAA' WHERE server_name = 'lost.example'"
    async with world.write_session() as session:
        await (await session.connection()).exec_driver_sql(lost)
    async with showing(world, tmp_path) as shown:
        assert await shown.to("a.example") == good
        assert await shown.to("lost.example") == good
    assert caplog.text.count("certificate cannot be used") == 1


async def test_contexts_are_kept_within_bounds(
    root: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_CONTEXTS >= 100
    monkeypatch.setattr("mail.tls.sni_certificates.MAX_CONTEXTS", 2)
    for name in ("a.example", "b.example", "c.example"):
        await stored(root, name)
    ring = certificate_reload.new_keyring(world)
    await certificate_reload.load_changed_certificates(world, ring)
    first = ring.context_for_name("a.example")
    assert first is ring.context_for_name("a.example")
    for name in ("b.example", "c.example"):
        assert ring.context_for_name(name) is not None
    assert ring.context_for_name("a.example") is not first  # made anew


async def test_sessions_are_resumed(root: Client, world: Environment, tmp_path: Path) -> None:
    await stored(root)
    async with showing(world, tmp_path) as shown:
        context = replace_hostname()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        session, port = None, shown.listener.port

        def speak(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
            with smtplib.SMTP("127.0.0.1", port, timeout=10) as smtp:
                smtp.ehlo()
                smtp.docmd("STARTTLS")
                assert isinstance(smtp.sock, socket.socket)
                over = context.wrap_socket(smtp.sock, server_hostname=NAME, session=session)
                smtp.sock, smtp.file = over, None
                smtp.ehlo()
                return over.session, over.session_reused

        session, reused = await asyncio.to_thread(speak, None)
        assert not reused
        _, reused = await asyncio.to_thread(speak, session)
        assert reused


def test_keys_reach_openssl_without_a_file_that_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cert, key = Signer().issue(key=rsa_key())
    assert context_from_pem(cert, key)
    monkeypatch.delattr("os.memfd_create")
    with server_tls._temporary_pem_file(cert, key) as (path, password):  # noqa: SLF001 - what lies there meanwhile
        seen = Path(path).read_text()
        assert Path(path).stat().st_mode & 0o077 == 0
        assert password is not None
    assert "ENCRYPTED" in seen
    assert "BEGIN PRIVATE KEY" not in seen
    assert context_from_pem(cert, key)
    assert list(tmp_path.iterdir()) == []


async def test_submission_needs_a_certificate_or_one_on_its_way(
    root: Client, world: Environment
) -> None:
    settings = Settings(submission="127.0.0.1:587")
    with pytest.raises(CommandError, match="MERGANSER_SUBMISSION takes a certificate"):
        await smtp_listeners.check_certificate_available(settings, world)
    await smtp_listeners.check_certificate_available(Settings(smtp="127.0.0.1:25"), world)
    await put(root, serverName=NAME, acme=True)
    await smtp_listeners.check_certificate_available(settings, world)


async def test_tlsa_tells_of_what_is_shown(
    root: Client, world: Environment, tmp_path: Path
) -> None:
    assert await find_served_spki(world, NAME) is None
    file = Authority(tmp_path).issue()
    with_file = replace(world, options=replace(world.options, tls_cert=file))
    of_file = await find_served_spki(with_file, NAME)
    assert of_file is not None
    await stored(root, "other.example")
    other = await find_served_spki(world, NAME)
    assert other not in (None, of_file)
    assert await find_served_spki(with_file, NAME) == of_file
    await stored(root, "wild.example", names=["*.example.org"])
    wild = await find_served_spki(with_file, NAME)
    await stored(root, NAME)
    assert len({other, of_file, wild, await find_served_spki(with_file, NAME)}) == 4
