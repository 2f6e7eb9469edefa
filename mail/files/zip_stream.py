"""Files as one ZIP that is streamed. No file is held in memory as a whole."""

import asyncio
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import IO, cast

from mail.storage.message_content import PartContent

THREAD_BYTES = 32 * 1024  # larger chunks are compressed in a thread
MIN_YEAR = 1980  # range of years of a ZIP
MAX_YEAR = 2107
_EXTERNAL_ATTRIBUTES = 0o600 << 16  # file mode, in the upper 16 bits


@dataclass(frozen=True, slots=True)
class ZipMember:
    """The name of a file in the ZIP, and a function that opens its content."""

    name: str
    open_content: Callable[[], Awaitable[PartContent]]


class _OutputBuffer:
    """A file object that keeps written bytes until they are taken. It can't seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, chunk: bytes) -> int:
        self._pieces.append(bytes(chunk))
        return len(chunk)

    def flush(self) -> None:
        """Do nothing."""

    def take_bytes(self) -> bytes:
        """Return and remove all bytes that were written."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


async def stream_zip(members: Sequence[ZipMember], modified_at: datetime) -> AsyncGenerator[bytes]:
    """Yield a ZIP of these files, all with the same modification time."""
    sink = _OutputBuffer()
    year = min(max(modified_at.year, MIN_YEAR), MAX_YEAR)
    dos_time = (
        year,
        modified_at.month,
        modified_at.day,
        modified_at.hour,
        modified_at.minute,
        modified_at.second,
    )
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w") as archive:
        for file in members:
            content = await file.open_content()
            info = zipfile.ZipInfo(file.name, dos_time)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, _EXTERNAL_ATTRIBUTES
            info.file_size = content.size  # decides on ZIP64
            with archive.open(info, "w") as entry:
                async with aclosing(content.stream(0, content.size)) as chunks:
                    async for chunk in chunks:
                        if len(chunk) < THREAD_BYTES:
                            entry.write(chunk)
                        else:
                            await asyncio.to_thread(entry.write, chunk)
                        if zip_bytes := sink.take_bytes():
                            yield zip_bytes
            if zip_bytes := sink.take_bytes():
                yield zip_bytes
    yield sink.take_bytes()
