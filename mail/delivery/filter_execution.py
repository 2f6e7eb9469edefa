"""Run filters at delivery, for all recipients of a message together.

The filter result is the default of the delivery plan (mail/delivery/delivery_plan.py). Match counts
and webhook deliveries are written in the transaction that stores the message. Replies are sent
after it.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Select, select, update
from sqlmodel import col

from mail.autoreply import (
    AutoreplyRule,
    AutoreplyTrigger,
    NoReplyReason,
    is_account_in_header_addresses,
    reply_content_unless_empty,
    sieve_vacation,
)
from mail.autoreply.reply_sender import AUTOREPLIES
from mail.filters import filter_compiler
from mail.filters.filter_compiler import CompiledFilter, FilterTestMessage
from mail.filters.filter_result import NO_FILTERS, FilterResult, FilterTarget
from mail.filters.script_environment import ScriptMailboxes
from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.recipients import forward_targets
from mail.runtime import inline_or_thread
from mail.sieve import VacationReply
from mail.storage.message_insert import InsertedMessage
from mail.storage.storable_message import StorableMessage
from models.events.event_types import EventType
from models.events.wakeups import WEBHOOKS
from models.filters.tables import Filter
from models.notifications.webhooks import (
    DELIVERY_LIFETIME,
    Webhook,
    WebhookDeliveryState,
    insert_deliveries_of_existing_webhooks,
)
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.users.tables import User

log = logging.getLogger(__name__)


@prepare_cached
def _select_active_filters(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the active filters of `users` in their order."""
    return (
        select(
            *select_columns(Filter, {"id", "user_id", "query", "action", "forward_to", "relays"})
        )
        .where(is_in_parameter(dialect, col(Filter.user_id), "users"), col(Filter.active))
        .order_by(col(Filter.position), col(Filter.id))
    )


_INCREMENT_MATCH_COUNT = PreparedStatement(
    update(core_table(Filter))
    .where(
        col(Filter.id) == integer_parameter("id"), col(Filter.user_id) == integer_parameter("user")
    )
    .values(match_count=col(Filter.match_count) + 1)
)


async def run_filters(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdicts: Sequence[RecipientVerdict],
) -> list[FilterResult]:
    """Return the filter result of each recipient, in the same order.

    Runs one SQL statement. Returns an empty list, without a statement, if no account has filters.
    """
    users = [each.recipient.user_id for each in recipient_verdicts if each.recipient.has_filters]
    if not users:
        return []
    asked = _select_active_filters(environment.database.dialect)
    rules: defaultdict[int, list[CompiledFilter]] = defaultdict(list)
    for row in await environment.database.read_prepared(asked, {"users": users}):
        rules[row.user_id].append(compiled_filter_from_row(environment, row))
    looked = FilterTestMessage(incoming.sieve_message)
    works = {
        ("filters", user): partial(_run_filters_of_account, user, it, looked)
        for user, it in rules.items()
    }
    found = await inline_or_thread.run_inline_or_in_thread(
        works, in_memory=incoming.is_small_and_in_memory
    )
    return [
        found.get(("filters", each.recipient.user_id), NO_FILTERS) for each in recipient_verdicts
    ]


def _run_filters_of_account(
    user_id: int, rules: Sequence[CompiledFilter], test_message: FilterTestMessage
) -> FilterResult:
    """Return the filter result of an account. On an unexpected error the filters have no effect."""
    try:
        return filter_compiler.filter_result(rules, test_message)
    except Exception:
        log.exception("filters could not be run", extra={"user": user_id})
        return NO_FILTERS


def compiled_filter_from_row(environment: Environment, filter_row: ColumnRow) -> CompiledFilter:
    """Return a compiled filter from its row, with the secret URLs of its targets."""
    try:
        known = forward_targets.decrypt_relay_urls(environment, filter_row.id, filter_row.relays)
    except DecryptionError:  # the relay refuses the sign-in, and the queue reports it
        log.warning("a relay's password cannot be opened", extra={"filter": filter_row.id})
        known = {}
    to = [
        FilterTarget(filter_row.id, shown, known.get(shown, shown))
        for shown in filter_row.forward_to
    ]
    return CompiledFilter(filter_row.id, filter_row.query, filter_row.action, to)


