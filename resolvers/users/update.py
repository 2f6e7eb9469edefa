"""Update of users: settings, names, passwords and limits."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses import address_syntax
from models.addresses.tables import Address
from models.auth.credentials import AccessToken
from models.auth.security_log import AuthEventAction
from models.errors import AuthenticationFailed, Conflict, ErrorCollector, Forbidden, InvalidInput
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.users.roles import Role, Scope
from models.users.search_index import search_text
from models.users.tables import UsageKind, User, UserTag
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_users_in_administered_domains
from resolvers.auth import security_log, throttles
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors.second_factor_check import enabled_methods
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context, GuardRule
from resolvers.submission import sender_patterns
from resolvers.users import forward_targets, openpgp_keys
from resolvers.users.quota import user_usage_reset
from resolvers.users.quota.quota_allocation import reallocate_quota_of_users
from resolvers.users.selection import UserSelector, load_selected_users
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes
from resolvers.users.validation import (
    OWN_COLUMNS,
    require_column_permissions,
    require_unlimited_quota_permission,
    schema_name,
    schema_path,
    validate_columns,
)

PATCH_PATH = ("set",)  # of the patch in the input
FORWARD_TO_PATH = (*PATCH_PATH, "forwardTo")
ENCRYPTION_SETTINGS = {"encrypt_messages": "what arrives", "encrypt_forwarded": "what is forwarded"}
NO_TEMPORARY_PASSWORD = {
    "temporary_password": None,
    "temporary_from": None,
    "temporary_until": None,
}


@dataclass(frozen=True, slots=True)
class UserChanges:
    """Changes to users.

    Fields that are not set stay unchanged. `column_values` is by column; None clears.
    """

    column_values: Mapping[str, Any] = field(default_factory=dict)
    username: str | None = None
    openpgp_public_key: str | None = None  # "" removes the key
    forward_to: Sequence[str] | None = None
    password: NewPassword | None = None
    password_disabled: bool = False
    disable_2fa: bool = False  # all second factors

    @property
    def changes_password(self) -> bool:
        """True if the patch changes or disables the password."""
        return self.password is not None or self.password_disabled

    @property
    def changed_columns(self) -> set[str]:
        """The columns that the patch changes."""
        change_by_column = {
            "username": self.username is not None,
            "openpgp_public_key": self.openpgp_public_key is not None,
            "forward_to": self.forward_to is not None,
            "password": self.changes_password,
            "disable_2fa": self.disable_2fa,
        }
        return {
            *self.column_values,
            *(name for name, is_changed in change_by_column.items() if is_changed),
        }


async def update_users(
    ctx: Context, selection: UserSelector, patch: UserChanges, existing_password: str | None = None
) -> list[int]:
    """Change these users, all or none; return their ids.

    `existing_password` is the current password, which is required to change the viewer's own.
    Raises Invalid with all errors of the fields, Forbidden, AuthenticationFailed for a wrong
    `existing_password`, or Conflict.
    """
    if not patch.changed_columns:
        raise InvalidInput(
            "change at least one thing", constraint=ValidationConstraint.REQUIRED, path=PATCH_PATH
        )
    problems = ErrorCollector()
    changes = validate_columns(patch.column_values, problems, PATCH_PATH)
    changes |= _username_columns(patch.username, problems)
    rows = await load_selected_users(ctx, selection)
    _check_single_user_fields(rows, patch, existing_password, problems)
    _require_rights(ctx, rows, patch)
    for row in rows if patch.disable_2fa else ():
        await second_factors_mutations.require_reason_to_disable_factors(
            ctx, row, [*PATCH_PATH, "disable2fa"]
        )
    require_column_permissions(ctx, patch.changed_columns, PATCH_PATH)
    changes |= await _public_key_columns(ctx, patch, problems)
    with problems.collecting():
        for row in rows:
            forward_targets.validated_target_columns(
                ctx, row, patch.forward_to or (), FORWARD_TO_PATH
            )
    password = await _validate_password(ctx, rows, patch, problems)
    _check_existing_password_is_given(ctx, rows, patch, existing_password, problems)
    problems.raise_collected()
    require_unlimited_quota_permission(ctx, changes.get("quota"), PATCH_PATH)
    await sender_patterns.require_rights_for_patterns(
        ctx, changes.get("allowed_senders", ()), [*PATCH_PATH, "allowedSenders"]
    )
    await _verify_existing_password(ctx, rows, existing_password)
    all_values = {**changes, **await _password_columns(ctx, patch, password)}
    ids = UserSelector(ids=tuple(row.id for row in rows))
    if not rows:
        return []
    try:
        async with lock_users_and_store_changes(ctx, ids, "userUpdate") as locked_users:
            if existing_password is not None and locked_users.rows[0].password != rows[0].password:
                raise _wrong_existing_password()  # a concurrent request changed it
            await _change_locked_users(ctx, locked_users, patch, all_values)
            if patch.forward_to is not None:
                await forward_targets.set_forward_targets(
                    ctx, locked_users, patch.forward_to, FORWARD_TO_PATH
                )
    except IntegrityError as clash:
        raise Conflict("the user name is taken", path=[*PATCH_PATH, "username"]) from clash
    return list(ids.ids)


def _check_single_user_fields(
    rows: Sequence[ColumnRow],
    patch: UserChanges,
    existing_password: str | None,
    problems: ErrorCollector,
) -> None:
    """Add a problem if fields of one user only are set for several users."""
    for path, is_given in (
        ([*PATCH_PATH, "username"], patch.username is not None),
        ([*PATCH_PATH, "password"], patch.password is not None),
        (["existingPassword"], existing_password is not None),
    ):
        with problems.collecting():
            if is_given and len(rows) > 1:
                raise InvalidInput(
                    "that is of one account only",
                    constraint=ValidationConstraint.EXCLUSIVE,
                    path=path,
                )


def _require_rights(ctx: Context, rows: Sequence[ColumnRow], patch: UserChanges) -> None:
    """Raise Forbidden if the viewer's role or credential does not allow the patch."""
    viewer, privileged_columns = ctx.viewer, sorted(patch.changed_columns - OWN_COLUMNS)
    if viewer.new_password_only:
        if (
            patch.changed_columns != {"password"}
            or patch.password_disabled
            or patch.password is None
        ):
            text = "after signing in with a temporary password, set a new password first"
            raise Forbidden(text, requires="a new password", path=PATCH_PATH)
        if any(row.id != viewer.user_id for row in rows):
            raise Forbidden(
                "this token is for its own account", requires=Role.ADMIN, path=PATCH_PATH
            )
    if patch.password and patch.password.is_hash:
        privileged_columns.append("hashed_password")
    if privileged_columns or (patch.changes_password and not viewer.new_password_only):
        viewer.require(GuardRule(scope=Scope.FULL))
    if privileged_columns:
        require_users_in_administered_domains(
            ctx, rows, [*PATCH_PATH, *schema_path(privileged_columns[0])]
        )


