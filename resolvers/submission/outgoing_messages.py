"""Turn a send request into messages with envelopes: composed, merged, or handed in whole."""

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from mail.compose import draft_validation, text_templates
from mail.compose.message_draft import (
    KIB,
    MAX_HTML_WITH_IMAGES_BYTES,
    MAX_SUBJECT_BYTES,
    MAX_TEXT_BYTES,
    MIB,
    MessageDraft,
)
from mail.compose.submission_repair import (
    repair_message_or_raise,
)
from mail.envelope.dsn_parameters import DsnRequest
from mail.logs.message_entries import LimitedMessage
from mail.mime.header_encoding import NamedAddress
from mail.storage import openpgp_encryption
from models.errors import (
    ErrorCollector,
    InvalidInput,
    MultipleErrors,
    NotFound,
    RequestError,
)
from models.files.tables import FileShare
from models.mailboxes.tables import SpecialUse
from models.quantities import describe_duration
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import message_import
from resolvers.submission import composition, file_attachments, recipient_keys
from resolvers.submission.composition import (
    DraftBasis,
    MessageFields,
    PreviousDraft,
    SenderFields,
    always_bcc_addresses_to_add,
    new_message_id,
)
from resolvers.submission.file_attachments import UrlFromPath, path_unchanged
from resolvers.submission.message_envelope import (
    ENVELOPE_OF_HEADER,
    EnvelopeOverride,
    LocatedAddress,
    SenderAndRecipients,
    header_recipients,
    require_valid_envelope,
)
from resolvers.submission.sender_authorization import require_permitted_sender

MAX_SEND_DELAY = timedelta(days=3653)
MAX_PER_MERGE = 100
MAX_MERGE_RECIPIENTS = 10_000  # of all messages
MAX_MERGE_BYTES = 128 * MIB  # of all messages

MERGE_FIELDS = (["to"], ["cc"], ["bcc"], ["values"])  # paths of the fields of an entry
ENCRYPTED_BCC_TEXT = (
    "An encrypted message reveals whose keys can decrypt it: send to Bcc recipients separately."
)


@dataclass(frozen=True, slots=True)
class MailMergeEntry:
    """The recipients and template values of one message of a mail merge."""

    to: Sequence[NamedAddress] = ()
    cc: Sequence[NamedAddress] = ()
    bcc: Sequence[NamedAddress] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SendRequest(MessageFields):
    """A request to send a message."""

    envelope: EnvelopeOverride = ENVELOPE_OF_HEADER
    mailbox: mailbox_loaders.MailboxSelector | None = None  # None: that of the identity, or Sent
    send_at: datetime | None = None
    undo_window: timedelta | None = None
    public_metadata: dict[str, Any] | None = None
    raw: str | None = None  # a whole message as text or base64, instead of fields
    upload_id: int | None = None  # a whole message that was uploaded before
    template: Mapping[str, Any] | None = None  # values of {{name}}
    mail_merge: Sequence[MailMergeEntry] | None = None
    encrypt: bool = False
    request_dsn: bool = False
    url_from_path: UrlFromPath = path_unchanged  # returns the URL of a path on this server

    def limited_message(self) -> LimitedMessage:
        """Return the facts for the log if a limit refuses the message before it is built."""
        given = (*(self.to or ()), *(self.cc or ()), *self.bcc)
        sender = self.from_ and self.from_.address
        return LimitedMessage(sender, [entry.address for entry in given], self.subject)

    @property
    def is_whole_message(self) -> bool:
        """True if the client hands in a complete message instead of fields."""
        return self.raw is not None or self.upload_id is not None


@dataclass(frozen=True, slots=True)
class ComposedMessage:
    """The bytes and envelope of a message that was composed or handed in."""

    raw: bytes
    sender: str
    recipients: Sequence[str]
    copy_mailbox: ColumnRow | None  # None: no copy is stored
    request: SendRequest = SendRequest()
    readable_copy: bytes | None = None  # if the owner can't decrypt the sent message
    dsn_requests: Mapping[str, DsnRequest] = field(default_factory=dict)  # by recipient


