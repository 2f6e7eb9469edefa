"""`python -m bench.storage`: measure the bytes that messages take, and the bytes saved."""

import asyncio
import os
import platform
from dataclasses import dataclass
from typing import Any

import typer
from sqlalchemy import Select, func, select, text
from sqlmodel import col

from merganser.server.environment_factory import open_database
from merganser.settings.settings import read_settings
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from models.store.database import Database

SIZES: dict[str, Select[*tuple[Any, ...]]] = {  # of the whole database, by dialect
    "sqlite": select(text("page_count * page_size")).select_from(
        text("pragma_page_count(), pragma_page_size()")
    ),
    "postgresql": select(func.pg_database_size(func.current_database())),
}


@dataclass(frozen=True, slots=True)
class StorageFigures:
    """The numbers of messages and blobs, and the bytes that they take."""

    message_count: int
    raw_bytes: int  # of the messages as they were received
    blob_count: int
    reference_count: int  # of messages to blobs
    unshared_bytes: int  # uncompressed, if each message had its own blobs
    plain_bytes: int  # of the blobs, uncompressed
    stored_bytes: int  # of the blobs, compressed
    inline_bytes: int  # of these, in rows of the database
    object_count: int  # blobs in the object store
    object_bytes: int
    database_bytes: int  # with blobs in rows and indexes


async def measure_storage(database: Database) -> StorageFigures:
    """Add up the messages and blobs of a database."""
    stored_size, size = func.sum(col(Blob.stored_size)), func.sum(col(Blob.size))
    message_count, raw_bytes = await _read_sums(
        database, select(func.count(), func.sum(col(Message.size)))
    )
    references = select(func.count(), size).join(
        MessageBlob, col(MessageBlob.blob_id) == col(Blob.id)
    )
    reference_count, unshared_bytes = await _read_sums(database, references)
    blob_count, plain_bytes, stored_bytes = await _read_sums(
        database, select(func.count(), size, stored_size)
    )
    objects = select(func.count(), stored_size).where(col(Blob.name).is_not(None))
    object_count, object_bytes = await _read_sums(database, objects)
    (database_bytes,) = await _read_sums(database, SIZES[database.dialect])
    return StorageFigures(
        message_count=message_count,
        raw_bytes=raw_bytes,
        blob_count=blob_count,
        reference_count=reference_count,
        unshared_bytes=unshared_bytes,
        plain_bytes=plain_bytes,
        stored_bytes=stored_bytes,
        inline_bytes=stored_bytes - object_bytes,
        object_count=object_count,
        object_bytes=object_bytes,
        database_bytes=database_bytes,
    )


async def _read_sums(database: Database, statement: Select[*tuple[Any, ...]]) -> tuple[int, ...]:
    """Return the only row of an aggregate query, with 0 for NULL."""
    (row,) = await database.read(statement)
    return tuple(int(value or 0) for value in row)


def report_rows(figures: StorageFigures) -> list[tuple[str, str]]:
    """Return the figures as text for people."""

    def share(part: int, total: int) -> str:
        return f"{part:,} bytes ({part / max(total, 1):.0%} of raw)"

    return [
        ("messages", f"{figures.message_count:,}"),
        ("raw messages", f"{figures.raw_bytes:,} bytes"),
        ("blobs", f"{figures.blob_count:,}, with {figures.reference_count:,} references"),
        ("split and decoded", share(figures.unshared_bytes, figures.raw_bytes)),
        ("each blob once", share(figures.plain_bytes, figures.raw_bytes)),
        ("compressed", share(figures.stored_bytes, figures.raw_bytes)),
        (
            "of that in rows",
            f"{figures.inline_bytes:,} bytes, {figures.blob_count - figures.object_count:,} blobs",
        ),
        (
            "of that in files",
            f"{figures.object_bytes:,} bytes, {figures.object_count:,} blobs",
        ),
        ("database with its indexes", f"{figures.database_bytes:,} bytes"),
    ]


async def _measure_configured_database() -> StorageFigures:
    async with open_database(read_settings()) as database:
        return await measure_storage(database)


def main() -> None:
    """Print the figures of the configured database, as a Markdown table."""
    figures = asyncio.run(_measure_configured_database())
    typer.echo("| measure | size |\n|---|---|")
    for name, figure in report_rows(figures):
        typer.echo(f"| {name} | {figure} |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    typer.echo(f"\n{machine}")


if __name__ == "__main__":
    main()
