"""The security log: what happened to credentials, and who tried to use them."""

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.authlog import AuthEvent
from models.columns import insert_or
from models.journal import ChangeKind
from models.users import User
from models.world import World
from resolvers.context import Context, Viewer

FOLDED = timedelta(hours=6)  # from the first of equal events


@dataclass(frozen=True, slots=True)
class Event:
    """Something to note: `action` such as authenticate or totp enable, and what came of it.

    `detail` tells more, and never a secret; of equal events, that of the last is kept.
    """

    action: str
    user_id: int | None
    result: str = "success"
    protocol: str | None = None
    target: str | None = None  # what it was done to, where that makes events different
    detail: Mapping[str, Any] = field(default_factory=dict)


async def note(ctx: Context, session: AsyncSession, event: Event) -> int:
    """Write it in the unit that does it, whose account is held; returns the row's id."""
    by = await actor(ctx.world, ctx.viewer) if _another(ctx.viewer, event) else None
    connection = await session.connection()
    key: int = await connection.run_sync(lambda plain: _put(plain, ctx, event, by))
    if event.user_id:
        await ctx.record(session, event.user_id, ChangeKind.SECURITY_EVENT, [key])
    return key


async def noted(
    world: World, event: Event, *, ip: str | None = None, session_id: str | None = None
) -> int:
    """Write it in a unit of its own: what came of strangers, or behind an answer."""
    viewer = Viewer(user_id=event.user_id or 0)
    ctx = Context(world, viewer, client_ip=ip, session_id=session_id)
    async with ctx.write(*([event.user_id] if event.user_id else [])) as session:
        return await note(ctx, session, event)


def _another(viewer: Viewer, event: Event) -> bool:
    """Whether it is somebody else's doing than the account's own."""
    return bool(viewer.actor_id) or (
        viewer.user_id != event.user_id and (bool(viewer.user_id) or bool(viewer.api_key_id))
    )


async def actor(world: World, viewer: Viewer) -> tuple[int, str]:
    """Who acts, as logs name them: the user's id and name, or 0 and the key's name."""
    key = viewer.actor_id or viewer.user_id
    if not key:
        return 0, f"key {viewer.api_key_id}" if viewer.api_key_id else "the bootstrap key"
    asked = select(col(User.username)).where(col(User.id) == key)
    row = next(iter(await world.database.read(asked)), None)
    return key, row.username if row else str(key)


def _put(connection: Connection, ctx: Context, event: Event, by: tuple[int, str] | None) -> int:
    """Insert the event, or count it up where an equal one is not six hours old."""
    now = ctx.world.now()
    begun = int(now.timestamp() // FOLDED.total_seconds())
    who = by[1] if by else ""
    told = (event.user_id, event.protocol, ctx.client_ip, event.action, event.result, event.target)
    fold = hashlib.sha256(repr((*told, who, begun)).encode()).hexdigest()
    new = insert_or(connection.dialect.name, AuthEvent).values(
        id=ctx.world.key(),
        user_id=event.user_id,
        fold=fold,
        action=event.action,
        result=event.result,
        protocol=event.protocol,
        ip=ctx.client_ip,
        ip_key=ip_key(ctx.client_ip),
        session_id=ctx.session_id,
        by=who or None,
        by_id=(by[0] or None) if by else None,
        detail={**event.detail, **({"target": event.target} if event.target else {})} or None,
        count=1,
        created_at=now,
        last_at=now,
    )
    again = {
        "count": AuthEvent.count + 1,
        "last_at": new.excluded.last_at,
        "session_id": new.excluded.session_id,
        "detail": new.excluded.detail,
    }
    put = new.on_conflict_do_update(index_elements=["fold"], set_=again)
    return int(connection.execute(put.returning(col(AuthEvent.id))).scalar_one())


def ip_key(ip: str | None) -> str | None:
    """An address as 32 hex digits: those of a network lie side by side. None where it is none."""
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return f"{0xFFFF_0000_0000 | int(address):032x}"  # as ::ffff:a.b.c.d
    return f"{int(address):032x}"
