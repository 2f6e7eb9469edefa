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
from models.events.event_types import EventType, ids_by_event_type
from models.events.journal import PLATFORM
from models.spam.sender_rules import (
    PLATFORM_SCOPE,
    SenderAction,
    SenderRule,
    scope_of_domain,
    scope_of_tag,
    scope_of_user,
)
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.access import is_managed_user, maker_columns
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.spam.sender_rules import is_visible_rule_sql
from resolvers.users.selection import require_managed_user
from resolvers.viewer import GuardRule

MAX_PATTERNS_PER_CALL = 100
MAX_RULES_PER_OWNER = 1000  # of one user, tag or domain
MAX_PLATFORM_RULES = 10_000
MAX_COMMENT_LENGTH = 500  # characters
OTHER_USERS_RULE = GuardRule(
    role=Role.DOMAIN_ADMIN, scope=Scope.FULL, admin_permission=AdminPermission.SENDER_RULES
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
class _RuleScope:
    """The scope of sender rules, with the columns of their owner."""

    scope: str
    user_id: int | None = None
    domain_id: int | None = None
    tag: str | None = None
    log_domain_id: int | None = (
        None  # the domain whose administrators see the change in the audit log
    )

    @property
    def stream_id(self) -> int:
        """The stream that records changes of the rules."""
        return self.user_id or self.domain_id or PLATFORM

    @property
    def owner_columns(self) -> dict[str, Any]:
        """The columns that each rule of this owner has."""
        columns = {"user_id": self.user_id, "domain_id": self.domain_id, "tag": self.tag}
        return {"scope": self.scope, **columns}


@dataclass(frozen=True, slots=True)
class _RuleChange:
    """A rule that was created, changed or deleted, with its values before and after."""

    id: int
    scope: _RuleScope
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None

    @property
    def event_type(self) -> EventType:
        """The type of the event of the change."""
        if self.before is None:
            return EventType.SENDER_RULE_CREATED
        is_deleted = self.after is None
        return EventType.SENDER_RULE_DELETED if is_deleted else EventType.SENDER_RULE_UPDATED


async def create_or_update_sender_rules(
    ctx: Context, owner: RuleOwner, new_rules: NewSenderRules
) -> list[int]:
    """Create sender rules, or set the action of existing ones. Returns the IDs by pattern order.

    Raises NotFound or Forbidden if the viewer may not change rules of this owner, LimitReached
    if there would be too many, and InvalidInput for a bad pattern.
    """
    patterns, values = _validated_patterns_and_rule_columns(new_rules)
    rule_scope = await _require_permitted_rule_scope(ctx, owner)
    async with ctx.write_session(rule_scope.stream_id) as session:
        # again, now that the stream is locked
        rule_scope = await _require_permitted_rule_scope(ctx, owner)
        existing_by_pattern = await _load_existing_by_pattern(ctx, rule_scope, patterns)
        new_patterns = [pattern for pattern in patterns if pattern not in existing_by_pattern]
        await _require_rule_capacity(ctx, rule_scope, len(new_patterns))
        turned = [
            row
            for row in existing_by_pattern.values()
            if _audit_log_values_of_row(row) != {**_audit_log_values_of_row(row), **values}
        ]
        new_rows = [_new_rule_row(ctx, rule_scope, pattern, values) for pattern in new_patterns]
        connection = await session.connection()
        if new_rows:
            await connection.execute(insert(SenderRule), new_rows)
        if turned:
            is_changed_rule = col(SenderRule.id).in_([row.id for row in turned])
            await connection.execute(
                update(SenderRule).where(is_changed_rule).values({**values, **maker_columns(ctx)})
            )
        changed = [
            _RuleChange(row["id"], rule_scope, after=_audit_log_values(row)) for row in new_rows
        ]
        for row in turned:
            values_before = _audit_log_values_of_row(row)
            changed.append(
                _RuleChange(row.id, rule_scope, values_before, {**values_before, **values})
            )
        await _journal_and_audit_rule_changes(ctx, session, "senderRuleCreate", changed)
    keys = {row.pattern: row.id for row in existing_by_pattern.values()}
    keys |= {row["pattern"]: row["id"] for row in new_rows}
    return [keys[pattern] for pattern in patterns]


def _validated_patterns_and_rule_columns(
    new_rules: NewSenderRules,
) -> tuple[list[str], dict[str, Any]]:
    """Return the normalized patterns, each once, and the column values of the rules.

    Raises InvalidInput for a bad pattern or number of patterns.
    """
    if not 0 < len(new_rules.patterns) <= MAX_PATTERNS_PER_CALL:
        text = f"From 1 to {MAX_PATTERNS_PER_CALL} patterns are required."
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["patterns"])
    patterns = [
        checked_pattern(text, path=["patterns"], index=nth)
        for nth, text in enumerate(new_rules.patterns)
    ]
    values: dict[str, Any] = {"action": new_rules.action}
    if new_rules.sets_comment:
        values["comment"] = sql_text.validated_trimmed_text(
            new_rules.comment, max_length=MAX_COMMENT_LENGTH, path=["comment"]
        )
    return list(dict.fromkeys(patterns)), values


