"""Events of the security log, as tests note and find them."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEvent
from models.events.journal import Change, ChangeKind
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.auth import security_log
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context, Viewer
from tests.conftest import Client


def stranger(world: Environment, ip: str | None = "192.0.2.7", **more: Any) -> Context:
    return Context(world, Viewer(), client_ip=ip, **more)


def failed(user_id: int | None, **more: Any) -> NewSecurityEvent:
    return NewSecurityEvent(
        "authenticate", user_id, **{"result": "fail", "protocol": "API", **more}
    )


async def events(world: Environment) -> list[Any]:
    asked = select(*select_columns(SecurityEvent)).order_by(
        col(SecurityEvent.created_at), col(SecurityEvent.id)
    )
    return list(await world.database.read(asked))


async def told(client: Client) -> list[int]:
    """The rows that the journal of an account has told of, one for each time."""
    asked = select(col(Change.ids)).where(
        col(Change.stream_id) == client.user.id, col(Change.kind) == ChangeKind.SECURITY_EVENT
    )
    rows = await client.world.database.read(asked.order_by(col(Change.last)))
    return [key for row in rows for key in row.ids]


async def noted(client: Client, *given: NewSecurityEvent, ip: str | None = "192.0.2.7") -> None:
    for each in given:
        await security_log.log_event_separately(stranger(client.world, ip), each)
