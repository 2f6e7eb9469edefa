"""Decide who may send as an address: the same rule for single messages and for lists of identities.

A user may send as what `allowedSenders` contains, as the user's own addresses, as those of a user
who shares a mailbox with that right, and as a FORWARD that has the user as target. The address
must allow sending.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    and_,
    bindparam,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.addresses.address_syntax import normalized_address
from mail.recipients import address_resolution
from mail.recipients.batch_resolution import load_receiving_address_rows
from models.addresses.forward_target_keys import ForwardTargetKey
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain, DomainAlias
from models.errors import Forbidden, InvalidInput, NotFound
from models.mailboxes.shares import MailboxShare, ShareRight, has_right
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.prepared_statements import (
    MAX_KEYS_OF_QUICK_READ,
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.submission.sender_patterns import matches_sender_pattern

NOW_PARAMETER = bindparam("now", type_=UtcDateTime)
_MAIN_ADDRESS = PreparedStatement(
    select(*select_columns(Address, {"id", "display_address", "name"})).where(
        col(Address.user_id) == integer_parameter("user"), col(Address.main), col(Address.active)
    )
)


class SenderGrant(NamedTuple):
    """The right to send as an address.

    `address_row` is its address record; None: granted by allowedSenders.
    """

    address_row: ColumnRow | None

    def own_address_row(self, user_id: int, address: str) -> ColumnRow | None:
        """Return the address record if it is the user's own and exactly this address, else None."""
        row = self.address_row
        if row is None or row.user_id != user_id or row.kind is not AddressKind.MAILBOX:
            return None
        exact = "*" not in row.local and (row.local, row.domain_name) == normalized_address(address)
        return row if exact else None


async def require_permitted_sender(
    ctx: Context, account: ColumnRow, address: str, path: Sequence[str]
) -> ColumnRow | None:
    """Raise Forbidden if the account may not send as the address. The sender is never replaced.

    Returns the address record that grants it; None if allowedSenders does.
    """
    try:
        row = await address_resolution.require_receiving_address_row(ctx.environment, address)
    except NotFound:
        row = None
    if row and row.send_as and _is_own_address(row, account.id):
        return row
    if matches_sender_pattern(account.allowed_senders, address):
        return None
    if row and row.send_as and await _has_right_of_other_address(ctx, account.id, row):
        return row
    raise Forbidden(f"You are not allowed to send as {address}.", path=path)


def _is_own_address(address_row: ColumnRow, user_id: int) -> bool:
    return bool(address_row.kind is AddressKind.MAILBOX and address_row.user_id == user_id)


async def _has_right_of_other_address(ctx: Context, user_id: int, address_row: ColumnRow) -> bool:
    """True if the user may send from the address of a forward or of another user's account."""
    if address_row.kind is AddressKind.FORWARD:
        return bool(await read_sendable_forwards(ctx, [user_id], [address_row.id]))
    is_mailbox = address_row.kind is AddressKind.MAILBOX
    return is_mailbox and bool(
        await _read_user_and_owner_pairs_with_post_right(ctx, [user_id], [address_row.user_id])
    )


async def require_main_address(ctx: Context, account: ColumnRow) -> ColumnRow:
    """Read id, shown and name of the main address. Raises InvalidInput if the account has none."""
    row: ColumnRow | None = next(
        iter(await ctx.read_prepared(_MAIN_ADDRESS, user=account.id)), None
    )
    if row is None:
        raise InvalidInput(
            "The account has no main address to send from.",
            constraint=ValidationConstraint.FROM,
            path=["from"],
        )
    return row


async def read_sender_grants(
    ctx: Context, accounts_and_addresses: Sequence[tuple[ColumnRow, str]]
) -> list[SenderGrant | None]:
    """Return for each account and address the grant to send, in order; None if it may not.

    Reads `id` and `allowed_senders` of the accounts. Needs the same number of statements for any
    number of them.
    """
    rows = await resolve_active_addresses(ctx, [address for _, address in accounts_and_addresses])
    user_ids = {account.id for account, _ in accounts_and_addresses}
    sendable_rows = [row for row in rows.values() if row and row.send_as]
    owner_ids = {row.user_id for row in sendable_rows if row.kind is AddressKind.MAILBOX}
    forward_ids = [row.id for row in sendable_rows if row.kind is AddressKind.FORWARD]
    post_rights = (
        await _read_user_and_owner_pairs_with_post_right(ctx, user_ids, owner_ids)
        if owner_ids
        else set()
    )
    forward_members = (
        await read_sendable_forwards(ctx, user_ids, forward_ids) if forward_ids else []
    )
    forward_rights = {(row.member, row.id) for row in forward_members}
    result: list[SenderGrant | None] = []
    for account, address in accounts_and_addresses:
        row, is_granted_by_row = rows[address], False
        if row and row.send_as and row.kind is AddressKind.MAILBOX:
            is_granted_by_row = (
                _is_own_address(row, account.id) or (account.id, row.user_id) in post_rights
            )
        elif row:
            is_granted_by_row = (account.id, row.id) in forward_rights
        is_allowed = is_granted_by_row or matches_sender_pattern(account.allowed_senders, address)
        result.append(SenderGrant(row if is_granted_by_row else None) if is_allowed else None)
    return result


