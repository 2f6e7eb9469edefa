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

from models.auth.credentials import ApiKey
from models.auth.security_log import LETTER, AuthEvent
from models.errors import Invalid
from models.events import journal
from models.events.journal import ChangeKind, Entry, Position
from models.runtime.environment import Turn, World
from models.store.columns import Picked, insert_or, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import overseen_users
from resolvers.admin import task_steps
from resolvers.admin.redaction import without_secrets
from resolvers.auth.credential_cache import Memory, memory_of
from resolvers.context import Context, Viewer
from resolvers.pagination import Scan, by_keys, together

log = logging.getLogger(__name__)

FOLDED = timedelta(hours=6)  # after the first of equal events
GATHERED = 0.5  # seconds between two transactions that write background events
PAUSE = timedelta(minutes=1)  # between two journal entries of one row that counts up
MOST = 1000  # events of one statement
THEIR_OWN = frozenset({"authenticate"})  # a front end that relays it does not sign in
# Actions of others that a user gets a message about.
REPORTED = frozenset(
    {
        *("2fa disable", "custom disable", "custom enable", "recovery codes create"),
        *("totp disable", "totp enable", "webauthn delete", "webauthn register"),
        *("api key create", "api key update"),
        *("app password create", "app password delete", "app password update"),
        *("bcc rule create", "bcc rule delete", "bcc rule update"),
        *("connector create", "connector delete", "connector update"),
        *("filter forward", "forwarding change", "sender whitelist change", "sieve forward"),
        "message forward",
        *("password change", "password reset"),
    }
)
OPERATOR = "operator"  # actor name of the command line and the bootstrap key
LONGEST = 128  # characters
NEWEST = "authlog-newest"
SHOWN = frozenset(column.name for column in picked(AuthEvent)) - {"fold", "told_at"}


@dataclass(frozen=True, slots=True)
class Event:
    """An event for the security log: an action such as `authenticate`, and its result.

    `detail` never holds a secret. Of equal events, the detail of the last is kept.
    """

    action: str
    user_id: int | None
    result: str = "success"
    protocol: str | None = None
    target: str | None = None  # the object of the action, if it distinguishes events
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """A security event as a row, with the facts and the origin of its journal entry."""

    row: dict[str, Any]
    facts: Mapping[str, Any]
    origin: str | None


# Built once: building a statement costs more than running it, and a flood runs many.
_FOLD = col(AuthEvent.fold).in_(bindparam("folds", expanding=True))
_TOLD = select(col(AuthEvent.fold)).where(
    _FOLD,
    col(AuthEvent.created_at) > bindparam("begun"),
    col(AuthEvent.told_at) > bindparam("told"),
)
_PART = (
    update(AuthEvent)
    .where(_FOLD, col(AuthEvent.created_at) <= bindparam("begun"))
    .values(fold=col(AuthEvent.fold) + literal("~") + cast(col(AuthEvent.id), String))
)
_MARK = (
    update(AuthEvent)
    .where(col(AuthEvent.id).in_(bindparam("late", expanding=True)))
    .values(told_at=bindparam("now"))
)


@cache
def _upsert(dialect: str) -> Any:
    """SQL: insert events or raise the count of equal rows; returns the rows."""
    new = insert_or(dialect, AuthEvent)
    names = ("last_at", "session_id", "detail", "ip", "ip_key")  # of the last event
    again = {name: new.excluded[name] for name in names}
    again["count"] = AuthEvent.count + new.excluded.count
    put = new.on_conflict_do_update(index_elements=["fold"], set_=again)
    return put.returning(*picked(AuthEvent, ("id", "user_id", "fold", "told_at")))


async def note(ctx: Context, session: AsyncSession, event: Event) -> int:
    """Write an event in the transaction of the action, which locks the user.

    Returns the row's id, or 0 if the log is switched off.
    """
    return next(iter(await note_all(ctx, session, [event])), 0)