def _check_existing_password_is_given(
    ctx: Context,
    rows: Sequence[ColumnRow],
    patch: UserChanges,
    existing_password: str | None,
    problems: ErrorCollector,
) -> None:
    """Add a problem if the viewer changes the own password without the existing one."""
    own_rows = [row for row in rows if row.id == ctx.viewer.user_id]
    with problems.collecting():
        if (
            existing_password is None
            and patch.changes_password
            and any(has_password(ctx.environment, row) for row in own_rows)
        ):
            text = "to change your password takes the one you have"
            raise InvalidInput(
                text, constraint=ValidationConstraint.REQUIRED, path=["existingPassword"]
            )


async def _verify_existing_password(
    ctx: Context, rows: Sequence[ColumnRow], existing_password: str | None
) -> None:
    """Raise AuthenticationFailed if the existing password is wrong.

    Failures are counted; raises RateLimited after too many.
    """
    if existing_password is None:
        return
    for row in rows:
        stored_hashes = [
            row.password,
            row.temporary_password if _has_valid_temporary_password(ctx.environment, row) else None,
        ]
        if not any(stored_hashes):
            continue
        limits = {
            f"existing:{row.id}": throttles.limit_of_name_and_network(ctx.environment.options)
        }
        await throttles.require_not_throttled(ctx, limits)
        for password_hash in filter(None, stored_hashes):
            if await password_hashes.check_password(
                ctx.environment, password_hash, existing_password
            ):
                break
        else:
            await throttles.count_failure(ctx.environment, limits)
            raise _wrong_existing_password()


def has_password(environment: Environment, row: ColumnRow) -> bool:
    """True if the user can sign in with a password, also a temporary one."""
    return bool(row.password) or _has_valid_temporary_password(environment, row)


def _has_valid_temporary_password(environment: Environment, row: ColumnRow) -> bool:
    has_begun = row.temporary_from is None or row.temporary_from <= environment.now()
    has_expired = row.temporary_until is not None and row.temporary_until <= environment.now()
    return bool(row.temporary_password) and has_begun and not has_expired


def _wrong_existing_password() -> AuthenticationFailed:
    error = AuthenticationFailed("the existing password is wrong")
    error.path = ["existingPassword"]
    return error


