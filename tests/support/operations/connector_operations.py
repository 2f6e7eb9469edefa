"""Connectors of a test, run on the spot, and what comes of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.network.outbound_http import Gate
from models.connectors import Connector, ConnectorRun, Protocol, Security
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import World
from models.store.columns import picked
from models.users.roles import UserPermission
from resolvers.connectors import credentials
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import Worker
from resolvers.context import Context
from tests.conftest import Client, context
from tests.support.servers.dovecot_server import PASSWORD, Dovecot, dovecot

NAMES = iter(range(1_000_000))


@pytest.fixture(scope="session")
def server() -> Iterator[Dovecot]:
    """A Dovecot for all tests of a process."""
    with TemporaryDirectory() as name:  # pytest shuts its own folder to whom Dovecot runs as
        folder = Path(name)
        folder.chmod(0o755)
        with dovecot(folder / "dovecot") as made:
            yield made


@pytest.fixture
def far(server: Dovecot) -> Dovecot:
    """The same, with an account of the test's own."""
    return server.account(f"ada{next(NAMES)}")


async def connector(client: Client, far: Dovecot, **more: Any) -> int:
    """A connector that is due; its key."""
    world, key = client.world, client.world.key()
    protocol = more.get("protocol", Protocol.IMAP)
    secret = {"password": more.pop("password", PASSWORD)}
    row = Connector(**{
        "id": key,
        "user_id": client.user.id,
        "name": "far",
        "protocol": protocol,
        "host": "127.0.0.1",
        "port": far.ports["imap" if protocol is Protocol.IMAP else "pop3"],
        "security": Security.PLAIN,
        "mechanism": "PLAIN",
        "username": far.user,
        "secret": credentials.sealed(world, key, secret),
        "remote_timeout": 10,
        "created_at": world.now(),
        "next_run_at": world.now(),
        **more,
    })  # fmt: skip
    async with world.write() as session:
        session.add(row)
    return key


async def ran(world: World, key: int) -> Any:
    """Run what is due; the newest run of the connector."""
    worker = Worker(world, Gate(private=True))
    await connector_worker.look(worker)
    for task in list(worker.running):
        await task
    return await newest(world, key)


async def newest(world: World, key: int) -> Any:
    """The newest run of a connector."""
    asked = select(*picked(ConnectorRun)).where(col(ConnectorRun.connector_id) == key)
    return (await world.database.read(asked.order_by(col(ConnectorRun.id).desc())))[0]


async def again(world: World, key: int, **values: Any) -> Any:
    """Run it once more, with these values."""
    await changed(world, key, next_run_at=world.now(), **values)
    return await ran(world, key)


async def changed(world: World, key: int, **values: Any) -> None:
    """Change the row of a connector."""
    async with world.write() as session:
        this = update(Connector).where(col(Connector.id) == key)
        await (await session.connection()).execute(this.values(values))


async def row_of(world: World, key: int) -> Any:
    """The row of a connector."""
    asked = select(*picked(Connector)).where(col(Connector.id) == key)
    return (await world.database.read(asked))[0]


async def stored(world: World) -> dict[str, list[str]]:
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


async def message(world: World, subject: str) -> Any:
    """The one message with this subject."""
    asked = select(*picked(Message)).where(col(Message.subject) == subject)
    (row,) = await world.database.read(asked)
    return row


async def trial(world: World, user_id: int, key: int) -> None:
    """Have the next run be a trial."""
    run = world.key()
    async with world.write() as session:
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
