"""Mutations that save and send drafts."""

from collections.abc import Sequence
from datetime import datetime
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
from graph.submission.inputs import (
    DraftFileLinkInput,
    MailMergeInput,
    absolute_url_builder,
    draft_links_from_inputs,
    mail_merge_entries,
    template_values,
)
from graph.submission.mutations import (
    EnvelopeInput,
    MessageSendPayload,
    envelope_override,
    set_recipients_if_other_sender,
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
from graph.types.scalars import BigInt, Duration, validate_custom_data
from mail.compose.message_draft import CustomHeader, Priority
from models.errors import ErrorCollector, NotFound
from models.users.roles import AdminPermission, Scope
from models.warning_codes import WarningCode
from resolvers.files import stored_files
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.submission import send_on_behalf
from resolvers.submission.create import SendRequest
from resolvers.submission.drafts import save as draft_save
from resolvers.submission.drafts.save import DraftChanges, DraftSaveRequest
from resolvers.submission.drafts.send import DraftSendRequest
from resolvers.submission.file_attachments import StoredFileAttachment
from resolvers.submission.outgoing_messages import MAX_PER_MERGE


@strawberry.input(
    description=(
        "Values of a draft. An omitted field is unchanged, or has its default in a new draft. Null "
        "clears a field or restores its default."
    )
)
class DraftPatch:
    from_: strawberry.Maybe[MailAddressInput | None] = attribute_field(
        "Author: an address that the user can send as. Without a name, that of the identity is "
        "used. Not allowed with `identity`. Null, the default of a new draft: the address of the "
        "default identity.",
        name="from",
    )
    identity: strawberry.Maybe[IdentityRef | None] = attribute_field(
        "Identity of the user whose address is the author. Not allowed with `from`. Null, the "
        "default of a new draft: the default identity."
    )
    to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field To. An incomplete address is left out with the warning "
        "RECIPIENT_DROPPED. Null removes the addresses. Default for a new draft that replies to an "
        "`original`, if `cc` is also omitted: the recipients of the reply."
    )
    cc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Cc. An incomplete address is an error. Null removes the "
        "addresses. Default for a new draft that replies to all, if `to` is also omitted: the "
        "other Cc addresses of the `original`."
    )
    bcc: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Bcc. An incomplete address is an error. If To, Cc or Bcc "
        "has an address, each save also adds the addresses of `Identity.bcc`. Null removes the "
        "addresses."
    )
    reply_to: strawberry.Maybe[list[MailAddressInput] | None] = attribute_field(
        "Addresses of the header field Reply-To. An incomplete address is an error. An empty list: "
        "the message has no Reply-To. Null, the default of a new draft: the Reply-To address of "
        "the identity, if it has one."
    )
    subject: strawberry.Maybe[str | None] = attribute_field(
        "Subject of the draft, at most 2,048 bytes. Null: empty. Default for a new draft with an "
        "`original`: its subject. `Re: ` or, for a forward, `Fwd: ` is put before it, unless it "
        "begins with a word and a colon such as `Re:`."
    )
    text: strawberry.Maybe[str | None] = attribute_field(
        "Plain text of the draft, at most 1 MiB. If only `html` is given, or this is null, the "
        "text is made from the HTML of the draft."
    )
    html: strawberry.Maybe[str | None] = attribute_field(
        "HTML of the draft, at most 12 MiB. Images as `data:` URLs become attachments; without "
        "them the HTML has at most 1 MiB. Null "
        "removes the HTML and the images that it shows."
    )
    headers: strawberry.Maybe[list[HeaderInput] | None] = attribute_field(
        "Further header fields of the draft, at most 100. They replace the earlier ones. Null or "
        "an empty list removes them."
    )
    priority: strawberry.Maybe[Priority | None] = attribute_field(
        "Priority of the message. Null: NORMAL. Default: NORMAL for a new draft, unchanged for an "
        "existing one."
    )
    add_attachments: strawberry.Maybe[list[AttachmentInput]] = attribute_field(
        "Files to attach after the existing attachments. Null is refused."
    )
    remove_attachments: strawberry.Maybe[list[AttachmentRef]] = attribute_field(
        "Attachments of the draft to remove. Those of another message are NOT_FOUND, also for a "
        "new draft. A save can renumber the attachments, so that an old ID means another "
        "attachment. With `ifUnchangedSince`, a draft that was saved in between is refused with "
        "STALE. Null is refused."
    )
    add_files: strawberry.Maybe[list[FileRef]] = attribute_field(
        "Stored files to attach after the existing attachments. The draft remembers them: "
        "`draftSend` with `deleteFiles` deletes them. "
        "Requires the scope MAIL_READ. Null is refused."
    )
    add_file_links: strawberry.Maybe[list[DraftFileLinkInput]] = attribute_field(
        "Stored files to link to. The links are created, and added below text and HTML, in the "
        "same transaction. A link that is removed from the text works until `fileShareDelete`. "
        "Null is refused."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "JSON object that is stored with the draft in place of the earlier one, at most 64 KiB by "
        "default. Null removes it."
    )

    def to_changes(self, info: Info, problems: ErrorCollector) -> DraftChanges:
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
            draft_links_from_inputs(info, maybe_value(self.add_file_links)),
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
        "Draft of `user` to change. A draft in a mailbox that another user shares is NOT_FOUND. "
        "Default: a new draft is created.",
        default=UNSET,
    )
    set: DraftPatch = attribute_field(
        "Values of the draft. Only the given fields change. For an existing draft, at least one of "
        "them or `mailbox` is required."
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox that a new draft is stored in, or that an existing draft moves to. A mailbox "
        "that another user shares must be named by its ID. It is only allowed for a new draft, "
        "with the right INSERT. Without the right WRITE there, the message is stored without the "
        "flag \\Draft and without `metadata`. Default: the mailbox of the draft, or that with the "
        "special use DRAFTS for a new draft.",
        default=UNSET,
    )
    original: MessageRelationInput | None = attribute_field(
        "Message that a new draft replies to or forwards. Not allowed for an existing draft, "
        "which keeps its original message. Default: none.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "User who owns the draft. Another user excludes `original`, `set.addFiles` and "
        "`set.addFileLinks`. Default: the signed-in user.",
        default=UNSET,
    )
    if_unchanged_since: BigInt | None = attribute_field(
        "`Message.imap.modseq` that the caller knows: if the draft was changed after it, nothing "
        "is saved and the error is STALE. Without `draft` it has no effect. Default: no check.",
        default=UNSET,
    )