@dataclass(frozen=True, slots=True)
class ComposedBatch:
    """The messages of a request and the links created with them."""

    messages: Sequence[ComposedMessage]
    shares: Sequence[FileShare] = ()


def future_send_at_within_limit(environment: Environment, request: SendRequest) -> datetime | None:
    """Return the requested send time if it is in the future.

    Raises InvalidInput if it is too far ahead.
    """
    at = request.send_at
    if at:
        require_send_time_within_limit(environment, at)
    return at if at and at > environment.now() else None


def require_send_time_within_limit(environment: Environment, send_at: datetime) -> None:
    """Raise InvalidInput if the time is more than ten years ahead."""
    if send_at > environment.now() + MAX_SEND_DELAY:
        text = f"The time must be at most {describe_duration(MAX_SEND_DELAY)} ahead."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["sendAt"])


async def compose_messages_of_request(
    ctx: Context,
    account: ColumnRow,
    request: SendRequest,
    problems: ErrorCollector,
    previous: PreviousDraft | None = None,
) -> ComposedBatch:
    """Compose the messages of a request with their envelopes. Nothing is stored yet.

    The draft `previous` provides attachments, Message-ID and the references of a reply.

    Raises InvalidInput for all wrong fields together with the errors already in `problems`,
    Forbidden if the account may not use the sender, and NotFound for a missing mailbox, file or
    message.
    """
    _require_compatible_fields(request)
    if request.is_whole_message:
        _require_compatible_whole_message(request)
    file_attachments.require_valid_file_attachments(request.files)
    if request.is_whole_message:
        problems.raise_collected()
        return ComposedBatch([await _repair_and_authorize_whole_message(ctx, account, request)])
    date = future_send_at_within_limit(ctx.environment, request) or ctx.environment.now()
    sender_fields = await composition.authorize_sender_and_resolve_fields(ctx, account, request)
    links = await file_attachments.prepare_links_of_unattached_files(
        ctx, request.files, request.url_from_path
    )
    basis = DraftBasis(date, previous)
    base_draft = await composition.compose_draft(ctx, sender_fields, request, basis)
    drafts = _expand_merge_and_fill_templates(ctx, sender_fields, base_draft, request, problems)
    texts = [file_attachments.append_links(draft.text, draft.html, links) for draft in drafts]
    drafts = [replace(d, text=t, html=h) for d, (t, h) in zip(drafts, texts, strict=True)]
    if request.encrypt:
        _require_no_bcc(drafts, request)
    built, total_bytes, recipient_count = list[ComposedMessage](), 0, 0
    for index, draft in enumerate(drafts):
        sender, recipients, raw = "", list[str](), b""
        with problems.collecting(), _prefix_error_paths_with_merge_entry(request, index):
            sender, recipients = await _envelope_of_draft(ctx, account, draft, request)
        with problems.collecting(), _prefix_error_paths_with_merge_entry(request, index):
            raw = await composition.build_message(draft)
        built.append(ComposedMessage(raw, sender, recipients, None, request))
        total_bytes, recipient_count = total_bytes + len(raw), recipient_count + len(recipients)
        _require_within_merge_limits(total_bytes, recipient_count, request)
    problems.raise_collected()
    copy_mailbox = await _require_requested_or_default_mailbox(
        ctx, request, sender_fields.sent_mailbox_id
    )
    messages = [
        await encrypt_if_requested(ctx, account, replace(composed, copy_mailbox=copy_mailbox))
        for composed in built
    ]
    return ComposedBatch(messages, [link.share for link in links])


def _require_compatible_fields(request: SendRequest) -> None:
    """Raise InvalidInput if `mailMerge` is too long, or can't be combined with other fields."""
    if request.mail_merge is not None:
        if not 0 < len(request.mail_merge) <= MAX_PER_MERGE:
            text = f"`mailMerge` must have from 1 to {MAX_PER_MERGE} messages."
            raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["mailMerge"])
        lists = request.to, request.cc, request.bcc, request.envelope.recipients
        if any(lists) or request.is_whole_message:
            text = (
                "`mailMerge` can't be combined with recipients of the request or with a "
                "raw message."
            )
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["mailMerge"])


