"""The whole server gets its certificate from an authority, and shows others without a restart."""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from bench.servers.ports import free_port
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering
from tests.support.operations.certificate_operations import NAME, Signer
from tests.support.servers.merganser_server import Server
from tests.support.servers.pebble_server import pebble

MANY = 8  # connections: to every process, however the kernel spreads them


@pytest.fixture(params=[(), ("--workers", "2")])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that does not outlive its test."""
    places = {name: f"127.0.0.1:{free_port()}" for name in ("SUBMISSIONS", "ACME_HTTP")}
    made = Server(tmp_path, more=places, words=request.param)
    yield made
    with suppress(AssertionError):  # it has ended
        made.kill()


async def issuers(server: Server) -> set[str]:
    """Who signed what is shown; nothing where it is hung up."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = int(server.more["SUBMISSIONS"].rpartition(":")[2])
    found: set[str] = set()
    for _ in range(MANY):
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=NAME
            )
        except (OSError, EOFError):
            found.add("")
            continue
        raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        found.add(x509.load_der_x509_certificate(raw).issuer.rfc4514_string().partition(" ")[0])
    return found


async def shown(server: Server, wanted: str) -> None:
    """Wait until that is shown by every process."""
    found: set[str] = set()
    try:
        async with asyncio.timeout(150):
            while found != {wanted}:
                await asyncio.sleep(0.1)
                found = await issuers(server)
    except TimeoutError:
        raise AssertionError(found, server.log) from None


async def test_it_is_made_shown_replaced_and_gone(house: Server, tmp_path: Path) -> None:
    looks_at = int(house.more["ACME_HTTP"].rpartition(":")[2])
    async with (
        answering(Names({(NAME, "A"): ["127.0.0.1"]})) as names,
        pebble(tmp_path / "pebble", looks_at, names.port) as there,
    ):
        house.more |= {
            "ACME_DIRECTORY": there.directory,
            "ACME_CA": str(there.ca),
            "ACME_TERMS_AGREED": "on",
            "DNS_RESOLVER": f"127.0.0.1:{names.port}",
        }
        await asyncio.to_thread(house.make, "ada")
        said = await asyncio.to_thread(house.command, "certificate", "set", NAME, "--acme")
        assert said.code == 0, said.err
        await asyncio.to_thread(house.start)
        await shown(house, "CN=Pebble")
        gone = ("certificate", "delete", NAME, "--revoke", "key-compromise")
        said = await asyncio.to_thread(house.command, *gone)
        assert said.out.splitlines()[0] == f"The certificate of {NAME} is revoked.", said
    cert, key = Signer("Other").issue()
    (tmp_path / "other.pem").write_text(cert + key)
    words = ("certificate", "set", NAME, "--cert", tmp_path / "other.pem")
    assert (await asyncio.to_thread(house.command, *words)).code == 0
    await shown(house, "CN=Other")
    said = await asyncio.to_thread(house.command, "certificate", "delete", NAME)
    assert said.code == 0
    await shown(house, "")
    assert "PRIVATE KEY" not in house.log
    await asyncio.to_thread(house.stop)
