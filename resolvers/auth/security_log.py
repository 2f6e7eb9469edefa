"""The security log: what happened to credentials, who tried to use them, and who may read of it."""

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

FOLDED = timedelta(hours=6)  # from the first of equal events
GATHERED = 0.5  # seconds between two units that a flood of events is written in
PAUSE = timedelta(minutes=1)  # between two words in the journal of one row that counts up
MOST = 1000  # events of one statement
THEIR_OWN = frozenset({"authenticate"})  # whoever relays it: a front end is not who signs in
# What an account is told of by mail if somebody else did it.
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
OPERATOR = "operator"  # whoever owns the machine: the command line, and the bootstrap key
LONGEST = 128  # characters of a condition
NEWEST = "authlog-newest"
SHOWN = frozenset(column.name for column in picked(AuthEvent)) - {"fold", "told_at"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something to note: `action` such as authenticate or totp enable, and what came of it.

    `detail` tells more, and never a secret; of equal events, that of the last is kept.
    """

    action: str
    user_id: int | None
    result: str = "success"
    protocol: str | None = None
    target: str | None = None  # what it was done to, where that makes events different
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """An event as a row, and what the journal is told beside it."""

    row: dict[str, Any]
    facts: Mapping[str, Any]
    origin: str | None


# Made once: building a statement costs more than running it, and a flood runs many.
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
    """Insert events, or count those up that are there; answers with the rows as they are then."""
    new = insert_or(dialect, AuthEvent)
    names = ("last_at", "session_id", "detail", "ip", "ip_key")  # as the last of them has it
    again = {name: new.excluded[name] for name in names}
    again["count"] = AuthEvent.count + new.excluded.count
    put = new.on_conflict_do_update(index_elements=["fold"], set_=again)
    return put.returning(*picked(AuthEvent, ("id", "user_id", "fold", "told_at")))


async def note(ctx: Context, session: AsyncSession, event: Event) -> int:
    """Write it in the unit that does it, whose account is held.

    Returns the row's id, or 0 where the log is switched off.
    """
    return next(iter(await note_all(ctx, session, [event])), 0)


async def note_all(ctx: Context, session: AsyncSession, events: Sequence[Event]) -> list[int]:
    """Write these in the unit that does it, whose accounts are held; the rows' ids in their order.

    As many statements for many as for one. None where the log is switched off.
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
    """Queue a message to each account whose credentials or mail routing somebody else changed.

    Commands on the machine itself send none: they have no client address.
    """
    if not ctx.client_ip:
        return
    for event in events:
        if event.user_id and event.result == "success" and event.action in REPORTED:
            await queue_letter(ctx, session, event, by)


async def queue_letter(
    ctx: Context, session: AsyncSession, event: Event, by: str | None = None
) -> None:
    """Queue a message that tells the account of this event; `by` names the administrator."""
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
    """Write it in a unit of its own: never inside one that is open.

    The account is held only where its followers are to be told: a flood of equal failures
    makes it wait once a minute. Of an account that is gone nothing is written.
    """
    await _noted(ctx.world, [await _signed(ctx, event, ctx.world.now())])


def behind(ctx: Context, event: Event) -> None:
    """Do what `noted` does, behind the back of whoever asks; one unit for all of a flood's."""
    memory = memory_of(ctx.world.database)
    memory.events.append((replace(ctx), event, ctx.world.now()))
    if len(memory.events) == 1:
        memory.behind(_gathered(ctx.world, memory))


async def _gathered(world: World, memory: Memory) -> None:
    """Write what has come: the first at once, in a flood twice a second."""
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(memory.written + GATHERED - clock())
    events, memory.events, memory.written = memory.events, [], clock()
    lines = [await _signed(ctx, event, at) for ctx, event, at in events]
    for start in range(0, len(lines), MOST):
        await _noted(world, lines[start : start + MOST])


async def _noted(world: World, lines: Sequence[Line]) -> None:
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
    """The event, with the name of who did it."""
    by = (0, "")
    if _another(ctx.viewer, event):
        by = _called(ctx.viewer, await ctx.world.database.read(_named(ctx.viewer)))
    return _line(ctx, event, by, at)


async def _due(world: World, lines: Sequence[Line]) -> set[int]:
    """The accounts to tell: of the first event of its kind, or the first for a minute."""
    theirs = {line.row["fold"]: line.row["user_id"] for line in lines if line.row["user_id"]}
    if not theirs:
        return set()
    now = world.now()
    given = {"folds": list(theirs), "begun": now - FOLDED, "told": now - PAUSE}
    told = {row.fold for row in await world.database.read(_TOLD, given)}
    return {user_id for fold, user_id in theirs.items() if fold not in told}


def _another(viewer: Viewer, event: Event) -> bool:
    """Whether it is somebody else's doing than the account's own."""
    if viewer.acting:
        return True
    if viewer.role is Role.PUBLIC or event.action in THEIR_OWN:
        return False
    return viewer.user_id != event.user_id


async def actor(session: AsyncSession, viewer: Viewer) -> tuple[int, str]:
    """Who acts, as logs name them: a user's id and name, or 0 and what the key is called."""
    connection = await session.connection()
    return _called(viewer, (await connection.execute(_named(viewer))).all())


def _named(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """To read: the name of who acts."""
    if key := _person(viewer):
        return select(col(User.username).label("name")).where(col(User.id) == key)
    return select(col(ApiKey.name).label("name")).where(col(ApiKey.id) == _key(viewer))


def _person(viewer: Viewer) -> int:
    """The account that acts; 0: a key does."""
    return 0 if viewer.actor_key_id is not None else viewer.actor_id or viewer.user_id


def _key(viewer: Viewer) -> int:
    return viewer.api_key_id or 0 if viewer.actor_key_id is None else viewer.actor_key_id


def _called(viewer: Viewer, rows: Sequence[Picked]) -> tuple[int, str]:
    name = rows[0].name if rows else None
    if key := _person(viewer):
        return key, name or str(key)
    return 0, f"key {name or _key(viewer)}" if _key(viewer) else OPERATOR


def _fold(ctx: Context, event: Event, by: tuple[int, str]) -> str:
    """What makes events equal. Failures from one /64 of IPv6 are: it is one neighbour's."""
    ip = ctx.client_ip if event.result == "success" else _near(ctx.client_ip)
    told = (event.user_id, event.protocol, ip, event.action, event.result, event.target)
    who = by[1] if _another(ctx.viewer, event) else ""
    return hashlib.sha256(repr((*told, who)).encode()).hexdigest()


def _near(ip: str | None) -> str | None:
    key = ip_key(ip)
    return key if key is None or key.startswith(f"{0xFFFF:024x}") else key[:16]


def _put(
    connection: Connection, lines: Sequence[Line], tell: Collection[int | None], now: datetime
) -> tuple[list[int], Position]:
    """Insert these events, or count them up where equal ones are not six hours old.

    Returns the ids of their rows, and how far the journals have come that tell of them: of
    those accounts which `tell` names, and whose streams are held.
    """
    by_fold: dict[str, Line] = {}
    for line in lines:
        fold = line.row["fold"]
        many = 1 + (by_fold[fold].row["count"] if fold in by_fold else 0)
        by_fold[fold] = replace(line, row={**line.row, "count": many})
    connection.execute(_PART, {"folds": list(by_fold), "begun": now - FOLDED})
    rows = [by_fold[fold].row for fold in sorted(by_fold)]  # no deadlock
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
    """Write to the journals of the accounts that these rows are new, or count on."""
    theirs: dict[int, list[tuple[Line, int]]] = {}
    for row, line in told:
        theirs.setdefault(row.user_id, []).append((line, row.id))
    entries = {user_id: _entries(lines) for user_id, lines in theirs.items()}
    return journal.record_each(connection, entries, at=now)


def _entries(told: Sequence[tuple[Line, int]]) -> list[Entry]:
    """An entry for those that one caller made for one reason."""
    alike = groupby(told, key=lambda each: (each[0].facts, each[0].origin))
    return [
        Entry(ChangeKind.SECURITY_EVENT, [key for _, key in some], facts, origin)
        for (facts, origin), some in alike
    ]


def ip_key(ip: str | None) -> str | None:
    """An address as 32 hex digits: those of a network lie side by side. None where it is none."""
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
    """Which events to list; all conditions hold."""

    action: str | None = None
    result: str | None = None
    protocol: str | None = None
    ip: str | None = None
    network: str | None = None
    since: datetime | None = None  # of the first of equal events, inclusive
    before: datetime | None = None  # exclusive

    def terms(self) -> list[ColumnElement[bool]]:
        """The WHERE clause. Raises Invalid where a condition can be none."""
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
    """A page of events, the newest first: of one account, or of all whose events one sees."""

    ask: Ask
    columns: frozenset[str]
    where: EventWhere = EventWhere()
    user_id: int | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for events: one's own, those of one's domains' users, or all there are."""
    viewer, owner = ctx.viewer, col(AuthEvent.user_id)
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administers:
        return owner.in_(select(col(User.id)).where(overseen_users(ctx)))
    return owner == viewer.user_id if viewer.user_id else false()


def _terms(ctx: Context, key: Events) -> list[ColumnElement[bool]]:
    terms = [_visible(ctx), *key.where.terms()]
    return terms if key.user_id is None else [col(AuthEvent.user_id) == key.user_id, *terms]


async def pages(ctx: Context, keys: list[Events]) -> list[Page[Picked]]:
    """These pages, each in reading order."""
    columns = SHOWN.intersection({"id", "created_at"}.union(*(key.columns for key in keys)))
    place = (col(AuthEvent.created_at), col(AuthEvent.id))
    scans = []
    for key in keys:
        rows = select(*picked(AuthEvent, columns)).where(*_terms(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=True))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[Events]) -> list[int]:
    """How many events these lists have, in their order."""
    many = func.count().label("many")
    scans = [select(many).select_from(AuthEvent).where(*_terms(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The events with these ids, in this order; None where the viewer sees none."""
    seen = select(*picked(AuthEvent, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(AuthEvent.id), ids)
