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

from mail.storage.blobs.object_stores import MARK
from merganser.errors import Trouble
from merganser.server.server_identity import read_server_identity
from merganser.settings.settings import Settings
from models.files.blobs import Blob
from models.runtime.server_processes import ServerProcess
from models.store.columns import insert_or
from models.store.database import Database
from models.store.facts import StoreFact
from models.store.object_store import Store
from models.store.outages import StoreUnavailable
from models.store.postgres.address import is_postgres

log = logging.getLogger(__name__)

COMPARING = 0x6D65726A  # a PostgreSQL advisory lock: one process at a time compares and registers
WAIT = "60s"
SECRET, KEY_FILE, BLOBS, COLD_BLOBS = "secret", "key file", "blobs", "cold blobs"


@dataclass(frozen=True, slots=True)
class RegisteredFact:
    """A fact with the host and location of the server that registered it."""

    digest: str
    host: str
    place: str


@asynccontextmanager
async def one_at_a_time(settings: Settings) -> AsyncGenerator[None]:
    """Lock the facts of a PostgreSQL database, so that one process compares them at a time.

    An SQLite database has one server and needs no lock.
    """
    if not is_postgres(settings.store):
        yield
        return
    from models.store.postgres.connection import postgres_engine  # noqa: PLC0415 - needs asyncpg

    engine = postgres_engine(settings.store, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SET lock_timeout = '{WAIT}'"))
            await connection.execute(text(f"SELECT pg_advisory_lock({COMPARING})"))
            yield
    finally:
        await engine.dispose()


async def registered(store: Database, name: str) -> RegisteredFact | None:
    """Load a registered fact; None if no server has registered it."""
    columns = col(StoreFact.digest), col(StoreFact.host), col(StoreFact.place)
    rows = await store.read(select(*columns).where(col(StoreFact.name) == name))
    return RegisteredFact(*rows[0]) if rows else None


async def register_fact(store: Database, name: str, digest: str, place: str) -> None:
    """Insert or replace a fact, with the name of this host."""
    values: dict[str, Any] = {"digest": digest, "host": socket.gethostname(), "place": place}
    insert = insert_or(store.dialect, StoreFact).values(name=name, at=datetime.now(UTC), **values)
    upsert = insert.on_conflict_do_update(
        index_elements=["name"], set_={key: insert.excluded[key] for key in (*values, "at")}
    )
    await store.apply(lambda connection: connection.execute(upsert).close())


async def is_served_by_others(settings: Settings, store: Database) -> bool:
    """True if a process of another server is registered. Always False with SQLite.

    A command that uses the database exclusively is not a server.
    """
    if not is_postgres(settings.store):
        return False
    others = col(ServerProcess.server) != read_server_identity(settings.data)
    statement = select(func.count()).select_from(ServerProcess)
    statement = statement.where(others, col(ServerProcess.exclusive).is_(None))
    return bool((await store.read(statement))[0][0])


async def compare_secret(settings: Settings, store: Database, secret: bytes) -> None:
    """Register the digest of the secret.

    Raises CommandError if a running server has another secret.
    """
    digest = hmac.digest(secret, b"merganser secret", "sha256").hex()
    path = (settings.data / "secret").absolute()
    place = "MERGANSER_SECRET" if settings.secret else str(path)
    fact = await registered(store, SECRET)
    if fact is not None and fact.digest == digest:
        return
    if fact is not None and await is_served_by_others(settings, store):
        raise Trouble(
            f"the secret of this server ({place}) is not that of the server {fact.host}, which"
            f" uses the same store: copy {fact.place} from {fact.host} to {place}; to change the"
            " secret, stop all servers first"
        )
    await register_fact(store, SECRET, digest, place)


async def key_file_source(store: Database) -> str:
    """The end of an error message: where to copy the key file from. Empty if none is registered."""
    fact = await registered(store, KEY_FILE)
    return f", or copy it from the server {fact.host}, where it is {fact.place}" if fact else ""


def _shown_place(url: str) -> str:
    """The location of an object store without the parameters of its URL."""
    place = url.partition("?")[0]
    return place if "://" in place else str(Path(place).absolute())


async def compare_blobs(store: Database, objects: Store, name: str, url: str) -> None:
    """Compare the mark of an object store with the database, and write the mark at first.

    Raises CommandError if it belongs to another database, or has no mark although this database
    has objects. An object store that does not answer is not compared.
    """
    setting = "MERGANSER_BLOBS" if name == BLOBS else "MERGANSER_COLD_BLOBS"
    place = _shown_place(url)
    fact = await registered(store, name)
    try:
        found = (await objects.get(MARK)).decode(errors="replace").strip()
    except KeyError:
        found = ""
    except StoreUnavailable:
        log.warning("the object storage was not compared", extra={"place": place})
        return
    if fact is None:
        mark = found or secrets.token_hex(16)
        if not found:
            await objects.put(MARK, f"{mark}\n".encode())
        await register_fact(store, name, mark, place)
    elif not found and not (await store.read(select(col(Blob.id)).limit(1))):
        await objects.put(MARK, f"{fact.digest}\n".encode())
    elif found != fact.digest:
        what = "belongs to another store" if found else f"has no object {MARK}"
        raise Trouble(
            f"{setting} is wrong: {place} {what}; set it as on the server {fact.host}, where it is"
            f" {fact.place}; if the objects were moved to {place}, write {fact.digest} into"
            f" {place}/{MARK}"
        )
