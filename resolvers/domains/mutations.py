"""Create, update and delete domains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normalize_and_validate_domain
from mail.text import confusables
from models.domains.dkim_keys import DkimAlgorithm
from models.domains.tables import Domain
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    LimitReached,
    prefix_error_messages,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.passwords import password_hashes
from resolvers.auth.passwords.password_policy import CHARACTER_CLASS_COUNT
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.delete import delete_domains_and_dependents
from resolvers.domains.dkim_domains import DEFAULT_SELECTOR, DkimDomain, require_key_name_fits_dns
from resolvers.domains.loaders import DomainIdOrName
from resolvers.queue import rate_limit_mutations
from resolvers.routing import mutations as routing_mutations
from resolvers.users import delete as user_delete
from resolvers.users.limit_values import limit_or_none, validated_stored_limit
from resolvers.users.quota.quota_allocation import effective_quota
from resolvers.users.selection import UserSelector

MAX_DESCRIPTION_LENGTH = 1000  # characters
LIMIT_ENDS = {  # of limits, which are below
    "max_addresses": 1 << 31,
    "max_users": 1 << 31,
    "default_user_quota": 1 << 63,
    "max_user_quota": 1 << 63,
    "quota": 1 << 63,
}
QUOTA_COLUMNS = ("default_user_quota", "max_user_quota", "quota")
# every receiver supports it and none considers it weak
FIRST_KEY_ALGORITHM_AND_SIZE = (DkimAlgorithm.RSA, dkim_key_mutations.MIN_SAFE_RSA_BITS)
RATE_COLUMN = "rate_limit"  # stored in another table
RELAY_FLAGS = ("backup_mx", "relay_all_recipients", "relay_unknown_only")
GRAPHQL_NAMES = {  # names of these columns in the schema
    "max_addresses": "maxAddresses",
    "max_users": "maxUsers",
    "default_user_quota": "defaultUserQuota",
    "max_user_quota": "maxUserQuota",
    "quota": "quota",
    "backup_mx": "backupMx",
    "relay_all_recipients": "relayAllRecipients",
    "relay_unknown_only": "relayUnknownOnly",
    "relay_host_id": "relayHost",
    "global_address_list": "globalAddressList",
    "password_min": "passwordPolicy.minLength",
    "password_classes": "passwordPolicy.minClasses",
    RATE_COLUMN: "rateLimit",
}
INHERITING_FIELDS = {  # that set a column to None
    RATE_COLUMN: "inheritRateLimit",
    "default_user_quota": "inheritDefaultUserQuota",
}
PASSWORD_POLICY_MAXIMA = {
    "password_min": password_hashes.MAX_LENGTH,
    "password_classes": CHARACTER_CLASS_COUNT,
}
PERMISSION_OF_COLUMN = {
    "description": AdminPermission.DOMAIN_DESCRIPTION,
    RATE_COLUMN: AdminPermission.RATE_LIMITS,
}


@dataclass(frozen=True)
class UserQuotaSummary:
    """The quotas of the users of a domain."""

    highest_given: int | None  # in bytes; None if all users inherit the default
    unlimited_count: int
    inheriting_count: int


@dataclass(frozen=True, slots=True)
class DomainValues:
    """New values of a domain by column, and the path of them in the input."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    input_path: Sequence[str] = ()

    def path_of_column(self, column: str) -> list[str]:
        """Return the path of a column in the input."""
        if column in INHERITING_FIELDS and self.columns.get(column, column) is None:
            return [*self.input_path, INHERITING_FIELDS[column]]
        return [*self.input_path, *GRAPHQL_NAMES.get(column, column).split(".")]

    def validated_columns(self, problems: ErrorCollector) -> dict[str, Any]:
        """Return the values in their stored form.

        Adds an error to `problems` for each invalid one.
        """
        validated = {}
        for column, value in self.columns.items():
            with problems.collecting():
                validated[column] = self._validate_value(column, value)
        return validated

    def _validate_value(self, column: str, value: Any) -> Any:
        path = self.path_of_column(column)
        if column == "description":
            return sql_text.validated_trimmed_text(
                value, max_length=MAX_DESCRIPTION_LENGTH, path=path
            )
        if column == RATE_COLUMN:
            return rate_limit_mutations.validate_rate(value, path=path)
        if column == "tags":
            return sql_text.validated_distinct_tags(value or (), path=path)
        if column in LIMIT_ENDS:
            return validated_stored_limit(value, LIMIT_ENDS[column], path)
        if (
            column in PASSWORD_POLICY_MAXIMA
            and value is not None
            and not 1 <= value <= PASSWORD_POLICY_MAXIMA[column]
        ):
            message = f"Must be from 1 to {PASSWORD_POLICY_MAXIMA[column]}."
            raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=path)
        if column in PASSWORD_POLICY_MAXIMA or column == "relay_host_id":
            return value
        if value is None:
            message = "Must be true or false, not null."
            raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=path)
        return value


