"""Create, update, test, replay and delete webhooks, and read their deliveries."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, String, cast, delete, false, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import parse_target
from models.admin.tasks import Task
from models.errors import Forbidden, InvalidInput, LimitReached, NotFound, require_all_found
from models.events.event_types import WEBHOOK_ONLY_EVENT_TYPES, EventType
from models.events.journal import PLATFORM, StreamPositions
from models.events.wakeups import WEBHOOKS
from models.notifications.webhooks import (
    DELIVERY_LIFETIME,
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookLane,
    insert_deliveries_of_existing_webhooks,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_managed_user
from resolvers.admin import audit_log, task_steps
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.notifications.webhook_replay import TASK_KIND, validated_replay_order
from resolvers.notifications.webhook_signatures import generate_secret, secret_purpose
from resolvers.notifications.webhook_worker import TEST_STREAM_ID
from resolvers.pagination import PageScan, read_by_keys

UNSELECTABLE_EVENT_TYPES = WEBHOOK_ONLY_EVENT_TYPES | {EventType.RESYNC}
LIST_ORDERING = "webhooks"
DELIVERY_ORDERING = "webhook-deliveries"
MAX_WEBHOOKS = 100  # of one user, of one domain, and without either
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(Webhook)) - {
    "secret",
    "old_secret",
}
MAX_OVERLAP = timedelta(days=7)  # the old secret also signs so long


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook for a user, a domain, or everything."""

    types: Sequence[EventType] | None  # None: all
    url: str
    user_id: int | None = None
    domain_id: int | None = None
    active: bool = True


@dataclass(frozen=True, slots=True)
class WebhookWhere:
    """The conditions of a list of webhooks; all of them hold."""

    type: EventType | None = None  # webhooks that receive events of this type
    user_id: int | None = None


