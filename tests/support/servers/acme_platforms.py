"""Platforms that a real ACME server can reach, and such as it cannot."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers.ports import free_port
from graph.app import create_app
from mail.tls import acme_client
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering
from tests.support.operations.certificate_operations import NAME, ONE
from tests.support.servers.live_server import house
from tests.support.servers.pebble_server import Pebble, pebble

RECORDS = {(NAME, "A"): ["127.0.0.1"]}


@dataclass
class Ahead:
    """The real clock, as authorities keep it, and what we are ahead of it."""

    by: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.by


@dataclass
class Place:
    """A platform that an authority can reach."""

    world: Environment
    root: Client
    clock: Ahead
    there: Pebble

    async def state(self, name: str = NAME) -> dict[str, Any]:
        found: dict[str, Any] = (await self.root(ONE, by={"serverName": name}))["certificate"]
        return found

    def options(self, **values: Any) -> None:
        object.__setattr__(self.world, "options", replace(self.world.options, **values))


def ready(world: Environment, there: Pebble, names: int) -> Environment:
    options = replace(
        world.options,
        acme_directory=there.directory,
        acme_ca=there.ca,
        acme_terms_agreed=True,
        acme_contact="postmaster@example.org",
        dns_resolver=f"127.0.0.1:{names}",
    )
    return replace(world, options=options, now=Ahead())


@asynccontextmanager
async def _short_pauses() -> AsyncIterator[None]:
    """Let it be asked often whether it goes on: an authority on loopback takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acme_client, "POLL_PAUSE", 0.02)
        yield


@asynccontextmanager
async def placed(
    world: Environment,
    root: Client,
    folder: Path,
    records: Mapping[Any, list[str]] = RECORDS,
    *,
    reached: bool = True,
    **config: Any,
) -> AsyncIterator[Place]:
    """An authority, configured so, DNS, and our server, which it can reach."""
    for name in ("spool", "ours"):
        (folder / name).mkdir()
    async with answering(Names(dict(records))) as names:
        made = replace(world, now=Ahead())
        async with house(made, folder / "spool") as live:
            port = live.port if reached else free_port()
            async with (
                pebble(folder / "pebble", port, names.port, **config) as there,
                _short_pauses(),
            ):
                # the app that answers shares the store alone: as another process does
                ours = ready(world, there, names.port)
                app = create_app(ours, spool_folder=folder / "ours")
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                    client = Client(http, ours, root.user, root.secret)
                    assert isinstance(ours.clock.read, Ahead)
                    yield Place(ours, client, ours.clock.read, there)
                await app.end_subscriptions()


def alone(world: Environment, names: int, **values: Any) -> Environment:
    """A platform whose authority does not answer."""
    usual: dict[str, Any] = {
        "acme_directory": f"https://localhost:{free_port()}/dir",
        "acme_terms_agreed": True,
        "dns_resolver": f"127.0.0.1:{names}",
    }
    return replace(world, options=replace(world.options, **(usual | values)))
