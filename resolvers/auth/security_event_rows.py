"""Rows of the security log: equal events share a row, which counts them."""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    String,
    UpdateBase,
    bindparam,
    cast,
    literal,
    select,
    update,
)
from sqlmodel import col

from models.auth.security_log import (
    AuthProtocol,
    SecurityEvent,
    SecurityEventAction,
    SecurityEventResult,
    security_event_type,
)
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEntry, StreamPositions
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.users.roles import Role
from resolvers.admin.redaction import redact_secrets
from resolvers.auth.log_actors import LogActor
from resolvers.auth.sortable_ips import sortable_ip_hex
from resolvers.context import Context
from resolvers.viewer import Viewer

log = logging.getLogger(__name__)
FOLD_WINDOW = timedelta(hours=6)  # after the first of equal events
JOURNAL_INTERVAL = timedelta(minutes=1)  # between two journal entries of one row that counts up
# a front end that relays it does not sign in
ALWAYS_OWN_ACTIONS = frozenset({SecurityEventAction.SIGN_IN_ATTEMPTED})


@dataclass(frozen=True, slots=True)
class NewSecurityEvent:
    """An event for the security log: an action and its result.

    `detail` never holds a secret. Of equal events, the detail of the last is kept.
    """

    action: SecurityEventAction
    user_id: int | None
    result: SecurityEventResult = SecurityEventResult.SUCCESS
    protocol: AuthProtocol | None = None
    target: str | None = None  # the object of the action, if it distinguishes events
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecurityEventRow:
    """A security event as a row, with the facts and the origin of its journal entry."""

    values: dict[str, Any]
    journal_facts: Mapping[str, Any]
    origin: str | None


# Built once: building a statement costs more than running it, and a flood runs many.
_HAS_FOLD = col(SecurityEvent.fold).in_(bindparam("folds", expanding=True))
_SELECT_RECENT_FOLDS = select(col(SecurityEvent.fold)).where(
    _HAS_FOLD,
    col(SecurityEvent.created_at) > bindparam("begun"),
    col(SecurityEvent.journaled_at) > bindparam("told"),
)
_CLOSE_OLD_FOLDS = (
    update(SecurityEvent)
    .where(_HAS_FOLD, col(SecurityEvent.created_at) <= bindparam("begun"))
    .values(fold=col(SecurityEvent.fold) + literal("~") + cast(col(SecurityEvent.id), String))
)
_UPDATE_TOLD_AT = (
    update(SecurityEvent)
    .where(col(SecurityEvent.id).in_(bindparam("late", expanding=True)))
    .values(journaled_at=bindparam("now"))
)


@cache
def _upsert_sql(dialect: str) -> UpdateBase:
    """SQL: insert events or raise the count of equal rows; returns the rows."""
    insert = insert_with_conflict(dialect, SecurityEvent)
    names = ("last_at", "session_id", "detail", "ip", "ip_key")  # of the last event
    changed: dict[str, Any] = {name: insert.excluded[name] for name in names}
    changed["count"] = SecurityEvent.count + insert.excluded.count
    upsert = insert.on_conflict_do_update(index_elements=["fold"], set_=changed)
    return upsert.returning(
        *select_columns(SecurityEvent, ("id", "user_id", "fold", "journaled_at"))
    )


async def user_ids_needing_journal_entry(
    environment: Environment, event_rows: Sequence[SecurityEventRow]
) -> set[int]:
    """Return the users that get a journal entry: for a new event, or after a minute without one."""
    user_ids_by_fold = {
        line.values["fold"]: line.values["user_id"] for line in event_rows if line.values["user_id"]
    }
    if not user_ids_by_fold:
        return set()
    now = environment.now()
    parameters = {
        "folds": list(user_ids_by_fold),
        "begun": now - FOLD_WINDOW,
        "told": now - JOURNAL_INTERVAL,
    }
    recent_folds = {
        row.fold for row in await environment.database.read(_SELECT_RECENT_FOLDS, parameters)
    }
    return {user_id for fold, user_id in user_ids_by_fold.items() if fold not in recent_folds}


def is_event_by_another(viewer: Viewer, event: NewSecurityEvent) -> bool:
    """True if another than the user of the event did it."""
    if viewer.is_acting:
        return True
    if viewer.role is Role.PUBLIC or event.action in ALWAYS_OWN_ACTIONS:
        return False
    return viewer.user_id != event.user_id


def _equal_events_digest(ctx: Context, event: NewSecurityEvent, actor: LogActor | None) -> str:
    """Return the digest that equal events share. Failures from one /64 of IPv6 are equal."""
    ip = (
        ctx.client_ip
        if event.result is SecurityEventResult.SUCCESS
        else _ip_or_ipv6_network_key(ctx.client_ip)
    )
    parts = (event.user_id, event.protocol, ip, event.action, event.result, event.target)
    actor_name = actor.name if actor and is_event_by_another(ctx.viewer, event) else ""
    return hashlib.sha256(repr((*parts, actor_name)).encode()).hexdigest()


