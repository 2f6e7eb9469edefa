"""Shares of mailboxes with other users (RFC 4314)."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.recipients import address_resolution
from models.addresses.tables import Address
from models.errors import Forbidden, InvalidInput, LimitReached, require_found
from models.events import journal
from models.events.event_types import EventType
from models.mailboxes.shares import MailboxShare, Rights, ShareRight, decode_rights, encode_rights
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import (
    can_see_managed_mail_records,
    is_managed_user,
    is_of_managed_user,
    is_shared,
    is_visible_or_managed,
    is_visible_user,
    require_user_id,
)
from resolvers.auth.credential_cache import mark_has_shared_mailboxes
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.administrator_shares import (
    load_administrator_id,
    log_share_of_administrator,
    select_logged_shares,
)
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    load_visible_by_ids,
    require_own_or_shared_mailbox,
)
from resolvers.mailboxes.rights import NO_RIGHTS
from resolvers.pagination import PageScan, read_union
from resolvers.sql_text import contains_text_sql

CURSOR_KIND = "shared"
MAX_GRANTEES = 100  # users that one mailbox is shared with
MAX_OWNERS = 50  # users that share with one user: a journal cursor has a position for each
SHARE_SORT_KEY = (col(MailboxShare.owner_id), col(MailboxShare.mailbox_id))


@dataclass(frozen=True, slots=True)
class Grantee:
    """The user a mailbox is shared with: by ID, or by username or address."""

    user_id: int | None = None
    username_or_address: str = ""

    def __str__(self) -> str:
        return self.username_or_address or str(self.user_id)


@dataclass(frozen=True, slots=True)
class SharedMailboxConditions:
    """Conditions of a list of shared mailboxes; all must hold. The owner 0 has no mailbox."""

    owner_id: int | None = None
    path_part: str | None = None  # matches paths that contain it


@dataclass(frozen=True, slots=True)
class SharedMailboxListing:
    """A page of the mailboxes that others share with a user and that meet the conditions."""

    user_id: int
    page_request: PageRequest
    columns: frozenset[str]
    conditions: SharedMailboxConditions = SharedMailboxConditions()


async def set_or_end_share(
    ctx: Context,
    selector: MailboxSelector,
    requested_grantee: Grantee,
    rights: Collection[ShareRight],
) -> list[ColumnRow]:
    """Set the rights of a user in a mailbox. No rights end the share.

    Any right includes LOOKUP. Owners can share, and users with the right ADMIN up to their own
    rights. Grantees can give up their share. Returns the mailbox if the viewer still sees it.
    Raises NotFound, Forbidden, InvalidInput or LimitReached.
    """
    new_rights = frozenset(rights) | ({ShareRight.LOOKUP} if rights else NO_RIGHTS)
    mailbox = await require_own_or_shared_mailbox(ctx, selector, ShareRight.LOOKUP)
    grantee = await _require_permitted_grantee_id(ctx, mailbox, requested_grantee)
    async with ctx.write_session(mailbox.user_id, grantee) as session:
        await _require_may_share(
            ctx,
            await require_own_or_shared_mailbox(
                ctx, MailboxSelector(id=mailbox.id), ShareRight.LOOKUP
            ),
            grantee,
            new_rights,
        )
        await _write_or_delete_share_if_changed(ctx, session, mailbox, (grantee, new_rights))
    if new_rights:
        ctx.call_after_commit_or_now(lambda: mark_has_shared_mailboxes(ctx.environment, grantee))
    return [row for row in await ctx.load_many(load_visible_by_ids, [mailbox.id]) if row]


async def _require_permitted_grantee_id(ctx: Context, mailbox: ColumnRow, grantee: Grantee) -> int:
    """Return the ID of the grantee.

    The user must be of the owner's domain, have a share already or be visible to the viewer, unless
    the option `share_across_domains` is set. Raises NotFound.
    """
    key = (
        grantee.user_id
        if grantee.user_id is not None
        else await address_resolution.find_sign_in_user_id(
            ctx.environment, grantee.username_or_address
        )
    )
    grantee_ids = select(col(MailboxShare.user_id)).where(
        col(MailboxShare.mailbox_id) == mailbox.id
    )
    owner_domain_id = (
        select(col(User.domain_id)).where(col(User.id) == mailbox.user_id).scalar_subquery()
    )
    is_findable = (
        (col(User.domain_id) == owner_domain_id)
        | col(User.id).in_(grantee_ids)
        | is_visible_user(ctx)
    )
    statement = select(col(User.id)).where(
        col(User.id) == (key or 0), col(User.deleted_at).is_(None)
    )
    if not ctx.environment.options.share_across_domains:
        statement = statement.where(is_findable)
    return int(
        require_found(next(iter(await ctx.read(statement)), None), str(grantee), path=["user"]).id
    )


async def _require_may_share(
    ctx: Context, mailbox: ColumnRow, grantee_id: int, new_rights: Rights
) -> None:
    """Raise Forbidden or InvalidInput if the viewer can't set these rights for this user."""
    viewer_id = require_user_id(ctx)
    if grantee_id == mailbox.user_id:
        raise InvalidInput(
            "The owner of a mailbox always has all rights.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["user"],
        )
    if viewer_id == mailbox.user_id or (grantee_id == viewer_id and not new_rights):
        return
    (has,) = await mailbox_rights.load_viewer_rights(ctx, [(mailbox.user_id, mailbox.id)])
    required_right: ShareRight | None = ShareRight.ADMIN
    if required_right in has and grantee_id != viewer_id:
        before = (await _shares_by_grantee(ctx, mailbox.id)).get(grantee_id)
        existing_rights = has | (decode_rights(before.rights) if before else NO_RIGHTS)
        required_right = next(
            iter(mailbox_rights.sorted_rights(new_rights - existing_rights)), None
        )
        if required_right is None:
            return
    text = f"Requires the right {required_right} in the mailbox."
    if grantee_id == viewer_id:
        text = "You can't change your own rights."
    raise Forbidden(text, requires=required_right, path=["rights"])


