"""Mail that is held, for tests."""

from dataclasses import replace
from typing import Any

from sqlalchemy import select

from graph import ids
from mail import addresses, pipeline, quarantine
from mail.household import Household
from mail.quarantine import Symbol, Why
from models.columns import Picked, table_of
from models.quarantine import QuarantineItem
from models.world import Adopted, World
from tests.conftest import Client, raw_message

CAROL = "carol@example.com"
SPAM = {"X_Rspamd_Action": "reject"}  # a score of 75
WHY = Why(14.5, (Symbol("BAYES_SPAM", 5.1, "Looks like spam"), Symbol("R_BAD", 9.4)))


async def held(world: World) -> list[Picked]:
    """All that is held, in the order of keys."""
    table = table_of(QuarantineItem)
    async with world.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def hold(
    client: Client,
    raw: bytes | str = "Offer",
    why: Why = WHY,
    sender: str = CAROL,
    address: str = "",
) -> str:
    """Hold a message; its id. A text is its subject, and it is for the client's usual address."""
    message = raw_message(raw) if isinstance(raw, str) else raw
    mail = await pipeline.receive(client.world, message, sender)
    to = await addresses.recipient(client.world, address or client.address)
    await quarantine.hold(client.world, mail, to, why)
    return ids.encode("QuarantineItem", (await held(client.world))[-1].id)


async def come(world: World, *to: Client, raw: bytes, sender: str = CAROL) -> list[Any]:
    """What became of a message that a neighbour brought."""
    house = Household(world)
    there = [await house.accept(client.address, sender) for client in to]
    return list(await house.deliver(raw, there, sender))


def set_options(world: World, **given: Any) -> None:
    """Let other options be in force."""
    world.adopt(Adopted(replace(world.options, **given), world.settled + 1))
