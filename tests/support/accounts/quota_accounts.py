"""Accounts near their limits, and the limit events of the journal."""

from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import col

from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import OverQuota, RateLimited
from models.events.event_types import EventType
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.stores.counter_check import select_rows

QUOTA = 10_000  # bytes
LimitEventFields = tuple[str, str, int, int, bool]  # kind, level, used, limit, refused


async def update_user_columns(
    environment: Environment, client: GraphQLClient, **values: Any
) -> None:
    async with environment.write_session(client.user.id) as session:
        own_row = update(User).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(own_row.values(**values))


async def set_user_limits(client: GraphQLClient, **limits: int) -> GraphQLClient:
    """Set limits of the client's user, and update the allocated quota of the domain."""
    await update_user_columns(client.environment, client, **limits)
    async with client.environment.write_session() as session:
        quota_sum = select(func.coalesce(func.sum(func.coalesce(col(User.quota), 1 << 30)), 0))
        quota_sum = quota_sum.where(col(User.domain_id) == col(Domain.id))
        domain_update = update(Domain).values(quota_allocated=quota_sum.scalar_subquery())
        await (await session.connection()).execute(domain_update)
    return client


def message_of_size(size: int, subject: str = "x") -> bytes:
    """A message of exactly `size` bytes."""
    empty = len(raw_message(subject, body=""))
    return raw_message(subject, body="y" * (size - empty))


async def receive_messages_of_sizes(client: GraphQLClient, *sizes: int) -> None:
    for size in sizes:
        await deliver_to(client, message_of_size(size, f"{client.environment.new_id()}"))


async def load_limit_events(client: GraphQLClient) -> list[LimitEventFields]:
    """Load the limit events of the user from the journal."""
    table = core_table(Change)
    query = table.select().where(
        table.c.stream_id == client.user.id, table.c.type == EventType.LIMIT_REACHED
    )
    facts = [
        row.facts for row in await client.environment.database.read(query.order_by(table.c.last))
    ]
    return [(f["limitKind"], f["level"], f["used"], f["limit"], f["refused"]) for f in facts]


async def count_warning_tasks(environment: Environment) -> int:
    """Count the tasks that send quota warnings."""
    ((count,),) = await select_rows(
        environment, "SELECT count(*) FROM tasks WHERE kind = 'LIMIT_WARNING'"
    )
    return int(count)


def storage_event(level: str, used: int, *, refused: bool = False) -> LimitEventFields:
    return ("STORAGE", level, used, QUOTA, refused)


async def load_recipient_refusal(client: GraphQLClient) -> str | None:
    """The class name of the error that refuses the user as a recipient; None if accepted."""
    try:
        await address_resolution.load_recipient_below_limits(client.environment, client.address)
    except (OverQuota, RateLimited) as error:
        return type(error).__name__
    return None


SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) { errors { code } } }
"""


async def try_send_message(client: GraphQLClient, *to: str, **input_values: Any) -> list[str]:
    message_input = {
        "to": [{"address": address} for address in to],
        "subject": "Hi",
        "text": "Yo",
        **input_values,
    }
    payload = (await client(SEND, input=message_input))["messageSend"]
    return [error["code"] for error in payload["errors"]]
