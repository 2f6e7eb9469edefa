"""Create, update, test, replay and delete webhooks, and read their deliveries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import (
    delete,
    func,
    select,
    update,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import parse_http_target
from models.admin.tasks import Task
from models.auth.security_log import SecurityEventAction
from models.errors import Forbidden, InvalidInput, LimitReached, NotFound, require_all_found
from models.events.event_types import EventType, WebhookEventType
from models.events.journal import PLATFORM, StreamPositions
from models.events.wakeups import WEBHOOKS
from models.notifications.webhooks import (
    DELIVERY_LIFETIME,
    Webhook,
    WebhookDeliveryState,
    WebhookLane,
    insert_deliveries_and_lanes_if_webhook_exists,
)
from models.quantities import describe_duration
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_managed_user
from resolvers.admin import audit_log, task_steps
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.credential_makers import load_owner_id_of_viewer
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.notifications.webhook_lanes import TEST_STREAM_ID
from resolvers.notifications.webhook_lists import (
    is_visible_webhook,
    load_visible_webhooks_by_id,
)
from resolvers.notifications.webhook_replay import TASK_KIND, validated_replay_order
from resolvers.notifications.webhook_signatures import generate_secret, secret_purpose

MAX_WEBHOOKS = 100  # of one user, of one domain, and without either
MAX_OVERLAP = timedelta(days=7)  # the old secret also signs so long


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook for a user, a domain, or everything."""

    types: Sequence[WebhookEventType] | None  # None: all
    url: str
    user_id: int | None = None
    domain_id: int | None = None
    active: bool = True


class CreatedWebhook(NamedTuple):
    """The id of a new webhook, and its secret, which is shown only once."""

    id: int
    secret: str


async def create_webhook(ctx: Context, new_webhook: NewWebhook) -> CreatedWebhook:
    """Create a webhook; returns its id and its secret, which is shown only here.

    Raises InvalidInput, NotFound, LimitReached at 100 webhooks, and Forbidden for an account above
    the viewer.
    """
    _require_valid_types_and_url(ctx, new_webhook.types, new_webhook.url)
    domain_id = await _require_permitted_scope_domain_id(ctx, new_webhook)
    # the webhook of a DOMAIN_ADMIN covers a user only while it is in the domain
    is_bound_to_domain = not new_webhook.user_id or ctx.viewer.role is Role.DOMAIN_ADMIN
    environment, webhook_id = ctx.environment, ctx.environment.new_id()
    secret = generate_secret(environment)
    row = Webhook(
        id=webhook_id,
        user_id=new_webhook.user_id,
        domain_id=domain_id if is_bound_to_domain else None,
        types=None if new_webhook.types is None else list(dict.fromkeys(new_webhook.types)),
        url=new_webhook.url,
        active=new_webhook.active,
        secret=environment.secret_box.encrypt(secret, secret_purpose(webhook_id)),
        since=environment.now(),
        made_by=await load_owner_id_of_viewer(ctx),
        created_at=environment.now(),
    )
    async with ctx.write_session(PLATFORM) as session:
        await _require_below_webhook_limit(ctx, row)
        session.add(row)
        await session.flush()
        logged_after = _logged_values(row, ("types", "url", "active"))
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            NewAuditLogEntry("webhookCreate", "Webhook", webhook_id, domain_id, None, logged_after),
        )
        await _write_to_security_logs(ctx, SecurityEventAction.WEBHOOK_CREATED, [row])
    _wake_workers(ctx)
    return CreatedWebhook(webhook_id, secret)


def _require_valid_types_and_url(
    ctx: Context, types: Sequence[WebhookEventType] | None, url: str | None
) -> None:
    if types is not None and not types:
        text = "At least one event type is required. Null means all."
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["types"])
    if url is not None:
        allow_private = ctx.environment.options.webhooks_allow_private_networks
        parse_http_target(url, allow_private=allow_private)


