"""The security log: changes and uses of credentials, and who may read them."""

import asyncio
import hashlib
import ipaddress
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    bindparam,
    cast,
    false,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import TaskKind
from models.auth.credentials import ApiKey
from models.auth.security_log import (
    AuthEventAction,
    AuthEventResult,
    AuthProtocol,
    SecurityEvent,
    security_event_type,
)
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEntry, StreamPositions
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_overseen_user
from resolvers.admin import task_steps
from resolvers.admin.redaction import redact_secrets
from resolvers.auth.credential_cache import CredentialCache, cache_of_database
from resolvers.context import Context, Viewer
from resolvers.pagination import PageScan, read_by_keys, read_union

log = logging.getLogger(__name__)

FOLD_WINDOW = timedelta(hours=6)  # after the first of equal events
BACKGROUND_WRITE_INTERVAL = 0.5  # seconds between two transactions that write background events
JOURNAL_INTERVAL = timedelta(minutes=1)  # between two journal entries of one row that counts up
MAX_EVENTS_PER_STATEMENT = 1000  # events of one statement
ALWAYS_OWN_ACTIONS = frozenset(
    {AuthEventAction.AUTHENTICATE}
)  # a front end that relays it does not sign in
# Actions of others that a user gets a message about.
REPORTED_ACTIONS = frozenset(
    {
        *(
            AuthEventAction.TWO_FACTOR_DISABLE,
            AuthEventAction.EXTERNAL_TWO_FACTOR_DISABLE,
            AuthEventAction.EXTERNAL_TWO_FACTOR_ENABLE,
            AuthEventAction.RECOVERY_CODES_CREATE,
        ),
        *(
            AuthEventAction.TOTP_DISABLE,
            AuthEventAction.TOTP_ENABLE,
            AuthEventAction.WEBAUTHN_DELETE,
            AuthEventAction.WEBAUTHN_REGISTER,
        ),
        *(AuthEventAction.API_KEY_CREATE, AuthEventAction.API_KEY_UPDATE),
        *(
            AuthEventAction.APP_PASSWORD_CREATE,
            AuthEventAction.APP_PASSWORD_DELETE,
            AuthEventAction.APP_PASSWORD_UPDATE,
        ),
        *(
            AuthEventAction.BCC_RULE_CREATE,
            AuthEventAction.BCC_RULE_DELETE,
            AuthEventAction.BCC_RULE_UPDATE,
        ),
        *(
            AuthEventAction.CONNECTOR_CREATE,
            AuthEventAction.CONNECTOR_DELETE,
            AuthEventAction.CONNECTOR_UPDATE,
        ),
        *(
            AuthEventAction.FILTER_FORWARD,
            AuthEventAction.FORWARDING_CHANGE,
            AuthEventAction.ALLOWED_SENDERS_CHANGE,
            AuthEventAction.SIEVE_FORWARD,
        ),
        AuthEventAction.MESSAGE_REDIRECT,
        *(AuthEventAction.PASSWORD_CHANGE, AuthEventAction.PASSWORD_RESET),
    }
)
OPERATOR_NAME = "operator"  # actor name of the command line and the bootstrap key
CURSOR_KIND = "authlog-newest"
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(SecurityEvent)) - {
    "fold",
    "told_at",
}


@dataclass(frozen=True, slots=True)
class NewSecurityEvent:
    """An event for the security log: an action and its result.

    `detail` never holds a secret. Of equal events, the detail of the last is kept.
    """

    action: AuthEventAction
    user_id: int | None
    result: AuthEventResult = AuthEventResult.SUCCESS
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
    col(SecurityEvent.told_at) > bindparam("told"),
)
_CLOSE_OLD_FOLDS = (
    update(SecurityEvent)
    .where(_HAS_FOLD, col(SecurityEvent.created_at) <= bindparam("begun"))
    .values(fold=col(SecurityEvent.fold) + literal("~") + cast(col(SecurityEvent.id), String))
)
_UPDATE_TOLD_AT = (
    update(SecurityEvent)
    .where(col(SecurityEvent.id).in_(bindparam("late", expanding=True)))
    .values(told_at=bindparam("now"))
)


