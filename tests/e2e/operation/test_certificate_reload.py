"""Tests that the server gets a certificate by ACME and uses new certificates without a restart."""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from bench.servers.ports import free_port
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.platform.certificate_operations import SERVER_NAME, CertificateSigner
from tests.support.servers.acme.pebble_server import run_pebble
from tests.support.servers.merganser_server import MerganserProcess

CONNECTION_COUNT = 8  # enough to reach every process


@pytest.fixture(params=[(), ("--workers", "2")])
def acme_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MerganserProcess]:
    """A server that is killed after its test."""
    listeners = {
        name: f"127.0.0.1:{free_port()}" for name in ("SUBMISSION_TLS_LISTEN", "ACME_HTTP_LISTEN")
    }
    server = MerganserProcess(tmp_path, extra_settings=listeners, serve_arguments=request.param)
    yield server
    with suppress(AssertionError):  # the server has already ended
        server.kill()


async def presented_issuers(server: MerganserProcess) -> set[str]:
    """Return the issuers of the presented certificates, with "" for a closed connection."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = int(server.extra_settings["SUBMISSION_TLS_LISTEN"].rpartition(":")[2])
    names: set[str] = set()
    for _ in range(CONNECTION_COUNT):
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=SERVER_NAME
            )
        except (OSError, EOFError):
            names.add("")
            continue
        raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        names.add(x509.load_der_x509_certificate(raw).issuer.rfc4514_string().partition(" ")[0])
    return names


async def wait_for_issuer(server: MerganserProcess, expected: str) -> None:
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
    acme_server: MerganserProcess, tmp_path: Path
) -> None:
    http_port = int(acme_server.extra_settings["ACME_HTTP_LISTEN"].rpartition(":")[2])
    async with (
        run_dns_server(FakeDnsServer({(SERVER_NAME, "A"): ["127.0.0.1"]})) as dns_server,
        run_pebble(tmp_path / "pebble", http_port, dns_server.port) as pebble_server,
    ):
        acme_server.extra_settings |= {
            "ACME_DIRECTORY": pebble_server.directory_url,
            "ACME_CA": str(pebble_server.ca),
            "ACME_TERMS_AGREED": "on",
            "DNS_RESOLVER": f"127.0.0.1:{dns_server.port}",
        }
        await asyncio.to_thread(acme_server.create_users, "ada")
        result = await asyncio.to_thread(
            acme_server.run_command, "certificate", "set", SERVER_NAME, "--acme"
        )
        assert result.exit_code == 0, result.stderr
        await asyncio.to_thread(acme_server.start)
        await wait_for_issuer(acme_server, "CN=Pebble")
        delete_arguments = ("certificate", "delete", SERVER_NAME, "--revoke", "key-compromise")
        result = await asyncio.to_thread(acme_server.run_command, *delete_arguments)
        assert result.stdout.splitlines()[0] == f"The certificate of {SERVER_NAME} is revoked.", (
            result
        )
    cert, key = CertificateSigner("Other").issue_certificate()
    (tmp_path / "other.pem").write_text(cert + key)
    set_arguments = ("certificate", "set", SERVER_NAME, "--cert", tmp_path / "other.pem")
    assert (await asyncio.to_thread(acme_server.run_command, *set_arguments)).exit_code == 0
    await wait_for_issuer(acme_server, "CN=Other")
    result = await asyncio.to_thread(acme_server.run_command, "certificate", "delete", SERVER_NAME)
    assert result.exit_code == 0
    await wait_for_issuer(acme_server, "")
    assert "PRIVATE KEY" not in acme_server.log
    await asyncio.to_thread(acme_server.stop)
