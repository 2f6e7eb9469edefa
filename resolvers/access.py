"""Which rows a viewer can read and change, for GraphQL, downloads, search, streams and export.

Shared mailboxes are visible beside the viewer's own, one mailbox at a time (RFC 4314).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, false, or_, select
from sqlmodel import col

from mail.addresses.address_syntax import Normal
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Forbidden
from models.mailboxes.shares import MailboxShare, ShareRight, holding
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import MaybeOwned, Owned, Picked
from models.store.prepared_statements import number
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.context import Context

Rows = type[Owned] | type[MaybeOwned]


def visible(ctx: Context, table: Rows) -> ColumnElement[bool]:
    """The WHERE clause for rows of `table`: the viewer's own, and those in shared mailboxes."""
    mine = col(table.user_id) == ctx.viewer.user_id
    return mine | shared(ctx, table) if ctx.viewer.reach.shared and table in _SHARED else mine


def shared(ctx: Context, table: Rows, right: ShareRight | None = None) -> ColumnElement[bool]:
    """The WHERE clause for rows of other users' mailboxes in which the viewer has this right.

    The default is the right to see them. Rows outside mailboxes are not shared.
    """
    folder, seen = _SHARED[table]
    theirs = select(col(MailboxShare.mailbox_id)).where(
        col(MailboxShare.user_id) == ctx.viewer.user_id, holding(right or seen)
    )
    return col(folder).in_(theirs)


_SHARED: dict[Rows, tuple[Any, ShareRight]] = {
    Mailbox: (Mailbox.id, ShareRight.LOOKUP),
    Message: (Message.mailbox_id, ShareRight.READ),
}


def owned(table: type[Owned]) -> ColumnElement[bool]:
    """The WHERE clause for the viewer's own rows, in prepared selects.

    `Context.read_prepared` binds the viewer. Use it only if `sees_mail_of_others` is False, or for
    lists of own rows.
    """
    return col(table.user_id) == number("viewer")


def beyond(ctx: Context) -> bool:
    """True if the viewer can see mailboxes and messages of others, as records or because shared."""
    return ctx.viewer.reach.shared or administered(ctx)


def administered(ctx: Context) -> bool:
    """True if the viewer sees records of mailboxes and messages of users it administers."""
    viewer = ctx.viewer
    if viewer.role is Role.DOMAIN_ADMIN:
        return bool(viewer.administers) and AdminPermission.LOGIN_AS in viewer.permissions
    return viewer.role.includes(Role.ADMIN)


def records(ctx: Context, table: Rows) -> ColumnElement[bool]:
    """The WHERE clause for records of mailboxes and messages, without the content.

    Visible rows, and for administrators those of the users they manage; a DOMAIN_ADMIN needs
    LOGIN_AS. `resolvers/messages/content_access.py` decides on the content.
    """
    if not administered(ctx):
        return visible(ctx, table)
    theirs = managed(ctx, table)
    return theirs | visible(ctx, table) if ctx.viewer.reach.shared else theirs


def managed(ctx: Context, table: Rows) -> ColumnElement[bool]:
    """The WHERE clause for mailboxes, messages and files of the users the viewer manages.

    Includes the viewer's own. A DOMAIN_ADMIN needs LOGIN_AS. Matches no row without the right to
    see records of other users' mail.
    """
    if not administered(ctx):
        return false()
    return col(table.user_id).in_(select(col(User.id)).where(managed_users(ctx)))


def managed_apart(ctx: Context, table: type[Owned]) -> ColumnElement[bool]:
    """As `is_of_managed_user`, without shared rows: there the rights of the share apply."""
    theirs = managed(ctx, table)
    return theirs & ~shared(ctx, table) if ctx.viewer.reach.shared else theirs


def readable(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for mailboxes with messages that the viewer sees, at least as records."""
    if not ctx.viewer.reach.shared:
        return records(ctx, Mailbox)
    theirs = col(Mailbox.user_id) == ctx.viewer.user_id
    if administered(ctx):
        theirs = col(Mailbox.user_id).in_(select(col(User.id)).where(managed_users(ctx)))
    return theirs | shared(ctx, Mailbox, ShareRight.READ)


def visible_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users: the viewer, those of administered domains, or all."""
    viewer, there = ctx.viewer, col(User.deleted_at).is_(None)
    if viewer.role.includes(Role.ADMIN):
        return there
    own = col(User.id) == viewer.user_id
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        return there & (own | col(User.domain_id).in_(viewer.administers))
    return own & there if viewer.user_id else false()


def managed_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users the viewer can change: visible ones, with no higher role.

    A DOMAIN_ADMIN manages the users of its domains, but no administrators in them.
    """
    viewer, seen = ctx.viewer, visible_users(ctx)
    if viewer.role is Role.ROOT:
        return seen
    own = col(User.id) == viewer.user_id
    if viewer.role is Role.ADMIN:
        return seen & (own | (col(User.role) != Role.ROOT))
    return seen & (own | (col(User.role) == Role.USER))


def overseen_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for users that the viewer oversees: it can read rules, credentials and logs.

    All for an ADMIN; those it manages for a DOMAIN_ADMIN, since an administrator in a domain is
    none of its users. For the user row itself use `is_visible_user`.
    """
    if ctx.viewer.role.includes(Role.ADMIN):
        return visible_users(ctx)
    return managed_users(ctx)


def require_charge(ctx: Context, rows: Iterable[Picked], path: Sequence[str]) -> None:
    """Raise Forbidden if one of these users is in no domain that the viewer administers.

    Also for the viewer's own row: below ADMIN, users can't give rights to themselves.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return
    needed = Role.ADMIN if viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
    if any(row.domain_id not in viewer.administers for row in rows):
        raise Forbidden(f"this needs the role {needed}", requires=needed, path=path)


def maker(ctx: Context) -> dict[str, Any]:
    """The columns of a rule that name the viewer as its maker (models/users/rule_makers.py)."""
    return {"made_by": ctx.viewer.user_id or None, "made_as": ctx.viewer.role}


async def require_below(ctx: Context, name: Normal, path: Sequence[str]) -> None:
    """Raise Forbidden if this address belongs to a user that the viewer may not administer.

    For rules that read, copy or redirect mail of one address. A rule for a whole domain is stored,
    and skips such users when mail arrives or leaves.
    """
    homes = or_(col(Domain.name) == name.domain, col(DomainAlias.alias) == name.domain)
    asked = (
        select(col(User.id), col(User.role))
        .join(Address, col(Address.user_id) == col(User.id))
        .join(Domain, col(Domain.id) == col(Address.domain_id), isouter=True)
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Address.domain_id), isouter=True)
        .where(col(Address.local) == name.local, homes | col(Address.domain_id).is_(None))
    )
    viewer = ctx.viewer
    for row in await ctx.read(asked):
        if row.id != viewer.user_id and not viewer.role.administers(row.role):
            text = "the address belongs to an account above yours"
            raise Forbidden(text, requires=row.role, path=path)


def own(ctx: Context) -> int:
    """Return the viewer's user id. Raises Forbidden if the credential belongs to no user."""
    if not ctx.viewer.user_id:
        raise Forbidden("this credential belongs to no account", requires="a user's credential")
    return ctx.viewer.user_id


async def owners(ctx: Context, table: Rows, ids: Sequence[int]) -> list[int]:
    """Load the user ids of these rows, as far as the viewer sees them: the users to lock."""
    theirs = select(col(table.user_id)).where(col(table.id).in_(ids), visible(ctx, table))
    return [row.user_id for row in await ctx.read(theirs.distinct())]
