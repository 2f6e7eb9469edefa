"""State of a signed-in connector run: caches and progress."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.mailbox_mapping import MailboxMapping
from mail.connectors.remote_server import ConnectorStage, OpenedMailbox, RemoteFailure
from mail.connectors.session_thread import ThreadedSession
from mail.envelope.local_recipient import LocalRecipient
from models.connectors import Connector, ConnectorRun
from models.events.event_types import EventType
from models.runtime.environment import DatabaseTransaction
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow
from resolvers.connectors.options import ConnectorOptions
from resolvers.context import Context
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer.running_import import RunningImport

Outcome = TypeVar("Outcome")
IGNORED_FLAGS = frozenset({"\\Recent", "\\Deleted"})
MAX_MARKS_PER_STATEMENT = 1000  # more would exceed the limit of parameters
MAX_LOG_LINES = 200  # of the log of a run


class RunLeaseLost(Exception):
    """Another process runs this connector."""


class RunCancelled(Exception):
    """The run was cancelled."""


class RunInterrupted(Exception):
    """The worker of this process stops. A worker continues the run later."""


def require_no_worker_stop() -> None:
    """Raise RunInterrupted if the worker stops. For calls between two groups of messages."""
    if is_worker_stopping():
        raise RunInterrupted


@dataclass
class ActiveRun:
    """A connector run that this process holds the lease of."""

    ctx: Context
    connector: ColumnRow
    row: ColumnRow
    lease: int
    options: ConnectorOptions
    may_listen: bool = True
    is_listening: bool = False  # and does nothing else
    # there may be room for another
    slot_freed: asyncio.Event = field(default_factory=asyncio.Event)
    next_run_delay: timedelta | None = None  # when the next is due: of one that has listened
    log_lines: list[str] = field(default_factory=list)
    # a user may want to cancel it
    cancel_check_requested: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_dry_run(self) -> bool:
        """True if the run stores and deletes nothing."""
        return bool(self.row.dry_run or self.options.dry_run)

    def set_listening(self, *, is_listening: bool) -> None:
        """Set whether the run only listens. A listening run does not count for the limits."""
        self.is_listening = is_listening
        if is_listening:
            self.slot_freed.set()

    def add_log_line(self, line: str) -> None:
        """Add a line to the log. Beyond 200 lines, the first and the last 100 are kept."""
        stamp = self.ctx.environment.now().strftime("%H:%M:%S")
        if len(self.log_lines) >= MAX_LOG_LINES:
            del self.log_lines[MAX_LOG_LINES // 2]
        self.log_lines.append(f"{stamp} {line}")

    async def require_lease_and_record_progress(
        self, session: AsyncSession, **columns: Any
    ) -> None:
        """Write the progress of the run in this transaction.

        Raises RunLeaseLost or RunCancelled.
        """
        await self.ctx.environment.run_in_session(
            session,
            lambda transaction: self.require_lease_and_record_in_transaction(
                transaction, **columns
            ),
        )

    def require_lease_and_record_in_transaction(
        self, transaction: DatabaseTransaction, **columns: Any
    ) -> None:
        """Write the progress of the run in a transaction that is a plain function.

        Raises RunLeaseLost or RunCancelled.
        """
        now, user = self.ctx.environment.now(), self.connector.user_id
        is_leased = (col(Connector.id) == self.connector.id, col(Connector.lease) == self.lease)
        lock_statement = select(col(Connector.id)).where(*is_leased).with_for_update()
        if not transaction.connection.execute(lock_statement).first():
            raise RunLeaseLost
        values = {**columns, "log": list(self.log_lines)}
        update_statement = update(ConnectorRun).where(col(ConnectorRun.id) == self.row.id)
        run_update = update_statement.values(values).returning(col(ConnectorRun.cancelled))
        if transaction.connection.execute(run_update).scalar_one():
            raise RunCancelled
        entries = self.ctx.journal_entries(EventType.CONNECTOR_UPDATED, [self.connector.id])
        transaction.execute_statements(
            transaction.lock_stream_and_plan_entry_statements(user, entries, at=now)[1]
        )


@dataclass
class RunCounts:
    """The counts of a run, named as their columns."""

    seen_count: int = 0
    imported_count: int = 0
    skipped_count: int = 0
    deleted_remote_count: int = 0
    size: int = 0  # bytes

    def log_line(self) -> str:
        """Return the counts as a line of the log."""
        parts = (
            f"{self.seen_count} seen",
            f"{self.imported_count} imported",
            f"{self.skipped_count} skipped",
        )
        return ", ".join(parts)


@dataclass
class OpenRemoteMailbox:
    """A selected remote mailbox with its row and ledger facts."""

    id: int
    name: str
    mapped: MailboxMapping
    opened: OpenedMailbox
    is_first_fetch: bool  # True if it was never fetched before
    modseq: int  # up to this MODSEQ flags are stored here
    # ledger rows with invalid marks after a renumbering, by digest: mark, message id here, and
    # whether the source may be deleted
    renumbered: dict[str, list[ColumnRow]]


@dataclass
class FetchState:
    """The state of a connector run that is signed in."""

    run: ActiveRun
    session: ThreadedSession
    writer: RunningImport
    counts: RunCounts = field(default_factory=RunCounts)
    # of stored and fetched messages
    digests_by_mailbox: dict[int, set[bytes]] = field(default_factory=dict)
    all_digests: set[bytes] | None = None  # of messages fetched from any mailbox
    message_filter: MessageConditions | None = None  # of a one-time import; None: all messages
    recipient: LocalRecipient | None = None  # of the delivery of incoming mail

    @property
    def connector(self) -> ColumnRow:
        """The row of the connector."""
        return self.run.connector

    @property
    def options(self) -> ConnectorOptions:
        """The custom options of the connector."""
        return self.run.options

    async def record_progress(self, session: AsyncSession, **columns: Any) -> None:
        """Write the progress of the run, with further columns, in this transaction."""
        await self.run.require_lease_and_record_progress(
            session, **self.progress_columns, **columns
        )

    @property
    def progress_columns(self) -> dict[str, Any]:
        """The progress of the run, by column."""
        return {"stage": self.session.connection.stage, **asdict(self.counts)}

    @asynccontextmanager
    async def write_session_with_timeout(self) -> AsyncGenerator[AsyncSession]:
        """Open a transaction of the account.

        Raises RemoteFailure if it exceeds the local timeout.
        """
        row = self.connector
        try:
            async with asyncio.timeout(row.local_timeout):
                async with self.run.ctx.write_session(row.user_id) as session:
                    yield session
        except TimeoutError:
            raise self._timeout_failure() from None

    async def run_transaction_with_timeout(
        self, function: Callable[[DatabaseTransaction], Outcome]
    ) -> Outcome:
        """Run a plain function in a transaction of the account.

        Raises RemoteFailure if it exceeds the local timeout; the function is not started any
        more then.
        """
        row, is_cancelled = self.connector, False

        def run_unless_cancelled(transaction: DatabaseTransaction) -> Outcome:
            if is_cancelled:
                raise self._timeout_failure()
            return function(transaction)

        try:
            async with asyncio.timeout(row.local_timeout):
                return await self.run.ctx.run_transaction(run_unless_cancelled, row.user_id)
        except TimeoutError:
            raise self._timeout_failure() from None
        finally:
            is_cancelled = True

    def _timeout_failure(self) -> RemoteFailure:
        seconds = self.connector.local_timeout
        return RemoteFailure(
            ConnectorStage.STORE,
            f"The database or object store did not respond within {seconds} seconds.",
        )


def flags_text(flags: frozenset[str]) -> str:
    """Return flags as the ledger stores them: sorted and separated by spaces."""
    return " ".join(sorted(flags - IGNORED_FLAGS))
