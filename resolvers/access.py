"""Which rows a viewer can read and change, for GraphQL, downloads, search, streams and export.

Shared mailboxes are visible beside the viewer's own, one mailbox at a time (RFC 4314).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, false, or_, select
from sqlmodel import col

from mail.addresses.address_syntax import NormalizedAddress
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import CredentialWithoutUser, Forbidden
from models.mailboxes.shares import MailboxShare, ShareRight, has_right
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import ColumnRow, OptionallyOwnedRow, UserOwnedRow
from models.store.prepared_statements import integer_parameter
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.context import Context
from resolvers.viewer import GuardRule

OwnedTable = type[UserOwnedRow] | type[OptionallyOwnedRow]


def is_own_or_shared(ctx: Context, table: OwnedTable) -> ColumnElement[bool]:
    """The WHERE clause for rows of `table`: the viewer's own, and those in shared mailboxes."""
    is_own = col(table.user_id) == ctx.viewer.user_id
    return (
        is_own | is_shared(ctx, table)
        if ctx.viewer.share_visibility.has_shared_mailboxes and table in _SHARED_TABLES
        else is_own
    )


def is_shared(
    ctx: Context, table: OwnedTable, right: ShareRight | None = None
) -> ColumnElement[bool]:
    """The WHERE clause for rows of other users' mailboxes in which the viewer has this right.

    The default is the right to see them. Rows outside mailboxes are not shared.
    """
    mailbox_column, visibility_right = _SHARED_TABLES[table]
    shared_mailboxes = select(col(MailboxShare.mailbox_id)).where(
        col(MailboxShare.user_id) == ctx.viewer.user_id, has_right(right or visibility_right)
    )
    return col(mailbox_column).in_(shared_mailboxes)


_SHARED_TABLES: dict[OwnedTable, tuple[Any, ShareRight]] = {
    Mailbox: (Mailbox.id, ShareRight.LOOKUP),
    Message: (Message.mailbox_id, ShareRight.READ),
}


def is_own_prepared(table: type[UserOwnedRow]) -> ColumnElement[bool]:
    """The WHERE clause for the viewer's own rows, in prepared selects.

    `Context.read_prepared` binds the viewer. Use it only if `can_see_mail_of_others` is False, or
    for lists of own rows.
    """
    return col(table.user_id) == integer_parameter("viewer")


def can_see_mail_of_others(ctx: Context) -> bool:
    """True if the viewer can see mailboxes and messages of others, as records or because shared."""
    return ctx.viewer.share_visibility.has_shared_mailboxes or can_see_managed_mail_records(ctx)


def can_see_managed_mail_records(ctx: Context) -> bool:
    """True if the viewer sees records of mailboxes and messages of users it administers."""
    viewer = ctx.viewer
    if viewer.role is Role.DOMAIN_ADMIN:
        return (
            bool(viewer.administered_domains) and AdminPermission.IMPERSONATE in viewer.permissions
        )
    return viewer.role.includes(Role.ADMIN)


def is_visible_or_managed(ctx: Context, table: OwnedTable) -> ColumnElement[bool]:
    """The WHERE clause for records of mailboxes and messages, without the content.

    Visible rows, and for administrators those of the users they manage; a DOMAIN_ADMIN needs
    IMPERSONATE. `resolvers/messages/content_access.py` decides on the content.
    """
    if not can_see_managed_mail_records(ctx):
        return is_own_or_shared(ctx, table)
    is_managed = is_of_managed_user(ctx, table)
    return (
        is_managed | is_own_or_shared(ctx, table)
        if ctx.viewer.share_visibility.has_shared_mailboxes
        else is_managed
    )


def is_of_managed_user(ctx: Context, table: OwnedTable) -> ColumnElement[bool]:
    """The WHERE clause for mailboxes, messages and files of the users the viewer manages.

    Includes the viewer's own. A DOMAIN_ADMIN needs IMPERSONATE. Matches no row without the right to
    see records of other users' mail.
    """
    if not can_see_managed_mail_records(ctx):
        return false()
    return col(table.user_id).in_(select(col(User.id)).where(is_managed_user(ctx)))


def is_of_managed_user_unshared(ctx: Context, table: type[UserOwnedRow]) -> ColumnElement[bool]:
    """As `is_of_managed_user`, without shared rows: there the rights of the share apply."""
    is_managed = is_of_managed_user(ctx, table)
    return (
        is_managed & ~is_shared(ctx, table)
        if ctx.viewer.share_visibility.has_shared_mailboxes
        else is_managed
    )