@strawberry.type(description="Payload of draftSave.")
class MessagePayload(MutationPayload):
    message: Message | None = attribute_field(
        "Saved draft. Null if the caller can't see it, or if the mutation failed.", default=None
    )


@strawberry.input(description="Input of draftSend.")
class DraftSendInput(Options):
    message: MessageRef = attribute_field(
        "Draft to send: of the signed-in user, or of a user for whom the caller can send. A draft "
        "in a mailbox that another user shares is NOT_FOUND."
    )
    delete_files: bool = attribute_field(
        "True also deletes the stored files that `addFiles` added to the draft: at once, even "
        "with a later `sendAt`. This requires the scope MAIL. Not allowed with `mailMerge`. "
        "Default: false.",
        default=False,
    )
    envelope: EnvelopeInput | None = attribute_field(
        "SMTP envelope of the message. `envelope.to` requires the scope MAIL_READ, and is refused "
        "for the draft of another user. Default: sender and recipients of the header.",
        default=UNSET,
    )
    send_at: datetime | None = attribute_field(
        "Time when the message is sent, at most 3,653 days ahead. A time in the past means now. "
        "If `undoWindow` ends later, the message is sent at the end of `undoWindow`. Until it is "
        "sent, the copy is in the mailbox with the special use SCHEDULED. If the copy is deleted "
        "or in Trash at the send time, the submission is cancelled. Default: now.",
        default=UNSET,
    )
    undo_window: Duration | None = attribute_field(
        "Duration (ISO 8601) for which the message is held, so that sending can be undone, at "
        "most P1D. Default: PT0S.",
        default=UNSET,
    )
    request_dsn: bool = attribute_field(
        "True asks the servers for delivery reports of success, delay and failure (RFC 3461). "
        "Default: false.",
        default=False,
    )
    template: JSON | None = attribute_field(
        "JSON object with values for `{{name}}` in subject, text and HTML of the draft. A value "
        "is a string, number, boolean or null (an empty text). Only in the HTML the values are "
        "HTML-escaped. A name without a value is refused. Default: none, and `{{name}}` stays as "
        "it is, except in a mail merge.",
        default=UNSET,
    )
    mail_merge: list[MailMergeInput] | None = attribute_field(
        f"Sends one message for each of 1 to {MAX_PER_MERGE} entries, with at most "
        "10,000 recipients and 128 MiB together. The draft must have no recipients, and stays a "
        "draft. Not allowed with `envelope.to` and `deleteFiles`. All messages are sent, or none. "
        "Requires the scope MAIL_READ, and is refused for the draft of another user. Default: one "
        "message, which the draft becomes.",
        default=UNSET,
    )
    encrypt: bool = attribute_field(
        "True encrypts the message with the OpenPGP keys that the accounts of all recipients, and "
        "the sending account, have stored. Without a key of the sending account, its copy is "
        "stored unencrypted. Refused if the message has Bcc recipients, and if a recipient has no "
        "account on this server or no key. Default: false.",
        default=False,
    )

    def to_options(self) -> SendRequest:
        """Return how the draft is sent.

        Raises InvalidInput if the values of a template are no object.
        """
        return SendRequest(
            envelope=envelope_override(self.envelope or None),
            send_at=value_or_none(self.send_at),
            undo_window=value_or_none(self.undo_window),
            request_dsn=self.request_dsn,
            template=template_values(self.template, "template"),
            mail_merge=mail_merge_entries(self.mail_merge),
            encrypt=self.encrypt,
        )


