"""What single imports bring, and what is let go when they have ended."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.connectors import Connector, ConnectorFolder, ConnectorRun
from models.store.columns import Picked
from models.transfer import ImportArchive
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.message_filter import MessageWhere


@dataclass(frozen=True, slots=True)
class Order:
    """What a single import brings, as its connector keeps it."""

    path: str | None = None  # of an archive on the server
    user: int | None = None  # whose mail
    where: dict[str, Any] | None = None  # which of it: resolvers/messages/filters/filter_match.py
    below: str | None = None  # the folder in which all of its folders are made
    subscribe: bool = False  # to folders that are made

    @property
    def asked(self) -> MessageWhere | None:
        """Which messages; None: all."""
        return filter_match.where_of(self.where) if self.where else None


def order_of(connector: Picked) -> Order:
    """What a single import brings; nothing in particular where the connector is none."""
    return Order(**(connector.bringing or {}))


async def forget(session: AsyncSession, runs: Collection[int]) -> None:
    """Let go what single imports needed whose runs these are, and which have ended."""
    connection = await session.connection()
    of_runs = select(col(ConnectorRun.connector_id)).where(col(ConnectorRun.id).in_(runs))
    single = col(Connector.once) & col(Connector.id).in_(of_runs)
    keys = select(col(Connector.id)).where(single)
    ledger = delete(ConnectorFolder).where(col(ConnectorFolder.connector_id).in_(keys))
    await connection.execute(ledger)
    done = {"secret": "", "bringing": None, "oauth": None, "next_run_at": None}
    await connection.execute(update(Connector).where(single).values(done))
    archives = delete(ImportArchive).where(col(ImportArchive.task_id).in_(runs))
    await connection.execute(archives)
