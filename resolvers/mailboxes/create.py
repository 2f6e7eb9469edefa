"""Create mailboxes, with their parents."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.paths import missing_paths_with_parents, validate_path
from models.errors import Conflict, InvalidInput, LimitReached
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.loaders import OBJECT_ID_PATTERN
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.mailboxes.retention import MailboxRetention, own_retention_columns
from resolvers.users.selection import VIEWER_ONLY, UserSelector


@dataclass(frozen=True, slots=True)
class NewMailboxes:
    """Mailboxes to create."""

    paths: Sequence[str]
    is_hidden: bool = False
    retention: MailboxRetention = None
    is_subscribed: bool = True
    special_use: SpecialUse | None = None
    object_id: str | None = None  # only for one mailbox of one account
    encrypt_messages: bool = False  # new messages, with the user's OpenPGP key


def build_mailbox_with_next_uid_validity(
    ctx: Context, user: User, path: str, special_use: SpecialUse | None
) -> Mailbox:
    """Build a mailbox of a user with a locked row. UIDVALIDITY and GUID are new."""
    at = ctx.environment.now()
    user.uid_validity = max(user.uid_validity + 1, int(at.timestamp()))
    key = ctx.environment.new_id()
    return Mailbox(
        id=key,
        user_id=user.id,
        path=path,
        object_id=ctx.environment.random_bytes(16).hex(),
        special_use=special_use,
        uid_validity=user.uid_validity,
        retention=user.retention,
        created_at=at,
    )


async def load_refreshed_users(
    locked: LockedAccounts, user_ids: Collection[int]
) -> dict[int, User]:
    """Load users inside the transaction, by ID. Cached instances are refreshed."""
    statement = instances(User).where(col(User.id).in_(user_ids)).order_by(col(User.id))
    refresh_statement = statement.execution_options(populate_existing=True)
    return {user.id: user for user in (await locked.session.exec(refresh_statement)).all()}


def require_openpgp_keys(
    locked: LockedAccounts,
    users: Iterable[User],
    path_in_input: Sequence[str] = ("encryptMessages",),
) -> None:
    """Raise InvalidInput if one of these users has no OpenPGP key to encrypt mail to."""
    for user in users:
        if not user.openpgp_public_key:
            text = locked.prefix_username_unless_viewer(
                user.id, "An encrypted mailbox requires an OpenPGP key of the account."
            )
            raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=path_in_input)


async def create_mailboxes(
    ctx: Context, new_mailboxes: NewMailboxes, users: UserSelector = VIEWER_ONLY
) -> list[Mailbox]:
    """Create mailboxes at these paths with their missing parents: all of them or none.

    Returns the requested mailboxes, by account in the order of the paths. Raises InvalidInput,
    Conflict or LimitReached.
    """
    validated_paths = [
        validate_path(p, input_path=["paths"], index=nth)
        for nth, p in enumerate(new_mailboxes.paths)
    ]
    async with lock_mail_owners_and_audit_change(ctx, users, "mailboxCreate") as locked_owners:
        mailboxes, _ = await create_with_parents_in_transaction(
            locked_owners, validated_paths, new_mailboxes
        )
    return mailboxes


class CreatedMailboxes(NamedTuple):
    """The requested mailboxes, and all that were created, with missing parents."""

    requested: list[Mailbox]
    created: list[Mailbox]


async def create_with_parents_in_transaction(
    locked: LockedAccounts, paths: Sequence[str], new_mailboxes: NewMailboxes
) -> CreatedMailboxes:
    """Create mailboxes in a transaction.

    Returns the requested mailboxes, and all that were created.
    """
    _require_consistent_new_mailboxes(new_mailboxes, locked.user_ids)
    accounts = list((await load_refreshed_users(locked, locked.user_ids)).values())
    if new_mailboxes.encrypt_messages:
        require_openpgp_keys(locked, accounts)
    existing_by_user = await load_existing_by_user(locked.session, locked.user_ids)
    plans_by_user = {
        user.id: _build_with_parents_or_raise(
            locked, user, paths, new_mailboxes, existing_by_user[user.id]
        )
        for user in accounts
    }
    created_mailboxes = []
    for mailboxes in plans_by_user.values():
        by_path = {mailbox.path: mailbox for mailbox in mailboxes}
        created_mailboxes += [by_path[path] for path in paths]
    for mailbox in created_mailboxes:
        mailbox.object_id = new_mailboxes.object_id or mailbox.object_id
        mailbox.hidden, mailbox.subscribed = new_mailboxes.is_hidden, new_mailboxes.is_subscribed
        mailbox.encrypt_messages = new_mailboxes.encrypt_messages
        if new_mailboxes.retention is not None:
            for name, value in own_retention_columns(new_mailboxes.retention).items():
                setattr(mailbox, name, value)
        mailbox.special_use = new_mailboxes.special_use
    await insert_mailboxes_and_adopt_subscriptions(locked, accounts, plans_by_user)
    return CreatedMailboxes(
        created_mailboxes,
        [mailbox for mailboxes in plans_by_user.values() for mailbox in mailboxes],
    )


async def insert_mailboxes_and_adopt_subscriptions(
    locked: LockedAccounts,
    users: Sequence[User],
    mailboxes_by_user: Mapping[int, Sequence[Mailbox]],
) -> None:
    """Insert the mailboxes, take over subscriptions to their paths, and record the changes."""
    before = await subscriptions.load_folderless_subscriptions(
        locked.session, list(mailboxes_by_user)
    )
    after = {
        user: before[user] - {mailbox.path for mailbox in mailboxes}
        for user, mailboxes in mailboxes_by_user.items()
    }
    for user, mailboxes in mailboxes_by_user.items():
        for mailbox in mailboxes:
            mailbox.subscribed = mailbox.subscribed or mailbox.path in before[user]
    locked.session.add_all(
        [*users, *(mailbox for mailboxes in mailboxes_by_user.values() for mailbox in mailboxes)]
    )
    await locked.session.flush()
    await subscriptions.write_changed_folderless_subscriptions(
        locked, before, after, path_in_input="paths"
    )
    event_type = EventType.MAILBOX_CREATED
    await locked.record_changes(
        {
            user: locked.ctx.journal_entries(
                event_type,
                [mailbox.id for mailbox in mailboxes],
                path=[mailbox.path for mailbox in mailboxes],
            )
            for user, mailboxes in mailboxes_by_user.items()
        }
    )


def _require_consistent_new_mailboxes(new_mailboxes: NewMailboxes, user_ids: Sequence[int]) -> None:
    """Raise InvalidInput if the values contradict each other."""
    if not new_mailboxes.paths:
        raise InvalidInput(
            "At least one path is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["paths"],
        )
    if new_mailboxes.special_use and len(new_mailboxes.paths) > 1:
        raise InvalidInput(
            "A special use can be set on only one mailbox.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["specialUse"],
        )
    if new_mailboxes.object_id is not None and (len(new_mailboxes.paths) > 1 or len(user_ids) > 1):
        raise InvalidInput(
            "An object ID can be set on only one mailbox.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["objectId"],
        )
    if new_mailboxes.object_id is not None and not OBJECT_ID_PATTERN.fullmatch(
        new_mailboxes.object_id
    ):
        raise InvalidInput(
            "An object ID must have 32 hexadecimal digits.",
            constraint=ValidationConstraint.PATTERN,
            path=["objectId"],
        )


async def load_existing_by_user(
    session: AsyncSession, user_ids: Sequence[int]
) -> Mapping[int, Sequence[ColumnRow]]:
    """Load the values of the users' mailboxes that must be unique."""
    names = ("user_id", "path", "object_id", "special_use")
    statement = select(*select_columns(Mailbox, names)).where(col(Mailbox.user_id).in_(user_ids))
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in (await (await session.connection()).execute(statement)).all():
        rows_by_user[row.user_id].append(row)
    return rows_by_user


