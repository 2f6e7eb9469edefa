"""Update addresses, one or many."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalized_address
from mail.recipients import forward_targets
from models.addresses.tables import Address, AddressKind
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    RequestError,
    prefix_error_messages,
)
from models.events.journal import PLATFORM
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.addresses import autoreplies, main_address
from resolvers.addresses.autoreplies import AddressAutoreplies
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.addresses.loaders import AddressIdOrText, require_visible_referenced_addresses
from resolvers.addresses.main_address import MainAddressChange
from resolvers.addresses.mutations import (
    ADDRESS_TAKEN_TEXT,
    AUDIT_LOG_COLUMNS,
    address_values_by_graphql_name,
    is_administered_by_viewer,
    require_address_free,
    require_changeable_addresses,
    require_visible_addresses,
    stream_ids_of_addresses,
)
from resolvers.addresses.targets import (
    TargetsWithRelayPasswords,
    load_alias_names_by_domain,
    refuse_self_forward,
    validate_forward_targets,
)
from resolvers.addresses.validation import (
    collect_column_combination_errors,
    validate_address_columns,
    validate_address_text,
)
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users.delete import update_domain_counters
from resolvers.users.quota.custom_data import CustomDataChange, require_quota_for_custom_data
from resolvers.users.selection import require_managed_user
from resolvers.users.validation import patch_path, schema_name

PATCH_PATH = ("set",)  # the place of the patch in the input
AUTOREPLY_PATH = (*PATCH_PATH, "autoreply")
OWNER_COLUMNS = frozenset({"name", "main"})
MASK_OWNER_COLUMNS = OWNER_COLUMNS | {"active"}  # of temporary addresses
LOGGED_COLUMNS = ("name", "tags", *AUDIT_LOG_COLUMNS)


@dataclass(frozen=True, slots=True)
class AddressPatchValues:
    """The new values of addresses. Values that are not given stay; None clears a column."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    address: str | None = None
    main: bool | None = None
    forward_to: Sequence[str] | None = None
    autoreply: Mapping[str, Any] | None = None  # by column
    deletes_autoreply: bool = False

    @property
    def changed_names(self) -> set[str]:
        """Names of the columns that the patch changes."""
        optional_values = {
            "address": self.address,
            "main": self.main,
            "forward_to": self.forward_to,
        }
        column_names = {
            *self.columns,
            *(name for name, value in optional_values.items() if value is not None),
        }
        return (
            column_names | {"autoreply"}
            if self.deletes_autoreply or self.autoreply is not None
            else column_names
        )


@dataclass
class AddressUpdate:
    """Stored addresses with the new values of each, by address id and column."""

    rows: Sequence[ColumnRow]
    locked_stream_ids: Collection[int]
    new_values: dict[int, dict[str, Any]] = field(default_factory=dict)
    autoreplies: AddressAutoreplies = field(default_factory=AddressAutoreplies)

    def changed_values(self, address_row: ColumnRow) -> dict[str, Any]:
        """Return the new values that differ from the stored ones."""
        values = self.new_values.get(address_row.id, {})
        return {
            name: value for name, value in values.items() if getattr(address_row, name) != value
        }

    def updated_address(self, address_row: ColumnRow) -> Any:
        """Return the address with its new values."""
        stored_values = {
            column.name: getattr(address_row, column.name) for column in select_columns(Address)
        }
        return SimpleNamespace(**{**stored_values, **self.new_values.get(address_row.id, {})})


async def update_addresses(
    ctx: Context, refs: Sequence[AddressIdOrText], patch: AddressPatchValues
) -> list[int]:
    """Update addresses, all or none, and return their ids in the order of the references.

    Owners change name and main address; other columns need an administrator of the domain.
    Raises InvalidInput, NotFound, Forbidden, LimitReached, or Conflict if another transaction
    changed an address or the new text is in use.
    """
    patch = _validate_patch(ctx, patch)
    rows_before = await require_visible_referenced_addresses(ctx, refs)
    _refuse_text_or_main_for_several(rows_before, patch)
    stream_ids = stream_ids_of_addresses(rows_before)
    for row in _rows_affecting_main_address(rows_before, patch):
        user = await require_managed_user(ctx, row.user_id, path="addresses")
        stream_ids.add(user.domain_id or PLATFORM)
    if patch.address is not None:
        new_domain = await domain_loaders.find_administered_domain(
            ctx, normalized_address(patch.address).domain
        )
        stream_ids |= {new_domain.id} if new_domain else set()
    try:
        async with ctx.write_session(*stream_ids) as session:
            rows = await require_visible_addresses(
                ctx, [row.id for row in rows_before], ["addresses"]
            )
            if not stream_ids_of_addresses(rows) <= stream_ids:
                raise Conflict(
                    "Another request changed an address at the same time: retry.",
                    path=["addresses"],
                )
            await _require_permission_for_patch(ctx, rows, patch)
            address_update = AddressUpdate(
                rows, stream_ids, {row.id: dict(patch.columns) for row in rows}
            )
            if {"autoreply", "kind"} & patch.changed_names:
                address_update.autoreplies = await autoreplies.load_autoreplies_of_forwards(
                    session, rows
                )
            await _validate_and_set_new_values(ctx, session, address_update, patch)
            changes = [CustomDataChange(row.user_id, row, patch.columns) for row in rows]
            await require_quota_for_custom_data(ctx, session, changes)
            await _store_and_log_new_values(ctx, session, address_update, patch)
    except IntegrityError as clash:  # another writer inserted the same address first
        raise Conflict(ADDRESS_TAKEN_TEXT, path=[*PATCH_PATH, "address"]) from clash
    return [row.id for row in rows_before]


