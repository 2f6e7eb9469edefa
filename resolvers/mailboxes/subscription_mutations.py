"""Subscribing to paths, which need not have a mailbox yet."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from mail.mailboxes.paths import checked_path, spelled
from models.errors import LimitReached, check_count
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked, table_of
from models.store.prepared_statements import number
from resolvers.context import Context
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.loaders import by_ids
from resolvers.mailboxes.owners import Held, holding
from resolvers.users.selection import MINE, Users


async def subscribe(
    ctx: Context, paths: Sequence[str], users: Users = MINE, *, subscribed: bool
) -> list[Picked]:
    """Subscribe accounts to paths, or unsubscribe them. Returns the mailboxes at these paths.

    Raises InvalidInput or LimitReached.
    """
    most = ctx.world.options.bulk
    check_count(len(paths), most, f"name 1 to {most} paths", path=["paths"])
    if subscribed:
        wanted = {checked_path(p, path_in=["paths"], index=nth) for nth, p in enumerate(paths)}
    else:
        wanted = set(map(spelled, paths))
    name = "mailboxSubscribe" if subscribed else "mailboxUnsubscribe"
    async with holding(ctx, users, name) as held:
        columns = picked(Mailbox, ("id", "user_id", "path", "subscribed"))
        statement = select(*columns).where(
            col(Mailbox.user_id).in_(held.ids), col(Mailbox.path).in_(wanted)
        )
        rows = (await (await held.session.connection()).execute(statement)).all()
        touched = await _without_folders(held, rows, wanted, subscribed=subscribed)
        await _change(held, [row for row in rows if row.subscribed is not subscribed], touched)
    keys = [row.id for row in sorted(rows, key=lambda row: (row.user_id, row.path))]
    return [row for row in await ctx.load_all(by_ids, keys) if row]


async def _without_folders(
    held: Held, rows: Sequence[Picked], wanted: set[str], *, subscribed: bool
) -> list[int]:
    """Write the subscriptions to paths without a mailbox. Returns the users with a change."""
    before = await subscriptions.standing(held.session, held.ids)
    after = {}
    limit = held.ctx.world.options.max_mailboxes
    for user in held.ids:
        there = {row.path for row in rows if row.user_id == user}
        had = before.get(user, set())
        after[user] = had | (wanted - there) if subscribed else had - wanted
        if len(after[user]) > max(limit, len(had)):
            text = held.whose(user, "too many subscriptions without folders")
            raise LimitReached(text, limit=limit, used=len(had), path=["paths"])
    return await subscriptions.rewrite(held.session, before, after)


async def _change(held: Held, rows: Sequence[Picked], touched: Sequence[int]) -> None:
    """Invert `subscribed` of these mailboxes and record all changes."""
    told = {}
    for user in {*touched, *(row.user_id for row in rows)}:
        theirs = [row.id for row in rows if row.user_id == user]
        told[user] = [
            *held.ctx.entries(ChangeKind.USER_CHANGED, [user] if user in touched else []),
            *held.ctx.entries(ChangeKind.MAILBOX_UPDATED, theirs),
        ]
    lasts = await held.tell(told)
    if rows:
        table = table_of(Mailbox)
        changed = update(table).where(table.c.id == bindparam("key"))
        changed = changed.values(subscribed=~table.c.subscribed, modify_index=number("last"))
        given = [{"key": row.id, "last": lasts[row.user_id]} for row in rows]
        await (await held.session.connection()).execute(changed, given)