def require_mailbox_capacity(
    locked: LockedAccounts,
    user_id: int,
    existing_count: int,
    new_count: int,
    *,
    path_in_input: str | None,
) -> None:
    """Raise LimitReached if an account with this many mailboxes can't get this many more."""
    limit = locked.ctx.environment.options.mailboxes_max_per_user
    if new_count and existing_count + new_count > limit:
        text = locked.prefix_username_unless_viewer(
            user_id, "The account has reached its limit of mailboxes."
        )
        path = [path_in_input] if path_in_input else []
        raise LimitReached(text, limit=limit, used=existing_count, path=path)


def _build_with_parents_or_raise(
    locked: LockedAccounts,
    user: User,
    new_paths: Sequence[str],
    new_mailboxes: NewMailboxes,
    existing: Sequence[ColumnRow],
) -> list[Mailbox]:
    """Build the mailboxes of one user, with missing parents. Raises Conflict or LimitReached."""
    _require_free_paths_and_use(locked, user, new_paths, new_mailboxes, existing)
    missing = missing_paths_with_parents(new_paths, {row.path for row in existing})
    require_mailbox_capacity(locked, user.id, len(existing), len(missing), path_in_input="paths")
    return [build_mailbox_with_next_uid_validity(locked.ctx, user, path, None) for path in missing]


def _require_free_paths_and_use(
    locked: LockedAccounts,
    user: User,
    new_paths: Sequence[str],
    new_mailboxes: NewMailboxes,
    existing: Sequence[ColumnRow],
) -> None:
    """Raise Conflict if a mailbox of the user has a path, the special use or the object ID."""
    paths = {row.path for row in existing}
    for index, path in enumerate(new_paths):
        if path in paths or path in new_paths[:index]:
            text = locked.prefix_username_unless_viewer(
                user.id, "A mailbox with this path already exists."
            )
            raise Conflict(text, path=["paths"], index=index)
    if new_mailboxes.special_use and any(
        row.special_use == new_mailboxes.special_use for row in existing
    ):
        text = locked.prefix_username_unless_viewer(
            user.id, "Another mailbox has this special use."
        )
        raise Conflict(text, path=["specialUse"])
    if new_mailboxes.object_id and any(
        row.object_id == new_mailboxes.object_id for row in existing
    ):
        raise Conflict(
            locked.prefix_username_unless_viewer(user.id, "Another mailbox has this object ID."),
            path=["objectId"],
        )