def is_mailbox_with_visible_records(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for mailboxes with messages that the viewer sees, at least as records."""
    if not ctx.viewer.share_visibility.has_shared_mailboxes:
        return is_visible_or_managed(ctx, Mailbox)
    is_own_or_managed = col(Mailbox.user_id) == ctx.viewer.user_id
    if can_see_managed_mail_records(ctx):
        is_own_or_managed = col(Mailbox.user_id).in_(
            select(col(User.id)).where(is_managed_user(ctx))
        )
    return is_own_or_managed | is_shared(ctx, Mailbox, ShareRight.READ)


def is_visible_user(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users: the viewer, those of administered domains, or all."""
    viewer, is_not_deleted = ctx.viewer, col(User.deleted_at).is_(None)
    if viewer.role.includes(Role.ADMIN):
        return is_not_deleted
    is_viewer = col(User.id) == viewer.user_id
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administered_domains:
        return is_not_deleted & (is_viewer | col(User.domain_id).in_(viewer.administered_domains))
    return is_viewer & is_not_deleted if viewer.user_id else false()


def is_managed_user(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users the viewer can change: visible ones, with no higher role.

    A DOMAIN_ADMIN manages the users of its domains, but no administrators in them.
    """
    viewer, is_visible_sql = ctx.viewer, is_visible_user(ctx)
    if viewer.role is Role.ROOT:
        return is_visible_sql
    is_viewer = col(User.id) == viewer.user_id
    if viewer.role is Role.ADMIN:
        return is_visible_sql & (is_viewer | (col(User.role) != Role.ROOT))
    return is_visible_sql & (is_viewer | (col(User.role) == Role.USER))


def is_overseen_user(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users that the viewer oversees: it can read rules, credentials and logs.

    All for an ADMIN; those it manages for a DOMAIN_ADMIN, since an administrator in a domain is
    none of its users. For the user row itself use `is_visible_user`.
    """
    if ctx.viewer.role.includes(Role.ADMIN):
        return is_visible_user(ctx)
    return is_managed_user(ctx)


def require_users_in_administered_domains(
    ctx: Context, users: Iterable[ColumnRow], path: Sequence[str]
) -> None:
    """Raise Forbidden if one of these users is in no domain that the viewer administers.

    This includes the viewer's own row.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return
    required_role = Role.ADMIN if viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
    if any(row.domain_id not in viewer.administered_domains for row in users):
        raise Forbidden(f"Requires the role {required_role}.", requires=required_role, path=path)


def require_full_scope_for_other_users(ctx: Context, user_ids: Iterable[int]) -> None:
    """Raise Forbidden if one of the users is not the viewer, and the credential lacks FULL.

    The scope SETTINGS is enough for the settings of the viewer's own account.
    """
    if set(user_ids) - {ctx.viewer.user_id}:
        ctx.viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, scope=Scope.FULL))


def maker_columns(ctx: Context) -> dict[str, Any]:
    """The columns of a rule that name the viewer as its maker (models/users/rule_makers.py)."""
    return {"made_by": ctx.viewer.user_id or None, "made_as": ctx.viewer.role}


async def require_role_to_administer_owner(
    ctx: Context, address: NormalizedAddress, path: Sequence[str]
) -> None:
    """Raise Forbidden if this address belongs to a user that the viewer may not administer.

    For rules that read, copy or redirect mail of one address. A rule for a whole domain is stored,
    and skips such users when mail arrives or leaves.
    """
    is_in_domain = or_(col(Domain.name) == address.domain, col(DomainAlias.alias) == address.domain)
    statement = (
        select(col(User.id), col(User.role))
        .join(Address, col(Address.user_id) == col(User.id))
        .join(Domain, col(Domain.id) == col(Address.domain_id), isouter=True)
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Address.domain_id), isouter=True)
        .where(
            col(Address.local) == address.local_part,
            is_in_domain | col(Address.domain_id).is_(None),
        )
    )
    viewer = ctx.viewer
    for row in await ctx.read(statement):
        if row.id != viewer.user_id and not viewer.role.administers(row.role):
            text = "The address belongs to an account with a higher role than the caller."
            raise Forbidden(text, requires=row.role, path=path)


def require_user_id(ctx: Context) -> int:
    """Return the viewer's user id. Raises CredentialWithoutUser if there is none."""
    if not ctx.viewer.user_id:
        raise CredentialWithoutUser(
            "The credential belongs to no account: use a user's credential.",
            requires="a user's credential",
        )
    return ctx.viewer.user_id


async def load_visible_owner_ids(ctx: Context, table: OwnedTable, ids: Sequence[int]) -> list[int]:
    """Load the user ids of these rows, as far as the viewer sees them: the users to lock."""
    statement = select(col(table.user_id)).where(
        col(table.id).in_(ids), is_own_or_shared(ctx, table)
    )
    return [row.user_id for row in await ctx.read(statement.distinct())]
