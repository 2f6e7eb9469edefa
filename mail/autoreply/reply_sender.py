"""Send automatic replies. The reply and its record are one transaction, so it is sent once."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    Update,
    UpdateBase,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.addresses.address_syntax import (
    normalize_and_validate_address,
    normalized_address,
    normalized_domain,
)
from mail.autoreply.decision import (
    AutoreplyContent,
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    autoreply_or_reason_for_none,
    reason_never_to_reply,
    sender_without_label_and_batv_tag,
    single_line,
)
from mail.compose import message_builder
from mail.compose.message_draft import MAX_NAME_BYTES, CustomHeader, MessageDraft
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.mime import DecodedField
from mail.mime.header_encoding import NamedAddress
from mail.queue.enqueue import (
    SubmissionOwner,
    build_submission_and_insert_blobs,
    copy_to_running_legal_holds,
    enqueue,
)
from mail.recipients import address_resolution
from mail.recipients.batch_resolution import load_receiving_address_rows
from mail.recipients.recipient_routes import AutoreplyAddress
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.received_messages import parse_storable_message, store_blobs_and_run_transaction
from mail.storage.storable_message import StorableMessage
from models.addresses.tables import Address
from models.autoreply import Autoreply, AutoreplySender
from models.domains.tables import Domain, DomainAlias
from models.errors import InvalidInput, NotFound
from models.events.journal import PLATFORM
from models.observability import metrics
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime, insert_with_conflict, select_columns
from models.store.prepared_statements import PreparedStatement, integer_parameter, prepare_cached
from models.users.tables import Usage, UsageKind, User

log = logging.getLogger(__name__)

MAX_REPLIES_PER_DAY = 2000  # replies per account or address
DAY = timedelta(days=1)
MAX_ADDRESSES = 50  # addresses in To and Cc that are resolved
MAX_HEADER = 256 << 10  # bytes of the header that are read
MAX_TRIES = 3  # if the rule is changed meanwhile

AUTOREPLIES = metrics.counter(
    "merganser_autoreplies",
    "Automatic replies of accounts and addresses: answered, failed, or the reason why not.",
    "outcome",
)


_NOW = bindparam("now", type_=UtcDateTime)


def is_sender_internal_sql(domain_id_column: Any) -> ColumnElement[bool]:
    """SQL: true if `domain` is the name or an alias of the domain with this ID."""
    domain_name = bindparam("domain", type_=String)
    is_own_domain = exists().where(
        col(Domain.id) == domain_id_column, col(Domain.name) == domain_name
    )
    alias = exists().where(
        col(DomainAlias.domain_id) == domain_id_column,
        col(DomainAlias.alias) == domain_name,
        col(DomainAlias.active),
    )
    return or_(is_own_domain, alias)


def is_sender_answered_sql(autoreply_id_column: Any) -> ColumnElement[bool]:
    """SQL: true if `sender` gets no further reply of this account or address at `now`."""
    return exists().where(
        col(AutoreplySender.autoreply_id) == autoreply_id_column,
        col(AutoreplySender.sender) == bindparam("sender", type_=String),
        col(AutoreplySender.until) > _NOW,
    )


def is_user_reply_limit_reached_sql() -> ColumnElement[bool]:
    """SQL: true if the account has reached its daily limit of replies at `now`."""
    return exists().where(
        col(Usage.user_id) == col(User.id),
        col(Usage.kind) == UsageKind.AUTOREPLIES,
        col(Usage.used) >= MAX_REPLIES_PER_DAY,
        col(Usage.until) > _NOW,
    )


def is_address_reply_limit_reached_sql() -> ColumnElement[bool]:
    """SQL: true if the address has reached its daily limit of replies at `now`."""
    running = and_(col(Address.replied_until).is_not(None), col(Address.replied_until) > _NOW)
    return and_(running, col(Address.replied) >= MAX_REPLIES_PER_DAY)


_main_address = aliased(Address)
# One statement selects the facts about the account, the recipient address
# and the sender.
_SELECT_ACCOUNT_RULE = PreparedStatement(
    select(
        *select_columns(Autoreply),
        func.coalesce(col(Autoreply.name), col(User.name)).label("shown_name"),
        col(User.suspended),
        col(_main_address.display_address).label("main"),
        col(Address.send_as),
        is_sender_internal_sql(col(User.domain_id)).label("internal"),
        is_sender_answered_sql(col(User.id)).label("answered"),
        is_user_reply_limit_reached_sql().label("spent"),
    )
    .join(User, col(User.id) == col(Autoreply.user_id))
    .outerjoin(Address, col(Address.id) == integer_parameter("address"))
    .outerjoin(
        _main_address, and_(col(_main_address.user_id) == col(User.id), col(_main_address.main))
    )
    .where(col(Autoreply.id) == integer_parameter("user"))
)
# The same for a forwarding address. It replies as itself, even if nobody may send as it.
_SELECT_ADDRESS_RULE = PreparedStatement(
    select(
        *select_columns(Autoreply),
        func.coalesce(col(Autoreply.name), col(Address.name)).label("shown_name"),
        false().label("suspended"),
        null().label("main"),
        true().label("send_as"),
        is_sender_internal_sql(col(Address.domain_id)).label("internal"),
        is_sender_answered_sql(col(Address.id)).label("answered"),
        is_address_reply_limit_reached_sql().label("spent"),
    )
    .join(Address, col(Address.id) == col(Autoreply.address_id))
    .where(col(Autoreply.id) == integer_parameter("address"), col(Address.active))
)


@prepare_cached
def _upsert_answered_sender(dialect: str) -> UpdateBase:
    """Upsert the sender that got a reply."""
    new = insert_with_conflict(dialect, AutoreplySender)
    return new.on_conflict_do_update(
        index_elements=["autoreply_id", "sender"], set_={"until": new.excluded.until}
    ).inline()


@prepare_cached
def upsert_reply_count(dialect: str) -> UpdateBase:
    """Upsert that increments the reply count of `user_id` in the day that ends at `until`."""
    new, running = insert_with_conflict(dialect, Usage), col(Usage.until) > _NOW
    renewed = {
        "used": case((running, Usage.used + 1), else_=1),
        "until": case((running, col(Usage.until)), else_=new.excluded.until),
    }
    return new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=renewed).inline()


@dataclass(frozen=True, slots=True)
class _ReplyRequest:
    """A message that may get a reply, with the parameters that select the rule."""

    message: StorableMessage
    recipient: LocalRecipient | AutoreplyAddress
    sender: str
    parameters: dict[str, Any]

    @property
    def rule_statement(self) -> PreparedStatement:
        """The statement that selects the rule of the account or address."""
        return _SELECT_ADDRESS_RULE if self.recipient.user_id is None else _SELECT_ACCOUNT_RULE


async def try_autoreply_and_return_outcome(
    environment: Environment,
    incoming: IncomingMessage,
    recipient: LocalRecipient | AutoreplyAddress,
    *,
    is_spam: bool = False,
) -> str | None:
    """Send an automatic reply to a delivered message if the account or address has one.

    Returns `answered`, `failed` or the reason for no reply; None if automatic replies are off. Runs
    after the delivery and before its acknowledgement: after a crash the repeated delivery sends the
    reply. Errors are logged and don't affect the delivery.
    """
    if isinstance(recipient, LocalRecipient) and not recipient.has_autoreply:
        return None
    owner_columns = {"user": recipient.user_id, "address": recipient.address_id}
    try:
        trigger = await trigger_from_incoming(incoming, recipient.address, is_spam=is_spam)
        no_reply_reason = await _reply_if_wanted(environment, incoming.message, recipient, trigger)
    except Exception:  # the message is stored; the client must not send it again
        log.exception("Automatic reply not sent", extra=owner_columns)
        AUTOREPLIES.add("failed")
        return "failed"
    outcome = no_reply_reason.metric_label if no_reply_reason else "answered"
    AUTOREPLIES.add(outcome)
    log.debug(
        "Automatic reply decided", extra={**owner_columns, "no_reply_reason": no_reply_reason}
    )
    return outcome


async def trigger_from_incoming(
    incoming: IncomingMessage, recipient_address: str, *, is_spam: bool
) -> AutoreplyTrigger:
    """Return what the rules of automatic replies check of a message. Forged mail counts as spam."""
    message = incoming.message
    header = await read_header_fields(incoming.raw_message, message)
    trigger = AutoreplyTrigger.from_message(
        message.facts, incoming.envelope_sender, recipient_address, header
    )
    forged = (message.authentication or {}).get("dmarc") == "fail"
    return replace(trigger, is_spam=is_spam or forged)


async def _reply_if_wanted(
    environment: Environment,
    message: StorableMessage,
    recipient: LocalRecipient | AutoreplyAddress,
    trigger: AutoreplyTrigger,
) -> NoReplyReason | None:
    """Send the reply. Returns None, or the reason for no reply."""
    if no_reply_reason := reason_never_to_reply(trigger):
        return no_reply_reason
    sender = normalize_and_validate_address(trigger.envelope_sender, allows_quotes=True)
    parameters = {
        "user": recipient.user_id,
        "address": recipient.address_id,
        "sender": sender_without_label_and_batv_tag(sender),
        "domain": normalized_domain(sender.rpartition("@")[2]),
    }
    incoming = _ReplyRequest(message, recipient, sender, parameters)
    for _ in range(MAX_TRIES):
        row = next(
            iter(
                await environment.database.read_prepared(
                    incoming.rule_statement, parameters | {"now": environment.now()}
                )
            ),
            None,
        )
        if row is None:
            return NoReplyReason.OFF
        decided = await _decide_reply_by_rule_row(environment, incoming, row, trigger)
        if isinstance(decided, NoReplyReason):
            return decided
        with suppress(_RuleChanged):
            return await _recheck_enqueue_and_record(environment, incoming, row, decided)
    raise RuntimeError("the rule changed at each attempt")


class _RuleChanged(Exception):
    """The rule was changed after the reply was built."""


async def _decide_reply_by_rule_row(
    environment: Environment, request: _ReplyRequest, rule_row: ColumnRow, trigger: AutoreplyTrigger
) -> AutoreplyContent | NoReplyReason:
    """Return the reply of a rule, or the reason for none, with earlier replies considered."""
    if rule_row.suspended:
        return NoReplyReason.SUSPENDED
    if rule_row.answered or rule_row.spent:
        return NoReplyReason.ANSWERED if rule_row.answered else NoReplyReason.LIMIT
    recipient, facts = request.recipient, request.message.facts
    if from_address_of_reply(rule_row.send_as, recipient.address, rule_row.main) is None:
        return NoReplyReason.OTHER_ADDRESS
    sender_record = await find_receiving_address_record(environment, request.sender)
    header_addresses = [header_address.address for header_address in (*facts.to, *facts.cc)]
    trigger = replace(
        trigger,
        address_id=recipient.address_id,
        is_internal=rule_row.internal,
        is_from_self=sender_record is not None
        and is_address_of_user_or_same(sender_record, recipient.user_id, recipient.address_id),
        is_addressed=await is_account_in_header_addresses(
            environment,
            (recipient.user_id, recipient.address_id),
            recipient.address,
            header_addresses,
        ),
    )
    return autoreply_or_reason_for_none(
        AutoreplyRule.from_row(rule_row), trigger, environment.now()
    )


def is_address_of_user_or_same(
    address_row: ColumnRow, user_id: int | None, address_id: int
) -> bool:
    """Return True if an address belongs to the account or, without an account, is the address."""
    is_own_address: bool = (
        address_row.id == address_id if user_id is None else address_row.user_id == user_id
    )
    return is_own_address


async def is_account_in_header_addresses(
    environment: Environment,
    user_and_address_id: tuple[int | None, int],
    envelope_recipient: str,
    header_addresses: Sequence[str],
) -> bool:
    """Return True if the account is in the To or Cc addresses. Blind copies don't count.

    The pair is the account ID and the address ID; without an account only the address counts. No
    SQL statement if the envelope recipient is in the header.
    """
    distinct = {normalized_address(address): address for address in header_addresses}
    if normalized_address(envelope_recipient) in distinct:
        return True
    receiving_rows = await load_receiving_address_rows(
        environment, list(distinct.values())[:MAX_ADDRESSES]
    )
    return any(
        row.active and is_address_of_user_or_same(row, *user_and_address_id)
        for row in receiving_rows.values()
    )


async def find_receiving_address_record(environment: Environment, address: str) -> ColumnRow | None:
    """Return the row of the address that receives mail for it; None if it is not local."""
    try:
        return await address_resolution.require_receiving_address_row(environment, address)
    except NotFound:
        return None


def from_address_of_reply(
    can_send_as_recipient: bool | None, recipient_address: str, main_address: str | None
) -> str | None:
    """Return the From address of a reply: the recipient address, or the main address.

    The main address is used if the account must not send as the recipient address.
    """
    if can_send_as_recipient:
        with suppress(InvalidInput):  # the recipient address is not valid as From
            return normalize_and_validate_address(recipient_address)
    return main_address


async def read_header_fields(
    raw_message: bytes | Path, message: StorableMessage
) -> list[DecodedField]:
    """Return the header fields of a message, from at most MAX_HEADER bytes."""
    most = min(message.facts.header_size, MAX_HEADER)
    head = (
        raw_message[:most]
        if isinstance(raw_message, bytes)
        else await asyncio.to_thread(_read_beginning, raw_message, most)
    )
    return mime.decoded_fields(head, message.facts.structure)


def _read_beginning(source: Path, max_bytes: int) -> bytes:
    """Read the first bytes of a file."""
    with source.open("rb") as file:
        return file.read(max_bytes)


async def _recheck_enqueue_and_record(
    environment: Environment, request: _ReplyRequest, rule_row: ColumnRow, reply: AutoreplyContent
) -> NoReplyReason | None:
    """Enqueue the reply and record its sender. Returns None, or the reason for no reply."""
    draft = _reply_draft(environment, request, rule_row, reply)
    reply_message = await parse_storable_message(
        await asyncio.to_thread(message_builder.validate_and_build_message, draft)
    )
    owner, tenant = request.recipient.user_id, request.recipient.tenant_id

    def recheck_rule_and_enqueue(
        transaction: DatabaseTransaction, stored_blobs: StoredMessageBlobs
    ) -> NoReplyReason | None:
        """Recheck the rule under the lock: no other process can reply or change it."""
        parameters = request.parameters | {"now": environment.now()}
        found = next(iter(transaction.fetch_rows(request.rule_statement, **parameters)), None)
        if found is not None and (found.answered or found.spent):
            return NoReplyReason.ANSWERED if found.answered else NoReplyReason.LIMIT
        if found != rule_row:
            raise _RuleChanged
        _record_and_count_reply(transaction, rule_row, parameters)
        # null sender: no DSN is sent for a reply
        answer = build_submission_and_insert_blobs(
            transaction, reply_message, stored_blobs, "", [request.sender], originates_here=True
        )
        if owner is None:
            enqueue(transaction, SubmissionOwner(None, tenant), answer)
        else:
            copy_to_running_legal_holds(
                transaction,
                (owner, enqueue(transaction, SubmissionOwner(owner), answer)),
                reply_message,
                answer,
            )
        return None

    owner_ids = [PLATFORM, tenant or PLATFORM] if owner is None else [owner]
    return await store_blobs_and_run_transaction(
        environment, tenant, reply_message, recheck_rule_and_enqueue, *owner_ids
    )


def _reply_draft(
    environment: Environment, request: _ReplyRequest, rule_row: ColumnRow, reply: AutoreplyContent
) -> MessageDraft:
    """Return the draft of a reply."""
    sender, facts = request.sender, request.message.facts
    address = (
        from_address_of_reply(rule_row.send_as, request.recipient.address, rule_row.main) or ""
    )
    names = (
        author.name
        for author in facts.from_
        if normalized_address(author.address) == normalized_address(sender)
    )
    name = next(filter(None, names), "")
    return MessageDraft(
        from_=NamedAddress(address, single_line(rule_row.shown_name or "", MAX_NAME_BYTES) or None),
        date=environment.now(),
        message_id=message_builder.new_message_id(
            environment.random_bytes(16), address.rpartition("@")[2]
        ),
        to=[NamedAddress(sender, single_line(name, MAX_NAME_BYTES) or None)],
        subject=reply.subject,
        text=reply.text or None,
        html=reply.html or None,
        headers=[
            CustomHeader("Auto-Submitted", "auto-replied"),  # RFC 3834, section 5
            CustomHeader("X-Auto-Response-Suppress", "All"),
        ],
        in_reply_to=reply.in_reply_to,
        references=reply.references,
    )


def _record_and_count_reply(
    transaction: DatabaseTransaction, rule_row: ColumnRow, parameters: dict[str, Any]
) -> None:
    """Record the sender that got the reply, and count it."""
    dialect, now = transaction.connection.dialect.name, parameters["now"]
    default_interval = transaction.environment.options.autoreply_interval
    interval = (
        default_interval if rule_row.interval is None else timedelta(seconds=rule_row.interval)
    )
    sender = {"autoreply_id": rule_row.id, "sender": parameters["sender"], "until": now + interval}
    if rule_row.address_id is not None:
        transaction.execute_statements([(_upsert_answered_sender(dialect), sender)])
        transaction.connection.execute(_increment_replies_statement(rule_row.address_id, now))
        return
    usage = {"user_id": parameters["user"], "kind": UsageKind.AUTOREPLIES, "used": 1}
    used = {**usage, "until": now + DAY, "now": now}
    transaction.execute_statements(
        [(_upsert_answered_sender(dialect), sender), (upsert_reply_count(dialect), used)]
    )


def _increment_replies_statement(address_id: int, now: datetime) -> Update:
    """Return the statement that increments the replies of an address."""
    running = col(Address.replied_until) > now
    until = case((running, col(Address.replied_until)), else_=now + DAY)
    reply_count = case((running, Address.replied + 1), else_=1)
    statement = update(Address).where(col(Address.id) == address_id)
    return statement.values(replied=reply_count, replied_until=until)
