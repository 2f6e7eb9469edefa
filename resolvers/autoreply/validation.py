"""Validate and store autoreplies of users and addresses."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.autoreply import AutoreplyRule
from models.autoreply import Autoreply, AutoreplySender
from models.errors import ErrorCollector, InvalidInput
from models.store.columns import ColumnRow, core_table, insert_with_conflict, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.users.validation import schema_path

MAX_NAME_LENGTH = 128  # characters
MAX_SUBJECT_BYTES = 2 << 10  # bytes
MAX_TEXT_BYTES = 128 << 10
HOUR, MAX_INTERVAL = timedelta(hours=1), timedelta(days=366)
RULE_COLUMNS = tuple(field.name for field in fields(AutoreplyRule))
RULE_COLUMNS_WITHOUT_ADDRESSES = tuple(name for name in RULE_COLUMNS if name != "addresses")
SETTABLE_COLUMNS = (*RULE_COLUMNS, "interval")
# A change of these begins another absence: all senders get a reply again.
ABSENCE_COLUMNS = frozenset(RULE_COLUMNS) - {"enabled", "name", "addresses"}
TEXT_COLUMNS = frozenset(
    name for name in RULE_COLUMNS if name.endswith(("text", "html", "subject"))
)
UNLOGGED_COLUMNS = TEXT_COLUMNS | {"addresses"}  # the audit log has only that they changed
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def validate_autoreply_columns(
    columns: Mapping[str, Any], problems: ErrorCollector, input_path: Sequence[str]
) -> dict[str, Any]:
    """Return the columns in their stored form. Adds an error to `problems` for each invalid one."""
    validated = dict[str, Any]()
    for name, value in columns.items():
        path = [*input_path, *schema_path(name)]
        with problems.collecting():
            validated[name] = _validate_autoreply_value(name, value, path)
    starts_at, ends_at = validated.get("starts_at"), validated.get("ends_at")
    with problems.collecting():
        _require_start_before_end(starts_at, ends_at, input_path)
    return validated


def _validate_autoreply_value(column: str, value: Any, path: Sequence[str]) -> Any:
    if column == "interval":
        return None if value is None else _validate_interval(value, path)
    if column == "addresses":
        return list(value or ())
    if column not in TEXT_COLUMNS and column != "name":
        return value
    if value is None:
        return None if column == "name" or column.startswith("internal") else ""
    if column == "name":
        if len(value) > MAX_NAME_LENGTH or _CONTROLS.search(value):
            message = (
                f"The name has at most {MAX_NAME_LENGTH} characters, and no control characters."
            )
            raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=path)
        return value.strip() or None
    is_single_line = column.endswith("subject")
    if (_CONTROLS if is_single_line else _NOT_STORABLE).search(value):
        message = (
            "The subject must be one line without control characters."
            if is_single_line
            else "The text must not contain NUL."
        )
        raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=path)
    limit = MAX_SUBJECT_BYTES if is_single_line else MAX_TEXT_BYTES
    if len(value.encode()) > limit:
        raise InvalidInput(
            f"The text has at most {limit} bytes.", constraint=ValidationConstraint.MAX, path=path
        )
    return value.strip() if is_single_line else value


def _validate_interval(interval: timedelta, path: Sequence[str]) -> int:
    if not HOUR <= interval <= MAX_INTERVAL:
        raise InvalidInput(
            "The interval must be from PT1H to P366D.",
            constraint=ValidationConstraint.RANGE,
            path=path,
        )
    return int(interval.total_seconds())


def _require_start_before_end(
    starts_at: datetime | None, ends_at: datetime | None, path: Sequence[str]
) -> None:
    if starts_at and ends_at and ends_at <= starts_at:
        message = "The end must be after the start."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=[*path, "endsAt"])


async def load_stored_rows(session: AsyncSession, ids: Collection[int]) -> dict[int, ColumnRow]:
    """Load the stored autoreplies with these ids, by id."""
    statement = select(*select_columns(Autoreply)).where(col(Autoreply.id).in_(ids))
    rows = (await (await session.connection()).execute(statement)).all()
    return {row.id: row for row in rows}


def build_and_check_row(
    ids: Mapping[str, Any],
    stored: ColumnRow | None,
    values: Mapping[str, Any],
    now: datetime,
    path: Sequence[str],
) -> dict[str, Any]:
    """Return the row to store. `ids` holds its id and that of the user or the address.

    Raises InvalidInput if the autoreply is enabled without text or ends before it starts.
    """
    values_of_row: dict[str, Any] = {
        **{name: getattr(AutoreplyRule(), name) for name in RULE_COLUMNS},
        "user_id": None,
        "address_id": None,
        **ids,
        "interval": None,
        "addresses": [],
        "created_at": now,
    }
    if stored is not None:
        values_of_row |= stored._asdict()
    values_of_row |= values
    _require_start_before_end(values_of_row["starts_at"], values_of_row["ends_at"], path)
    texts = (values_of_row[name] for name in TEXT_COLUMNS if not name.endswith("subject"))
    if values_of_row["enabled"] and not any(text and text.strip() for text in texts):
        message = "An enabled autoreply requires `text`, `html`, `internalText` or `internalHtml`."
        raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=[*path, "text"])
    return values_of_row | {"updated_at": now}


def changed_column_names(stored: ColumnRow | None, row: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns that differ from the stored row."""
    if stored is None:
        return [name for name in SETTABLE_COLUMNS if row[name] not in (None, "", False, [])]
    return [name for name in SETTABLE_COLUMNS if row[name] != getattr(stored, name)]