async def _require_permitted_scope_domain_id(ctx: Context, new_webhook: NewWebhook) -> int | None:
    """Return the domain of the administrators who see the webhook; None if only an ADMIN does.

    Raises NotFound, InvalidInput unless it has one scope, and Forbidden for an account above the
    viewer.
    """
    viewer = ctx.viewer
    if new_webhook.user_id and new_webhook.domain_id:
        text = "`user` and `domain` can't be combined."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["domain"])
    if new_webhook.user_id:
        statement = select(col(User.domain_id), is_managed_user(ctx).label("free"))
        rows = await ctx.read(statement.where(col(User.id) == new_webhook.user_id))
        for row in rows:
            if viewer.role.includes(Role.ADMIN):
                if not row.free:
                    error_text = "The account has a higher role than the caller."
                    raise Forbidden(error_text, requires=Role.ROOT, path=["user"])
                return None if row.domain_id is None else int(row.domain_id)
            if row.free and row.domain_id in viewer.administered_domains:
                return int(row.domain_id)
        raise NotFound(str(new_webhook.user_id), path=["user"])
    if new_webhook.domain_id:
        return new_webhook.domain_id
    if not viewer.role.includes(Role.ADMIN):
        if len(viewer.administered_domains) == 1:
            return min(viewer.administered_domains)
        raise InvalidInput(
            "A domain is required.", constraint=ValidationConstraint.REQUIRED, path=["domain"]
        )
    return None


async def _require_below_webhook_limit(ctx: Context, webhook_row: Webhook) -> None:
    is_counted = col(Webhook.user_id).is_not_distinct_from(webhook_row.user_id)
    if webhook_row.user_id is None:
        is_counted &= col(Webhook.domain_id).is_not_distinct_from(webhook_row.domain_id)
    (count_row,) = await ctx.read(select(func.count().label("many")).where(is_counted))
    if count_row.many >= MAX_WEBHOOKS:
        raise LimitReached(
            f"At most {MAX_WEBHOOKS} webhooks are allowed.",
            limit=MAX_WEBHOOKS,
            used=count_row.many,
            path=["types"],
        )


def _logged_values(webhook_row: Any, column_names: Sequence[str]) -> dict[str, Any]:
    """Return the values for the audit log; of a URL only the host."""
    logged = {name: getattr(webhook_row, name) for name in column_names}
    if "url" in logged:
        logged["url"] = urlsplit(logged["url"]).hostname
    return logged


async def _require_and_lock_webhooks(
    ctx: Context, session: AsyncSession, webhook_ids: Sequence[int], *, path: str = "ids"
) -> list[ColumnRow]:
    """Lock these webhooks and return them in order. Raises NotFound or Forbidden."""
    statement = select(*select_columns(Webhook)).where(
        col(Webhook.id).in_(webhook_ids), is_visible_webhook(ctx)
    )
    statement_locked = statement.order_by(col(Webhook.id)).with_for_update()
    rows = {
        row.id: row for row in (await (await session.connection()).execute(statement_locked)).all()
    }
    require_all_found(webhook_ids, rows, path=[path])
    await _require_not_above_viewer(ctx, list(rows.values()), path)
    return [rows[key] for key in dict.fromkeys(webhook_ids)]


async def _require_not_above_viewer(ctx: Context, webhooks: Sequence[ColumnRow], path: str) -> None:
    """Raise Forbidden if one of these webhooks belongs to a ROOT, and the viewer is an ADMIN.

    An ADMIN sees all webhooks; those that a DOMAIN_ADMIN sees are of accounts that they manage.
    """
    viewer, user_ids = ctx.viewer, {row.user_id for row in webhooks if row.user_id}
    if viewer.role is not Role.ADMIN or not user_ids:
        return
    root_users = select(col(User.id)).where(col(User.id).in_(user_ids), col(User.role) == Role.ROOT)
    if await ctx.read(root_users):
        error_text = "The webhook belongs to an account with a higher role than the caller."
        raise Forbidden(error_text, requires=Role.ROOT, path=[path])


