"""Autoreplies of forwarding addresses, stored together with their addresses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.addresses.tables import AddressKind
from models.errors import ErrorCollector, InvalidInput
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.autoreply import validation as autoreply_validation


@dataclass
class AddressAutoreplies:
    """The autoreplies of addresses by address id: stored rows, new rows, changed columns."""

    stored_rows: Mapping[int, ColumnRow] = field(default_factory=dict)
    new_rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    changed_columns: dict[int, list[str]] = field(default_factory=dict)
    deleted_ids: list[int] = field(default_factory=list)

    @property
    def changed_address_ids(self) -> set[int]:
        """Ids of the addresses whose autoreply is changed or deleted."""
        return {*self.new_rows, *self.deleted_ids}

    def is_enabled(self, address_id: int) -> bool:
        """True if the autoreply of this address is enabled after the change."""
        new_row = self.new_rows.get(address_id)
        return bool(new_row["enabled"] if new_row else self.stored_rows[address_id].enabled)

    def audit_log_values_before_and_after(self, address_id: int) -> tuple[Any, Any]:
        """Return the audit log values of one autoreply before and after the change."""
        if address_id in self.deleted_ids:
            return {"enabled": self.stored_rows[address_id].enabled}, None
        return autoreply_validation.audit_log_values_before_and_after(
            self.stored_rows.get(address_id),
            self.new_rows[address_id],
            self.changed_columns[address_id],
        )


def validate_autoreply(columns: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Validate the autoreply columns of an input and return them as stored.

    Raises InvalidInput with all problems if a value is not allowed, nothing is given or
    `addresses` is given.
    """
    problems = ErrorCollector()
    values = autoreply_validation.validate_autoreply_columns(columns, problems, path)
    with problems.collecting():
        if not columns:
            raise InvalidInput(
                "At least one field of the autoreply is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=path,
            )
        if values.get("addresses"):
            error_text = "The autoreply of an address can't have `addresses`."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.EXCLUSIVE, path=[*path, "addresses"]
            )
    problems.raise_collected()
    return values


def require_forward_kind(kind: AddressKind, path: Sequence[str]) -> None:
    """Raise InvalidInput unless the kind is FORWARD, the only kind with an autoreply of its own."""
    if kind is not AddressKind.FORWARD:
        error_text = (
            f"An address of the kind {kind} can't have an autoreply: the kind must be FORWARD."
        )
        raise InvalidInput(error_text, constraint=ValidationConstraint.EXCLUSIVE, path=path)


def set_autoreply_row_if_changed(
    autoreplies: AddressAutoreplies,
    address_id: int,
    columns: Mapping[str, Any],
    now: datetime,
    path: Sequence[str],
) -> None:
    """Set columns of an address' autoreply, to be stored by `store_changed_address_autoreplies`.

    Raises InvalidInput if the autoreply is enabled without a text.
    """
    stored_row = autoreplies.stored_rows.get(address_id)
    new_row = autoreply_validation.build_and_check_row(
        {"id": address_id, "address_id": address_id}, stored_row, columns, now, path
    )
    changed_names = autoreply_validation.changed_column_names(stored_row, new_row)
    if changed_names or stored_row is None:
        autoreplies.new_rows[address_id], autoreplies.changed_columns[address_id] = (
            new_row,
            changed_names,
        )


def mark_autoreply_for_deletion(autoreplies: AddressAutoreplies, address_id: int) -> None:
    """Mark the autoreply of an address for deletion."""
    if address_id in autoreplies.stored_rows:
        autoreplies.deleted_ids.append(address_id)


async def load_autoreplies_of_forwards(
    session: AsyncSession, addresses: Sequence[ColumnRow]
) -> AddressAutoreplies:
    """Read the stored autoreplies of the FORWARD addresses among these.

    Runs no statement if no address has the kind FORWARD.
    """
    ids = [row.id for row in addresses if row.kind is AddressKind.FORWARD]
    return AddressAutoreplies(
        await autoreply_validation.load_stored_rows(session, ids) if ids else {}
    )


async def store_changed_address_autoreplies(
    session: AsyncSession, autoreplies: AddressAutoreplies
) -> None:
    """Write the changed autoreplies and delete the ones marked for deletion."""
    await autoreply_validation.store_rows_and_forget_senders(
        session, autoreplies.new_rows, autoreplies.changed_columns
    )
    if autoreplies.deleted_ids:
        await autoreply_validation.delete_rows(session, autoreplies.deleted_ids)
