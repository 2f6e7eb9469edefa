"""Tests that the server gets a certificate by ACME and uses new certificates without a restart."""

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

CONNECTION_COUNT = 8  # enough to reach every process


@pytest.fixture(params=[(), ("--workers", "2")])
def acme_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that is killed after its test."""
    listeners = {name: f"127.0.0.1:{free_port()}" for name in ("SUBMISSIONS", "ACME_HTTP")}
    server = Server(tmp_path, more=listeners, words=request.param)
    yield server
    with suppress(AssertionError):  # the server has already ended
        server.kill()


async def presented_issuers(server: Server) -> set[str]:
    """Return the issuers of the presented certificates, with "" for a closed connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = int(server.more["SUBMISSIONS"].rpartition(":")[2])
    names: set[str] = set()
    for _ in range(CONNECTION_COUNT):
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=NAME
            )
        except (OSError, EOFError):
            names.add("")
            continue
        raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        names.add(x509.load_der_x509_certificate(raw).issuer.rfc4514_string().partition(" ")[0])
    return names


async def wait_for_issuer(server: Server, expected: str) -> None:
    """Wait until every process presents this issuer."""
    current_issuers: set[str] = set()
    try:
        async with asyncio.timeout(150):
            while current_issuers != {expected}:
                await asyncio.sleep(0.1)
                current_issuers = await presented_issuers(server)
    except TimeoutError:
        raise AssertionError(current_issuers, server.log) from None


async def test_certificate_is_issued_used_replaced_and_deleted(
    acme_server: Server, tmp_path: Path
) -> None:
    http_port = int(acme_server.more["ACME_HTTP"].rpartition(":")[2])
    async with (
        answering(Names({(NAME, "A"): ["127.0.0.1"]})) as dns_server,
        pebble(tmp_path / "pebble", http_port, dns_server.port) as pebble_server,
    ):
        acme_server.more |= {
            "ACME_DIRECTORY": pebble_server.directory,
            "ACME_CA": str(pebble_server.ca),
            "ACME_TERMS_AGREED": "on",
            "DNS_RESOLVER": f"127.0.0.1:{dns_server.port}",
        }
        await asyncio.to_thread(acme_server.make, "ada")
        result = await asyncio.to_thread(acme_server.command, "certificate", "set", NAME, "--acme")
        assert result.code == 0, result.err
        await asyncio.to_thread(acme_server.start)
        await wait_for_issuer(acme_server, "CN=Pebble")
        delete_arguments = ("certificate", "delete", NAME, "--revoke", "key-compromise")
        result = await asyncio.to_thread(acme_server.command, *delete_arguments)
        assert result.out.splitlines()[0] == f"The certificate of {NAME} is revoked.", result
    cert, key = Signer("Other").issue()
    (tmp_path / "other.pem").write_text(cert + key)
    set_arguments = ("certificate", "set", NAME, "--cert", tmp_path / "other.pem")
    assert (await asyncio.to_thread(acme_server.command, *set_arguments)).code == 0
    await wait_for_issuer(acme_server, "CN=Other")
    result = await asyncio.to_thread(acme_server.command, "certificate", "delete", NAME)
    assert result.code == 0
    await wait_for_issuer(acme_server, "")
    assert "PRIVATE KEY" not in acme_server.log
    await asyncio.to_thread(acme_server.stop)