def _validate_patch(ctx: Context, patch: AddressPatchValues) -> AddressPatchValues:
    """Return the patch with normalized values. Raises InvalidInput with all problems."""
    if not patch.changed_names:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=PATCH_PATH,
        )
    problems = ErrorCollector()
    columns, address = validate_address_columns(ctx, patch.columns, problems, PATCH_PATH), None
    with problems.collecting():
        if patch.address is not None:
            address = validate_address_text(
                patch.address, allows_wildcard=False, path=[*PATCH_PATH, "address"]
            )
    autoreply = None
    with problems.collecting():
        if patch.autoreply is not None:
            autoreply = autoreplies.validate_autoreply(patch.autoreply, AUTOREPLY_PATH) or None
    problems.raise_collected()
    return replace(patch, columns=columns, address=address, autoreply=autoreply)


def _rows_affecting_main_address(
    rows: Sequence[ColumnRow], patch: AddressPatchValues
) -> list[ColumnRow]:
    """Return the addresses that are the main address of their user, or become it."""
    changes_address = patch.main or patch.address is not None
    return [row for row in rows if changes_address and row.user_id and (patch.main or row.main)]


def _refuse_text_or_main_for_several(rows: Sequence[ColumnRow], patch: AddressPatchValues) -> None:
    """Raise InvalidInput if the patch has values for one address only but there are several."""
    given_by_name = {"address": patch.address is not None, "main": bool(patch.main)}
    for name, value in given_by_name.items():
        if value and len(rows) > 1:
            message = "This field can be changed for one address only."
            raise InvalidInput(
                message, constraint=ValidationConstraint.EXCLUSIVE, path=[*PATCH_PATH, name]
            )


async def _require_permission_for_patch(
    ctx: Context, rows: Sequence[ColumnRow], patch: AddressPatchValues
) -> None:
    """Raise Forbidden if the viewer may not make these changes to one of the addresses."""
    for row in rows:
        if is_administered_by_viewer(ctx, row):
            continue
        allowed_names = MASK_OWNER_COLUMNS if row.masked else OWNER_COLUMNS
        if row.user_id == ctx.viewer.user_id and (
            forbidden_names := sorted(patch.changed_names - allowed_names)
        ):
            required_role = (
                Role.ADMIN if ctx.viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
            )
            message = (
                f"Requires the role {required_role} to change {schema_name(forbidden_names[0])}."
            )
            path = [*PATCH_PATH, *patch_path(patch.columns, forbidden_names[0])]
            raise Forbidden(f"{row.display_address}: {message}", requires=required_role, path=path)
    await require_changeable_addresses(ctx, rows, ["addresses"])


async def _validate_and_set_new_values(
    ctx: Context,
    session: AsyncSession,
    address_update: AddressUpdate,
    patch: AddressPatchValues,
) -> None:
    """Compute the new values of each address.

    Raises an error whose message names the first address that can't be changed so.
    """
    alias_names = await load_alias_names_by_domain(
        ctx, {row.domain_id for row in address_update.rows}
    )
    spam_filter_learns = bool(ctx.environment.options.rspamd_learn_url)
    for row in address_update.rows:
        with prefix_error_messages(row.display_address):
            problems = ErrorCollector()
            with problems.collecting():
                _check_kind_and_clear_targets(row, address_update, patch)
            with problems.collecting():
                _validate_and_set_forward_targets(ctx, row, address_update, patch)
            with problems.collecting():
                _set_or_delete_autoreply(ctx, row, address_update, patch)
            with problems.collecting():
                _set_main_and_check_expiry(ctx, row, address_update, patch)
            collect_column_combination_errors(
                address_update.updated_address(row),
                problems,
                PATCH_PATH,
                spam_filter_learns=spam_filter_learns,
            )
            problems.raise_collected()
            if patch.address is not None:
                await _add_new_address_text_to_update(
                    ctx, session, row, address_update, patch.address
                )
            refuse_self_forward(
                address_update.updated_address(row), alias_names, [*PATCH_PATH, "forwardTo"]
            )


