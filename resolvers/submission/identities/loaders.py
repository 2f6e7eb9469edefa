"""Read identities: each sender address of a user once, with its name and settings.

A sender address is one of the user's own addresses, a forward with the user as target, a whole
address of `allowedSenders`, or another address that has a row and that the user may send as. Two
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
    select,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.addresses.address_syntax import NormalizedAddress, normalized_address
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import (
    MAX_KEYS_OF_QUICK_READ,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.submission.identities import Identity
from models.users.tables import User
from resolvers.access import is_overseen_user
from resolvers.context import Context
from resolvers.submission import sender_patterns
from resolvers.submission.sender_authorization import (
    NOW_PARAMETER,
    SenderGrant,
    is_not_expired,
    is_sendable,
    read_sendable_forwards,
    read_sender_grants,
    require_main_address,
)

LIST_COLUMNS = ("id", "user_id", "local", "domain", "display_address", "name", "preferred")
ACCOUNT_COLUMNS = frozenset({"id", "name", "allowed_senders"})
DETAIL_COLUMNS = frozenset({"reply_to", "bcc", "signature_text", "signature_html", "mailbox_id"})


@dataclass(frozen=True, slots=True)
class SenderIdentity:
    """An identity. Columns of DETAIL_COLUMNS are empty unless they were read."""

    id: int
    user_id: int
    normal_address: NormalizedAddress
    address: str
    name: str | None
    default: bool = False
    has_row: bool = False  # False: it follows from an address alone
    address_id: int | None = None  # id of the user's own address, if it is one
    reply_to: str | None = None
    bcc: Sequence[str] = field(default_factory=list)
    signature_text: str | None = None
    signature_html: str | None = None
    mailbox_id: int | None = None

    @property
    def local_part(self) -> str:
        """The local part of the normal address, by which lists are sorted."""
        return self.normal_address.local_part

    @property
    def sort_key(self) -> tuple[str, int]:
        """The key that lists are sorted by."""
        return self.local_part, self.id


@dataclass(frozen=True, slots=True)
class AccountIdentities:
    """The identities of an account, except own addresses without a row."""

    account: ColumnRow  # id, name, allowed_senders
    by_address: Mapping[NormalizedAddress, SenderIdentity] = field(default_factory=dict)
    default_id: int | None = None  # None: no main address that the user may send as

    @property
    def address_ids_with_row(self) -> list[int]:
        """The ids of the own addresses that have a row."""
        return [
            identity.address_id
            for identity in self.by_address.values()
            if identity.address_id is not None
        ]

    def identity_of_own_address(self, address_row: ColumnRow) -> SenderIdentity:
        """Return the identity of an own address without a row. The column `place` is its domain."""
        name = address_row.name or self.account.name
        form = NormalizedAddress(address_row.local, address_row.domain_name)
        default = self.default_id == address_row.id
        return SenderIdentity(
            address_row.id,
            address_row.user_id,
            form,
            address_row.display_address,
            name,
            default,
            address_id=address_row.id,
        )


def id_from_address(user_id: int, normal_address: NormalizedAddress) -> int:
    """Return the stable id of an identity that is none of the user's own addresses."""
    text = f"{user_id} {normal_address.local_part}@{normal_address.domain}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 or 1


async def load_visible_identities_by_user(
    ctx: Context, user_ids: list[int]
) -> list[AccountIdentities | None]:
    """Load the identities of accounts, in order; None for an account the viewer doesn't see.

    Needs the same number of statements for any number of accounts.
    """
    accounts = await _load_accounts_by_id(ctx, user_ids)
    stored = await read_identities_by_user_and_address(ctx, accounts, with_implied=True)
    main_address_rows = await ctx.read_prepared(
        _select_sendable_main_addresses(ctx.environment.database.dialect),
        users=list(accounts),
        now=ctx.environment.now(),
        reads_many_rows=len(accounts) > MAX_KEYS_OF_QUICK_READ,
    )
    main_address_ids = {row.user_id: row.id for row in main_address_rows}
    identities_by_user = {}
    for key, account in accounts.items():
        default = _default_identity_id(stored[key].values(), main_address_ids.get(key))
        with_default = {
            form: replace(row, default=row.id == default) for form, row in stored[key].items()
        }
        identities_by_user[key] = AccountIdentities(account, with_default, default)
    return [identities_by_user.get(key) for key in user_ids]


