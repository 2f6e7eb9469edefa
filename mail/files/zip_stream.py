"""Files as one zip, written while it is read: none of them is ever held whole."""

import asyncio
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import IO, cast

from mail.storage.message_content import Content

LARGE = 32 * 1024  # bytes; from here on a thread packs them
OLDEST = 1980  # years that a zip can tell
NEWEST = 2107
_MODE = 0o600 << 16  # of a file, in the upper half


@dataclass(frozen=True, slots=True)
class File:
    """What it is called in the zip, and what opens it when its turn comes."""

    name: str
    opened: Callable[[], Awaitable[Content]]


class _Sink:
    """Takes what is written, until somebody fetches it. One cannot go back in it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing waits."""

    def taken(self) -> bytes:
        """All that came since the last time."""
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


async def zipped(files: Sequence[File], at: datetime) -> AsyncGenerator[bytes]:
    """Yield a zip of these files, all of the same time."""
    sink = _Sink()
    year = min(max(at.year, OLDEST), NEWEST)
    moment = (year, at.month, at.day, at.hour, at.minute, at.second)
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w") as archive:
        for file in files:
            content = await file.opened()
            info = zipfile.ZipInfo(file.name, moment)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, _MODE
            info.file_size = content.size  # whether it needs the large form
            with archive.open(info, "w") as entry:
                async with aclosing(content.stream(0, content.size)) as chunks:
                    async for chunk in chunks:
                        if len(chunk) < LARGE:
                            entry.write(chunk)
                        else:
                            await asyncio.to_thread(entry.write, chunk)
                        if piece := sink.taken():
                            yield piece
            if piece := sink.taken():
                yield piece
    yield sink.taken()
