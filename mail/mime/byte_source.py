"""Readable bytes of a message: in memory, in a file or in the object store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class ByteSource(Protocol):
    """A message with readable byte ranges."""

    def __len__(self) -> int:
        """Return the number of bytes of the message."""

    def slice(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""


@dataclass(frozen=True, slots=True)
class MemorySource:
    """A message in memory."""

    raw: bytes

    def __len__(self) -> int:
        return len(self.raw)

    def slice(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        return self.raw[start:end]


def read_range(source: bytes | ByteSource, start: int, end: int) -> bytes:
    """Return the bytes of a message from `start` to before `end`."""
    return source[start:end] if isinstance(source, bytes) else source.slice(start, end)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A message in a file. Use it in a thread, because reading waits for the disk."""

    path: Path
    size: int  # bytes

    def __len__(self) -> int:
        return self.size

    def slice(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(max(end - start, 0))
