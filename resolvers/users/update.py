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
from models.auth.security_log import SecurityEventAction
from models.errors import Conflict, ErrorCollector, Forbidden, InvalidInput
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow
from models.users.roles import Role, Scope
from models.users.search_index import search_text
from models.users.tables import UsageKind, User, UserTag
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_users_in_administered_domains
from resolvers.auth import security_log
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.mailboxes.retention import update_inherited_retention
from resolvers.submission import sender_patterns
from resolvers.users import forward_targets, openpgp_keys
from resolvers.users.access_loss import (
    delete_marks_of_scim_suspension,
    end_access_of_suspended_users,
)
from resolvers.users.existing_password import (
    has_password,
    require_existing_password_count_failure,
    wrong_existing_password,
)
from resolvers.users.quota import user_usage_reset
from resolvers.users.quota.custom_data import CustomDataChange, require_quota_for_custom_data
from resolvers.users.quota.quota_allocation import update_domain_allocations_for_new_quota
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes
from resolvers.users.validation import (
    OWN_COLUMNS,
    domain_of_username,
    patch_path,
    require_column_permissions,
    require_reject_score_not_below_junk_score,
    require_unlimited_quota_permission,
    schema_name,
    schema_path,
    username_in_others_domain_error,
    validate_user_columns,
)
from resolvers.viewer import GuardRule

