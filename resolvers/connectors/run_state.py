"""A run of a connector that is signed in: what it knows, and how far it has come."""

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
MARKS = 1000  # messages of the ledger that a statement is about
LINES = 200  # of the log of a run


class Lost(Exception):
    """Another process runs this connector."""


class Stopped(Exception):
    """Somebody has asked the run to end."""


@dataclass
class Run:
    """A run that is ours."""

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
        """Whether nothing is stored, and nothing deleted."""
        return bool(self.row.trial or self.options.dry)

    def rest(self, *, listens: bool) -> None:
        """Note whether it works, or only listens and takes nobody's place."""
        self.listens = listens
        if listens:
            self.freed.set()

    def say(self, line: str) -> None:
        """Write a line of the log; of too many the first and the last are kept."""
        stamp = self.ctx.world.now().strftime("%H:%M:%S")
        if len(self.lines) >= LINES:
            del self.lines[LINES // 2]
        self.lines.append(f"{stamp} {line}")

    async def hold(self, session: AsyncSession, **counts: Any) -> None:
        """Note how far it has come, in the unit that did it; Lost, Stopped."""
        await self.ctx.world.join(session, lambda turn: self.held(turn, **counts))

    def held(self, turn: Turn, **counts: Any) -> None:
        """The same in a unit that is a plain function."""
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
    """What a run has done so far."""

    seen: int = 0
    imported: int = 0
    skipped: int = 0
    deleted_remote: int = 0
    bytes: int = 0


@dataclass
class Place:
    """A folder elsewhere that is open, and what is known of it."""

    id: int
    name: str
    mapped: Mapped
    opened: Opened
    fresh: bool  # it was never fetched before
    modseq: int  # whose flags are here
    # of numbers that no longer count: marks, and messages here, by digest
    before: dict[str, list[tuple[str, int | None]]]


@dataclass
class Fetch:
    """A run that is signed in."""

    run: Run
    there: Session
    work: Import
    tally: Tally = field(default_factory=Tally)
    digests: dict[int, set[bytes]] = field(default_factory=dict)  # what folders here have
    everywhere: set[bytes] | None = None  # what has been fetched from any folder
    where: MessageWhere | None = None  # which messages a single import brings; None: all
    to: Recipient | None = None  # whoever gets what goes the way of mail that comes in

    @property
    def connector(self) -> Picked:
        """Its row."""
        return self.run.connector

    @property
    def options(self) -> Chosen:
        """What is rarely needed."""
        return self.run.options

    async def noted(self, session: AsyncSession, **more: Any) -> None:
        """Note how far it has come."""
        await self.run.hold(session, **self.so_far, **more)

    @property
    def so_far(self) -> dict[str, Any]:
        """How far it has come, by column of the run."""
        return {"stage": self.there.line.stage, **asdict(self.tally)}

    @asynccontextmanager
    async def unit(self) -> AsyncGenerator[AsyncSession]:
        """A unit of the account; Failure where our own store takes too long."""
        row = self.connector
        try:
            async with asyncio.timeout(row.local_timeout):
                async with self.run.ctx.write(row.user_id) as session:
                    yield session
        except TimeoutError:
            raise self._late() from None

    async def apply(self, work: Callable[[Turn], Outcome]) -> Outcome:
        """The same for a plain function of its turn: what is called off is not begun any more."""
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
    """Flags as the ledger has them."""
    return " ".join(sorted(flags - IGNORED))