def _is_visible(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for webhooks that the viewer sees."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administered_domains:
        return false()
    managed_user_ids = select(col(User.id)).where(
        is_managed_user(ctx), col(User.domain_id).in_(viewer.administered_domains)
    )
    return col(Webhook.domain_id).in_(viewer.administered_domains) | col(Webhook.user_id).in_(
        managed_user_ids
    )


async def load_visible_webhooks_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load webhooks, in the order of the ids; None if the viewer does not see one."""
    visible_webhooks = select(*select_columns(Webhook, VISIBLE_COLUMNS)).where(_is_visible(ctx))
    return await read_by_keys(ctx, visible_webhooks, col(Webhook.id), ids)


def _visible_and_filtered_conditions(
    ctx: Context, where: WebhookWhere
) -> list[ColumnElement[bool]]:
    terms = [_is_visible(ctx)]
    if where.user_id is not None:
        terms.append(col(Webhook.user_id) == where.user_id)
    if where.type is not None:
        types = col(Webhook.types)
        has_type = cast(types, String).contains(f'"{where.type.value}"', autoescape=True)
        terms.append(types.is_(None) | has_type)
    return terms


async def read_webhook_page(
    ctx: Context, where: WebhookWhere, page_request: PageRequest, columns: Collection[str]
) -> Page[ColumnRow]:
    """Read a page of webhooks, in the order of creation."""
    names = VISIBLE_COLUMNS.intersection(columns) | {"created_at", "id"}
    rows = select(*select_columns(Webhook, names)).where(
        *_visible_and_filtered_conditions(ctx, where)
    )
    order_columns = (col(Webhook.created_at), col(Webhook.id))
    return await pagination.read_page(
        ctx, PageScan(rows, page_request, order_columns, is_descending=False)
    )


async def count_webhooks(ctx: Context, where: WebhookWhere) -> int:
    """Count the webhooks of a list."""
    many = select(func.count().label("many")).select_from(Webhook)
    (row,) = await ctx.read(many.where(*_visible_and_filtered_conditions(ctx, where)))
    return int(row.many)


@dataclass(frozen=True, slots=True)
class DeliveryPageKey:
    """A page of the deliveries of a webhook, which the viewer is known to see."""

    webhook_id: int
    page_request: PageRequest
    columns: frozenset[str]


async def load_delivery_pages_by_webhook(
    ctx: Context, page_keys: list[DeliveryPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the deliveries of webhooks, newest first, with one statement."""
    column_names = frozenset({"webhook_id", "id"}).union(*(one.columns for one in page_keys))
    order_columns = (col(WebhookDelivery.webhook_id), col(WebhookDelivery.id))
    statement = select(*select_columns(WebhookDelivery, column_names))
    scans = [
        PageScan(
            statement.where(col(WebhookDelivery.webhook_id) == one.webhook_id),
            one.page_request,
            order_columns,
            True,
        )
        for one in page_keys
    ]
    return await pagination.read_pages(ctx, scans)


async def count_deliveries_by_webhook(ctx: Context, page_keys: list[DeliveryPageKey]) -> list[int]:
    """Count the stored deliveries of each webhook."""
    webhook_ids = {one.webhook_id for one in page_keys}
    statement = select(col(WebhookDelivery.webhook_id), func.count().label("many"))
    statement = statement.where(col(WebhookDelivery.webhook_id).in_(webhook_ids))
    rows = await ctx.read(statement.group_by(col(WebhookDelivery.webhook_id)))
    found = {row.webhook_id: row.many for row in rows}
    return [found.get(one.webhook_id, 0) for one in page_keys]


async def load_visible_deliveries_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load deliveries, in the order of the ids; None if the viewer does not see one."""
    visible_webhook_ids = select(col(Webhook.id)).where(_is_visible(ctx))
    visible_deliveries = select(*select_columns(WebhookDelivery)).where(
        col(WebhookDelivery.webhook_id).in_(visible_webhook_ids)
    )
    return await read_by_keys(ctx, visible_deliveries, col(WebhookDelivery.id), ids)


async def create_webhook(ctx: Context, new: NewWebhook) -> tuple[int, str]:
    """Create a webhook; returns its id and its secret, which is shown only here.

    Raises Invalid, NotFound, LimitReached at 100 webhooks, and Forbidden for an account above the
    viewer.
    """
    _check_types_and_url(ctx, new.types, new.url)
    domain_id = await _responsible_domain_id(ctx, new)
    # the webhook of a DOMAIN_ADMIN covers a user only while it is in the domain
    is_bound_to_domain = not new.user_id or ctx.viewer.role is Role.DOMAIN_ADMIN
    environment, webhook_id = ctx.environment, ctx.environment.new_id()
    secret = generate_secret(environment)
    row = Webhook(
        id=webhook_id,
        user_id=new.user_id,
        domain_id=domain_id if is_bound_to_domain else None,
        types=None if new.types is None else list(dict.fromkeys(new.types)),
        url=new.url,
        active=new.active,
        secret=environment.secret_box.encrypt(secret, secret_purpose(webhook_id)),
        since=environment.now(),
        created_at=environment.now(),
    )
    async with ctx.write_session(PLATFORM) as session:
        await _check_webhook_count(ctx, row)
        session.add(row)
        await session.flush()
        logged_after = _logged_values(row, ("types", "url", "active"))
        await audit_log.log_changes(
            ctx,
            session,
            NewAuditLogEntry("webhookCreate", "Webhook", webhook_id, domain_id, None, logged_after),
        )
    _wake_workers(ctx)
    return webhook_id, secret


def _check_types_and_url(ctx: Context, types: Sequence[EventType] | None, url: str | None) -> None:
    if types is not None:
        if not types:
            text = "at least one type; null means all"
            raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["types"])
        for index, event_type in enumerate(types):
            if event_type in UNSELECTABLE_EVENT_TYPES:
                text = f"{event_type.value} is sent without being selected, or never"
                raise InvalidInput(
                    text, constraint=ValidationConstraint.UNSUPPORTED, path=["types", str(index)]
                )
    if url is not None:
        parse_target(url, allow_private=ctx.environment.options.webhooks_allow_private_networks)


async def _responsible_domain_id(ctx: Context, new: NewWebhook) -> int | None:
    """Return the domain of the administrators who see the webhook; None if only an ADMIN does.

    Raises NotFound, Invalid if the scope is missing or double, and Forbidden for an account above
    the viewer.
    """
    viewer = ctx.viewer
    if new.user_id and new.domain_id:
        text = "user and domain can't be combined"
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["domain"])
    if new.user_id:
        statement = select(col(User.domain_id), is_managed_user(ctx).label("free"))
        rows = await ctx.read(statement.where(col(User.id) == new.user_id))
        for row in rows:
            if viewer.role.includes(Role.ADMIN):
                if not row.free:
                    error_text = "The account has a higher role than yours"
                    raise Forbidden(error_text, requires=Role.ROOT, path=["user"])
                return None if row.domain_id is None else int(row.domain_id)
            if row.free and row.domain_id in viewer.administered_domains:
                return int(row.domain_id)
        raise NotFound(str(new.user_id), path=["user"])
    if new.domain_id:
        return new.domain_id
    if not viewer.role.includes(Role.ADMIN):
        if len(viewer.administered_domains) == 1:
            return min(viewer.administered_domains)
        raise InvalidInput(
            "A domain is required", constraint=ValidationConstraint.REQUIRED, path=["domain"]
        )
    return None


async def _check_webhook_count(ctx: Context, row: Webhook) -> None:
    statement = select(func.count().label("many")).where(
        col(Webhook.user_id).is_not_distinct_from(row.user_id),
        col(Webhook.domain_id).is_not_distinct_from(row.domain_id),
    )
    (count_row,) = await ctx.read(statement)
    if count_row.many >= MAX_WEBHOOKS:
        raise LimitReached(
            f"at most {MAX_WEBHOOKS} webhooks",
            limit=MAX_WEBHOOKS,
            used=count_row.many,
            path=["types"],
        )


def _logged_values(row: Any, column_names: Sequence[str]) -> dict[str, Any]:
    """Return the values for the admin log; of a URL only the host."""
    logged = {name: getattr(row, name) for name in column_names}
    if "url" in logged:
        logged["url"] = urlsplit(logged["url"]).hostname
    return logged


async def _lock_webhooks(
    ctx: Context, session: AsyncSession, webhook_ids: Sequence[int], *, path: str = "ids"
) -> list[ColumnRow]:
    """Lock these webhooks and return them in order. Raises NotFound or Forbidden."""
    statement = select(*select_columns(Webhook)).where(
        col(Webhook.id).in_(webhook_ids), _is_visible(ctx)
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
        error_text = "The webhook belongs to an account with a higher role than yours"
        raise Forbidden(error_text, requires=Role.ROOT, path=[path])


async def _domain_id_by_webhook(
    ctx: Context, webhooks: Sequence[ColumnRow]
) -> dict[int, int | None]:
    """Return the domain of each webhook, for the admin log of its administrators."""
    user_ids = {row.user_id for row in webhooks if row.user_id}
    statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(user_ids))
    domain_by_user = (
        {row.id: row.domain_id for row in await ctx.read(statement)} if user_ids else {}
    )
    return {row.id: row.domain_id or domain_by_user.get(row.user_id) for row in webhooks}


async def update_webhooks(ctx: Context, ids: Sequence[int], values: Mapping[str, Any]) -> None:
    """Change types, URL or activity of these webhooks, all or none.

    An activated webhook receives events from now on and is tried at once. Raises NotFound, Invalid
    or Forbidden.
    """
    _check_types_and_url(ctx, values.get("types"), values.get("url"))
    now = ctx.environment.now()
    async with ctx.write_session(PLATFORM) as session:
        rows, connection = await _lock_webhooks(ctx, session, ids), await session.connection()
        for row in rows:
            changed_values = {
                name: value for name, value in values.items() if getattr(row, name) != value
            }
            reset_values: dict[str, Any] = {"failures": 0, "retry_at": None}
            if changed_values.get("active"):
                reset_values["since"] = now
            statement = update(Webhook).where(col(Webhook.id) == row.id)
            await connection.execute(statement.values({**changed_values, **reset_values}))
        domain_ids = await _domain_id_by_webhook(ctx, rows)
        await audit_log.log_changes(
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

    _wake_workers(ctx)


class _AttributeValues:
    """The values of a mapping as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)