PATCH_PATH = ("set",)  # of the patch in the input
FORWARD_TO_PATH = (*PATCH_PATH, "forwardTo")
ENCRYPTION_SETTINGS = {"encrypt_messages": "Incoming mail", "encrypt_forwarded": "Forwarded mail"}
NO_TEMPORARY_PASSWORD = dict.fromkeys(("temporary_password", "temporary_from", "temporary_until"))


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
    Raises InvalidInput with all errors of the fields, Forbidden, AuthenticationFailed for a wrong
    `existing_password`, or Conflict.
    """
    if not patch.changed_columns:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=PATCH_PATH,
        )
    problems = ErrorCollector()
    changes = validate_user_columns(ctx, patch.column_values, problems, PATCH_PATH)
    changes |= _validated_username_columns(patch.username, problems)
    rows = await require_selected_users(ctx, selection)
    _collect_single_user_field_errors(rows, patch, existing_password, problems)
    _require_rights(ctx, rows, patch)
    is_of_others = any(row.id != ctx.viewer.user_id for row in rows)
    require_column_permissions(ctx, patch.changed_columns, PATCH_PATH, of_others=is_of_others)
    changes |= await _public_key_columns(ctx, patch, problems)
    with problems.collecting():
        for row in rows:
            forward_targets.validated_target_columns(
                ctx, row, patch.forward_to or (), FORWARD_TO_PATH
            )
    password = await _validate_password(ctx, rows, patch, problems)
    _collect_missing_existing_password_error(ctx, rows, patch, existing_password, problems)
    problems.raise_collected()
    await _require_username_in_no_domain_of_others(ctx, rows, changes)
    require_unlimited_quota_permission(ctx, changes.get("quota"), PATCH_PATH)
    await sender_patterns.require_rights_for_patterns(
        ctx, changes.get("allowed_senders", ()), [*PATCH_PATH, "allowedSenders"]
    )
    await require_existing_password_count_failure(ctx, rows, existing_password)
    all_values = {**changes, **await _hash_password_and_return_columns(ctx, patch, password)}
    ids = UserSelector(is_reference=True, ids=tuple(row.id for row in rows))
    if not rows:
        return []
    try:
        async with lock_users_and_store_changes(ctx, ids, "userUpdate") as locked_users:
            if existing_password is not None and locked_users.rows[0].password != rows[0].password:
                raise wrong_existing_password()  # a concurrent request changed it
            await _change_locked_users(ctx, locked_users, patch, all_values)
            if patch.forward_to is not None:
                await forward_targets.set_forward_targets_and_log(
                    ctx, locked_users, patch.forward_to, FORWARD_TO_PATH
                )
    except IntegrityError as clash:
        raise Conflict("The username already exists.", path=[*PATCH_PATH, "username"]) from clash
    return list(ids.ids)


def _collect_single_user_field_errors(
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
                    "This field can be changed for one user only.",
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
            text = "A sign-in with a temporary password must set a new password first."
            raise Forbidden(text, requires="a new password", path=PATCH_PATH)
        if any(row.id != viewer.user_id for row in rows):
            raise Forbidden(
                "A sign-in with a temporary password can change only its own user.",
                requires=Role.ADMIN,
                path=PATCH_PATH,
            )
    if patch.password and patch.password.is_hash:
        privileged_columns.append("hashed_password")
    if privileged_columns or (patch.changes_password and not viewer.new_password_only):
        viewer.require(GuardRule(scope=Scope.FULL))
    if privileged_columns:
        require_users_in_administered_domains(
            ctx, rows, [*PATCH_PATH, *patch_path(patch.column_values, privileged_columns[0])]
        )


def _collect_missing_existing_password_error(
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
            text = "The existing password is required to change the caller's password."
            raise InvalidInput(
                text, constraint=ValidationConstraint.REQUIRED, path=["existingPassword"]
            )


def _validated_username_columns(username: str | None, problems: ErrorCollector) -> dict[str, Any]:
    """Return the columns of a new username. Adds a problem if it is unusable."""
    with problems.collecting():
        if username is not None:
            name = address_syntax.normalize_and_validate_username(
                username, path=[*PATCH_PATH, "username"]
            )
            return {"username": name, "username_key": address_syntax.username_key(name)}
    return {}


async def _require_username_in_no_domain_of_others(
    ctx: Context, rows: Sequence[ColumnRow], changes: Mapping[str, Any]
) -> None:
    """Raise Forbidden for a new username that is an address in a domain of others."""
    username_key = changes.get("username_key")
    if username_key is None or any(row.username_key == username_key for row in rows):
        return
    domain = domain_of_username(username_key)
    if await domain_loaders.load_names_of_others_domains(ctx, [domain] if domain else ()):
        raise username_in_others_domain_error(PATCH_PATH)


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
            text = "A password can't be combined with `passwordDisabled`."
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


async def _hash_password_and_return_columns(
    ctx: Context, patch: UserChanges, password: NewPassword | None
) -> dict[str, Any]:
    """Hash a new password and return its columns; empty if the password stays."""
    if not patch.changes_password:
        return {}
    return {
        "password": await new_passwords.hash_new_password_unless_hash(ctx, password)
        if password
        else None,
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
    _require_consistent_spam_scores(locked_users, values)
    if "quota" not in values:  # else the administrator decides about the room
        changes = [CustomDataChange(row.id, row, values) for row in locked_users.rows]
        await require_quota_for_custom_data(ctx, locked_users.session, changes)
    changed_columns = {
        row.id: locked_users.set_columns_to_store(row, **values) for row in locked_users.rows
    }

    def with_new(*names: str) -> list[ColumnRow]:
        return [row for row in locked_users.rows if set(names) & set(changed_columns[row.id])]

    if rows := with_new("quota"):
        update_domain_allocations_for_new_quota(
            ctx.environment,
            locked_users.domains_by_id,
            rows,
            values["quota"],
            path=[*PATCH_PATH, "quota"],
        )
        locked_users.session.add_all(locked_users.domains_by_id.values())
    if rows := with_new("retention"):
        await update_inherited_retention(
            ctx, locked_users.session, [row.id for row in rows], values["retention"]
        )
    if rows := with_new("name", "username"):
        await _update_search_words(locked_users, rows, values)
    if rows := with_new("tags"):
        await _replace_tags(locked_users, rows, values["tags"])
    if rows := with_new("suspended"):
        await delete_marks_of_scim_suspension(locked_users, rows)
    await _reset_counters_of_changed_limits(locked_users, with_new)
    await _sign_out_users_without_access(ctx, locked_users, patch, values, changed_columns)
    await _write_changes_to_security_log(
        ctx, locked_users, with_new("allowed_senders"), patch, values
    )


async def _sign_out_users_without_access(
    ctx: Context,
    locked_users: LockedUsers,
    patch: UserChanges,
    values: Mapping[str, Any],
    changed_columns: Mapping[int, Collection[str]],
) -> None:
    """Sign out users who lose access or have a new password.

    What administrators gave for others ends if they lose access.
    """
    await end_access_of_suspended_users(ctx, locked_users, values, changed_columns)
    for row in locked_users.rows:
        if patch.changes_password:
            locked_users.sign_out_when_stored(row)


async def _write_changes_to_security_log(
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
            NewSecurityEvent(SecurityEventAction.ALLOWED_SENDERS_CHANGED, row.id, detail=detail)
            for row in users_with_new_senders
        ]
        await security_log.insert_security_events_and_queue_notices(
            ctx, locked_users.session, events
        )
    for row in locked_users.rows if patch.changes_password else ():
        await _log_password_change_and_keep_own_token(ctx, locked_users, row, patch)


def _require_consistent_spam_scores(locked_users: LockedUsers, values: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a new spam score does not fit the other score of a user."""
    for row in locked_users.rows if {"junk_score", "reject_score"} & values.keys() else ():
        junk_score = values.get("junk_score", row.junk_score)
        reject_score = values.get("reject_score", row.reject_score)
        require_reject_score_not_below_junk_score(junk_score, reject_score, PATCH_PATH)


