"""Listeners over an empty store, whose post is in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mail.smtp.listener import SmtpFamilyListener
from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.database import Database

Kind = TypeVar("Kind", bound=SmtpFamilyListener)


@dataclass
class Listeners:
    """Opens listeners."""

    database: Database
    folder: Path
    opened: list[SmtpFamilyListener] = field(default_factory=list)

    def world(self, **more: Any) -> Environment:
        """A world around the store."""
        options = Options(hostname="mx.example.org")
        blobs = FolderStore(self.folder / "blobs")
        return Environment(self.database, blobs, b"secret", options=options, **more)

    async def begun(self, listener: Kind) -> Kind:
        """The listener, once it listens."""
        await listener.start(host="127.0.0.1", port=0)
        self.opened.append(listener)
        return listener


@asynccontextmanager
async def listeners(folder: Path) -> AsyncIterator[Listeners]:
    """Opens listeners, and closes them."""
    found = Listeners(Database(f"sqlite+aiosqlite:///{folder}/mail.db"), folder)
    yield found
    for listener in found.opened:
        await listener.close(1)
    await found.database.close()
