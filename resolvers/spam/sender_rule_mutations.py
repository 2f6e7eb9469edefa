"""Create and delete sender rules of a user, a tag, a domain or the platform."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.spam.sender_rules import checked_pattern
from models.errors import Forbidden, InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.spam.sender_rules import (
    PLATFORM_PLACE,
    SenderAction,
    SenderRule,
    place_of_domain,
    place_of_tag,
    place_of_user,
)
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.access import is_managed_user, maker_columns
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context, GuardRule
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.spam.sender_rules import is_visible_rule_sql
from resolvers.users.selection import load_managed_user

MAX_PATTERNS_PER_CALL = 100
MAX_RULES_PER_OWNER = 1000  # of one user, tag or domain
MAX_PLATFORM_RULES = 10_000
MAX_COMMENT_LENGTH = 500  # characters
OTHER_USERS_RULE = GuardRule(
    role=Role.DOMAIN_ADMIN, scope=Scope.FULL, admin_permission=AdminPermission.SPAM_POLICY
)
DOMAINS_RULE = GuardRule(role=Role.DOMAIN_ADMIN, scope=Scope.FULL)
PLATFORM_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)  # tags cross domains


@dataclass(frozen=True, slots=True)
class RuleOwner:
    """The owner of sender rules: a user, a tag or a domain; none of them for the platform."""

    user_id: int | None = None
    tag: str | None = None
    domain: DomainIdOrName | None = None


@dataclass(frozen=True, slots=True)
class NewSenderRules:
    """Patterns and the action for their senders.

    An existing comment stays unless `sets_comment`.
    """

    action: SenderAction
    patterns: Sequence[str]
    comment: str | None = None
    sets_comment: bool = False


@dataclass(frozen=True, slots=True)
class _RulePlace:
    """The place key of sender rules, with the columns of their owner."""

    place: str
    user_id: int | None = None
    domain_id: int | None = None
    tag: str | None = None
    log_domain_id: int | None = (
        None  # the domain whose administrators see the change in the admin log
    )

    @property
    def stream_id(self) -> int:
        """The stream that records changes of the rules."""
        return self.user_id or self.domain_id or PLATFORM

    @property
    def owner_columns(self) -> dict[str, Any]:
        """The columns that each rule of this owner has."""
        columns = {"user_id": self.user_id, "domain_id": self.domain_id, "tag": self.tag}
        return {"place": self.place, **columns}


@dataclass(frozen=True, slots=True)
class _RuleChange:
    """A rule that was created, changed or deleted, with its values before and after."""

    id: int
    place: _RulePlace
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


async def create_or_update_sender_rules(
    ctx: Context, owner: RuleOwner, new_rules: NewSenderRules
) -> list[int]:
    """Create sender rules, or set the action of existing ones. Returns the IDs by pattern order.

    Raises NotFound or Forbidden if the viewer may not change rules of this owner, LimitReached
    if there would be too many, and Invalid for a bad pattern.
    """
    patterns, values = _validate_new_rules(new_rules)
    home = await _resolve_rule_place(ctx, owner)
    async with ctx.write_session(home.stream_id) as session:
        home = await _resolve_rule_place(ctx, owner)  # again, now that the stream is locked
        existing_by_pattern = await _load_existing_by_pattern(ctx, home, patterns)
        new_patterns = [one for one in patterns if one not in existing_by_pattern]
        await _require_rule_capacity(ctx, home, len(new_patterns))
        turned = [
            row
            for row in existing_by_pattern.values()
            if _audit_log_values_of_row(row) != {**_audit_log_values_of_row(row), **values}
        ]
        new_rows = [_new_rule_row(ctx, home, pattern, values) for pattern in new_patterns]
        connection = await session.connection()
        if new_rows:
            await connection.execute(insert(SenderRule), new_rows)
        if turned:
            is_changed_rule = col(SenderRule.id).in_([row.id for row in turned])
            await connection.execute(
                update(SenderRule).where(is_changed_rule).values({**values, **maker_columns(ctx)})
            )
        changed = [_RuleChange(row["id"], home, after=_audit_log_values(row)) for row in new_rows]
        for row in turned:
            values_before = _audit_log_values_of_row(row)
            changed.append(_RuleChange(row.id, home, values_before, {**values_before, **values}))
        await _record_rule_changes(ctx, session, "senderRuleCreate", changed)
    keys = {row.pattern: row.id for row in existing_by_pattern.values()}
    keys |= {row["pattern"]: row["id"] for row in new_rows}
    return [keys[pattern] for pattern in patterns]


def _validate_new_rules(new_rules: NewSenderRules) -> tuple[list[str], dict[str, Any]]:
    """Return the normalized patterns, each once, and the column values of the rules.

    Raises Invalid for a bad pattern or number of patterns.
    """
    if not 0 < len(new_rules.patterns) <= MAX_PATTERNS_PER_CALL:
        text = f"1 to {MAX_PATTERNS_PER_CALL} patterns"
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["patterns"])
    patterns = [
        checked_pattern(text, path=["patterns"], index=nth)
        for nth, text in enumerate(new_rules.patterns)
    ]
    values: dict[str, Any] = {"action": new_rules.action}
    if new_rules.sets_comment:
        values["comment"] = sql_text.validate_text(
            new_rules.comment, max_length=MAX_COMMENT_LENGTH, path=["comment"]
        )
    return list(dict.fromkeys(patterns)), values


async def _resolve_rule_place(ctx: Context, owner: RuleOwner) -> _RulePlace:
    """Return the place of an owner's rules. Raises NotFound or Forbidden."""
    if owner.user_id is not None:
        if owner.user_id != ctx.viewer.user_id:
            _require_guard_rule(ctx, OTHER_USERS_RULE, ["scope", "user"])
        row = await load_managed_user(ctx, owner.user_id, path="scope")
        return _RulePlace(place_of_user(row.id), user_id=row.id, log_domain_id=row.domain_id)
    if owner.domain is not None:
        _require_guard_rule(ctx, DOMAINS_RULE, ["scope", "domain"])
        domain = await domain_loaders.find_referenced_domain(ctx, owner.domain)
        if domain is None:
            ref = owner.domain.name or str(owner.domain.id)
            raise NotFound(ref, path=["scope", "domain"])
        return _RulePlace(place_of_domain(domain.id), domain_id=domain.id, log_domain_id=domain.id)
    _require_guard_rule(ctx, PLATFORM_RULE, ["scope", "global" if owner.tag is None else "tag"])
    if owner.tag is None:
        return _RulePlace(PLATFORM_PLACE)
    (tag,) = sql_text.validate_tags([owner.tag], path=["scope", "tag"])
    return _RulePlace(place_of_tag(tag.casefold()), tag=tag.casefold())