@cache
def _upsert_sql(dialect: str) -> Any:
    """SQL: insert events or raise the count of equal rows; returns the rows."""
    insert = insert_with_conflict(dialect, SecurityEvent)
    names = ("last_at", "session_id", "detail", "ip", "ip_key")  # of the last event
    changed = {name: insert.excluded[name] for name in names}
    changed["count"] = SecurityEvent.count + insert.excluded.count
    upsert = insert.on_conflict_do_update(index_elements=["fold"], set_=changed)
    return upsert.returning(*select_columns(SecurityEvent, ("id", "user_id", "fold", "told_at")))


async def log_event(ctx: Context, session: AsyncSession, event: NewSecurityEvent) -> int:
    """Write an event in the transaction of the action, which locks the user.

    Queues a message to the user about certain changes by others. Returns the row's id, or 0 if the
    log is switched off.
    """
    return next(iter(await log_events(ctx, session, [event])), 0)


async def log_events(
    ctx: Context, session: AsyncSession, events: Sequence[NewSecurityEvent]
) -> list[int]:
    """Write events in the transaction of their action, which locks their users.

    Queues messages to the users about certain changes by others. Returns the row ids in the order
    of the events; empty if the log is switched off. The number of statements does not grow with
    the events.
    """
    if not events or not ctx.environment.options.security_log_retention:
        return []
    connection = await session.connection()
    actor_name = ""
    if any(_is_by_another(ctx.viewer, event) for event in events):
        actor_id, actor_name = await load_actor_id_and_name(session, ctx.viewer)
    else:
        actor_id = 0
    event_ids: list[int] = []
    now = ctx.environment.now()
    event_rows = [_build_row(ctx, event, (actor_id, actor_name), now) for event in events]
    for start in range(0, len(events), MAX_EVENTS_PER_STATEMENT):
        part_rows = event_rows[start : start + MAX_EVENTS_PER_STATEMENT]
        user_ids = {line.values["user_id"] for line in part_rows}
        part_ids, positions = await connection.run_sync(
            _upsert_and_journal_rows, part_rows, user_ids, now
        )
        event_ids += part_ids
        session.info["reached"] = {**journal.recorded_positions(session), **positions}
    await _queue_messages_to_users(
        ctx, session, [event for event in events if _is_by_another(ctx.viewer, event)], actor_name
    )
    return event_ids


async def _queue_messages_to_users(
    ctx: Context,
    session: AsyncSession,
    events_by_others: Sequence[NewSecurityEvent],
    actor_name: str,
) -> None:
    """Queue messages to users about changes by others to their credentials or mail routing.

    Commands on the server itself send none: they have no client address.
    """
    if not ctx.client_ip:
        return
    for event in events_by_others:
        if (
            event.user_id
            and event.result is AuthEventResult.SUCCESS
            and event.action in REPORTED_ACTIONS
        ):
            await queue_message_to_user(ctx, session, event, actor_name)


async def queue_message_to_user(
    ctx: Context, session: AsyncSession, event: NewSecurityEvent, actor_name: str | None = None
) -> None:
    """Queue a message that informs the user of this event; `actor_name` is the administrator."""
    order = {
        "action": event.action,
        "by": actor_name,
        "at": ctx.environment.now().isoformat(),
        "ip": ctx.client_ip or "",
        "detail": redact_secrets(dict(event.detail)),
    }
    (task,) = await task_steps.insert_tasks(
        ctx, session, TaskKind.SECURITY_NOTIFICATION, [order], user_id=event.user_id
    )
    await ctx.record_change(session, event.user_id or 0, EventType.TASK_CHANGED, [task.id])


async def log_event_separately(ctx: Context, event: NewSecurityEvent) -> None:
    """Write an event in a separate transaction. Must not be called inside an open one.

    The user is locked only if a journal entry is due: a flood of equal failures locks the user once
    a minute. Events of a user that no longer exists are not written.
    """
    await _write_rows(
        ctx.environment, [await _load_actor_and_build_row(ctx, event, ctx.environment.now())]
    )


