"""Change and delete SCIM accounts, by the operations of userUpdate and userDelete."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scim2_models import PreconditionFailedException
from sqlalchemy import insert, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden
from models.events.journal import PLATFORM
from models.scim import ScimUser
from models.users.tables import User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_end import delete_application_passwords_and_api_keys
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.scim.account_create import full_name, validated_scim_columns
from resolvers.scim.account_emails import (
    WantedEmails,
    sync_addresses_with_wanted_emails,
    validated_wanted_emails,
)
from resolvers.scim.accounts import (
    SCIM_COLUMNS,
    ScimAccount,
    account_resource,
    account_version,
    require_account,
    resource_version,
)
from resolvers.scim.resources import AccountResource
from resolvers.users.delete import delete_users_or_reschedule_purge
from resolvers.users.selection import UserSelector, require_managed_user
from resolvers.users.update import UserChanges, update_users

VERSION_TEXT = "The resource has changed: read it again."
ResourceChange = Callable[[AccountResource], AccountResource]  # from the present state
VersionCheck = Callable[[str], bool]  # whether a request is meant for this version


def accept_any_version(_version: str) -> bool:
    """Accept any version, for requests without a condition."""
    return True


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account with its present and its wanted attributes."""

    account: ScimAccount
    before: AccountResource
    after: AccountResource
    emails: WantedEmails

    @property
    def changes_emails(self) -> bool:
        """True if the addresses, their types or the primary address change."""
        return self.before.emails != self.after.emails

    @property
    def suspends_user(self) -> bool:
        """True if the change suspends a user who is not suspended yet."""
        return self.after.active is False and not self.account.row.suspended

    def user_changes(self, password: NewPassword | None) -> UserChanges:
        """Return the changes of the user. Absent values stay."""
        before, after, row = self.before, self.after, self.account.row
        values: dict[str, Any] = {}
        name = self._new_name()
        if (name or None) != (row.name or None):
            values["name"] = name
        if after.preferred_language != before.preferred_language:
            values["language"] = after.preferred_language
        if self.suspends_user:
            values["suspended"] = True
        elif after.active and row.suspended and row.suspended_by_scim:
            values["suspended"] = False
        username = after.user_name if after.user_name != before.user_name else None
        return UserChanges(values, username=username, password=password)

    def _new_name(self) -> str | None:
        """Return the name of the user: the display name, or the full name if it is absent.

        A display name that was the former full name follows the full name.
        """
        before, after = self.before, self.after
        if after.display_name != before.display_name:
            return after.display_name
        if after.name != before.name and before.display_name == full_name(before.name):
            return full_name(after.name)
        return before.display_name

    def scim_values(self) -> Mapping[str, Any]:
        """Return the columns of `ScimUser` after the change."""
        is_suspended_by_scim = bool(self.account.row.suspended_by_scim)
        if self.suspends_user:
            is_suspended_by_scim = True
        elif self.after.active:
            is_suspended_by_scim = False
        return {
            **validated_scim_columns(self.after),
            "suspended_by_scim": is_suspended_by_scim,
        }


async def change_account(
    ctx: Context,
    user_id: int | None,
    change: ResourceChange,
    is_expected_version: VersionCheck = accept_any_version,
) -> int:
    """Change an account in one transaction and return its user id.

    `change` returns the wanted attributes from the present ones; it is called again once the user
    is locked, so that no concurrent change is lost. Raises NotFoundException,
    PreconditionFailedException for another version, Forbidden for a user with a higher role, and
    the errors of userUpdate.
    """
    account = await require_account(ctx, user_id)
    draft = await _plan_permitted_change(ctx, account, change, is_expected_version)
    password = await _validate_and_hash_password(ctx, account, draft.after.password)
    streams = account.stream_ids | set(draft.emails.domain_ids.values())
    async with ctx.combined_transaction(), ctx.write_session(*streams) as session:
        account = await require_account(ctx, user_id)
        planned = await _plan_permitted_change(ctx, account, change, is_expected_version)
        await _store_account_change(ctx, session, planned, password)
    if planned.suspends_user:
        drop_cached_credentials(ctx.environment, account.row.id)
    return int(account.row.id)


