"""Mail fetched from a real server, once and no more: folders, flags, dates, bytes."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.outward import Gate
from models.columns import picked
from models.connectors import Connector, ConnectorRun, Protocol, Security
from models.mailboxes import Mailbox
from models.messages import Message
from models.tasks import TaskState
from models.world import World
from resolvers import connectorruns, connectorsecrets
from resolvers.connectorruns import Worker
from tests.conftest import Client, raw_message
from tests.mail.dovecot import PASSWORD, Dovecot, dovecot

pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dovecot]:
    folder = tmp_path_factory.mktemp("far")
    for each in (folder, *folder.parents[:3]):
        each.chmod(0o755)
    with dovecot(folder / "dovecot") as made:
        yield made


async def connector(client: Client, far: Dovecot, **more: Any) -> int:
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
        "username": "ada",
        "secret": connectorsecrets.sealed(world, key, secret),
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
    await connectorruns.look(worker)
    for task in list(worker.running.values()):
        await task
    asked = select(*picked(ConnectorRun)).where(col(ConnectorRun.connector_id) == key)
    rows = await world.database.read(asked.order_by(col(ConnectorRun.id).desc()))
    return rows[0]


async def due(world: World, key: int) -> None:
    from sqlalchemy import update

    async with world.write() as session:
        this = update(Connector).where(col(Connector.id) == key)
        await (await session.connection()).execute(this.values(next_run_at=world.now()))


async def stored(world: World) -> dict[str, list[str]]:
    """Subjects by folder."""
    asked = (
        select(col(Mailbox.path), col(Message.subject))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.archived_at).is_(None))
    )
    found: dict[str, list[str]] = {}
    for row in await world.database.read(asked.order_by(col(Message.id))):
        found.setdefault(row.path, []).append(row.subject)
    return found


async def test_all_folders_are_fetched_and_nothing_twice(ada: Client, far: Dovecot) -> None:
    far.save("ada", raw_message("One"))
    far.save("ada", raw_message("Two"))
    far.save("ada", raw_message("Mine"), "Sent")
    far.save("ada", raw_message("Deep"), "Größe/Tief")
    far.save("ada", raw_message("Bad"), "Spam")
    key = await connector(ada, far, exclude="(?i)spam|(?i)junk")
    run = await ran(ada.world, key)
    assert (run.state, run.error) == (TaskState.SUCCEEDED, None), run
    assert (run.seen, run.imported, run.skipped) == (4, 4, 0)
    assert await stored(ada.world) == {
        "INBOX": ["One", "Two"], "Sent": ["Mine"], "Größe/Tief": ["Deep"]
    }  # fmt: skip
    await due(ada.world, key)
    again = await ran(ada.world, key)
    assert (again.state, again.seen, again.imported) == (TaskState.SUCCEEDED, 4, 0), again.error
