"""Run filters at delivery, for all recipients of a message together.

The filter result is the default of the delivery plan (mail/delivery/delivery_plan.py). Match counts
and webhook deliveries are written in the transaction that stores the message. Replies are sent
after it.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
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
from mail.filters import filter_compiler, filter_evaluation
from mail.filters.filter_evaluation import CompiledFilter, FilterTestMessage
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
    insert_deliveries_and_lanes_if_webhook_exists,
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
from models.users.roles import Role
from models.users.tables import User

log = logging.getLogger(__name__)

MAX_LOGGED_FILTERS = 10  # in the log entry about filters beyond the step limits


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


async def run_filters_if_any(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdicts: Sequence[RecipientVerdict],
) -> list[FilterResult]:
    """Return the filter result of each recipient, in the same order.

    Runs one SQL statement. Returns an empty list, without a statement, if no account has filters.
    """
    users = [
        verdict.recipient.user_id for verdict in recipient_verdicts if verdict.recipient.has_filters
    ]
    if not users:
        return []
    statement = _select_active_filters(environment.database.dialect)
    rules: defaultdict[int, list[CompiledFilter]] = defaultdict(list)
    for row in await environment.database.read_prepared(statement, {"users": users}):
        rules[row.user_id].append(filter_with_secret_targets_from_row(environment, row))
    looked = FilterTestMessage(incoming.sieve_message)
    works = {
        ("filters", user): partial(_run_filters_of_account_or_log_error, user, rule, looked)
        for user, rule in rules.items()
    }
    results_by_user = await inline_or_thread.run_inline_or_in_thread(
        works, in_memory=incoming.is_small_and_in_memory
    )
    return [
        results_by_user.get(("filters", verdict.recipient.user_id), NO_FILTERS)
        for verdict in recipient_verdicts
    ]


def _run_filters_of_account_or_log_error(
    user_id: int, rules: Sequence[CompiledFilter], test_message: FilterTestMessage
) -> FilterResult:
    """Return the filter result of an account. On an unexpected error the filters have no effect."""
    try:
        result = filter_evaluation.combined_result_of_matching_filters(rules, test_message)
    except Exception:
        log.exception("Could not run the filters", extra={"user": user_id})
        return NO_FILTERS
    if result.stopped_filter_ids:
        extra = {"user": user_id, "filters": result.stopped_filter_ids[:MAX_LOGGED_FILTERS]}
        log.warning("Filters did not run to their end: too many steps", extra=extra)
    return result


def filter_with_secret_targets_from_row(
    environment: Environment, filter_row: ColumnRow
) -> CompiledFilter:
    """Return a compiled filter from its row, with the secret URLs of its targets."""
    try:
        relay_urls = forward_targets.decrypt_relay_urls(
            environment, filter_row.id, filter_row.relays
        )
    except DecryptionError:  # the relay refuses the sign-in, and the queue reports it
        log.warning("The password of a relay can't be decrypted", extra={"filter": filter_row.id})
        relay_urls = {}
    targets = [
        FilterTarget(filter_row.id, target, relay_urls.get(target, target))
        for target in filter_row.forward_to
    ]
    return CompiledFilter(filter_row.id, filter_row.query, filter_row.action, targets)


def count_matches_and_insert_webhook_deliveries(
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


def _insert_webhook_deliveries(
    transaction: DatabaseTransaction,
    user_id: int,
    filter_result: FilterResult,
    event_body: dict[str, Any],
) -> None:
    """Insert webhook deliveries for the active webhooks of the account.

    A webhook with a domain gets none if the account has left the domain, or is now that of another
    administrator.
    """
    is_in_reach = (col(Webhook.domain_id) == col(User.domain_id)) & (
        (col(User.role) == Role.USER) | (col(Webhook.made_by) == col(User.id))
    )
    hooks = (
        select(col(Webhook.id), col(User.username))
        .join(User, col(User.id) == col(Webhook.user_id))
        .where(
            col(Webhook.id).in_(filter_result.webhook_ids),
            col(Webhook.user_id) == user_id,
            col(Webhook.active),
            col(Webhook.domain_id).is_(None) | is_in_reach,
        )
    )
    now, number = transaction.environment.now(), transaction.lock_stream_and_read_position(user_id)
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
        insert_deliveries_and_lanes_if_webhook_exists(transaction.connection, now, rows)
        transaction.workers_to_wake.add(WEBHOOKS)


def _event_body(
    filter_result: FilterResult, message: StorableMessage, inserted: InsertedMessage | None
) -> dict[str, Any]:
    """Return the event body. The message is named only by ID."""
    body = {"message": inserted.message_id if inserted else None, "size": message.size}
    objects = [{"id": key, **body} for key in filter_result.matched_filter_ids]
    return {"domain": None, "objects": objects, "origin": None}


async def send_first_filter_reply_if_addressed(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient_verdict: RecipientVerdict,
    filter_result: FilterResult,
    mailboxes: ScriptMailboxes,
) -> None:
    """Send the reply of the first matching filter, under the rules of all automatic replies."""
    reply = filter_result.replies[0]
    recipient = recipient_verdict.recipient
    message = incoming.message
    header_addresses = [
        header_address.address for header_address in (*message.facts.to, *message.facts.cc)
    ]
    if not await is_account_in_header_addresses(
        environment, (recipient.user_id, recipient.address_id), recipient.address, header_addresses
    ):
        AUTOREPLIES.add(NoReplyReason.NOT_ADDRESSED.metric_label)
        return
    trigger = AutoreplyTrigger(incoming.envelope_sender, recipient.address, message.facts.subject)
    rule = AutoreplyRule(subject=reply.subject, text=reply.text, html=reply.html_text)
    words = reply_content_unless_empty(rule, trigger)
    if isinstance(words, NoReplyReason):
        return
    action = VacationReply(
        recipient=incoming.envelope_sender,
        handle=filter_compiler.vacation_handle(reply.filter_id),
        interval_seconds=int(environment.options.autoreply_interval.total_seconds()),
        subject=words.subject,
        reason=filter_compiler.reply_body_of_text_and_html(reply.text, reply.html_text),
        is_mime=bool(reply.html_text),
    )
    await sieve_vacation.send_vacation_reply_if_allowed(
        environment, incoming, recipient_verdict, action, mailboxes
    )
