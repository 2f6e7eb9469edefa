"""The storage quota of the metadata of users and addresses."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.quota import require_quota_for_growth_of_users
from resolvers.context import Context
from resolvers.users import custom_data


@dataclass(frozen=True, slots=True)
class CustomDataChange:
    """New values of a row whose metadata count in the storage of a user."""

    user_id: int | None  # None: an address without a user, whose metadata don't count
    row_before: Any  # None: the row is new
    new_values: Mapping[str, Any]  # by column; other columns don't matter

    @property
    def growth(self) -> int:
        """The bytes by which the storage of the user grows. Negative: it shrinks."""
        return sum(
            custom_data.json_byte_count(self.new_values[name])
            - custom_data.json_byte_count(getattr(self.row_before, name, None))
            for name in custom_data.COLUMNS
            if name in self.new_values
        )


async def require_quota_for_custom_data(
    ctx: Context, session: AsyncSession, changes: Iterable[CustomDataChange]
) -> None:
    """Raise OverQuota if new metadata don't fit into the account of a user.

    The users are locked. Database triggers count the metadata when they are stored.
    """
    growth_by_user = Counter[int]()
    for change in changes:
        if change.user_id is not None and (growth := change.growth):
            growth_by_user[change.user_id] += growth
    if growth_by_user:
        check = partial(require_quota_for_growth_of_users, growth_by_user=growth_by_user)
        await ctx.environment.run_in_session(session, check)