async def _load_accounts_by_id(ctx: Context, user_ids: list[int]) -> dict[int, ColumnRow]:
    """Load the accounts that the viewer sees, with the columns of AccountIdentities."""
    if user_ids == [ctx.viewer.user_id]:
        rows = await ctx.read_prepared(_select_account_of_viewer())
    else:
        statement = select(*select_columns(User, ACCOUNT_COLUMNS))
        rows = await ctx.read(statement.where(col(User.id).in_(user_ids), is_overseen_user(ctx)))
    return {row.id: row for row in rows}


@prepare_cached
def _select_account_of_viewer() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(User, ACCOUNT_COLUMNS)).where(
        col(User.id) == integer_parameter("viewer"), col(User.deleted_at).is_(None)
    )


@prepare_cached
def _select_sendable_main_addresses(dialect: str) -> Select[*tuple[Any, ...]]:
    return (
        select(*select_columns(Address, {"id", "user_id"}))
        .join(Domain, and_(col(Domain.id) == col(Address.domain_id), col(Domain.active)))
        .where(
            is_in_parameter(dialect, col(Address.user_id), "users"),
            col(Address.main),
            is_sendable(NOW_PARAMETER),
        )
    )


def _default_identity_id(
    identities: Iterable[SenderIdentity], main_address_id: int | None
) -> int | None:
    """Return the id of the default identity."""
    main_identity_id = main_address_id
    for identity in identities:
        if identity.default:
            return identity.id
        if main_address_id is not None and identity.address_id == main_address_id:
            main_identity_id = identity.id
    return main_identity_id


async def read_identities_by_user_and_address(
    ctx: Context, accounts: Mapping[int, ColumnRow], *, with_implied: bool = False
) -> dict[int, dict[NormalizedAddress, SenderIdentity]]:
    """Read the identities of accounts that have rows, by account and normal address.

    `default` is the stored choice. With `with_implied`, adds those of forwards and of whole
    addresses of allowedSenders that have no row.
    """
    rows = await _read_identity_rows(ctx, accounts)
    rows_without_address = [row for row in rows if row.own is None]
    addresses_of_rows = [
        (accounts[row.user_id], row.display_address) for row in rows_without_address
    ]
    forward_rows = await read_sendable_forwards(ctx, accounts) if with_implied else []
    listed_addresses = [
        (account, text)
        for account in (accounts.values() if with_implied else ())
        for text in sender_patterns.whole_addresses(account.allowed_senders)
    ]
    sender_grants = (
        await read_sender_grants(ctx, [*addresses_of_rows, *listed_addresses])
        if addresses_of_rows or listed_addresses
        else []
    )
    identities_by_user: dict[int, dict[NormalizedAddress, SenderIdentity]] = {
        key: {} for key in accounts
    }
    for row in rows:
        if row.own is not None:
            _add_if_new(
                identities_by_user,
                _identity_of_address_in_active_domain(accounts[row.user_id], row),
            )
    for row, grant in zip(rows_without_address, sender_grants, strict=False):
        if grant:
            _add_if_new(
                identities_by_user, _identity_of_other_address(accounts[row.user_id], row, grant)
            )
    for row in forward_rows:
        if row.domain_name and "*" not in row.local:
            form = NormalizedAddress(row.local, row.domain_name)
            _add_if_new(
                identities_by_user,
                _identity_without_row(accounts[row.member], form, row.display_address, row.name),
            )
    for (account, text), grant in zip(
        listed_addresses, sender_grants[len(addresses_of_rows) :], strict=True
    ):
        if grant and grant.own_address_row(account.id, text) is None:
            _add_if_new(
                identities_by_user,
                _identity_without_row(account, normalized_address(text), text, None),
            )
    return identities_by_user


def _add_if_new(
    identities_by_user: Mapping[int, dict[NormalizedAddress, SenderIdentity]],
    identity: SenderIdentity | None,
) -> None:
    """Add an identity unless its address, or its own address, is there already."""
    if identity is None:
        return
    identities = identities_by_user[identity.user_id]
    has_same_address = identity.address_id is not None and any(
        other.address_id == identity.address_id for other in identities.values()
    )
    if identity.normal_address not in identities and not has_same_address:
        identities[identity.normal_address] = identity


