"""Connectors of a test, run on the spot, and what comes of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector, ConnectorProtocol, ConnectorRun, ConnectorSecurity
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import UserPermission
from resolvers.connectors import credentials
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from resolvers.context import Context
from tests.conftest import Client, context
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount, dovecot

NAMES = iter(range(1_000_000))


@pytest.fixture(scope="session")
def server() -> Iterator[DovecotAccount]:
    """A Dovecot for all tests of a process."""
    with TemporaryDirectory() as name:  # pytest shuts its own folder to whom Dovecot runs as
        folder = Path(name)
        folder.chmod(0o755)
        with dovecot(folder / "dovecot") as made:
            yield made


@pytest.fixture
def far(server: DovecotAccount) -> DovecotAccount:
    """The same, with an account of the test's own."""
    return server.for_user(f"ada{next(NAMES)}")


async def connector(client: Client, far: DovecotAccount, **more: Any) -> int:
    """A connector that is due; its key."""
    world, key = client.world, client.world.new_id()
    protocol = more.get("protocol", ConnectorProtocol.IMAP)
    secret = {"password": more.pop("password", PASSWORD)}
    row = Connector(**{
        "id": key,
        "user_id": client.user.id,
        "name": "far",
        "protocol": protocol,
        "host": "127.0.0.1",
        "port": far.ports["imap" if protocol is ConnectorProtocol.IMAP else "pop3"],
        "security": ConnectorSecurity.PLAIN,
        "mechanism": "PLAIN",
        "username": far.user,
        "secret": credentials.seal_secret(world, key, secret),
        "remote_timeout": 10,
        "created_at": world.now(),
        "next_run_at": world.now(),
        **more,
    })  # fmt: skip
    async with world.write_session() as session:
        session.add(row)
    return key


async def ran(world: Environment, key: int) -> Any:
    """Run what is due; the newest run of the connector."""
    worker = ConnectorWorker(world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    for task in list(worker.running):
        await task
    return await newest(world, key)


async def newest(world: Environment, key: int) -> Any:
    """The newest run of a connector."""
    asked = select(*select_columns(ConnectorRun)).where(col(ConnectorRun.connector_id) == key)
    return (await world.database.read(asked.order_by(col(ConnectorRun.id).desc())))[0]


async def again(world: Environment, key: int, **values: Any) -> Any:
    """Run it once more, with these values."""
    await changed(world, key, next_run_at=world.now(), **values)
    return await ran(world, key)


async def changed(world: Environment, key: int, **values: Any) -> None:
    """Change the row of a connector."""
    async with world.write_session() as session:
        this = update(Connector).where(col(Connector.id) == key)
        await (await session.connection()).execute(this.values(values))


async def row_of(world: Environment, key: int) -> Any:
    """The row of a connector."""
    asked = select(*select_columns(Connector)).where(col(Connector.id) == key)
    return (await world.database.read(asked))[0]


async def stored(world: Environment) -> dict[str, list[str]]:
    """Subjects by folder, in the order they came."""
    asked = (
        select(col(Mailbox.path), col(Message.subject))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.archived_at).is_(None))
    )
    found: dict[str, list[str]] = {}
    for row in await world.database.read(asked.order_by(col(Message.id))):
        found.setdefault(row.path, []).append(row.subject)
    return found


async def message(world: Environment, subject: str) -> Any:
    """The one message with this subject."""
    asked = select(*select_columns(Message)).where(col(Message.subject) == subject)
    (row,) = await world.database.read(asked)
    return row


async def trial(world: Environment, user_id: int, key: int) -> None:
    """Have the next run be a trial."""
    run = world.new_id()
    async with world.write_session() as session:
        session.add(
            ConnectorRun(
                id=run, connector_id=key, user_id=user_id, trial=True, created_at=world.now()
            )
        )
    await changed(world, key, run_id=run, next_run_at=world.now())


def may(client: Client) -> Context:
    """What a client does that may have connectors."""
    ctx = context(client)
    permissions = frozenset({UserPermission.SYNCJOBS})
    return replace(ctx, viewer=replace(ctx.viewer, permissions=permissions))


class ProcessKilled(BaseException):
    """The process ends here."""


def fault_at_nth_pass(times: int, place: str = "fetched") -> Callable[[str], None]:
    """A fault handler that ends the process when a fault point is passed for the nth time."""
    left = [times]

    def fault(at: str) -> None:
        if at == place:
            left[0] -= 1
            if not left[0]:
                raise ProcessKilled

    return fault


async def run_connectors_until_killed(
    world: Environment, times: int, place: str = "fetched"
) -> None:
    """Start the due connector runs, whose process ends at the nth pass of a fault point."""
    object.__setattr__(world, "reach_fault_point", fault_at_nth_pass(times, place))
    worker = ConnectorWorker(world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    for task in list(worker.running):
        with pytest.raises(ProcessKilled):
            await task
    object.__setattr__(world, "reach_fault_point", lambda _: None)
