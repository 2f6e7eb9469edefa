"""What messageSend takes beside the fields of a message."""

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
    """The files as the floors below know them."""
    found = []
    for nth, each in enumerate(given or ()):
        key = _decoded(each.file, [PATH, str(nth), "file"], nth)
        try:
            ends = each.share_expiration.moment(info) if each.share_expiration else None
        except Invalid as wrong:
            path = [PATH, str(nth), "shareExpiration"]
            raise Invalid(
                wrong.message, constraint=wrong.constraint, path=path, index=nth
            ) from None
        mode = FileAttachmentMode(each.mode)
        found.append(Given(key, mode, ends, plain(each.share_password)))
    return found


def files_attached(given: Sequence[strawberry.ID] | None) -> list[Given]:
    """Files that are only named: they are attached."""
    return [Given(_decoded(text, ["files"], nth)) for nth, text in enumerate(given or ())]


def _decoded(text: str, path: list[str], nth: int) -> int:
    try:
        return global_ids.decode("File", text)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint="id", path=path, index=nth) from wrong


def values_given(given: Any, path: str) -> dict[str, Any] | None:
    """Values of a template."""
    return free_data(given, path)


def merged(given: Sequence[MergeInput] | None) -> list[Entry] | None:
    """The messages of a mail merge; None where it is none."""
    if given is None or given is UNSET:
        return None
    return [
        Entry(
            people_of(each.to or ()),
            people_of(each.cc or ()),
            people_of(each.bcc or ()),
            values_given(each.values, "merge") or {},
        )
        for each in given
    ]


def address(info: Info) -> Address:
    """How a path of ours becomes an address others can follow."""
    return partial(_absolute, info)


def _absolute(info: Info, path: str) -> str:
    return str(download_urls.absolute(info, path))