@strawberry.type
class DraftMutation:
    @mutation(
        "Creates a draft, or changes the given fields of a draft. The draft keeps its ID and "
        "Message-ID, and gets a new UID. A message that is no draft is a CONFLICT. STALE if "
        "another client changes the draft during the save, or changed it after "
        "`ifUnchangedSince`. FORBIDDEN_OPERATION if the user can't send as the new author, or an "
        "existing draft would move to another user's mailbox. A stored author stays, even if the "
        "user can no longer send as it. QUOTA_EXCEEDED if the storage quota of the mailbox's "
        "owner is full. LIMIT_REACHED if the message or its attachments would have more than 64 "
        "MiB (by default). LIMIT_REACHED also if a file of `set.addFileLinks` has 100 links, or a "
        "READ_ONLY_LINK exceeds the storage limit of files. RATE_LIMITED if a link has a "
        "password, and the server has to hash too many passwords now: retry. RATE_LIMITED also if "
        "reading a large `original` exceeds the caller's rate limit. Drafts are not encrypted. "
        "UNAVAILABLE if a message that a shared mailbox stores without the flag \\Draft must be "
        "encrypted, but the OpenPGP key is unusable.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def draft_save(self, info: Info, input: DraftSaveInput) -> MessagePayload:
        problems = ErrorCollector()
        user_id = await require_visible_user_id_if_named(info, input.user or None)
        mailbox, since = input.mailbox or None, value_or_none(input.if_unchanged_since)
        request = DraftSaveRequest(
            input.set.to_changes(info, problems),
            await _require_draft_id_if_named(info, input.draft or None, user_id),
            mailbox_selector_from_ref(mailbox) if mailbox else None,
            await require_message_source_from_relation(info, input.original)
            if input.original
            else None,
            since,
            absolute_url_builder(info),
        )
        user = user_selector_from_ref(input.user, path="user") if input.user else None
        saved = await draft_save.save_draft_of_user(info.context, request, user, problems)
        return MessagePayload(
            message=Message.from_row_or_none(saved.message),
            warnings=_dropped_recipient_warnings(saved.dropped_recipient_numbers),
        )

    @mutation(
        "Sends a draft to the recipients of its header, or of `envelope`. A message that is no "
        "draft is a CONFLICT. The draft becomes the sent copy, with the same ID and a new Date, "
        "in the `sentMailbox` of its identity, else in Sent. While the message is scheduled or "
        "can be undone, the copy is in the mailbox with the special use SCHEDULED. If there is no "
        "mailbox for sent messages, the copy stays in the mailbox of the draft, with the warning "
        "NOT_SAVED_TO_SENT. If the submission is cancelled before it is sent to any recipient, "
        "the copy is a draft again, unless the user has moved it. With `mailMerge`, the draft "
        "stays a draft, and the copies are new messages. If such a copy can't be stored, the "
        "message is sent without it, with the warning NOT_SAVED_TO_SENT. FORBIDDEN_OPERATION if "
        "the account is inactive or suspended, can't send as the sender, or the message is spam "
        "or has a virus. If the server scans the message for spam or viruses, no earlier mutation "
        "of an `@atomic` request can have changed anything (else FORBIDDEN_OPERATION). "
        "LIMIT_REACHED for more than 400 recipients of a message (by default). LIMIT_REACHED also "
        "if `template` or `mailMerge` makes a message larger than 64 MiB (by default). "
        "LIMIT_REACHED also if a delayed message needs a new mailbox, and the user has 1,500 "
        "mailboxes (by default). RATE_LIMITED at a sending limit of the user, the domain or the "
        "platform. UNAVAILABLE if a scanner does not respond and its setting defers mail, or with "
        "`encrypt` if an OpenPGP key is unusable. Without `mailMerge`, CONFLICT if the copy must "
        "be encrypted, but the OpenPGP key of the account is unusable. With `mailMerge`, an "
        "unusable key is no error: the messages are sent without copies. If another client "
        "changes the draft at the same time: STALE, or CONFLICT if it sends or deletes the draft.",
        scope=Scope.SUBMIT,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def draft_send(self, info: Info, input: DraftSendInput) -> MessageSendPayload:
        key = await find_unchecked_message_id(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        if input.delete_files:
            stored_files.require_writing_owner_id(info.context)
        request = DraftSendRequest(key, input.delete_files, input.to_options())
        owner = await send_on_behalf.find_managed_owner_id(info.context, key)
        async with send_on_behalf.logged_sending_transaction_as_user(
            info.context, owner, "draftSend"
        ) as ctx:
            messages, undo = await bulk_undo.submit_draft_with_undo(
                ctx, request, info.context.viewer.user_id
            )
            payload = MessageSendPayload.from_sent_messages(messages, undo, ["message"])
            await set_recipients_if_other_sender(ctx, info, payload.submissions)
            return payload


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
