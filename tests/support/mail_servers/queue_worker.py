"""A worker that runs meanwhile, and what its queue holds."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.envelope.delivery_jobs import Pace
from mail.mime.header_encoding import Named
from mail.outbound.worker import run
from mail.queue import message_body
from mail.routing.mx_hosts import Route, next_hop
from models.events.wakeups import QUEUE
from models.messages.tables import Message
from models.queue.tables import Delivery, DeliveryState
from models.runtime.environment import World
from models.store.columns import table_of
from models.submission.tables import Submission, SubmissionState
from resolvers.submission import create as submission_create
from resolvers.submission.create import Outgoing
from tests.conftest import Client, context
from tests.support.mail_servers.smtp_and_dns_servers import Server, trust

SLOW = 60.0  # seconds: no test waits for the worker's own look
PACE = Pace(look=SLOW, connect=5.0, answer=5.0, final=5.0)
FAR = [Named("carol@example.net", "Carol"), Named("dave@example.net")]

State = DeliveryState


@asynccontextmanager
async def working(world: World, route: Route, pace: Pace = PACE) -> AsyncGenerator[asyncio.Event]:
    """A worker that runs meanwhile; leaving stops it."""
    stop = asyncio.Event()
    task = asyncio.create_task(run(world, route, stop=stop, pace=pace))
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def send(ada: Client, *to: Named, **more: Any) -> int:
    """Queue a message; the key of its submission."""
    outgoing = Outgoing(to=to or FAR, subject="Hello", text="Hi.\n.\n..dots\n", **more)
    sent = await submission_create.send(context(ada), outgoing)
    assert sent.submission is not None
    return int(sent.submission.id)


async def deliveries(world: World, key: int) -> dict[str, Any]:
    asked = select(*table_of(Delivery).c).where(col(Delivery.submission_id) == key)
    return {row.recipient.partition("@")[0]: row for row in await world.database.read(asked)}


async def state(world: World, key: int) -> SubmissionState:
    asked = select(col(Submission.state)).where(col(Submission.id) == key)
    (row,) = await world.database.read(asked)
    return SubmissionState(row.state)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.01)


async def settled(world: World, key: int) -> dict[str, Any]:
    """The deliveries, once each has been tried and nobody holds it."""

    async def quiet() -> bool:
        rows = (await deliveries(world, key)).values()
        return all(row.lease is None and row.last_code is not None for row in rows)

    await until(quiet)
    return await deliveries(world, key)


def ring(world: World) -> None:
    world.wakeups.tell({QUEUE: world.key()})


def relay(server: Server, query: str = "") -> Route:
    return Route(next_hop(f"smtp://127.0.0.1:{server.port}{query}"), trust=trust())


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


async def bodies(world: World) -> list[bytes]:
    """All messages of the queue, byte for byte, the oldest first."""
    columns = col(Submission.id), col(Submission.blob_id)
    found = []
    for row in await world.database.read(select(*columns).order_by(col(Submission.id))):
        job: Any = SimpleNamespace(submission_id=row.id, blob_id=row.blob_id)
        found.append(await message_body.message(world, job))
    return found


async def blob_of(world: World, key: int) -> int:
    asked = select(col(Submission.blob_id)).where(col(Submission.id) == key)
    (row,) = await world.database.read(asked)
    return int(row.blob_id)


async def is_now(world: World, key: int, name: str, wanted: DeliveryState) -> bool:
    return (await deliveries(world, key))[name].state is wanted