def _require_compatible_whole_message(request: SendRequest) -> None:
    """Raise InvalidInput if a raw message can't be combined with other fields of the request.

    `raw` excludes `rawUpload`, and both exclude `template` and `encrypt`. The mutation
    `messageSend` checks the other fields.
    """
    if request.raw is not None and request.upload_id is not None:
        text = "Exactly one of `raw` and `rawUpload` is required."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["rawUpload"])
    if request.template is not None or request.encrypt:
        text = "A raw message can't be combined with `template` or `encrypt`."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["raw"])


def _require_no_bcc(drafts: Sequence[MessageDraft], request: SendRequest) -> None:
    """Raise InvalidInput if a message to encrypt has Bcc recipients."""
    for index, draft in enumerate(drafts):
        with _prefix_error_paths_with_merge_entry(request, index):
            if draft.bcc:
                raise InvalidInput(
                    ENCRYPTED_BCC_TEXT, constraint=ValidationConstraint.EXCLUSIVE, path=["bcc"]
                )


def _require_within_merge_limits(
    total_bytes: int, recipient_count: int, request: SendRequest
) -> None:
    """Raise InvalidInput if a mail merge gets too large, before more of it is built."""
    if request.mail_merge is None:
        return
    if total_bytes > MAX_MERGE_BYTES:
        raise InvalidInput(
            f"The messages of a mail merge have at most {MAX_MERGE_BYTES} bytes in total.",
            constraint=ValidationConstraint.MAX,
            path=["mailMerge"],
        )
    if recipient_count > MAX_MERGE_RECIPIENTS:
        raise InvalidInput(
            f"A mail merge has at most {MAX_MERGE_RECIPIENTS} recipients in total.",
            constraint=ValidationConstraint.MAX,
            path=["mailMerge"],
        )


@contextmanager
def _prefix_error_paths_with_merge_entry(request: SendRequest, index: int) -> Generator[None]:
    """Prefix the path of errors raised inside with the entry of the mail merge."""
    try:
        yield
    except (InvalidInput, MultipleErrors) as refusal:
        if request.mail_merge is None:
            raise
        raise MultipleErrors(
            [_move_error_path_into_merge_entry(error, index) for error in refusal.all_errors]
        ) from refusal


def _move_error_path_into_merge_entry(error: RequestError, index: int) -> RequestError:
    if error.path[:1] == ["envelope"]:  # the same for all entries
        return error
    # a text of the message is only wrong with the values of this entry
    inner_path = error.path if error.path[:1] in MERGE_FIELDS else ["values"]
    error.path = ["mailMerge", str(index), *inner_path]
    return error


def _expand_merge_and_fill_templates(
    ctx: Context,
    sender_fields: SenderFields,
    base_draft: MessageDraft,
    request: SendRequest,
    problems: ErrorCollector,
) -> list[MessageDraft]:
    """Return the drafts of a request, each with its own template values and recipients."""
    if request.template is None and request.mail_merge is None:
        return [base_draft]
    common_values = dict[str, str]()
    with problems.collecting():
        common_values = text_templates.validated_value_texts(request.template or {}, ["template"])
    if request.mail_merge is None:
        with problems.collecting():
            return [_fill_templates(base_draft, common_values)]
        return [base_draft]
    drafts = []
    for index, entry in enumerate(request.mail_merge):
        draft = replace(
            base_draft,
            to=entry.to,
            cc=entry.cc,
            bcc=[
                *entry.bcc,
                *always_bcc_addresses_to_add(
                    sender_fields.always_bcc, [*entry.to, *entry.cc, *entry.bcc]
                ),
            ],
            message_id=new_message_id(ctx, base_draft.from_.address),
        )
        with problems.collecting(), _prefix_error_paths_with_merge_entry(request, index):
            values = common_values | text_templates.validated_value_texts(entry.values, ["values"])
            draft = _fill_templates(draft, values)
        drafts.append(draft)
    return drafts