async def _require_permitted_rule_scope(ctx: Context, owner: RuleOwner) -> _RuleScope:
    """Return the scope of an owner's rules. Raises NotFound or Forbidden."""
    if owner.user_id is not None:
        if owner.user_id != ctx.viewer.user_id:
            ctx.viewer.require(OTHER_USERS_RULE, path=["scope", "user"])
        row = await require_managed_user(ctx, owner.user_id, path="scope")
        return _RuleScope(scope_of_user(row.id), user_id=row.id, log_domain_id=row.domain_id)
    if owner.domain is not None:
        ctx.viewer.require(DOMAINS_RULE, path=["scope", "domain"])
        domain = await domain_loaders.find_administered_domain_by_ref(ctx, owner.domain)
        if domain is None:
            ref = owner.domain.name or str(owner.domain.id)
            raise NotFound(ref, path=["scope", "domain"])
        return _RuleScope(scope_of_domain(domain.id), domain_id=domain.id, log_domain_id=domain.id)
    ctx.viewer.require(PLATFORM_RULE, path=["scope", "global" if owner.tag is None else "tag"])
    if owner.tag is None:
        return _RuleScope(PLATFORM_SCOPE)
    (tag,) = sql_text.validated_distinct_tags([owner.tag], path=["scope", "tag"])
    return _RuleScope(scope_of_tag(tag.casefold()), tag=tag.casefold())


async def _load_existing_by_pattern(
    ctx: Context, rule_scope: _RuleScope, patterns: Sequence[str]
) -> dict[str, ColumnRow]:
    """Load the existing rules of a scope with one of these patterns, by pattern."""
    statement = select(*select_columns(SenderRule)).where(
        col(SenderRule.scope) == rule_scope.scope, col(SenderRule.pattern).in_(patterns)
    )
    return {row.pattern: row for row in await ctx.read(statement)}


async def _require_rule_capacity(ctx: Context, rule_scope: _RuleScope, new_count: int) -> None:
    """Raise LimitReached if the new rules would exceed the limit of the owner."""
    statement = select(func.count().label("many")).where(col(SenderRule.scope) == rule_scope.scope)
    (row,) = await ctx.read(statement)
    most = MAX_PLATFORM_RULES if rule_scope.scope == PLATFORM_SCOPE else MAX_RULES_PER_OWNER
    if new_count and row.many + new_count > most:
        text = f"At most {most} sender rules are allowed."
        raise LimitReached(text, limit=most, used=row.many, path=["patterns"])