def _require_guard_rule(ctx: Context, rule: GuardRule, path_in_input: Sequence[str]) -> None:
    """Raise Forbidden at this input field if role, scope or permission are not sufficient."""
    try:
        ctx.viewer.require(rule)
    except Forbidden as refusal:
        raise Forbidden(refusal.message, requires=refusal.requires, path=path_in_input) from None


async def _load_existing_by_pattern(
    ctx: Context, place: _RulePlace, patterns: Sequence[str]
) -> dict[str, ColumnRow]:
    """Load the existing rules of a place with one of these patterns, by pattern."""
    statement = select(*select_columns(SenderRule)).where(
        col(SenderRule.place) == place.place, col(SenderRule.pattern).in_(patterns)
    )
    return {row.pattern: row for row in await ctx.read(statement)}


async def _require_rule_capacity(ctx: Context, place: _RulePlace, new_count: int) -> None:
    """Raise LimitReached if the new rules would exceed the limit of the owner."""
    statement = select(func.count().label("many")).where(col(SenderRule.place) == place.place)
    (row,) = await ctx.read(statement)
    most = MAX_PLATFORM_RULES if place.place == PLATFORM_PLACE else MAX_RULES_PER_OWNER
    if new_count and row.many + new_count > most:
        text = f"at most {most} rules"
        raise LimitReached(text, limit=most, used=row.many, path=["patterns"])


