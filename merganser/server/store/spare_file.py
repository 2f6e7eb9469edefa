"""A file that keeps room on a disk, so that a server can start while the disk is full.

A start writes a little, and SQLite needs files even to read. If the disk is full, the start
releases the room of the spare file, and takes the rest of it back afterwards.
"""

import asyncio
import logging
import os
import shutil
from pathlib import Path

from sqlalchemy import make_url

from merganser.settings.settings import Settings
from models.store.postgres.address import is_postgres

log = logging.getLogger(__name__)

SPARE_BYTES = 4 << 20
BYTES_LEFT_FREE = 1 << 20  # for the small writes of a server while the disk is full
REFILL_INTERVAL = 30.0  # seconds


class SpareFile:
    """The spare file on one disk. A disk that refuses it is only logged: the server needs none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_settings(cls, settings: Settings) -> "SpareFile":
        """Return the spare file beside an SQLite database; else that of the data folder."""
        if is_postgres(settings.database_url):
            return cls(settings.data / "spare")
        return cls(Path(f"{make_url(settings.database_url).database}.spare"))

    def release_if_disk_is_full(self) -> None:
        """Remove the file if the disk has less room than a start can need."""
        try:
            if self._free_bytes() < SPARE_BYTES and self._allocated_bytes():
                self._path.unlink()
                log.info("The disk is full: the start uses the spare file")
        except OSError:
            log.exception("Could not remove the spare file", extra={"path": str(self._path)})

    def refill(self) -> None:
        """Give the file its size, or a part of it if the disk has no room for more."""
        try:
            allocated = self._allocated_bytes()
            size = min(SPARE_BYTES, allocated + self._free_bytes() - BYTES_LEFT_FREE)
            if size > allocated:
                self._allocate(size)
        except OSError as problem:  # the disk has become full at this moment
            facts = {"path": str(self._path), "problem": str(problem)}
            log.info("Could not write the spare file", extra=facts)

    def _allocate(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:  # macOS
                os.pwrite(descriptor, bytes(size), 0)
        finally:
            os.close(descriptor)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._path.parent).free

    def _allocated_bytes(self) -> int:
        """Return the bytes of the file; 0 if there is none."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0


async def keep_spare_file_until_cancelled(settings: Settings) -> None:
    """Refill the spare file at once, and again as soon as the disk has room."""
    spare_file = SpareFile.from_settings(settings)
    while True:
        await asyncio.to_thread(spare_file.refill)
        await asyncio.sleep(REFILL_INTERVAL)
