"""Compose what a draft sends: its stored bytes, or messages with filled placeholders."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from mail import mime
from mail.authentication.results_removal import (
    own_authserv_ids,
    remove_authentication_results_of_servers,
)
from mail.compose import draft_validation
from mail.compose.priority_header import priority_from_header_fields
from mail.compose.submission_repair import RepairedMessage, repair_message_or_raise
from mail.mime import MessageFacts
from mail.storage.message_content import StoredMessage, read_all
from models.errors import ErrorCollector, InvalidInput, MultipleErrors, RequestError
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.submission import composition
from resolvers.submission.composition import PreviousDraft
from resolvers.submission.drafts.content import read_draft_fields
from resolvers.submission.message_envelope import (
    LocatedAddress,
    header_recipients,
    require_valid_envelope,
)
from resolvers.submission.outgoing_messages import (
    ENCRYPTED_BCC_TEXT,
    ComposedMessage,
    SendRequest,
    compose_messages_of_request,
    future_send_at_within_limit,
)
from resolvers.submission.sender_authorization import require_permitted_sender

INPUT_PATH = ["message"]
_INPUT_FIELDS = frozenset({"envelope", "template", "mailMerge", "encrypt", "sendAt", "undoWindow"})


async def compose_stored_draft(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: SendRequest
) -> ComposedMessage:
    """Return the stored bytes of a draft with a new Date, and its envelope. It is not encrypted.

    Raises the errors of `_repair_and_authorize_draft`, and InvalidInput if there is no recipient.
    """
    repaired, recipients_of_header = await _repair_and_authorize_draft(ctx, account, draft, request)
    sender, recipients = await require_valid_envelope(
        ctx, account, request.envelope, (repaired.writers[0], recipients_of_header), INPUT_PATH
    )
    header_fields = await draft.run_on_source(
        lambda source: mime.decoded_fields(source, draft.structure)
    )
    request = replace(request, priority=priority_from_header_fields(header_fields))
    return ComposedMessage(repaired.raw, sender, recipients, None, request)


async def compose_filled_drafts(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: SendRequest
) -> list[ComposedMessage]:
    """Compose the messages of a draft with the values of `template` and `mail_merge`.

    Raises the errors of `_repair_and_authorize_draft`, and those of `compose_messages_of_request`
    with paths in the input of `draftSend`.
    """
    await _repair_and_authorize_draft(ctx, account, draft, request)  # or a wrong address is lost
    stored = await read_draft_fields(draft)
    filled_request = replace(
        request,
        from_=stored.from_,
        to=stored.to,
        cc=stored.cc,
        bcc=stored.bcc,
        reply_to=stored.reply_to,
        subject=stored.subject,
        text=stored.text,
        html=stored.html,
        headers=stored.headers,
        priority=stored.priority,
    )
    with _paths_in_draft_send_input():
        batch = await compose_messages_of_request(
            ctx, account, filled_request, ErrorCollector(), PreviousDraft(draft)
        )
    return list(batch.messages)


@contextmanager
def _paths_in_draft_send_input() -> Generator[None]:
    """Change the paths of errors raised inside to those in the input of `draftSend`.

    The content and the recipients of the message are those of the draft.
    """
    try:
        yield
    except RequestError as error:
        errors = [_error_in_draft_send_input(one_error) for one_error in error.all_errors]
        raise errors[0] if len(errors) == 1 else MultipleErrors(errors) from error


def _error_in_draft_send_input(error: RequestError) -> RequestError:
    if error.path and error.path[0] in _INPUT_FIELDS:
        return error
    moved_error = error.copy_with_path(INPUT_PATH)
    moved_error.index = None
    return moved_error


def require_no_bcc(facts: MessageFacts) -> None:
    """Raise InvalidInput if a message to encrypt has Bcc recipients."""
    if facts.bcc:
        raise InvalidInput(
            ENCRYPTED_BCC_TEXT, constraint=ValidationConstraint.EXCLUSIVE, path=["encrypt"]
        )


class _DraftWithRecipients(NamedTuple):
    """A draft with a complete header, and the recipients of the header."""

    repaired: RepairedMessage
    recipients: list[LocatedAddress]


async def _repair_and_authorize_draft(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: SendRequest
) -> _DraftWithRecipients:
    """Complete the header of a draft for sending, with the requested date.

    Raises InvalidInput if the header is invalid, and Forbidden if the account may not send as an
    author.
    """
    date = future_send_at_within_limit(ctx.environment, request) or ctx.environment.now()
    repaired = await _repair_draft(ctx, draft, date)
    for writer in dict.fromkeys(repaired.writers):
        address = draft_validation.normalize_and_validate_address_with_index(writer, INPUT_PATH[0])
        await require_permitted_sender(ctx, account, address, INPUT_PATH)
    return _DraftWithRecipients(repaired, header_recipients(repaired, INPUT_PATH[0]))


async def _repair_draft(ctx: Context, draft: StoredMessage, date: datetime) -> RepairedMessage:
    """Complete the header of a draft for sending, with this date.

    Raises InvalidInput if that is impossible.
    """
    raw = await read_all(draft.stream_raw())
    raw = remove_authentication_results_of_servers(raw, own_authserv_ids(ctx.environment.options))
    message_id = composition.new_message_id(ctx, draft.row.from_address or "")
    try:
        return await asyncio.to_thread(
            repair_message_or_raise, raw, date, message_id, replace_date=True
        )
    except InvalidInput as error:
        raise InvalidInput(error.message, constraint=error.constraint, path=INPUT_PATH) from error
