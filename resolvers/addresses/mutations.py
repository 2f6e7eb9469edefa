"""Create and delete addresses, with the checks that all address mutations share."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalized_address
from mail.autoreply.chosen_addresses import remove_deleted_addresses
from mail.recipients import forward_targets
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow
from models.users.roles import Role, Scope, UserPermission
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.addresses import autoreplies, main_address
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.autoreplies import AddressAutoreplies
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.addresses.loaders import AddressIdOrText, require_visible_referenced_addresses
from resolvers.addresses.main_address import MainAddressChange
from resolvers.addresses.targets import (
    TargetsWithRelayPasswords,
    load_alias_names_by_domain,
    refuse_self_forward,
    validate_forward_targets,
)
from resolvers.addresses.validation import (
    ALL_DOMAINS_SIGN,
    can_be_main,
    collect_column_combination_errors,
    validate_address_columns,
    validate_address_text,
)
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users.delete import update_domain_counters
from resolvers.users.limit_values import limit_or_none
from resolvers.users.quota.custom_data import CustomDataChange, require_quota_for_custom_data
from resolvers.users.selection import require_managed_user
from resolvers.users.validation import schema_name
from resolvers.viewer import GuardRule

ADDRESS_TAKEN_TEXT = "The address already exists."
AUTOREPLY_PATH = ("autoreply",)  # its place in the input
AUDIT_LOG_COLUMNS = (
    "kind",
    "forward_to",
    "active",
    "main",
    "send_as",
    "expires_at",
    "forwards_per_day",
)


@dataclass(frozen=True, slots=True)
class NewAddress:
    """An address to create. `columns` holds optional columns by name."""

    address: str
    kind: AddressKind | None = None  # None: a MAILBOX of a user, else a FORWARD
    user_id: int | None = None
    main: bool = False
    wildcard: bool = False
    forward_to: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    autoreply: Mapping[str, Any] | None = None  # by column


@dataclass(frozen=True, slots=True)
class PreparedAddress:
    """A validated address that is ready to be stored."""

    address: Address
    domain_name: str  # normalized; ALL_DOMAINS_SIGN for all domains
    is_main: bool
    autoreplies: AddressAutoreplies


async def create_address(ctx: Context, new_address: NewAddress) -> Address:
    """Create an address and return it.

    Raises InvalidInput with all problems of the input, Conflict if the address exists, and
    LimitReached if its domain has no room for another address.
    """
    return await insert_address(ctx, prepare_address(ctx, new_address))


def prepare_address(
    ctx: Context, new_address: NewAddress, problems: ErrorCollector | None = None
) -> PreparedAddress:
    """Validate a new address. Stores nothing.

    Raises InvalidInput with all problems of the input and the `problems` that were found before.
    """
    problems, display_name = problems if problems is not None else ErrorCollector(), ""
    with problems.collecting():
        display_name = validate_address_text(
            new_address.address, allows_wildcard=new_address.wildcard
        )
    values = validate_address_columns(ctx, new_address.columns, problems)
    forward_targets_of_input = TargetsWithRelayPasswords()
    with problems.collecting():
        forward_targets_of_input = validate_forward_targets(
            ctx, new_address.forward_to, {}, ["forwardTo"]
        )
    kind = new_address.kind or (
        AddressKind.FORWARD if new_address.user_id is None else AddressKind.MAILBOX
    )
    now, address_id = ctx.environment.now(), ctx.environment.new_id()
    _collect_kind_and_expiry_errors(
        kind, new_address.user_id, values.get("expires_at"), now, problems
    )
    local, domain_name = normalized_address(display_name)
    address = Address(
        id=address_id,
        local=local,
        display_address=display_name,
        kind=kind,
        user_id=new_address.user_id,
        forward_to=list(forward_targets_of_input.shown_targets),
        relays=forward_targets.encrypt_relay_urls_if_any(
            ctx.environment, address_id, forward_targets_of_input.relays_with_password
        ),
        created_at=now,
        updated_at=now,
        **values,
    )
    address_autoreplies = _collect_combination_errors_set_autoreply(
        ctx, new_address, address, domain_name, problems
    )
    problems.raise_collected()
    return PreparedAddress(address, domain_name, new_address.main, address_autoreplies)


def _collect_combination_errors_set_autoreply(
    ctx: Context,
    new_address: NewAddress,
    address: Address,
    domain_name: str,
    problems: ErrorCollector,
) -> AddressAutoreplies:
    """Add an error to `problems` for values that exclude each other; set `Address.answers`.

    Returns the autoreply of the address, if the input has one.
    """
    draft_address = SimpleNamespace(
        id=address.id,
        local=address.local,
        domain_id=None
        if domain_name == ALL_DOMAINS_SIGN
        else address.id,  # some domain: it is not looked for yet
        kind=address.kind,
        forward_to=address.forward_to,
        forwards_per_day=address.forwards_per_day,
        expires_at=address.expires_at,
        main=new_address.main,
    )
    collect_column_combination_errors(
        draft_address, problems, spam_filter_learns=bool(ctx.environment.options.rspamd_learn_url)
    )
    address_autoreplies = AddressAutoreplies()
    if new_address.autoreply is not None:
        with problems.collecting():
            _set_validated_autoreply(
                address_autoreplies, draft_address, new_address.autoreply, address.created_at
            )
            address.answers = address_autoreplies.is_enabled(address.id)
    return address_autoreplies


def _collect_kind_and_expiry_errors(
    kind: AddressKind,
    user_id: int | None,
    expires_at: datetime | None,
    now: datetime,
    problems: ErrorCollector,
) -> None:
    """Add an error to `problems` if the kind does not fit the user, or the address has expired."""
    with problems.collecting():
        if (kind is AddressKind.MAILBOX) is (user_id is None):
            error_text = "An address must have a user if its kind is MAILBOX, and none otherwise."
            raise InvalidInput(error_text, constraint=ValidationConstraint.REQUIRED, path=["user"])
    with problems.collecting():
        if expires_at and expires_at <= now:
            raise InvalidInput(
                "The expiry time must be in the future.",
                constraint=ValidationConstraint.MIN,
                path=["expiresAt"],
            )


def _set_validated_autoreply(
    address_autoreplies: AddressAutoreplies, address: Any, columns: Mapping[str, Any], now: datetime
) -> None:
    """Set the autoreply of a new address.

    Raises InvalidInput if a value is not allowed or the kind of the address has no autoreply.
    """
    autoreplies.require_forward_kind(address.kind, AUTOREPLY_PATH)
    autoreply_columns = autoreplies.validate_autoreply(columns, AUTOREPLY_PATH)
    autoreplies.set_autoreply_row_if_changed(
        address_autoreplies, address.id, autoreply_columns, now, AUTOREPLY_PATH
    )


async def _reload_user_in_same_domain(ctx: Context, user: ColumnRow) -> ColumnRow:
    """Load the user again. Raises Conflict if the user has moved to another domain."""
    reloaded_user = await require_managed_user(ctx, user.id)
    if reloaded_user.domain_id != user.domain_id:
        raise Conflict(
            "Another request moved the user to another domain at the same time: retry.",
            path=["user"],
        )
    return reloaded_user


async def insert_address(
    ctx: Context, prepared: PreparedAddress, mutation: str = "addressCreate"
) -> Address:
    """Store an address, record it in the journals, and in the audit log as of this mutation.

    Makes it the main address of its user if `is_main` is set or the user has none. Raises
    NotFound, Forbidden, Conflict or LimitReached.
    """
    address, domain_name = prepared.address, prepared.domain_name
    user = None if address.user_id is None else await require_managed_user(ctx, address.user_id)
    domain_before = (
        None
        if domain_name == ALL_DOMAINS_SIGN
        else await domain_loaders.find_administered_domain(ctx, domain_name)
    )
    stream_ids = [address.user_id or PLATFORM, domain_before.id if domain_before else PLATFORM]
    stream_ids.append(user.domain_id or PLATFORM if user else PLATFORM)
    try:
        async with ctx.write_session(*stream_ids) as session:
            if user is not None:
                user = await _reload_user_in_same_domain(ctx, user)
            domain = await _lock_or_create_domain_unless_for_all(ctx, session, domain_name)
            address.domain_id = domain.id if domain else None
            refuse_self_forward(
                address, await load_alias_names_by_domain(ctx, [address.domain_id]), ["forwardTo"]
            )
            await require_address_free(ctx, address.local, address.domain_id, ["address"])
            if domain:
                domain.address_count += 1
                session.add(domain)
            change = CustomDataChange(address.user_id, None, address.model_dump())
            await require_quota_for_custom_data(ctx, session, [change])
            session.add(address)
            await session.flush()
            await autoreplies.store_changed_address_autoreplies(session, prepared.autoreplies)
            main_change = MainAddressChange()
            if user is not None:
                main_change = await _set_main_address_if_needed(
                    ctx, session, user, address, is_requested=prepared.is_main
                )
            await journal_address_changes(
                ctx, session, [address], AddressChangeDetails(EventType.ADDRESS_CREATED)
            )
            await journal_address_changes(
                ctx,
                session,
                main_change.former_rows,
                AddressChangeDetails(streams_by_user=main_change.streams_by_user),
            )
            entry = audit_log_entry_of_created_address(
                prepared, user.username if user else None, mutation
            )
            await audit_log.insert_audit_log_entries(ctx, session, entry)
    except IntegrityError as clash:  # another writer inserted the same address first
        raise Conflict(ADDRESS_TAKEN_TEXT, path=["address"]) from clash
    return address


async def _set_main_address_if_needed(
    ctx: Context, session: AsyncSession, user: ColumnRow, address: Address, *, is_requested: bool
) -> MainAddressChange:
    """Make a new address the main one if that is requested or its user has no main address."""
    is_first_main = can_be_main(address) and not await main_address.find_main_address(ctx, user.id)
    if not (is_requested or is_first_main):
        return MainAddressChange()
    main_change = await main_address.set_main_address_and_user_domain(
        ctx, session, user, address, ["main"]
    )
    await session.refresh(address)
    return main_change


def audit_log_entry_of_created_address(
    prepared: PreparedAddress, username: str | None, mutation: str
) -> NewAuditLogEntry:
    """Return the audit log entry of a new address."""
    address = prepared.address
    values_after = {
        "address": address.display_address,
        "user": username,
        **audit_log_values(address, AUDIT_LOG_COLUMNS),
    }
    if address.id in prepared.autoreplies.new_rows:
        _, autoreply_after = prepared.autoreplies.audit_log_values_before_and_after(address.id)
        values_after["autoreply"] = autoreply_after
    return NewAuditLogEntry(mutation, "Address", address.id, address.domain_id, None, values_after)


async def _lock_or_create_domain_unless_for_all(
    ctx: Context, session: AsyncSession, domain_name: str
) -> Domain | None:
    """Return the locked domain of a new address; None for an address of all domains.

    Raises Forbidden if the viewer may not create addresses there, LimitReached if it has no
    room.
    """
    if domain_name != ALL_DOMAINS_SIGN:
        return await domain_loaders.lock_or_create_domain_for_address(
            ctx, session, domain_name, path="address"
        )
    if not ctx.viewer.role.includes(Role.ADMIN):
        error_text = "Requires the role ADMIN: the address is valid in all domains."
        raise Forbidden(error_text, requires=Role.ADMIN, path=["address"])
    return None


async def require_address_free(
    ctx: Context, local: str, domain_id: int | None, path: Sequence[str], *, except_id: int = 0
) -> None:
    """Raise Conflict if another address has this normal form.

    The transaction must hold the lock on the stream of the domain.
    """
    domain_column = col(Address.domain_id)
    is_in_domain = domain_column.is_(None) if domain_id is None else domain_column == domain_id
    statement = select(col(Address.id)).where(col(Address.local) == local, is_in_domain)
    if await ctx.read(statement.where(col(Address.id) != except_id)):
        raise Conflict(ADDRESS_TAKEN_TEXT, path=path)


async def delete_addresses(ctx: Context, refs: Sequence[AddressIdOrText]) -> list[int]:
    """Delete the referenced addresses, all or none; return their ids.

    Raises NotFound if the viewer can't see an address, Conflict if one is the main address of
    its user, and Forbidden if the viewer does not administer it. Owners can delete the
    temporary addresses that they created.
    """
    rows_before = await require_visible_referenced_addresses(ctx, refs)
    ids = [row.id for row in rows_before]
    async with ctx.write_session(*stream_ids_of_addresses(rows_before)) as session:
        rows = await require_visible_addresses(ctx, ids, ["addresses"])
        if stream_ids_of_addresses(rows) != stream_ids_of_addresses(rows_before):
            raise Conflict(
                "Another request changed an address at the same time: retry.", path=["addresses"]
            )
        await require_changeable_addresses(ctx, rows, ["addresses"])
        for index, row in enumerate(rows):
            if not is_administered_by_viewer(ctx, row) and not row.masked:
                error_text = "Only an administrator of the domain can delete this address."
                raise Forbidden(
                    error_text, requires=Role.DOMAIN_ADMIN, path=["addresses"], index=index
                )
            if row.main:
                error_text = (
                    "The main address of a user can't be deleted: set another main address first."
                )
                raise Conflict(error_text, path=["addresses"], index=index)
        connection = await session.connection()
        await connection.execute(delete(Address).where(col(Address.id).in_([r.id for r in rows])))
        await update_domain_counters(ctx, session, [], [row._asdict() for row in rows], sign=-1)
        await journal_address_changes(
            ctx, session, rows, AddressChangeDetails(EventType.ADDRESS_DELETED)
        )
        await ctx.environment.run_in_session(
            session,
            lambda transaction: remove_deleted_addresses(
                transaction, {row.user_id for row in rows if row.user_id}
            ),
        )
        logged_rows = [row for row in rows if row.user_id != ctx.viewer.user_id or not row.user_id]
        entries = [
            NewAuditLogEntry(
                "addressDelete", "Address", row.id, row.domain_id, {"address": row.display_address}
            )
            for row in logged_rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return ids


def stream_ids_of_addresses(addresses: Iterable[Any]) -> set[int]:
    """Return the stream ids of the users and domains of addresses, or the platform's."""
    stream_ids: set[int] = set()
    for row in addresses:
        stream_ids |= {key for key in (row.user_id, row.domain_id) if key} or {PLATFORM}
    return stream_ids


