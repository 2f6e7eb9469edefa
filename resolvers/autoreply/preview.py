"""Preview an autoreply without sending it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, case, false, select
from sqlmodel import col

from mail import autoreply as answering
from mail import mime
from mail.addresses import address_syntax
from mail.autoreply import AutoreplyTrigger, NoReplyReason
from models.addresses.tables import Address
from models.errors import InvalidInput, NotFound
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_overseen_user, is_own_or_shared
from resolvers.addresses.loaders import is_visible_address
from resolvers.autoreply.autoreplies import AutoreplyState
from resolvers.context import Context
from resolvers.messages import content

MESSAGE_COLUMNS = (
    *("id", "user_id", "subject", "message_id", "in_reply_to", "references", "content_type"),
    *("to", "cc", "envelope_from", "envelope_to", "authentication"),
)


@dataclass(frozen=True, slots=True)
class AutoreplyPreviewInput:
    """The message to reply to. None takes the value of the stored message or of the user."""

    sender: str | None = None
    subject: str | None = None
    to: str | None = None
    message_id: int | None = None  # a received message


@dataclass(frozen=True, slots=True)
class AutoreplyPreviewResult:
    """The autoreply that a sender would receive, or the reason why none is sent."""

    no_reply_reason: NoReplyReason | None
    is_internal: bool = False
    from_: str | None = None  # None if the user has no address
    name: str | None = None
    to: str | None = None  # None if there is no sender
    subject: str = ""
    text: str = ""
    html: str = ""


async def preview_autoreply(
    ctx: Context, autoreply: AutoreplyState, preview_input: AutoreplyPreviewInput
) -> AutoreplyPreviewResult:
    """Return the autoreply to a message without sending it or remembering the sender.

    Raises InvalidInput if the sender is missing or not an address, and NotFound if the user has
    no address `to` or no such message.
    """
    trigger = await _load_trigger_from_message_or_input(ctx, autoreply, preview_input)
    if preview_input.sender is None and not trigger.envelope_sender:
        if preview_input.message_id is None:
            raise InvalidInput(
                "`sender` or `message` is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=["sender"],
            )
        return AutoreplyPreviewResult(NoReplyReason.NO_SENDER)
    load_facts = (
        _load_reply_conditions_by_user_and_sender
        if autoreply.address is None
        else _load_reply_conditions_of_addresses
    )
    facts = await ctx.load(load_facts, (autoreply.id, trigger.envelope_sender))
    if facts is None:
        raise NotFound(str(autoreply.id), path=["user"])
    owner_ids = (autoreply.id, 0) if autoreply.address is None else (None, autoreply.id)
    address_record = await _find_or_require_receiving_address(
        ctx, trigger, preview_input, owner_ids
    )
    may_send_as = autoreply.address is not None or address_record is None or address_record.send_as
    from_address = answering.from_address_of_reply(
        may_send_as, trigger.recipient_address, facts.row.main
    )
    trigger = replace(
        trigger,
        recipient_address=trigger.recipient_address or facts.row.main or "",
        address_id=address_record.id if address_record else facts.row.main_id,
        is_from_self=facts.sender_address is not None
        and answering.is_address_of_user_or_same(facts.sender_address, *owner_ids),
        is_internal=facts.row.internal,
    )
    no_reply_reason = _no_reply_reason(ctx, autoreply, trigger, facts.row)
    content = answering.reply_content_unless_empty(autoreply.rule, trigger)
    common_values = (
        trigger.is_internal,
        from_address,
        autoreply.rule.name or facts.row.name,
        trigger.envelope_sender,
    )
    if from_address is None or isinstance(content, NoReplyReason):
        return AutoreplyPreviewResult(
            no_reply_reason or NoReplyReason.OTHER_ADDRESS, *common_values
        )
    text = content.text or mime.html_to_text(content.html)
    return AutoreplyPreviewResult(
        no_reply_reason, *common_values, content.subject, text, content.html
    )


async def _find_or_require_receiving_address(
    ctx: Context,
    trigger: AutoreplyTrigger,
    preview_input: AutoreplyPreviewInput,
    owner_ids: tuple[int | None, int],
) -> ColumnRow | None:
    """Return the record of the address that the message is sent to, or None.

    `owner_ids` are the ids of a user and of an address. Raises NotFound if the input names an
    address that belongs to neither.
    """
    address_record = (
        await answering.find_receiving_address_record(ctx.environment, trigger.recipient_address)
        if trigger.recipient_address
        else None
    )
    if preview_input.to is not None and (
        address_record is None
        or not answering.is_address_of_user_or_same(address_record, *owner_ids)
    ):
        raise NotFound(preview_input.to, path=["to"])
    return address_record


def _no_reply_reason(
    ctx: Context, autoreply: AutoreplyState, trigger: AutoreplyTrigger, reply_conditions: ColumnRow
) -> NoReplyReason | None:
    """Return why no reply would be sent, checked in the same order as for received mail."""
    decision = answering.autoreply_or_reason_for_none(
        autoreply.rule, trigger, ctx.environment.now()
    )
    if reply_conditions.suspended:
        return NoReplyReason.SUSPENDED
    if isinstance(decision, NoReplyReason):
        return decision
    if reply_conditions.answered or reply_conditions.spent:
        return NoReplyReason.ANSWERED if reply_conditions.answered else NoReplyReason.LIMIT
    return None


async def _load_trigger_from_message_or_input(
    ctx: Context, autoreply: AutoreplyState, preview_input: AutoreplyPreviewInput
) -> AutoreplyTrigger:
    """Return the trigger for the input, or for the stored message that it names.

    Raises NotFound if there is no such message.
    """
    sender = (
        None
        if preview_input.sender is None
        else address_syntax.normalize_and_validate_address(preview_input.sender, path="sender")
    )
    if preview_input.message_id is None:
        return AutoreplyTrigger(sender or "", preview_input.to or "", preview_input.subject or "")
    is_visible_message = (
        is_own_or_shared(ctx, Message),
        col(Message.id) == preview_input.message_id,
    )
    statement = select(*select_columns(Message, MESSAGE_COLUMNS)).where(
        *is_visible_message, col(Message.user_id) == autoreply.id
    )
    row = next(iter(await ctx.read(statement)), None)
    stored = await content.load_stored_message(ctx, preview_input.message_id) if row else None
    if row is None or stored is None:
        raise NotFound(str(preview_input.message_id), path=["message"])
    recipient = preview_input.to or next(iter(row.envelope_to), "")
    references: Sequence[Any] = [row.in_reply_to] if row.in_reply_to else []
    header_recipients = [address for _, address in (*row.to, *row.cc)]
    return AutoreplyTrigger(
        sender or row.envelope_from or "",
        recipient,
        row.subject if preview_input.subject is None else preview_input.subject,
        row.message_id,
        row.references or references,
        row.content_type == "multipart/report",
        await content.header_fields(stored),
        is_addressed=await answering.is_account_in_header_addresses(
            ctx.environment, (autoreply.id, 0), recipient, header_recipients
        ),
        is_spam=(row.authentication or {}).get("dmarc") == "fail",
    )


@dataclass(frozen=True, slots=True)
class _ReplyConditions:
    """Facts about a user or address and a sender, with the sender's own address record."""

    row: ColumnRow
    sender_address: ColumnRow | None


