"""Mutation that saves drafts: creates them, or changes some of their fields."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.files.references import FileRef
from graph.http.download_urls import parse_attachment_id
from graph.messages.types import Message
from graph.submission.compose_inputs import (
    AttachmentInput,
    HeaderInput,
    MailAddressInput,
    MessageRelationInput,
    attachments_from_inputs,
    named_address,
    named_addresses,
    resolve_source,
)
from graph.submission.references import IdentityRef
from graph.types.errors import MutationPayload, Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    load_named_user_id,
    mailbox_selector_from_ref,
    maybe_value,
    user_selector_from_ref,
    value_or_none,
)
from graph.types.scalars import BigInt, validate_custom_data
from mail.compose.message_builder import CustomHeader, Priority
from models.errors import ErrorCollector, NotFound
from models.users.roles import Scope
from models.warning_codes import WarningCode
from resolvers.submission import draft_save
from resolvers.submission.draft_save import DraftChanges, DraftSaveRequest
from resolvers.submission.file_attachments import StoredFileAttachment


@strawberry.input(one_of=True, description="Names one attachment of a message.")
class AttachmentRef(ObjectRef):
    pass


@strawberry.input(
    description="The fields of a draft to set. An absent field keeps its value. Null clears a "
    "field, or restores its default."
)
class DraftPatch:
    from_: strawberry.Maybe[MailAddressInput | None] = attribute_field(
        "The author, an address that the user may send as. Without a name, the identity's name is "
        "used. Excludes `identity`. Default: the address of the default identity.",
        name="from",
    )
    identity: strawberry.Maybe[IdentityRef | None] = attribute_field(
        "The identity whose address is the author. Excludes `from`. Default: the default identity."
    )
    to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "The recipients in To. An incomplete address is left out, with the warning "
        "RECIPIENT_DROPPED. A new draft with a `source` gets the recipients of a reply if `to` and "
        "`cc` are absent."
    )
    cc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field("The recipients in Cc.")
    bcc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "The recipients in Bcc. Those of the identity are added if the draft has recipients."
    )
    reply_to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "The addresses that replies go to. Default: that of the identity."
    )
    subject: strawberry.Maybe[str | None] = attribute_field(
        "The subject, up to 2 KiB. A new draft with a `source` gets its subject if this field is "
        "absent."
    )
    text: strawberry.Maybe[str | None] = attribute_field(
        "The plain text, up to 1 MiB. If only `html` is set, the text is made from it."
    )
    html: strawberry.Maybe[str | None] = attribute_field(
        "The HTML, up to 1 MiB. Images as data: URLs become attachments. Null removes the HTML "
        "and the images that it shows."
    )
    headers: strawberry.Maybe[list[HeaderInput] | None] = attribute_field(
        "The other header fields of the draft."
    )
    priority: strawberry.Maybe[Priority | None] = attribute_field("The priority. Default: NORMAL.")
    add_attachments: list[AttachmentInput] = attribute_field(
        "Attachments to add after those of the draft.", default_factory=list
    )
    remove_attachments: list[AttachmentRef] = attribute_field(
        "Attachments of the draft to remove. Each save can change the IDs of attachments: with "
        "`ifUnchangedSince`, an old ID is refused.",
        default_factory=list,
    )
    add_files: list[FileRef] = attribute_field(
        "Stored files to attach. The draft remembers them, so that `draftSend` can delete them. "
        "Needs the scope MAIL_READ.",
        default_factory=list,
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "Data of the application, stored with the draft."
    )

    def to_changes(self, problems: ErrorCollector) -> DraftChanges:
        """Convert the patch to changes of a draft.

        Errors of attachments are added to `problems`. Raises InvalidInput for other fields.
        """
        attachments = attachments_from_inputs(self.add_attachments, problems, "addAttachments")
        metadata = maybe_value(self.metadata)
        return DraftChanges(
            self._given_fields(),
            attachments or (),
            [_attachment_key(ref, nth) for nth, ref in enumerate(self.remove_attachments)],
            [
                StoredFileAttachment(id_from_ref(ref, "addFiles", str(nth)))
                for nth, ref in enumerate(self.add_files)
            ],
            validate_custom_data(metadata, "metadata"),
            clears_metadata=bool(self.metadata) and metadata is None,
        )

    def _given_fields(self) -> dict[str, Any]:
        """Return the value of each given field of MessageFields, by its name there."""
        values: dict[str, Any] = self._given_addresses()
        if self.identity:
            ref = self.identity.value
            values["identity"] = id_from_ref(ref, "identity") if ref else None
        if self.subject:
            values["subject"] = self.subject.value or ""
        for name in ("text", "html"):
            if text := getattr(self, name):
                values[name] = text.value
        if self.headers:
            headers = self.headers.value or ()
            values["headers"] = [CustomHeader(header.key, header.value) for header in headers]
        if self.priority:
            values["priority"] = self.priority.value or Priority.NORMAL
        return values

    def _given_addresses(self) -> dict[str, Any]:
        """Return the value of each given address field of MessageFields, by its name there."""
        values: dict[str, Any] = {}
        if self.from_:
            values["from_"] = named_address(self.from_.value) if self.from_.value else None
        for name in ("to", "cc", "bcc"):
            if people := getattr(self, name):
                values[name] = named_addresses(people.value)
        if self.reply_to:
            reply_to = self.reply_to.value
            values["reply_to"] = None if reply_to is None else named_addresses(reply_to)
        return values


@strawberry.input(description="Input of draftSave.")
class DraftSaveInput(Options):
    draft: MessageRef | None = attribute_field(
        "The draft to change. Default: a new draft is created.", default=UNSET
    )
    set: DraftPatch = attribute_field("The fields to set.")
    mailbox: MailboxRef | None = attribute_field(
        "The mailbox to store the draft in. Default: that of the draft; for a new draft, the "
        "mailbox with the role DRAFTS.",
        default=UNSET,
    )
    source: MessageRelationInput | None = attribute_field(
        "The message that a new draft answers or forwards. Refused for an existing draft, which "
        "keeps its source.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "The user who owns the draft. Only administrators can name another user, and then "
        "without `source` and `addFiles`. Default: the signed-in user.",
        default=UNSET,
    )
    if_unchanged_since: BigInt | None = attribute_field(
        "Refuses the save with STALE if the draft changed after this `Message.modseq`.",
        default=UNSET,
    )


@strawberry.type(description="Result of a mutation that stores one message.")
class MessagePayload(MutationPayload):
    message: Message | None = attribute_field(
        "The stored message. Null if the caller can't read it.", default=None
    )


@strawberry.type
class DraftMutation:
    @mutation(
        "Creates a draft, or changes the given fields of a draft. The draft keeps its ID and "
        "Message-ID, and gets a new UID. A draft that another client changes during the save is "
        "refused with STALE.",
        scope=Scope.MAIL,
    )
    async def draft_save(self, info: Info, input: DraftSaveInput) -> MessagePayload:
        problems = ErrorCollector()
        user_id = await load_named_user_id(info, input.user or None)
        mailbox, since = input.mailbox or None, value_or_none(input.if_unchanged_since)
        request = DraftSaveRequest(
            input.set.to_changes(problems),
            await _draft_id(info, input.draft or None, user_id),
            mailbox_selector_from_ref(mailbox) if mailbox else None,
            await resolve_source(info, input.source) if input.source else None,
            since,
        )
        user = user_selector_from_ref(input.user, path="user") if input.user else None
        saved = await draft_save.save_draft_of_user(info.context, request, user, problems)
        return MessagePayload(
            message=Message.from_row_or_none(saved.message),
            warnings=_dropped_recipient_warnings(saved.dropped_recipient_numbers),
        )


async def _draft_id(info: Info, ref: MessageRef | None, user_id: int | None) -> int | None:
    """Return the ID of the draft to change; None without a reference. Raises NotFound."""
    if ref is None:
        return None
    message_id = await find_unchecked_message_id(info, ref, path="draft", user_id=user_id)
    if message_id is None:
        raise NotFound("", path=["draft"])
    return message_id


def _attachment_key(ref: AttachmentRef, index: int) -> tuple[int, int]:
    """Return the message ID and the number of an attachment. Raises InvalidInput."""
    path = ["removeAttachments", str(index), "id"]
    return parse_attachment_id(ref.id.value if ref.id else "", path=path)


def _dropped_recipient_warnings(dropped_indexes: Sequence[int]) -> list[Warning]:
    """Return a warning for each recipient in `to` without a complete address."""
    text = "This address is incomplete: it was left out."
    return [
        Warning(code=WarningCode.RECIPIENT_DROPPED, message=text, path=["set", "to", str(index)])
        for index in dropped_indexes
    ]