async def create_domain(
    ctx: Context, name: str, values: DomainValues, *, with_dkim_key: bool
) -> Domain:
    """Create a domain, on request with a DKIM key that signs when DNS has its record.

    Raises InvalidInput with all problems of the input, NotFound for an unknown relay host, and
    Conflict if the name belongs to a domain or alias domain.
    """
    problems = ErrorCollector()
    with problems.collecting():
        name = normalize_and_validate_domain(name, path="name")
        confusables.refuse_confusable_domain(name)
        if with_dkim_key:
            require_key_name_fits_dns(DEFAULT_SELECTOR, name, path=["createDkim"])
    columns = values.validated_columns(problems)
    rate_limit = columns.pop(RATE_COLUMN, None)
    domain = domain_loaders.new_domain_with_defaults(ctx, name, **columns)
    _collect_limit_and_flag_errors(ctx, domain, values, problems)
    problems.raise_collected()
    private_key = (
        await dkim_key_mutations.generate_dkim_private_key(*FIRST_KEY_ALGORITHM_AND_SIZE)
        if with_dkim_key
        else None
    )
    try:
        async with ctx.write_session(PLATFORM) as session:
            await domain_loaders.require_domain_name_free(session, name, path="name")
            await _require_relay_host(ctx, values, columns)
            await domain_loaders.insert_domain_with_stream(ctx, session, domain)
            values_after = {"name": name, **_audit_log_values(columns)}
            if private_key:
                dkim_domain = DkimDomain(name, domain.id)
                values_after["dkimKey"] = await dkim_key_mutations.insert_first_pending_key(
                    ctx, session, dkim_domain, private_key
                )
            if rate_limit:
                await rate_limit_mutations.set_or_delete_rates_and_return_former(
                    ctx, session, [domain.id], rate_limit, "domain_id"
                )
                values_after[GRAPHQL_NAMES[RATE_COLUMN]] = rate_limit_mutations.audit_log_values(
                    rate_limit
                )
            await audit_log.insert_audit_log_entries(
                ctx,
                session,
                _domain_log_entry(
                    "domainCreate", domain.id, after=values_after, domain_id=domain.id
                ),
            )
    except IntegrityError as clash:  # an address created it at the same time
        raise Conflict(f"The domain {name} already exists.", path=["name"]) from clash
    return domain


async def update_domains(
    ctx: Context, refs: Sequence[DomainIdOrName], values: DomainValues
) -> list[ColumnRow]:
    """Update domains, all or none, and return their rows in the order of the references.

    Raises Forbidden, InvalidInput, NotFound, or LimitReached with the current use if a limit
    would be below it.
    """
    _require_permission_for_columns(ctx, values)
    if not values.columns:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=list(values.input_path),
        )
    problems = ErrorCollector()
    columns = values.validated_columns(problems)
    problems.raise_collected()
    domain_ids = [
        row.id for row in await domain_loaders.require_administered_domains_by_ref(ctx, refs)
    ]
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        rows_before = await domain_loaders.reload_locked_domains_or_raise(ctx, domain_ids)
        await _require_relay_host(ctx, values, columns)
        user_quotas_by_domain = (
            await _load_user_quota_summaries(ctx, domain_ids)
            if set(QUOTA_COLUMNS) & set(columns)
            else {}
        )
        for row in rows_before:
            with prefix_error_messages(row.name):
                _validate_new_limits(ctx, row, values, columns, user_quotas_by_domain.get(row.id))
        rates_before_and_after = {}
        if RATE_COLUMN in columns:
            rate_limit = columns.pop(RATE_COLUMN)
            old_rates = await rate_limit_mutations.set_or_delete_rates_and_return_former(
                ctx, session, domain_ids, rate_limit, "domain_id"
            )
            rates_before_and_after = {
                key: (old_rate, rate_limit_mutations.audit_log_values(rate_limit))
                for key, old_rate in old_rates.items()
            }
        await _update_rows_and_allocated_quota(ctx, session, domain_ids, columns)
        rows_after = await domain_loaders.reload_locked_domains_or_raise(ctx, domain_ids)
        changes_by_stream = {key: [(EventType.DOMAIN_UPDATED, [key])] for key in domain_ids}
        await ctx.record_changes(
            session, {**changes_by_stream, PLATFORM: [(EventType.DOMAIN_UPDATED, domain_ids)]}
        )
        pairs = zip(rows_before, rows_after, strict=True)
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            *(_log_entry_of_update(columns, rates_before_and_after, *pair) for pair in pairs),
        )
    return rows_after