def record_matches_and_webhooks(
    transaction: DatabaseTransaction,
    user_id: int,
    filter_result: FilterResult,
    message: StorableMessage,
    inserted: InsertedMessage | None,
) -> None:
    """Count the filters that matched and insert the deliveries of their webhooks."""
    transaction.execute_statements(
        [
            (_INCREMENT_MATCH_COUNT, {"id": key, "user": user_id})
            for key in filter_result.matched_filter_ids
        ]
    )
    if filter_result.webhook_ids:
        _insert_webhook_deliveries(
            transaction, user_id, filter_result, _event_body(filter_result, message, inserted)
        )


def without_recorded_actions(filter_result: FilterResult) -> FilterResult:
    """Return the filter result without matches and webhooks that are already recorded."""
    return replace(filter_result, matched_filter_ids=(), webhook_ids=())


def _insert_webhook_deliveries(
    transaction: DatabaseTransaction,
    user_id: int,
    filter_result: FilterResult,
    event_body: dict[str, Any],
) -> None:
    """Insert webhook deliveries for the active webhooks of the account."""
    hooks = (
        select(col(Webhook.id), col(User.username))
        .join(User, col(User.id) == col(Webhook.user_id))
        .where(
            col(Webhook.id).in_(filter_result.webhook_ids),
            col(Webhook.user_id) == user_id,
            col(Webhook.active),
        )
    )
    now, number = transaction.environment.now(), transaction.lock_stream(user_id)
    rows = [
        {
            "id": transaction.environment.new_id(),
            "webhook_id": row.id,
            "stream_id": user_id,
            "number": number,
            "event": f"evt_{user_id}_{transaction.environment.new_id()}-filter",
            "type": EventType.FILTER_MATCHED,
            "at": now,
            "body": {**event_body, "user": {"id": user_id, "username": row.username}},
            "state": WebhookDeliveryState.PENDING,
            "attempt": 0,
            "expires_at": now + DELIVERY_LIFETIME,
        }
        for row in transaction.connection.execute(hooks)
    ]
    if rows:
        insert_deliveries_of_existing_webhooks(transaction.connection, now, rows)
        transaction.workers_to_wake.add(WEBHOOKS)


def _event_body(
    filter_result: FilterResult, message: StorableMessage, inserted: InsertedMessage | None
) -> dict[str, Any]:
    """Return the event body. The message is named only by ID."""
    told = {"message": inserted.message_id if inserted else None, "size": message.size}
    objects = [{"id": key, **told} for key in filter_result.matched_filter_ids]
    return {"domain": None, "objects": objects, "origin": None}


async def send_first_filter_reply(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdict: RecipientVerdict,
    filter_result: FilterResult,
    mailboxes: ScriptMailboxes,
) -> None:
    """Send the reply of the first matching filter, under the rules of all automatic replies."""
    reply, to, letter = (
        filter_result.replies[0],
        recipient_verdict.recipient,
        incoming.message,
    )
    named = [each.address for each in (*letter.facts.to, *letter.facts.cc)]
    if not await is_account_in_header_addresses(
        environment, (to.user_id, to.address_id), to.address, named
    ):
        AUTOREPLIES.add(NoReplyReason.NOT_ADDRESSED.metric_label)
        return
    came = AutoreplyTrigger(incoming.envelope_sender, to.address, letter.facts.subject)
    rule = AutoreplyRule(subject=reply.subject, text=reply.text, html=reply.html_text)
    words = reply_content_unless_empty(rule, came)
    if isinstance(words, NoReplyReason):
        return
    action = VacationReply(
        recipient=incoming.envelope_sender,
        handle=filter_compiler.vacation_handle(reply.filter_id),
        interval_seconds=int(environment.options.autoreply_interval.total_seconds()),
        subject=words.subject,
        reason=filter_compiler.reply_body(reply.text, reply.html_text),
        is_mime=bool(reply.html_text),
    )
    await sieve_vacation.send_vacation_reply(
        environment, incoming, recipient_verdict, action, mailboxes
    )
