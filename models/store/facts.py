"""Rows about the database: what its servers must have in common, and a row to test writing."""

import socket
import zlib
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlmodel import Field, SQLModel

from models.store.columns import RowWithId, Timestamp, insert_with_conflict


class StoreFact(SQLModel, table=True):
    """A thing that every server of this database must have, such as the signing secret.

    `digest` identifies it and does not reveal it. `host` and `location` name the machine and the
    file of the server that registered it. One row has the oldest revision of compatible code:
    see `models/store/compatible_revisions.py`. Another row has a default quota:
    see `resolvers/users/quota/default_quota.py`.
    """

    __tablename__ = "store_facts"

    name: str = Field(primary_key=True)
    digest: str
    host: str
    location: str
    at: Timestamp


class WriteProbe(RowWithId, table=True):
    """The last successful write of a machine that only tested whether the database is writable."""

    __tablename__ = "write_probes"

    at: Timestamp


def upsert_write_probe(connection: Connection) -> None:
    """Write this machine's row. Each machine has its own row, so none waits for another's lock."""
    key = zlib.crc32(socket.gethostname().encode())
    new = insert_with_conflict(connection.dialect.name, WriteProbe).values(
        id=key, at=datetime.now(UTC)
    )
    connection.execute(
        new.on_conflict_do_update(index_elements=["id"], set_={"at": new.excluded.at})
    )
