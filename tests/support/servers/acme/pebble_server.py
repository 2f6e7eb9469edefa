"""Pebble, an ACME server that validates challenges on loopback."""

import asyncio
import atexit
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
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
    log: Path


@dataclass(frozen=True)
class SharedPebble:
    """A Pebble for many tests: each runs its DNS and HTTP servers on the ports that Pebble uses."""

    server: PebbleServer
    validation_port: int  # it connects to this port for challenges
    dns_port: int


def _write_configuration(
    folder: Path, address: str, port: int, validation_port: int, settings: Mapping[str, Any]
) -> tuple[Path, Path, int]:
    """Write the configuration. Returns its path, the CA file, and the management port."""
    folder.mkdir()
    authority = CertificateAuthority(folder)
    server = authority.issue_certificate("localhost", address)
    config = folder / "config.json"
    ca = folder / "ca.pem"
    (signer,) = authority.client_context().get_ca_certs(binary_form=True)
    ca.write_text(ssl.DER_cert_to_PEM_cert(signer))
    management_port = free_port()
    listener_ports = {"listenAddress": port, "managementListenAddress": management_port}
    addresses = {name: f"{address}:{number}" for name, number in listener_ports.items()}
    files = {"certificate": str(server), "privateKey": str(server)}
    validation_ports = {"httpPort": validation_port, "tlsPort": free_port(), "ocspResponderURL": ""}
    config.write_text(
        json.dumps({"pebble": {**addresses, **files, **validation_ports, **settings}})
    )
    return config, ca, management_port


@contextmanager
def _run_pebble_process(
    folder: Path,
    validation_port: int,
    dns_port: int,
    address: str = "127.0.0.1",
    **settings: Any,
) -> Generator[PebbleServer]:
    """Run Pebble, which connects to this port for challenges, and to this DNS server.

    Pebble and the DNS server have the same address.
    """
    require_pebble()
    port, log = free_port(), folder / "log"
    config, ca, manages = _write_configuration(folder, address, port, validation_port, settings)
    process_environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    command = ["pebble", "-strict", "-config", str(config), "-dnsserver", f"{address}:{dns_port}"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=process_environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while not _is_listening(address, port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield PebbleServer(f"https://{address}:{port}/dir", ca, folder / "server.pem", manages, log)
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def run_pebble(
    folder: Path,
    validation_port: int,
    dns_port: int,
    address: str = "127.0.0.1",
    **settings: Any,
) -> AsyncGenerator[PebbleServer]:
    """Run Pebble, which connects to this port for challenges, and to this DNS server.

    Pebble and the DNS server have the same address. `settings` are added to Pebble's configuration.
    """
    context = _run_pebble_process(folder, validation_port, dns_port, address, **settings)
    server = await asyncio.to_thread(context.__enter__)
    try:
        yield server
    finally:
        context.__exit__(None, None, None)


def shared_pebble(**settings: Any) -> SharedPebble:
    """Return the Pebble with these settings that runs until this test process ends.

    Each start of Pebble generates several RSA keys.
    """
    return _shared_pebble(json.dumps(settings, sort_keys=True))


@cache
def _shared_pebble(settings: str) -> SharedPebble:
    resources = ExitStack()
    atexit.register(resources.close)
    folder = Path(resources.enter_context(TemporaryDirectory(prefix="pebble-"))) / "pebble"
    validation_port, dns_port = free_port(), free_port()  # no other process gets these ports
    server = resources.enter_context(
        _run_pebble_process(folder, validation_port, dns_port, **json.loads(settings))
    )
    return SharedPebble(server, validation_port, dns_port)


def _is_listening(address: str, port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((address, port)) == 0
