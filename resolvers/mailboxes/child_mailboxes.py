"""Creation of mailboxes below a parent, which can be a mailbox that another user shares."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import insert, select
from sqlmodel import col

from mail.mailboxes.paths import validate_path
from models.errors import Forbidden, InvalidInput, LimitReached
from models.events import journal
from models.mailboxes.shares import MailboxShare, ShareRight
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector, require_own_or_shared_mailbox
from resolvers.mailboxes.owners import LockedAccounts
from resolvers.users.selection import VIEWER_ONLY, UserSelector

PARENT_PATH = ["parent"]


async def create_child_mailboxes(
    ctx: Context,
    new_mailboxes: NewMailboxes,
    parent: MailboxSelector,
    users: UserSelector = VIEWER_ONLY,
) -> list[Mailbox]:
    """Create mailboxes below a parent: all of them or none.

    In a mailbox of another user this needs the right CREATE. The new mailboxes are shared like
    their parent. Raises InvalidInput if `users` is given, Forbidden, NotFound, Conflict or
    LimitReached.
    """
    if users.is_given:
        raise InvalidInput(
            "`users` can't be combined with a parent.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["users"],
        )
    mailbox = await require_own_or_shared_mailbox(
        ctx, parent, ShareRight.CREATE, path_in_input=PARENT_PATH
    )
    if mailbox.user_id == require_user_id(ctx):
        return await mailbox_create.create_mailboxes(ctx, _with_parent_path(new_mailboxes, mailbox))
    if new_mailboxes.special_use:
        raise Forbidden("Only the owner of a mailbox can set its special use.", path=["specialUse"])
    if new_mailboxes.encrypt_messages:
        raise Forbidden(
            "Only the owner of a mailbox can set its encryption.", path=["encryptMessages"]
        )
    async with ctx.write_session(mailbox.user_id) as session:
        mailbox = await require_own_or_shared_mailbox(
            ctx, MailboxSelector(id=mailbox.id), ShareRight.CREATE, path_in_input=PARENT_PATH
        )
        owner = select(*select_columns(User)).where(col(User.id) == mailbox.user_id)
        locked_accounts = LockedAccounts(ctx, session, list(await ctx.read(owner)))
        below = _with_parent_path(new_mailboxes, mailbox)
        validated_paths = [
            validate_path(path, input_path=["paths"], index=nth)
            for nth, path in enumerate(below.paths)
        ]
        try:
            mailboxes, created = await mailbox_create.create_with_parents_in_transaction(
                locked_accounts, validated_paths, below
            )
        except LimitReached as full:  # only the owner may learn the count
            raise LimitReached(
                full.message, limit=full.limit, used=full.limit, path=PARENT_PATH
            ) from full
        await _copy_shares_of_parent(locked_accounts, mailbox, created)
    return mailboxes


def _with_parent_path(new_mailboxes: NewMailboxes, parent: ColumnRow) -> NewMailboxes:
    return replace(new_mailboxes, paths=[f"{parent.path}/{path}" for path in new_mailboxes.paths])


async def _copy_shares_of_parent(
    locked: LockedAccounts, parent: ColumnRow, created: Sequence[Mailbox]
) -> None:
    """Share the created mailboxes with the users that the parent is shared with."""
    connection = await locked.session.connection()
    statement = select(*select_columns(MailboxShare, ("user_id", "rights", "made_by")))
    rows = (
        await connection.execute(statement.where(col(MailboxShare.mailbox_id) == parent.id))
    ).all()
    before = journal.recorded_positions(locked.session)[parent.user_id] - len(created)
    share_rows = [
        {
            "mailbox_id": mailbox.id,
            "user_id": row.user_id,
            "owner_id": parent.user_id,
            "rights": row.rights,
            "made_by": row.made_by,
            "since": before,
        }
        for mailbox in created
        for row in rows
    ]
    await connection.execute(insert(MailboxShare), share_rows)
