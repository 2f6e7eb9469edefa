"""End the access of users who are suspended or disabled."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.scim import ScimUser
from models.store.columns import ColumnRow
from resolvers.context import Context
from resolvers.users import grant_end
from resolvers.users.user_locks import LockedUsers


async def end_access_of_suspended_users(
    ctx: Context,
    locked_users: LockedUsers,
    values: Mapping[str, Any],
    changed_columns: Mapping[int, Collection[str]],
) -> None:
    """Sign out the users who lose access by new values, and end what they gave for others.

    `changed_columns` has the changed columns of each user.
    """
    rows = [
        row
        for row in locked_users.rows
        if _is_disabled_or_suspended(changed_columns[row.id], values)
    ]
    for row in rows:
        locked_users.sign_out_when_stored(row)
    await grant_end.end_all_grants_of_users(ctx, rows)


def _is_disabled_or_suspended(changed_columns: Collection[str], values: Mapping[str, Any]) -> bool:
    """True if a user is disabled or suspended by new values."""
    is_disabled = "active" in changed_columns and not values["active"]
    return bool(is_disabled or ("suspended" in changed_columns and values["suspended"]))


async def delete_marks_of_scim_suspension(
    locked_users: LockedUsers, rows: Sequence[ColumnRow]
) -> None:
    """Delete the marks that SCIM suspended these users: it lifts no suspension by others.

    SCIM sets its own mark afterwards.
    """
    connection = await locked_users.session.connection()
    is_of_user = col(ScimUser.user_id).in_([row.id for row in rows])
    await connection.execute(update(ScimUser).where(is_of_user).values(suspended_by_scim=False))
