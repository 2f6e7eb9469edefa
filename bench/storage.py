"""`python -m bench.storage`: what a store's messages take, and what is saved on them."""

import asyncio
import os
import platform
from dataclasses import dataclass
from typing import Any

import typer
from sqlalchemy import Select, func, select, text
from sqlmodel import col

from merganser.server.environment_factory import database
from merganser.settings.settings import read
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
class Storage:
    """How many there are, and how many bytes they take."""

    messages: int
    raw: int  # as the messages came
    pieces: int
    referred: int  # how often messages need a piece
    apart: int  # plain bytes, were every piece kept for each message that needs it
    plain: int  # of the pieces, each once
    stored: int  # the same, compressed
    inline: int  # of these, in rows
    files: int  # pieces that lie in the store of large bytes
    in_files: int
    rows: int  # bytes of the whole database: pieces in rows, indexes and all else


async def measured(store: Database) -> Storage:
    """Add up what this store holds."""
    stored, size = func.sum(col(Blob.stored_size)), func.sum(col(Blob.size))
    messages, raw = await _sums(store, select(func.count(), func.sum(col(Message.size))))
    needed = select(func.count(), size).join(MessageBlob, col(MessageBlob.blob_id) == col(Blob.id))
    referred, apart = await _sums(store, needed)
    pieces, plain, packed = await _sums(store, select(func.count(), size, stored))
    outside = select(func.count(), stored).where(col(Blob.name).is_not(None))
    files, in_files = await _sums(store, outside)
    (rows,) = await _sums(store, SIZES[store.dialect])
    return Storage(
        messages=messages,
        raw=raw,
        pieces=pieces,
        referred=referred,
        apart=apart,
        plain=plain,
        stored=packed,
        inline=packed - in_files,
        files=files,
        in_files=in_files,
        rows=rows,
    )


async def _sums(store: Database, asked: Select[*tuple[Any, ...]]) -> tuple[int, ...]:
    """The one row of an aggregate, whose sums are None where there is nothing."""
    (row,) = await store.read(asked)
    return tuple(int(value or 0) for value in row)


def lines(found: Storage) -> list[tuple[str, str]]:
    """The figures in words, for people."""

    def share(part: int, whole: int) -> str:
        return f"{part:,} bytes ({part / max(whole, 1):.0%} of raw)"

    return [
        ("messages", f"{found.messages:,}"),
        ("raw", f"{found.raw:,} bytes"),
        ("pieces", f"{found.pieces:,}, needed {found.referred:,} times"),
        ("taken apart and decoded", share(found.apart, found.raw)),
        ("each piece once", share(found.plain, found.raw)),
        ("compressed", share(found.stored, found.raw)),
        ("of that in rows", f"{found.inline:,} bytes, {found.pieces - found.files:,} pieces"),
        ("of that in files", f"{found.in_files:,} bytes, {found.files:,} pieces"),
        ("database with its indexes", f"{found.rows:,} bytes"),
    ]


async def _of_settings() -> Storage:
    async with database(read()) as store:
        return await measured(store)


def main() -> None:
    """Print the figures of the store that the settings name, as a Markdown table."""
    found = asyncio.run(_of_settings())
    typer.echo("| what | how much |\n|---|---|")
    for name, figure in lines(found):
        typer.echo(f"| {name} | {figure} |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    typer.echo(f"\n{machine}")


if __name__ == "__main__":
    main()
