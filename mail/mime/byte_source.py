"""Where the bytes of a message come from: memory, or a store that cut large attachments out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """A message that can be read piece by piece."""

    def __len__(self) -> int:
        """Tell how many bytes the whole message has."""

    def slice(self, start: int, end: int) -> bytes:
        """Give the bytes from `start` up to, not including, `end`."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A message that lies in memory in one piece."""

    raw: bytes

    def __len__(self) -> int:
        return len(self.raw)

    def slice(self, start: int, end: int) -> bytes:
        """Give the bytes from `start` up to, not including, `end`."""
        return self.raw[start:end]


def cut(raw: bytes | Source, start: int, end: int) -> bytes:
    """Take a piece of a message, wherever it lies."""
    return raw[start:end] if isinstance(raw, bytes) else raw.slice(start, end)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A message that lies in a file; for a thread, as reading waits for the disk."""

    path: Path
    size: int  # bytes

    def __len__(self) -> int:
        return self.size

    def slice(self, start: int, end: int) -> bytes:
        """Give the bytes from `start` up to, not including, `end`."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(max(end - start, 0))
