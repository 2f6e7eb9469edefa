"""Mutation that saves drafts: creates them, or changes some of their fields."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.files.references import FileRef
from graph.messages.types import Message
from graph.submission.compose_inputs import (
    AttachmentInput,
    AttachmentRef,
    HeaderInput,
    MailAddressInput,
    MessageRelationInput,
    attachments_from_inputs,
    message_id_and_attachment_number,
    named_address,
    named_addresses,
    require_message_source_from_relation,
)
from graph.submission.references import IdentityRef
from graph.types.errors import MutationPayload, Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import id_from_ref
from graph.types.references import (
    MailboxRef,
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    mailbox_selector_from_ref,
    maybe_value,
    require_visible_user_id_if_named,
    user_selector_from_ref,
    value_or_none,
)
from graph.types.scalars import BigInt, validate_custom_data
from mail.compose.message_draft import CustomHeader, Priority
from models.errors import ErrorCollector, NotFound
from models.users.roles import AdminPermission, Scope
from models.warning_codes import WarningCode
from resolvers.submission.drafts import save as draft_save
from resolvers.submission.drafts.save import DraftChanges, DraftSaveRequest
from resolvers.submission.file_attachments import StoredFileAttachment


@strawberry.input(
    description="Values of a draft. An omitted field is unchanged. Null clears a field or "
    "restores its default."
)
class DraftPatch:
    from_: strawberry.Maybe[MailAddressInput | None] = attribute_field(
        "Author: an address that the user can send as. Without a name, that of the identity is "
        "used. Not allowed with `identity`. Default: the address of the default identity.",
        name="from",
    )
    identity: strawberry.Maybe[IdentityRef | None] = attribute_field(
        "Identity whose address is the author. Not allowed with `from`. Default: the default "
        "identity."
    )
    to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field To. An incomplete address is left out with the warning "
        "RECIPIENT_DROPPED. Default for a new draft that replies to an `original`, if `cc` is also "
        "omitted: the recipients of the reply."
    )
    cc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Cc. An incomplete address is an error. Default for a new "
        "draft that replies to all, if `to` is also omitted: the other Cc addresses of the "
        "`original`."
    )
    bcc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Bcc. An incomplete address is an error. The addresses of "
        "`Identity.bcc` are added if the draft has recipients."
    )
    reply_to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Reply-To. Default: that of the identity."
    )
    subject: strawberry.Maybe[str | None] = attribute_field(
        "Subject of the draft, at most 2,048 bytes. Default for a new draft with an `original`: "
        "derived from the subject of that message."
    )
    text: strawberry.Maybe[str | None] = attribute_field(
        "Plain text of the draft, at most 1 MiB. If only `html` is given, the text is made from it."
    )
    html: strawberry.Maybe[str | None] = attribute_field(
        "HTML of the draft, at most 12 MiB. Images as `data:` URLs become attachments; without "
        "them the HTML has at most 1 MiB. Null "
        "removes the HTML and the images that it shows."
    )
    headers: strawberry.Maybe[list[HeaderInput] | None] = attribute_field(
        "Further header fields of the draft, at most 100. They replace the earlier ones."
    )
    priority: strawberry.Maybe[Priority | None] = attribute_field(
        "Priority of the message. Default: NORMAL."
    )
    add_attachments: strawberry.Maybe[list[AttachmentInput]] = attribute_field(
        "Files to attach after the existing attachments. Null is refused."
    )
    remove_attachments: strawberry.Maybe[list[AttachmentRef]] = attribute_field(
        "Attachments to remove. A save can renumber the attachments, so that an old ID means "
        "another attachment. With `ifUnchangedSince`, a draft that was saved in between is "
        "refused with STALE. Null is refused."
    )
    add_files: strawberry.Maybe[list[FileRef]] = attribute_field(
        "Stored files to attach. The draft remembers them, so that `draftSend` can delete them. "
        "Requires the scope MAIL_READ. Null is refused."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "JSON object that is stored with the draft, at most 64 KiB by default. Null removes it."
    )

    def to_changes(self, problems: ErrorCollector) -> DraftChanges:
        """Convert the patch to changes of a draft.

        Errors of attachments are added to `problems`. Raises InvalidInput for other fields.
        """
        attachments = attachments_from_inputs(
            maybe_value(self.add_attachments), problems, "addAttachments"
        )
        metadata = maybe_value(self.metadata)
        return DraftChanges(
            self._given_fields(),
            attachments or (),
            [
                message_id_and_attachment_number(ref, ["removeAttachments", str(nth)])
                for nth, ref in enumerate(maybe_value(self.remove_attachments) or ())
            ],
            [
                StoredFileAttachment(id_from_ref(ref, "addFiles", str(nth)))
                for nth, ref in enumerate(maybe_value(self.add_files) or ())
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
            values["headers"] = [CustomHeader(header.name, header.value) for header in headers]
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
        "Draft to change. Default: a new draft is created.", default=UNSET
    )
    set: DraftPatch = attribute_field("Values of the draft. Only the given fields change.")
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox that the draft is stored in. A mailbox that another user shares is only "
        "allowed for a new draft, with the right INSERT. Default: the mailbox of the "
        "draft, or that with the "
        "special use DRAFTS for a new draft.",
        default=UNSET,
    )
    original: MessageRelationInput | None = attribute_field(
        "Message that a new draft replies to or forwards. Not allowed for an existing draft, "
        "which keeps its original message. Default: none.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "User who owns the draft. Another user excludes `original` and `set.addFiles`. Default: "
        "the signed-in user.",
        default=UNSET,
    )
    if_unchanged_since: BigInt | None = attribute_field(
        "`Message.imap.modseq` that the caller knows: if the draft was changed after it, nothing "
        "is saved and the error is STALE. Default: no check.",
        default=UNSET,
    )


@strawberry.type(description="Payload of draftSave.")
class MessagePayload(MutationPayload):
    message: Message | None = attribute_field(
        "Saved draft. Null if the caller can't see it, or if the mutation failed.", default=None
    )


@strawberry.type
class DraftMutation:
    @mutation(
        "Creates a draft, or changes the given fields of a draft. The draft keeps its ID and "
        "Message-ID, and gets a new UID. A message that is no draft is a CONFLICT. Fails "
        "with STALE if another client changes the draft during the save.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def draft_save(self, info: Info, input: DraftSaveInput) -> MessagePayload:
        problems = ErrorCollector()
        user_id = await require_visible_user_id_if_named(info, input.user or None)
        mailbox, since = input.mailbox or None, value_or_none(input.if_unchanged_since)
        request = DraftSaveRequest(
            input.set.to_changes(problems),
            await _require_draft_id_if_named(info, input.draft or None, user_id),
            mailbox_selector_from_ref(mailbox) if mailbox else None,
            await require_message_source_from_relation(info, input.original)
            if input.original
            else None,
            since,
        )
        user = user_selector_from_ref(input.user, path="user") if input.user else None
        saved = await draft_save.save_draft_of_user(info.context, request, user, problems)
        return MessagePayload(
            message=Message.from_row_or_none(saved.message),
            warnings=_dropped_recipient_warnings(saved.dropped_recipient_numbers),
        )


async def _require_draft_id_if_named(
    info: Info, ref: MessageRef | None, user_id: int | None
) -> int | None:
    """Return the ID of the draft to change; None without a reference. Raises NotFound."""
    if ref is None:
        return None
    message_id = await find_unchecked_message_id(info, ref, path="draft", user_id=user_id)
    if message_id is None:
        raise NotFound("", path=["draft"])
    return message_id


def _dropped_recipient_warnings(dropped_indexes: Sequence[int]) -> list[Warning]:
    """Return a warning for each recipient in `to` without a complete address."""
    text = "This address is incomplete: it was left out."
    return [
        Warning(code=WarningCode.RECIPIENT_DROPPED, message=text, path=["set", "to", str(index)])
        for index in dropped_indexes
    ]
