"""Write uses and changes of credentials to the security log, and notify users of changes."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import TaskKind
from models.auth.security_log import (
    SecurityEventAction,
    SecurityEventResult,
)
from models.events import journal
from models.events.event_types import EventType
from models.runtime.environment import DatabaseTransaction, Environment
from resolvers.admin import task_steps
from resolvers.admin.redaction import redact_secrets
from resolvers.auth.credential_cache import CredentialCache, cache_of_database
from resolvers.auth.log_actors import (
    actor_from_rows,
    impersonator_or_viewer_name_sql,
    load_log_actor,
)
from resolvers.auth.security_event_rows import (
    NewSecurityEvent,
    SecurityEventRow,
    build_event_row,
    is_event_by_another,
    upsert_and_journal_rows,
    user_ids_needing_journal_entry,
)
from resolvers.context import Context

log = logging.getLogger(__name__)
BACKGROUND_WRITE_INTERVAL = 0.5  # seconds between two transactions that write background events
MAX_EVENTS_PER_STATEMENT = 1000  # events of one statement
ACTION_BY_MUTATION = {
    "apiKeyCreate": SecurityEventAction.API_KEY_CREATED,
    "apiKeyDelete": SecurityEventAction.API_KEY_DELETED,
    "apiKeyUpdate": SecurityEventAction.API_KEY_UPDATED,
    "bccRuleCreate": SecurityEventAction.BCC_RULE_CREATED,
    "bccRuleDelete": SecurityEventAction.BCC_RULE_DELETED,
    "bccRuleUpdate": SecurityEventAction.BCC_RULE_UPDATED,
    "connectorCreate": SecurityEventAction.CONNECTOR_CREATED,
    "connectorDelete": SecurityEventAction.CONNECTOR_DELETED,
    "connectorUpdate": SecurityEventAction.CONNECTOR_UPDATED,
}
# Actions of others that a user gets a message about.
REPORTED_ACTIONS = frozenset(
    {
        *(
            SecurityEventAction.TWO_FACTOR_DISABLED,
            SecurityEventAction.EXTERNAL_TWO_FACTOR_DISABLED,
            SecurityEventAction.EXTERNAL_TWO_FACTOR_ENABLED,
            SecurityEventAction.RECOVERY_CODES_CREATED,
        ),
        *(
            SecurityEventAction.TOTP_DISABLED,
            SecurityEventAction.TOTP_ENABLED,
            SecurityEventAction.WEBAUTHN_DELETED,
            SecurityEventAction.WEBAUTHN_REGISTERED,
        ),
        *(SecurityEventAction.API_KEY_CREATED, SecurityEventAction.API_KEY_UPDATED),
        *(
            SecurityEventAction.APP_PASSWORD_CREATED,
            SecurityEventAction.APP_PASSWORD_DELETED,
            SecurityEventAction.APP_PASSWORD_UPDATED,
        ),
        *(
            SecurityEventAction.BCC_RULE_CREATED,
            SecurityEventAction.BCC_RULE_DELETED,
            SecurityEventAction.BCC_RULE_UPDATED,
        ),
        *(
            SecurityEventAction.CONNECTOR_CREATED,
            SecurityEventAction.CONNECTOR_DELETED,
            SecurityEventAction.CONNECTOR_UPDATED,
        ),
        *(
            SecurityEventAction.FILTER_FORWARDING_ADDED,
            SecurityEventAction.FORWARDING_CHANGED,
            SecurityEventAction.ALLOWED_SENDERS_CHANGED,
            SecurityEventAction.SIEVE_FORWARDING_ADDED,
        ),
        *(
            SecurityEventAction.IDENTITY_BCC_CHANGED,
            SecurityEventAction.MAILBOX_SHARE_DELETED,
            SecurityEventAction.MAILBOX_SHARE_SET,
        ),
        SecurityEventAction.MESSAGE_REDIRECTED,
        SecurityEventAction.OAUTH_GRANT_REVOKED,
        *(SecurityEventAction.PASSWORD_CHANGED, SecurityEventAction.PASSWORD_RESET),
        *(
            SecurityEventAction.WEBHOOK_CREATED,
            SecurityEventAction.WEBHOOK_DELETED,
            SecurityEventAction.WEBHOOK_UPDATED,
        ),
    }
)


async def log_event_and_queue_notice(
    ctx: Context, session: AsyncSession, event: NewSecurityEvent
) -> int:
    """Write an event in the transaction of the action, which locks the user.

    Queues a message to the user about certain changes by others. Returns the row's id, or 0 if the
    log is switched off.
    """
    return next(iter(await insert_security_events_and_queue_notices(ctx, session, [event])), 0)


async def insert_security_events_and_queue_notices(
    ctx: Context, session: AsyncSession, events: Sequence[NewSecurityEvent]
) -> list[int]:
    """Write events in the transaction of their action, which locks their users.

    Queues messages to the users about certain changes by others. Returns the row ids in the order
    of the events; empty if the log is switched off. The number of statements does not grow with
    the events.
    """
    if not events or not ctx.environment.options.security_log_retention:
        return []
    connection = await session.connection()
    actor = None
    events_by_others = [event for event in events if is_event_by_another(ctx.viewer, event)]
    if events_by_others:
        actor = await load_log_actor(session, ctx.viewer)
    event_ids: list[int] = []
    now = ctx.environment.now()
    event_rows = [build_event_row(ctx, event, actor, now) for event in events]
    for start in range(0, len(events), MAX_EVENTS_PER_STATEMENT):
        part_rows = event_rows[start : start + MAX_EVENTS_PER_STATEMENT]
        user_ids = {line.values["user_id"] for line in part_rows}
        part_ids, positions = await connection.run_sync(
            upsert_and_journal_rows, part_rows, user_ids, now
        )
        event_ids += part_ids
        session.info["reached"] = {**journal.recorded_positions(session), **positions}
    if actor:
        await _queue_messages_to_users(ctx, session, events_by_others, actor.name)
    return event_ids


async def _queue_messages_to_users(
    ctx: Context,
    session: AsyncSession,
    events_by_others: Sequence[NewSecurityEvent],
    actor_name: str,
) -> None:
    """Queue messages to users about changes by others to their credentials or mail routing.

    Commands on the server itself send none: they have no client address.
    """
    if not ctx.client_ip:
        return
    for event in events_by_others:
        if (
            event.user_id
            and event.result is SecurityEventResult.SUCCESS
            and event.action in REPORTED_ACTIONS
        ):
            await queue_message_to_user(ctx, session, event, actor_name)


async def queue_message_to_user(
    ctx: Context, session: AsyncSession, event: NewSecurityEvent, actor_name: str | None = None
) -> None:
    """Queue a message that informs the user of this event; `actor_name` is the administrator."""
    order = {
        "action": event.action,
        "by": actor_name,
        "at": ctx.environment.now().isoformat(),
        "ip": ctx.client_ip or "",
        "detail": redact_secrets(dict(event.detail)),
    }
    (task,) = await task_steps.insert_tasks_and_wake_workers(
        ctx, session, TaskKind.SECURITY_NOTIFICATION, [order], user_id=event.user_id
    )
    await ctx.record_change(session, event.user_id or 0, EventType.TASK_CREATED, [task.id])


async def log_event_separately(ctx: Context, event: NewSecurityEvent) -> None:
    """Write an event in a separate transaction. Must not be called inside an open one.

    The user is locked only if a journal entry is due: a flood of equal failures locks the user once
    a minute. Events of a user that no longer exists are not written.
    """
    await _write_security_event_rows(
        ctx.environment, [await _load_actor_and_build_row(ctx, event, ctx.environment.now())]
    )


@dataclass(frozen=True, slots=True)
class UnwrittenSecurityEvent:
    """An event that waits to be written in the background, with its context and time."""

    ctx: Context
    event: NewSecurityEvent
    event_time: datetime


def log_event_in_background(ctx: Context, event: NewSecurityEvent) -> None:
    """Write an event in the background, as `log_event_separately` does.

    Events that arrive together share a transaction.
    """
    cache = cache_of_database(ctx.environment.database)
    cache.unwritten_events.append(
        UnwrittenSecurityEvent(replace(ctx), event, ctx.environment.now())
    )
    if len(cache.unwritten_events) == 1:
        cache.write_in_background(_write_background_events(ctx.environment, cache))


async def _write_background_events(environment: Environment, cache: CredentialCache) -> None:
    """Write the events that have arrived: the first at once, in a flood twice a second."""
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(cache.events_written_at + BACKGROUND_WRITE_INTERVAL - clock())
    events, cache.unwritten_events, cache.events_written_at = cache.unwritten_events, [], clock()
    event_rows = [
        await _load_actor_and_build_row(event.ctx, event.event, event.event_time)
        for event in events
    ]
    for start in range(0, len(event_rows), MAX_EVENTS_PER_STATEMENT):
        await _write_security_event_rows(
            environment, event_rows[start : start + MAX_EVENTS_PER_STATEMENT]
        )


async def _write_security_event_rows(
    environment: Environment, event_rows: Sequence[SecurityEventRow]
) -> None:
    """Write event rows in a transaction of their own; skip those of users that no longer exist."""
    if not environment.options.security_log_retention:
        return
    due_user_ids = await user_ids_needing_journal_entry(environment, event_rows)

    def write_in_transaction(transaction: DatabaseTransaction) -> None:
        _, positions = upsert_and_journal_rows(
            transaction.connection, event_rows, due_user_ids, environment.now()
        )
        transaction.recorded_positions.update(positions)

    try:
        await environment.run_transaction(write_in_transaction, *sorted(due_user_ids))
    except IntegrityError:
        if len(event_rows) > 1:
            for event_row in event_rows:
                await _write_security_event_rows(environment, [event_row])
        else:
            action = event_rows[0].values["action"]
            log.info("Security event of a deleted account dropped", extra={"action": action})


async def _load_actor_and_build_row(
    ctx: Context, event: NewSecurityEvent, event_time: datetime
) -> SecurityEventRow:
    """Return the row of an event, with the name of its actor from the database."""
    actor = None
    if is_event_by_another(ctx.viewer, event):
        actor = actor_from_rows(
            ctx.viewer,
            await ctx.environment.database.read(impersonator_or_viewer_name_sql(ctx.viewer)),
        )
    return build_event_row(ctx, event, actor, event_time)
