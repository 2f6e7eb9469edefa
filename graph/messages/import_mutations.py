"""Mutation that stores a complete message in a mailbox."""

from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.messages.types import Message
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
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
from models.errors import NotFound
from models.users.roles import Scope
from resolvers.messages import message_import
from resolvers.messages.message_import import NewMessage


@strawberry.input(description="Input of messageImport: a complete message, and where it is stored.")
class MessageImportInput(Options):
    mailbox: MailboxRef = attribute_field(
        "The mailbox that the message is stored in. A path or role names the mailbox of each user."
    )
    users: UserSelection | None = attribute_field(
        "The users that get the message: all or none. Only administrators can select other "
        "users. Default: the signed-in user.",
        default=UNSET,
    )
    raw: str | None = attribute_field(
        "The complete message (RFC 5322), as text or as base64.", default=UNSET
    )
    raw_upload: Upload | None = attribute_field(
        "An upload with the complete message, instead of `raw`.", default=UNSET
    )
    seen: bool = attribute_field(r"Sets the flag \Seen.", default=True)
    flagged: bool = attribute_field(r"Sets the flag \Flagged.", default=False)
    draft: bool = attribute_field(
        r"Sets the flag \Draft. A message that replaces a draft always has it.", default=False
    )
    keywords: list[str] = attribute_field("The keywords of the message.", default_factory=list)
    received_at: datetime | None = attribute_field(
        "The time of arrival, IMAP INTERNALDATE. Default: the current time.", default=UNSET
    )
    metadata: JSON | None = attribute_field(
        "Data of the application, stored with the message.", default=UNSET
    )
    replaces: MessageRef | None = attribute_field(
        "The draft that the message replaces. The message gets the ID of the draft, and a new "
        "UID. Refused with several users.",
        default=UNSET,
    )


@strawberry.type(description="Result of a mutation that stores messages.")
class MessagesPayload(MutationPayload):
    messages: list[Message] = attribute_field(
        "The stored messages that the caller can read, one for each user.", default_factory=list
    )


@strawberry.type
class MessageImportMutation:
    @mutation(
        "Stores a complete message in a mailbox, byte for byte. Authentication-Results that name "
        "this server are removed (RFC 8601, section 5).",
        scope=Scope.MAIL,
    )
    async def message_import(self, info: Info, input: MessageImportInput) -> MessagesPayload:
        new_message = NewMessage(
            mailbox=mailbox_selector_from_ref(input.mailbox),
            raw=input.raw or None,
            upload_id=global_ids.decode("Upload", input.raw_upload, path="rawUpload")
            if input.raw_upload
            else None,
            is_seen=input.seen,
            is_flagged=input.flagged,
            is_draft=input.draft,
            keywords=message_import.validated_keywords(input.keywords),
            received_at=value_or_none(input.received_at),
            public_metadata=validate_custom_data(input.metadata, "metadata"),
            replaced_draft_id=await _replaced_draft_id(info, input.replaces or None),
        )
        if input.users:
            users = user_selector_from_selection(input.users)
            rows = await message_import.store_for_users(info.context, new_message, users)
        else:
            row = await message_import.store_message(info.context, new_message)
            rows = [row] if row else []
        return MessagesPayload(messages=[Message.from_row(row) for row in rows])


async def _replaced_draft_id(info: Info, ref: MessageRef | None) -> int | None:
    """Return the ID of the draft to replace; None without a reference. Raises NotFound."""
    if ref is None:
        return None
    message_id = await find_unchecked_message_id(info, ref, path="replaces")
    if message_id is None:
        raise NotFound("", path=["replaces"])
    return message_id
