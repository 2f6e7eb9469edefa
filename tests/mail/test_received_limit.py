"""The number of messages that an account receives in an hour is never passed."""

import asyncio

from sqlalchemy import select, update
from sqlmodel import col

from mail.lmtp import Lmtp
from models.journal import Change, ChangeKind
from models.messages import Message
from models.users import User
from models.world import World
from tests.conftest import Client, Clock, raw_message
from tests.mail.lmtp_client import Neighbour, connect


async def limit(world: World, client: Client, **columns: object) -> None:
    async with world.write() as session:
        await session.exec(update(User).where(col(User.id) == client.user.id).values(**columns))


async def begin(port: int, address: str) -> Neighbour:
    """A neighbour whose recipient was accepted, and who has not sent the message yet."""
    neighbour = await connect(port)
    await neighbour.begin(address)
    return neighbour


async def finish(neighbour: Neighbour, subject: str) -> str:
    neighbour.send(raw_message(subject) + b".\r\n")
    reply = await neighbour.hear()
    await neighbour.close()
    return reply


async def test_simultaneous_deliveries_do_not_pass_the_limit(
    world: World, ada: Client, bob: Client, listener: Lmtp, clock: Clock
) -> None:
    await limit(world, ada, received_max=3)
    neighbours = [await begin(listener.port, ada.address) for _ in range(8)]
    replies = await asyncio.gather(
        *(finish(neighbour, f"{n}") for n, neighbour in enumerate(neighbours))
    )
    assert sorted(reply[:9] for reply in replies) == ["250 2.0.0"] * 3 + ["450 4.2.1"] * 5
    mine = select(col(Message.id)).where(col(Message.user_id) == ada.user.id)
    assert len(await world.database.read(mine)) == 3
    changes = select(col(Change.facts)).where(col(Change.kind) == ChangeKind.LIMIT_REACHED)
    told = [row.facts["refused"] for row in await world.database.read(changes)]
    assert sorted(told) == [False, True]  # it was reached, and then passed
    assert (await finish(await begin(listener.port, bob.address), "other")).startswith("250")
    clock.tick(hours=1, seconds=1)
    assert (await finish(await begin(listener.port, ada.address), "later")).startswith("250")


async def test_limit_of_the_platform_and_no_limit(
    world: World, ada: Client, listener: Lmtp
) -> None:
    await limit(world, ada, received_max=0)
    neighbours = [await begin(listener.port, ada.address) for _ in range(4)]
    replies = [await finish(neighbour, f"{n}") for n, neighbour in enumerate(neighbours)]
    assert {reply[:3] for reply in replies} == {"250"}