async def _domain_id_by_webhook(
    ctx: Context, webhooks: Sequence[ColumnRow]
) -> dict[int, int | None]:
    """Return the domain of each webhook, for the audit log of its administrators."""
    user_ids = {row.user_id for row in webhooks if row.user_id}
    statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(user_ids))
    domain_by_user = (
        {row.id: row.domain_id for row in await ctx.read(statement)} if user_ids else {}
    )
    return {row.id: row.domain_id or domain_by_user.get(row.user_id) for row in webhooks}


async def update_webhooks(ctx: Context, ids: Sequence[int], values: Mapping[str, Any]) -> None:
    """Change types, URL or activity of these webhooks, all or none.

    An activated webhook receives events from now on and is tried at once. Raises NotFound,
    InvalidInput or Forbidden.
    """
    if not values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    _require_valid_types_and_url(ctx, values.get("types"), values.get("url"))
    now = ctx.environment.now()
    maker_id = await load_owner_id_of_viewer(ctx)
    async with ctx.write_session(PLATFORM) as session:
        rows = await _require_and_lock_webhooks(ctx, session, ids)
        connection = await session.connection()
        for row in rows:
            changed_values = {
                name: value for name, value in values.items() if getattr(row, name) != value
            }
            reset_values: dict[str, Any] = {
                "failures": 0,
                "retry_at": None,
                "made_by": maker_id,
            }
            if changed_values.get("active"):
                reset_values["since"] = now
            statement = update(Webhook).where(col(Webhook.id) == row.id)
            await connection.execute(statement.values({**changed_values, **reset_values}))
        domain_ids = await _domain_id_by_webhook(ctx, rows)
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            *(
                NewAuditLogEntry(
                    "webhookUpdate",
                    "Webhook",
                    row.id,
                    domain_ids[row.id],
                    _logged_values(row, tuple(values)),
                    _logged_values(_AttributeValues(values), tuple(values)),
                )
                for row in rows
            ),
        )
        await _write_to_security_logs(ctx, SecurityEventAction.WEBHOOK_UPDATED, rows, values)
    _wake_workers(ctx)


class _AttributeValues:
    """The values of a mapping as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)


async def rotate_secret(ctx: Context, webhook_id: int, overlap: timedelta) -> str:
    """Replace the secret of a webhook and return it. The old one also signs during `overlap`.

    Raises InvalidInput if that is longer than seven days, NotFound or Forbidden.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        text = f"The time must be at most {describe_duration(MAX_OVERLAP)}."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["overlap"])
    environment, secret = ctx.environment, generate_secret(ctx.environment)
    async with ctx.write_session(PLATFORM) as session:
        (row,) = await _require_and_lock_webhooks(ctx, session, [webhook_id], path="webhook")
        values = {
            "secret": environment.secret_box.encrypt(secret, secret_purpose(webhook_id)),
            "old_secret": row.secret if overlap else None,
            "old_until": environment.now() + overlap if overlap else None,
        }
        connection = await session.connection()
        await connection.execute(
            update(Webhook).where(col(Webhook.id) == webhook_id).values(values)
        )
        domain_ids = await _domain_id_by_webhook(ctx, [row])
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            NewAuditLogEntry("webhookSecretRotate", "Webhook", webhook_id, domain_ids[webhook_id]),
        )
    return secret


