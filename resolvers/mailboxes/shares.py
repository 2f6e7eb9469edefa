"""Shares of mailboxes with other users (RFC 4314)."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.recipients import address_resolution
from models.addresses.tables import Address
from models.errors import Forbidden, Invalid, LimitReached, found
from models.events import journal
from models.events.journal import ChangeKind
from models.mailboxes.shares import MailboxShare, Rights, ShareRight, rights_of, written
from models.mailboxes.tables import Mailbox
from models.store.columns import Picked, insert_or, picked
from models.store.keyset_pages import Ask, Page
from models.users.tables import User
from resolvers import pagination
from resolvers.access import administered, managed_users, own, records, shared, visible_users
from resolvers.auth.credential_cache import widen
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import Named, by_ids, find
from resolvers.mailboxes.rights import NONE
from resolvers.pagination import Scan, together

ORDER = "shared"
GRANTEES = 100  # users that one mailbox is shared with
OWNERS = 50  # users that share with one user: a journal cursor has a position for each
PLACE = (col(MailboxShare.owner_id), col(MailboxShare.mailbox_id))


@dataclass(frozen=True, slots=True)
class Grantee:
    """The user a mailbox is shared with: by ID, or by username or address."""

    id: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.id)


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of the mailboxes that others share with a user."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


async def put(
    ctx: Context, name: Named, who: Grantee, rights: Collection[ShareRight]
) -> list[Picked]:
    """Set the rights of a user in a mailbox. No rights end the share.

    Any right includes LOOKUP. Owners can share, and users with the right ADMIN up to their own
    rights. Grantees can give up their share. Returns the mailbox if the viewer still sees it.
    Raises NotFound, Forbidden, InvalidInput or LimitReached.
    """
    given = frozenset(rights) | ({ShareRight.LOOKUP} if rights else NONE)
    mailbox = await find(ctx, name, ShareRight.LOOKUP)
    grantee = await _grantee(ctx, mailbox, who)
    async with ctx.write(mailbox.user_id, grantee) as session:
        await _check(ctx, await find(ctx, Named(id=mailbox.id), ShareRight.LOOKUP), grantee, given)
        await _write(ctx, session, mailbox, (grantee, given))
    if given:
        ctx.afterwards(lambda: widen(ctx.world, grantee))
    return [row for row in await ctx.load_all(by_ids, [mailbox.id]) if row]


async def _grantee(ctx: Context, box: Picked, who: Grantee) -> int:
    """Return the ID of the grantee.

    The user must be of the owner's domain, have a share already or be visible to the viewer, unless
    the option `share_across_domains` is set. Raises NotFound.
    """
    key = who.id if who.id is not None else await address_resolution.login_of(ctx.world, who.name)
    known = select(col(MailboxShare.user_id)).where(col(MailboxShare.mailbox_id) == box.id)
    home = select(col(User.domain_id)).where(col(User.id) == box.user_id).scalar_subquery()
    near = (col(User.domain_id) == home) | col(User.id).in_(known) | visible_users(ctx)
    statement = select(col(User.id)).where(
        col(User.id) == (key or 0), col(User.deleted_at).is_(None)
    )
    if not ctx.world.options.share_across_domains:
        statement = statement.where(near)
    return int(found(next(iter(await ctx.read(statement)), None), str(who), path=["user"]).id)


async def _check(ctx: Context, box: Picked, grantee: int, given: Rights) -> None:
    """Raise Forbidden or InvalidInput if the viewer can't set these rights for this user."""
    mine = own(ctx)
    if grantee == box.user_id:
        raise Invalid("the owner has all rights", constraint="exclusive", path=["user"])
    if mine == box.user_id or (grantee == mine and not given):
        return
    (has,) = await mailbox_rights.rights(ctx, [(box.user_id, box.id)])
    needed: ShareRight | None = ShareRight.ADMIN
    if needed in has and grantee != mine:
        before = (await _standing(ctx, box.id)).get(grantee)
        known = has | (rights_of(before.rights) if before else NONE)
        needed = next(iter(mailbox_rights.ordered(given - known)), None)
        if needed is None:
            return
    text = f"this needs the right {needed} in the folder"
    if grantee == mine:
        text = "nobody gives rights to themselves"
    raise Forbidden(text, requires=needed, path=["rights"])