async def _require_keys_for_encryption(
    locked_users: LockedUsers, values: Mapping[str, Any]
) -> None:
    """Raise InvalidInput or Conflict if a user with encrypted mail would have no public key."""
    user_ids_without_key = []
    for row in locked_users.rows:
        if values.get("openpgp_public_key", row.openpgp_public_key):
            continue
        for name, object_text in ENCRYPTION_SETTINGS.items():
            if values.get(name):
                text = "This field requires an OpenPGP key of the user."
                raise InvalidInput(
                    text,
                    constraint=ValidationConstraint.REQUIRED,
                    path=[*PATCH_PATH, *schema_path(name)],
                )
            if values.get(name, getattr(row, name)):
                setting = schema_name(name)
                text = f"{object_text} is encrypted to this key: turn {setting} off first."
                raise Conflict(text, path=[*PATCH_PATH, "openpgpPublicKey"])
        user_ids_without_key.append(row.id)
    if user_ids_without_key and "openpgp_public_key" in values:
        statement = select(col(Mailbox.id)).where(
            col(Mailbox.user_id).in_(user_ids_without_key), col(Mailbox.encrypt_messages)
        )
        if (await (await locked_users.session.connection()).execute(statement.limit(1))).first():
            text = "A mailbox encrypts incoming mail to this key: turn that off first."
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


async def _log_password_change_and_keep_own_token(
    ctx: Context, locked_users: LockedUsers, user_row: ColumnRow, patch: UserChanges
) -> None:
    """Log the new password, and keep the viewer's token valid: the viewer knew the old password."""
    detail = {"disabled": True} if patch.password_disabled else {}
    await security_log.log_event_and_queue_notice(
        ctx,
        locked_users.session,
        NewSecurityEvent(SecurityEventAction.PASSWORD_CHANGED, user_row.id, detail=detail),
    )
    if user_row.id == ctx.viewer.user_id and ctx.viewer.token_id:
        statement = update(AccessToken).where(
            col(AccessToken.id) == ctx.viewer.token_id,
            col(AccessToken.auth_version) == user_row.auth_version,
        )
        connection = await locked_users.session.connection()
        token_values = {"auth_version": user_row.auth_version + 1, "temporary": False}
        await connection.execute(statement.values(**token_values))


async def _require_username_free(locked_users: LockedUsers, username_key: str) -> None:
    """Raise Conflict if another user has the username."""
    user_ids = [row.id for row in locked_users.rows]
    statement = select(col(User.id)).where(
        col(User.username_key) == username_key, col(User.id).not_in(user_ids)
    )
    if (await (await locked_users.session.connection()).execute(statement)).first():
        raise Conflict("The username already exists.", path=[*PATCH_PATH, "username"])


async def _update_search_words(
    locked_users: LockedUsers, rows: Sequence[ColumnRow], values: Mapping[str, Any]
) -> None:
    """Update the search words of users with changed names."""
    statement = select(col(Address.user_id), col(Address.display_address)).where(
        col(Address.main), col(Address.user_id).in_([row.id for row in rows])
    )
    result = await (await locked_users.session.connection()).execute(statement)
    main_addresses = {row.user_id: row.display_address for row in result}
    for row in rows:
        username, name = values.get("username", row.username), values.get("name", row.name)
        locked_users.set_columns_to_store(
            row, words=search_text(username, name, main_addresses.get(row.id))
        )


async def _replace_tags(
    locked_users: LockedUsers, rows: Sequence[ColumnRow], tags: Collection[str]
) -> None:
    user_ids, connection = [row.id for row in rows], await locked_users.session.connection()
    await connection.execute(delete(UserTag).where(col(UserTag.user_id).in_(user_ids)))
    tag_rows = [{"tag": tag.casefold(), "user_id": key} for key in user_ids for tag in tags]
    if tag_rows:
        await connection.execute(insert(UserTag), tag_rows)