async def _load_reply_conditions_by_user_and_sender(
    ctx: Context, user_ids_and_senders: list[tuple[int, str]]
) -> list[_ReplyConditions | None]:
    """Load the facts about users and senders, with one statement for each sender."""
    statement = (
        select(
            *select_columns(User, ("id", "name", "suspended")),
            col(Address.display_address).label("main"),
            col(Address.id).label("main_id"),
            answering.is_sender_internal_sql(col(User.domain_id)).label("internal"),
            answering.is_sender_answered_sql(col(User.id)).label("answered"),
            answering.is_user_reply_limit_reached_sql().label("spent"),
        )
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(is_overseen_user(ctx))
    )
    return await _load_reply_conditions_by_sender(
        ctx, user_ids_and_senders, statement, col(User.id)
    )


async def _load_reply_conditions_of_addresses(
    ctx: Context, address_ids_and_senders: list[tuple[int, str]]
) -> list[_ReplyConditions | None]:
    """Load the facts about forwarding addresses and senders.

    A catch-all replies from the address that received the mail only.
    """
    is_no_catch_all = col(Address.display_address).not_like("%*%")
    statement = select(
        *select_columns(Address, ("id", "name")),
        false().label("suspended"),
        case((is_no_catch_all, col(Address.display_address))).label("main"),
        col(Address.id).label("main_id"),
        answering.is_sender_internal_sql(col(Address.domain_id)).label("internal"),
        answering.is_sender_answered_sql(col(Address.id)).label("answered"),
        answering.is_address_reply_limit_reached_sql().label("spent"),
    ).where(is_visible_address(ctx))
    return await _load_reply_conditions_by_sender(
        ctx, address_ids_and_senders, statement, col(Address.id)
    )


async def _load_reply_conditions_by_sender(
    ctx: Context, ids_and_senders: list[tuple[int, str]], statement: Select[Any], id_column: Any
) -> list[_ReplyConditions | None]:
    facts_by_key: dict[tuple[int, str], _ReplyConditions] = {}
    for sender in dict.fromkeys(sender for _, sender in ids_and_senders):
        statement_of_sender = statement.where(
            id_column.in_(
                [row_id for row_id, row_sender in ids_and_senders if row_sender == sender]
            )
        )
        parameters = {
            "sender": answering.sender_without_label_and_batv_tag(sender),
            "domain": address_syntax.normalized_domain(sender.rpartition("@")[2]),
            "now": ctx.environment.now(),
        }
        sender_address = await answering.find_receiving_address_record(ctx.environment, sender)
        for row in await ctx.read(statement_of_sender, parameters):
            facts_by_key[row.id, sender] = _ReplyConditions(row, sender_address)
    return [facts_by_key.get(sender) for sender in ids_and_senders]
