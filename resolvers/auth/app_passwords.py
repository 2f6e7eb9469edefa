"""Application passwords: sign-in, create, list, update and delete."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import SecurityEventAction
from models.errors import Conflict, Forbidden, InvalidInput, LimitReached
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role, Scope, expand_scopes
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import credential_makers, log_actors, security_log
from resolvers.auth.app_password_validation import (
    ALL_SCOPES,
    MAX_TYPED_LENGTH,
    AppPasswordChanges,
    AppPasswordScope,
    NewAppPassword,
    generate_password,
    normalize_app_password,
    password_selector,
    require_right_to_import_hash,
    require_within_impersonation_and_expand_all,
    validate_description,
    validate_new_app_password_fields,
    validated_lifetime_seconds,
    validated_scopes_collapsed_to_all,
    validated_values_of_changes,
)
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.passwords import password_hashes
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.pagination import read_by_keys
from resolvers.users import apple_profiles, managed_objects
from resolvers.users.selection import require_managed_user
from resolvers.viewer import GuardRule

# Selectors of imported hashes, whose passwords are unknown: each sign-in checks all of a user.
IMPORT_SELECTORS = tuple(f"import{number}" for number in range(10))

VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(ApplicationPassword)) - {
    "password",
    "selector",
}


def scopes_of_app_password(stored_scopes: Collection[str]) -> frozenset[Scope]:
    """Return the scopes that a password with these stored scopes opens: never FULL."""
    if AppPasswordScope.ALL in stored_scopes:
        return ALL_SCOPES
    return expand_scopes(frozenset(map(Scope, stored_scopes)))


async def find_app_password(
    environment: Environment,
    user_id: int,
    password: str,
    check: password_hashes.PasswordCheck | None = None,
) -> ColumnRow | None:
    """Find the user's active application password that this is; None if none.

    One hash is checked, and those that were imported for the user, at most ten. The scopes are
    not checked: the caller looks at the row's `scopes`. A hash is also computed if there is no row,
    so that the time reveals nothing. Must not be called inside a transaction.
    """
    normalized = normalize_app_password(password)
    rows: list[ColumnRow] = []
    if normalized:
        statement = (
            select(
                *select_columns(ApplicationPassword),
                col(User.role).label("owners"),
                col(User.domain_id),
            )
            .join(User, col(User.id) == col(ApplicationPassword.user_id))
            .where(
                col(ApplicationPassword.user_id) == user_id,
                col(ApplicationPassword.selector).in_(
                    [password_selector(normalized), *IMPORT_SELECTORS]
                ),
                _is_valid_sql(environment),
            )
        )
        maker_columns = col(ApplicationPassword.made_by), col(ApplicationPassword.made_by_key)
        found_rows = await environment.database.read(
            credential_makers.add_maker_columns(statement, *maker_columns, environment.now())
        )
        rows = [row for row in found_rows if not has_ended_with_maker(row)]
        rows.sort(key=lambda row: row.selector in IMPORT_SELECTORS)
    check = check or password_hashes.check_password
    typed = normalized or password[:MAX_TYPED_LENGTH]
    if not rows or rows[0].selector in IMPORT_SELECTORS:
        await check(environment, None, typed)
    for row in rows:
        if await check(environment, row.password, typed):
            return row
    return None


def has_ended_with_maker(app_password_row: ColumnRow) -> bool:
    """True if another user made this password and has lost the role or the permission.

    The row has the columns of `credential_makers.add_maker_columns`, and `owners`, the role of its
    user.
    """
    has_maker = credential_makers.has_maker(app_password_row)
    return has_maker and not credential_makers.can_maker_act(
        app_password_row, app_password_row.owners, AdminPermission.APP_PASSWORDS
    )


def _is_valid_sql(environment: Environment) -> ColumnElement[bool]:
    """SQL: the password is active and has not expired."""
    return and_(col(ApplicationPassword.active), is_not_expired_sql(environment.now()))


def is_not_expired_sql(now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    """SQL: the password has no end, or a later one."""
    return or_(
        col(ApplicationPassword.expires_at).is_(None), col(ApplicationPassword.expires_at) > now
    )


async def record_use_and_extend_unless_changed(
    ctx: Context, session: AsyncSession, app_password_row: ColumnRow, event_id: int | None = None
) -> bool:
    """Record a sign-in by this password in the transaction of the sign-in, and move its end.

    `event_id` is that of the security log. Returns False if the password has changed since it was
    found: then the sign-in is refused.
    """
    environment, now = ctx.environment, ctx.environment.now()
    values: dict[str, Any] = {
        "last_used_at": now,
        "last_used_ip": ctx.client_ip,
        "last_event_id": event_id,
    }
    if app_password_row.ttl:
        values["expires_at"] = now + timedelta(seconds=app_password_row.ttl)
    is_unchanged = (
        col(ApplicationPassword.id) == app_password_row.id,
        col(ApplicationPassword.password) == app_password_row.password,
    )
    result = await (await session.connection()).execute(
        update(ApplicationPassword).where(*is_unchanged, _is_valid_sql(environment)).values(values)
    )
    return result.rowcount == 1


@dataclass(frozen=True, slots=True)
class CreatedAppPassword:
    """A new application password, with its text, which is not stored, and the requested profile."""

    row: ApplicationPassword
    password: str | None  # None: its hash was imported
    profile: str | None


async def create_app_password(
    ctx: Context, user_id: int | None, new_password: NewAppPassword
) -> CreatedAppPassword:
    """Create an application password.

    Raises Forbidden, InvalidInput, LimitReached or Conflict.
    """
    environment = ctx.environment
    user = await require_managed_user(ctx, require_user_id(ctx) if user_id is None else user_id)
    _require_permission(ctx, user.id)
    require_right_to_import_hash(ctx.viewer.role, new_password)
    validate_new_app_password_fields(new_password, environment.options)
    is_for_another_user = (
        not new_password.is_hash
        and user.id != ctx.viewer.user_id
        and not credential_makers.is_operator(ctx.viewer)
    )
    scopes = validated_scopes_collapsed_to_all(new_password.scopes)
    if is_for_another_user:
        scopes, new_password = _require_and_limit_to_impersonation(ctx, new_password)
    address = (
        await apple_profiles.require_profile_address(ctx, user, new_password.address)
        if new_password.profile
        else ""
    )
    text = new_password.password or await _generate_password_with_free_selector(ctx, user.id)
    password_hash = (
        text.strip()
        if new_password.is_hash
        else await password_hashes.hash_password(environment, text)
    )
    now = environment.now()
    row = ApplicationPassword(
        id=environment.new_id(),
        user_id=user.id,
        description=validate_description(new_password.description),
        selector=password_selector(text),
        password=password_hash,
        scopes=scopes,
        active=new_password.active,
        ttl=None if is_for_another_user else validated_lifetime_seconds(new_password.ttl),
        expires_at=now + new_password.ttl if new_password.ttl else None,
        created_at=now,
    )
    profile = (
        await apple_profiles.build_profile(environment, user, row, address, text)
        if new_password.profile
        else None
    )
    async with ctx.write_session(user.id) as session:
        if is_for_another_user:
            await _set_viewer_as_maker(ctx, session, row)
        await _delete_expired_and_require_below_limit(ctx, session, user.id)
        if new_password.is_hash:
            row.selector = await _require_free_import_selector(session, user.id)
        await _insert_app_password_and_log(ctx, session, user, row)
    return CreatedAppPassword(row, None if new_password.is_hash else text, profile)


async def _generate_password_with_free_selector(ctx: Context, user_id: int) -> str:
    """Return a random password with a selector that no password of the user has."""
    statement = select(col(ApplicationPassword.selector)).where(
        col(ApplicationPassword.user_id) == user_id
    )
    used_selectors = {row.selector for row in await ctx.read(statement)}
    while password_selector(text := generate_password(ctx.environment)) in used_selectors:
        pass  # once in twenty thousand, with 50 of them
    return text


async def _require_free_import_selector(session: AsyncSession, user_id: int) -> str:
    """Return an unused selector for an imported hash. Raises LimitReached if there is none."""
    statement = select(col(ApplicationPassword.selector)).where(
        col(ApplicationPassword.user_id) == user_id,
        col(ApplicationPassword.selector).in_(IMPORT_SELECTORS),
    )
    used = {row.selector for row in await (await session.connection()).execute(statement)}
    if free := [selector for selector in IMPORT_SELECTORS if selector not in used]:
        return free[0]
    limit = len(IMPORT_SELECTORS)
    text = f"At most {limit} imported application passwords are allowed."
    raise LimitReached(text, limit=limit, used=len(used), path=["user"])


async def _insert_app_password_and_log(
    ctx: Context, session: AsyncSession, user: ColumnRow, app_password_row: ApplicationPassword
) -> None:
    """Insert an application password, and log it.

    Raises Conflict if the user has another password with the same selector.
    """
    try:
        async with session.begin_nested():
            session.add(app_password_row)
    except IntegrityError as clash:
        raise Conflict(
            "The password is too similar to another one of the user: retry.", path=["password"]
        ) from clash
    new_values = {"description": app_password_row.description, "scopes": app_password_row.scopes}
    admin_entry = NewAuditLogEntry(
        "appPasswordCreate", "AppPassword", app_password_row.id, user.domain_id, None, new_values
    )
    await _write_security_log_and_audit_if_other(
        ctx, session, user.id, SecurityEventAction.APP_PASSWORD_CREATED, [admin_entry]
    )


async def _set_viewer_as_maker(
    ctx: Context, session: AsyncSession, app_password_row: ApplicationPassword
) -> None:
    """Set the viewer as the maker of a password for another user."""
    app_password_row.made_by, app_password_row.made_by_key = (
        ctx.viewer.user_id or None,
        credential_makers.platform_admin_key_id_or_none(ctx.viewer),
    )
    app_password_row.maker = (await log_actors.load_log_actor(session, ctx.viewer)).name


class _LimitedAppPassword(NamedTuple):
    """An application password for another user, with the scopes that it is limited to."""

    scopes: list[str]
    new_password: NewAppPassword


def _require_and_limit_to_impersonation(
    ctx: Context, new_password: NewAppPassword
) -> _LimitedAppPassword:
    """Limit a password for another user to scopes and lifetime of a token of userImpersonate.

    ALL becomes all scopes that remain. The end is fixed: uses do not move it. Raises Forbidden or
    InvalidInput if more is asked for.
    """
    if (
        not ctx.viewer.user_id
        and credential_makers.platform_admin_key_id_or_none(ctx.viewer) is None
    ):
        raise Forbidden(
            "An API key for domains can't create credentials for a user.",
            requires=Role.ADMIN,
            path=["user"],
        )
    scopes = require_within_impersonation_and_expand_all(
        validated_scopes_collapsed_to_all(new_password.scopes)
    )
    lifetime = new_password.ttl or credential_makers.MAX_LIFETIME
    if lifetime > credential_makers.MAX_LIFETIME:
        text = "An application password for another user expires after at most PT4H."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["ttl"])
    if new_password.profile:
        text = "Only the user can create a configuration profile."
        raise Forbidden(text, requires="the account itself", path=["generateMobileconfig"])
    return _LimitedAppPassword(scopes, replace(new_password, ttl=lifetime))


def _require_permission(ctx: Context, user_id: int) -> None:
    """Raise Forbidden if the viewer can't manage this user's application passwords.

    For other users a DOMAIN_ADMIN needs the permission APP_PASSWORDS.
    """
    if user_id != ctx.viewer.user_id:
        permission = AdminPermission.APP_PASSWORDS
        ctx.viewer.require(GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=permission))


async def _delete_expired_and_require_below_limit(
    ctx: Context, session: AsyncSession, user_id: int
) -> None:
    """Delete the user's expired passwords. Raises LimitReached if there are too many others."""
    connection, is_of_user = await session.connection(), col(ApplicationPassword.user_id) == user_id
    await connection.execute(
        delete(ApplicationPassword).where(is_of_user, ~is_not_expired_sql(ctx.environment.now()))
    )
    used_count = len(
        (await connection.execute(select(col(ApplicationPassword.id)).where(is_of_user))).all()
    )
    if used_count >= (limit := ctx.environment.options.app_passwords_max_per_user):
        text = f"At most {limit} application passwords are allowed."
        raise LimitReached(text, limit=limit, used=used_count, path=["user"])