async def delete_webhooks(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these webhooks with their deliveries, all or none. Raises NotFound or Forbidden."""
    async with ctx.write_session(PLATFORM) as session:
        rows = await _require_and_lock_webhooks(ctx, session, ids)
        await delete_and_log_webhooks(ctx, session, rows)


async def delete_and_log_webhooks(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow]
) -> None:
    """Delete webhooks with their deliveries, with entries in the admin and security logs."""
    domain_ids = await _domain_id_by_webhook(ctx, rows)
    statement = delete(Webhook).where(col(Webhook.id).in_([row.id for row in rows]))
    await (await session.connection()).execute(statement)
    entries = (
        NewAuditLogEntry(
            "webhookDelete",
            "Webhook",
            row.id,
            domain_ids[row.id],
            _logged_values(row, ("types", "url", "active")),
        )
        for row in rows
    )
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
    await _write_to_security_logs(ctx, SecurityEventAction.WEBHOOK_DELETED, rows)


async def _write_to_security_logs(
    ctx: Context,
    action: SecurityEventAction,
    webhooks: Sequence[Any],
    new_values: Mapping[str, Any] | None = None,
) -> None:
    """Log webhooks for accounts of others to the security logs, and notify the accounts.

    `new_values` replace columns of the webhooks. A webhook for a whole domain or for the platform
    is only in the admin log.
    """
    events = []
    for webhook in webhooks:
        if webhook.user_id and webhook.user_id != ctx.viewer.user_id:
            url = (new_values or {}).get("url") or webhook.url
            detail = {"host": urlsplit(url).hostname or ""}
            events.append(
                NewSecurityEvent(action, webhook.user_id, target=str(webhook.id), detail=detail)
            )
    if events:
        async with ctx.write_session(*{event.user_id or 0 for event in events}) as session:
            await security_log.insert_security_events_and_queue_notices(ctx, session, events)


async def queue_test_events(ctx: Context, ids: Sequence[int]) -> None:
    """Queue a test event for these webhooks, also for inactive ones.

    Raises NotFound or Forbidden.
    """
    now = ctx.environment.now()
    async with ctx.write_session(PLATFORM) as session:
        rows = await _require_and_lock_webhooks(ctx, session, ids)
        connection = await session.connection()
        await connection.run_sync(
            insert_deliveries_and_lanes_if_webhook_exists,
            now,
            [_test_event_row(ctx, row.id) for row in rows],
        )
        due_first = min(row.created_at for row in rows)  # before all other lanes
        lanes = (col(WebhookLane.webhook_id).in_(ids), col(WebhookLane.stream_id) == TEST_STREAM_ID)
        await connection.execute(update(WebhookLane).where(*lanes).values(due_at=due_first))
        statement = update(Webhook).where(col(Webhook.id).in_(ids))
        await connection.execute(statement.values(retry_at=None))
        domain_ids = await _domain_id_by_webhook(ctx, rows)
        log_entries = (
            NewAuditLogEntry("webhookTest", "Webhook", row.id, domain_ids[row.id]) for row in rows
        )
        await audit_log.insert_audit_log_entries(ctx, session, *log_entries)
    _wake_workers(ctx)


def _wake_workers(ctx: Context) -> None:
    """Wake the webhook workers after the transaction."""
    ctx.call_after_commit_or_now(lambda: ctx.environment.wakeups.announce({WEBHOOKS: 0}))


def _test_event_row(ctx: Context, webhook_id: int) -> dict[str, Any]:
    delivery_id, now = ctx.environment.new_id(), ctx.environment.now()
    return {
        "id": delivery_id,
        "webhook_id": webhook_id,
        "stream_id": TEST_STREAM_ID,
        "number": 0,
        "event": f"evt_ping_{delivery_id}",
        "type": EventType.PING,
        "at": now,
        "body": {"user": None, "domain": None, "objects": [], "origin": ctx.origin},
        "state": WebhookDeliveryState.PENDING,
        "attempt": 0,
        "expires_at": now + DELIVERY_LIFETIME,
    }


async def queue_replay_task(ctx: Context, webhook_id: int, since: StreamPositions) -> Task:
    """Queue a task that repeats the events after a position, as far as the webhook covers them.

    Raises NotFound, Forbidden, and InvalidInput if the position is unknown or expired.
    """
    (row,) = await ctx.load_many(load_visible_webhooks_by_id, [webhook_id])
    if row is None:
        raise NotFound(str(webhook_id), path=["webhook"])
    await _require_not_above_viewer(ctx, [row], "webhook")
    order = await validated_replay_order(ctx, row, since)
    total = sum(order["until"][stream] - order["after"][stream] for stream in order["until"])
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await task_steps.insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order], total_count=total
        )
        await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
        domain_ids = await _domain_id_by_webhook(ctx, [row])
        log_entry = NewAuditLogEntry(
            "webhookReplay", "Webhook", webhook_id, domain_ids[webhook_id], None, {"events": total}
        )
        await audit_log.insert_audit_log_entries(ctx, session, log_entry)
    return task