def _check_kind_and_clear_targets(
    address_row: ColumnRow, address_update: AddressUpdate, patch: AddressPatchValues
) -> None:
    """Clear the targets if the new kind is not FORWARD.

    Raises InvalidInput if the kind would change to or from MAILBOX.
    """
    kind = patch.columns.get("kind", address_row.kind)
    if kind is None or (kind is AddressKind.MAILBOX) is not (
        address_row.kind is AddressKind.MAILBOX
    ):
        message = "The kind can't change to or from MAILBOX: create another address."
        raise InvalidInput(
            message, constraint=ValidationConstraint.ADDRESS_KIND, path=[*PATCH_PATH, "kind"]
        )
    if kind is not AddressKind.FORWARD and patch.forward_to is None and address_row.forward_to:
        address_update.new_values[address_row.id] |= {"forward_to": [], "relays": None}


def _validate_and_set_forward_targets(
    ctx: Context, address_row: ColumnRow, address_update: AddressUpdate, patch: AddressPatchValues
) -> None:
    if patch.forward_to is None:
        return
    try:
        known_relays = forward_targets.decrypt_relay_urls(
            ctx.environment, address_row.id, address_row.relays
        )
    except DecryptionError:  # the key is lost, so the passwords must be given again
        known_relays = {}
    targets: TargetsWithRelayPasswords = validate_forward_targets(
        ctx, patch.forward_to, known_relays, [*PATCH_PATH, "forwardTo"]
    )
    address_update.new_values[address_row.id]["forward_to"] = list(targets.shown_targets)
    if dict(targets.relays_with_password) != known_relays:
        address_update.new_values[address_row.id]["relays"] = (
            forward_targets.encrypt_relay_urls_if_any(
                ctx.environment, address_row.id, targets.relays_with_password
            )
        )


def _set_or_delete_autoreply(
    ctx: Context, address_row: ColumnRow, address_update: AddressUpdate, patch: AddressPatchValues
) -> None:
    kind = patch.columns.get("kind") or address_row.kind
    if patch.autoreply is not None:
        autoreplies.require_forward_kind(kind, AUTOREPLY_PATH)
        now, columns = ctx.environment.now(), patch.autoreply
        autoreplies.set_autoreply_row_if_changed(
            address_update.autoreplies, address_row.id, columns, now, AUTOREPLY_PATH
        )
        is_enabled = address_update.autoreplies.is_enabled(address_row.id)
        address_update.new_values[address_row.id]["answers"] = is_enabled
    elif address_row.id in address_update.autoreplies.stored_rows and (
        patch.deletes_autoreply or kind is not AddressKind.FORWARD
    ):
        autoreplies.mark_autoreply_for_deletion(address_update.autoreplies, address_row.id)
        address_update.new_values[address_row.id]["answers"] = False


def _set_main_and_check_expiry(
    ctx: Context, address_row: ColumnRow, address_update: AddressUpdate, patch: AddressPatchValues
) -> None:
    """Set the main address. Raises InvalidInput if it is unset or if the expiry has passed."""
    if patch.main is False and address_row.main:
        message = "The main address can't be unset: set another address as main address."
        raise InvalidInput(
            message, constraint=ValidationConstraint.MAIN_ADDRESS, path=[*PATCH_PATH, "main"]
        )
    if patch.main:
        address_update.new_values[address_row.id]["main"] = True
    expires_at = patch.columns.get("expires_at")
    if expires_at and expires_at <= ctx.environment.now():
        raise InvalidInput(
            "The expiry time must be in the future.",
            constraint=ValidationConstraint.MIN,
            path=[*PATCH_PATH, "expiresAt"],
        )


async def _add_new_address_text_to_update(
    ctx: Context,
    session: AsyncSession,
    address_row: ColumnRow,
    address_update: AddressUpdate,
    new_text: str,
) -> None:
    """Set a new text of an address, after checking that it is free.

    Raises InvalidInput for a catch-all and the errors of `lock_or_create_domain_for_address`.
    """
    path = [*PATCH_PATH, "address"]
    if "*" in address_row.display_address:
        message = "An address with * can't be renamed: create another address."
        raise InvalidInput(message, constraint=ValidationConstraint.WILDCARD, path=path)
    local, domain_name = normalized_address(new_text)
    domain_id = address_row.domain_id
    if domain_name != normalized_address(address_row.display_address).domain:
        try:
            domain = await domain_loaders.lock_or_create_domain_for_address(
                ctx, session, domain_name, path="address", input_path=PATCH_PATH
            )
        except RequestError as refusal:
            refusal.path = path
            raise
        domain_id = domain.id
    await require_address_free(ctx, local, domain_id, path, except_id=address_row.id)
    address_update.new_values[address_row.id] |= {
        "local": local,
        "display_address": new_text,
        "domain_id": domain_id,
    }


