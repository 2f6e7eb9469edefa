"""Mutation that stores a message in a mailbox."""

from collections.abc import Sequence
from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.types import Message
from graph.submission.compose_inputs import (
    WRITTEN,
    Composing,
    ReferenceAttachments,
    chosen,
    composed,
)
from graph.submission.inputs import files_attached
from graph.types import global_ids
from graph.types.errors import MutationPayload, Warning, leaf  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserSelection,
    message_of,
    named,
    plain,
    users_named,
)
from graph.types.scalars import Upload, free_data
from mail.compose.message_builder import Priority
from models.errors import NotFound, Problems
from models.users.roles import Scope
from resolvers.messages import upload
from resolvers.messages.upload import NewMessage
from resolvers.submission.composition import Fields

NOT_AN_ADDRESS = "RECIPIENT_DROPPED"


@strawberry.input(description="Input of messageUpload: raw, rawUpload, or fields to write it from.")
class MessageUploadInput(Composing):
    mailbox: MailboxRef = leaf("The folder it goes to; by path or role that of each user.")
    users: UserSelection | None = leaf(
        "The accounts that get the message: all or none. Only administrators can select other "
        "users. A message of fields is written in the name of each user. With several users, "
        "`replacePrevious` and `keepAttachments` are refused; with other users, `reference` and "
        "`files` are.",
        default=UNSET,
    )
    raw: str | None = leaf("Whole message, text or base64.", default=UNSET)
    raw_upload: Upload | None = leaf("Whole message as upload.", default=UNSET)
    unseen: bool = leaf("Leave it unread.", default=False)
    flagged: bool = leaf(r"\Flagged.", default=False)
    draft: bool = leaf(
        r"\Draft; one with a reference, or that replaces one, always is.", default=False
    )
    received_at: datetime | None = leaf("Arrival, default now.", default=UNSET)
    meta_data: JSON | None = leaf("Free data of the application.", default=UNSET)
    files: list[strawberry.ID] | None = leaf(
        "Stored files to attach; a draft remembers them. Needs the scope MAIL_READ.",
        default=UNSET,
    )
    replace_previous: MessageRef | None = leaf(
        "A draft in whose place it comes: under the same id, with another uid. What is absent "
        "of attachments, and of what it answers, stays.",
        default=UNSET,
    )
    keep_attachments: ReferenceAttachments | None = leaf(
        "Attachments of that draft to keep beside the given; images the html shows always stay.",
        default=UNSET,
    )


@strawberry.type(description="Answer of messageUpload.")
class MessageUploadPayload(MutationPayload):
    message: Message | None = leaf("The message; null where users were given.", default=None)
    messages: list[Message] = leaf("The messages, one in each account.", default_factory=list)
    previous_deleted: bool = leaf("The earlier draft is no more: this is it.", default=False)


async def _fields(info: Info, given: MessageUploadInput, problems: Problems) -> Fields | None:
    """Return the fields to compose the message from; None if the input has no such field.

    Errors of attachments are added to `problems`.
    """
    has_content = any(getattr(given, name) not in (UNSET, None) for name in (*WRITTEN, "files"))
    if has_content or given.priority is not Priority.NORMAL:
        return Fields(
            **await composed(info, given, problems), files=files_attached(given.files or None)
        )
    return None


async def _replaced(info: Info, ref: MessageRef | None) -> int | None:
    """Return the id of the message to replace; None if none is named. Raises NotFound."""
    if not ref:
        return None
    key = await message_of(info, ref, path="replacePrevious")
    if key is None:
        raise NotFound("", path=["replacePrevious"])
    return key


def _warnings(dropped: Sequence[int]) -> list[Warning]:
    """Return a warning for each recipient in `to` that was dropped since it has no address."""
    text = "This is no address: it was left out."
    return [
        Warning(code=NOT_AN_ADDRESS, message=text, path=["to", str(index)]) for index in dropped
    ]


@strawberry.type
class UploadingMutation:
    @mutation(
        "A message into a folder: whole, byte for byte, or written from fields. Of somebody in "
        "`to` without an address yet there is a warning.",
        scope=Scope.MAIL,
    )
    async def message_upload(self, info: Info, input: MessageUploadInput) -> MessageUploadPayload:
        problems = Problems()
        new = NewMessage(
            mailbox=named(input.mailbox),
            raw=input.raw or None,
            upload_id=global_ids.decode("Upload", input.raw_upload, path="rawUpload")
            if input.raw_upload
            else None,
            fields=await _fields(info, input, problems),
            seen=not input.unseen,
            flagged=input.flagged,
            draft=input.draft,
            received_at=plain(input.received_at),
            meta_data=free_data(input.meta_data, "metaData"),
            replaces=await _replaced(info, input.replace_previous or None),
            keep=chosen(input.keep_attachments or None, ["keepAttachments"]),
        )
        if input.users:
            user_selector = users_named(input.users)
            rows, dropped = await upload.store_for(info.context, new, user_selector, problems)
            return MessageUploadPayload(
                messages=[Message.of(row) for row in rows],
                previous_deleted=new.replaces is not None,
                warnings=_warnings(dropped),
            )
        result = await upload.store(info.context, new, problems)
        return MessageUploadPayload(
            message=Message.maybe(result.message),
            messages=[Message.of(result.message)] if result.message else [],
            previous_deleted=result.replaced,
            warnings=_warnings(result.dropped),
        )