async def _standing(ctx: Context, box: int) -> dict[int, Picked]:
    """Load the shares of a mailbox by grantee ID."""
    statement = select(*picked(MailboxShare)).where(col(MailboxShare.mailbox_id) == box)
    return {row.user_id: row for row in await ctx.read(statement)}


async def _write(ctx: Context, session: AsyncSession, box: Picked, new: tuple[int, Rights]) -> None:
    """Write the share if it changes, and record the change for owner and grantee."""
    grantee, given = new
    shares = await _standing(ctx, box.id)
    before = shares.get(grantee)
    had = rights_of(before.rights) if before else NONE
    if given == had:
        return
    if not before:
        await _check_room(ctx, box.user_id, grantee, len(shares))
    last = await ctx.record(session, box.user_id, ChangeKind.MAILBOX_UPDATED, [box.id])
    connection, this = await session.connection(), col(Mailbox.id) == box.id
    await connection.execute(update(Mailbox).where(this).values(modify_index=last))
    if given:
        # the grantee gets no events from before the share; of messages, from before READ
        since = before.since if before and ShareRight.READ not in given - had else last
        row = {"rights": written(given), "since": since}
        kept = insert_or(ctx.world.database.dialect, MailboxShare).values(
            mailbox_id=box.id, user_id=grantee, owner_id=box.user_id, **row
        )
        keys = ["mailbox_id", "user_id"]
        await connection.execute(kept.on_conflict_do_update(index_elements=keys, set_=row))
        kind = ChangeKind.MAILBOX_UPDATED if before else ChangeKind.MAILBOX_CREATED
    else:
        which = (col(MailboxShare.mailbox_id) == box.id, col(MailboxShare.user_id) == grantee)
        await connection.execute(delete(MailboxShare).where(*which))
        kind = ChangeKind.MAILBOX_DELETED
    await ctx.record(session, grantee, kind, [box.id], path=box.path, owner=box.user_id)


async def _check_room(ctx: Context, owner: int, grantee: int, many: int) -> None:
    """Raise LimitReached if the mailbox has too many grantees, or the grantee too many owners."""
    if many >= GRANTEES:
        text = "the folder is shared with too many"
        raise LimitReached(text, limit=GRANTEES, used=many, path=["user"])
    statement = select(func.count(col(MailboxShare.owner_id).distinct()).label("many")).where(
        col(MailboxShare.user_id) == grantee, col(MailboxShare.owner_id) != owner
    )
    (row,) = await ctx.read(statement)
    if row.many >= OWNERS:
        text = "too many share with this account"
        raise LimitReached(text, limit=OWNERS, used=row.many, path=["user"])


async def grantees(ctx: Context, owners: Sequence[int]) -> list[int]:
    """Return the IDs of the users that these owners share mailboxes with."""
    theirs = col(MailboxShare.mailbox_id).in_(
        select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(owners))
    )
    statement = select(col(MailboxShare.user_id)).where(theirs).distinct()
    return [row.user_id for row in await ctx.read(statement)]


async def benefactors(ctx: Context, users: Sequence[int]) -> list[int]:
    """Return the IDs of the users that share mailboxes with these users."""
    statement = select(col(MailboxShare.owner_id)).where(col(MailboxShare.user_id).in_(users))
    return [row.owner_id for row in await ctx.read(statement.distinct())]