async def resolve_active_addresses(
    ctx: Context, addresses: Collection[str]
) -> dict[str, ColumnRow | None]:
    """Resolve addresses to their active records, each with its domain as `place`; None if unknown.

    Needs two statements for any number of addresses.
    """
    rows_by_address = await load_receiving_address_rows(ctx.environment, addresses, ctx.read)
    rows = ((address, rows_by_address.get(address)) for address in addresses)
    return {address: row if row is not None and row.active else None for address, row in rows}


def is_not_expired(now: datetime | BindParameter[Any]) -> ColumnElement[bool]:
    """Return the SQL condition for addresses that are not expired."""
    expires_at = col(Address.expires_at)
    return or_(expires_at.is_(None), expires_at > now)


async def _read_user_and_owner_pairs_with_post_right(
    ctx: Context, user_ids: Collection[int], owner_ids: Collection[int]
) -> set[tuple[int, int]]:
    """Return pairs of user and owner where the owner lets the user send in their name."""
    shares = select(col(MailboxShare.user_id), col(MailboxShare.owner_id)).where(
        col(MailboxShare.user_id).in_(user_ids),
        col(MailboxShare.owner_id).in_(owner_ids),
        has_right(ShareRight.POST),
    )
    return {(row.user_id, row.owner_id) for row in await ctx.read(shares.distinct())}


async def read_sendable_forwards(
    ctx: Context, user_ids: Collection[int], address_ids: Collection[int] | None = None
) -> Sequence[ColumnRow]:
    """Read the forwards that these users may send as. Each row has the user ID in `member`.

    A user may send as a forward if one of its targets is a mailbox address of the user, also in an
    alias domain. Case, dots and the label of the local part do not matter. A forward has a row for
    each such user. With `address_ids`, only forwards with these IDs are read.
    """
    statement = _prepare_sendable_forwards(
        ctx.environment.database.dialect, has_addresses=address_ids is not None
    )
    parameters: dict[str, Any] = {"users": list(user_ids), "now": ctx.environment.now()}
    if address_ids is not None:
        parameters["addresses"] = list(address_ids)
    return await ctx.read_prepared(
        statement, reads_many_rows=len(user_ids) > MAX_KEYS_OF_QUICK_READ, **parameters
    )


@prepare_cached
def _prepare_sendable_forwards(dialect: str, *, has_addresses: bool) -> Select[*tuple[Any, ...]]:
    """Select the forwards to the parameter `users`.

    With `has_addresses`, only those in the parameter `addresses`.
    """
    users: Any = _select_mailbox_addresses_of_users(dialect).cte("users_addresses")
    address_domain = aliased(Domain)
    is_target = and_(
        col(ForwardTargetKey.domain) == users.c.domain, col(ForwardTargetKey.local) == users.c.local
    )
    statement = (
        select(
            *select_columns(Address, ("id", "local", "display_address", "name")),
            col(address_domain.name).label("domain_name"),
            users.c.member,
        )
        .select_from(users)
        .join(ForwardTargetKey, is_target)
        .join(Address, col(Address.id) == col(ForwardTargetKey.address_id))
        .join(address_domain, col(address_domain.id) == col(Address.domain_id), isouter=True)
        .where(
            is_sendable(NOW_PARAMETER, AddressKind.FORWARD),
            col(address_domain.active).is_not(False),
        )
        .distinct()
    )
    return (
        statement.where(is_in_parameter(dialect, col(Address.id), "addresses"))
        if has_addresses
        else statement
    )


def is_sendable(
    now: datetime | BindParameter[Any], kind: AddressKind = AddressKind.MAILBOX
) -> ColumnElement[bool]:
    """Return the SQL condition for active addresses of a kind that may be sent as."""
    return and_(
        col(Address.kind) == kind, col(Address.active), col(Address.send_as), is_not_expired(now)
    )


def _select_mailbox_addresses_of_users(dialect: str) -> Any:
    """Select the active mailbox addresses of the parameter `users`, also those in alias domains.

    The columns are `member` (the user id), `local` and `domain`.
    """
    conditions = (
        is_in_parameter(dialect, col(Address.user_id), "users"),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.active),
        is_not_expired(NOW_PARAMETER),
        col(Domain.active),
    )
    columns: Any = (col(Address.user_id).label("member"), col(Address.local).label("local"))
    own_domains: Select[*tuple[Any, ...]] = select(*columns, col(Domain.name).label("domain")).join(
        Domain, col(Domain.id) == col(Address.domain_id)
    )
    alias_domains: Select[*tuple[Any, ...]] = (
        select(*columns, col(DomainAlias.alias).label("domain"))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .join(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
    )
    return union_all(
        own_domains.where(*conditions), alias_domains.where(*conditions, col(DomainAlias.active))
    )
