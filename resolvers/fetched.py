"""A run of a connector that is signed in: what it knows, and how far it has come."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses import Recipient
from mail.connectors.folders import Mapped
from mail.connectors.servers import Failure, Opened, Stage
from mail.connectors.sessions import Session
from models.columns import Picked
from resolvers.connectoroptions import Chosen
from resolvers.importing import Import
from resolvers.where import MessageWhere

if TYPE_CHECKING:
    from resolvers.connectorruns import Run

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
        await self.run.hold(
            session, **{"stage": self.there.line.stage, **asdict(self.tally), **more}
        )

    @asynccontextmanager
    async def unit(self) -> AsyncGenerator[AsyncSession]:
        """A unit of the account; Failure where our own store takes too long."""
        row = self.connector
        try:
            async with asyncio.timeout(row.local_timeout):
                async with self.run.ctx.write(row.user_id) as session:
                    yield session
        except TimeoutError:
            words = f"our own store took more than {row.local_timeout} seconds"
            raise Failure(Stage.STORE, words) from None


def joined(flags: frozenset[str]) -> str:
    """Flags as the ledger has them."""
    return " ".join(sorted(flags - IGNORED))
