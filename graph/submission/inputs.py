"""Inputs of messages beside their content: stored files, links to them, and mail merge."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.files.references import FileRef
from graph.files.types import FutureTimeInput
from graph.http import download_urls
from graph.submission.compose_inputs import MailAddressInput, named_addresses
from graph.types.access_grants import GIVES_ACCESS
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import id_from_ref
from graph.types.references import value_or_none
from graph.types.scalars import validate_custom_data
from models.errors import InvalidInput
from models.files.tables import FileAttachmentMode
from models.validation_constraints import ValidationConstraint
from resolvers.submission.file_attachments import (
    FIELD_NAME,
    LINKS_FIELD_NAME,
    StoredFileAttachment,
    UrlFromPath,
)
from resolvers.submission.outgoing_messages import MailMergeEntry


@strawberry.input
class FileLinkFields:
    """Input fields of a link to a stored file."""

    expires_at: FutureTimeInput | None = attribute_field(
        "Time when the link expires, at most 100 years ahead. Not allowed with the mode ATTACH. "
        "Default: 100 days after the creation of the link or its last download.",
        default=UNSET,
    )
    password: str | None = attribute_field(
        "Password that the link asks for, 8 (by default) to 256 characters. The message does not "
        "contain it. Not allowed with the mode ATTACH. Default: none.",
        default=UNSET,
    )


@strawberry.input(
    description="Stored file that is sent with a message: attached, or as a link below the text."
)
class FileAttachmentInput(FileLinkFields):
    file: FileRef = attribute_field(
        "Stored file of the user whose account composes the message. A file of another user is "
        "NOT_FOUND."
    )
    mode: FileAttachmentMode = attribute_field(
        "Way in which the recipients get the file. Default: ATTACH.",
        default=FileAttachmentMode.ATTACH,
    )


@strawberry.input(
    description="Link to a stored file, which is added below the text of a draft. It works at once."
)
class DraftFileLinkInput(FileLinkFields):
    file: FileRef = attribute_field(
        "Stored file of the user whose account composes the message. A file of another user is "
        "NOT_FOUND.",
        metadata=GIVES_ACCESS,
    )
    mode: FileAttachmentMode = attribute_field(
        "Access that the link gives. ATTACH is an error. Default: LINK.",
        default=FileAttachmentMode.LINK,
    )


@strawberry.input(
    description=(
        "Recipients and values of one message of a mail merge. It must have at least one recipient."
    )
)
class MailMergeInput:
    to: list[MailAddressInput] | None = attribute_field(
        "Addresses of the header field To. Default: none.", default=UNSET
    )
    cc: list[MailAddressInput] | None = attribute_field(
        "Addresses of the header field Cc. Default: none.", default=UNSET
    )
    bcc: list[MailAddressInput] | None = attribute_field(
        "Addresses that get a blind copy, in addition to those of the identity. Default: none.",
        default=UNSET,
    )
    values: JSON | None = attribute_field(
        "JSON object with values for `{{name}}` in this message: strings, numbers, booleans or "
        "null (an empty text). They take precedence over those of `template`. Default: none.",
        default=UNSET,
    )


def draft_links_from_inputs(
    info: Info, link_inputs: Sequence[DraftFileLinkInput] | None
) -> list[StoredFileAttachment]:
    """Convert inputs of links to stored files that a draft gets.

    Raises InvalidInput if an ID, a time or a mode is not valid.
    """
    for index, link_input in enumerate(link_inputs or ()):
        if FileAttachmentMode(link_input.mode) is FileAttachmentMode.ATTACH:
            raise InvalidInput(
                "The mode must be LINK, READ_ONLY_LINK or WRITABLE_LINK.",
                constraint=ValidationConstraint.UNSUPPORTED,
                path=[LINKS_FIELD_NAME, str(index), "mode"],
            )
    return file_attachments_from_inputs(info, link_inputs, LINKS_FIELD_NAME)


def file_attachments_from_inputs(
    info: Info,
    file_inputs: Sequence[FileAttachmentInput | DraftFileLinkInput] | None,
    field_name: str = FIELD_NAME,
) -> list[StoredFileAttachment]:
    """Convert inputs of stored files that the message attaches or links to.

    Raises InvalidInput if an ID or a time is not valid.
    """
    attachments = []
    for index, file_input in enumerate(file_inputs or ()):
        key = id_from_ref(file_input.file, field_name, str(index), "file")
        try:
            expires_at = file_input.expires_at.resolve_time(info) if file_input.expires_at else None
        except InvalidInput as error:
            path = [field_name, str(index), "expiresAt"]
            raise InvalidInput(error.message, constraint=error.constraint, path=path) from None
        mode = FileAttachmentMode(file_input.mode)
        attachments.append(
            StoredFileAttachment(key, mode, expires_at, value_or_none(file_input.password))
        )
    return attachments


def template_values(values: Any, error_path: str) -> dict[str, Any] | None:
    """Return the values of a template.

    Raises InvalidInput at `error_path` if they are no object.
    """
    return validate_custom_data(values, error_path)


def mail_merge_entries(
    merge_inputs: Sequence[MailMergeInput] | None,
) -> list[MailMergeEntry] | None:
    """Convert the messages of a mail merge; None if the list is absent."""
    if merge_inputs is None or merge_inputs is UNSET:
        return None
    return [
        MailMergeEntry(
            named_addresses(entry.to or ()),
            named_addresses(entry.cc or ()),
            named_addresses(entry.bcc or ()),
            template_values(entry.values, "mailMerge") or {},
        )
        for entry in merge_inputs
    ]


def absolute_url_builder(info: Info) -> UrlFromPath:
    """Return a function that makes absolute URLs of this request's server from paths."""
    return partial(_absolute_url, info)


def _absolute_url(info: Info, path: str) -> str:
    return str(download_urls.absolute_url(info, path))