@dataclass(frozen=True, slots=True)
class UnwrittenSecurityEvent:
    """An event that waits to be written in the background, with its context and time."""

    ctx: Context
    event: NewSecurityEvent
    event_time: datetime


def log_event_in_background(ctx: Context, event: NewSecurityEvent) -> None:
    """Write an event in the background, as `log_event_separately` does.

    Events that arrive together share a transaction.
    """
    cache = cache_of_database(ctx.environment.database)
    cache.unwritten_events.append(
        UnwrittenSecurityEvent(replace(ctx), event, ctx.environment.now())
    )
    if len(cache.unwritten_events) == 1:
        cache.run_in_background(_write_background_events(ctx.environment, cache))


async def _write_background_events(environment: Environment, cache: CredentialCache) -> None:
    """Write the events that have arrived: the first at once, in a flood twice a second."""
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(cache.events_written_at + BACKGROUND_WRITE_INTERVAL - clock())
    events, cache.unwritten_events, cache.events_written_at = cache.unwritten_events, [], clock()
    event_rows = [
        await _load_actor_and_build_row(one.ctx, one.event, one.event_time) for one in events
    ]
    for start in range(0, len(event_rows), MAX_EVENTS_PER_STATEMENT):
        await _write_rows(environment, event_rows[start : start + MAX_EVENTS_PER_STATEMENT])


async def _write_rows(environment: Environment, event_rows: Sequence[SecurityEventRow]) -> None:
    """Write event rows in a transaction of their own; skip those of users that no longer exist."""
    if not environment.options.security_log_retention:
        return
    due_user_ids = await _user_ids_due_for_journal(environment, event_rows)

    def write_in_transaction(transaction: DatabaseTransaction) -> None:
        _, positions = _upsert_and_journal_rows(
            transaction.connection, event_rows, due_user_ids, environment.now()
        )
        transaction.recorded_positions.update(positions)

    try:
        await environment.run_transaction(write_in_transaction, *sorted(due_user_ids))
    except IntegrityError:
        if len(event_rows) > 1:
            for event_row in event_rows:
                await _write_rows(environment, [event_row])
        else:
            action = event_rows[0].values["action"]
            log.info("an event of an account that is gone", extra={"action": action})


async def _load_actor_and_build_row(
    ctx: Context, event: NewSecurityEvent, event_time: datetime
) -> SecurityEventRow:
    """Return the row of an event, with the name of its actor from the database."""
    actor_id_and_name = (0, "")
    if _is_by_another(ctx.viewer, event):
        actor_id_and_name = _actor_id_and_name(
            ctx.viewer, await ctx.environment.database.read(_actor_name_sql(ctx.viewer))
        )
    return _build_row(ctx, event, actor_id_and_name, event_time)


