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
from graph.types.object_access import MANAGED
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
from models.users.roles import AdminPermission, Scope
from resolvers.messages import message_import
from resolvers.messages.message_import import NewMessage


@strawberry.input(description="Input of messageImport.")
class MessageImportInput(Options):
    mailbox: MailboxRef = attribute_field(
        "Mailbox that the message is stored in. A path or special use names the mailbox of each "
        "user."
    )
    users: UserSelection | None = attribute_field(
        "Users who get the message: all or none. A user without `mailbox` is NOT_FOUND. Default: "
        "the signed-in user.",
        default=UNSET,
    )
    raw: str | None = attribute_field(
        "Complete message (RFC 5322), as text or as base64. A value with a colon is text, and its "
        "line ends are stored as CRLF. A value without a colon is base64. At most 64 MiB by "
        "default. Required without `rawUpload`, and not allowed with it.",
        default=UNSET,
    )
    raw_upload: Upload | None = attribute_field(
        "Upload with the complete message (RFC 5322), instead of `raw`.", default=UNSET
    )
    seen: bool = attribute_field("True sets the flag \\Seen. Default: true.", default=True)
    flagged: bool = attribute_field("True sets the flag \\Flagged. Default: false.", default=False)
    draft: bool = attribute_field(
        "True sets the flag \\Draft. A message that replaces a draft always has the flag. Default: "
        "false.",
        default=False,
    )
    keywords: list[str] = attribute_field(
        "Keywords that the message gets (RFC 9051): at most 64, each of 1 to 128 characters "
        'without white space and `(){%*"\\]`. System flags such as `\\Seen` are refused. '
        "Default: none.",
        default_factory=list,
    )
    received_at: datetime | None = attribute_field(
        "Time when the message was received: INTERNALDATE in IMAP (RFC 9051). Default: the "
        "current time.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "JSON object that is stored with the message, at most 64 KiB by default. Default: none.",
        default=UNSET,
    )
    replaces: MessageRef | None = attribute_field(
        "Draft of the user that the message replaces. The message gets the ID of the draft and a "
        "new UID. It keeps \\Flagged, \\Answered and the keywords of the draft, and its metadata "
        "unless `metadata` is given. Not allowed with several users. Default: none.",
        default=UNSET,
    )


@strawberry.type(description="Payload of messageImport and quarantineRelease.")
class MessagesPayload(MutationPayload):
    messages: list[Message] = attribute_field(
        "Stored messages: of messageImport one for each user, of quarantineRelease in the order of "
        "the references. Messages that a filter redirected without a copy, and messages that the "
        "caller can't see, are missing.",
        default_factory=list,
    )


@strawberry.type
class MessageImportMutation:
    @mutation(
        "Stores a complete message (RFC 5322) in a mailbox, without delivering it to anybody: "
        "filters, spam filter and autoreply don't run. With `replaces`, it takes the place of a "
        "draft of the user. Header fields Authentication-Results of this server are removed. A "
        "message that is no draft is encrypted if the user or the mailbox requires it. Without "
        "encryption, all other bytes of an upload or of base64 are stored unchanged. Without "
        "`users`, a mailbox that another user shares can be named by its ID; this requires the "
        "right INSERT. In such a mailbox, flags, keywords and metadata that the caller has no "
        "right to set are left out. QUOTA_EXCEEDED if the storage of the mailbox's owner is full. "
        "LIMIT_REACHED if the message has more than 64 MiB (by default), or for more than 1,000 "
        "users (by default). CONFLICT if the message that `replaces` names is no draft, or is "
        "deleted during the request; STALE if its content is changed then. FORBIDDEN_OPERATION if "
        "`replaces` is given for a mailbox of another user. UNAVAILABLE if the OpenPGP key of a "
        "user is unusable.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
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
            replaced_draft_id=await _require_replaced_draft_id_if_named(
                info, input.replaces or None
            ),
        )
        if input.users:
            users = user_selector_from_selection(input.users)
            rows = await message_import.store_message_for_users(info.context, new_message, users)
        else:
            row = await message_import.store_imported_message_and_load_if_readable(
                info.context, new_message
            )
            rows = [row] if row else []
        return MessagesPayload(messages=[Message.from_row(row) for row in rows])


async def _require_replaced_draft_id_if_named(info: Info, ref: MessageRef | None) -> int | None:
    """Return the ID of the draft to replace; None without a reference. Raises NotFound."""
    if ref is None:
        return None
    message_id = await find_unchecked_message_id(info, ref, path="replaces")
    if message_id is None:
        raise NotFound("", path=["replaces"])
    return message_id
