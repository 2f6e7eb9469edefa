"""UIDVALIDITY, next UID, MODSEQ and object ID of mailboxes, as another server had them.

They never decrease.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlmodel import col

from models.errors import Conflict, InvalidInput
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import Stream
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.prepared_statements import integer_parameter
from models.users.roles import Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes.loaders import (
    OBJECT_ID_PATTERN,
    MailboxSelector,
    load_visible_by_ids,
    require_mailbox_of_each,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.users.selection import VIEWER_ONLY, UserSelector
from resolvers.viewer import GuardRule

OPERATOR_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)
MAX_UID = 2**32 - 1  # RFC 9051, section 2.3.1.1
MAX_UID_VALIDITY = MAX_UID - 2**24  # leaves numbers for future mailboxes
MAX_MODSEQ = 2**52  # leaves numbers for later changes; a BigInt ends at 2^53


@dataclass(frozen=True, slots=True)
class MailboxUidState:
    """New values of a mailbox. The last two are minimum values."""

    object_id: str | None = None
    uid_validity: int | None = None
    min_next_uid: int | None = None
    min_highest_modseq: int | None = None


async def set_uid_state(
    ctx: Context,
    selector: MailboxSelector,
    new_state: MailboxUidState,
    users: UserSelector = VIEWER_ONLY,
) -> list[ColumnRow]:
    """Set the UID state of this mailbox of each account. Returns the mailboxes.

    Raises InvalidInput if a value would decrease, Conflict if a UIDVALIDITY or object ID may be in
    use, and NotFound.
    """
    ctx.viewer.require(OPERATOR_RULE)
    _validate_state(new_state)
    async with lock_mail_owners_and_audit_change(ctx, users, "mailboxStateSet") as locked_owners:
        mailboxes = await require_mailbox_of_each(locked_owners, selector)
        if new_state.object_id is not None:
            await _require_unused_object_id(locked_owners, mailboxes, new_state.object_id)
        values = [
            await _claim_uid_validity_and_return_changed_columns(locked_owners, mailbox, new_state)
            for mailbox in mailboxes
        ]
        changed = [
            (mailbox, changed_values)
            for mailbox, changed_values in zip(mailboxes, values, strict=True)
            if changed_values
        ]
        await _write_states(locked_owners, changed, new_state.min_highest_modseq or 0)
    return [
        row
        for row in await ctx.load_many(load_visible_by_ids, [mailbox.id for mailbox in mailboxes])
        if row
    ]


def _validate_state(state: MailboxUidState) -> None:
    """Raise InvalidInput if no value is set or a value is out of range."""
    given_values = {field.name: getattr(state, field.name) for field in fields(state)}
    if all(value is None for value in given_values.values()):
        raise InvalidInput(
            "At least one field is required.", constraint=ValidationConstraint.REQUIRED
        )
    for name, path, limit in (
        ("uid_validity", "uidValidity", MAX_UID_VALIDITY),
        ("min_next_uid", "minNextUid", MAX_UID),
        ("min_highest_modseq", "minHighestModseq", MAX_MODSEQ),
    ):
        if given_values[name] is not None and not 1 <= given_values[name] <= limit:
            raise InvalidInput(
                f"Must be from 1 to {limit}.", constraint=ValidationConstraint.RANGE, path=[path]
            )
    if state.object_id is not None and not OBJECT_ID_PATTERN.fullmatch(state.object_id):
        raise InvalidInput(
            "An object ID must have 32 hexadecimal digits.",
            constraint=ValidationConstraint.PATTERN,
            path=["objectId"],
        )


async def _require_unused_object_id(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow], object_id: str
) -> None:
    """Raise InvalidInput for several mailboxes, Conflict if the object ID is in use."""
    if len(mailboxes) > 1:
        raise InvalidInput(
            "An object ID can be set on only one mailbox.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["objectId"],
        )
    used_object_ids = select(col(Mailbox.id)).where(
        col(Mailbox.user_id).in_(locked.user_ids),
        col(Mailbox.object_id) == object_id,
        col(Mailbox.id).not_in([mailbox.id for mailbox in mailboxes]),
    )
    if (await (await locked.session.connection()).execute(used_object_ids)).first():
        raise Conflict("Another mailbox has this object ID.", path=["objectId"])


async def _claim_uid_validity_and_return_changed_columns(
    locked: LockedAccounts, mailbox: ColumnRow, state: MailboxUidState
) -> dict[str, Any]:
    """Return the new column values of a mailbox, or {} if none changes.

    A new UIDVALIDITY is claimed for the account. Raises InvalidInput or Conflict if it can't be.
    """
    new_values = {
        "object_id": state.object_id or mailbox.object_id,
        "uid_validity": state.uid_validity or mailbox.uid_validity,
        "uid_next": max(mailbox.uid_next, state.min_next_uid or 0),
        "modseq": max(mailbox.modseq, state.min_highest_modseq or 0),
    }
    if new_values["uid_validity"] != mailbox.uid_validity:
        await _claim_unused_uid_validity_for_account(locked, mailbox, new_values["uid_validity"])
    if all(getattr(mailbox, name) == value for name, value in new_values.items()):
        return {}
    return new_values


async def _claim_unused_uid_validity_for_account(
    locked: LockedAccounts, mailbox: ColumnRow, new_uid_validity: int
) -> None:
    """Store this number as the highest UIDVALIDITY of the account.

    Raises InvalidInput if the number is below the mailbox's, and Conflict if a mailbox may have had
    it.
    """
    if new_uid_validity < mailbox.uid_validity:
        text = locked.prefix_username_unless_viewer(
            mailbox.user_id, f"`uidValidity` must be at least {mailbox.uid_validity}."
        )
        raise InvalidInput(text, constraint=ValidationConstraint.MIN, path=["uidValidity"])
    statement = update(User).where(
        col(User.id) == mailbox.user_id, col(User.uid_validity) < new_uid_validity
    )
    connection = await locked.session.connection()
    if not (await connection.execute(statement.values(uid_validity=new_uid_validity))).rowcount:
        text = locked.prefix_username_unless_viewer(
            mailbox.user_id, "`uidValidity` may already have been used by another mailbox."
        )
        raise Conflict(text, path=["uidValidity"])


async def _write_states(
    locked: LockedAccounts,
    mailboxes_and_values: Sequence[tuple[ColumnRow, dict[str, Any]]],
    modseq: int,
) -> None:
    """Write the values and record the changes.

    MODSEQ of the accounts rises to at least `modseq`.
    """
    if not mailboxes_and_values:
        return
    connection, table = await locked.session.connection(), core_table(Mailbox)
    users = [mailbox.user_id for mailbox, _ in mailboxes_and_values]
    lasts = select(*select_columns(Stream, ("id", "last"))).where(col(Stream.id).in_(users))
    lagging_ids = [
        row.id for row in (await connection.execute(lasts)).all() if row.last < modseq - 1
    ]
    await journal.delete_changes_and_raise_positions(
        locked.session, lagging_ids, last_position=modseq - 1
    )
    entries = {
        mailbox.user_id: locked.ctx.journal_entries(EventType.MAILBOX_UPDATED, [mailbox.id])
        for mailbox, _ in mailboxes_and_values
    }
    await locked.record_changes(entries)
    statement = (
        update(table)
        .where(table.c.id == integer_parameter("key"))
        .values(
            object_id=bindparam("its_object_id"),
            uid_validity=integer_parameter("its_uid_validity"),
            uid_next=integer_parameter("its_uid_next"),
            modseq=integer_parameter("its_modseq"),
        )
    )
    parameters = [
        {
            "key": mailbox.id,
            **{f"its_{name}": value for name, value in values.items()},
        }
        for mailbox, values in mailboxes_and_values
    ]
    await connection.execute(statement, parameters)