async def _shares_by_grantee(ctx: Context, mailbox_id: int) -> dict[int, ColumnRow]:
    """Load the shares of a mailbox by grantee ID."""
    statement = select(*select_columns(MailboxShare)).where(
        col(MailboxShare.mailbox_id) == mailbox_id
    )
    return {row.user_id: row for row in await ctx.read(statement)}


async def _write_or_delete_share_if_changed(
    ctx: Context, session: AsyncSession, mailbox: ColumnRow, grantee_and_rights: tuple[int, Rights]
) -> None:
    """Write the share if it changes, and record the change for owner and grantee.

    The share belongs to the administrator who gives rights, until the owner sets the rights. The
    shares that a grantee gives belong to the administrator who shared with the grantee.
    """
    grantee, new_rights = grantee_and_rights
    shares = await _shares_by_grantee(ctx, mailbox.id)
    before = shares.get(grantee)
    had = decode_rights(before.rights) if before else NO_RIGHTS
    administrator_id = await load_administrator_id(ctx, mailbox.user_id)
    maker_id = before.made_by if before else None
    if new_rights - had or ctx.viewer.user_id == mailbox.user_id:
        own_share = shares.get(ctx.viewer.user_id)
        maker_id = administrator_id or (own_share.made_by if own_share else None)
    if new_rights == had and (not before or maker_id == before.made_by):
        return
    if not before:
        await _require_share_capacity(ctx, mailbox.user_id, grantee, len(shares))
    last = await ctx.record_change(
        session, mailbox.user_id, EventType.MAILBOX_UPDATED, [mailbox.id]
    )
    connection = await session.connection()
    event_type = EventType.MAILBOX_DELETED
    if new_rights:
        # the grantee gets no events from before the share; of messages, from before READ
        since = before.since if before and ShareRight.READ not in new_rights - had else last
        row = {"rights": encode_rights(new_rights), "since": since, "made_by": maker_id}
        statement = insert_with_conflict(ctx.environment.database.dialect, MailboxShare).values(
            mailbox_id=mailbox.id, user_id=grantee, owner_id=mailbox.user_id, **row
        )
        keys = ["mailbox_id", "user_id"]
        await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=row))
        event_type = EventType.MAILBOX_UPDATED if before else EventType.MAILBOX_CREATED
    is_this_share = and_(
        col(MailboxShare.mailbox_id) == mailbox.id, col(MailboxShare.user_id) == grantee
    )
    if administrator_id:
        share_row = (await connection.execute(select_logged_shares(is_this_share))).one()
        await log_share_of_administrator(ctx, session, share_row, had, new_rights)
    if not new_rights:
        await connection.execute(delete(MailboxShare).where(is_this_share))
    await ctx.record_change(
        session, grantee, event_type, [mailbox.id], path=mailbox.path, owner=mailbox.user_id
    )


