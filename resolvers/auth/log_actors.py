"""The actor of an event in the logs: the user or key that has caused it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import ApiKey
from models.store.columns import ColumnRow
from models.users.tables import User
from resolvers.viewer import Viewer

OPERATOR_NAME = "operator"  # actor name of the command line and the bootstrap key


@dataclass(frozen=True, slots=True)
class LogActor:
    """The user or key that has caused an event, as logs name it."""

    user_id: int | None  # None for a key of the platform and for the command line
    name: str  # the username, or the name of the key or the service


async def load_log_actor(session: AsyncSession, viewer: Viewer) -> LogActor:
    """Load the username or the name of the key of the viewer who acts."""
    connection = await session.connection()
    return actor_from_rows(
        viewer, (await connection.execute(impersonator_or_viewer_name_sql(viewer))).all()
    )


def impersonator_or_viewer_name_sql(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """SQL: the name of the actor."""
    if user_id := _actor_user_id_or_zero(viewer):
        return select(col(User.username).label("name")).where(col(User.id) == user_id)
    return select(col(ApiKey.name).label("name")).where(
        col(ApiKey.id) == _actor_key_id_or_zero(viewer)
    )


def _actor_user_id_or_zero(viewer: Viewer) -> int:
    """Return the id of the user who acts; 0 if a key acts."""
    return 0 if viewer.actor_key_id is not None else viewer.actor_id or viewer.user_id


def _actor_key_id_or_zero(viewer: Viewer) -> int:
    """Return the id of the key that acts; 0 for none or the bootstrap key."""
    return viewer.api_key_id or 0 if viewer.actor_key_id is None else viewer.actor_key_id


def actor_from_rows(viewer: Viewer, rows: Sequence[ColumnRow]) -> LogActor:
    """Return the actor from the rows of `impersonator_or_viewer_name_sql`."""
    name = rows[0].name if rows else None
    if user_id := _actor_user_id_or_zero(viewer):
        return LogActor(user_id, name or str(user_id))
    if key_id := _actor_key_id_or_zero(viewer):
        return LogActor(None, f"key {name or key_id}")
    return LogActor(None, viewer.service_name or OPERATOR_NAME)