def _ip_or_ipv6_network_key(ip: str | None) -> str | None:
    """Return an address as hex digits, an IPv6 address cut to its /64."""
    hex_digits = sortable_ip_hex(ip)
    return (
        hex_digits
        if hex_digits is None or hex_digits.startswith(f"{0xFFFF:024x}")
        else hex_digits[:16]
    )


class StoredSecurityEvents(NamedTuple):
    """The row ids of events in their order, and the new positions of the journals."""

    ids: list[int]
    positions: StreamPositions


def upsert_and_journal_rows(
    connection: Connection,
    event_rows: Sequence[SecurityEventRow],
    journal_user_ids: Collection[int | None],
    now: datetime,
) -> StoredSecurityEvents:
    """Insert events, or count them up if equal ones are less than six hours old.

    Returns the ids of their rows in the order given, and the new positions of the journals of the
    users in `journal_user_ids`, which are locked.
    """
    by_fold: dict[str, SecurityEventRow] = {}
    for event_row in event_rows:
        fold = event_row.values["fold"]
        count = 1 + (by_fold[fold].values["count"] if fold in by_fold else 0)
        by_fold[fold] = replace(event_row, values={**event_row.values, "count": count})
    connection.execute(_CLOSE_OLD_FOLDS, {"folds": list(by_fold), "begun": now - FOLD_WINDOW})
    rows = [by_fold[fold].values for fold in sorted(by_fold)]  # one order: no deadlock
    parameters = [
        {**row, "journaled_at": now if row["user_id"] in journal_user_ids else None} for row in rows
    ]
    stored_rows = connection.execute(_upsert_sql(connection.dialect.name), parameters).all()
    inserted_ids = {row["id"] for row in rows}
    journal_rows = [row for row in stored_rows if row.user_id and row.user_id in journal_user_ids]
    overdue_ids = {
        row.id
        for row in journal_rows
        if row.journaled_at is None or row.journaled_at <= now - JOURNAL_INTERVAL
    } - inserted_ids
    if overdue_ids:
        connection.execute(_UPDATE_TOLD_AT, {"late": list(overdue_ids), "now": now})
    reported = [row for row in journal_rows if row.id in inserted_ids | overdue_ids]
    positions = _record_in_journals(connection, [(row, by_fold[row.fold]) for row in reported], now)
    ids_by_fold = {row.fold: int(row.id) for row in stored_rows}
    return StoredSecurityEvents(
        [ids_by_fold[line.values["fold"]] for line in event_rows], positions
    )


def build_event_row(
    ctx: Context, event: NewSecurityEvent, actor: LogActor | None, event_time: datetime
) -> SecurityEventRow:
    """Return an event as a row of the table."""
    detail = dict(event.detail)
    if event.target:
        detail["target"] = event.target
    named_actor = actor if is_event_by_another(ctx.viewer, event) else None
    row = {
        "id": ctx.environment.new_id(),
        "user_id": event.user_id,
        "fold": _equal_events_digest(ctx, event, actor),
        "action": event.action,
        "result": event.result,
        "protocol": event.protocol,
        "ip": ctx.client_ip,
        "ip_key": sortable_ip_hex(ctx.client_ip),
        "session_id": ctx.session_id,
        "by": named_actor.name if named_actor else None,
        "by_id": named_actor.user_id if named_actor else None,
        "detail": redact_secrets(detail) or None,
        "count": 1,
        "created_at": event_time,
        "last_at": event_time,
    }
    return SecurityEventRow(row, {"reason": ctx.reason} if ctx.reason else {}, ctx.origin)


def _record_in_journals(
    connection: Connection,
    stored_and_event_rows: Sequence[tuple[ColumnRow, SecurityEventRow]],
    now: datetime,
) -> StreamPositions:
    """Write new or counted rows to the journals of their users; return the new positions."""
    rows_by_user: dict[int, list[tuple[SecurityEventRow, int]]] = {}
    for row, event_row in stored_and_event_rows:
        rows_by_user.setdefault(row.user_id, []).append((event_row, row.id))
    entries = {user_id: _grouped_journal_entries(lines) for user_id, lines in rows_by_user.items()}
    return journal.record_entries_in_existing_streams(connection, entries, at=now)


class _JournalEntryKey(NamedTuple):
    """The values that the events of one journal entry have in common."""

    event_type: EventType
    facts: Mapping[str, Any]
    origin: str | None


def _journal_entry_key(
    event_row_with_id: tuple[SecurityEventRow, int],
) -> _JournalEntryKey:
    """Return the values that the events of one journal entry have in common."""
    event_row, _ = event_row_with_id
    event_type = security_event_type(event_row.values["action"], event_row.values["result"])
    return _JournalEntryKey(event_type, event_row.journal_facts, event_row.origin)


def _grouped_journal_entries(
    event_rows_with_ids: Sequence[tuple[SecurityEventRow, int]],
) -> list[JournalEntry]:
    """Return journal entries, one for each run of events with the same type, facts and origin."""
    groups = groupby(event_rows_with_ids, key=_journal_entry_key)
    return [
        JournalEntry(event_type, [key for _, key in group], facts, origin)
        for (event_type, facts, origin), group in groups
    ]