async def _user_ids_due_for_journal(
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


def _is_by_another(viewer: Viewer, event: NewSecurityEvent) -> bool:
    """True if another than the user of the event did it."""
    if viewer.is_acting:
        return True
    if viewer.role is Role.PUBLIC or event.action in ALWAYS_OWN_ACTIONS:
        return False
    return viewer.user_id != event.user_id


async def load_actor_id_and_name(session: AsyncSession, viewer: Viewer) -> tuple[int, str]:
    """Return the actor as logs name it: user id and username, or 0 and the name of the key."""
    connection = await session.connection()
    return _actor_id_and_name(viewer, (await connection.execute(_actor_name_sql(viewer))).all())


def _actor_name_sql(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """SQL: the name of the actor."""
    if user_id := _actor_user_id(viewer):
        return select(col(User.username).label("name")).where(col(User.id) == user_id)
    return select(col(ApiKey.name).label("name")).where(col(ApiKey.id) == _actor_key_id(viewer))


def _actor_user_id(viewer: Viewer) -> int:
    """Return the id of the user who acts; 0 if a key acts."""
    return 0 if viewer.actor_key_id is not None else viewer.actor_id or viewer.user_id


def _actor_key_id(viewer: Viewer) -> int:
    """Return the id of the key that acts; 0 for none or the bootstrap key."""
    return viewer.api_key_id or 0 if viewer.actor_key_id is None else viewer.actor_key_id


def _actor_id_and_name(viewer: Viewer, rows: Sequence[ColumnRow]) -> tuple[int, str]:
    """Return id and name of the actor from the rows of `_actor_name_sql`."""
    name = rows[0].name if rows else None
    if user_id := _actor_user_id(viewer):
        return user_id, name or str(user_id)
    return 0, f"key {name or _actor_key_id(viewer)}" if _actor_key_id(viewer) else OPERATOR_NAME


def _equal_events_digest(
    ctx: Context, event: NewSecurityEvent, actor_id_and_name: tuple[int, str]
) -> str:
    """Return the digest that equal events share. Failures from one /64 of IPv6 are equal."""
    ip = (
        ctx.client_ip
        if event.result is AuthEventResult.SUCCESS
        else _ip_or_ipv6_network_key(ctx.client_ip)
    )
    parts = (event.user_id, event.protocol, ip, event.action, event.result, event.target)
    actor_name = actor_id_and_name[1] if _is_by_another(ctx.viewer, event) else ""
    return hashlib.sha256(repr((*parts, actor_name)).encode()).hexdigest()


def _ip_or_ipv6_network_key(ip: str | None) -> str | None:
    """Return an address as hex digits, an IPv6 address cut to its /64."""
    hex_digits = sortable_ip_hex(ip)
    return (
        hex_digits
        if hex_digits is None or hex_digits.startswith(f"{0xFFFF:024x}")
        else hex_digits[:16]
    )


def _upsert_and_journal_rows(
    connection: Connection,
    event_rows: Sequence[SecurityEventRow],
    journal_user_ids: Collection[int | None],
    now: datetime,
) -> tuple[list[int], StreamPositions]:
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
        {**row, "told_at": now if row["user_id"] in journal_user_ids else None} for row in rows
    ]
    stored_rows = connection.execute(_upsert_sql(connection.dialect.name), parameters).all()
    inserted_ids = {row["id"] for row in rows}
    journal_rows = [row for row in stored_rows if row.user_id and row.user_id in journal_user_ids]
    overdue_ids = {
        row.id
        for row in journal_rows
        if row.told_at is None or row.told_at <= now - JOURNAL_INTERVAL
    } - inserted_ids
    if overdue_ids:
        connection.execute(_UPDATE_TOLD_AT, {"late": list(overdue_ids), "now": now})
    reported = [row for row in journal_rows if row.id in inserted_ids | overdue_ids]
    positions = _record_in_journals(connection, [(row, by_fold[row.fold]) for row in reported], now)
    ids_by_fold = {row.fold: int(row.id) for row in stored_rows}
    return [ids_by_fold[line.values["fold"]] for line in event_rows], positions


def _build_row(
    ctx: Context, event: NewSecurityEvent, actor_id_and_name: tuple[int, str], event_time: datetime
) -> SecurityEventRow:
    """Return an event as a row of the table."""
    detail = dict(event.detail)
    if event.target:
        detail["target"] = event.target
    is_by_another = _is_by_another(ctx.viewer, event)
    row = {
        "id": ctx.environment.new_id(),
        "user_id": event.user_id,
        "fold": _equal_events_digest(ctx, event, actor_id_and_name),
        "action": event.action,
        "result": event.result,
        "protocol": event.protocol,
        "ip": ctx.client_ip,
        "ip_key": sortable_ip_hex(ctx.client_ip),
        "session_id": ctx.session_id,
        "by": actor_id_and_name[1] if is_by_another else None,
        "by_id": (actor_id_and_name[0] or None) if is_by_another else None,
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


def _journal_entry_key(
    event_row_with_id: tuple[SecurityEventRow, int],
) -> tuple[EventType, Mapping[str, Any], str | None]:
    """Return the values that the events of one journal entry have in common."""
    event_row, _ = event_row_with_id
    event_type = security_event_type(event_row.values["action"], event_row.values["result"])
    return event_type, event_row.journal_facts, event_row.origin


def _grouped_journal_entries(
    event_rows_with_ids: Sequence[tuple[SecurityEventRow, int]],
) -> list[JournalEntry]:
    """Return journal entries, one for each run of events with the same type, facts and origin."""
    groups = groupby(event_rows_with_ids, key=_journal_entry_key)
    return [
        JournalEntry(event_type, [key for _, key in group], facts, origin)
        for (event_type, facts, origin), group in groups
    ]


def sortable_ip_hex(ip: str | None) -> str | None:
    """Return an IP address as 32 hex digits, so that a network is a range.

    None if it is invalid.
    """
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    return _hex_digits(address)


def _hex_digits(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return f"{0xFFFF_0000_0000 | int(address):032x}"  # as ::ffff:a.b.c.d
    return f"{int(address):032x}"


@dataclass(frozen=True, slots=True)
class SecurityEventFilter:
    """Conditions on events; all must hold."""

    action: AuthEventAction | None = None
    result: AuthEventResult | None = None
    protocol: AuthProtocol | None = None
    ip: str | None = None
    network: str | None = None
    since: datetime | None = None  # time of the first of equal events, inclusive
    before: datetime | None = None  # exclusive

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the WHERE clause."""
        conditions: list[ColumnElement[bool]] = [
            getattr(SecurityEvent, name) == value
            for name in ("action", "result", "protocol")
            if (value := getattr(self, name)) is not None
        ]
        if self.ip is not None:
            conditions.append(col(SecurityEvent.ip_key) == sortable_ip_hex(self.ip))
        if self.network is not None:
            network = ipaddress.ip_network(self.network)
            bounds = _hex_digits(network.network_address), _hex_digits(network.broadcast_address)
            conditions.append(col(SecurityEvent.ip_key).between(*bounds))
        if self.since is not None:
            conditions.append(col(SecurityEvent.created_at) >= self.since)
        if self.before is not None:
            conditions.append(col(SecurityEvent.created_at) < self.before)
        return conditions


@dataclass(frozen=True, slots=True)
class SecurityEventPageKey:
    """A page of events, newest first: of one user, or of all users that the viewer oversees."""

    page_request: PageRequest
    columns: frozenset[str]
    filter: SecurityEventFilter = SecurityEventFilter()
    user_id: int | None = None


def _is_visible_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for events: the viewer's, those of users of administered domains, or all."""
    viewer, user_id = ctx.viewer, col(SecurityEvent.user_id)
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administered_domains:
        return user_id.in_(select(col(User.id)).where(is_overseen_user(ctx)))
    return user_id == viewer.user_id if viewer.user_id else false()


def _page_conditions(ctx: Context, page: SecurityEventPageKey) -> list[ColumnElement[bool]]:
    """Return all conditions of a page."""
    conditions = [_is_visible_sql(ctx), *page.filter.conditions()]
    return (
        conditions
        if page.user_id is None
        else [col(SecurityEvent.user_id) == page.user_id, *conditions]
    )


async def load_event_pages(
    ctx: Context, requested_pages: list[SecurityEventPageKey]
) -> list[Page[ColumnRow]]:
    """Load these pages, in this order."""
    columns = VISIBLE_COLUMNS.intersection(
        {"id", "created_at"}.union(*(key.columns for key in requested_pages))
    )
    sort_key = (col(SecurityEvent.created_at), col(SecurityEvent.id))
    scans = []
    for page in requested_pages:
        rows = select(*select_columns(SecurityEvent, columns)).where(*_page_conditions(ctx, page))
        scans.append(PageScan(rows, page.page_request, sort_key, is_descending=True))
    return await pagination.read_pages(ctx, scans)


async def count_events(ctx: Context, requested_pages: list[SecurityEventPageKey]) -> list[int]:
    """Count the events of these lists, in this order."""
    count = func.count().label("many")
    scans = [
        select(count).select_from(SecurityEvent).where(*_page_conditions(ctx, key))
        for key in requested_pages
    ]
    return [row.many for (row,) in await read_union(ctx, scans)]


async def load_visible_events_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load events by id, in this order; None for an event that the viewer does not see."""
    statement = select(*select_columns(SecurityEvent, VISIBLE_COLUMNS)).where(_is_visible_sql(ctx))
    return await read_by_keys(ctx, statement, col(SecurityEvent.id), ids)