async def _store_and_log_new_values(
    ctx: Context,
    session: AsyncSession,
    address_update: AddressUpdate,
    patch: AddressPatchValues,
) -> None:
    """Store the changed values and record them in the journals and the audit log."""
    changed = [
        row
        for row in address_update.rows
        if address_update.changed_values(row)
        or row.id in address_update.autoreplies.changed_address_ids
    ]
    former_domain_ids: dict[int, int | None] = {
        row.id: row.domain_id
        for row in address_update.rows
        if "domain_id" in address_update.changed_values(row)
    }
    # first, since a user has at most one main address
    main_change = await _set_main_addresses(
        ctx, session, address_update, patch, _rows_affecting_main_address(changed, patch)
    )
    await _update_address_rows(session, address_update, changed, ctx.environment.now())
    await autoreplies.store_changed_address_autoreplies(session, address_update.autoreplies)
    new_domain_ids = [address_update.new_values[key]["domain_id"] for key in former_domain_ids]
    for sign, domain_ids in ((-1, former_domain_ids.values()), (1, new_domain_ids)):
        counted_addresses = [{"domain_id": domain_id} for domain_id in domain_ids]
        await update_domain_counters(ctx, session, [], counted_addresses, sign=sign)
    rows_after = [address_update.updated_address(row) for row in changed]
    former_main_rows = [
        row for row in main_change.former_rows if row.id not in {change.id for change in changed}
    ]
    await journal_address_changes(
        ctx,
        session,
        [*rows_after, *former_main_rows],
        AddressChangeDetails(
            former_domain_ids=former_domain_ids, streams_by_user=main_change.streams_by_user
        ),
    )
    entries = [
        _log_entry_of_update(row, address_update.changed_values(row), address_update.autoreplies)
        for row in changed
        if row.user_id != ctx.viewer.user_id or not row.user_id
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def _set_main_addresses(
    ctx: Context,
    session: AsyncSession,
    address_update: AddressUpdate,
    patch: AddressPatchValues,
    rows: Sequence[ColumnRow],
) -> MainAddressChange:
    """Make these addresses the main address of their user.

    Raises Conflict if the domain of a user isn't locked, because the user has moved.
    """
    main_change = MainAddressChange()
    for row in rows:
        user = await require_managed_user(ctx, row.user_id, path="addresses")
        if (user.domain_id or PLATFORM) not in address_update.locked_stream_ids:
            raise Conflict(
                "Another request moved the user to another domain at the same time: retry.",
                path=["addresses"],
            )
        path = [*PATCH_PATH, "main" if patch.main else "address"]
        main_change = await main_address.set_main_address_and_user_domain(
            ctx, session, user, address_update.updated_address(row), path
        )
    return main_change


async def _update_address_rows(
    session: AsyncSession,
    address_update: AddressUpdate,
    rows: Sequence[ColumnRow],
    now: datetime,
) -> None:
    """Update the rows of addresses. Addresses with the same new values share one statement."""
    connection, table = await session.connection(), core_table(Address)
    ids_by_values: dict[str, list[int]] = {}
    for row in rows:
        ids_by_values.setdefault(repr(address_update.new_values[row.id]), []).append(row.id)
    for address_ids in ids_by_values.values():
        values = {**address_update.new_values[address_ids[0]], "updated_at": now}
        await connection.execute(update(table).where(table.c.id.in_(address_ids)).values(values))


def _log_entry_of_update(
    address_row: ColumnRow,
    changed_values: Mapping[str, Any],
    address_autoreplies: AddressAutoreplies,
) -> NewAuditLogEntry:
    column_names = [name for name in (*LOGGED_COLUMNS, "display_address") if name in changed_values]
    before = address_values_by_graphql_name(
        {name: getattr(address_row, name) for name in column_names}
    )
    after = address_values_by_graphql_name({name: changed_values[name] for name in column_names})
    if address_row.id in address_autoreplies.changed_address_ids:
        before["autoreply"], after["autoreply"] = (
            address_autoreplies.audit_log_values_before_and_after(address_row.id)
        )
    return NewAuditLogEntry(
        "addressUpdate", "Address", address_row.id, address_row.domain_id, before, after
    )
