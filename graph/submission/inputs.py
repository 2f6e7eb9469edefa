"""Inputs of messageSend beside the content of the message: stored files and mail merge."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.files.types import DateBoundFuture
from graph.http import download_urls
from graph.submission.compose_inputs import NamedAddressInput, people_of
from graph.types import global_ids
from graph.types.errors import leaf
from graph.types.fields import Info
from graph.types.references import plain
from graph.types.scalars import free_data
from models.errors import Invalid
from models.files.tables import FileAttachmentMode
from resolvers.submission.file_attachments import PATH, Address, Given
from resolvers.submission.outgoing_messages import Entry


@strawberry.input(description="A stored file that goes with a message.")
class FileAttachmentInput:
    file: strawberry.ID = leaf("Global id.")
    mode: FileAttachmentMode = leaf(
        "Attached, or a link below the text.", default=FileAttachmentMode.ATTACH
    )
    share_expiration: DateBoundFuture | None = leaf(
        "When the link ends. Default: after 100 days without access.", default=UNSET
    )
    share_password: str | None = leaf(
        "Asked of whoever follows the link; say it in another way. Default: none.", default=UNSET
    )


@strawberry.input(description="One message of a mail merge.")
class MergeInput:
    to: list[NamedAddressInput] | None = leaf("To whom.", default=UNSET)
    cc: list[NamedAddressInput] | None = leaf("Copies.", default=UNSET)
    bcc: list[NamedAddressInput] | None = leaf("Hidden copies.", default=UNSET)
    values: JSON | None = leaf(
        "Values for {{name}} of this message, before those of template.", default=UNSET
    )


def files_given(info: Info, given: Sequence[FileAttachmentInput] | None) -> list[Given]:
    """Convert inputs of stored files that the message attaches or links to.

    Raises Invalid, with the index of the file, if an ID or a time is not valid.
    """
    attachments = []
    for index, file_input in enumerate(given or ()):
        key = _decoded(file_input.file, [PATH, str(index), "file"], index)
        try:
            expires_at = (
                file_input.share_expiration.moment(info) if file_input.share_expiration else None
            )
        except Invalid as wrong:
            path = [PATH, str(index), "shareExpiration"]
            raise Invalid(
                wrong.message, constraint=wrong.constraint, path=path, index=index
            ) from None
        mode = FileAttachmentMode(file_input.mode)
        attachments.append(Given(key, mode, expires_at, plain(file_input.share_password)))
    return attachments


def files_attached(given: Sequence[strawberry.ID] | None) -> list[Given]:
    """Return the stored files to attach. Raises Invalid if an ID is not one of a file."""
    return [Given(_decoded(text, ["files"], index)) for index, text in enumerate(given or ())]


def _decoded(text: str, path: list[str], nth: int) -> int:
    """Return the row id of a file. Raises Invalid at `error_path` if it is not the ID of a file."""
    try:
        return global_ids.decode("File", text)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint="id", path=path, index=nth) from wrong


def values_given(given: Any, path: str) -> dict[str, Any] | None:
    """Return the values of a template. Raises Invalid at `error_path` if they are no object."""
    return free_data(given, path)


def merged(given: Sequence[MergeInput] | None) -> list[Entry] | None:
    """Convert the messages of a mail merge; None if the list is absent."""
    if given is None or given is UNSET:
        return None
    return [
        Entry(
            people_of(entry.to or ()),
            people_of(entry.cc or ()),
            people_of(entry.bcc or ()),
            values_given(entry.values, "merge") or {},
        )
        for entry in given
    ]


def address(info: Info) -> Address:
    """Return a function that makes absolute URLs of this request's server from paths."""
    return partial(_absolute, info)


def _absolute(info: Info, path: str) -> str:
    return str(download_urls.absolute(info, path))
