"""Decide who may send as an address: the same rule for single messages and for lists of identities.

A user may send as what `fromWhitelist` contains, as the user's own addresses, as those of a user
who shares a mailbox with that right, and as a FORWARD that has the user as target. The address
must allow sending.
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
    """The right to send as an address.

    `address_row` is its address record; None: granted by fromWhitelist.
    """

    row: Picked | None

    def own(self, user_id: int, address: str) -> Picked | None:
        """Return the address record if it is the user's own and exactly this address, else None."""
        row = self.row
        if row is None or row.user_id != user_id or row.kind is not AddressKind.MAILBOX:
            return None
        exact = "*" not in row.local and (row.local, row.place) == normal(address)
        return row if exact else None


async def may_send_as(
    ctx: Context, account: Picked, address: str, path: Sequence[str]
) -> Picked | None:
    """Raise Forbidden if the account may not send as the address. The sender is never replaced.

    Returns the address record that grants it; None if fromWhitelist does.
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
    """Read id, shown and name of the main address. Raises Invalid if the account has none."""
    row: Picked | None = next(iter(await ctx.find(_MAIN, user=account.id)), None)
    if row is None:
        raise Invalid("there is no main address to send from", constraint="from", path=["from"])
    return row


async def grants(ctx: Context, asked: Sequence[tuple[Picked, str]]) -> list[Grant | None]:
    """Return for each account and address the grant to send, in order; None if it may not.

    Reads `id` and `from_whitelist` of the accounts. Needs the same number of statements for any
    number of them.
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
    """Resolve addresses to their active records, each with its domain as `place`; None if unknown.

    Needs two statements for any number of addresses.
    """
    found = await resolve_all(ctx.world, asked, ctx.read)
    rows = ((address, found.get(address)) for address in asked)
    return {address: row if row is not None and row.active else None for address, row in rows}


def lasting(world: World) -> ColumnElement[bool]:
    """Return the SQL condition for addresses that are not expired."""
    ends = col(Address.expires_at)
    return or_(ends.is_(None), ends > world.now())


async def _posting(
    ctx: Context, users: Collection[int], owners: Collection[int]
) -> set[tuple[int, int]]:
    """Return pairs of user and owner where the owner lets the user send in their name."""
    shares = select(col(MailboxShare.user_id), col(MailboxShare.owner_id)).where(
        col(MailboxShare.user_id).in_(users),
        col(MailboxShare.owner_id).in_(owners),
        holding(ShareRight.POST),
    )
    return {(row.user_id, row.owner_id) for row in await ctx.read(shares.distinct())}


async def forwards(
    ctx: Context, users: Collection[int], only: Collection[int] | None = None
) -> Sequence[Picked]:
    """Read forwards that these users are a target of and may send as. `member` is the user.

    A target must be exactly an address of the user, in its domain or an alias domain.
    `address_ids` limits the result to these address ids; without it all forwards are read through
    an index.
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
    """Return the SQL condition for active addresses of a kind that may be sent as."""
    # as literal text, so that the partial index of forwards is used
    is_it: Any = literal_column(f"addresses.kind = '{kind.value}'", Boolean)
    return and_(is_it, col(Address.active), col(Address.send_as), lasting(world))


def _mine(world: World, users: Collection[int]) -> Any:
    """Return the SQL query for the local parts and domains of targets of these users."""
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
    """Return SQL for local part and domain of a target in normal form. SQLite lowers ASCII only.

    Both are null if the target is no address.
    """
    place = func.instr if dialect == "sqlite" else func.strpos
    lower = func.lower(target)
    at = func.nullif(place(lower, "@"), 0)
    local = func.substr(lower, 1, at - 1)
    unlabelled = func.substr(local, 1, place(local.op("||")("+"), "+") - 1)
    return func.replace(unlabelled, ".", ""), func.substr(lower, at + 1)
