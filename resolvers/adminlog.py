"""The administrative log: who changed what of others, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.adminlog import AdminLogEntry
from resolvers.authlog import actor
from resolvers.context import Context

SECRETS = frozenset({"password", "temporary_password", "digest", "seed", "pending", "public_key"})
HIDDEN = "(hidden)"  # what stands for a secret that was set


@dataclass(frozen=True, slots=True)
class Done:
    """What an administrative mutation, as the schema calls it, did to one thing."""

    mutation: str
    kind: str | None = None  # type of the target, as the schema calls it
    target_id: int | None = None
    domain_id: int | None = None  # whose administrators may read of it
    before: Mapping[str, Any] | None = None  # only what changed; secrets are taken out here
    after: Mapping[str, Any] | None = None


async def note(ctx: Context, session: AsyncSession, *done: Done) -> None:
    """Write it in the unit that does it."""
    if not done:
        return
    at, (actor_id, name) = ctx.world.now(), await actor(ctx.world, ctx.viewer)
    session.add_all(
        AdminLogEntry(
            id=ctx.world.key(),
            at=at,
            actor=name,
            actor_id=actor_id or None,
            role=ctx.viewer.role,
            ip=ctx.client_ip,
            mutation=one.mutation,
            target_kind=one.kind,
            target_id=one.target_id,
            domain_id=one.domain_id,
            before=without_secrets(one.before),
            after=without_secrets(one.after),
            reason=ctx.reason,
        )
        for one in done
    )
    await session.flush()


def without_secrets(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """These facts as JSON takes them, with what is secret hidden."""
    if facts is None:
        return None
    return {
        name: (HIDDEN if value else None) if name in SECRETS else _plain(value)
        for name, value in facts.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Mapping):
        return without_secrets({str(name): each for name, each in value.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