async def update_app_passwords(
    ctx: Context, ids: Sequence[int], patch: AppPasswordChanges
) -> list[int]:
    """Change these passwords, all or none; return their ids, each once.

    Raises NotFound for a password that the viewer does not see, InvalidInput for wrong values, and
    Forbidden for scopes that a password of an administrator can't have.
    """
    values = validated_values_of_changes(patch)
    owner_ids = await _require_visible_password_owner_ids(ctx, ids)
    async with ctx.write_session(*owner_ids) as session:
        rows = await _require_managed_rows_in_transaction(ctx, session, ids)
        values_by_has_maker = {False: values, True: values}
        if patch.scopes is not None and any(row.maker for row in rows):
            scopes = require_within_impersonation_and_expand_all(values["scopes"])
            values_by_has_maker[True] = values | {"scopes": scopes}
        await _update_rows(ctx, session, rows, values_by_has_maker)
        for owner_id in owner_ids:
            admin_entries = [
                NewAuditLogEntry(
                    "appPasswordUpdate",
                    "AppPassword",
                    row.id,
                    row.domain_id,
                    {name: getattr(row, name) for name in values},
                    values_by_has_maker[bool(row.maker)],
                )
                for row in rows
                if row.user_id == owner_id
            ]
            await _write_security_log_and_audit_if_other(
                ctx, session, owner_id, SecurityEventAction.APP_PASSWORD_UPDATED, admin_entries
            )
    drop_cached_credentials(ctx.environment, *owner_ids)
    return list(dict.fromkeys(ids))


