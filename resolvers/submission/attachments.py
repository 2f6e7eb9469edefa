"""Read attachments of a composed message: new, uploaded, or copied from another message."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mail.compose.message_builder import sanitize_attachment
from mail.compose.message_draft import MAX_FILES, OutgoingFile
from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, NotFound, require_found, require_within_limit
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.messages import message_bytes

INPUT_PATH = ("attachments",)
MESSAGE_TYPE = "message/rfc822"
_UNSAFE_FILENAME_CHARACTERS = re.compile(r"[^\w .,()+-]+")


@dataclass(frozen=True, slots=True)
class UploadedAttachment:
    """An attachment that was uploaded before. A field that is None is taken from the upload."""

    upload_id: int
    filename: str | None = None
    content_type: str | None = None
    content_id: str | None = None  # without angle brackets


@dataclass(frozen=True, slots=True)
class AttachmentSelection:
    """The attachments of one message to copy: those in `ids`, or all but the images of its HTML."""

    all_unrelated: bool = False
    ids: Sequence[tuple[int, int]] = ()  # id of the message, and attachment number from 0


@dataclass(slots=True)
class AttachmentBudget:
    """The number and size of attachments that a message can still have."""

    max_bytes: int
    used_bytes: int = 0
    file_count: int = 0

    def count_file_or_raise(self, size: int, path: Sequence[str] = INPUT_PATH) -> None:
        """Count a file before it is read.

        Raises InvalidInput if the message gets too large or has too many.
        """
        self.used_bytes, self.file_count = self.used_bytes + size, self.file_count + 1
        require_within_limit(
            self.used_bytes,
            self.max_bytes,
            f"The attachments have at most {self.max_bytes} bytes in total.",
            path=path,
        )
        if self.file_count > MAX_FILES:
            raise InvalidInput(
                f"A message has at most {MAX_FILES} attachments.",
                constraint=ValidationConstraint.MAX,
                path=path,
            )


async def read_attachments(
    ctx: Context, files: Sequence[OutgoingFile | UploadedAttachment], budget: AttachmentBudget
) -> list[OutgoingFile]:
    """Read the new and the uploaded attachments, in order.

    Raises NotFound if the viewer has no such upload, and InvalidInput if the budget is exceeded.
    """
    upload_ids = [file.upload_id for file in files if isinstance(file, UploadedAttachment)]
    rows = dict(
        zip(
            upload_ids,
            await ctx.load_many(uploads.load_own_complete_uploads_by_id, upload_ids),
            strict=True,
        )
    )
    for index, file in enumerate(files):
        if isinstance(file, OutgoingFile):
            budget.count_file_or_raise(len(file.content))
            continue
        path = [*INPUT_PATH, str(index), "upload"]
        if (row := rows[file.upload_id]) is None:
            raise NotFound(str(file.upload_id), path=path, index=index)
        budget.count_file_or_raise(row.size, path)
    attachments: list[OutgoingFile] = []
    for file in files:
        if isinstance(file, UploadedAttachment):
            row = require_found(rows[file.upload_id])
            name, kind = file.filename or row.filename, file.content_type or row.content_type
            content = await uploads.read_and_verify_upload(ctx, file.upload_id, path=INPUT_PATH[0])
            attachments.append(OutgoingFile(content, name, kind, file.content_id))
        else:
            attachments.append(file)
    return attachments


def require_attachment_numbers(
    message: StoredMessage, selection: AttachmentSelection, path: Sequence[str]
) -> list[int]:
    """Return the numbers of the selected attachments of a message.

    Raises NotFound if an attachment is selected that the message does not have.
    """
    if selection.all_unrelated:
        return [
            n for n, attachment in enumerate(message.row.attachments) if not attachment["inline"]
        ]
    for index, (key, number) in enumerate(selection.ids):
        if key != message.row.id or number >= len(message.row.attachments):
            raise NotFound(str(key), path=[*path, "selected"], index=index)
    return list(dict.fromkeys(number for _, number in selection.ids))


def filename_from_text_or_empty(text: str) -> str:
    """Return a file name made of a text, or "" if no usable character is left."""
    return _UNSAFE_FILENAME_CHARACTERS.sub(" ", text).strip(" .")[:100]


async def read_selected_attachments(
    message: StoredMessage, numbers: Sequence[int], budget: AttachmentBudget, path: Sequence[str]
) -> list[OutgoingFile]:
    """Return the attachments of a message that have these numbers, decoded.

    Raises InvalidInput if the budget is exceeded.
    """
    for number in numbers:
        budget.count_file_or_raise(message.row.attachments[number]["size"], path)
    attachments = []
    for number in numbers:
        facts = message.row.attachments[number]
        part = require_found(message_bytes.find_attachment_part(message, number))
        content = await message.read_part(part)
        name_and_type = facts["filename"], facts["content_type"], facts["content_id"]
        attachments.append(
            sanitize_attachment(
                OutgoingFile(
                    content,
                    *name_and_type,
                    charset=part.params.get("charset"),
                    is_message=facts["content_type"] == MESSAGE_TYPE,
                )
            )
        )
    return attachments
