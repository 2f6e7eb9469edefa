"""SMTP and LMTP listeners over an empty database."""

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

ListenerType = TypeVar("ListenerType", bound=SmtpFamilyListener)


@dataclass
class EmptyStoreListeners:
    """Starts listeners, and keeps them to close them."""

    database: Database
    folder: Path
    started_listeners: list[SmtpFamilyListener] = field(default_factory=list)

    def environment(self, **components: Any) -> Environment:
        """An environment with the empty database."""
        options = Options(hostname="mx.example.org")
        blobs = FolderStore(self.folder / "blobs")
        return Environment(self.database, blobs, b"secret", options=options, **components)

    async def start_listener(self, listener: ListenerType) -> ListenerType:
        """Start a listener on a free port and return it."""
        await listener.start(host="127.0.0.1", port=0)
        self.started_listeners.append(listener)
        return listener


@asynccontextmanager
async def open_empty_store_listeners(folder: Path) -> AsyncIterator[EmptyStoreListeners]:
    """Yield an object that starts listeners, and close them at the end."""
    opener = EmptyStoreListeners(Database(f"sqlite+aiosqlite:///{folder}/mail.db"), folder)
    try:
        yield opener
    finally:
        for listener in opener.started_listeners:
            await listener.close(1)
        await opener.database.close()