async def require_visible_addresses(
    ctx: Context, ids: Sequence[int], path: Sequence[str]
) -> list[ColumnRow]:
    """Load addresses in the order of the ids, each once.

    Raises NotFound if one is not visible.
    """
    rows = {
        row.id: row
        for row in await address_loaders.load_visible_addresses_by_id(ctx, list(ids))
        if row
    }
    require_all_found(ids, rows, path=path)
    return list(rows.values())


def is_administered_by_viewer(ctx: Context, address: Any) -> bool:
    """True if the viewer administers the address; being its owner is not enough."""
    return (
        ctx.viewer.role.includes(Role.ADMIN) or address.domain_id in ctx.viewer.administered_domains
    )


async def require_changeable_addresses(
    ctx: Context, addresses: Sequence[ColumnRow], path: Sequence[str]
) -> None:
    """Raise Forbidden if the viewer may not change one of the addresses, Conflict for a resource's.

    Owners change their own addresses, administrators those of their domains. The owner's role
    must not exceed the viewer's. Checks role, scope and permission.
    """
    for index, row in enumerate(addresses):
        if row.kind is AddressKind.RESOURCE:
            error_text = "The address belongs to a resource: change or delete the resource."
            raise Conflict(error_text, path=path, index=index)
    viewer, viewer_id = ctx.viewer, ctx.viewer.user_id
    if any(row.user_id != viewer_id or not viewer_id for row in addresses):
        viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, scope=Scope.FULL))
    if any(row.masked and row.user_id == viewer_id for row in addresses):
        viewer.require(GuardRule(user_permission=UserPermission.TEMPORARY_ADDRESSES))
    higher_roles = {Role.ROOT: (), Role.ADMIN: (Role.ROOT,)}.get(viewer.role)
    statement = select(col(User.id), col(User.role)).where(
        col(User.id).in_({row.user_id for row in addresses} - {None, viewer_id})
    )
    roles_by_user = {row.id: row.role for row in await ctx.read(statement)}
    for index, row in enumerate(addresses):
        role = roles_by_user.get(row.user_id, Role.USER)
        if row.user_id != viewer_id and not is_administered_by_viewer(ctx, row):
            error_text = "Only an administrator of the domain can change this address."
            raise Forbidden(error_text, requires=Role.ADMIN, path=path, index=index)
        if role is not Role.USER if higher_roles is None else role in higher_roles:
            text = f"Requires the role {role}."
            raise Forbidden(text, requires=role, path=path, index=index)


def audit_log_values(address: Any, column_names: Collection[str]) -> dict[str, Any]:
    """Return the columns of an address that are not None, by their GraphQL name."""
    values = {name: getattr(address, name) for name in column_names}
    return address_values_by_graphql_name(
        {name: value for name, value in values.items() if value is not None}
    )


def address_values_by_graphql_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns of an address by their GraphQL name; None is an unlimited limit."""
    return {
        schema_name(name): limit_or_none(value) if name == "forwards_per_day" else value
        for name, value in values.items()
    }