async def _plan_permitted_change(
    ctx: Context, account: ScimAccount, change: ResourceChange, is_expected_version: VersionCheck
) -> AccountChange:
    """Return the change of an account, after the checks of rights and version."""
    before = account_resource(account)
    if not is_expected_version(resource_version(account.row, before)):
        raise PreconditionFailedException(detail=VERSION_TEXT)
    await _require_directory_account(ctx, account)
    after = change(account_resource(account))
    main_address = account.emails[0].address if account.emails else None
    emails = await validated_wanted_emails(ctx, after.emails, main_address)
    return AccountChange(account, before, after, emails)


async def _require_directory_account(ctx: Context, account: ScimAccount) -> None:
    """Raise Forbidden if the key can't change the user, or if it belongs to no directory."""
    user = await require_managed_user(ctx, account.row.id)
    if user.allow_local:
        text = "The account belongs to no directory: `allowLocal` is true."
        raise Forbidden(text, requires="allowLocal: false")


async def _validate_and_hash_password(
    ctx: Context, account: ScimAccount, password: str | None
) -> NewPassword | None:
    """Return the hash of a new password, computed before the transaction begins."""
    if not password:
        return None
    policy = await ctx.load(password_policy.load_policies_of_users, account.row.id)
    new_password = await new_passwords.validate_new_password(ctx, NewPassword(password), policy)
    hashed = await new_passwords.hash_new_password_unless_hash(ctx, new_password)
    return NewPassword(hashed, is_hash=True)


async def _store_account_change(
    ctx: Context, session: AsyncSession, planned: AccountChange, password: NewPassword | None
) -> None:
    """Store the change of a locked account with its journal and audit log entries."""
    row = planned.account.row
    user_changes = planned.user_changes(password)
    if user_changes.changed_columns:
        selector = UserSelector(is_reference=True, ids=(row.id,))
        await update_users(ctx, selector, user_changes)
    if planned.suspends_user:
        await delete_application_passwords_and_api_keys(session, row.id)
    if planned.changes_emails:
        await sync_addresses_with_wanted_emails(
            ctx, session, row.id, planned.account, planned.emails
        )
    before = {name: getattr(row, name) for name in SCIM_COLUMNS}
    before["suspended_by_scim"] = bool(before["suspended_by_scim"])
    after = planned.scim_values()
    changed = sorted(name for name in SCIM_COLUMNS if before[name] != after[name])
    if not changed and not planned.changes_emails:
        return
    connection = await session.connection()
    if changed:
        statement = update(ScimUser).where(col(ScimUser.user_id) == row.id)
        if not (await connection.execute(statement.values(**after))).rowcount:
            await connection.execute(insert(ScimUser).values(user_id=row.id, **after))
        entry = NewAuditLogEntry(
            "scimUserUpdate",
            "User",
            row.id,
            row.domain_id,
            {name: before[name] for name in changed},
            {name: after[name] for name in changed},
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    touch = update(User).where(col(User.id) == row.id)
    await connection.execute(touch.values(updated_at=ctx.environment.now()))


def change_from_put_resource(wanted: AccountResource) -> ResourceChange:
    """Return the change of a PUT: absent attributes are removed, read-only ones stay.

    A missing display name becomes the full name. Without emails the addresses stay, and without
    `active` the account stays suspended or not.
    """

    def replace_resource(present: AccountResource) -> AccountResource:
        resource = wanted.model_copy(deep=True)
        resource.emails = resource.emails or present.emails
        if resource.active is None:
            resource.active = present.active
        resource.replace(present)
        if resource.display_name is None:
            resource.display_name = full_name(resource.name)
        return resource

    return replace_resource


async def delete_account(
    ctx: Context, user_id: int | None, is_expected_version: VersionCheck = accept_any_version
) -> None:
    """Delete an account as userDelete does; its data is removed after the grace period.

    Raises NotFoundException, PreconditionFailedException, or Forbidden.
    """
    account = await require_account(ctx, user_id)
    await _require_directory_account(ctx, account)
    purge_at = ctx.environment.now() + ctx.environment.options.scim_deletion_grace_period
    selector = UserSelector(is_reference=True, ids=(account.row.id,))
    if is_expected_version is accept_any_version:
        await delete_users_or_reschedule_purge(ctx, selector, purge_at)
        return
    streams = {PLATFORM, *account.stream_ids}
    async with ctx.combined_transaction(), ctx.write_session(*streams):
        account = await require_account(ctx, user_id)
        if not is_expected_version(account_version(account)):
            raise PreconditionFailedException(detail=VERSION_TEXT)
        await _require_directory_account(ctx, account)
        await delete_users_or_reschedule_purge(ctx, selector, purge_at)
