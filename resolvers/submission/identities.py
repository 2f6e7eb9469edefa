"""Read identities: each sender address of a user once, with its name and settings.

A sender address is one of the user's own addresses, a forward with the user as target, a whole
address of `fromWhitelist`, or another address that has a row and that the user may send as. Two
addresses are the same if their normal forms are. A row adds settings; it is listed only while the
user may send as its address. One identity is the default: the chosen one, else that of the main
address.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    collate,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.addresses.address_syntax import Normal, normal
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.store.columns import Instant, Picked, picked
from models.store.keyset_pages import Ask, Page
from models.store.prepared_statements import number, prepared
from models.submission.identities import Identity
from models.users.tables import User
from resolvers import pagination
from resolvers.access import overseen_users
from resolvers.context import Context
from resolvers.pagination import Scan
from resolvers.submission import sender_patterns
from resolvers.submission.sender_authorization import Grant, forwards, grants, main_of, sendable

ORDER = "identities"  # by normal form, then by id
NARROW = ("id", "user_id", "local", "domain", "shown", "name", "preferred")
WIDE = frozenset({"reply_to", "bcc", "signature_text", "signature_html", "mailbox_id"})


@dataclass(frozen=True, slots=True)
class Sender:
    """An identity. Columns of DETAIL_COLUMNS are empty unless they were read."""

    id: int
    user_id: int
    form: Normal
    address: str
    name: str | None
    default: bool = False
    row: bool = False  # False: it follows from an address alone
    address_id: int | None = None  # id of the user's own address, if it is one
    reply_to: str | None = None
    bcc: Sequence[str] = field(default_factory=list)
    signature_text: str | None = None
    signature_html: str | None = None
    mailbox_id: int | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The key that lists are sorted by."""
        return self.form.local, self.id


@dataclass(frozen=True, slots=True)
class Standing:
    """The identities of an account, except own addresses without a row."""

    account: Picked  # id, name, from_whitelist
    known: Mapping[Normal, Sender] = field(default_factory=dict)
    default: int | None = None  # None: no main address that the user may send as

    @property
    def taken(self) -> list[int]:
        """The ids of the own addresses that have a row."""
        return [one.address_id for one in self.known.values() if one.address_id is not None]

    def implied(self, row: Picked) -> Sender:
        """Return the identity of an own address without a row. The column `place` is its domain."""
        name = row.name or self.account.name
        form = Normal(row.local, row.place)
        default = self.default == row.id
        return Sender(row.id, row.user_id, form, row.shown, name, default, address_id=row.id)


def key_of(user_id: int, form: Normal) -> int:
    """Return the stable id of an identity that is none of the user's own addresses."""
    text = f"{user_id} {form.local}@{form.domain}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 or 1


async def standings(ctx: Context, user_ids: list[int]) -> list[Standing | None]:
    """Load the identities of accounts, in order; None for an account the viewer doesn't see.

    Needs the same number of statements for any number of accounts.
    """
    asked = select(*picked(User, {"id", "name", "from_whitelist"})).where(
        col(User.id).in_(user_ids), overseen_users(ctx)
    )
    accounts = {row.id: row for row in await ctx.read(asked)}
    known = await written(ctx, accounts, implied=True)
    mains = (
        select(*picked(Address, {"id", "user_id"}))
        .join(Domain, and_(col(Domain.id) == col(Address.domain_id), col(Domain.active)))
        .where(col(Address.user_id).in_(accounts), col(Address.main), sendable(ctx.world))
    )
    main = {row.user_id: row.id for row in await ctx.read(mains)}
    found = {}
    for key, account in accounts.items():
        default = _default(known[key].values(), main.get(key))
        marked = {form: replace(one, default=one.id == default) for form, one in known[key].items()}
        found[key] = Standing(account, marked, default)
    return [found.get(key) for key in user_ids]


def _default(known: Iterable[Sender], main: int | None) -> int | None:
    """Return the id of the default identity."""
    of_main = main
    for one in known:
        if one.default:
            return one.id
        if main is not None and one.address_id == main:
            of_main = one.id
    return of_main


async def written(
    ctx: Context, accounts: Mapping[int, Picked], *, implied: bool = False
) -> dict[int, dict[Normal, Sender]]:
    """Read the identities of accounts that have rows, by account and normal address.

    `default` is the stored choice. With `with_implied`, adds those of forwards and of whole
    addresses of fromWhitelist that have no row.
    """
    rows = await _rows(ctx, accounts)
    loose = [row for row in rows if row.own is None]
    asked = [(accounts[row.user_id], row.shown) for row in loose]
    forwarded = await forwards(ctx, accounts) if implied else []
    listed = [
        (account, text)
        for account in (accounts.values() if implied else ())
        for text in sender_patterns.whole(account.from_whitelist)
    ]
    granted = await grants(ctx, [*asked, *listed]) if asked or listed else []
    found: dict[int, dict[Normal, Sender]] = {key: {} for key in accounts}
    for row in rows:
        if row.own is not None:
            _add(found, _followed(accounts[row.user_id], row))
    for row, grant in zip(loose, granted, strict=False):
        if grant:
            _add(found, _loose(accounts[row.user_id], row, grant))
    for row in forwarded:
        if row.place and "*" not in row.local:
            form = Normal(row.local, row.place)
            _add(found, _implied(accounts[row.member], form, row.shown, row.name))
    for (account, text), grant in zip(listed, granted[len(asked) :], strict=True):
        if grant and grant.own(account.id, text) is None:
            _add(found, _implied(account, normal(text), text, None))
    return found


