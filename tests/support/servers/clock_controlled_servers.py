"""Servers of one store, each with a clock that a test can set."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import Envelope

from bench.cluster_soak import (
    LATER,
    DeferringMailServer,
    ServerGroup,
    clock_ahead,
    create_data_folder,
)
from bench.load.http_client import BenchmarkTarget, request_json
from bench.send_soak import SEND_MUTATION, CountingMailServer, create_account
from bench.servers.merganser_process import MerganserServer
from bench.servers.ports import HOST
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.store.database import Database
from models.users.roles import Role
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from tests.support.clients.plain_http import plain_client

UNFINISHED_DELIVERIES = """
             SELECT recipient, state, attempts, next_at, ready_at, lease, holder, last_response
             FROM queue_entries WHERE state <> 'RELAYED'"""
HOUR = 3600  # seconds
TEST_TIME_LIMIT = 400.0  # seconds for a test, on a busy machine
STEP_TIME_LIMIT = 60.0  # seconds for a step of a test


@dataclass
class DeferringServer(DeferringMailServer):
    """A mail server that records complete messages and defers each recipient at LATER once."""

    received_recipients: list[str] = field(default_factory=list)  # recipients of complete messages
    deferred: set[str] = field(default_factory=set)
    defers_always: bool = False  # recipients at LATER are deferred at each attempt

    async def handle_DATA(  # noqa: N802
        self, server: Any, session: Any, envelope: Envelope
    ) -> str:
        (to,) = envelope.rcpt_tos
        self.received_recipients.append(to)
        if to.endswith(LATER) and (self.defers_always or to not in self.deferred):
            self.deferred.add(to)
            return "451 4.3.0 Later"
        await self.open.wait()
        return await CountingMailServer.handle_DATA(self, server, session, envelope)


@dataclass
class ClockControlledServers:
    """Servers of one store whose clocks can be set, and the server that receives their mail."""

    cluster: ServerGroup
    mail_server: DeferringServer
    clocks: list[Path]
    skews: list[int]  # seconds by which the clocks are ahead
    root: str  # an API key
    sent_recipients: set[str] = field(default_factory=set)  # recipients
    messages: int = 0

    async def set_clocks(self, seconds: int) -> None:
        """Set all clocks to the right time, plus their skew, plus these seconds."""
        for clock, skew in zip(self.clocks, self.skews, strict=True):
            new_file = clock.with_suffix(".new")
            new_file.write_text(f"{skew + seconds:+d}s")
            new_file.replace(clock)  # so that no server reads an empty file
        for server_index, skew in enumerate(self.skews):
            await self._wait_for_clock(server_index, skew + seconds)

    async def _wait_for_clock(self, server_index: int, seconds: int) -> None:
        """Wait until the clock of a running server is ahead by these seconds."""
        async with asyncio.timeout(STEP_TIME_LIMIT), plain_client() as client:
            while server_index in self.cluster.running:
                url = f"http://{HOST}:{self.cluster.servers[server_index].http_port}/health"
                date = parsedate_to_datetime((await client.get(url)).headers["date"])
                if abs((date - datetime.now(UTC)).total_seconds() - seconds) < HOUR / 60:
                    return
                await asyncio.sleep(0.1)

    async def send_message(self, *domains: str, server_index: int = 0) -> list[str]:
        """Send a message to a recipient at each domain, by one server; return the recipients."""
        self.messages += 1
        key = f"m{self.messages}"
        recipients = [f"{key}@{domain}" for domain in domains]
        input_fields = {
            "to": [{"address": address} for address in recipients],
            "text": "Hello.",
            "options": {"idempotencyKey": key},
        }
        await self.run_mutation(
            "messageSend", SEND_MUTATION, input_fields, (self.cluster.secret, server_index)
        )
        self.sent_recipients.update(recipients)
        return recipients

    async def run_mutation(
        self,
        name: str,
        document: str,
        input_fields: dict[str, Any],
        secret_and_server: tuple[str, int],
    ) -> None:
        """Run a mutation with a secret at a server."""
        secret, server_index = secret_and_server
        target = BenchmarkTarget(self.cluster.servers[server_index].http_port, 0, secret)
        payload = None
        body = {"query": document, "variables": {"input": input_fields}}
        async with asyncio.timeout(STEP_TIME_LIMIT):
            while payload is None:
                with suppress(RuntimeError):  # the deadline of a request, on a busy machine
                    payload = (await request_json(target, "/graphql", body))["data"][name]
        assert payload["errors"] == []

    async def wait_until_received(self, *recipients: str) -> None:
        """Wait until the complete messages for these recipients are received, answered or not."""
        async with asyncio.timeout(STEP_TIME_LIMIT):
            while not set(recipients) <= set(self.mail_server.received_recipients):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)

    async def wait_until_delivered(self) -> None:
        """Wait until every message that was sent is accepted."""
        try:
            async with asyncio.timeout(STEP_TIME_LIMIT):
                while set(self.mail_server.received) != self.sent_recipients:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            waiting = await self.cluster.select_rows(UNFINISHED_DELIVERIES)
            missing = self.sent_recipients - set(self.mail_server.received)
            raise TimeoutError(f"missing: {missing}, waiting: {waiting}") from None

    async def kill_all(self) -> None:
        """Kill every running server."""
        for server_index in list(self.cluster.running):
            await self.cluster.kill(server_index)


def clock_file_environment(file: Path) -> dict[str, str]:
    """The environment of a process whose time of day this file changes."""
    return {
        **{name: value for name, value in clock_ahead(1).items() if name != "FAKETIME"},
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",  # seconds until the file is read again
    }


@asynccontextmanager
async def run_clock_controlled_servers(
    folder: Path, url: str | None, skews: list[int], *, fake: bool = True
) -> AsyncGenerator[ClockControlledServers]:
    """Run servers of one store with clocks that are ahead by these seconds.

    Without `fake` clocks the servers are forked, which takes less time.
    """
    mail_server, first_folder = DeferringServer(), folder / "server"
    mail_server.open.clear()
    blobs = str(folder / "blobs")
    database: dict[str, Any] = {"database_url": url} if url else {}
    settings = Settings(data=first_folder, object_store_url=blobs, **database)
    secret = await create_account(settings)
    async with open_environment(settings) as environment:
        _, root = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("root", role=Role.ROOT)
        )
    clocks = [folder / f"clock{server_index}" for server_index in range(len(skews))]
    servers = []
    for server_index, clock in enumerate(clocks):
        data_folder = first_folder if server_index == 0 else folder / f"server{server_index}"
        if server_index:
            create_data_folder(data_folder, first_folder)
        extra_environment = {
            **(clock_file_environment(clock) if fake else {}),
            "MERGANSER_OBJECT_STORE_URL": blobs,
            "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{mail_server.port}?tls=never",
            "MERGANSER_QUEUE_RETRY_DELAYS": "8s 1h",
        }
        servers.append(MerganserServer(data_folder, url, extra_environment=extra_environment))
    cluster = ServerGroup(servers, Database(settings.database_url), secret, mail_server)
    async with mail_server.run_server():
        servers_with_clocks = ClockControlledServers(cluster, mail_server, clocks, skews, root)
        try:
            await servers_with_clocks.set_clocks(0)
            for server_index in range(len(skews)):
                await cluster.start(server_index)
            yield servers_with_clocks
        finally:
            await cluster.end()