async def note_all(ctx: Context, session: AsyncSession, events: Sequence[Event]) -> list[int]:
    """Write events in the transaction of their action, which locks their users.

    Returns the row ids in the order of the events; empty if the log is switched off. The number of
    statements does not grow with the events.
    """
    if not events or not ctx.world.options.authlog_for:
        return []
    connection = await session.connection()
    by = ""
    if any(_another(ctx.viewer, event) for event in events):
        by_id, by = await actor(session, ctx.viewer)
    else:
        by_id = 0
    keys: list[int] = []
    now = ctx.world.now()
    lines = [_line(ctx, event, (by_id, by), now) for event in events]
    for start in range(0, len(events), MOST):
        part = lines[start : start + MOST]
        tell = {line.row["user_id"] for line in part}
        some, reached = await connection.run_sync(_put, part, tell, now)
        keys += some
        session.info["reached"] = {**journal.reached(session), **reached}
    await _report(ctx, session, [event for event in events if _another(ctx.viewer, event)], by)
    return keys


async def _report(ctx: Context, session: AsyncSession, events: Sequence[Event], by: str) -> None:
    """Queue messages to users about changes by others to their credentials or mail routing.

    Commands on the server itself send none: they have no client address.
    """
    if not ctx.client_ip:
        return
    for event in events:
        if event.user_id and event.result == "success" and event.action in REPORTED:
            await queue_letter(ctx, session, event, by)


async def queue_letter(
    ctx: Context, session: AsyncSession, event: Event, by: str | None = None
) -> None:
    """Queue a message that informs the user of this event; `actor_name` is the administrator."""
    order = {
        "action": event.action,
        "by": by,
        "at": ctx.world.now().isoformat(),
        "ip": ctx.client_ip or "",
        "detail": without_secrets(dict(event.detail)),
    }
    (task,) = await task_steps.queue(ctx, session, LETTER, [order], user_id=event.user_id)
    await ctx.record(session, event.user_id or 0, ChangeKind.TASK_CHANGED, [task.id])


async def noted(ctx: Context, event: Event) -> None:
    """Write an event in a separate transaction. Must not be called inside an open one.

    The user is locked only if a journal entry is due: a flood of equal failures locks the user once
    a minute. Events of a user that no longer exists are not written.
    """
    await _noted(ctx.world, [await _signed(ctx, event, ctx.world.now())])


def behind(ctx: Context, event: Event) -> None:
    """Write an event in the background, as `log_event_separately` does.

    Events that arrive together share a transaction.
    """
    memory = memory_of(ctx.world.database)
    memory.events.append((replace(ctx), event, ctx.world.now()))
    if len(memory.events) == 1:
        memory.behind(_gathered(ctx.world, memory))


async def _gathered(world: World, memory: Memory) -> None:
    """Write the events that have arrived: the first at once, in a flood twice a second."""
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(memory.written + GATHERED - clock())
    events, memory.events, memory.written = memory.events, [], clock()
    lines = [await _signed(ctx, event, at) for ctx, event, at in events]
    for start in range(0, len(lines), MOST):
        await _noted(world, lines[start : start + MOST])


async def _noted(world: World, lines: Sequence[Line]) -> None:
    """Write event rows in a transaction of their own; skip those of users that no longer exist."""
    if not world.options.authlog_for:
        return
    due = await _due(world, lines)

    def unit(turn: Turn) -> None:
        _, reached = _put(turn.connection, lines, due, world.now())
        turn.reached.update(reached)

    try:
        await world.apply(unit, *sorted(due))
    except IntegrityError:
        if len(lines) > 1:
            for line in lines:
                await _noted(world, [line])
        else:
            action = lines[0].row["action"]
            log.info("an event of an account that is gone", extra={"action": action})


async def _signed(ctx: Context, event: Event, at: datetime) -> Line:
    """Return the row of an event, with the name of its actor from the database."""
    by = (0, "")
    if _another(ctx.viewer, event):
        by = _called(ctx.viewer, await ctx.world.database.read(_named(ctx.viewer)))
    return _line(ctx, event, by, at)


async def _due(world: World, lines: Sequence[Line]) -> set[int]:
    """Return the users that get a journal entry: for a new event, or after a minute without one."""
    theirs = {line.row["fold"]: line.row["user_id"] for line in lines if line.row["user_id"]}
    if not theirs:
        return set()
    now = world.now()
    given = {"folds": list(theirs), "begun": now - FOLDED, "told": now - PAUSE}
    told = {row.fold for row in await world.database.read(_TOLD, given)}
    return {user_id for fold, user_id in theirs.items() if fold not in told}