async def _require_share_capacity(
    ctx: Context, owner_id: int, grantee_id: int, grantee_count: int
) -> None:
    """Raise LimitReached if the mailbox has too many grantees, or the grantee too many owners."""
    if grantee_count >= MAX_GRANTEES:
        text = "The mailbox is shared with the maximum number of users."
        raise LimitReached(text, limit=MAX_GRANTEES, used=grantee_count, path=["user"])
    statement = select(func.count(col(MailboxShare.owner_id).distinct()).label("many")).where(
        col(MailboxShare.user_id) == grantee_id, col(MailboxShare.owner_id) != owner_id
    )
    (row,) = await ctx.read(statement)
    if row.many >= MAX_OWNERS:
        text = "The account has the maximum number of mailboxes that others share."
        raise LimitReached(text, limit=MAX_OWNERS, used=row.many, path=["user"])


async def load_grantee_ids(ctx: Context, owner_ids: Sequence[int]) -> list[int]:
    """Return the IDs of the users that these owners share mailboxes with."""
    is_share_of_owner = col(MailboxShare.mailbox_id).in_(
        select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(owner_ids))
    )
    statement = select(col(MailboxShare.user_id)).where(is_share_of_owner).distinct()
    return [row.user_id for row in await ctx.read(statement)]


async def load_sharing_owner_ids(ctx: Context, user_ids: Sequence[int]) -> list[int]:
    """Return the IDs of the users that share mailboxes with these users."""
    statement = select(col(MailboxShare.owner_id)).where(col(MailboxShare.user_id).in_(user_ids))
    return [row.owner_id for row in await ctx.read(statement.distinct())]


async def end_shares(ctx: Context, session: AsyncSession, condition: ColumnElement[bool]) -> None:
    """Delete the shares that the condition selects, and record it for their grantees.

    Owners get no event.
    """
    columns = select_columns(MailboxShare, ("mailbox_id", "user_id", "owner_id"))
    statement = select(*columns, col(Mailbox.path)).join(
        Mailbox, col(Mailbox.id) == col(MailboxShare.mailbox_id)
    )
    connection = await session.connection()
    rows = (await connection.execute(statement.where(condition).order_by(*SHARE_SORT_KEY))).all()
    if not rows:
        return
    await journal.lock_streams(session, sorted({row.user_id for row in rows}))
    await connection.execute(delete(MailboxShare).where(condition))
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in rows:
        rows_by_user[row.user_id].append(row)
    entries = {
        user: ctx.journal_entries(
            EventType.MAILBOX_DELETED,
            [row.mailbox_id for row in user_rows],
            path=[row.path for row in user_rows],
            owner=[row.owner_id for row in user_rows],
        )
        for user, user_rows in rows_by_user.items()
    }
    await journal.record_entries_in_streams_or_raise(session, entries, at=ctx.environment.now())


async def end_shares_of_users(ctx: Context, session: AsyncSession, user_ids: Sequence[int]) -> None:
    """Delete all shares of and with users that are being deleted.

    Records it for the other users.
    """
    columns = select_columns(MailboxShare, ("mailbox_id", "owner_id"))
    is_of_users = col(MailboxShare.user_id).in_(user_ids)
    by_them = col(MailboxShare.owner_id).in_(user_ids)
    connection = await session.connection()
    statement = select(*columns).where(is_of_users, ~by_them).distinct()
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for row in (await connection.execute(statement)).all():
        owners[row.owner_id].append(row.mailbox_id)
    if owners:
        await journal.lock_streams(session, sorted(owners))
        event_type = EventType.MAILBOX_UPDATED
        entries = {
            owner: ctx.journal_entries(event_type, mailboxes) for owner, mailboxes in owners.items()
        }
        await journal.record_entries_in_streams_or_raise(session, entries, at=ctx.environment.now())
    mailboxes = select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(user_ids))
    await end_shares(ctx, session, is_of_users | col(MailboxShare.mailbox_id).in_(mailboxes))


