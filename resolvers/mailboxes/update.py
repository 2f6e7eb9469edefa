"""Updates of mailboxes: visibility, retention, special use and encryption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.special_use_names import USES
from mail.storage.message_flags import SYSTEM_FLAGS
from models.admin.tasks import Task
from models.errors import Forbidden, Invalid, NotFound, check_count
from models.events.journal import LONGEST, ChangeKind
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.store.columns import Picked
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.context import Context
from resolvers.mailboxes.loaders import Named, accounts_of, by_ids, check_keys, named, seconds
from resolvers.mailboxes.owners import Held, holding
from resolvers.messages.bulk import flags, row_changes
from resolvers.users.selection import MINE, Users

KIND = "MAILBOX_RETENTION"
AT = ("set",)


@dataclass(frozen=True, slots=True)
class Updated:
    """Which mailboxes of an account change, and how."""

    names: Sequence[Named]
    values: Mapping[str, Any]  # by column; retention is a timedelta
    apply: bool = False  # to existing messages


@dataclass(frozen=True, slots=True)
class Done:
    """The updated mailboxes, and the task that applies the retention to their messages."""

    rows: Sequence[Picked]
    task: Task | None = None


async def change(ctx: Context, what: Updated, user: Users = MINE) -> Done:
    """Update mailboxes of an account: all of them or none.

    A special use moves from the mailbox that has it to the one that gets it. Raises InvalidInput,
    NotFound or Forbidden.
    """
    values = _values(ctx, what)
    async with holding(ctx, user, "mailboxUpdate", path="user") as held:
        (owner,) = held.ids
        rows = await ctx.load_all(named, [(owner, name) for name in what.names])
        mailboxes: dict[int, Picked] = {}
        for index, (name, row) in enumerate(zip(what.names, rows, strict=True)):
            if row is None:
                raise NotFound(held.whose(owner, str(name)), path=["mailboxes"], index=index)
            _check(row, values)
            mailboxes[row.id] = row
        if values.get("encrypt_messages"):
            check_keys(held, (await accounts_of(held, held.ids)).values(), [*AT, "encryptMessages"])
        await _write(held, list(mailboxes.values()), values)
        task = await _bring_along(held, list(mailboxes.values())) if what.apply else None
    return Done([row for row in await ctx.load_all(by_ids, list(mailboxes)) if row], task)


def _values(ctx: Context, what: Updated) -> dict[str, Any]:
    """Return the column values to write. Raises InvalidInput."""
    values, most = dict(what.values), ctx.world.options.bulk
    check_count(len(what.names), most, f"name 1 to {most} folders", path=["mailboxes"])
    if not values:
        raise Invalid("change at least one thing", constraint="required", path=AT)
    if values.get("special_use") and len(what.names) > 1:
        raise Invalid("one folder has the role", constraint="exclusive", path=[*AT, "specialUse"])
    if what.apply and "retention" not in values:
        text = "say which retention is to be applied"
        raise Invalid(text, constraint="required", path=[*AT, "retention"])
    if "retention" in values:
        life = values["retention"] or timedelta()
        values["retention"] = seconds(life, path=[*AT, "retention"])
    return values


def _check(row: Picked, values: Mapping[str, Any]) -> None:
    """Raise Forbidden if a value of this mailbox can't change."""
    if values.get("hidden") and row.special_use is SpecialUse.INBOX:
        raise Forbidden("INBOX is not hidden", path=[*AT, "hidden"])
    if "special_use" in values and values["special_use"] != row.special_use:
        if SpecialUse.INBOX in (row.special_use, values["special_use"]):
            raise Forbidden("INBOX is what it is", path=[*AT, "specialUse"])
        if row.special_use in USES:
            text = f"give {row.special_use} to another folder first: mail is filed by it"
            raise Forbidden(text, path=[*AT, "specialUse"])


async def _write(held: Held, rows: Sequence[Picked], values: dict[str, Any]) -> None:
    connection = await held.session.connection()
    keys = [row.id for row in rows if any(getattr(row, n) != v for n, v in values.items())]
    if not keys:
        return
    given, role = held.ids[0], values.get("special_use")
    before = []
    if role:
        theirs = (col(Mailbox.user_id) == given, col(Mailbox.special_use) == role)
        statement = select(col(Mailbox.id)).where(*theirs, col(Mailbox.id).not_in(keys))
        before = list((await connection.execute(statement)).scalars())
    changed = held.ctx.entries(ChangeKind.MAILBOX_UPDATED, [*before, *keys])
    last = (await held.tell({given: changed}))[given]
    if before:
        without = update(Mailbox).where(col(Mailbox.id).in_(before))
        await connection.execute(without.values(special_use=None, modify_index=last))
    these = update(Mailbox).where(col(Mailbox.id).in_(keys))
    await connection.execute(these.values(**values, modify_index=last))


async def _bring_along(held: Held, rows: Sequence[Picked]) -> Task | None:
    """Set the expiry of existing messages by the retention. Returns a task if there are many."""
    ctx, many = held.ctx, sum(row.total for row in rows)
    order = {"mailboxes": sorted(row.id for row in rows)}
    if many <= ctx.world.options.bulk:
        checkpoint: dict[str, Any] = {}
        more = True
        while more:
            done = await step(ctx, held.session, order, checkpoint, Plan())
            checkpoint, more = done.checkpoint, done.more
        return None
    (owner,) = held.ids
    (task,) = await queue(ctx, held.session, KIND, [order], user_id=owner, total=many)
    await ctx.record(held.session, owner, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    _: Plan,
) -> Step:
    """Set the expiry of the next thousand messages by the retention of their mailboxes."""
    connection, after = await session.connection(), checkpoint.get("after", (0, 0))
    mailboxes = select(col(Mailbox.id), col(Mailbox.retention))
    mailboxes = mailboxes.where(col(Mailbox.id).in_(order["mailboxes"]))
    lives = {row.id: row.retention for row in (await connection.execute(mailboxes)).all()}
    place = (col(Message.mailbox_id), col(Message.uid))
    inside = (col(Message.mailbox_id).in_(lives), tuple_(*place) > tuple(after))
    statement = select(col(Message.id), *place).where(*inside).order_by(*place).limit(LONGEST)
    found = (await connection.execute(statement)).all()
    keys = [row.id for row in found]
    rows = await row_changes.chosen(session, keys, also=frozenset({"saved_at"}))
    ends = {row.id: _state(row, lives[row.mailbox_id]) for row in rows}
    await flags.restate(ctx, session, rows, ends)
    left = {"after": list(found[-1][1:]) if found else after}
    return Step(left, done=len(keys), more=len(keys) == LONGEST)


def _state(row: Picked, life: int | None) -> dict[str, Any]:
    """Return the state of a message with a new expiry. The rest stays."""
    expires = None if life is None else row.saved_at + timedelta(seconds=life)
    return {name: getattr(row, name) for name in (*SYSTEM_FLAGS, "keywords")} | {"expires": expires}
