"""Deliver mail of a subaddress to a mailbox: `ada+news@` to `INBOX/news`, if enabled.

Senders choose labels, so the number of mailboxes is limited and they are all below INBOX. At the
limit the message stays in INBOX. Labels in subjects: mail/storage/delivery_headers.py.
"""

from dataclasses import replace
from typing import Any

from sqlalchemy import String, bindparam, func, select
from sqlmodel import col

from mail.envelope.local_recipient import Recipient
from mail.inbound.spam_check import Judged
from mail.mailboxes import creation
from mail.mailboxes.paths import INBOX, checked_path
from mail.recipients.address_resolution import KEY
from models.errors import Invalid
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Turn, World
from models.store.prepared_statements import Prepared, number
from models.users.tables import DelimiterAction, User

MOST = 100  # children of INBOX, at which no more are created


async def filed(world: World, judged: Judged) -> Judged:
    """Return the verdict with the mailbox of the label. Spam stays in Junk."""
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
    """Return the mailbox path of a label, None if the label is not a valid mailbox name."""
    try:
        path = checked_path(f"{INBOX}/{label.lower()}")
    except Invalid:
        return None
    return path if path.count("/") == 1 else None


async def _folder(world: World, to: Recipient, path: str) -> Any:
    """Return id and encryption key of the mailbox. Creates it if there are not too many."""
    given = {"user": to.user_id, "path": path}
    found = await world.database.find(_THERE, given)
    if not found:
        await world.apply(lambda turn: _make(turn, to.user_id, path), to.user_id)
        found = await world.database.find(_THERE, given)
    return found[0] if found else None


_THERE = Prepared(
    select(col(Mailbox.id), KEY.label("key"))
    .join(User, col(User.id) == col(Mailbox.user_id))
    .where(
        col(Mailbox.user_id) == number("user"),
        col(Mailbox.path) == bindparam("path", type_=String),
    )
)


def _make(turn: Turn, user_id: int, path: str) -> None:
    """Create the mailbox unless INBOX has MAX_MAILBOXES children. The account must be locked."""
    below = col(Mailbox.path).startswith(f"{INBOX}/", autoescape=True)
    asked = select(func.count()).where(col(Mailbox.user_id) == user_id, below)
    if turn.connection.execute(asked).scalar_one() < MOST:
        creation.made(turn, user_id, path)