def _add(found: Mapping[int, dict[Normal, Sender]], one: Sender | None) -> None:
    """Add an identity unless its address, or its own address, is there already."""
    if one is None:
        return
    there = found[one.user_id]
    taken = one.address_id is not None and any(
        other.address_id == one.address_id for other in there.values()
    )
    if one.form not in there and not taken:
        there[one.form] = one


async def _rows(ctx: Context, accounts: Collection[int]) -> Sequence[Picked]:
    """Read all rows of accounts with the own address that each follows.

    `own` is the id of that address.
    """
    if len(accounts) == 1:  # the common case: a message is sent
        (account,) = accounts
        return await ctx.find(_rows_of_one(), account=account, now=ctx.world.now())
    ends = col(Address.expires_at)
    return await ctx.read(
        _rows_of(col(Identity.user_id).in_(accounts), or_(ends.is_(None), ends > ctx.world.now()))
    )


@prepared
def _rows_of_one() -> Select[*tuple[Any, ...]]:
    ends = col(Address.expires_at)
    lasts = or_(ends.is_(None), ends > bindparam("now", type_=Instant))
    return _rows_of(col(Identity.user_id) == number("account"), lasts)


def _rows_of(of: ColumnElement[bool], lasts: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    home = aliased(Domain)
    follows = and_(
        col(Address.id) == col(Identity.id),
        col(Address.user_id) == col(Identity.user_id),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.active),
        col(Address.send_as),
        lasts,
    )
    address: list[Any] = [
        col(home.id).label("home"),
        col(home.name).label("place"),
        col(Address.id).label("own"),
        col(Address.local).label("its_local"),
        col(Address.shown).label("its_shown"),
        col(Address.name).label("its_name"),
    ]
    return (
        select(*picked(Identity, NARROW), *address)
        .select_from(Identity)
        .join(Address, follows, isouter=True)
        .join(home, and_(col(home.id) == col(Address.domain_id), col(home.active)), isouter=True)
        .where(of)
        .order_by(col(Identity.created_at), col(Identity.id))
    )


def _followed(account: Picked, row: Picked) -> Sender | None:
    """Return the identity of a row that follows an own address, or None.

    None means that the domain is not active.
    """
    if row.home is None:
        return None
    name = row.name or row.its_name or account.name
    form = Normal(row.its_local, row.place)
    return Sender(
        row.id, account.id, form, row.its_shown, name, row.preferred, row=True, address_id=row.own
    )


def _loose(account: Picked, row: Picked, grant: Grant) -> Sender:
    """Return the identity of a row that follows no own address."""
    own = grant.own(account.id, row.shown)
    name = row.name or (own.name if own else None) or account.name
    return Sender(
        row.id,
        account.id,
        Normal(row.local, row.domain),
        row.shown,
        name,
        row.preferred,
        row=True,
        address_id=own.id if own else None,
    )


def _implied(account: Picked, form: Normal, shown: str, name: str | None) -> Sender:
    return Sender(key_of(account.id, form), account.id, form, shown, name or account.name)


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of a user's identities, sorted by the normal form of their addresses."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Sender]]:
    """Load pages of identities, each in reading order."""
    standing = await ctx.load_all(standings, [key.user_id for key in keys])
    scans = []
    for key, there in zip(keys, standing, strict=True):
        ask = replace(
            key.ask, count=key.ask.count + 1
        )  # one more, since identities with a row are merged in
        place = (_bytewise(ctx), col(Address.id))
        scans.append(Scan(_own(ctx, there), ask, place, falling=False))
    found = []
    for key, there, rows in zip(keys, standing, await pagination.pages(ctx, scans), strict=True):
        merged = _merged(there, key.ask, rows.rows) if there else []
        found.append(key.ask.page(merged))
    names = frozenset[str]().union(*(key.columns for key in keys))
    return await _filled(ctx, found, names)


def _merged(there: Standing, ask: Ask, rows: Iterable[Picked]) -> list[Sender]:
    """Return all identities that can be on the page, in reading order."""
    found = [there.implied(row) for row in rows]
    at: Any = (ask.place.at, ask.place.id) if ask.place else None
    found += [
        one
        for one in there.known.values()
        if at is None or (one.place < at if ask.back else one.place > at)
    ]
    return sorted(found, key=lambda one: one.place)


async def _filled(
    ctx: Context, found: Sequence[Page[Sender]], names: Collection[str]
) -> list[Page[Sender]]:
    """Return the pages with the requested columns of DETAIL_COLUMNS."""
    rows = await _wide(ctx, [one for page in found for one in page.rows], names)
    return [replace(page, rows=[rows.get(one.id, one) for one in page.rows]) for page in found]


