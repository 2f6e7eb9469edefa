"""A run of a connector that is signed in: what it knows, and how far it has come."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.mailbox_mapping import Mapped
from mail.connectors.remote_server import Failure, Opened, Stage
from mail.connectors.session_thread import Session
from mail.envelope.local_recipient import Recipient
from models.runtime.environment import Turn
from models.store.columns import Picked
from resolvers.connectors.options import Chosen
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.transfer.import_writer import Import

if TYPE_CHECKING:
    from resolvers.connectors.worker import Run

Outcome = TypeVar("Outcome")
IGNORED = frozenset({"\\Recent", "\\Deleted"})
MARKS = 1000  # messages of the ledger that a statement is about


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

    run: "Run"
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