def _username_columns(username: str | None, problems: ErrorCollector) -> dict[str, Any]:
    """Return the columns of a new username. Adds a problem if it is unusable."""
    with problems.collecting():
        if username is not None:
            name = address_syntax.checked_username(username, path=[*PATCH_PATH, "username"])
            return {"username": name, "username_key": address_syntax.username_key(name)}
    return {}


async def _public_key_columns(
    ctx: Context, patch: UserChanges, problems: ErrorCollector
) -> dict[str, Any]:
    """Return the columns of a new public key, or of none. Adds a problem if it is unusable."""
    with problems.collecting():
        if patch.openpgp_public_key:
            key = await openpgp_keys.validate_public_key(
                ctx.environment, patch.openpgp_public_key, path=[*PATCH_PATH, "openpgpPublicKey"]
            )
            openpgp_keys.warn_if_short(ctx, key, path=[*PATCH_PATH, "openpgpPublicKey"])
            return {"openpgp_public_key": key.armored, "openpgp_key": key.info}
    return (
        {}
        if patch.openpgp_public_key is None
        else {"openpgp_public_key": None, "openpgp_key": None}
    )


async def _validate_password(
    ctx: Context, rows: Sequence[ColumnRow], patch: UserChanges, problems: ErrorCollector
) -> NewPassword | None:
    """Return the validated new password.

    None if there is none. Adds a problem if it is unusable.
    """
    with problems.collecting():
        if patch.password and patch.password_disabled:
            text = "passwordDisabled means: no password"
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=[*PATCH_PATH, "password"]
            )
        if patch.password:
            policy = await ctx.load(
                password_policy.load_policies_of_users, rows[0].id if rows else 0
            )
            return await new_passwords.validate_new_password(
                ctx, patch.password, policy, PATCH_PATH
            )
    return None


async def _password_columns(
    ctx: Context, patch: UserChanges, password: NewPassword | None
) -> dict[str, Any]:
    """Hash a new password and return its columns; empty if the password stays."""
    if not patch.changes_password:
        return {}
    return {
        "password": await new_passwords.hash_new_password(ctx, password) if password else None,
        "password_changed_at": ctx.environment.now(),
        "password_change_required": patch.column_values.get("password_change_required", False),
        **NO_TEMPORARY_PASSWORD,
    }


async def _change_locked_users(
    ctx: Context, locked_users: LockedUsers, patch: UserChanges, values: Mapping[str, Any]
) -> None:
    """Change the locked users and everything that depends on the changed columns."""
    if "username" in values:
        await _require_username_free(locked_users, values["username_key"])
    if {"openpgp_public_key", *ENCRYPTION_SETTINGS} & values.keys():
        await _require_keys_for_encryption(locked_users, values)
    changed_columns = {row.id: locked_users.set_columns(row, **values) for row in locked_users.rows}

    def with_new(*names: str) -> list[ColumnRow]:
        return [row for row in locked_users.rows if set(names) & set(changed_columns[row.id])]

    if rows := with_new("quota"):
        reallocate_quota_of_users(
            ctx.environment,
            locked_users.domains_by_id,
            rows,
            values["quota"],
            path=[*PATCH_PATH, "quota"],
        )
        locked_users.session.add_all(locked_users.domains_by_id.values())
    if rows := with_new("name", "username"):
        await _update_search_words(locked_users, rows, values)
    if rows := with_new("tags"):
        await _replace_tags(locked_users, rows, values["tags"])
    await _reset_counters_of_changed_limits(locked_users, with_new)
    for row in locked_users.rows:
        changed = changed_columns[row.id]
        loses_access = ("active" in changed and not values["active"]) or (
            "suspended" in changed and values["suspended"]
        )
        if patch.changes_password or loses_access:
            locked_users.sign_out(row)
        if patch.disable_2fa and enabled_methods(row):
            locked_users.set_columns(row, second_factors=[])
            await second_factors_mutations.delete_secrets_of_all_factors(
                ctx, locked_users.session, row
            )
    await _log_senders_and_passwords(ctx, locked_users, with_new("allowed_senders"), patch, values)


async def _log_senders_and_passwords(
    ctx: Context,
    locked_users: LockedUsers,
    users_with_new_senders: Sequence[ColumnRow],
    patch: UserChanges,
    values: Mapping[str, Any],
) -> None:
    """Log new allowed senders and password changes to the security log."""
    if users_with_new_senders:
        detail = {"patterns": ", ".join(values["allowed_senders"])}
        events = [
            NewSecurityEvent(AuthEventAction.ALLOWED_SENDERS_CHANGE, row.id, detail=detail)
            for row in users_with_new_senders
        ]
        await security_log.log_events(ctx, locked_users.session, events)
    for row in locked_users.rows if patch.changes_password else ():
        await _log_password_change_and_keep_token(ctx, locked_users, row, patch)


