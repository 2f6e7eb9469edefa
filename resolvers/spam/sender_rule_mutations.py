"""Create and delete sender rules of a user, a tag, a domain or the platform."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.spam.sender_rules import checked_pattern
from models.errors import Forbidden, Invalid, LimitReached, NotFound
from models.events.journal import PLATFORM, ChangeKind
from models.spam.sender_rules import EVERYBODY, SenderAction, SenderRule, of_domain, of_tag, of_user
from models.store.columns import Picked, picked
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers import sql_text
from resolvers.access import maker, managed_users
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.domains import loaders as domain_loaders
from resolvers.spam.sender_rules import visible
from resolvers.users.selection import managed_one

TOGETHER = 100
MOST = 1000  # of one user, tag or domain
MOST_OF_ALL = 10_000
COMMENT = 500  # characters
OF_USERS = Needs(
    role=Role.DOMAIN_ADMIN, scope=Scope.MASTER, admin_permission=AdminPermission.SPAM_POLICY
)
OF_DOMAINS = Needs(role=Role.DOMAIN_ADMIN, scope=Scope.MASTER)
OF_ALL = Needs(role=Role.ADMIN, scope=Scope.MASTER)  # tags cross domains


@dataclass(frozen=True, slots=True)
class Whom:
    """The owner of sender rules: a user, a tag or a domain; none of them for the platform."""

    user_id: int | None = None
    tag: str | None = None
    domain: str | None = None  # the name, not an alias


@dataclass(frozen=True, slots=True)
class NewRules:
    """Patterns and the action for their senders.

    An existing comment stays unless `sets_comment`.
    """

    action: SenderAction
    patterns: Sequence[str]
    comment: str | None = None
    commented: bool = False


@dataclass(frozen=True, slots=True)
class _Home:
    """The place key of sender rules, with the columns of their owner."""

    place: str
    user_id: int | None = None
    domain_id: int | None = None
    tag: str | None = None
    log: int | None = None  # the domain whose administrators see the change in the admin log

    @property
    def stream(self) -> int:
        """The stream that records changes of the rules."""
        return self.user_id or self.domain_id or PLATFORM

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that each rule of this owner has."""
        named = {"user_id": self.user_id, "domain_id": self.domain_id, "tag": self.tag}
        return {"place": self.place, **named}


@dataclass(frozen=True, slots=True)
class _Changed:
    """A rule that was created, changed or deleted, with its values before and after."""

    id: int
    home: _Home
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


async def create(ctx: Context, whom: Whom, new: NewRules) -> list[int]:
    """Create sender rules, or set the action of existing ones. Returns the IDs by pattern order.

    Raises NotFound or Forbidden if the viewer may not change rules of this owner, LimitReached
    if there would be too many, and Invalid for a bad pattern.
    """
    patterns, values = _checked(new)
    home = await _home(ctx, whom)
    async with ctx.write(home.stream) as session:
        home = await _home(ctx, whom)  # again, now that the stream is locked
        there = await _there(ctx, home, patterns)
        fresh = [one for one in patterns if one not in there]
        await _check_room(ctx, home, len(fresh))
        turned = [row for row in there.values() if _logged(row) != {**_logged(row), **values}]
        made = [_row(ctx, home, pattern, values) for pattern in fresh]
        connection = await session.connection()
        if made:
            await connection.execute(insert(SenderRule), made)
        if turned:
            these = col(SenderRule.id).in_([row.id for row in turned])
            await connection.execute(
                update(SenderRule).where(these).values({**values, **maker(ctx)})
            )
        changed = [_Changed(row["id"], home, after=_said(row)) for row in made]
        for row in turned:
            was = _logged(row)
            changed.append(_Changed(row.id, home, was, {**was, **values}))
        await _tell(ctx, session, "senderRuleCreate", changed)
    keys = {row.pattern: row.id for row in there.values()}
    keys |= {row["pattern"]: row["id"] for row in made}
    return [keys[pattern] for pattern in patterns]


def _checked(new: NewRules) -> tuple[list[str], dict[str, Any]]:
    """Return the normalized patterns, each once, and the column values of the rules.

    Raises Invalid for a bad pattern or number of patterns.
    """
    if not 0 < len(new.patterns) <= TOGETHER:
        text = f"1 to {TOGETHER} patterns"
        raise Invalid(text, constraint="length", path=["patterns"])
    patterns = [
        checked_pattern(text, path=["patterns"], index=nth) for nth, text in enumerate(new.patterns)
    ]
    values: dict[str, Any] = {"action": new.action}
    if new.commented:
        values["comment"] = sql_text.checked(new.comment, most=COMMENT, path=["comment"])
    return list(dict.fromkeys(patterns)), values


