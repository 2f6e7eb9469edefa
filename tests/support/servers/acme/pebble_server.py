"""Pebble, an ACME server that validates challenges on loopback."""

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.servers.ports import free_port
from tests.support.mail_servers.smtp_client import CertificateAuthority
from tests.support.run_scope import CI
from tests.support.time_limits import HANG_SECONDS


def require_pebble() -> None:
    """Skip the test if Pebble is not installed, but fail in CI."""
    is_installed = shutil.which("pebble")
    if not is_installed and not CI:
        pytest.skip("there is no pebble here: apt-get install pebble")
    assert is_installed, "pebble is to be installed in CI: .ci/run"


@dataclass(frozen=True)
class PebbleServer:
    """The addresses of a running Pebble, and the CA of its own HTTPS certificate."""

    directory_url: str
    ca: Path
    pem: Path  # the key and certificate of its HTTPS
    management_port: int  # the port of the management interface


def _write_configuration(
    folder: Path, port: int, validation_port: int, settings: Mapping[str, Any]
) -> tuple[Path, Path, int]:
    """Write the configuration. Returns its path, the CA file, and the management port."""
    folder.mkdir()
    authority = CertificateAuthority(folder)
    server, config, ca = (
        authority.issue_certificate("localhost"),
        folder / "config.json",
        folder / "ca.pem",
    )
    (signer,) = authority.client_context().get_ca_certs(binary_form=True)
    ca.write_text(ssl.DER_cert_to_PEM_cert(signer))
    management_port = free_port()
    listener_ports = {"listenAddress": port, "managementListenAddress": management_port}
    addresses = {name: f"127.0.0.1:{number}" for name, number in listener_ports.items()}
    files = {"certificate": str(server), "privateKey": str(server)}
    validation_ports = {"httpPort": validation_port, "tlsPort": free_port(), "ocspResponderURL": ""}
    config.write_text(
        json.dumps({"pebble": {**addresses, **files, **validation_ports, **settings}})
    )
    return config, ca, management_port


@asynccontextmanager
async def run_pebble(
    folder: Path, validation_port: int, dns_port: int, **settings: Any
) -> AsyncGenerator[PebbleServer]:
    """Run Pebble, which connects to this port for challenges, and to this DNS server.

    `settings` are added to its configuration.
    """
    require_pebble()
    port = free_port()
    config, ca, manages = _write_configuration(folder, port, validation_port, settings)
    process_environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    log = (folder / "log").open("wb")
    arguments = ["-strict", "-config", str(config), "-dnsserver", f"127.0.0.1:{dns_port}"]
    process = await asyncio.create_subprocess_exec(
        "pebble", *arguments, env=process_environment, stdout=log, stderr=log
    )
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not await _is_listening(port):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        yield PebbleServer(f"https://localhost:{port}/dir", ca, folder / "server.pem", manages)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        log.close()


async def _is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
