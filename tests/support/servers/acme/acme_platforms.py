"""Platforms with an ACME server that can reach them, and without one."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from acme import client as acme_client

from bench.servers.ports import free_port
from graph.app import create_app
from mail.tls import acme_library_client
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.platform.certificate_operations import CERTIFICATE_QUERY, SERVER_NAME
from tests.support.servers.acme.pebble_server import PebbleServer, shared_pebble
from tests.support.servers.live_server import run_live_server

RECORDS = {(SERVER_NAME, "A"): ["127.0.0.1"]}
POLL_PAUSE = 0.02  # seconds


@dataclass
class OffsetClock:
    """The real clock, which ACME servers use, with an offset."""

    offset: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass
class AcmePlatform:
    """A platform that the ACME server can reach."""

    environment: Environment
    root: GraphQLClient
    clock: OffsetClock
    pebble: PebbleServer
    earlier_log_size: int  # bytes that earlier tests left in the log of Pebble

    async def load_certificate(self, name: str = SERVER_NAME) -> dict[str, Any]:
        """Read the certificate of a server name."""
        certificate: dict[str, Any] = (await self.root(CERTIFICATE_QUERY, by={"serverName": name}))[
            "certificate"
        ]
        return certificate

    @property
    def pebble_log(self) -> str:
        """What Pebble has logged since the platform started."""
        return self.pebble.log.read_bytes()[self.earlier_log_size :].decode()

    def set_options(self, **values: Any) -> None:
        """Change options of the environment."""
        object.__setattr__(self.environment, "options", replace(self.environment.options, **values))


def configure_acme(
    environment: Environment, pebble_server: PebbleServer, dns_port: int
) -> Environment:
    """Return the environment with options for this ACME server, and a clock with an offset."""
    options = replace(
        environment.options,
        acme_directory=pebble_server.directory_url,
        acme_ca=pebble_server.ca,
        acme_terms_agreed=True,
        acme_contact="postmaster@example.org",
        dns_resolver=f"127.0.0.1:{dns_port}",
    )
    return replace(environment, options=options, now=OffsetClock())


@asynccontextmanager
async def _short_pauses() -> AsyncIterator[None]:
    """Poll the ACME server often: on loopback it answers in milliseconds."""
    pauses = SimpleNamespace(sleep=lambda _seconds: time.sleep(POLL_PAUSE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acme_library_client, "POLL_PAUSE", POLL_PAUSE)
        patch.setattr(acme_client, "time", pauses)  # the library waits a second before each poll
        yield


@asynccontextmanager
async def run_acme_platform(
    environment: Environment,
    root: GraphQLClient,
    folder: Path,
    records: Mapping[Any, list[str]] = RECORDS,
    *,
    is_reachable: bool = True,
    **config: Any,
) -> AsyncIterator[AcmePlatform]:
    """Run a DNS server and our server, which an ACME server with this configuration can reach."""
    for name in ("spool", "ours"):
        (folder / name).mkdir()
    pebble = await asyncio.to_thread(shared_pebble, **config)
    port = pebble.validation_port if is_reachable else free_port()
    server_environment = replace(environment, now=OffsetClock())
    async with (
        run_dns_server(FakeDnsServer(dict(records)), pebble.dns_port),
        run_live_server(server_environment, folder / "spool", port=port),
        _short_pauses(),
    ):
        # this app shares only the database with the server, as another process does
        environment = configure_acme(environment, pebble.server, pebble.dns_port)
        app = create_app(environment, spool_folder=folder / "ours")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            client = GraphQLClient(http, environment, root.user, root.secret)
            assert isinstance(environment.clock.read, OffsetClock)
            log_size = pebble.server.log.stat().st_size
            yield AcmePlatform(environment, client, environment.clock.read, pebble.server, log_size)
        await app.end_subscriptions()


def configure_unreachable_authority(
    environment: Environment, dns_port: int, **changes: Any
) -> Environment:
    """Return an environment whose ACME server does not answer."""
    options: dict[str, Any] = {
        "acme_directory": f"https://localhost:{free_port()}/dir",
        "acme_terms_agreed": True,
        "dns_resolver": f"127.0.0.1:{dns_port}",
    }
    return replace(environment, options=replace(environment.options, **(options | changes)))