async def _home(ctx: Context, whom: Whom) -> _Home:
    """Return the place of an owner's rules. Raises NotFound or Forbidden."""
    if whom.user_id is not None:
        if whom.user_id != ctx.viewer.user_id:
            _require(ctx, OF_USERS, ["scope", "user"])
        row = await managed_one(ctx, whom.user_id, path="scope")
        return _Home(of_user(row.id), user_id=row.id, log=row.domain_id)
    if whom.domain is not None:
        _require(ctx, OF_DOMAINS, ["scope", "domain"])
        domain = await domain_loaders.named(ctx, whom.domain)
        if domain is None:
            raise NotFound(whom.domain, path=["scope", "domain"])
        return _Home(of_domain(domain.id), domain_id=domain.id, log=domain.id)
    _require(ctx, OF_ALL, ["scope", "global" if whom.tag is None else "tag"])
    if whom.tag is None:
        return _Home(EVERYBODY)
    (tag,) = sql_text.labels([whom.tag], path=["scope", "tag"])
    return _Home(of_tag(tag.casefold()), tag=tag.casefold())


def _require(ctx: Context, needs: Needs, path: Sequence[str]) -> None:
    """Raise Forbidden at this input field if role, scope or permission are not sufficient."""
    try:
        ctx.viewer.require(needs)
    except Forbidden as refusal:
        raise Forbidden(refusal.message, requires=refusal.requires, path=path) from None


async def _there(ctx: Context, home: _Home, patterns: Sequence[str]) -> dict[str, Picked]:
    """Load the existing rules of a place with one of these patterns, by pattern."""
    asked = select(*picked(SenderRule)).where(
        col(SenderRule.place) == home.place, col(SenderRule.pattern).in_(patterns)
    )
    return {row.pattern: row for row in await ctx.read(asked)}


async def _check_room(ctx: Context, home: _Home, more: int) -> None:
    """Raise LimitReached if the new rules would exceed the limit of the owner."""
    asked = select(func.count().label("many")).where(col(SenderRule.place) == home.place)
    (row,) = await ctx.read(asked)
    most = MOST_OF_ALL if home.place == EVERYBODY else MOST
    if more and row.many + more > most:
        text = f"at most {most} rules"
        raise LimitReached(text, limit=most, used=row.many, path=["patterns"])


def _row(ctx: Context, home: _Home, pattern: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the column values of a new rule."""
    own = {"id": ctx.world.key(), "pattern": pattern, "created_at": ctx.world.now()}
    return {**home.columns, **own, **maker(ctx), "comment": None, **values}


def _logged(row: Picked) -> dict[str, Any]:
    return _said(row._asdict())


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a rule for the admin log."""
    return {name: row[name] for name in ("place", "pattern", "action", "comment")}


async def _tell(
    ctx: Context, session: AsyncSession, mutation: str, changed: Sequence[_Changed]
) -> None:
    """Record changes in the journal, and those of other users' rules in the admin log."""
    told: defaultdict[int, list[int]] = defaultdict(list)
    for one in changed:
        told[one.home.stream].append(one.id)
    entries = {stream: [(ChangeKind.SENDER_RULE_CHANGED, keys)] for stream, keys in told.items()}
    await ctx.record_all(session, entries)
    done = (
        Done(mutation, "SenderRule", one.id, one.home.log, one.before, one.after)
        for one in changed
        if one.home.user_id is None or one.home.user_id != ctx.viewer.user_id
    )
    await admin_log.note(ctx, session, *done)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete sender rules, all or none.

    Raises NotFound, or Forbidden for a rule that the viewer may only read.
    """
    homes = await _homes(ctx, ids)
    async with ctx.write(*{home.stream for home, _ in homes.values()}) as session:
        homes = await _homes(ctx, ids)
        connection = await session.connection()
        await connection.execute(delete(SenderRule).where(col(SenderRule.id).in_(homes)))
        changed = [_Changed(key, home, _logged(row)) for key, (home, row) in homes.items()]
        await _tell(ctx, session, "senderRuleDelete", changed)


async def _homes(ctx: Context, ids: Sequence[int]) -> dict[int, tuple[_Home, Picked]]:
    """Load rules with their places by rule ID. Raises NotFound or Forbidden."""
    owner: list[Any] = [
        col(User.domain_id).label("home"), col(User.role).label("owners"),
        managed_users(ctx).label("free"),
    ]  # fmt: skip
    asked = (
        select(*picked(SenderRule), *owner)
        .join(User, col(User.id) == col(SenderRule.user_id), isouter=True)
        .where(col(SenderRule.id).in_(ids), visible(ctx))
    )
    rows = {row.id: row for row in await ctx.read(asked)}
    found = {}
    for index, key in enumerate(ids):
        if key not in rows:
            raise NotFound(str(key), path=["ids"], index=index)
        row = rows[key]
        _permit(ctx, row)
        columns = {name: getattr(row, name) for name in ("place", "user_id", "domain_id", "tag")}
        found[key] = _Home(**columns, log=row.domain_id or row.home), row
    return found


def _permit(ctx: Context, row: Picked) -> None:
    """Raise Forbidden if the viewer may not delete this rule."""
    if row.user_id is None:
        _require(ctx, OF_ALL if row.domain_id is None else OF_DOMAINS, ["ids"])
    elif row.user_id != ctx.viewer.user_id:
        _require(ctx, OF_USERS, ["ids"])
        if not row.free:
            text = f"this needs the role {row.owners}"
            raise Forbidden(text, requires=row.owners, path=["ids"])
