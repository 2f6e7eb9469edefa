"""Who may send as an address: one rule for each message, and for lists of senders.

A user may send as what `fromWhitelist` has, as addresses that are the user's, as those of
somebody who shares a folder to send as them, and as a FORWARD that names the user; each only
where the address is one to be sent as.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Select,
    and_,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.addresses.address_syntax import normal
from mail.recipients import address_resolution
from mail.recipients.batch_resolution import resolve_all
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain, DomainAlias
from models.errors import Forbidden, Invalid, NotFound
from models.mailboxes.shares import MailboxShare, ShareRight, holding
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.prepared_statements import Prepared, number
from resolvers.context import Context
from resolvers.submission.sender_patterns import permitted

_MAIN = Prepared(
    select(*picked(Address, {"id", "shown", "name"})).where(
        col(Address.user_id) == number("user"), col(Address.main), col(Address.active)
    )
)


class Grant(NamedTuple):
    """The right to send as an address, by the row it leads to; None: by fromWhitelist."""

    row: Picked | None

    def own(self, user_id: int, address: str) -> Picked | None:
        """The user's own address, where it is exactly that one and no pattern or alias."""
        row = self.row
        if row is None or row.user_id != user_id or row.kind is not AddressKind.MAILBOX:
            return None
        exact = "*" not in row.local and (row.local, row.place) == normal(address)
        return row if exact else None


async def may_send_as(
    ctx: Context, account: Picked, address: str, path: Sequence[str]
) -> Picked | None:
    """Refuse a sender that is somebody else's: it is never replaced.

    Returns the row by which the account may; None where it is by fromWhitelist.
    """
    try:
        row = await address_resolution.resolve(ctx.world, address)
    except NotFound:
        row = None
    if row and row.send_as and _is_of(row, account.id):
        return row
    if permitted(account.from_whitelist, address):
        return None
    if row and row.send_as and await _holds(ctx, account.id, row):
        return row
    raise Forbidden(f"you may not send as {address}", path=path)


def _is_of(row: Picked, user_id: int) -> bool:
    return bool(row.kind is AddressKind.MAILBOX and row.user_id == user_id)


async def _holds(ctx: Context, user_id: int, row: Picked) -> bool:
    if row.kind is AddressKind.FORWARD:
        return bool(await forwards(ctx, [user_id], [row.id]))
    shared = row.kind is AddressKind.MAILBOX
    return shared and bool(await _posting(ctx, [user_id], [row.user_id]))


async def main_of(ctx: Context, account: Picked) -> Picked:
    """The main address of an account: id, shown and name. Invalid where it has none."""
    row: Picked | None = next(iter(await ctx.find(_MAIN, user=account.id)), None)
    if row is None:
        raise Invalid("there is no main address to send from", constraint="from", path=["from"])
    return row


async def grants(ctx: Context, asked: Sequence[tuple[Picked, str]]) -> list[Grant | None]:
    """Which of these accounts may send as which addresses, in their order; None: may not.

    Of an account `id` and `from_whitelist` are read. As many statements for many as for one.
    """
    rows = await resolved(ctx, [address for _, address in asked])
    users = {account.id for account, _ in asked}
    found = [row for row in rows.values() if row and row.send_as]
    owners = {row.user_id for row in found if row.kind is AddressKind.MAILBOX}
    others = [row.id for row in found if row.kind is AddressKind.FORWARD]
    posting = await _posting(ctx, users, owners) if owners else set()
    members = await forwards(ctx, users, others) if others else []
    held = {(row.member, row.id) for row in members}
    granted: list[Grant | None] = []
    for account, address in asked:
        row, by_row = rows[address], False
        if row and row.send_as and row.kind is AddressKind.MAILBOX:
            by_row = _is_of(row, account.id) or (account.id, row.user_id) in posting
        elif row:
            by_row = (account.id, row.id) in held
        right = by_row or permitted(account.from_whitelist, address)
        granted.append(Grant(row if by_row else None) if right else None)
    return granted


