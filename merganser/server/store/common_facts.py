"""What all servers of a store must have in common: secret, key file and object storage.

A digest of each is in the database, with the host and place of the server that registered it. The
object storage has a mark, which the database knows too. A server that differs does not start.
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

COMPARING = 0x6D65726A  # of PostgreSQL's advisory locks: one process compares and registers at once
WAIT = "60s"  # for another process that does
SECRET, KEY_FILE, BLOBS, COLD_BLOBS = "secret", "key file", "blobs", "cold blobs"


@dataclass(frozen=True, slots=True)
class RegisteredFact:
    """A fact as the server that registered it has it."""

    digest: str
    host: str
    place: str


@asynccontextmanager
async def one_at_a_time(settings: Settings) -> AsyncGenerator[None]:
    """Let no other process look at the facts of this store, or register any, meanwhile.

    An SQLite store has one server, and files are created by one process only.
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
    """Return a fact as it was registered; None if it was not."""
    columns = col(StoreFact.digest), col(StoreFact.host), col(StoreFact.place)
    rows = await store.read(select(*columns).where(col(StoreFact.name) == name))
    return RegisteredFact(*rows[0]) if rows else None


async def register_fact(store: Database, name: str, digest: str, place: str) -> None:
    """Register a fact, or replace it."""
    values: dict[str, Any] = {"digest": digest, "host": socket.gethostname(), "place": place}
    new = insert_or(store.dialect, StoreFact).values(name=name, at=datetime.now(UTC), **values)
    put = new.on_conflict_do_update(
        index_elements=["name"], set_={key: new.excluded[key] for key in (*values, "at")}
    )
    await store.apply(lambda connection: connection.execute(put).close())


async def is_served_by_others(settings: Settings, store: Database) -> bool:
    """True if a process of another server is registered; never with SQLite, which has one server.

    A command that has the store for itself is no server.
    """
    if not is_postgres(settings.store):
        return False
    others = col(ServerProcess.server) != read_server_identity(settings.data)
    asked = select(func.count()).select_from(ServerProcess)
    asked = asked.where(others, col(ServerProcess.exclusive).is_(None))
    return bool((await store.read(asked))[0][0])


async def compare_secret(settings: Settings, store: Database, secret: bytes) -> None:
    """Register the secret. Raises Trouble if another server that runs has another one."""
    digest = hmac.digest(secret, b"merganser secret", "sha256").hex()
    path = (settings.data / "secret").absolute()
    place = "MERGANSER_SECRET" if settings.secret else str(path)
    known = await registered(store, SECRET)
    if known is not None and known.digest == digest:
        return
    if known is not None and await is_served_by_others(settings, store):
        raise Trouble(
            f"the secret of this server ({place}) is not that of the server {known.host}, which"
            f" uses the same store: copy {known.place} from {known.host} to {place}; to change the"
            " secret, stop all servers first"
        )
    await register_fact(store, SECRET, digest, place)


async def key_file_source(store: Database) -> str:
    """Say from where to copy the key file; empty if no server has registered one."""
    known = await registered(store, KEY_FILE)
    return f", or copy it from the server {known.host}, where it is {known.place}" if known else ""


def _shown_place(url: str) -> str:
    """The place of an object storage, without its parameters."""
    place = url.partition("?")[0]
    return place if "://" in place else str(Path(place).absolute())


async def compare_blobs(store: Database, objects: Store, name: str, url: str) -> None:
    """Compare the mark in the object storage with the database, and write it at first.

    Raises Trouble if it is the storage of another store, or has no mark although this store has
    objects. An object storage that does not answer is not compared.
    """
    setting = "MERGANSER_BLOBS" if name == BLOBS else "MERGANSER_COLD_BLOBS"
    place = _shown_place(url)
    known = await registered(store, name)
    try:
        found = (await objects.get(MARK)).decode(errors="replace").strip()
    except KeyError:
        found = ""
    except StoreUnavailable:
        log.warning("the object storage was not compared", extra={"place": place})
        return
    if known is None:
        mark = found or secrets.token_hex(16)
        if not found:
            await objects.put(MARK, f"{mark}\n".encode())
        await register_fact(store, name, mark, place)
    elif not found and not (await store.read(select(col(Blob.id)).limit(1))):
        await objects.put(MARK, f"{known.digest}\n".encode())
    elif found != known.digest:
        what = "belongs to another store" if found else f"has no object {MARK}"
        raise Trouble(
            f"{setting} is wrong: {place} {what}; set it as on the server {known.host}, where it is"
            f" {known.place}; if the objects were moved to {place}, write {known.digest} into"
            f" {place}/{MARK}"
        )
