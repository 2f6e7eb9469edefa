"""Read the settings of one-time imports, and delete their data when they have ended."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.connectors import Connector, ConnectorRun, RemoteMailbox
from models.store.columns import ColumnRow
from models.transfer import ImportArchive
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.message_filter import MessageConditions


@dataclass(frozen=True, slots=True)
class OneTimeImport:
    """The settings of a one-time import, stored with its connector."""

    path: str | None = None  # path of an archive on the server
    user: int | None = None  # id of the source account
    where: dict[str, Any] | None = None  # stored filter, see `filter_match.conditions_from_json`
    below: str | None = None  # path of the parent mailbox
    subscribe: bool = False  # subscribe to created mailboxes

    @property
    def message_filter(self) -> MessageConditions | None:
        """The filter for messages; None selects all."""
        return filter_match.conditions_from_json(self.where) if self.where else None


def one_time_import_of(connector: ColumnRow) -> OneTimeImport:
    """Return the settings of a one-time import, or the defaults for another connector."""
    return OneTimeImport(**(connector.import_options or {}))


async def delete_one_time_import_data(session: AsyncSession, run_ids: Collection[int]) -> None:
    """Delete secret, ledger and archive of one-time imports after their runs have ended."""
    connection = await session.connection()
    connector_ids = select(col(ConnectorRun.connector_id)).where(col(ConnectorRun.id).in_(run_ids))
    is_one_time = col(Connector.is_one_time) & col(Connector.id).in_(connector_ids)
    one_time_ids = select(col(Connector.id)).where(is_one_time)
    ledger = delete(RemoteMailbox).where(col(RemoteMailbox.connector_id).in_(one_time_ids))
    await connection.execute(ledger)
    cleared_values = {"secret": "", "import_options": None, "oauth": None, "next_run_at": None}
    await connection.execute(update(Connector).where(is_one_time).values(cleared_values))
    archives = delete(ImportArchive).where(col(ImportArchive.task_id).in_(run_ids))
    await connection.execute(archives)
