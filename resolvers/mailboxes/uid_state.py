"""UIDVALIDITY, next UID, MODSEQ and GUID of mailboxes, as another server had them.

They never decrease.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from models.errors import Conflict, Invalid
from models.events import journal
from models.events.journal import ChangeKind, Stream
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, picked, table_of
from models.store.prepared_statements import number
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.context import Context, Needs
from resolvers.mailboxes.loaders import GUID, Named, by_ids, named_of_each
from resolvers.mailboxes.owners import Held, holding
from resolvers.users.selection import MINE, Users

OPERATORS = Needs(role=Role.ADMIN, scope=Scope.MASTER)
UIDS = 2**32 - 1  # RFC 9051, section 2.3.1.1
VALIDITIES = UIDS - 2**24  # leaves numbers for future mailboxes
MODSEQS = 2**52  # leaves numbers for later changes; a BigInt ends at 2^53


@dataclass(frozen=True, slots=True)
class State:
    """New values of a mailbox. The last two are minimum values."""

    guid: str | None = None
    uid_validity: int | None = None
    min_next_uid: int | None = None
    min_highest_modseq: int | None = None


async def set_state(ctx: Context, name: Named, state: State, users: Users = MINE) -> list[Picked]:
    """Set the UID state of this mailbox of each account. Returns the mailboxes.

    Raises InvalidInput if a value would decrease, Conflict if a UIDVALIDITY or GUID may be in use,
    and NotFound.
    """
    ctx.viewer.require(OPERATORS)
    _check(state)
    async with holding(ctx, users, "mailboxStateSet") as held:
        there = await named_of_each(held, name)
        if state.guid is not None:
            await _check_guid(held, there, state.guid)
        values = [await _values(held, mailbox, state) for mailbox in there]
        changed = [(mailbox, more) for mailbox, more in zip(there, values, strict=True) if more]
        await _write(held, changed, state.min_highest_modseq or 0)
    return [row for row in await ctx.load_all(by_ids, [mailbox.id for mailbox in there]) if row]


def _check(state: State) -> None:
    """Raise InvalidInput if no value is set or a value is out of range."""
    said = {one.name: getattr(state, one.name) for one in fields(state)}
    if all(value is None for value in said.values()):
        raise Invalid("set at least one thing", constraint="required")
    for name, path, most in (
        ("uid_validity", "uidValidity", VALIDITIES),
        ("min_next_uid", "minNextUid", UIDS),
        ("min_highest_modseq", "minHighestModseq", MODSEQS),
    ):
        if said[name] is not None and not 1 <= said[name] <= most:
            raise Invalid(f"from 1 to {most}", constraint="range", path=[path])
    if state.guid is not None and not GUID.fullmatch(state.guid):
        raise Invalid("a guid has 32 hex digits", constraint="pattern", path=["guid"])


async def _check_guid(held: Held, boxes: Sequence[Picked], guid: str) -> None:
    """Raise InvalidInput for several mailboxes, and Conflict if another mailbox has the GUID."""
    if len(boxes) > 1:
        raise Invalid("one folder has the guid", constraint="exclusive", path=["guid"])
    taken = select(col(Mailbox.id)).where(
        col(Mailbox.user_id).in_(held.ids),
        col(Mailbox.guid) == guid,
        col(Mailbox.id).not_in([mailbox.id for mailbox in boxes]),
    )
    if (await (await held.session.connection()).execute(taken)).first():
        raise Conflict("another folder has this guid", path=["guid"])


async def _values(held: Held, box: Picked, state: State) -> dict[str, Any]:
    """Return the new column values of a mailbox, or {} if none changes."""
    wanted = {
        "guid": state.guid or box.guid,
        "uid_validity": state.uid_validity or box.uid_validity,
        "uid_next": max(box.uid_next, state.min_next_uid or 0),
        "modseq": max(box.modseq, state.min_highest_modseq or 0),
    }
    if wanted["uid_validity"] != box.uid_validity:
        await _take_validity(held, box, wanted["uid_validity"])
    if all(getattr(box, name) == value for name, value in wanted.items()):
        return {}
    return wanted


async def _take_validity(held: Held, box: Picked, value: int) -> None:
    """Raise the account's UIDVALIDITY counter to this number.

    Raises InvalidInput if the number is below the mailbox's, and Conflict if a mailbox may have had
    it.
    """
    if value < box.uid_validity:
        text = held.whose(box.user_id, f"it is {box.uid_validity}, and does not fall")
        raise Invalid(text, constraint="min", path=["uidValidity"])
    one = update(User).where(col(User.id) == box.user_id, col(User.uid_validity) < value)
    connection = await held.session.connection()
    if not (await connection.execute(one.values(uid_validity=value))).rowcount:
        text = held.whose(box.user_id, "another folder may have had this number")
        raise Conflict(text, path=["uidValidity"])


async def _write(held: Held, changed: Sequence[tuple[Picked, dict[str, Any]]], modseq: int) -> None:
    """Write the values and record the changes.

    MODSEQ of the accounts rises to at least `modseq`.
    """
    if not changed:
        return
    connection, table = await held.session.connection(), table_of(Mailbox)
    users = [mailbox.user_id for mailbox, _ in changed]
    lasts = select(*picked(Stream, ("id", "last"))).where(col(Stream.id).in_(users))
    behind = [row.id for row in (await connection.execute(lasts)).all() if row.last < modseq - 1]
    await journal.lift(held.session, behind, to=modseq - 1)
    told = {
        mailbox.user_id: held.ctx.entries(ChangeKind.MAILBOX_UPDATED, [mailbox.id])
        for mailbox, _ in changed
    }
    reached = await held.tell(told)
    statement = (
        update(table)
        .where(table.c.id == number("key"))
        .values(
            guid=bindparam("its_guid"),
            uid_validity=number("its_uid_validity"),
            uid_next=number("its_uid_next"),
            modseq=number("its_modseq"),
            modify_index=number("last"),
        )
    )
    given = [
        {
            "key": mailbox.id,
            "last": reached[mailbox.user_id],
            **{f"its_{name}": value for name, value in values.items()},
        }
        for mailbox, values in changed
    ]
    await connection.execute(statement, given)