async def resolved(ctx: Context, asked: Collection[str]) -> dict[str, Picked | None]:
    """What `mail.addresses.resolve` says of many addresses, each row with its domain as `place`.

    None where it finds none. Two statements, however many there are.
    """
    found = await resolve_all(ctx.world, asked, ctx.read)
    rows = ((address, found.get(address)) for address in asked)
    return {address: row if row is not None and row.active else None for address, row in rows}


def lasting(world: World) -> ColumnElement[bool]:
    """SQL: addresses that have not ended."""
    ends = col(Address.expires_at)
    return or_(ends.is_(None), ends > world.now())


async def _posting(
    ctx: Context, users: Collection[int], owners: Collection[int]
) -> set[tuple[int, int]]:
    """Which of these users may send as which owners, who share a folder for it."""
    shares = select(col(MailboxShare.user_id), col(MailboxShare.owner_id)).where(
        col(MailboxShare.user_id).in_(users),
        col(MailboxShare.owner_id).in_(owners),
        holding(ShareRight.POST),
    )
    return {(row.user_id, row.owner_id) for row in await ctx.read(shares.distinct())}


async def forwards(
    ctx: Context, users: Collection[int], only: Collection[int] | None = None
) -> Sequence[Picked]:
    """Forwards that may be sent as and name these users: the user is `member`.

    A target names a user whose address it is, exactly, in a domain or one that stands for it.
    `only` are the keys of some; without it all forwards are read, which an index knows.
    """
    dialect = ctx.world.database.dialect
    mine: Any = _mine(ctx.world, users).cte("mine")
    home, targets = aliased(Domain), col(Address.targets)
    each = func.json_each if dialect == "sqlite" else func.jsonb_array_elements_text
    target = each(targets).table_valued("value", name="target")
    local, domain = _divided(dialect, target.c.value)
    names = ("id", "local", "shown", "name")
    asked = (
        select(*picked(Address, names), col(home.name).label("place"), mine.c.member)
        .select_from(Address)
        .join(target, onclause=true())
        .join(mine, and_(mine.c.local == local, mine.c.domain == domain))
        .join(home, col(home.id) == col(Address.domain_id), isouter=True)
        .where(sendable(ctx.world, AddressKind.FORWARD), col(home.active).is_not(False))
        .distinct()
    )
    return await ctx.read(asked if only is None else asked.where(col(Address.id).in_(only)))


def sendable(world: World, kind: AddressKind = AddressKind.MAILBOX) -> ColumnElement[bool]:
    """SQL: addresses of a kind that take mail and may be sent as."""
    # written out: an index knows the forwards by these words
    is_it: Any = literal_column(f"addresses.kind = '{kind.value}'", Boolean)
    return and_(is_it, col(Address.active), col(Address.send_as), lasting(world))


def _mine(world: World, users: Collection[int]) -> Any:
    """SQL: what targets may call these users, in normal form."""
    theirs = (
        col(Address.user_id).in_(users),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.active),
        lasting(world),
        col(Domain.active),
    )
    spoken: Any = (col(Address.user_id).label("member"), col(Address.local).label("local"))
    own: Select[*tuple[Any, ...]] = select(*spoken, col(Domain.name).label("domain")).join(
        Domain, col(Domain.id) == col(Address.domain_id)
    )
    other: Select[*tuple[Any, ...]] = (
        select(*spoken, col(DomainAlias.alias).label("domain"))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
    )
    return union_all(own.where(*theirs), other.where(*theirs, col(DomainAlias.active)))


def _divided(dialect: str, target: Any) -> tuple[Any, Any]:
    """SQL: local part and domain of a target in normal form; SQLite lowers ASCII only.

    Both are null where it is no address, as a page is none.
    """
    place = func.instr if dialect == "sqlite" else func.strpos
    lower = func.lower(target)
    at = func.nullif(place(lower, "@"), 0)
    local = func.substr(lower, 1, at - 1)
    unlabelled = func.substr(local, 1, place(local.op("||")("+"), "+") - 1)
    return func.replace(unlabelled, ".", ""), func.substr(lower, at + 1)