async def _require_keys_for_encryption(
    locked_users: LockedUsers, values: Mapping[str, Any]
) -> None:
    """Raise Invalid or Conflict if a user with encrypted mail would have no public key."""
    user_ids_without_key = []
    for row in locked_users.rows:
        if values.get("openpgp_public_key", row.openpgp_public_key):
            continue
        for name, object_text in ENCRYPTION_SETTINGS.items():
            if values.get(name):
                text = "this takes an OpenPGP key of the account"
                raise InvalidInput(
                    text,
                    constraint=ValidationConstraint.REQUIRED,
                    path=[*PATCH_PATH, *schema_path(name)],
                )
            if values.get(name, getattr(row, name)):
                setting = schema_name(name)
                text = f"{object_text} is encrypted to this key: end that first, by {setting}"
                raise Conflict(text, path=[*PATCH_PATH, "openpgpPublicKey"])
        user_ids_without_key.append(row.id)
    if user_ids_without_key and "openpgp_public_key" in values:
        statement = select(col(Mailbox.id)).where(
            col(Mailbox.user_id).in_(user_ids_without_key), col(Mailbox.encrypt_messages)
        )
        if (await (await locked_users.session.connection()).execute(statement.limit(1))).first():
            text = "a folder has what arrives encrypted to this key: end that first"
            raise Conflict(text, path=[*PATCH_PATH, "openpgpPublicKey"])


async def _reset_counters_of_changed_limits(
    locked_users: LockedUsers, with_new: Callable[..., Sequence[ColumnRow]]
) -> None:
    """Reset the counters of limits that have changed."""
    for kind, column in (
        (UsageKind.RECIPIENTS, "recipients_per_day"),
        (UsageKind.FORWARDS, "forwards_per_day"),
    ):
        if rows := with_new(column):
            await user_usage_reset.delete_usage(locked_users, [row.id for row in rows], [kind])
    if receivers := with_new("received_per_hour"):
        statement = update(User).where(col(User.id).in_([row.id for row in receivers]))
        await (await locked_users.session.connection()).execute(
            statement.values(**user_usage_reset.RESET_RECEIVED)
        )


async def _log_password_change_and_keep_token(
    ctx: Context, locked_users: LockedUsers, row: ColumnRow, patch: UserChanges
) -> None:
    """Log the new password, and keep the viewer's token valid: the viewer knew the old password."""
    detail = {"disabled": True} if patch.password_disabled else {}
    await security_log.log_event(
        ctx,
        locked_users.session,
        NewSecurityEvent(AuthEventAction.PASSWORD_CHANGE, row.id, detail=detail),
    )
    if row.id == ctx.viewer.user_id and ctx.viewer.token_id:
        statement = update(AccessToken).where(
            col(AccessToken.id) == ctx.viewer.token_id,
            col(AccessToken.auth_version) == row.auth_version,
        )
        connection = await locked_users.session.connection()
        token_values = {"auth_version": row.auth_version + 1, "temporary": False}
        await connection.execute(statement.values(**token_values))


async def _require_username_free(locked_users: LockedUsers, username_key: str) -> None:
    """Raise Conflict if another user has the username."""
    user_ids = [row.id for row in locked_users.rows]
    statement = select(col(User.id)).where(
        col(User.username_key) == username_key, col(User.id).not_in(user_ids)
    )
    if (await (await locked_users.session.connection()).execute(statement)).first():
        raise Conflict("the user name is taken", path=[*PATCH_PATH, "username"])


async def _update_search_words(
    locked_users: LockedUsers, rows: Sequence[ColumnRow], values: Mapping[str, Any]
) -> None:
    """Update the search words of users with changed names."""
    statement = select(col(Address.user_id), col(Address.shown)).where(
        col(Address.main), col(Address.user_id).in_([row.id for row in rows])
    )
    result = await (await locked_users.session.connection()).execute(statement)
    main_addresses = {row.user_id: row.shown for row in result}
    for row in rows:
        username, name = values.get("username", row.username), values.get("name", row.name)
        locked_users.set_columns(row, words=search_text(username, name, main_addresses.get(row.id)))


async def _replace_tags(
    locked_users: LockedUsers, rows: Sequence[ColumnRow], tags: Collection[str]
) -> None:
    user_ids, connection = [row.id for row in rows], await locked_users.session.connection()
    await connection.execute(delete(UserTag).where(col(UserTag.user_id).in_(user_ids)))
    tag_rows = [{"tag": tag.casefold(), "user_id": key} for key in user_ids for tag in tags]
    if tag_rows:
        await connection.execute(insert(UserTag), tag_rows)
