"""Metrics and statistics of several processes, compared with what clients have counted.

One server with two processes on SQLite, and two servers on PostgreSQL.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from bench.cluster_soak import create_data_folder
from bench.servers.ports import free_port
from models.metrics.tables import LONG_STEP, SHORT_STEP, StatisticStep
from models.metrics.usage_recorder import PLATFORM_ID
from tests.support.mail_servers.smtp_client import connect_smtp
from tests.support.operations.platform.metric_operations import counters_by_key, read_series
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

LMTP_COUNT, SMTP_COUNT, SIGN_IN_COUNT, FAILURE_COUNT = 6, 4, 3, 5
MESSAGE_COUNT = LMTP_COUNT + SMTP_COUNT
MESSAGE = b"From: carol@example.com\r\nSubject: Report\r\n\r\nHello\r\n"
SIGN_IN = """mutation SignIn ($input: AuthenticateInput!) {
  authenticate(input: $input) { errors { code } } }"""
NAMES = ("MESSAGES_IN", "SIGN_INS", "SIGN_IN_FAILURES", "API_OPERATIONS", "MESSAGES_JUNK")


@dataclass
class MeasuredServers:
    """Servers on one store, and the ports of their SMTP listeners."""

    servers: list[MerganserProcess]
    smtp_ports: list[int]

    async def send_and_sign_in(self) -> None:
        """Send messages and sign in, at all servers in turn."""
        count = len(self.servers)
        for number in range(LMTP_COUNT):
            server = self.servers[number % count]
            body = MESSAGE + b"%d\r\n" % number
            assert (await server.deliver_by_lmtp(body, "ada@example.org")).startswith("250")
        for number in range(SMTP_COUNT):
            await send_by_smtp(self.smtp_ports[number % count], MESSAGE + b"smtp %d\r\n" % number)
        for number in range(SIGN_IN_COUNT + FAILURE_COUNT):
            password = PASSWORD if number < SIGN_IN_COUNT else "wrong horse battery"
            async with self.servers[number % count].open_client() as client:
                await client(SIGN_IN, input={"username": "ada", "password": password})


async def send_by_smtp(port: int, message: bytes) -> None:
    client = await connect_smtp(port)
    await client.start_data("ada@example.org", sender="carol@example.com")
    client.send_bytes(message + b".\r\n")
    reply = await client.read_reply()
    assert reply.startswith("250"), reply
    await client.close()


@pytest.fixture(params=store_fixtures.STORES)
def measured_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MeasuredServers]:
    folder = tmp_path_factory.mktemp("measured")
    arguments: tuple[str, ...] = ("--workers", "2")
    store, folders = "", [folder]
    if request.param == "postgres":
        store = create_migrated_database(request.getfixturevalue("postgres"), "measured_servers")
        folders, arguments = [folder / "one", folder / "two"], ()
    servers, smtp_ports = [], []
    for each in folders:
        each.mkdir(exist_ok=True)
        smtp_ports.append(free_port())
        settings = {
            "SMTP_LISTEN": f"127.0.0.1:{smtp_ports[-1]}",
            "OBJECT_STORE_URL": str(folder / "blobs"),
        }
        servers.append(MerganserProcess(each, store, settings, serve_arguments=arguments))
    servers[0].create_users("ada")
    for server in servers[1:]:
        create_data_folder(server.folder / "var", servers[0].folder / "var")
        server.secrets = servers[0].secrets
    for server in servers:
        server.start()
    yield MeasuredServers(servers, smtp_ports)
    for server in servers:
        if server.is_running:
            server.stop()


async def test_metrics_and_statistics_match_what_clients_counted(
    measured_servers: MeasuredServers,
) -> None:
    from_time = datetime.now(UTC) - timedelta(minutes=10)
    await measured_servers.send_and_sign_in()
    async with measured_servers.servers[0].open_client("root") as root:
        user = (await counters_by_key(root, "USER", filter={"key": "ada"}))["ada"]
        domain = (await counters_by_key(root, "DOMAIN"))["example.org"]
        platform = (await counters_by_key(root))[None]
        for counters in (user, domain, platform):
            assert counters["MESSAGES_IN"] == MESSAGE_COUNT
            assert counters["SIGN_INS"] == SIGN_IN_COUNT
            assert counters["SIGN_IN_FAILURES"] == FAILURE_COUNT
        commands = await counters_by_key(root, "COMMAND")
        assert commands["SignIn"]["COMMANDS"] == SIGN_IN_COUNT + FAILURE_COUNT
        assert commands["LMTP DATA"]["COMMANDS"] == LMTP_COUNT
        assert commands["SMTP DATA"]["COMMANDS"] == SMTP_COUNT
        assert commands["SMTP RCPT"]["COMMANDS"] == SMTP_COUNT
        address = (await counters_by_key(root, "IP"))["127.0.0.1"]
        assert address["SIGN_IN_FAILURES"] == FAILURE_COUNT
        for place in ({}, {"domain": {"name": "example.org"}}):
            series = await read_series(root, *NAMES, from_time=from_time, step="PT5M", **place)
            await assert_sums(series)
        assert sum(filter(None, series["API_OPERATIONS"])) == 0  # nobody has signed in by a token
    for server in measured_servers.servers:
        server.stop()
    await assert_stored_sums(measured_servers.servers[0])


async def assert_sums(series: dict[str, list[float | None]]) -> None:
    sums = {name: sum(filter(None, points)) for name, points in series.items()}
    assert sums["MESSAGES_IN"] == MESSAGE_COUNT
    assert sums["SIGN_INS"] == SIGN_IN_COUNT
    assert sums["SIGN_IN_FAILURES"] == FAILURE_COUNT


async def assert_stored_sums(server: MerganserProcess) -> None:
    """Require that processes have written all their counts before they ended."""
    columns: list[Any] = [
        col(StatisticStep.messages_in), col(StatisticStep.sign_ins),
        col(StatisticStep.sign_in_failures),
    ]  # fmt: skip
    async with server.environment() as environment:
        for step in (SHORT_STEP, LONG_STEP):
            statement = select(*map(func.sum, columns)).where(
                col(StatisticStep.domain_id) == PLATFORM_ID, col(StatisticStep.step_seconds) == step
            )
            (row,) = await environment.database.read(statement)
            assert tuple(map(int, row)) == (MESSAGE_COUNT, SIGN_IN_COUNT, FAILURE_COUNT)
