"""Changes to locked users, one or many, with few statements and their journal entries."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.domains.tables import Domain
from models.errors import Conflict
from models.events import journal
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, table_of
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import authentication
from resolvers.context import Context, Needs
from resolvers.users.selection import Users, chosen
from resolvers.users.validation import camel

# Columns that follow from others or mean nothing to clients.
SILENT = frozenset(
    {
        "key_info",
        "password_changed_at",
        "relays",
        "temporary_from",
        "temporary_until",
        "username_key",
        "words",
    }
)


@dataclass
class Held:
    """Users that are locked until the transaction ends, with their changes."""

    session: AsyncSession
    rows: Sequence[Picked]
    domains: Mapping[int, Domain]
    values: dict[int, dict[str, Any]] = field(default_factory=dict)  # by user id, then column
    before: dict[int, dict[str, Any]] = field(default_factory=dict)  # of changed values
    after: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)  # users whose tokens end

    def set(self, row: Picked, **values: Any) -> Collection[str]:
        """Set columns of a user. Returns the columns with a changed value."""
        was = {name: getattr(row, name) for name in values}
        fresh = [name for name in values if was[name] != values[name]]
        if fresh:
            self.values.setdefault(row.id, {}).update(values)
        for name in fresh:
            self.tell(row, name, was[name], values[name])
        return fresh

    def tell(self, row: Picked, name: str, before: Any, after: Any) -> None:
        """Report a changed value in the journal and the admin log, without storing it."""
        self.before.setdefault(row.id, {})[name] = before
        self.after.setdefault(row.id, {})[name] = after

    def end(self, row: Picked) -> None:
        """End the tokens of this user."""
        self.ended.add(row.id)

    @property
    def changed(self) -> list[Picked]:
        """The users with changes."""
        return [row for row in self.rows if row.id in self.after or row.id in self.ended]

    def names(self, row: Picked) -> list[str]:
        """Return the changed columns of a user by their names in the schema."""
        return sorted(camel(name) for name in self.after.get(row.id, {}).keys() - SILENT)


@asynccontextmanager
async def changing(
    ctx: Context, users: Users, mutation: str, *, path: str = "users"
) -> AsyncGenerator[Held]:
    """Lock users for a change. On leaving, store the changes with journal and admin log entries.

    Raises Forbidden or NotFound as `load_selected_users` does; users other than the viewer need a
    credential with the scope MASTER. Raises Conflict if a user moves to another domain.
    """
    rows = await chosen(ctx, users, path=path)
    if any(row.id != ctx.viewer.user_id for row in rows):
        ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, scope=Scope.MASTER))
    keys, streams = tuple(row.id for row in rows), {row.domain_id or PLATFORM for row in rows}
    async with ctx.write(*keys, *streams) as session:
        rows = await chosen(ctx, Users(ids=keys), path=path) if keys else []
        if not {row.domain_id or PLATFORM for row in rows} <= streams:
            raise Conflict("an account has moved to another domain meanwhile", path=[path])
        domains = {
            key: await session.get_one(Domain, key, populate_existing=True)
            for key in sorted(streams - {PLATFORM})
        }
        held = Held(session, rows, domains)
        yield held
        await session.flush()
        await _write(ctx, held)
        await _told(ctx, held, mutation)
    authentication.forget(ctx.world, *(row.id for row in held.changed))


async def _write(ctx: Context, held: Held) -> None:
    """Store the new values. Users with the same values share one statement."""
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for row in held.changed:
        alike[f"{row.id in held.ended} {held.values.get(row.id)}"].append(row.id)
    connection, now = await held.session.connection(), ctx.world.now()
    for keys in alike.values():
        more = {"auth_version": col(User.auth_version) + 1} if keys[0] in held.ended else {}
        values = {**held.values.get(keys[0], {}), **more, "updated_at": now}
        table = table_of(User)
        await connection.execute(update(table).where(table.c.id.in_(keys)).values(values))


async def _told(ctx: Context, held: Held, mutation: str) -> None:
    """Write the changes to the journals and to the admin log."""
    rows = held.changed
    told: defaultdict[int, list[Picked]] = defaultdict(list)
    own = {row.id for row in rows}
    for row in rows:
        told[row.id].append(row)
        told[row.domain_id or PLATFORM].append(row)
    entries = {
        stream: ctx.entries(
            ChangeKind.USER_CHANGED,
            [row.id for row in theirs],
            changed=[held.names(row) for row in theirs],
            **({} if stream in own else {"twice": True}),  # the users' own streams have it too
        )
        for stream, theirs in told.items()
    }
    await journal.record_all(held.session, entries, at=ctx.world.now())
    await admin_log.note(
        ctx,
        held.session,
        *(
            Done(mutation, "User", row.id, row.domain_id, *_facts(held, row))
            for row in rows
            if row.id != ctx.viewer.user_id
        ),
    )


def _facts(held: Held, row: Picked) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return old and new values of a user for the admin log; a public key as its properties."""
    hidden = SILENT - {"key_info"} | {"pub_key"}
    before, after = held.before.get(row.id, {}), held.after.get(row.id, {})
    return (
        {name: value for name, value in before.items() if name not in hidden},
        {name: value for name, value in after.items() if name not in hidden},
    )
