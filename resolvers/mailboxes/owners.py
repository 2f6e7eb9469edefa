"""The accounts of a mailbox mutation."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden
from models.events import journal
from models.events.journal import JournalEntry
from models.store.columns import ColumnRow
from models.users.roles import AdminPermission
from resolvers.access import can_see_managed_mail_records
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.users.selection import UserSelector, require_selected_users

ExtraStreamsFunction = Callable[[Context, Sequence[int]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class LockedAccounts:
    """The accounts of a mailbox mutation, in a transaction that locks their streams."""

    ctx: Context
    session: AsyncSession
    users: list[ColumnRow]

    @property
    def user_ids(self) -> list[int]:
        """The IDs of the accounts, in order."""
        return [row.id for row in self.users]

    def prefix_username_unless_viewer(self, user_id: int, text: str) -> str:
        """Return the text, preceded by the username if the account is not the viewer's."""
        if user_id == self.ctx.viewer.user_id:
            return text
        return f"{next(row.username for row in self.users if row.id == user_id)}: {text}"

    async def record_changes(
        self, entries_by_user: Mapping[int, Sequence[JournalEntry]]
    ) -> Mapping[int, int]:
        """Record changes in the journals of the accounts.

        Returns the last position of each stream.
        """
        entries_by_user = {user: entries for user, entries in entries_by_user.items() if entries}
        await journal.record_entries_in_streams_or_raise(
            self.session, entries_by_user, at=self.ctx.environment.now()
        )
        return journal.recorded_positions(self.session)


async def require_permitted_mail_owners(
    ctx: Context, users: UserSelector, path_in_input: str
) -> list[ColumnRow]:
    """Load the selected users.

    Raises Forbidden for other users without the permission IMPERSONATE.
    """
    rows = await require_selected_users(ctx, users, path=path_in_input)
    if any(row.id != ctx.viewer.user_id for row in rows) and not can_see_managed_mail_records(ctx):
        text = f"Requires the permission {AdminPermission.IMPERSONATE}."
        raise Forbidden(text, requires=AdminPermission.IMPERSONATE, path=[path_in_input])
    return rows


@asynccontextmanager
async def lock_mail_owners_and_audit_change(
    ctx: Context,
    users: UserSelector,
    mutation_name: str,
    *,
    path: str = "users",
    extra_locked_streams: ExtraStreamsFunction | None = None,
) -> AsyncGenerator[LockedAccounts]:
    """Open a transaction on the mailboxes of the selected accounts.

    It also locks the streams of the users that `extra_locked_streams` returns. Changes of other
    users' accounts are written to the audit log. Raises the errors of
    `require_permitted_mail_owners`.
    """
    rows = await require_permitted_mail_owners(ctx, users, path)
    ids = [row.id for row in rows]
    async with ctx.write_session(
        *ids, *(await extra_locked_streams(ctx, ids) if extra_locked_streams else ())
    ) as session:
        yield LockedAccounts(ctx, session, rows)
        other_rows = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [NewAuditLogEntry(mutation_name, "User", row.id, row.domain_id) for row in other_rows]
        await audit_log.insert_audit_log_entries(ctx, session, *log)