async def _read_identity_rows(ctx: Context, user_ids: Collection[int]) -> Sequence[ColumnRow]:
    """Read all rows of accounts with the own address that each follows.

    `own` is the id of that address.
    """
    if len(user_ids) == 1:  # the common case: a message is sent
        (account,) = user_ids
        return await ctx.read_prepared(
            _identity_rows_of_one_user(), account=account, now=ctx.environment.now()
        )
    return await ctx.read(
        _identity_rows_statement(
            col(Identity.user_id).in_(user_ids), is_not_expired(ctx.environment.now())
        )
    )


@prepare_cached
def _identity_rows_of_one_user() -> Select[*tuple[Any, ...]]:
    return _identity_rows_statement(
        col(Identity.user_id) == integer_parameter("account"), is_not_expired(NOW_PARAMETER)
    )


def _identity_rows_statement(
    is_selected_user: ColumnElement[bool], is_unexpired: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    address_domain = aliased(Domain)
    is_followed_address = and_(
        col(Address.id) == col(Identity.id),
        col(Address.user_id) == col(Identity.user_id),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.active),
        col(Address.send_as),
        is_unexpired,
    )
    address_columns: list[Any] = [
        col(address_domain.id).label("home"),
        col(address_domain.name).label("domain_name"),
        col(Address.id).label("own"),
        col(Address.local).label("its_local"),
        col(Address.display_address).label("its_display_address"),
        col(Address.name).label("its_name"),
    ]
    return (
        select(*select_columns(Identity, LIST_COLUMNS), *address_columns)
        .select_from(Identity)
        .join(Address, is_followed_address, isouter=True)
        .join(
            address_domain,
            and_(col(address_domain.id) == col(Address.domain_id), col(address_domain.active)),
            isouter=True,
        )
        .where(is_selected_user)
        .order_by(col(Identity.created_at), col(Identity.id))
    )


def _identity_of_address_in_active_domain(
    account: ColumnRow, row: ColumnRow
) -> SenderIdentity | None:
    """Return the identity of a row that follows an own address, or None.

    None means that the domain is not active.
    """
    if row.home is None:
        return None
    name = row.name or row.its_name or account.name
    form = NormalizedAddress(row.its_local, row.domain_name)
    return SenderIdentity(
        row.id,
        account.id,
        form,
        row.its_display_address,
        name,
        row.preferred,
        has_row=True,
        address_id=row.own,
    )


def _identity_of_other_address(
    account: ColumnRow, row: ColumnRow, grant: SenderGrant
) -> SenderIdentity:
    """Return the identity of a row that follows no own address."""
    own_address = grant.own_address_row(account.id, row.display_address)
    name = row.name or (own_address.name if own_address else None) or account.name
    return SenderIdentity(
        row.id,
        account.id,
        NormalizedAddress(row.local, row.domain),
        row.display_address,
        name,
        row.preferred,
        has_row=True,
        address_id=own_address.id if own_address else None,
    )


def _identity_without_row(
    account: ColumnRow, normal_address: NormalizedAddress, address: str, name: str | None
) -> SenderIdentity:
    return SenderIdentity(
        id_from_address(account.id, normal_address),
        account.id,
        normal_address,
        address,
        name or account.name,
    )