async def _update_rows(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[ColumnRow],
    values_by_has_maker: Mapping[bool, Mapping[str, Any]],
) -> None:
    """Change these rows. The values depend on whether a maker limits the scopes."""
    connection, now = await session.connection(), ctx.environment.now()
    for is_limited, values in values_by_has_maker.items():
        ids = [row.id for row in rows if bool(row.maker) is is_limited]
        if ids:
            statement = update(ApplicationPassword).where(col(ApplicationPassword.id).in_(ids))
            await connection.execute(statement.values(**values, updated_at=now))


async def delete_app_passwords(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these passwords, all or none. The security log keeps their descriptions."""
    owner_ids = await _require_visible_password_owner_ids(ctx, ids)
    async with ctx.write_session(*owner_ids) as session:
        rows = await _require_managed_rows_in_transaction(ctx, session, ids)
        connection = await session.connection()
        await connection.execute(
            delete(ApplicationPassword).where(col(ApplicationPassword.id).in_(ids))
        )
        for owner_id in owner_ids:
            admin_entries = [
                NewAuditLogEntry(
                    "appPasswordDelete",
                    "AppPassword",
                    row.id,
                    row.domain_id,
                    {"description": row.description, "scopes": row.scopes},
                )
                for row in rows
                if row.user_id == owner_id
            ]
            await _write_security_log_and_audit_if_other(
                ctx, session, owner_id, SecurityEventAction.APP_PASSWORD_DELETED, admin_entries
            )
    drop_cached_credentials(ctx.environment, *owner_ids)


async def _write_security_log_and_audit_if_other(
    ctx: Context,
    session: AsyncSession,
    user_id: int,
    action: SecurityEventAction,
    admin_entries: Sequence[NewAuditLogEntry],
) -> None:
    """Write a change to the user's security log; also to the audit log if the viewer is another."""
    for entry in admin_entries:
        values = {**(entry.before or {}), **(entry.after or {})}
        target = values.get("description") or str(entry.target_id)
        detail = {"id": entry.target_id, **values}
        await security_log.log_event_and_queue_notice(
            ctx, session, NewSecurityEvent(action, user_id, target=target, detail=detail)
        )
    if ctx.viewer.user_id != user_id:
        await audit_log.insert_audit_log_entries(ctx, session, *admin_entries)


async def _require_visible_password_owner_ids(ctx: Context, ids: Sequence[int]) -> list[int]:
    """Load the user ids of these passwords, each once.

    Raises NotFound if the viewer does not see a password.
    """
    owner_ids = managed_objects.require_owner_ids_of_rows(
        ids, await load_visible_app_passwords_by_id(ctx, list(ids))
    )
    return list(dict.fromkeys(owner_ids))


async def _require_managed_rows_in_transaction(
    ctx: Context, session: AsyncSession, ids: Sequence[int]
) -> list[ColumnRow]:
    """Load the rows of these passwords inside the transaction that locks their users."""
    return await managed_objects.require_managed_rows_in_transaction(
        ctx,
        session,
        ApplicationPassword,
        VISIBLE_COLUMNS,
        (ids, _is_visible_and_unexpired_sql(ctx)),
    )


def _is_visible_and_unexpired_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for passwords that the viewer may manage and that have not expired."""
    is_not_expired = is_not_expired_sql(ctx.environment.now())
    return (
        managed_objects.is_visible_sql(ctx, ApplicationPassword, AdminPermission.APP_PASSWORDS)
        & is_not_expired
    )


def select_visible_app_passwords(
    ctx: Context, columns: Collection[str] = VISIBLE_COLUMNS
) -> Select[*tuple[Any, ...]]:
    """Return the select of these columns of the passwords that the viewer may manage."""
    names = VISIBLE_COLUMNS.intersection(columns)
    return select(*select_columns(ApplicationPassword, names)).where(
        _is_visible_and_unexpired_sql(ctx)
    )


async def load_visible_app_passwords_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load passwords by id, in this order; None for a password the viewer does not see."""
    statement = select_visible_app_passwords(ctx)
    return await read_by_keys(ctx, statement, col(ApplicationPassword.id), ids)
