"""What the label of an address does: `ada+news@` into the folder `INBOX/news`, where she wants.

Strangers choose labels. So folders are made for so many only, and lie all in one place; mail with
any other stays where it is. `mail/stamping.py` puts labels before subjects.
"""

from dataclasses import replace
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from mail.addresses import KEY, Recipient
from mail.junk import Judged
from mail.paths import INBOX, checked_path
from models.columns import Picked
from models.errors import Invalid
from models.journal import ChangeKind, Entry
from models.mailboxes import Mailbox, Subscription
from models.users import DelimiterAction, User
from models.world import Turn, World

MOST = 100  # folders that are made for labels


async def filed(world: World, judged: Judged) -> Judged:
    """The recipient with the folder that the label asks for; spam stays in Junk."""
    to = judged.to
    asked = to.label and to.delimiter_action is DelimiterAction.SUBFOLDER
    if not asked or judged.verdict.is_spam:
        return judged
    path = folder_of(to.label)
    row = await _folder(world, to, path) if path else None
    if row is None:
        return judged
    return Judged(replace(to, mailbox_id=row.id, key=row.key), judged.verdict)


def folder_of(label: str) -> str | None:
    """The path of the folder for a label; None where there can be none."""
    try:
        path = checked_path(f"{INBOX}/{label.lower()}")
    except Invalid:
        return None
    return path if path.count("/") == 1 else None


async def _folder(world: World, to: Recipient, path: str) -> Picked | None:
    there = (
        select(col(Mailbox.id), KEY.label("key"))
        .join(User, col(User.id) == col(Mailbox.user_id))
        .where(col(Mailbox.user_id) == to.user_id, col(Mailbox.path) == path)
    )
    found = next(iter(await world.database.read(there)), None)
    if found is not None:
        return found
    await world.apply(lambda turn: _make(turn, to.user_id, path), to.user_id)
    return next(iter(await world.database.read(there)), None)


def _make(turn: Turn, user_id: int, path: str) -> None:
    """Make the folder, whose account is held, unless it is there, or there are too many."""
    connection, now = turn.connection, turn.world.now()
    mine = col(Mailbox.user_id) == user_id
    below = col(Mailbox.path).startswith(f"{INBOX}/", autoescape=True)
    asked = select(
        func.count().label("all"),
        func.count().filter(below).label("below"),
        func.count().filter(col(Mailbox.path) == path).label("there"),
    ).where(mine)
    counted = connection.execute(asked).one()
    if counted.there or counted.below >= MOST or counted.all >= turn.world.options.max_mailboxes:
        return
    account = connection.execute(
        select(col(User.uid_validity), col(User.retention)).where(col(User.id) == user_id)
    ).first()
    if account is None:
        return
    validity = max(account.uid_validity + 1, int(now.timestamp()))
    this: Any = update(User).where(col(User.id) == user_id)
    connection.execute(this.values(uid_validity=validity))
    box = Mailbox(
        id=turn.world.key(),
        user_id=user_id,
        path=path,
        guid=turn.world.random(16).hex(),
        uid_validity=validity,
        retention=account.retention,
        created_at=now,
    )
    connection.execute(insert(Mailbox).values(box.model_dump()))
    known = (col(Subscription.user_id) == user_id) & (col(Subscription.path) == path)
    connection.execute(delete(Subscription).where(known))  # the folder says so itself now
    entry = Entry(ChangeKind.MAILBOX_CREATED, [box.id], {"path": [path]})
    turn.record(user_id, entry, at=now)
