"""Events of the security log: how tests log and load them."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import (
    SECURITY_EVENT_TYPES,
    SecurityEvent,
    SecurityEventAction,
    SecurityEventResult,
)
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient


def anonymous_context(
    environment: Environment, ip: str | None = "192.0.2.7", **context_values: Any
) -> Context:
    return Context(environment, Viewer(), client_ip=ip, **context_values)


def failed_sign_in_event(user_id: int | None, **columns: Any) -> NewSecurityEvent:
    return NewSecurityEvent(
        SecurityEventAction.SIGN_IN_ATTEMPTED,
        user_id,
        **{"result": SecurityEventResult.FAILURE, "protocol": "API", **columns},
    )


async def load_security_events(environment: Environment) -> list[Any]:
    query = select(*select_columns(SecurityEvent)).order_by(
        col(SecurityEvent.created_at), col(SecurityEvent.id)
    )
    return list(await environment.database.read(query))


async def load_journaled_event_ids(client: GraphQLClient) -> list[int]:
    """Load the ids of security events from the journal of a user, one per journal entry."""
    query = select(col(Change.ids)).where(
        col(Change.stream_id) == client.user.id, col(Change.type).in_(SECURITY_EVENT_TYPES)
    )
    rows = await client.environment.database.read(query.order_by(col(Change.last)))
    return [event_id for row in rows for event_id in row.ids]


async def log_events(
    client: GraphQLClient, *new_events: NewSecurityEvent, ip: str | None = "192.0.2.7"
) -> None:
    for event in new_events:
        await security_log.log_event_separately(anonymous_context(client.environment, ip), event)
