"""Download of all attachments of a message as one ZIP."""

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls
from graph.http.byte_responses import safe_name, streamed
from graph.http.upload_body import Desk, reader
from graph.types import global_ids
from mail.files.zip_stream import File, zipped
from mail.mime import Part
from mail.storage.message_content import Content, Stored
from models.errors import NotFound, found
from resolvers.messages import content

LONGEST = 200  # file systems allow 255
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")


async def attachments(desk: Desk, request: Request, named: Callable[[Part], str]) -> Response:
    """Serve all attachments of a message; `default_filename` names a part without a filename.

    Raises NotFound if the message is not visible or has no attachments.
    """
    key = global_ids.named("Message", request.path_params["id"])
    ctx, _ = await reader(desk, request, download_urls.zip_path(key))
    message = found(await content.one(ctx, key))
    known = message.row.attachments
    if not known:
        raise NotFound(str(key))
    files: list[tuple[str, Part]] = []
    for index, attachment in enumerate(known):
        part = found(content.attached(message, index))
        files.append((attachment["filename"] or named(part), part))
    names = distinct(name for name, _ in files)
    opened = [
        File(name, _opens(message, part)) for name, (_, part) in zip(names, files, strict=True)
    ]
    if request.method != "HEAD":
        for _, part in files:
            await message.check(part.body_start, part.body_end)
    title = f"{message.row.subject.strip() or 'attachments'}.zip"
    return streamed(request, "application/zip", title, zipped(opened, ctx.world.now()))


def distinct(names: Iterable[str]) -> list[str]:
    """Return safe file names for one folder, distinct on every operating system."""
    given: list[str] = []
    taken: set[str] = set()
    counted: dict[str, int] = {}
    for name in names:
        stem, ending = _divided(name)
        fits = _fitting(stem, ending)
        first = _compared(fits)
        while _compared(fits) in taken:
            counted[first] = counted.get(first, 1) + 1
            fits = _fitting(stem, f" ({counted[first]}){ending}")
        taken.add(_compared(fits))
        given.append(fits)
    return given


def _divided(name: str) -> tuple[str, str]:
    """Split a safe form of a file name into its stem and its extension with the dot."""
    safe = unicodedata.normalize("NFC", safe_name(name))
    if _RESERVED.fullmatch(safe):
        safe = f"_{safe}"
    stem, dot, ending = safe.rpartition(".")
    if stem and _ENDING.fullmatch(dot + ending):
        return stem, dot + ending
    return safe, ""


def _fitting(stem: str, ending: str) -> str:
    room = LONGEST - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(" .") + ending


def _compared(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _opens(message: Stored, part: Part) -> Callable[[], Awaitable[Content]]:
    return lambda: message.opened(part)