async def load_visible_shares_by_mailbox(
    ctx: Context, mailbox_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the shares of each mailbox: one list for each id, in the given order.

    The owner, administrators who can see the owner's mail, and users with the right ADMIN see all
    shares of a mailbox. Others see only the share with themselves.
    """
    is_own_or_managed = (
        is_of_managed_user(ctx, Mailbox)
        if can_see_managed_mail_records(ctx)
        else col(Mailbox.user_id) == require_user_id(ctx)
    )
    is_visible_share = is_own_or_managed | is_shared(ctx, Mailbox, ShareRight.ADMIN)
    statement = (
        select(*select_columns(MailboxShare, ("mailbox_id", "user_id", "rights")))
        .join(Mailbox, col(Mailbox.id) == col(MailboxShare.mailbox_id))
        .where(
            col(MailboxShare.mailbox_id).in_(mailbox_ids),
            is_visible_share | (col(MailboxShare.user_id) == ctx.viewer.user_id),
        )
        .order_by(col(MailboxShare.user_id))
    )
    rows: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement):
        rows[row.mailbox_id].append(row)
    return [rows[key] for key in mailbox_ids]


async def load_user_names(ctx: Context, user_ids: list[int]) -> list[ColumnRow | None]:
    """Load the names and main addresses of these users, in their order."""
    main = and_(col(Address.user_id) == col(User.id), col(Address.main))
    statement = select(
        *select_columns(User, ("id", "username", "name")),
        col(Address.display_address).label("address"),
    ).outerjoin(Address, main)
    return await pagination.read_by_keys(ctx, statement, col(User.id), user_ids)


def _listing_conditions(ctx: Context, listing: SharedMailboxListing) -> list[ColumnElement[bool]]:
    user = col(MailboxShare.user_id)
    is_own = user == ctx.viewer.user_id
    if can_see_managed_mail_records(ctx):
        is_own |= user.in_(select(col(User.id)).where(is_managed_user(ctx)))
    clauses = [user == listing.user_id, is_own, is_visible_or_managed(ctx, Mailbox)]
    conditions = listing.conditions
    if conditions.owner_id is not None:
        clauses.append(col(MailboxShare.owner_id) == conditions.owner_id)
    if conditions.path_part:
        clauses.append(contains_text_sql(col(Mailbox.path), conditions.path_part))
    return clauses


async def load_owner_ids_by_name(ctx: Context, names: list[str]) -> list[int]:
    """Load the ids of the users with these usernames or addresses; 0 for unknown ones.

    The viewer need not see the users: the ids may only be compared with owners of shared mailboxes.
    """
    ids = [await address_resolution.find_sign_in_user_id(ctx.environment, name) for name in names]
    return [user_id or 0 for user_id in ids]


def _shared_mailboxes_query(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    rows = select(*select_columns(Mailbox, columns), *SHARE_SORT_KEY)
    return rows.join(MailboxShare, col(MailboxShare.mailbox_id) == col(Mailbox.id))


async def load_visible_shared_mailbox_pages(
    ctx: Context, listings: list[SharedMailboxListing]
) -> list[Page[ColumnRow]]:
    """Load pages of mailboxes shared with users: by owner, the oldest mailbox first."""
    rows = _shared_mailboxes_query(frozenset[str]().union(*(key.columns for key in listings)))
    scans = [
        PageScan(
            rows.where(*_listing_conditions(ctx, key)),
            key.page_request,
            SHARE_SORT_KEY,
            is_descending=False,
        )
        for key in listings
    ]
    return await pagination.read_pages(ctx, scans)


async def count_visible_shared_mailboxes(
    ctx: Context, listings: list[SharedMailboxListing]
) -> list[int]:
    """Count the mailboxes of these listings."""
    count_column = func.count().label("many")
    scans = [
        select(count_column)
        .select_from(MailboxShare)
        .join(Mailbox, col(MailboxShare.mailbox_id) == col(Mailbox.id))
        .where(*_listing_conditions(ctx, key))
        for key in listings
    ]
    return [row.many for (row,) in await read_union(ctx, scans)]
