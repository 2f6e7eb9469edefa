"""A worker that runs meanwhile, and what its queue holds."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import NamedAddress
from mail.outbound.worker import run_until_stopped
from mail.queue import message_body
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.events.wakeups import QUEUE
from models.messages.tables import Message
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.submission.tables import Submission, SubmissionState
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, context
from tests.support.mail_servers.smtp_and_dns_servers import Server, trust

SLOW = 60.0  # seconds: no test waits for the worker's own look
PACE = QueueLimits(
    poll_interval=SLOW, connect_timeout=5.0, reply_timeout=5.0, final_reply_timeout=5.0
)
FAR = [NamedAddress("carol@example.net", "Carol"), NamedAddress("dave@example.net")]

State = DeliveryState


@asynccontextmanager
async def working(
    world: Environment, route: OutboundSettings, pace: QueueLimits = PACE
) -> AsyncGenerator[asyncio.Event]:
    """A worker that runs meanwhile; leaving stops it."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_until_stopped(world, route, stop=stop, limits=pace))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def send(ada: Client, *to: NamedAddress, **more: Any) -> int:
    """Queue a message; the key of its submission."""
    outgoing = SendRequest(to=to or FAR, subject="Hello", text="Hi.\n.\n..dots\n", **more)
    sent = await submission_create.send_message(context(ada), outgoing)
    assert sent.submission is not None
    return int(sent.submission.id)


async def deliveries(world: Environment, key: int) -> dict[str, Any]:
    asked = select(*core_table(QueueEntry).c).where(col(QueueEntry.submission_id) == key)
    return {row.recipient.partition("@")[0]: row for row in await world.database.read(asked)}


async def state(world: Environment, key: int) -> SubmissionState:
    asked = select(col(Submission.state)).where(col(Submission.id) == key)
    (row,) = await world.database.read(asked)
    return SubmissionState(row.state)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.01)


async def settled(world: Environment, key: int) -> dict[str, Any]:
    """The deliveries, once each has been tried and nobody holds it."""

    async def quiet() -> bool:
        rows = (await deliveries(world, key)).values()
        return all(row.lease is None and row.last_code is not None for row in rows)

    await until(quiet)
    return await deliveries(world, key)


def ring(world: Environment) -> None:
    world.wakeups.announce({QUEUE: world.new_id()})


def relay(server: Server, query: str = "") -> OutboundSettings:
    return OutboundSettings(
        parse_next_hop(f"smtp://127.0.0.1:{server.port}{query}"), trusted_context=trust()
    )


async def inbox(client: Client) -> list[Any]:
    asked = select(
        col(Message.subject),
        col(Message.content_type),
        col(Message.envelope_from),
        col(Message.preview),
        col(Message.bcc),
        col(Message.blob_id),
    ).where(col(Message.mailbox_id) == (await client.box()).id)
    return list(await client.world.database.read(asked.order_by(col(Message.id))))


async def bodies(world: Environment) -> list[bytes]:
    """All messages of the queue, byte for byte, the oldest first."""
    columns = col(Submission.id), col(Submission.blob_id)
    found = []
    for row in await world.database.read(select(*columns).order_by(col(Submission.id))):
        job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
        found.append(await message_body.read_message(world, job))
    return found


async def blob_of(world: Environment, key: int) -> int:
    asked = select(col(Submission.blob_id)).where(col(Submission.id) == key)
    (row,) = await world.database.read(asked)
    return int(row.blob_id)


async def is_now(world: Environment, key: int, name: str, wanted: DeliveryState) -> bool:
    return (await deliveries(world, key))[name].state is wanted


async def wait_for_messages(server: Server, many: int = 1) -> None:
    """Wait until the server has received so many messages."""

    async def there() -> bool:
        return len(server.mails) >= many

    await until(there)