def begins_new_absence(changed_names: Sequence[str], row: Mapping[str, Any]) -> bool:
    """True if the change begins a new absence, in which every sender gets a reply again."""
    return bool(ABSENCE_COLUMNS.intersection(changed_names)) or (
        "enabled" in changed_names and row["enabled"]
    )


async def store_rows_and_forget_senders(
    session: AsyncSession,
    rows_by_id: Mapping[int, Mapping[str, Any]],
    changed_columns_by_id: Mapping[int, Sequence[str]],
) -> None:
    """Store rows, and forget the answered senders of those that begin a new absence.

    The number of statements is constant.
    """
    if not rows_by_id:
        return
    connection = await session.connection()
    insert = insert_with_conflict(connection.dialect.name, Autoreply)
    updated_columns = {
        column.name: insert.excluded[column.name]
        for column in core_table(Autoreply).c
        if not (column.primary_key or column.name == "created_at")
    }
    upsert = insert.on_conflict_do_update(index_elements=["id"], set_=updated_columns)
    await connection.execute(upsert, [dict(row) for row in rows_by_id.values()])
    restarted_ids = [
        key
        for key, row in rows_by_id.items()
        if begins_new_absence(changed_columns_by_id[key], row)
    ]
    if restarted_ids:
        is_of_restarted = col(AutoreplySender.autoreply_id).in_(restarted_ids)
        await connection.execute(delete(AutoreplySender).where(is_of_restarted))


async def delete_rows(session: AsyncSession, ids: Collection[int]) -> None:
    """Delete the autoreplies with these ids."""
    statement = delete(Autoreply).where(col(Autoreply.id).in_(ids))
    await (await session.connection()).execute(statement)


def audit_log_values_before_and_after(
    stored: ColumnRow | None, new_values: Mapping[str, Any], changed_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the audit log values before and after a change. Texts are replaced by an ellipsis."""

    def log_value(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else value

    logged_names = [name for name in changed_names if name not in UNLOGGED_COLUMNS]
    before = {name: log_value(getattr(stored, name, None)) for name in logged_names}
    after = {name: log_value(new_values[name]) for name in logged_names}
    return before, after | {name: "…" for name in changed_names if name in UNLOGGED_COLUMNS}