async def _require_relay_host(
    ctx: Context, values: DomainValues, columns: Mapping[str, Any]
) -> None:
    """Raise NotFound if the new relay host does not exist. PLATFORM must be locked."""
    if (key := columns.get("relay_host_id")) is not None:
        await routing_mutations.require_relay_host(
            ctx, key, path=values.path_of_column("relay_host_id")
        )


def _require_permission_for_columns(ctx: Context, values: DomainValues) -> None:
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return
    for name in values.columns:
        permission = PERMISSION_OF_COLUMN.get(name)
        if permission is None or permission not in viewer.permissions:
            required = permission or Role.ADMIN
            message = f"Requires {required} to change {GRAPHQL_NAMES.get(name, name)}."
            raise Forbidden(message, requires=required, path=values.path_of_column(name))


def _validate_new_limits(
    ctx: Context,
    domain_row: ColumnRow,
    values: DomainValues,
    columns: Mapping[str, Any],
    user_quotas: UserQuotaSummary | None,
) -> None:
    """Raise InvalidInput if the new values contradict each other.

    Raises LimitReached if a limit is below the current use.
    """
    stored = {column.name: getattr(domain_row, column.name) for column in select_columns(Domain)}
    domain = Domain(**{**stored, **columns})
    problems = ErrorCollector()
    _collect_limit_and_flag_errors(ctx, domain, values, problems)
    problems.raise_collected()
    for name, used in (
        ("max_users", domain_row.user_count),
        ("max_addresses", domain_row.address_count),
    ):
        limit = columns.get(name)
        if limit and used > limit:
            message = f"The domain already uses {used:,}."
            raise LimitReached(message, limit=limit, used=used, path=values.path_of_column(name))
    if user_quotas is None:
        return
    changed_quotas = [
        name for name in ("quota", "max_user_quota", "default_user_quota") if name in columns
    ]
    default_quota = effective_quota(ctx.environment, domain, None)
    allocated = domain_row.quota_allocated + user_quotas.inheriting_count * (
        default_quota - effective_quota(ctx.environment, domain_row, None)
    )
    highest_quota = max(
        user_quotas.highest_given or 0, default_quota if user_quotas.inheriting_count else 0
    )
    limit_in_force = domain.quota or domain.max_user_quota
    if limit_in_force and (
        user_quotas.unlimited_count or (user_quotas.inheriting_count and not default_quota)
    ):
        message = "A user of the domain has unlimited storage."
        raise LimitReached(
            message,
            limit=limit_in_force,
            used=allocated,
            path=values.path_of_column(changed_quotas[0]),
        )
    if domain.max_user_quota and highest_quota > domain.max_user_quota:
        blamed_column = "max_user_quota" if "max_user_quota" in columns else changed_quotas[0]
        message = f"A user of the domain has a quota of {highest_quota:,} bytes."
        limit = domain.max_user_quota
        raise LimitReached(
            message, limit=limit, used=highest_quota, path=values.path_of_column(blamed_column)
        )
    if domain.quota and allocated > domain.quota:
        message = f"The users of the domain have quotas of {allocated:,} bytes in total."
        path = values.path_of_column(changed_quotas[0])
        raise LimitReached(message, limit=domain.quota, used=allocated, path=path)


def _collect_limit_and_flag_errors(
    ctx: Context, domain: Domain, values: DomainValues, problems: ErrorCollector
) -> None:
    """Add errors to `problems` for limits and flags of the input that contradict each other."""
    given_columns = [name for name in QUOTA_COLUMNS if name in values.columns]
    default_quota = effective_quota(ctx.environment, domain, None)
    pairs = (
        ("max_user_quota", domain.max_user_quota, "quota", domain.quota, False),
        ("default_user_quota", default_quota, "max_user_quota", domain.max_user_quota, True),
        ("default_user_quota", default_quota, "quota", domain.quota, True),
    )
    with problems.collecting():
        for smaller_column, small, larger_column, large, unlimited in (
            pairs if given_columns else ()
        ):
            if large and (small > large or (unlimited and not small)):
                blamed_column = (
                    smaller_column
                    if smaller_column in given_columns
                    else larger_column
                    if larger_column in given_columns
                    else given_columns[0]
                )
                names = GRAPHQL_NAMES[smaller_column], GRAPHQL_NAMES[larger_column]
                message = (
                    f"{names[0]} ({small or 'unlimited'}) must not exceed {names[1]} ({large})."
                )
                raise InvalidInput(
                    message,
                    constraint=ValidationConstraint.MAX,
                    path=values.path_of_column(blamed_column),
                )
    given_flags = [name for name in RELAY_FLAGS if name in values.columns]
    requirements = (
        ("relay_all_recipients", domain.relay_all_recipients, "backup_mx", domain.backup_mx),
        (
            "relay_unknown_only",
            domain.relay_unknown_only,
            "relay_all_recipients",
            domain.relay_all_recipients,
        ),
    )
    with problems.collecting():
        for flag, is_set, required_flag, has_required in requirements if given_flags else ():
            if is_set and not has_required:
                message = f"{GRAPHQL_NAMES[flag]} requires {GRAPHQL_NAMES[required_flag]}."
                name = flag if flag in given_flags else required_flag
                raise InvalidInput(
                    message,
                    constraint=ValidationConstraint.REQUIRES,
                    path=values.path_of_column(name),
                )