async def rotate_secret(ctx: Context, webhook_id: int, overlap: timedelta) -> str:
    """Replace the secret of a webhook and return it. The old one also signs during `overlap`.

    Raises Invalid if that is longer than seven days, NotFound or Forbidden.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        text = f"at most {MAX_OVERLAP.days} days"
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["overlap"])
    environment, secret = ctx.environment, generate_secret(ctx.environment)
    async with ctx.write_session(PLATFORM) as session:
        (row,) = await _lock_webhooks(ctx, session, [webhook_id], path="webhook")
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
        await audit_log.log_changes(
            ctx,
            session,
            NewAuditLogEntry("webhookSecretRotate", "Webhook", webhook_id, domain_ids[webhook_id]),
        )
    return secret


async def delete_webhooks(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these webhooks with their deliveries, all or none. Raises NotFound or Forbidden."""
    async with ctx.write_session(PLATFORM) as session:
        rows, connection = await _lock_webhooks(ctx, session, ids), await session.connection()
        domain_ids = await _domain_id_by_webhook(ctx, rows)
        await connection.execute(delete(Webhook).where(col(Webhook.id).in_(ids)))
        names = ("types", "url", "active")
        await audit_log.log_changes(
            ctx,
            session,
            *(
                NewAuditLogEntry(
                    "webhookDelete",
                    "Webhook",
                    row.id,
                    domain_ids[row.id],
                    _logged_values(row, names),
                )
                for row in rows
            ),
        )


