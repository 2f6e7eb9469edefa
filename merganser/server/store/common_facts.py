"""Facts that all servers of a database must share: secret, key file and object store.

A digest of each is in the database, with host and location of the server that registered it. The
object store has a mark, which is in the database too. A server that differs does not start.
"""

import hmac
import logging
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.pool import NullPool
from sqlmodel import col

from mail.storage.blobs.object_names import OWNER_MARK
from merganser.errors import CommandError
from merganser.server.server_identity import read_server_id
from merganser.settings.settings import Settings
from models.files.blobs import Blob
from models.runtime.server_processes import ServerProcess
from models.store.columns import insert_with_conflict
from models.store.database import Database
from models.store.facts import StoreFact
from models.store.object_store import ObjectStoreProtocol
from models.store.outages import StorageUnavailable
from models.store.postgres.address import is_postgres

log = logging.getLogger(__name__)

COMPARE_LOCK = (
    0x6D65726A  # a PostgreSQL advisory lock: one process at a time compares and registers
)
COMPARE_LOCK_TIMEOUT = "60s"
SECRET_FACT = "secret"  # noqa: S105
KEY_FILE_FACT = "key file"
BLOBS_FACT = "blobs"
COLD_BLOBS_FACT = "cold blobs"


@dataclass(frozen=True, slots=True)
class RegisteredFact:
    """A fact with the host and location of the server that registered it."""

    digest: str
    host: str
    location: str


@asynccontextmanager
async def lock_facts_if_postgres(settings: Settings) -> AsyncGenerator[None]:
    """Lock the facts of a PostgreSQL database, so that one process compares them at a time.

    An SQLite database has one server and needs no lock.
    """
    if not is_postgres(settings.database_url):
        yield
        return
    # asyncpg is an optional dependency
    from models.store.postgres.connection import postgres_engine  # noqa: PLC0415

    engine = postgres_engine(
        settings.database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SET lock_timeout = '{COMPARE_LOCK_TIMEOUT}'"))
            await connection.execute(text(f"SELECT pg_advisory_lock({COMPARE_LOCK})"))
            yield
    finally:
        await engine.dispose()


async def load_fact(store: Database, fact_name: str) -> RegisteredFact | None:
    """Load a registered fact; None if no server has registered it."""
    columns = col(StoreFact.digest), col(StoreFact.host), col(StoreFact.location)
    rows = await store.read(select(*columns).where(col(StoreFact.name) == fact_name))
    return RegisteredFact(*rows[0]) if rows else None


async def register_or_replace_fact(
    store: Database, fact_name: str, digest: str, location: str
) -> None:
    """Insert or replace a fact, with the name of this host."""
    values: dict[str, Any] = {"digest": digest, "host": socket.gethostname(), "location": location}
    insert = insert_with_conflict(store.dialect, StoreFact).values(
        name=fact_name, at=datetime.now(UTC), **values
    )
    upsert = insert.on_conflict_do_update(
        index_elements=["name"], set_={key: insert.excluded[key] for key in (*values, "at")}
    )
    await store.run_transaction(lambda connection: connection.execute(upsert).close())


async def has_other_servers(settings: Settings, store: Database) -> bool:
    """True if a process of another server is registered. Always False with SQLite.

    A command that uses the database exclusively is not a server.
    """
    if not is_postgres(settings.database_url):
        return False
    is_other_server = col(ServerProcess.server) != read_server_id(settings.data)
    statement = select(func.count()).select_from(ServerProcess)
    statement = statement.where(is_other_server, col(ServerProcess.exclusive).is_(None))
    return bool((await store.read(statement))[0][0])


async def register_secret_unless_other_server_differs(
    settings: Settings, store: Database, signing_secret: bytes
) -> None:
    """Register the digest of the secret.

    Raises CommandError if a running server has another secret.
    """
    digest = hmac.digest(signing_secret, b"merganser secret", "sha256").hex()
    path = (settings.data / "secret").absolute()
    location = "MERGANSER_SIGNING_SECRET" if settings.signing_secret else str(path)
    fact = await load_fact(store, SECRET_FACT)
    if fact is not None and fact.digest == digest:
        return
    if fact is not None and await has_other_servers(settings, store):
        raise CommandError(
            f"The secret of this server ({location}) differs from that of the server "
            f"{fact.host}, which uses the same database: copy {fact.location} from "
            f"{fact.host} to {location}. To change the secret, stop all servers first."
        )
    await register_or_replace_fact(store, SECRET_FACT, digest, location)


async def key_file_copy_hint(store: Database) -> str:
    """The end of an error message: where to copy the key file from. Empty if none is registered."""
    fact = await load_fact(store, KEY_FILE_FACT)
    return f", or copy it from the server {fact.host}, where it is {fact.location}" if fact else ""


def _location_without_parameters(url: str) -> str:
    """The location of an object store without the parameters of its URL."""
    location = url.partition("?")[0]
    return location if "://" in location else str(Path(location).absolute())


async def mark_or_compare_object_store(
    store: Database, object_store: ObjectStoreProtocol, fact_name: str, url: str
) -> None:
    """Compare the mark of an object store with the database, and write the mark at first.

    Raises CommandError if it belongs to another database, or has no mark although a server has
    registered an object store. Without the mark it is not the store of the other servers, whether
    or not the database has objects yet. The only server of an SQLite database can use another
    store until the first object is stored. An object store that does not answer is not compared.
    """
    setting = (
        "MERGANSER_OBJECT_STORE_URL"
        if fact_name == BLOBS_FACT
        else "MERGANSER_COLD_OBJECT_STORE_URL"
    )
    location = _location_without_parameters(url)
    fact = await load_fact(store, fact_name)
    try:
        stored_mark = (await object_store.get(OWNER_MARK)).decode(errors="replace").strip()
    except KeyError:
        stored_mark = ""
    except StorageUnavailable:
        log.warning("Could not compare the object storage", extra={"place": location})
        return
    if fact is None:
        store_mark = stored_mark or secrets.token_hex(16)
        if not stored_mark:
            await object_store.put(OWNER_MARK, f"{store_mark}\n".encode())
        await register_or_replace_fact(store, fact_name, store_mark, location)
    elif (
        not stored_mark
        and store.dialect == "sqlite"
        and not await store.read(select(col(Blob.id)).limit(1))
    ):
        await object_store.put(OWNER_MARK, f"{fact.digest}\n".encode())
    elif stored_mark != fact.digest:
        reason = "belongs to another database" if stored_mark else f"has no object {OWNER_MARK}"
        raise CommandError(
            f"{setting} is wrong: {location} {reason}. Set it as on the server "
            f"{fact.host}, where it is {fact.location}: all servers of a database use the same "
            f"object store. If the objects were moved to "
            f"{location}, write {fact.digest} into {location}/{OWNER_MARK}."
        )
