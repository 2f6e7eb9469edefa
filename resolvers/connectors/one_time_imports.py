"""Read the settings of one-time imports, and delete their data when they have ended."""

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
    """The settings of a one-time import, stored with its connector."""

    path: str | None = None  # path of an archive on the server
    user: int | None = None  # id of the source account
    where: dict[str, Any] | None = None  # stored filter, see `filter_match.conditions_from_json`
    below: str | None = None  # path of the parent mailbox
    subscribe: bool = False  # subscribe to created mailboxes

    @property
    def asked(self) -> MessageWhere | None:
        """The filter for messages; None selects all."""
        return filter_match.where_of(self.where) if self.where else None


def order_of(connector: Picked) -> Order:
    """Return the settings of a one-time import, or the defaults for another connector."""
    return Order(**(connector.bringing or {}))


async def forget(session: AsyncSession, runs: Collection[int]) -> None:
    """Delete secret, ledger and archive of one-time imports after their runs have ended."""
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