def _fill_templates(draft: MessageDraft, values: Mapping[str, str]) -> MessageDraft:
    return replace(
        draft,
        subject=text_templates.fill_placeholders(
            draft.subject, values, "subject", max_length=MAX_SUBJECT_BYTES + 2 * KIB
        ),
        text=text_templates.fill_placeholders(
            draft.text, values, "text", max_length=2 * MAX_TEXT_BYTES
        ),
        html=text_templates.fill_placeholders(
            draft.html, values, "html", max_length=MAX_HTML_WITH_IMAGES_BYTES, escape_html=True
        ),
    )


async def _envelope_of_draft(
    ctx: Context, account: ColumnRow, draft: MessageDraft, request: SendRequest
) -> SenderAndRecipients:
    """Return sender and recipients, each recipient once."""
    lists = {"to": draft.to, "cc": draft.cc, "bcc": draft.bcc}
    located_addresses = [
        LocatedAddress(person.address, [path], index)
        for path, header_addresses in lists.items()
        for index, person in enumerate(header_addresses)
    ]
    return await require_valid_envelope(
        ctx, account, request.envelope, (draft.from_.address, located_addresses)
    )


async def _repair_and_authorize_whole_message(
    ctx: Context, account: ColumnRow, request: SendRequest
) -> ComposedMessage:
    """Complete a message that was handed in whole.

    Raises Forbidden for an author the account isn't.
    """
    raw = await message_import.read_message_bytes_without_own_results(
        ctx, request.raw, request.upload_id
    )
    scheduled_at = future_send_at_within_limit(ctx.environment, request)
    date = scheduled_at or ctx.environment.now()
    message_id = new_message_id(ctx, (await composition.main_sender(ctx, account)).address)
    try:
        repaired = await asyncio.to_thread(
            repair_message_or_raise, raw, date, message_id, replace_date=scheduled_at is not None
        )
    except InvalidInput as error:
        raise InvalidInput(error.message, constraint=error.constraint, path=["raw"]) from error
    for writer in dict.fromkeys(repaired.writers):
        await require_permitted_sender(
            ctx,
            account,
            draft_validation.normalize_and_validate_address_with_index(writer, "raw"),
            ["raw"],
        )
    default_envelope = repaired.writers[0], header_recipients(repaired, "raw")
    sender, recipients = await require_valid_envelope(
        ctx, account, request.envelope, default_envelope, ["raw"]
    )
    copy_mailbox = await _require_requested_or_default_mailbox(ctx, request, None)
    return ComposedMessage(repaired.raw, sender, recipients, copy_mailbox, request)


async def _require_requested_or_default_mailbox(
    ctx: Context, request: SendRequest, default_mailbox_id: int | None
) -> ColumnRow | None:
    """Return the mailbox of the copy: the requested one, else the default one, else Sent.

    Raises NotFound if the requested one does not exist.
    """
    if default_mailbox_id is not None and not request.mailbox:
        (row,) = await mailbox_loaders.load_visible_by_selectors(
            ctx, [(require_user_id(ctx), mailbox_loaders.MailboxSelector(id=default_mailbox_id))]
        )
        if row is not None:
            return row
    sent = mailbox_loaders.MailboxSelector(special_use=SpecialUse.SENT)
    mailbox_ref = request.mailbox or sent
    (row,) = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(require_user_id(ctx), mailbox_ref)]
    )
    if row is None and request.mailbox:
        raise NotFound(mailbox_ref.path or str(mailbox_ref.id or ""), path=["mailbox"])
    return row


async def encrypt_if_requested(
    ctx: Context, account: ColumnRow, composed: ComposedMessage
) -> ComposedMessage:
    """Encrypt the message to its recipients if requested.

    Raises InvalidInput if a key is missing.
    """
    if not composed.request.encrypt:
        return composed
    keys = await recipient_keys.require_recipient_keys(ctx, composed.recipients)
    own_keys = [account.openpgp_public_key] if account.openpgp_public_key else []
    raw = await openpgp_encryption.encrypt_to_keys(
        ctx.environment, composed.raw, [*dict.fromkeys([*keys, *own_keys])]
    )
    return replace(composed, raw=raw, readable_copy=None if own_keys else composed.raw)
