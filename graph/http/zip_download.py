"""Download of all attachments of a message as one ZIP."""

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response

from graph.http import download_urls
from graph.http.byte_responses import safe_filename, stream_file
from graph.http.upload_body import UploadService, authenticate_download_and_choose_caching
from graph.types import global_ids
from mail.files.zip_stream import ZipMember, stream_zip
from mail.mime import ParsedPart
from mail.storage.message_content import PartContent, StoredMessage
from models.errors import NotFound, require_found
from resolvers.messages import content, message_bytes

EXTENSION_BY_MEDIA_TYPE = {  # of files without a filename
    "text/plain": "txt",
    "text/html": "html",
    "text/calendar": "ics",
    "text/csv": "csv",
    "message/rfc822": "eml",
    "application/pdf": "pdf",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
}
MAX_NAME_BYTES = 200  # file systems allow 255
_RESERVED_NAME = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_FILE_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}")


def default_part_filename(part: ParsedPart) -> str:
    """Return the file name of a MIME part without a filename, such as part-1.2.pdf."""
    ending = EXTENSION_BY_MEDIA_TYPE.get(part.content_type, "bin")
    return f"part-{message_bytes.section_of_part(part)}.{ending}"


async def authorize_and_serve_attachments_zip(service: UploadService, request: Request) -> Response:
    """Serve all attachments of a message.

    Raises NotFound if the message is not visible, is deleted or has no attachments.
    """
    key = global_ids.decode_path_id("Message", request.path_params["id"])
    ctx, _ = await authenticate_download_and_choose_caching(
        service, request, download_urls.zip_path(key)
    )
    message = require_found(await content.load_stored_message_unless_deleted(ctx, key))
    attachments = message.row.attachments
    if not attachments:
        raise NotFound(str(key))
    files: list[tuple[str, ParsedPart]] = []
    for index, attachment in enumerate(attachments):
        part = require_found(message_bytes.find_attachment_part(message, index))
        files.append((attachment["filename"] or default_part_filename(part), part))
    names = safe_and_distinct_file_names(name for name, _ in files)
    opened = [
        ZipMember(name, _content_opener(message, part))
        for name, (_, part) in zip(names, files, strict=True)
    ]
    if request.method != "HEAD":
        for _, part in files:
            await message.require_intact(part.body_start, part.body_end)
    title = f"{message.row.subject.strip() or 'attachments'}.zip"
    return stream_file(request, "application/zip", title, stream_zip(opened, ctx.environment.now()))


def safe_and_distinct_file_names(names: Iterable[str]) -> list[str]:
    """Return safe file names for one folder, distinct on every operating system."""
    distinct_names: list[str] = []
    used_names: set[str] = set()
    counted: dict[str, int] = {}
    for name in names:
        stem, ending = _safe_stem_and_extension(name)
        fits = _shortened_name(stem, ending)
        first = _comparison_key(fits)
        while _comparison_key(fits) in used_names:
            counted[first] = counted.get(first, 1) + 1
            fits = _shortened_name(stem, f" ({counted[first]}){ending}")
        used_names.add(_comparison_key(fits))
        distinct_names.append(fits)
    return distinct_names


def _safe_stem_and_extension(name: str) -> tuple[str, str]:
    """Split a safe form of a file name into its stem and its extension with the dot."""
    safe_name = unicodedata.normalize("NFC", safe_filename(name))
    if _RESERVED_NAME.fullmatch(safe_name):
        safe_name = f"_{safe_name}"
    stem, dot, ending = safe_name.rpartition(".")
    if stem and _FILE_EXTENSION.fullmatch(dot + ending):
        return stem, dot + ending
    return safe_name, ""


def _shortened_name(stem: str, ending: str) -> str:
    room = MAX_NAME_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(" .") + ending


def _comparison_key(name: str) -> str:
    """Return a file name in the form in which names in a ZIP are compared: NFKC, case-folded."""
    return unicodedata.normalize("NFKC", name).casefold()


def _content_opener(
    message: StoredMessage, part: ParsedPart
) -> Callable[[], Awaitable[PartContent]]:
    return lambda: message.open_part(part)
