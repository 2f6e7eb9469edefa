"""Create, change and delete SCIM groups."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from scim2_models import InvalidValueException, PreconditionFailedException
from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from models.errors import InvalidInput, LimitReached
from models.scim import (
    MAX_EXTERNAL_ID_LENGTH,
    MAX_GROUP_NAME_LENGTH,
    ScimGroup,
    ScimGroupMember,
)
from models.store.columns import insert_with_conflict
from models.store.text_folding import fold_text
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.scim.account_update import VERSION_TEXT, VersionCheck, accept_any_version
from resolvers.scim.accounts import is_in_tenant_sql
from resolvers.scim.groups import (
    MAX_MEMBERS,
    ScimGroupWithMembers,
    group_version,
    require_group,
)
from resolvers.sql_text import validated_trimmed_text

MAX_GROUPS_OF_DOMAIN = 10_000
MAX_IDS_PER_STATEMENT = 1000


@dataclass(frozen=True, slots=True)
class GroupState:
    """The attributes of a group that clients can change."""

    display_name: str | None
    external_id: str | None = None
    member_ids: Set[int] = frozenset()

    def checked_and_trimmed(self) -> "GroupState":
        """Return the state in stored form.

        Raises InvalidInput, and LimitReached if there are too many members.
        """
        name = validated_trimmed_text(
            self.display_name, max_length=MAX_GROUP_NAME_LENGTH, path=["displayName"]
        )
        if name is None:
            raise InvalidInput(
                "A display name is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=["displayName"],
            )
        external_id = validated_trimmed_text(
            self.external_id, max_length=MAX_EXTERNAL_ID_LENGTH, path=["externalId"]
        )
        if len(self.member_ids) > MAX_MEMBERS:
            raise LimitReached(
                f"A group has at most {MAX_MEMBERS:,} members.",
                limit=MAX_MEMBERS,
                used=len(self.member_ids),
                path=["members"],
            )
        return GroupState(name, external_id, self.member_ids)


GroupChange = Callable[[GroupState], GroupState]  # from the present state
# Charges for the numbers of changed members and of all members. Raises RateLimited.
MemberCharge = Callable[[int, int], None]


async def create_group(ctx: Context, state: GroupState, charge_rate_budget: MemberCharge) -> int:
    """Create a group and return its id.

    It belongs to the domain of the API key; of several domains, to the one with the lowest id.
    Raises InvalidInput, LimitReached, or InvalidValueException for an unknown member.
    """
    state = state.checked_and_trimmed()
    charge_rate_budget(len(state.member_ids), len(state.member_ids))
    domain_id = min(ctx.viewer.administered_domains)
    group_id, now = ctx.environment.new_id(), ctx.environment.now()
    async with ctx.write_session(domain_id) as session:
        await _require_below_group_limit(ctx, domain_id)
        await _require_tenant_users(ctx, state.member_ids)
        connection = await session.connection()
        await connection.execute(
            insert(ScimGroup).values(
                id=group_id,
                domain_id=domain_id,
                display_name=state.display_name,
                name_key=fold_text(state.display_name or ""),
                external_id=state.external_id,
                version=1,
                created_at=now,
                updated_at=now,
            )
        )
        await _insert_members(ctx, connection, group_id, state.member_ids)
        after = {"displayName": state.display_name, "members": len(state.member_ids)}
        entry = NewAuditLogEntry("scimGroupCreate", None, group_id, domain_id, None, after)
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return group_id


async def _require_below_group_limit(ctx: Context, domain_id: int) -> None:
    statement = select(func.count()).select_from(ScimGroup)
    (row,) = await ctx.read(statement.where(col(ScimGroup.domain_id) == domain_id))
    if row[0] >= MAX_GROUPS_OF_DOMAIN:
        raise LimitReached(
            f"A domain has at most {MAX_GROUPS_OF_DOMAIN:,} groups.",
            limit=MAX_GROUPS_OF_DOMAIN,
            used=row[0],
        )


async def _require_tenant_users(ctx: Context, user_ids: Set[int]) -> None:
    """Raise InvalidValueException if the API key does not see one of these users."""
    found = 0
    for part in _id_chunks(user_ids):
        statement = select(func.count()).select_from(User)
        (row,) = await ctx.read(statement.where(col(User.id).in_(part), is_in_tenant_sql(ctx)))
        found += row[0]
    if found < len(user_ids):
        raise InvalidValueException(detail="members: there is no account with one of these IDs.")


def _id_chunks(ids: Set[int]) -> list[list[int]]:
    all_ids = sorted(ids)
    return [
        all_ids[start : start + MAX_IDS_PER_STATEMENT]
        for start in range(0, len(all_ids), MAX_IDS_PER_STATEMENT)
    ]


async def _insert_members(ctx: Context, connection: Any, group_id: int, user_ids: Set[int]) -> None:
    """Insert members. Rows of users who have just moved between domains can exist already."""
    dialect = ctx.environment.database.dialect
    for part in _id_chunks(user_ids):
        rows = [{"group_id": group_id, "user_id": key} for key in part]
        statement = insert_with_conflict(dialect, ScimGroupMember).on_conflict_do_nothing()
        await connection.execute(statement.values(rows))


async def change_group(
    ctx: Context,
    group_id: int | None,
    change: GroupChange,
    is_expected_version: VersionCheck,
    charge_rate_budget: MemberCharge,
) -> None:
    """Change a group in one transaction.

    `change` returns the wanted state from the present one, once the group is locked. Members that
    the API key does not see stay. Raises NotFoundException, PreconditionFailedException,
    InvalidInput, LimitReached, or InvalidValueException for an unknown member.
    """
    group = await require_group(ctx, group_id, with_members=False)
    domain_id = group.row.domain_id
    async with ctx.write_session(domain_id) as session:
        group = await require_group(ctx, group_id)
        _require_version(group, is_expected_version)
        row, before_ids = group.row, frozenset(group.member_ids)
        present = GroupState(row.display_name, row.external_id, before_ids)
        wanted = change(present).checked_and_trimmed()
        added, removed = wanted.member_ids - before_ids, before_ids - wanted.member_ids
        charge_rate_budget(len(added) + len(removed), len(wanted.member_ids))
        if wanted == present:
            return
        await _require_tenant_users(ctx, added)
        connection = await session.connection()
        await connection.execute(
            update(ScimGroup)
            .where(col(ScimGroup.id) == row.id)
            .values(
                display_name=wanted.display_name,
                name_key=fold_text(wanted.display_name or ""),
                external_id=wanted.external_id,
                version=row.version + 1,
                updated_at=ctx.environment.now(),
            )
        )
        for part in _id_chunks(removed):
            await connection.execute(
                delete(ScimGroupMember).where(
                    col(ScimGroupMember.group_id) == row.id, col(ScimGroupMember.user_id).in_(part)
                )
            )
        await _insert_members(ctx, connection, row.id, added)
        entry = NewAuditLogEntry(
            "scimGroupUpdate",
            None,
            row.id,
            domain_id,
            {"displayName": row.display_name, "members": len(before_ids)},
            {"displayName": wanted.display_name, "members": len(wanted.member_ids)},
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)


def _require_version(group: ScimGroupWithMembers, is_expected_version: VersionCheck) -> None:
    if not is_expected_version(group_version(group)):
        raise PreconditionFailedException(detail=VERSION_TEXT)


async def delete_group(
    ctx: Context, group_id: int | None, is_expected_version: VersionCheck = accept_any_version
) -> None:
    """Delete a group; its members stay. Raises NotFoundException or PreconditionFailedException."""
    group = await require_group(ctx, group_id, with_members=False)
    async with ctx.write_session(group.row.domain_id) as session:
        group = await require_group(ctx, group_id, with_members=False)
        _require_version(group, is_expected_version)
        connection = await session.connection()
        await connection.execute(delete(ScimGroup).where(col(ScimGroup.id) == group.row.id))
        before = {"displayName": group.row.display_name}
        row = group.row
        entry = NewAuditLogEntry("scimGroupDelete", None, row.id, row.domain_id, before, None)
        await audit_log.insert_audit_log_entries(ctx, session, entry)
