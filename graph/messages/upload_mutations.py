"""Mutation that stores a message in a mailbox."""

from collections.abc import Sequence
from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.types import Message
from graph.submission.compose_inputs import (
    CONTENT_FIELDS,
    MessageContentInput,
    SourceAttachments,
    attachment_selection,
    resolve_message_fields,
)
from graph.submission.inputs import file_attachments_from_ids
from graph.types import global_ids
from graph.types.errors import MutationPayload, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserSelection,
    find_unchecked_message_id,
    mailbox_selector_from_ref,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.scalars import Upload, validate_custom_data
from mail.compose.message_builder import Priority
from models.errors import ErrorCollector, NotFound
from models.users.roles import Scope
from models.warning_codes import WarningCode
from resolvers.messages import upload
from resolvers.messages.upload import NewMessage
from resolvers.submission.composition import MessageFields


@strawberry.input(description="Input of messageUpload: raw, rawUpload, or fields to write it from.")
class MessageUploadInput(MessageContentInput):
    mailbox: MailboxRef = attribute_field(
        "The folder it goes to; by path or role that of each user."
    )
    users: UserSelection | None = attribute_field(
        "The accounts that get the message: all or none. Only administrators can select other "
        "users. A message of fields is written in the name of each user. With several users, "
        "`replaces` and `keepAttachments` are refused; with other users, `source` and "
        "`files` are.",
        default=UNSET,
    )
    raw: str | None = attribute_field("Whole message, text or base64.", default=UNSET)
    raw_upload: Upload | None = attribute_field("Whole message as upload.", default=UNSET)
    unseen: bool = attribute_field("Leave it unread.", default=False)
    flagged: bool = attribute_field(r"\Flagged.", default=False)
    draft: bool = attribute_field(
        r"\Draft; one with a source, or that replaces one, always is.", default=False
    )
    received_at: datetime | None = attribute_field("Arrival, default now.", default=UNSET)
    metadata: JSON | None = attribute_field("Free data of the application.", default=UNSET)
    files: list[strawberry.ID] | None = attribute_field(
        "Stored files to attach; a draft remembers them. Needs the scope MAIL_READ.",
        default=UNSET,
    )
    replaces: MessageRef | None = attribute_field(
        "A draft in whose place it comes: under the same id, with another uid. What is absent "
        "of attachments, and of what it answers, stays.",
        default=UNSET,
    )
    keep_attachments: SourceAttachments | None = attribute_field(
        "Attachments of that draft to keep beside the given; images the html shows always stay.",
        default=UNSET,
    )


@strawberry.type(description="Answer of messageUpload.")
class MessageUploadPayload(MutationPayload):
    message: Message | None = attribute_field(
        "The message; null where users were given.", default=None
    )
    messages: list[Message] = attribute_field(
        "The messages, one in each account.", default_factory=list
    )
    replaced: bool = attribute_field("The earlier draft is no more: this is it.", default=False)


async def _resolve_message_fields(
    info: Info, upload_input: MessageUploadInput, problems: ErrorCollector
) -> MessageFields | None:
    """Return the fields to compose the message from; None if the input has no such field.

    Errors of attachments are added to `problems`.
    """
    has_content = any(
        getattr(upload_input, name) not in (UNSET, None) for name in (*CONTENT_FIELDS, "files")
    )
    if has_content or upload_input.priority is not Priority.NORMAL:
        return MessageFields(
            **await resolve_message_fields(info, upload_input, problems),
            files=file_attachments_from_ids(upload_input.files or None),
        )
    return None


async def _replaced_message_id(info: Info, message_ref: MessageRef | None) -> int | None:
    """Return the id of the message to replace; None if none is named. Raises NotFound."""
    if not message_ref:
        return None
    key = await find_unchecked_message_id(info, message_ref, path="replaces")
    if key is None:
        raise NotFound("", path=["replaces"])
    return key


def _dropped_recipient_warnings(dropped_indexes: Sequence[int]) -> list[Warning]:
    """Return a warning for each recipient in `to` that was dropped since it has no address."""
    text = "This is no address: it was left out."
    return [
        Warning(code=WarningCode.RECIPIENT_DROPPED, message=text, path=["to", str(index)])
        for index in dropped_indexes
    ]


@strawberry.type
class MessageUploadMutation:
    @mutation(
        "A message into a folder: whole, byte for byte, or written from fields. Of somebody in "
        "`to` without an address yet there is a warning.",
        scope=Scope.MAIL,
    )
    async def message_upload(self, info: Info, input: MessageUploadInput) -> MessageUploadPayload:
        problems = ErrorCollector()
        new = NewMessage(
            mailbox=mailbox_selector_from_ref(input.mailbox),
            raw=input.raw or None,
            upload_id=global_ids.decode("Upload", input.raw_upload, path="rawUpload")
            if input.raw_upload
            else None,
            fields=await _resolve_message_fields(info, input, problems),
            is_seen=not input.unseen,
            is_flagged=input.flagged,
            is_draft=input.draft,
            received_at=value_or_none(input.received_at),
            public_metadata=validate_custom_data(input.metadata, "metadata"),
            replaced_draft_id=await _replaced_message_id(info, input.replaces or None),
            kept_attachments=attachment_selection(
                input.keep_attachments or None, ["keepAttachments"]
            ),
        )
        if input.users:
            user_selector = user_selector_from_selection(input.users)
            rows, dropped = await upload.store_for_users(info.context, new, user_selector, problems)
            return MessageUploadPayload(
                messages=[Message.from_row(row) for row in rows],
                replaced=new.replaced_draft_id is not None,
                warnings=_dropped_recipient_warnings(dropped),
            )
        result = await upload.store_message(info.context, new, problems)
        return MessageUploadPayload(
            message=Message.from_row_or_none(result.message),
            messages=[Message.from_row(result.message)] if result.message else [],
            replaced=result.has_replaced_draft,
            warnings=_dropped_recipient_warnings(result.dropped_recipient_numbers),
        )
