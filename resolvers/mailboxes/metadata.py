"""Annotations of mailboxes (RFC 5464)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select, true, update
from sqlmodel import col

from models.errors import Invalid, LimitReached
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox, MailboxEntry
from models.store.columns import Picked, insert_or, table_of
from models.store.prepared_statements import number
from resolvers.access import administered, records
from resolvers.context import Context
from resolvers.mailboxes.loaders import Named, named_of_each
from resolvers.mailboxes.owners import Held, holding
from resolvers.users.selection import MINE, Users

LONGEST = 255  # characters
LARGEST = 64 * 1024  # bytes
MOST = 100  # of one mailbox
# RFC 5464, section 3.2: printable ASCII without wildcards, no part of it empty
_NAME = re.compile(r"/(?:private|shared)(?:/[ !-$&-)+-.0-~]+)+")


def checked_key(key: str) -> str:
    """Return the key in lower case, since keys ignore case.

    Raises InvalidInput if it is malformed.
    """
    if len(key) > LONGEST or not _NAME.fullmatch(key.lower()):
        text = (
            "a name begins with /private/ or /shared/, and has at most "
            f"{LONGEST} characters of ASCII, without * and %"
        )
        raise Invalid(text, constraint="pattern", path=["key"])
    return key.lower()


async def put(
    ctx: Context, name: Named, entry: tuple[str, str], users: Users = MINE
) -> list[tuple[str, str]]:
    """Set an annotation of this mailbox of each account. Returns key and value for each mailbox.

    Raises InvalidInput, NotFound or LimitReached.
    """
    key, value = checked_key(entry[0]), entry[1]
    if len(value.encode(errors="surrogatepass")) > LARGEST:
        raise Invalid(f"a value has at most {LARGEST} bytes", constraint="max", path=["value"])
    async with holding(ctx, users, "mailboxMetadataSet") as held:
        mailboxes = await named_of_each(held, name)
        known = await _counted(held, mailboxes, key)
        for mailbox in mailboxes:
            many, had = known.get(mailbox.id, (0, None))
            if had is None and many >= MOST:
                text = held.whose(mailbox.user_id, "too many annotations of the folder")
                raise LimitReached(text, limit=MOST, used=many, path=["key"])
        new = [mailbox for mailbox in mailboxes if known.get(mailbox.id, (0, None))[1] != value]
        if new:
            rows = [{"mailbox_id": mailbox.id, "key": key, "value": value} for mailbox in new]
            written = insert_or(ctx.world.database.dialect, MailboxEntry)
            written = written.on_conflict_do_update(
                index_elements=["mailbox_id", "key"], set_={"value": written.excluded.value}
            )
            await (await held.session.connection()).execute(written, rows)
            await _tell(held, new)
    return [(key, value) for _ in mailboxes]


async def drop(ctx: Context, name: Named, key: str, users: Users = MINE) -> list[str]:
    """Delete an annotation of this mailbox of each account.

    Returns the key for each deleted one.
    """
    key = checked_key(key)
    async with holding(ctx, users, "mailboxMetadataUnset") as held:
        mailboxes = await named_of_each(held, name)
        keys = [mailbox.id for mailbox in mailboxes]
        these = (col(MailboxEntry.mailbox_id).in_(keys), col(MailboxEntry.key) == key)
        gone = delete(MailboxEntry).where(*these).returning(col(MailboxEntry.mailbox_id))
        found = set((await (await held.session.connection()).execute(gone)).scalars())
        await _tell(held, [mailbox for mailbox in mailboxes if mailbox.id in found])
    return [key for _ in found]


async def _counted(
    held: Held, boxes: Sequence[Picked], key: str
) -> dict[int, tuple[int, str | None]]:
    """Return the number of annotations of each mailbox, and the value of the one with this key."""
    here = col(MailboxEntry.key) == key
    statement = (
        select(
            col(MailboxEntry.mailbox_id),
            func.count(),
            func.max(col(MailboxEntry.value)).filter(here),
        )
        .where(col(MailboxEntry.mailbox_id).in_([mailbox.id for mailbox in boxes]))
        .group_by(col(MailboxEntry.mailbox_id))
    )
    rows = (await (await held.session.connection()).execute(statement)).all()
    return {mailbox: (many, value) for mailbox, many, value in rows}


async def _tell(held: Held, boxes: Sequence[Picked]) -> None:
    theirs: defaultdict[int, list[int]] = defaultdict(list)
    for mailbox in boxes:
        theirs[mailbox.user_id].append(mailbox.id)
    kind = ChangeKind.MAILBOX_UPDATED
    lasts = await held.tell({user: held.ctx.entries(kind, ids) for user, ids in theirs.items()})
    given = [{"key": mailbox.id, "last": lasts[mailbox.user_id]} for mailbox in boxes]
    if given:
        table = table_of(Mailbox)
        changed = update(table).where(table.c.id == number("key"))
        changed = changed.values(modify_index=number("last"))
        await (await held.session.connection()).execute(changed, given)


def _asked(ctx: Context, keys: Sequence[int]) -> Select[*tuple[Any, ...]]:
    return (
        select(col(MailboxEntry.mailbox_id), col(MailboxEntry.key), col(MailboxEntry.value))
        .join(Mailbox, col(Mailbox.id) == col(MailboxEntry.mailbox_id))
        .where(col(MailboxEntry.mailbox_id).in_(keys), records(ctx, Mailbox), _told(ctx))
        .order_by(col(MailboxEntry.key))
    )


def _told(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see an annotation.

    Only the owner sees those below /private/ (RFC 5464, section 3.3).
    """
    if not ctx.viewer.reach.shared or administered(ctx):
        return true()
    mine = col(Mailbox.user_id) == ctx.viewer.user_id
    return mine | col(MailboxEntry.key).startswith("/shared/")


async def of_mailboxes(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load the annotations of these mailboxes, in their order, each list sorted by key."""
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(_asked(ctx, keys)):
        found[row.mailbox_id].append(row)
    return [found[key] for key in keys]


async def single(ctx: Context, keys: list[tuple[int, str]]) -> list[Picked | None]:
    """Load annotations by mailbox ID and key, in this order. None if there is none."""
    names = {name for _, name in keys}
    statement = _asked(ctx, [key for key, _ in keys]).where(col(MailboxEntry.key).in_(names))
    found = {(row.mailbox_id, row.key): row for row in await ctx.read(statement)}
    return [found.get(key) for key in keys]