def _another(viewer: Viewer, event: Event) -> bool:
    """True if another than the user of the event did it."""
    if viewer.acting:
        return True
    if viewer.role is Role.PUBLIC or event.action in THEIR_OWN:
        return False
    return viewer.user_id != event.user_id


async def actor(session: AsyncSession, viewer: Viewer) -> tuple[int, str]:
    """Return the actor as logs name it: user id and username, or 0 and the name of the key."""
    connection = await session.connection()
    return _called(viewer, (await connection.execute(_named(viewer))).all())


def _named(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """SQL: the name of the actor."""
    if key := _person(viewer):
        return select(col(User.username).label("name")).where(col(User.id) == key)
    return select(col(ApiKey.name).label("name")).where(col(ApiKey.id) == _key(viewer))


def _person(viewer: Viewer) -> int:
    """Return the id of the user who acts; 0 if a key acts."""
    return 0 if viewer.actor_key_id is not None else viewer.actor_id or viewer.user_id


def _key(viewer: Viewer) -> int:
    """Return the id of the key that acts; 0 for none or the bootstrap key."""
    return viewer.api_key_id or 0 if viewer.actor_key_id is None else viewer.actor_key_id


def _called(viewer: Viewer, rows: Sequence[Picked]) -> tuple[int, str]:
    """Return id and name of the actor from the rows of `_actor_name_sql`."""
    name = rows[0].name if rows else None
    if key := _person(viewer):
        return key, name or str(key)
    return 0, f"key {name or _key(viewer)}" if _key(viewer) else OPERATOR


def _fold(ctx: Context, event: Event, by: tuple[int, str]) -> str:
    """Return the digest that equal events share. Failures from one /64 of IPv6 are equal."""
    ip = ctx.client_ip if event.result == "success" else _near(ctx.client_ip)
    told = (event.user_id, event.protocol, ip, event.action, event.result, event.target)
    who = by[1] if _another(ctx.viewer, event) else ""
    return hashlib.sha256(repr((*told, who)).encode()).hexdigest()


def _near(ip: str | None) -> str | None:
    """Return an address as hex digits, an IPv6 address cut to its /64."""
    key = ip_key(ip)
    return key if key is None or key.startswith(f"{0xFFFF:024x}") else key[:16]


def _put(
    connection: Connection, lines: Sequence[Line], tell: Collection[int | None], now: datetime
) -> tuple[list[int], Position]:
    """Insert events, or count them up if equal ones are less than six hours old.

    Returns the ids of their rows in the order given, and the new positions of the journals of the
    users in `journal_user_ids`, which are locked.
    """
    by_fold: dict[str, Line] = {}
    for line in lines:
        fold = line.row["fold"]
        many = 1 + (by_fold[fold].row["count"] if fold in by_fold else 0)
        by_fold[fold] = replace(line, row={**line.row, "count": many})
    connection.execute(_PART, {"folds": list(by_fold), "begun": now - FOLDED})
    rows = [by_fold[fold].row for fold in sorted(by_fold)]  # one order: no deadlock
    given = [{**row, "told_at": now if row["user_id"] in tell else None} for row in rows]
    there = connection.execute(_upsert(connection.dialect.name), given).all()
    first = {row["id"] for row in rows}
    theirs = [row for row in there if row.user_id and row.user_id in tell]
    late = {row.id for row in theirs if row.told_at is None or row.told_at <= now - PAUSE} - first
    if late:
        connection.execute(_MARK, {"late": list(late), "now": now})
    told = [row for row in theirs if row.id in first | late]
    reached = _tell(connection, [(row, by_fold[row.fold]) for row in told], now)
    keys = {row.fold: int(row.id) for row in there}
    return [keys[line.row["fold"]] for line in lines], reached


def _line(ctx: Context, event: Event, by: tuple[int, str], at: datetime) -> Line:
    """Return an event as a row of the table."""
    detail = dict(event.detail)
    if event.target:
        detail["target"] = event.target
    acted = _another(ctx.viewer, event)
    row = {
        "id": ctx.world.key(),
        "user_id": event.user_id,
        "fold": _fold(ctx, event, by),
        "action": event.action,
        "result": event.result,
        "protocol": event.protocol,
        "ip": ctx.client_ip,
        "ip_key": ip_key(ctx.client_ip),
        "session_id": ctx.session_id,
        "by": by[1] if acted else None,
        "by_id": (by[0] or None) if acted else None,
        "detail": without_secrets(detail) or None,
        "count": 1,
        "created_at": at,
        "last_at": at,
    }
    return Line(row, {"reason": ctx.reason} if ctx.reason else {}, ctx.origin)


def _tell(connection: Connection, told: Sequence[tuple[Picked, Line]], now: datetime) -> Position:
    """Write new or counted rows to the journals of their users; return the new positions."""
    theirs: dict[int, list[tuple[Line, int]]] = {}
    for row, line in told:
        theirs.setdefault(row.user_id, []).append((line, row.id))
    entries = {user_id: _entries(lines) for user_id, lines in theirs.items()}
    return journal.record_each(connection, entries, at=now)


def _entries(told: Sequence[tuple[Line, int]]) -> list[Entry]:
    """Return journal entries, one for each run of events with the same facts and origin."""
    alike = groupby(told, key=lambda each: (each[0].facts, each[0].origin))
    return [
        Entry(ChangeKind.SECURITY_EVENT, [key for _, key in some], facts, origin)
        for (facts, origin), some in alike
    ]


def ip_key(ip: str | None) -> str | None:
    """Return an IP address as 32 hex digits, so that a network is a range.

    None if it is invalid.
    """
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return None
    return _digits(address)


def _digits(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return f"{0xFFFF_0000_0000 | int(address):032x}"  # as ::ffff:a.b.c.d
    return f"{int(address):032x}"


@dataclass(frozen=True, slots=True)
class EventWhere:
    """Conditions on events; all must hold."""

    action: str | None = None
    result: str | None = None
    protocol: str | None = None
    ip: str | None = None
    network: str | None = None
    since: datetime | None = None  # time of the first of equal events, inclusive
    before: datetime | None = None  # exclusive

    def terms(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the WHERE clause. Raises Invalid for an unusable text."""
        found: list[ColumnElement[bool]] = []
        for name in ("action", "result", "protocol"):
            if (text := getattr(self, name)) is not None:
                if not text.isprintable() or len(text) > LONGEST:
                    told = f"at most {LONGEST} printable characters"
                    raise Invalid(told, constraint="length", path=["filter", name])
                found.append(getattr(AuthEvent, name) == text)
        if self.ip is not None:
            found.append(col(AuthEvent.ip_key) == ip_key(self.ip))
        if self.network is not None:
            all_of = ipaddress.ip_network(self.network)
            ends = _digits(all_of.network_address), _digits(all_of.broadcast_address)
            found.append(col(AuthEvent.ip_key).between(*ends))
        if self.since is not None:
            found.append(col(AuthEvent.created_at) >= self.since)
        if self.before is not None:
            found.append(col(AuthEvent.created_at) < self.before)
        return found


@dataclass(frozen=True, slots=True)
class Events:
    """A page of events, newest first: of one user, or of all users that the viewer oversees."""

    ask: Ask
    columns: frozenset[str]
    where: EventWhere = EventWhere()
    user_id: int | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for events: the viewer's, those of users of administered domains, or all."""
    viewer, owner = ctx.viewer, col(AuthEvent.user_id)
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        return owner.in_(select(col(User.id)).where(overseen_users(ctx)))
    return owner == viewer.user_id if viewer.user_id else false()


def _terms(ctx: Context, key: Events) -> list[ColumnElement[bool]]:
    """Return all conditions of a page."""
    terms = [_visible(ctx), *key.where.terms()]
    return terms if key.user_id is None else [col(AuthEvent.user_id) == key.user_id, *terms]


async def pages(ctx: Context, keys: list[Events]) -> list[Page[Picked]]:
    """Load these pages, in this order."""
    columns = SHOWN.intersection({"id", "created_at"}.union(*(key.columns for key in keys)))
    place = (col(AuthEvent.created_at), col(AuthEvent.id))
    scans = []
    for key in keys:
        rows = select(*picked(AuthEvent, columns)).where(*_terms(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=True))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[Events]) -> list[int]:
    """Count the events of these lists, in this order."""
    many = func.count().label("many")
    scans = [select(many).select_from(AuthEvent).where(*_terms(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load events by id, in this order; None for an event that the viewer does not see."""
    seen = select(*picked(AuthEvent, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(AuthEvent.id), ids)