def _new_rule_row(
    ctx: Context, rule_scope: _RuleScope, pattern: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the column values of a new rule."""
    new_values = {
        "id": ctx.environment.new_id(),
        "pattern": pattern,
        "created_at": ctx.environment.now(),
    }
    return {
        **rule_scope.owner_columns,
        **new_values,
        **maker_columns(ctx),
        "comment": None,
        **values,
    }


def _audit_log_values_of_row(rule: ColumnRow) -> dict[str, Any]:
    return _audit_log_values(rule._asdict())


def _audit_log_values(rule_values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a rule for the audit log."""
    return {name: rule_values[name] for name in ("scope", "pattern", "action", "comment")}


async def _journal_and_audit_rule_changes(
    ctx: Context, session: AsyncSession, mutation_name: str, changes: Sequence[_RuleChange]
) -> None:
    """Record changes in the journal, and those of other users' rules in the audit log."""
    types_by_stream: defaultdict[int, dict[int, EventType]] = defaultdict(dict)
    for change in changes:
        types_by_stream[change.scope.stream_id][change.id] = change.event_type
    entries = {
        stream: ids_by_event_type(types_by_id) for stream, types_by_id in types_by_stream.items()
    }
    await ctx.record_changes(session, entries)
    log_entries = (
        NewAuditLogEntry(
            mutation_name,
            "SenderRule",
            change.id,
            change.scope.log_domain_id,
            change.before,
            change.after,
        )
        for change in changes
        if change.scope.user_id is None or change.scope.user_id != ctx.viewer.user_id
    )
    await audit_log.insert_audit_log_entries(ctx, session, *log_entries)


async def delete_sender_rules(ctx: Context, rule_ids: Sequence[int]) -> None:
    """Delete sender rules, all or none.

    Raises NotFound, or Forbidden for a rule that the viewer may only read.
    """
    scopes_and_rows = await _require_deletable_rules_with_scopes(ctx, rule_ids)
    async with ctx.write_session(
        *{rule_scope.stream_id for rule_scope, _ in scopes_and_rows.values()}
    ) as session:
        scopes_and_rows = await _require_deletable_rules_with_scopes(ctx, rule_ids)
        connection = await session.connection()
        await connection.execute(delete(SenderRule).where(col(SenderRule.id).in_(scopes_and_rows)))
        changed = [
            _RuleChange(key, rule_scope, _audit_log_values_of_row(row))
            for key, (rule_scope, row) in scopes_and_rows.items()
        ]
        await _journal_and_audit_rule_changes(ctx, session, "senderRuleDelete", changed)


async def _require_deletable_rules_with_scopes(
    ctx: Context, rule_ids: Sequence[int]
) -> dict[int, tuple[_RuleScope, ColumnRow]]:
    """Load rules with their scopes by rule ID. Raises NotFound or Forbidden."""
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
    scopes_by_id = {}
    for index, key in enumerate(rule_ids):
        if key not in rows:
            raise NotFound(str(key), path=["ids"], index=index)
        row = rows[key]
        _require_delete_right(ctx, row, index)
        columns = {name: getattr(row, name) for name in ("scope", "user_id", "domain_id", "tag")}
        scopes_by_id[key] = _RuleScope(**columns, log_domain_id=row.domain_id or row.home), row
    return scopes_by_id


def _require_delete_right(ctx: Context, rule: ColumnRow, index: int) -> None:
    """Raise Forbidden if the viewer may not delete this rule, the item `index` of the input."""
    if rule.user_id is None:
        guard_rule = PLATFORM_RULE if rule.domain_id is None else DOMAINS_RULE
        ctx.viewer.require(guard_rule, path=["ids"], index=index)
    elif rule.user_id != ctx.viewer.user_id:
        ctx.viewer.require(OTHER_USERS_RULE, path=["ids"], index=index)
        if not rule.free:
            text = f"Requires the role {rule.owners}."
            raise Forbidden(text, requires=rule.owners, path=["ids"], index=index)
