"""A real ACME server, which looks for its challenges on loopback: Debian's pebble."""

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
from tests.support.mail_servers.smtp_client import Authority
from tests.support.run_scope import CI


def need_pebble() -> None:
    """Skip the test where it is not installed; but fail it in CI."""
    there = shutil.which("pebble")
    if not there and not CI:
        pytest.skip("there is no pebble here: apt-get install pebble")
    assert there, "pebble is to be installed in CI: .ci/run"


@dataclass(frozen=True)
class Pebble:
    """Where it is, and who signs the certificate of its own HTTPS."""

    directory: str
    ca: Path
    pem: Path  # key and certificate of that
    manages: int  # the port where it tells what became of certificates


def _written(
    folder: Path, port: int, looks_at: int, more: Mapping[str, Any]
) -> tuple[Path, Path, int]:
    """Its configuration, the certificate of who signs its own, and where it is managed."""
    folder.mkdir()
    authority = Authority(folder)
    server, config, ca = authority.issue("localhost"), folder / "config.json", folder / "ca.pem"
    (signer,) = authority.client().get_ca_certs(binary_form=True)
    ca.write_text(ssl.DER_cert_to_PEM_cert(signer))
    manages = free_port()
    places = {"listenAddress": port, "managementListenAddress": manages}
    listen = {name: f"127.0.0.1:{place}" for name, place in places.items()}
    files = {"certificate": str(server), "privateKey": str(server)}
    ports = {"httpPort": looks_at, "tlsPort": free_port(), "ocspResponderURL": ""}
    config.write_text(json.dumps({"pebble": {**listen, **files, **ports, **more}}))
    return config, ca, manages


@asynccontextmanager
async def pebble(folder: Path, looks_at: int, names: int, **more: Any) -> AsyncGenerator[Pebble]:
    """One that looks for challenges at this port, and asks DNS at that one.

    `more` is configuration of its own.
    """
    need_pebble()
    port = free_port()
    config, ca, manages = _written(folder, port, looks_at, more)
    environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    log = (folder / "log").open("wb")
    words = ["-strict", "-config", str(config), "-dnsserver", f"127.0.0.1:{names}"]
    running = await asyncio.create_subprocess_exec(
        "pebble", *words, env=environment, stdout=log, stderr=log
    )
    try:
        async with asyncio.timeout(20):
            while not await _up(port):
                assert running.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        yield Pebble(f"https://localhost:{port}/dir", ca, folder / "server.pem", manages)
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()
        log.close()


async def _up(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