def _new_rule_row(
    ctx: Context, place: _RulePlace, pattern: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the column values of a new rule."""
    own = {"id": ctx.environment.new_id(), "pattern": pattern, "created_at": ctx.environment.now()}
    return {**place.owner_columns, **own, **maker_columns(ctx), "comment": None, **values}


def _audit_log_values_of_row(rule: ColumnRow) -> dict[str, Any]:
    return _audit_log_values(rule._asdict())


def _audit_log_values(rule_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a rule for the admin log."""
    return {name: rule_values[name] for name in ("place", "pattern", "action", "comment")}


async def _record_rule_changes(
    ctx: Context, session: AsyncSession, mutation_name: str, changes: Sequence[_RuleChange]
) -> None:
    """Record changes in the journal, and those of other users' rules in the admin log."""
    rule_ids_by_stream: defaultdict[int, list[int]] = defaultdict(list)
    for one in changes:
        rule_ids_by_stream[one.place.stream_id].append(one.id)
    entries = {
        stream: [(EventType.SENDER_RULE_CHANGED, keys)]
        for stream, keys in rule_ids_by_stream.items()
    }
    await ctx.record_changes(session, entries)
    log_entries = (
        NewAuditLogEntry(
            mutation_name, "SenderRule", one.id, one.place.log_domain_id, one.before, one.after
        )
        for one in changes
        if one.place.user_id is None or one.place.user_id != ctx.viewer.user_id
    )
    await audit_log.log_changes(ctx, session, *log_entries)


async def delete_sender_rules(ctx: Context, rule_ids: Sequence[int]) -> None:
    """Delete sender rules, all or none.

    Raises NotFound, or Forbidden for a rule that the viewer may only read.
    """
    homes = await _load_deletable_rules(ctx, rule_ids)
    async with ctx.write_session(*{home.stream_id for home, _ in homes.values()}) as session:
        homes = await _load_deletable_rules(ctx, rule_ids)
        connection = await session.connection()
        await connection.execute(delete(SenderRule).where(col(SenderRule.id).in_(homes)))
        changed = [
            _RuleChange(key, home, _audit_log_values_of_row(row))
            for key, (home, row) in homes.items()
        ]
        await _record_rule_changes(ctx, session, "senderRuleDelete", changed)


async def _load_deletable_rules(
    ctx: Context, rule_ids: Sequence[int]
) -> dict[int, tuple[_RulePlace, ColumnRow]]:
    """Load rules with their places by rule ID. Raises NotFound or Forbidden."""
    owner: list[Any] = [
        col(User.domain_id).label("home"), col(User.role).label("owners"),
        is_managed_user(ctx).label("free"),
    ]  # fmt: skip
    statement = (
        select(*select_columns(SenderRule), *owner)
        .join(User, col(User.id) == col(SenderRule.user_id), isouter=True)
        .where(col(SenderRule.id).in_(rule_ids), is_visible_rule_sql(ctx))
    )
    rows = {row.id: row for row in await ctx.read(statement)}
    found = {}
    for index, key in enumerate(rule_ids):
        if key not in rows:
            raise NotFound(str(key), path=["ids"], index=index)
        row = rows[key]
        _require_delete_right(ctx, row)
        columns = {name: getattr(row, name) for name in ("place", "user_id", "domain_id", "tag")}
        found[key] = _RulePlace(**columns, log_domain_id=row.domain_id or row.home), row
    return found


def _require_delete_right(ctx: Context, rule: ColumnRow) -> None:
    """Raise Forbidden if the viewer may not delete this rule."""
    if rule.user_id is None:
        _require_guard_rule(ctx, PLATFORM_RULE if rule.domain_id is None else DOMAINS_RULE, ["ids"])
    elif rule.user_id != ctx.viewer.user_id:
        _require_guard_rule(ctx, OTHER_USERS_RULE, ["ids"])
        if not rule.free:
            text = f"this needs the role {rule.owners}"
            raise Forbidden(text, requires=rule.owners, path=["ids"])
