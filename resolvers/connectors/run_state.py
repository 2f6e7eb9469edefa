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

from mail.connectors.mailbox_mapping import Mapped
from mail.connectors.remote_server import Failure, Opened, Stage
from mail.connectors.session_thread import Session
from mail.envelope.local_recipient import Recipient
from models.connectors import Connector, ConnectorRun
from models.events.journal import ChangeKind
from models.runtime.environment import Turn
from models.store.columns import Picked
from resolvers.connectors.options import Chosen
from resolvers.context import Context
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer.import_writer import Import

Outcome = TypeVar("Outcome")
IGNORED = frozenset({"\\Recent", "\\Deleted"})
MARKS = 1000  # more would exceed the limit of parameters
LINES = 200  # of the log of a run


class Lost(Exception):
    """Another process runs this connector."""


class Stopped(Exception):
    """The run was cancelled."""


@dataclass
class Run:
    """A connector run that this process holds the lease of."""

    ctx: Context
    connector: Picked
    row: Picked
    lease: int
    options: Chosen
    may_listen: bool = True
    listens: bool = False  # and does nothing else
    freed: asyncio.Event = field(default_factory=asyncio.Event)  # there may be room for another
    again: timedelta | None = None  # when the next is due: of one that has listened
    lines: list[str] = field(default_factory=list)
    nudged: asyncio.Event = field(default_factory=asyncio.Event)  # somebody may want it to end

    @property
    def trial(self) -> bool:
        """True if the run stores and deletes nothing."""
        return bool(self.row.trial or self.options.dry)

    def rest(self, *, listens: bool) -> None:
        """Set whether the run only listens. A listening run does not count for the limits."""
        self.listens = listens
        if listens:
            self.freed.set()

    def say(self, line: str) -> None:
        """Add a line to the log. Beyond 200 lines, the first and the last 100 are kept."""
        stamp = self.ctx.world.now().strftime("%H:%M:%S")
        if len(self.lines) >= LINES:
            del self.lines[LINES // 2]
        self.lines.append(f"{stamp} {line}")

    async def hold(self, session: AsyncSession, **counts: Any) -> None:
        """Write the progress of the run in this transaction.

        Raises RunLeaseLost or RunCancelled.
        """
        await self.ctx.world.join(session, lambda turn: self.held(turn, **counts))

    def held(self, turn: Turn, **counts: Any) -> None:
        """Write the progress of the run in a transaction that is a plain function.

        Raises RunLeaseLost or RunCancelled.
        """
        now, user = self.ctx.world.now(), self.connector.user_id
        mine = (col(Connector.id) == self.connector.id, col(Connector.lease) == self.lease)
        kept = select(col(Connector.id)).where(*mine).with_for_update()
        if not turn.connection.execute(kept).first():
            raise Lost
        values = {**counts, "log": list(self.lines)}
        this = update(ConnectorRun).where(col(ConnectorRun.id) == self.row.id)
        told = this.values(values).returning(col(ConnectorRun.cancelled))
        if turn.connection.execute(told).scalar_one():
            raise Stopped
        entries = self.ctx.entries(ChangeKind.CONNECTOR_CHANGED, [self.connector.id])
        turn.send(turn.told(user, entries, at=now)[1])


@dataclass
class Tally:
    """The counts of a run, named as their columns."""

    seen: int = 0
    imported: int = 0
    skipped: int = 0
    deleted_remote: int = 0
    bytes: int = 0


@dataclass
class Place:
    """A selected remote mailbox with its row and ledger facts."""

    id: int
    name: str
    mapped: Mapped
    opened: Opened
    fresh: bool  # True if it was never fetched before
    modseq: int  # up to this MODSEQ flags are stored here
    # invalid marks after a renumbering, with message ids here, by digest
    before: dict[str, list[tuple[str, int | None]]]


@dataclass
class Fetch:
    """The state of a connector run that is signed in."""

    run: Run
    there: Session
    work: Import
    tally: Tally = field(default_factory=Tally)
    digests: dict[int, set[bytes]] = field(default_factory=dict)  # of stored and fetched messages
    everywhere: set[bytes] | None = None  # of messages fetched from any mailbox
    where: MessageWhere | None = None  # of a one-time import; None: all messages
    to: Recipient | None = None  # of the delivery of incoming mail

    @property
    def connector(self) -> Picked:
        """The row of the connector."""
        return self.run.connector

    @property
    def options(self) -> Chosen:
        """The custom options of the connector."""
        return self.run.options

    async def noted(self, session: AsyncSession, **more: Any) -> None:
        """Write the progress of the run, with further columns, in this transaction."""
        await self.run.hold(session, **self.so_far, **more)

    @property
    def so_far(self) -> dict[str, Any]:
        """The progress of the run, by column."""
        return {"stage": self.there.line.stage, **asdict(self.tally)}

    @asynccontextmanager
    async def unit(self) -> AsyncGenerator[AsyncSession]:
        """Open a transaction of the account.

        Raises ConnectorFailure if it exceeds the local timeout.
        """
        row = self.connector
        try:
            async with asyncio.timeout(row.local_timeout):
                async with self.run.ctx.write(row.user_id) as session:
                    yield session
        except TimeoutError:
            raise self._late() from None

    async def apply(self, work: Callable[[Turn], Outcome]) -> Outcome:
        """Run a plain function in a transaction of the account.

        Raises ConnectorFailure if it exceeds the local timeout; the function is not started any
        more then.
        """
        row, over = self.connector, False

        def unit(turn: Turn) -> Outcome:
            if over:
                raise self._late()
            return work(turn)

        try:
            async with asyncio.timeout(row.local_timeout):
                return await self.run.ctx.apply(unit, row.user_id)
        except TimeoutError:
            raise self._late() from None
        finally:
            over = True

    def _late(self) -> Failure:
        seconds = self.connector.local_timeout
        return Failure(Stage.STORE, f"our own store took more than {seconds} seconds")


def joined(flags: frozenset[str]) -> str:
    """Return flags as the ledger stores them: sorted and separated by spaces."""
    return " ".join(sorted(flags - IGNORED))
