"""Files as one ZIP that is streamed. No file is held in memory as a whole."""

import asyncio
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import IO, cast

from mail.storage.message_content import Content

LARGE = 32 * 1024  # larger chunks are compressed in a thread
OLDEST = 1980  # range of years of a ZIP
NEWEST = 2107
_MODE = 0o600 << 16  # file mode, in the upper 16 bits


@dataclass(frozen=True, slots=True)
class File:
    """The name of a file in the ZIP, and a function that opens its content."""

    name: str
    opened: Callable[[], Awaitable[Content]]


class _Sink:
    """A file object that keeps written bytes until they are taken. It can't seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing."""

    def taken(self) -> bytes:
        """Return and remove all bytes that were written."""
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


async def zipped(files: Sequence[File], at: datetime) -> AsyncGenerator[bytes]:
    """Yield a ZIP of these files, all with the same modification time."""
    sink = _Sink()
    year = min(max(at.year, OLDEST), NEWEST)
    moment = (year, at.month, at.day, at.hour, at.minute, at.second)
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w") as archive:
        for file in files:
            content = await file.opened()
            info = zipfile.ZipInfo(file.name, moment)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, _MODE
            info.file_size = content.size  # decides on ZIP64
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