async def _wide(ctx: Context, known: Sequence[Sender], names: Collection[str]) -> dict[int, Sender]:
    """Return the identities that have rows, with these columns, by id."""
    keys, names = {one.id: one for one in known if one.row}, WIDE.intersection(names)
    if not keys or not names:
        return {}
    asked = select(*picked(Identity, {"id", *names})).where(col(Identity.id).in_(keys))
    return {
        row.id: replace(keys[row.id], **{name: getattr(row, name) for name in names})
        for row in await ctx.read(asked)
    }


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the identities of each list, in the order of the keys."""
    standing = await ctx.load_all(standings, [key.user_id for key in keys])
    many = func.count().label("many")
    scans = [select(many).select_from(_own(ctx, there).subquery()) for there in standing]
    return [
        row.many + (len(there.known) if there else 0)
        for (row,), there in zip(await pagination.together(ctx, scans), standing, strict=True)
    ]


def _own(ctx: Context, there: Standing | None) -> Select[*tuple[Any, ...]]:
    """Return the SQL query for own addresses that may be sent as and have no row."""
    return (
        select(
            *picked(Address, ("id", "user_id", "shown", "name")),
            _bytewise(ctx),
            col(Domain.name).label("place"),
        )
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .where(
            col(Address.user_id) == there.account.id if there else false(),
            ~col(Address.local).contains("*", autoescape=True),
            col(Address.id).not_in(there.taken if there else []),
            col(Domain.active),
            sendable(ctx.world),
        )
    )


def _bytewise(ctx: Context) -> Any:
    """Return the local part in SQL, sorted by bytes as Python sorts strings."""
    name = "BINARY" if ctx.world.database.dialect == "sqlite" else "C"
    return collate(col(Address.local), name).label("local")


async def by_ids(ctx: Context, ids: list[int]) -> list[Sender | None]:
    """Load identities, in the order of the ids; None if the viewer does not see one.

    Identities that have neither a row nor an own address are found for the viewer only.
    """
    seen = col(Identity.user_id).in_(select(col(User.id)).where(overseen_users(ctx)))
    rows = select(*picked(Identity, {"id", "user_id"})).where(col(Identity.id).in_(ids), seen)
    users = {row.id: row.user_id for row in await ctx.read(rows)}
    theirs = col(Address.user_id).in_(select(col(User.id)).where(overseen_users(ctx)))
    own = (
        select(*picked(Address), col(Domain.name).label("place"))
        .join(Domain, and_(col(Domain.id) == col(Address.domain_id), col(Domain.active)))
        .where(col(Address.id).in_(ids), theirs, sendable(ctx.world))
    )
    addresses = {row.id: row for row in await ctx.read(own) if "*" not in row.local}
    users |= {key: row.user_id for key, row in addresses.items()}
    owners = {*users.values(), ctx.viewer.user_id} - {0}
    standing = [one for one in await standings(ctx, list(owners)) if one]
    known = {one.id: one for there in standing for one in there.known.values()}
    for there in standing:
        for key, row in addresses.items():
            if row.user_id == there.account.id and key not in there.taken:
                known.setdefault(key, there.implied(row))
    wide = await _wide(ctx, [known[key] for key in ids if key in known], WIDE)
    return [wide.get(key) or known.get(key) for key in ids]


async def of_sender(
    ctx: Context, account: Picked, address: str, row: Picked | None
) -> Sender | None:
    """Return the identity that an address of an account belongs to, without its signatures.

    `address_row` is the address record the address resolves to if the account may send as it.
    Returns None if the address has no identity: it matches only a pattern, or belongs to a user
    who shares a mailbox.
    """
    there = (await written(ctx, {account.id: account}))[account.id]
    form = normal(address)
    exact = row is not None and row.domain_id is not None and row.local == form.local
    one = there.get(form)
    if one is None and row and exact:
        one = next((each for each in there.values() if each.address_id == row.id), None)
    if one is not None:
        return await _sending(ctx, one)
    if row and exact and (row.user_id == account.id or row.kind is AddressKind.FORWARD):
        return _implied(account, form, address, row.name)
    if row is None and sender_patterns.permitted(
        sender_patterns.whole(account.from_whitelist), address
    ):
        return _implied(account, form, address, None)
    return None


async def default_of(ctx: Context, account: Picked) -> Sender:
    """Return the default identity, without its signatures.

    Raises Invalid without a main address.
    """
    there = (await written(ctx, {account.id: account}))[account.id]
    for one in there.values():
        if one.default:
            return await _sending(ctx, one)
    main = await main_of(ctx, account)
    for one in there.values():
        if one.address_id == main.id:
            return await _sending(ctx, one)
    return _implied(account, normal(main.shown), main.shown, main.name)


async def _sending(ctx: Context, one: Sender) -> Sender:
    wide = await _wide(ctx, [one], {"reply_to", "bcc", "mailbox_id"})
    return wide[one.id]