async def load_visible_identities_by_id(
    ctx: Context, ids: list[int]
) -> list[SenderIdentity | None]:
    """Load identities, in the order of the ids; None if the viewer does not see one.

    Identities that have neither a row nor an own address are found for the viewer only.
    """
    is_visible = col(Identity.user_id).in_(select(col(User.id)).where(is_overseen_user(ctx)))
    rows = select(*select_columns(Identity, {"id", "user_id"})).where(
        col(Identity.id).in_(ids), is_visible
    )
    user_ids = {row.id: row.user_id for row in await ctx.read(rows)}
    is_visible_address = col(Address.user_id).in_(select(col(User.id)).where(is_overseen_user(ctx)))
    address_statement = (
        select(*select_columns(Address), col(Domain.name).label("domain_name"))
        .join(Domain, and_(col(Domain.id) == col(Address.domain_id), col(Domain.active)))
        .where(col(Address.id).in_(ids), is_visible_address, is_sendable(ctx.environment.now()))
    )
    addresses = {row.id: row for row in await ctx.read(address_statement) if "*" not in row.local}
    user_ids |= {key: row.user_id for key, row in addresses.items()}
    owners = {*user_ids.values(), ctx.viewer.user_id} - {0}
    identities_by_user = [
        identity
        for identity in await load_visible_identities_by_user(ctx, list(owners))
        if identity
    ]
    identities = {
        identity.id: identity
        for user_identities in identities_by_user
        for identity in user_identities.by_address.values()
    }
    for account_identities in identities_by_user:
        for key, row in addresses.items():
            if (
                row.user_id == account_identities.account.id
                and key not in account_identities.address_ids_with_row
            ):
                identities.setdefault(key, account_identities.identity_of_own_address(row))
    detailed = await read_identity_columns_by_id(
        ctx, [identities[key] for key in ids if key in identities], DETAIL_COLUMNS
    )
    return [detailed.get(key) or identities.get(key) for key in ids]


async def identity_of_sender_or_none(
    ctx: Context, account: ColumnRow, address: str, address_row: ColumnRow | None
) -> SenderIdentity | None:
    """Return the identity that an address of an account belongs to, without its signatures.

    `address_row` is the address record the address resolves to if the account may send as it.
    Returns None if the address has no identity: it matches only a pattern, or belongs to a user
    who shares a mailbox.
    """
    identities = (await read_identities_by_user_and_address(ctx, {account.id: account}))[account.id]
    normal_address = normalized_address(address)
    is_exact = (
        address_row is not None
        and address_row.domain_id is not None
        and address_row.local == normal_address.local_part
    )
    identity = identities.get(normal_address)
    if identity is None and address_row and is_exact:
        identity = next(
            (identity for identity in identities.values() if identity.address_id == address_row.id),
            None,
        )
    if identity is not None:
        return await _with_sending_columns(ctx, identity)
    if (
        address_row
        and is_exact
        and (address_row.user_id == account.id or address_row.kind is AddressKind.FORWARD)
    ):
        return _identity_without_row(account, normal_address, address, address_row.name)
    if address_row is None and sender_patterns.matches_sender_pattern(
        sender_patterns.whole_addresses(account.allowed_senders), address
    ):
        return _identity_without_row(account, normal_address, address, None)
    return None


async def require_default_identity(ctx: Context, account: ColumnRow) -> SenderIdentity:
    """Return the default identity, without its signatures.

    Raises InvalidInput without a main address.
    """
    identities = (await read_identities_by_user_and_address(ctx, {account.id: account}))[account.id]
    for identity in identities.values():
        if identity.default:
            return await _with_sending_columns(ctx, identity)
    main_address = await require_main_address(ctx, account)
    for identity in identities.values():
        if identity.address_id == main_address.id:
            return await _with_sending_columns(ctx, identity)
    return _identity_without_row(
        account,
        normalized_address(main_address.display_address),
        main_address.display_address,
        main_address.name,
    )


async def _with_sending_columns(ctx: Context, identity: SenderIdentity) -> SenderIdentity:
    """Return the identity with its stored Reply-To, BCC and mailbox."""
    identity_columns = await read_identity_columns_by_id(
        ctx, [identity], {"reply_to", "bcc", "mailbox_id"}
    )
    return identity_columns[identity.id]


async def read_identity_columns_by_id(
    ctx: Context, identities: Sequence[SenderIdentity], column_names: Collection[str]
) -> dict[int, SenderIdentity]:
    """Return the identities that have rows, with these columns, by id."""
    keys = {identity.id: identity for identity in identities if identity.has_row}
    column_names = DETAIL_COLUMNS.intersection(column_names)
    if not keys or not column_names:
        return {}
    statement = select(*select_columns(Identity, {"id", *column_names})).where(
        col(Identity.id).in_(keys)
    )
    return {
        row.id: replace(keys[row.id], **{name: getattr(row, name) for name in column_names})
        for row in await ctx.read(statement)
    }
