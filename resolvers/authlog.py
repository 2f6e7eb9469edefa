"""The security log: what happened to credentials, who tried to use them, and who may read of it."""

import hashlib
import ipaddress
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
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

from models import journal
from models.auth import ApiKey
from models.authlog import AuthEvent
from models.columns import Picked, insert_or, picked
from models.errors import Invalid
from models.journal import ChangeKind, Entry, Position
from models.pages import Ask, Page
from models.roles import Role
from models.users import User
from models.world import Turn
from resolvers import listing
from resolvers.access import visible_users
from resolvers.context import Context, Viewer
from resolvers.listing import Scan, by_keys, together
from resolvers.redaction import without_secrets

log = logging.getLogger(__name__)

FOLDED = timedelta(hours=6)  # from the first of equal events
PAUSE = timedelta(minutes=1)  # between two words in the journal of one row that counts up
MOST = 1000  # events of one statement
THEIR_OWN = frozenset({"authenticate"})  # whoever relays it: a front end is not who signs in
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


# Made once: building a statement costs more than running it, and a flood runs many.
_FOLD = col(AuthEvent.fold).in_(bindparam("folds", expanding=True))
_TOLD = select(col(AuthEvent.id)).where(
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
    for start in range(0, len(events), MOST):
        put = partial(_put, ctx=ctx, events=events[start : start + MOST], by=(by_id, by), tell=True)
        some, reached = await connection.run_sync(put)
        keys += some
        session.info["reached"] = {**journal.reached(session), **reached}
    return keys


async def noted(ctx: Context, event: Event) -> None:
    """Write it in a unit of its own: never inside one that is open.

    The account is held only where its followers are to be told: a flood of equal failures
    makes it wait once a minute. Of an account that is gone nothing is written.
    """
    world = ctx.world
    if not world.options.authlog_for:
        return
    by = (0, "")
    if _another(ctx.viewer, event):
        rows: Sequence[Picked] = await world.database.read(_named(ctx.viewer))
        by = _called(ctx.viewer, rows)
    streams = [event.user_id] if event.user_id and await _due(ctx, event, by) else []

    def unit(turn: Turn) -> None:
        _, reached = _put(turn.connection, ctx, [event], by, tell=bool(streams))
        turn.reached.update(reached)

    try:
        await world.apply(unit, *streams)
    except IntegrityError:
        log.info("an event of an account that is gone", extra={"action": event.action})


async def _due(ctx: Context, event: Event, by: tuple[int, str]) -> bool:
    """Whether this event is one to tell: the first of its kind, or the first for a minute."""
    now = ctx.world.now()
    given = {"folds": [_fold(ctx, event, by)], "begun": now - FOLDED, "told": now - PAUSE}
    return not await ctx.world.database.read(_TOLD, given)


def _another(viewer: Viewer, event: Event) -> bool:
    """Whether it is somebody else's doing than the account's own."""
    if viewer.actor_id:
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
    if key := viewer.actor_id or viewer.user_id:
        return select(col(User.username).label("name")).where(col(User.id) == key)
    return select(col(ApiKey.name).label("name")).where(col(ApiKey.id) == (viewer.api_key_id or 0))


def _called(viewer: Viewer, rows: Sequence[Picked]) -> tuple[int, str]:
    name = rows[0].name if rows else None
    if key := viewer.actor_id or viewer.user_id:
        return key, name or str(key)
    return 0, f"key {name or viewer.api_key_id}" if viewer.api_key_id else OPERATOR


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
    connection: Connection,
    ctx: Context,
    events: Sequence[Event],
    by: tuple[int, str],
    tell: bool,
) -> tuple[list[int], Position]:
    """Insert these events, or count them up where equal ones are not six hours old.

    Returns the ids of their rows, and how far the journals have come that tell of them: the
    streams are held where we shall `tell`.
    """
    now = ctx.world.now()
    rows: dict[str, dict[str, Any]] = {}
    folds = [_fold(ctx, event, by) for event in events]
    for fold, event in zip(folds, events, strict=True):
        row = _row(ctx, event, by, fold)
        rows[fold] = row if fold not in rows else {**row, "count": rows[fold]["count"] + 1}
    connection.execute(_PART, {"folds": list(rows), "begun": now - FOLDED})
    given = [{**row, "told_at": now if tell else None} for row in rows.values()]
    there = connection.execute(_upsert(connection.dialect.name), given).all()
    first = {row["id"] for row in rows.values()}
    late = {row.id for row in there if row.told_at is None or row.told_at <= now - PAUSE} - first
    reached: Position = {}
    if tell:
        if late:
            connection.execute(_MARK, {"late": list(late), "now": now})
        reached = _tell(connection, ctx, [row for row in there if row.id in first | late])
    keys = {row.fold: int(row.id) for row in there}
    return [keys[fold] for fold in folds], reached


def _row(ctx: Context, event: Event, by: tuple[int, str], fold: str) -> dict[str, Any]:
    now, detail = ctx.world.now(), dict(event.detail)
    if event.target:
        detail["target"] = event.target
    acted = _another(ctx.viewer, event)
    return {
        "id": ctx.world.key(),
        "user_id": event.user_id,
        "fold": fold,
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
        "created_at": now,
        "last_at": now,
    }


def _tell(connection: Connection, ctx: Context, rows: Sequence[Picked]) -> Position:
    """Write to the journals of the accounts that these rows are new, or count on."""
    theirs: dict[int, list[int]] = {}
    for row in rows:
        if row.user_id:
            theirs.setdefault(row.user_id, []).append(row.id)
    facts = {"reason": ctx.reason} if ctx.reason else {}
    entries = {
        user_id: [Entry(ChangeKind.SECURITY_EVENT, keys, facts, ctx.origin)]
        for user_id, keys in theirs.items()
    }
    return journal.record_each(connection, entries, at=ctx.world.now())


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
        return owner.in_(select(col(User.id)).where(visible_users(ctx)))
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
    return await listing.pages(ctx, scans)


async def counts(ctx: Context, keys: list[Events]) -> list[int]:
    """How many events these lists have, in their order."""
    many = func.count().label("many")
    scans = [select(many).select_from(AuthEvent).where(*_terms(ctx, key)) for key in keys]
    return [row.many for (row,) in await together(ctx, scans)]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The events with these ids, in this order; None where the viewer sees none."""
    seen = select(*picked(AuthEvent, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(AuthEvent.id), ids)