async def _load_user_quota_summaries(
    ctx: Context, domain_ids: Sequence[int]
) -> dict[int, UserQuotaSummary]:
    """Load the quotas of users by domain, with one statement. Omits domains without users."""
    quota_column = col(User.quota)
    statement: Select[*tuple[Any, ...]] = (
        select(
            col(User.domain_id).label("domain_id"),
            func.max(quota_column).label("highest"),
            func.count().filter(quota_column == 0).label("unlimited"),
            func.count().filter(quota_column.is_(None)).label("inheriting"),
        )
        .where(col(User.domain_id).in_(domain_ids))
        .group_by(col(User.domain_id))
    )
    return {
        row.domain_id: UserQuotaSummary(row.highest, row.unlimited, row.inheriting)
        for row in await ctx.read(statement)
    }


async def _update_rows_and_allocated_quota(
    ctx: Context, session: AsyncSession, domain_ids: Sequence[int], columns: Mapping[str, Any]
) -> None:
    values = {**columns, "updated_at": ctx.environment.now()}
    if "default_user_quota" in columns:  # the quota allocated to users without their own changes
        platform = ctx.environment.options.users_default_quota
        new_default = columns["default_user_quota"]
        default_after = platform if new_default is None else new_default
        inheriting_users = (
            select(func.count())
            .where(col(User.domain_id) == col(Domain.id), col(User.quota).is_(None))
            .scalar_subquery()
        )
        default_before = func.coalesce(col(Domain.default_user_quota), platform)
        values["quota_allocated"] = col(Domain.quota_allocated) + inheriting_users * (
            default_after - default_before
        )
    connection = await session.connection()
    await connection.execute(update(Domain).where(col(Domain.id).in_(domain_ids)).values(values))


def _log_entry_of_update(
    columns: Mapping[str, Any],
    rates_before_and_after: Mapping[int, tuple[Any, Any]],
    before: ColumnRow,
    after: ColumnRow,
) -> NewAuditLogEntry:
    column_names = [name for name in columns if getattr(before, name) != getattr(after, name)]
    old_rate, new_rate = rates_before_and_after.get(before.id, (None, None))
    return _domain_log_entry(
        "domainUpdate",
        before.id,
        before=_audit_log_values({name: getattr(before, name) for name in column_names})
        | ({GRAPHQL_NAMES[RATE_COLUMN]: old_rate} if old_rate != new_rate else {}),
        after=_audit_log_values({name: getattr(after, name) for name in column_names})
        | ({GRAPHQL_NAMES[RATE_COLUMN]: new_rate} if old_rate != new_rate else {}),
        domain_id=before.id,
    )


def _audit_log_values(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns by the names of the API's fields; None is unlimited.

    A default quota of the platform is `defaultUserQuotaInherited`.
    """
    values: dict[str, Any] = {}
    for column, value in columns.items():
        if column == "default_user_quota":
            values["defaultUserQuotaInherited"] = value is None
        name, _, member = GRAPHQL_NAMES.get(column, column).partition(".")
        limit = limit_or_none(value) if column in LIMIT_ENDS else value
        if member:
            values.setdefault(name, {})[member] = limit
        else:
            values[name] = limit
    return values


def _domain_log_entry(mutation: str, target_id: int, **entry_values: Any) -> NewAuditLogEntry:
    return NewAuditLogEntry(
        mutation=mutation, target_kind="Domain", target_id=target_id, **entry_values
    )


async def delete_domains(
    ctx: Context, refs: Sequence[DomainIdOrName], *, cascade: bool
) -> list[int]:
    """Delete domains, all or none, and return their ids.

    Raises Conflict if a domain has users, addresses or aliases and `cascade` is false. With
    `cascade` its users are deleted as by `userDelete`, at most the bulk limit.
    """
    rows = await domain_loaders.require_administered_domains_by_ref(ctx, refs)
    async with ctx.combined_transaction():
        users_statement = select(col(User.id)).where(
            col(User.domain_id).in_([row.id for row in rows])
        )
        if cascade and await ctx.read(users_statement.limit(1)):
            user_selection = UserSelector(domains=tuple(DomainIdOrName(id=row.id) for row in rows))
            await user_delete.delete_users_or_reschedule_purge(
                ctx, user_selection, mutation="domainDelete", path="domains"
            )
        return await delete_domains_and_dependents(ctx, [row.id for row in rows], cascade=cascade)
