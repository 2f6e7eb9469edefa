"""Accounts near their limits, and what they are told."""

from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import col

from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import OverQuota, RateLimited
from models.events.journal import Change, ChangeKind
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.tables import User
from tests.conftest import Client, raw_message, receive
from tests.support.stores.counter_check import rows

QUOTA = 10_000  # bytes
Told = tuple[str, str, int, int, bool]  # limit, level, used, allowed, refused


async def change(world: Environment, client: Client, **values: Any) -> None:
    async with world.write_session(client.user.id) as session:
        this = update(User).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(this.values(**values))


async def bounded(client: Client, **limits: int) -> Client:
    """The same client, with such limits, and in a domain that counts with them."""
    await change(client.world, client, **limits)
    async with client.world.write_session() as session:
        theirs = select(func.coalesce(func.sum(func.coalesce(col(User.quota), 1 << 30)), 0))
        theirs = theirs.where(col(User.domain_id) == col(Domain.id))
        counted = update(Domain).values(quota_allocated=theirs.scalar_subquery())
        await (await session.connection()).execute(counted)
    return client


def weighing(size: int, name: str = "x") -> bytes:
    """A message of so many bytes."""
    empty = len(raw_message(name, body=""))
    return raw_message(name, body="y" * (size - empty))


async def fill(client: Client, *sizes: int) -> None:
    for size in sizes:
        await receive(client, weighing(size, f"{client.world.new_id()}"))


async def told(client: Client) -> list[Told]:
    """What the account's journal tells of its limits."""
    table = core_table(Change)
    asked = table.select().where(
        table.c.stream_id == client.user.id, table.c.kind == ChangeKind.LIMIT_REACHED
    )
    facts = [row.facts for row in await client.world.database.read(asked.order_by(table.c.last))]
    return [(f["limit"], f["level"], f["used"], f["allowed"], f["refused"]) for f in facts]


async def letters(world: Environment) -> int:
    """How many letters are to be written."""
    ((many,),) = await rows(world, "SELECT count(*) FROM tasks WHERE kind = 'LIMIT_LETTER'")
    return int(many)


def storage(at: str, used: int, *, refused: bool = False) -> Told:
    return ("STORAGE", at, used, QUOTA, refused)


async def accepted(client: Client) -> str | None:
    """The refusal of a recipient, by name."""
    try:
        await address_resolution.load_recipient(client.world, client.address)
    except (OverQuota, RateLimited) as refusal:
        return type(refusal).__name__
    return None


SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) { errors { code } } }
"""


async def send(client: Client, *to: str, **more: Any) -> list[str]:
    given = {"to": [{"address": one} for one in to], "subject": "Hi", "text": "Yo", **more}
    answer = (await client(SEND, input=given))["messageSend"]
    return [error["code"] for error in answer["errors"]]