async def queue_test_events(ctx: Context, ids: Sequence[int]) -> None:
    """Queue a test event for these webhooks, also for inactive ones.

    Raises NotFound or Forbidden.
    """
    if not ids:
        return
    now = ctx.environment.now()
    async with ctx.write_session(PLATFORM) as session:
        rows, connection = await _lock_webhooks(ctx, session, ids), await session.connection()
        await connection.run_sync(
            insert_deliveries_of_existing_webhooks,
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
        await audit_log.log_changes(ctx, session, *log_entries)
    _wake_workers(ctx)


def _wake_workers(ctx: Context) -> None:
    """Wake the webhook workers after the transaction."""
    ctx.call_after_commit(lambda: ctx.environment.wakeups.announce({WEBHOOKS: 0}))


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


async def start_replay(ctx: Context, webhook_id: int, since: StreamPositions) -> Task:
    """Queue a task that repeats the events after a position, as far as the webhook covers them.

    Raises NotFound, Forbidden, and Invalid if the position is unknown or expired.
    """
    (row,) = await ctx.load_many(load_visible_webhooks_by_id, [webhook_id])
    if row is None:
        raise NotFound(str(webhook_id), path=["webhook"])
    await _require_not_above_viewer(ctx, [row], "webhook")
    order = await validated_replay_order(ctx, row, since)
    total = sum(order["until"][stream] - order["after"][stream] for stream in order["until"])
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await task_steps.insert_tasks(ctx, session, TASK_KIND, [order], total=total)
        await ctx.record_change(session, PLATFORM, EventType.TASK_CHANGED, [task.id])
        domain_ids = await _domain_id_by_webhook(ctx, [row])
        log_entry = NewAuditLogEntry(
            "webhookReplay", "Webhook", webhook_id, domain_ids[webhook_id], None, {"events": total}
        )
        await audit_log.log_changes(ctx, session, log_entry)
    return task
