"""Read attachments of a composed message: new, uploaded, or copied from another message."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mail.compose.message_builder import FILES, Attachment, fitting
from mail.storage.message_content import Stored
from models.errors import Invalid, NotFound, check_limit, found
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.messages import content as message_content

PATH = ("attachments",)
_ODD = re.compile(r"[^\w .,()+-]+")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An attachment that was uploaded before. A field that is None is taken from the upload."""

    upload_id: int
    filename: str | None = None
    content_type: str | None = None
    cid: str | None = None  # without angle brackets


@dataclass(frozen=True, slots=True)
class Chosen:
    """The attachments of one message to copy: those in `ids`, or all but the images of its HTML."""

    all: bool = False
    ids: Sequence[tuple[int, int]] = ()  # id of the message, and attachment number from 0


@dataclass(slots=True)
class Room:
    """The number and size of attachments that a message can still have."""

    most: int
    used: int = 0
    files: int = 0

    def take(self, size: int, path: Sequence[str] = PATH) -> None:
        """Count a file before it is read.

        Raises Invalid if the message gets too large or has too many.
        """
        self.used, self.files = self.used + size, self.files + 1
        check_limit(self.used, self.most, f"more than {self.most} bytes", path=path)
        if self.files > FILES:
            raise Invalid(f"more than {FILES} files", constraint="max", path=path)


async def given(
    ctx: Context, files: Sequence[Attachment | Uploaded], room: Room
) -> list[Attachment]:
    """Read the new and the uploaded attachments, in order.

    Raises NotFound if the viewer has no such upload, and Invalid if the budget is exceeded.
    """
    keys = [file.upload_id for file in files if isinstance(file, Uploaded)]
    rows = dict(zip(keys, await ctx.load_all(uploads.by_ids, keys), strict=True))
    for nth, file in enumerate(files):
        if isinstance(file, Attachment):
            room.take(len(file.content))
            continue
        path = [*PATH, str(nth), "upload"]
        if (row := rows[file.upload_id]) is None:
            raise NotFound(str(file.upload_id), path=path, index=nth)
        room.take(row.size, path)
    made: list[Attachment] = []
    for file in files:
        if isinstance(file, Uploaded):
            row = found(rows[file.upload_id])
            name, kind = file.filename or row.filename, file.content_type or row.content_type
            content = await uploads.read_upload(ctx, file.upload_id)
            made.append(Attachment(content, name, kind, file.cid))
        else:
            made.append(file)
    return made


def numbers(message: Stored, chosen: Chosen, path: Sequence[str]) -> list[int]:
    """Return the numbers of the selected attachments of a message.

    Raises NotFound if an attachment is selected that the message does not have.
    """
    if chosen.all:
        return [n for n, each in enumerate(message.row.attachments) if not each["related"]]
    for index, (key, number) in enumerate(chosen.ids):
        if key != message.row.id or number >= len(message.row.attachments):
            raise NotFound(str(key), path=[*path, "ids"], index=index)
    return list(dict.fromkeys(number for _, number in chosen.ids))


def plain_name(text: str) -> str:
    """Return a file name made of a text, or "" if no usable character is left."""
    return _ODD.sub(" ", text).strip(" .")[:100]


async def copied(
    message: Stored, which: Sequence[int], room: Room, path: Sequence[str]
) -> list[Attachment]:
    """Return the attachments of a message that have these numbers, decoded.

    Raises Invalid if the budget is exceeded.
    """
    for number in which:
        room.take(message.row.attachments[number]["size"], path)
    made = []
    for number in which:
        facts, part = (
            message.row.attachments[number],
            found(message_content.attached(message, number)),
        )
        content = await message.content(part)
        named = facts["filename"], facts["content_type"], facts["cid"]
        made.append(fitting(Attachment(content, *named, charset=part.params.get("charset"))))
    return made
