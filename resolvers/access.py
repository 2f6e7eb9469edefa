"""Whose rows a viewer may use. Every road asks here: GraphQL, bytes, search, streams, export.

What is shared is seen beside the own, folder by folder (RFC 4314).
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
    """The WHERE clause for rows of `table`: the viewer's own, and what others share."""
    mine = col(table.user_id) == ctx.viewer.user_id
    return mine | shared(ctx, table) if ctx.viewer.reach.shared and table in _SHARED else mine


def shared(ctx: Context, table: Rows, right: ShareRight | None = None) -> ColumnElement[bool]:
    """The WHERE clause for rows of others' folders in which the viewer has this right.

    By default the one to see them. What lies in no folder is nobody else's.
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
    """The viewer's own, for selects that are made once: `Context.find` names the viewer.

    Who sees `beyond` that is not served by them, but for lists that are the own.
    """
    return col(table.user_id) == number("viewer")


def beyond(ctx: Context) -> bool:
    """Whether the viewer may see folders and messages of others, as records or because shared."""
    return ctx.viewer.reach.shared or administered(ctx)


def administered(ctx: Context) -> bool:
    """Whether the viewer sees more folders and messages than their own, as records."""
    viewer = ctx.viewer
    if viewer.role is Role.DOMAIN_ADMIN:
        return bool(viewer.administers) and AdminPermission.LOGIN_AS in viewer.permissions
    return viewer.role.includes(Role.ADMIN)


def records(ctx: Context, table: Rows) -> ColumnElement[bool]:
    """The WHERE clause for folders and messages, without what is in them.

    What is visible, and for administrators that of the accounts they manage; a DOMAIN_ADMIN
    needs LOGIN_AS. What is in them is another matter: `resolvers/messages/content_access.py`.
    """
    if not administered(ctx):
        return visible(ctx, table)
    theirs = managed(ctx, table)
    return theirs | visible(ctx, table) if ctx.viewer.reach.shared else theirs


def managed(ctx: Context, table: Rows) -> ColumnElement[bool]:
    """The WHERE clause for folders, messages and files of the accounts that the viewer manages.

    The viewer's own are among them. A DOMAIN_ADMIN needs LOGIN_AS. Without the right to see other
    accounts' mail as records, it matches nothing.
    """
    if not administered(ctx):
        return false()
    return col(table.user_id).in_(select(col(User.id)).where(managed_users(ctx)))


def managed_apart(ctx: Context, table: type[Owned]) -> ColumnElement[bool]:
    """As `managed`, without what is shared with the viewer: there the rights of the share apply."""
    theirs = managed(ctx, table)
    return theirs & ~shared(ctx, table) if ctx.viewer.reach.shared else theirs


def readable(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for folders whose messages the viewer sees, if only as records."""
    if not ctx.viewer.reach.shared:
        return records(ctx, Mailbox)
    theirs = col(Mailbox.user_id) == ctx.viewer.user_id
    if administered(ctx):
        theirs = col(Mailbox.user_id).in_(select(col(User.id)).where(managed_users(ctx)))
    return theirs | shared(ctx, Mailbox, ShareRight.READ)


def visible_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for accounts: one's own, those of one's domains, or all."""
    viewer, there = ctx.viewer, col(User.deleted_at).is_(None)
    if viewer.role.includes(Role.ADMIN):
        return there
    own = col(User.id) == viewer.user_id
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        return there & (own | col(User.domain_id).in_(viewer.administers))
    return own & there if viewer.user_id else false()


def managed_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for accounts one may change: visible ones, and of no higher standing.

    A DOMAIN_ADMIN manages the users of the domains, and no administrator who lives there.
    """
    viewer, seen = ctx.viewer, visible_users(ctx)
    if viewer.role is Role.ROOT:
        return seen
    own = col(User.id) == viewer.user_id
    if viewer.role is Role.ADMIN:
        return seen & (own | (col(User.role) != Role.ROOT))
    return seen & (own | (col(User.role) == Role.USER))


def overseen_users(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for accounts whose rules, credentials and logs the viewer may read.

    For an ADMIN all; for a DOMAIN_ADMIN those that they manage, since an administrator who lives
    in a domain is none of its users. The record of an account itself has `visible_users`.
    """
    if ctx.viewer.role.includes(Role.ADMIN):
        return visible_users(ctx)
    return managed_users(ctx)


def require_charge(ctx: Context, rows: Iterable[Picked], path: Sequence[str]) -> None:
    """Forbidden where one of these accounts lives in no domain that the viewer is in charge of.

    It may be the own: what is given to users, nobody below an ADMIN gives to themselves.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return
    needed = Role.ADMIN if viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
    if any(row.domain_id not in viewer.administers for row in rows):
        raise Forbidden(f"this needs the role {needed}", requires=needed, path=path)


def maker(ctx: Context) -> dict[str, Any]:
    """The columns of a rule that name the viewer as its maker: `models/users/rule_makers.py`."""
    return {"made_by": ctx.viewer.user_id or None, "made_as": ctx.viewer.role}


async def require_below(ctx: Context, name: Normal, path: Sequence[str]) -> None:
    """Raise Forbidden if this address belongs to an account that the viewer may not administer.

    For rules that read, copy or redirect mail of one address. A rule for a whole domain is
    stored, and skips such accounts when mail comes or leaves.
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
    """The viewer's account; Forbidden where the credential belongs to nobody."""
    if not ctx.viewer.user_id:
        raise Forbidden("this credential belongs to no account", requires="a user's credential")
    return ctx.viewer.user_id


async def owners(ctx: Context, table: Rows, ids: Sequence[int]) -> list[int]:
    """Whose these rows are, as far as the viewer may see: the accounts to lock."""
    theirs = select(col(table.user_id)).where(col(table.id).in_(ids), visible(ctx, table))
    return [row.user_id for row in await ctx.read(theirs.distinct())]