async def end(ctx: Context, session: AsyncSession, which: ColumnElement[bool]) -> None:
    """Delete the shares that the condition selects, and record it for their grantees.

    Owners get no event.
    """
    columns = picked(MailboxShare, ("mailbox_id", "user_id", "owner_id"))
    statement = select(*columns, col(Mailbox.path)).join(
        Mailbox, col(Mailbox.id) == col(MailboxShare.mailbox_id)
    )
    connection = await session.connection()
    rows = (await connection.execute(statement.where(which).order_by(*PLACE))).all()
    if not rows:
        return
    await journal.lock(session, sorted({row.user_id for row in rows}))
    await connection.execute(delete(MailboxShare).where(which))
    lost: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        lost[row.user_id].append(row)
    told = {
        user: ctx.entries(
            ChangeKind.MAILBOX_DELETED,
            [row.mailbox_id for row in theirs],
            path=[row.path for row in theirs],
            owner=[row.owner_id for row in theirs],
        )
        for user, theirs in lost.items()
    }
    await journal.record_all(session, told, at=ctx.world.now())


async def leave(ctx: Context, session: AsyncSession, users: Sequence[int]) -> None:
    """Delete all shares of and with users that are being deleted.

    Records it for the other users.
    """
    columns = picked(MailboxShare, ("mailbox_id", "owner_id"))
    theirs, by_them = col(MailboxShare.user_id).in_(users), col(MailboxShare.owner_id).in_(users)
    connection = await session.connection()
    statement = select(*columns).where(theirs, ~by_them).distinct()
    owners: defaultdict[int, list[int]] = defaultdict(list)
    for row in (await connection.execute(statement)).all():
        owners[row.owner_id].append(row.mailbox_id)
    if owners:
        await journal.lock(session, sorted(owners))
        kind = ChangeKind.MAILBOX_UPDATED
        told = {owner: ctx.entries(kind, mailboxes) for owner, mailboxes in owners.items()}
        await journal.record_all(session, told, at=ctx.world.now())
    mailboxes = select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(users))
    await end(ctx, session, theirs | col(MailboxShare.mailbox_id).in_(mailboxes))


async def of_boxes(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """Load the shares of these mailboxes, in their order.

    Owners, users with the right ADMIN and administrators see all shares; others only their own.
    """
    all_of = records(ctx, Mailbox) if administered(ctx) else col(Mailbox.user_id) == own(ctx)
    seen = all_of | shared(ctx, Mailbox, ShareRight.ADMIN)
    statement = (
        select(*picked(MailboxShare, ("mailbox_id", "user_id", "rights")))
        .join(Mailbox, col(Mailbox.id) == col(MailboxShare.mailbox_id))
        .where(
            col(MailboxShare.mailbox_id).in_(keys),
            seen | (col(MailboxShare.user_id) == ctx.viewer.user_id),
        )
        .order_by(col(MailboxShare.user_id))
    )
    rows: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(statement):
        rows[row.mailbox_id].append(row)
    return [rows[key] for key in keys]


async def names(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the names and main addresses of these users, in their order."""
    main = and_(col(Address.user_id) == col(User.id), col(Address.main))
    statement = select(
        *picked(User, ("id", "username", "name")), col(Address.shown).label("address")
    ).outerjoin(Address, main)
    return await pagination.by_keys(ctx, statement, col(User.id), ids)


def _where(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    user = col(MailboxShare.user_id)
    mine = user == ctx.viewer.user_id
    if administered(ctx):
        mine |= user.in_(select(col(User.id)).where(managed_users(ctx)))
    return [user == key.user_id, mine, records(ctx, Mailbox)]


def _shares(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    rows = select(*picked(Mailbox, columns), *PLACE)
    return rows.join(MailboxShare, col(MailboxShare.mailbox_id) == col(Mailbox.id))


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load pages of mailboxes shared with users: by owner, the oldest mailbox first."""
    rows = _shares(frozenset[str]().union(*(key.columns for key in keys)))
    scans = [Scan(rows.where(*_where(ctx, key)), key.ask, PLACE, falling=False) for key in keys]
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the mailboxes of these listings."""
    many = func.count().label("many")
    scans = [
        select(many)
        .select_from(MailboxShare)
        .join(Mailbox, col(MailboxShare.mailbox_id) == col(Mailbox.id))
        .where(*_where(ctx, key))
        for key in keys
    ]
    return [row.many for (row,) in await together(ctx, scans)]
